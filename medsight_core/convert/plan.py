"""What a conversion will do: which tensor of ours is made of which bytes of which file, and what does not fit.

A tensor of ours is a row of pieces of the release's, one behind the other; that is all that `Recipe`'s rules come to.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from medsight_core.codes import CODE_PATTERN, RegionVocabulary
from medsight_core.convert.release import ADDED_TOKENS, PARTS, Part, Release
from medsight_core.convert.stored import DTYPES, Stored
from medsight_core.errors import CheckpointError, InputError
from medsight_core.model import MedSightConfig
from medsight_core.model.official import SPLIT_WORDS, Recipe, ignored, recipes, release_shapes
from medsight_core.model.official_settings import release_config, release_sizes

LARGEST_SHARD: Final = 5 * 10**9
"""Bytes of a file of the result."""

MOST_LAYERS: Final = 1000
"""Of a language model; a configuration by strangers may ask for a billion."""

LANGUAGE: Final = ("model.language_model.", "lm_head.")
"""Tensors that may be stored in bfloat16; perceiver, image encoder and projectors are small and stay float32."""

_FLOATS: Final = ("F64", "F32", "F16", "BF16")
_NEEDED: Final[Mapping[str, Part]] = {
    "image_encoder.conv1.weight": "clip",
    "region_perceiver.region_queries": "perceiver",
}
"""A tensor that tells whether a part is there, wherever it lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A tensor of the result.

    Attributes:
        name: Ours.
        shape: Ours.
        dtype: To store it in, one of `DTYPES`.
        pieces: What it is made of, in this order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Stored, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * int(DTYPES[self.dtype].itemsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A conversion.

    Attributes:
        release: What is converted.
        config: Of the result.
        shards: Tensors of each file of the result.
        problems: What is missing, unexpected or of the wrong shape, each in a few words; there must be none.
        unused: Reasons why tensors of the release are left out, with their number.
    """

    release: Release
    config: MedSightConfig
    shards: tuple[tuple[Planned, ...], ...]
    problems: tuple[str, ...]
    unused: Mapping[str, int]

    @property
    def tensors(self) -> Iterator[Planned]:
        """All of the result, in order."""
        return (tensor for shard in self.shards for tensor in shard)

    @property
    def size(self) -> int:
        """Bytes of all tensors of the result."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Of the result."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def used(self) -> frozenset[Part]:
        """Parts of which the result is made; others are told of by the ones that are."""
        files = {piece.file for tensor in self.tensors for piece in tensor.pieces}
        return frozenset(part for part, source in self.release.sources.items() if files & set(source.files))

    def shard_name(self, number: int) -> str:
        """File of a shard, from 0, as the library names them."""
        if len(self.shards) == 1:
            return "model.safetensors"
        return f"model-{number + 1:05d}-of-{len(self.shards):05d}.safetensors"

    def fingerprint(self) -> str:
        """Changes where the result would: other sources, another type, other shards."""
        # By number, and where they really are: the folder may be named otherwise the next time.
        numbers = {file: number for number, file in enumerate(self.release.files)}
        told: list[Any] = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in numbers]
        told += [
            [t.name, t.shape, t.dtype, [(numbers[p.file], p.start, p.dtype, p.shape, p.strides) for p in t.pieces]]
            for t in self.tensors
        ]
        told.append([len(shard) for shard in self.shards])
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def make_plan(
    release: Release, *, vocabulary: RegionVocabulary, image_token_id: int, dtype: str, largest: int = LARGEST_SHARD
) -> Plan:
    """Plans a conversion; nothing is read but what `release` has read.

    Args:
        release: As `find_release` gives it.
        vocabulary: The region codes of the release's tokenizer.
        image_token_id: Of the placeholder for images.
        dtype: Of the language model's tensors, "F32" or "BF16".
        largest: Bytes of a file of the result, unless one tensor has more.

    Raises:
        InputError: A part is missing.
        CheckpointError: The parts are of a kind that is not known.
    """
    shapes = _shapes(release)
    for name, part in _NEEDED.items():
        if name not in shapes:
            raise InputError(
                "missing_part",
                f"{release.folder} has no {PARTS[part]}: no file with {name}.",
                f"Name its file with --{part}." + (_CLIP if part == "clip" else ""),
            )
    split = SPLIT_WORDS[0] in shapes
    with _sound():
        config = _config(release, shapes, vocabulary, image_token_id)
        made = recipes(config, split_embedding=split)
        expected = release_shapes(config, split_embedding=split)
    problems = list(_strange(release, expected))
    tensors = []
    for recipe in made:
        sources = [_look_up(release, recipe, name) for name in recipe.sources]
        problems += [f"missing: {name}" for name, s in zip(recipe.sources, sources, strict=True) if s is None]
        found = [source for source in sources if source is not None]
        if len(found) == len(sources) and not problems:
            kind = dtype if recipe.name.startswith(LANGUAGE) else "F32"
            pieces = _pieces(recipe, found, _code_rows(release, vocabulary))
            tensors.append(Planned(name=recipe.name, shape=recipe.shape, dtype=kind, pieces=pieces))
    names = [name for source in release.sources.values() for name in source.tensors]
    return Plan(
        release=release,
        config=config,
        shards=tuple(_shards(tensors, largest)),
        problems=tuple(dict.fromkeys(problems)),
        unused=Counter(reason for name in names if (reason := ignored(name)) is not None),
    )


_CLIP: Final = " UniMed-CLIP's weights (unimed_clip_vit_l14_base_text_encoder.pt) are published by their own authors."


def _shapes(release: Release) -> dict[str, tuple[int, ...]]:
    """Of every tensor by name; the more special part wins."""
    shapes: dict[str, tuple[int, ...]] = {}
    for source in release.sources.values():
        for name, tensor in source.tensors.items():
            shapes.setdefault(name, tensor.shape)
    return shapes


def _config(
    release: Release, shapes: Mapping[str, tuple[int, ...]], vocabulary: RegionVocabulary, image_token_id: int
) -> MedSightConfig:
    groups = Counter(code.group for code in vocabulary)
    if sorted(groups) != list(range(len(groups))) or len(set(groups.values())) != 1:
        raise CheckpointError(
            "bad_vocabulary",
            f"The groups of region codes have {sorted(groups.items())} codes, expected as many in each, from group 0.",
            f"Take tokenizer and {ADDED_TOKENS} from one release.",
        )
    told = {"num_code_groups": len(groups), "codes_per_group": groups[0]}
    sizes = release_sizes(shapes)
    if any(sizes.get(name, number) != number for name, number in told.items()):
        raise CheckpointError(
            "bad_vocabulary",
            f"The tokenizer has {len(groups)} groups of {groups[0]} region codes, the codebook "
            f"{sizes['num_code_groups']} of {sizes['codes_per_group']}.",
            "Take both from one release.",
        )
    if release.config.get("num_hidden_layers") not in range(1, MOST_LAYERS + 1):
        raise CheckpointError(
            "unsupported_release",
            f"The language model has {release.config.get('num_hidden_layers')!r} layers, expected a number up to "
            f"{MOST_LAYERS}.",
            "Take its config.json from the release.",
        )
    config = release_config(
        release.config,
        **(sizes | told),
        use_codebook="codebook" in release.sources,
        code_token_ids=[vocabulary.token_id(code) for code in vocabulary],
        image_token_id=image_token_id,
    )
    config.architectures = ["MedSightForConditionalGeneration"]
    return config


@contextmanager
def _sound() -> Iterator[None]:
    """Says in a sentence that no model can be made of what strangers wrote, whatever our code and the library raise."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            "unsupported_release",
            f"No model can be made of sizes such as these ({type(error).__name__}: {reason}).",
            "Take all files from one release.",
        ) from error


def _strange(release: Release, expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What is there and should not be, or should be otherwise."""
    for part, source in release.sources.items():
        if part == "projected":
            codes = (len(_code_rows(release, None)), expected.get("region_perceiver.region_queries", (0,))[-1])
            if codes[0] and source.tensors[""].shape != codes:
                yield f"wrong shape: {source.path.name} is {list(source.tensors[''].shape)}, expected {list(codes)}"
            continue
        for name, tensor in source.tensors.items():
            where = f"in {tensor.file.name}"
            if name in expected:
                if tensor.shape != tuple(expected[name]):
                    yield f"wrong shape: {name} {where} is {list(tensor.shape)}, expected {list(expected[name])}"
                elif ignored(name) is None and tensor.dtype not in _FLOATS:
                    yield f"wrong type: {name} {where} is {tensor.dtype}, expected one of {', '.join(_FLOATS)}"
            elif ignored(name) is None:
                yield f"unexpected: {source.names[name]} {where}"


def _look_up(release: Release, recipe: Recipe, name: str) -> Stored | None:
    for part in (recipe.file, *recipe.elsewhere):
        if part in release.sources and name in release.sources[part].tensors:
            return release.sources[part].tensors[name]
    return None


def _code_rows(release: Release, vocabulary: RegionVocabulary | None) -> list[int]:
    """Ids of the region codes in the order of the file of added tokens, which is that of their own rows."""
    told = [number for name, number in release.added_tokens.items() if CODE_PATTERN.fullmatch(name)]
    return told or ([vocabulary.token_id(code) for code in vocabulary] if vocabulary else [])


def _pieces(recipe: Recipe, sources: Sequence[Stored], code_rows: Sequence[int]) -> tuple[Stored, ...]:
    if recipe.rule == "third":
        rows = recipe.shape[0]
        return (sources[0].rows(recipe.index * rows, rows),)
    if recipe.rule != "rows":
        return tuple(sources)
    words, codes = sources
    origin = {row: place for place, row in enumerate(code_rows)}
    pieces = []
    # Runs of rows that lie behind each other in one of the two: their distance to where they lie is the same.
    for (is_code, _), run in groupby(
        range(recipe.shape[0]), lambda row: (row in origin, origin[row] - row if row in origin else 0)
    ):
        members = list(run)
        first = origin[members[0]] if is_code else members[0]
        pieces.append((codes if is_code else words).rows(first, len(members)))
    return tuple(pieces)


def _shards(tensors: Sequence[Planned], largest: int) -> Iterator[tuple[Planned, ...]]:
    shard: list[Planned] = []
    for tensor in tensors:
        if shard and sum(t.size for t in shard) + tensor.size > largest:
            yield tuple(shard)
            shard = []
        shard.append(tensor)
    if shard:
        yield tuple(shard)
