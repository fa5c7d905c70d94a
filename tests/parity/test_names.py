"""Every tensor of a released checkpoint, at its full size, has a place of the same shape in our model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from medsight_core.model import MedSightConfig
from medsight_core.model.official import ignored, recipes, release_shapes

Shapes = dict[str, tuple[int, ...]]


def expand(rows: list[dict[str, Any]]) -> Shapes:
    """Shapes by name, `{0..23}` counted out; "standard Qwen3-8B" is left to the library's own names."""
    found: Shapes = {}
    for row in rows:
        numbers = re.search(r"\{(\d+)\.\.(\d+)\}", row["key"])
        if not isinstance(row["shape"], list):
            continue
        first, last = (int(n) for n in numbers.groups()) if numbers else (0, 0)
        for n in range(first, last + 1):
            name = row["key"].replace(numbers[0], str(n)) if numbers else row["key"]
            found[name] = tuple(row["shape"])
    return found


@pytest.fixture(scope="module")
def table(shared_parity: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared_parity / "official_keys_fullsize.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def theirs(table: dict[str, Any]) -> Shapes:
    """The whole table."""
    with_quantizer = expand(table["regtok_with_quantizer_stage2"])
    without = expand(table["regtok_no_quantizer_as_used_by_LLM"])
    assert without.items() <= with_quantizer.items()
    return with_quantizer | expand(table["llm"])


@pytest.fixture(scope="module")
def settings() -> MedSightConfig:
    return MedSightConfig(use_prompts=False)


def test_the_whole_table(theirs: Shapes, settings: MedSightConfig) -> None:
    """None missing, none unexpected, all of one shape; the language model's layers are not in the table one by one."""
    expected = release_shapes(settings)
    layers = {name for name in expected if name.startswith("model.layers.")}
    assert len(layers) == 36 * 11
    assert theirs == {name: shape for name, shape in expected.items() if name not in layers}


def test_one_to_one(theirs: Shapes, settings: MedSightConfig) -> None:
    """Every tensor of the table becomes one of ours, or three, or a row of one, or is known to be needless."""
    made = recipes(settings)
    used = [(source, recipe.index) for recipe in made for source in recipe.sources]
    assert len(set(used)) == len(used), "a released tensor is used twice"
    needless = {name for name in theirs if ignored(name)}
    assert {source for source, _ in used if not source.startswith("model.layers.")} == theirs.keys() - needless
    assert {"image_encoder.proj", "region_perceiver.region_position_embed.weight"} <= needless


def test_sums(table: dict[str, Any], theirs: Shapes, settings: MedSightConfig) -> None:
    """The recorded totals of the released parts, from our table of shapes."""
    statistics = re.compile(r".*\.(initted|step|codebook_used|ema_usage)|region_perceiver\.quantizer\..*")
    shapes = release_shapes(settings)

    def total(*beginnings: str) -> int:
        names = [name for name in shapes if name.startswith(beginnings) and not statistics.fullmatch(name)]
        return sum(size(shapes[name]) for name in names)

    quantizer = ("quantizer.", "modality_predictor.", "region_perceiver.to_code.", "region_perceiver.code_decoder.")
    sums = table["totals"]
    assert total("image_encoder.") == sums["image_encoder"]
    assert total("region_perceiver.") - total(*quantizer[2:]) == sums["region_perceiver"]
    assert total("image_encoder.", "region_perceiver.") - total(*quantizer[2:]) == sums["regtok_no_quantizer"]
    assert total("image_encoder.", "region_perceiver.", *quantizer[:2]) == sums["regtok_with_quantizer"]
    assert total("model.mm_projector.") == sums["mm_projector"]


def size(shape: tuple[int, ...]) -> int:
    """Numbers in a tensor."""
    count = 1
    for n in shape:
        count *= n
    return count
