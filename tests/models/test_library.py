"""Models by name, and what was noted of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from medsight_core.errors import CheckpointError
from medsight_core.inference import checked
from medsight_core.inference.checkpoint import ENVIRONMENT, locate, open_checkpoint
from medsight_core.models import library
from medsight_core.models.manifest import (
    Pulled,
    PulledFile,
    PulledSource,
    differences,
    digest_of,
    manifest_file,
    read_manifest,
    write_manifest,
)
from tests.models.conftest import Command


def keep(tiny: Path, home: Path, name: str) -> Path:
    """A checkpoint in the folder of models."""
    return Path(shutil.copytree(tiny, home / "models" / name))


def refused(name: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    return caught.value


def test_a_folder_goes_before_a_name(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    kept = keep(tiny, home, "mine")
    assert locate("mine") == kept
    assert locate(Path("mine")) == kept
    Path(shutil.copytree(tiny, home / "mine"))
    assert locate("mine") == home / "mine"


def test_the_built_in_model_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("medsight-mini") == locate()
    monkeypatch.setenv(ENVIRONMENT, "medsight-mini")
    assert locate().name == "medsight-mini"
    monkeypatch.setenv(ENVIRONMENT, "medsight-8b")
    with pytest.raises(CheckpointError, match="medsight model pull medsight-8b"):
        locate()


def test_names_that_mean_nothing(home: Path) -> None:
    assert refused("medsight-8b").code == "not_pulled"
    error = refused("medsight-8B")
    assert error.code == "unknown_model" and 'Did you mean "medsight-8b"?' in error.remedy
    assert refused("quite/different").code == "unknown_model"
    for path in ("/no/such", "../x", "a/b/c", "~/x"):
        assert refused(path).code == "missing_checkpoint"


def test_a_model_that_was_converted_under_a_known_name_is_found(tiny: Path, home: Path) -> None:
    kept = keep(tiny, home, "medsight-8b")
    assert locate("medsight-8b") == kept
    assert open_checkpoint("medsight-8b").name == "medsight-8b"
    keep(tiny, home, "someone/else")
    assert [entry.name for entry in library.entries()] == ["medsight-mini", "medsight-8b", "someone/else"]


def test_where_models_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(library.ENVIRONMENT)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert library.models_folder().parts[-2:] == ("medsight", "models")
    monkeypatch.setenv(library.ENVIRONMENT, "~/here")
    assert library.models_folder() == Path.home() / "here"


def note(home: Path, folder: Path) -> Pulled:
    here = sorted(folder.iterdir())
    files = tuple(PulledFile(path=file.name, bytes=file.stat().st_size, sha256=digest_of(file)) for file in here)
    source = PulledSource(role="checkpoint", repo="a/b", revision="main", commit="c" * 40, folder=folder, files=files)
    pulled = Pulled(name="a/b", when="2026-01-01T00:00:00+00:00", sources=(source,))
    write_manifest(manifest_file(home / "models", "a/b"), pulled)
    return pulled


def test_a_manifest_comes_back_as_it_was(tiny: Path, home: Path) -> None:
    pulled = note(home, tiny)
    assert read_manifest(manifest_file(home / "models", "a/b")) == pulled
    assert locate("a/b") == tiny
    assert not list((home / "models").rglob("*.partial"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "name": "a"}', "[" * 100_000])
def test_a_damaged_manifest_is_named(home: Path, content: str) -> None:
    file = manifest_file(home / "models", "a/b")
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert refused("a/b").code == "damaged_manifest"
    assert str(file) in refused("a/b").sentence


def test_differences_are_named(tiny: Path, home: Path) -> None:
    folder = keep(tiny, home, "copy")
    source = note(home, folder).sources[0]
    assert list(differences(source, read=lambda count: None)) == []
    (folder / "config.json").unlink()
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "tokenizer.json").write_text("{}")
    told = {found.file.name: found.what for found in differences(source, read=lambda count: None)}
    assert told == {"config.json": "missing", "model.safetensors": "changed", "tokenizer.json": "of another size"}
    quick = {found.file.name for found in differences(source)}
    assert quick == {"config.json", "tokenizer.json"}


def test_verify_names_what_differs(tiny: Path, home: Path, medsight: Command) -> None:
    folder = keep(tiny, home, "mine")
    plain = medsight("model", "verify", "mine")
    assert plain.exit_code == 0 and "nothing was noted before" in plain.stdout
    assert medsight("model", "verify", "mine", "--record").exit_code == 0
    assert "as SHA256SUMS says" in medsight("model", "verify", str(folder)).stdout
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "extra.json").write_text("{}")
    wrong = medsight("model", "verify", "mine")
    assert wrong.exit_code == 2
    assert f"{folder / 'config.json'} is changed" in wrong.stdout
    assert f"{folder / 'extra.json'} is not in the list" in wrong.stdout
    assert "mine is not what it was: 1 changed, 1 not in the list" in wrong.stderr
    told = json.loads(medsight("model", "verify", "mine", "--json").stdout)
    assert told["whole"] is False and {file["what"] for file in told["files"]} == {"changed", "not in the list"}


def test_sums_are_what_other_programs_read(tiny: Path, home: Path, medsight: Command) -> None:
    folder = keep(tiny, home, "mine")
    medsight("model", "verify", "mine", "--record")
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert f"{digest_of(folder / 'model.safetensors')}  model.safetensors" in lines
    (folder / "SHA256SUMS").write_text("../x  y\n")
    assert medsight("model", "verify", "mine").exit_code == 2


def test_verify_holds_a_conversion_against_its_own_note(tiny: Path, home: Path, medsight: Command) -> None:
    folder = keep(tiny, home, "mine")
    digest = open_checkpoint(folder).digest
    (folder / "conversion.json").write_text(json.dumps({"digest": digest}))
    assert "as conversion.json says" in medsight("model", "verify", "mine").stdout
    (folder / "conversion.json").write_text(json.dumps({"digest": "0" * 16}))
    wrong = medsight("model", "verify", "mine")
    assert wrong.exit_code == 2 and f"their digest is {digest}, expected {'0' * 16}" in wrong.stderr


def test_list_tells_what_is_here(tiny: Path, home: Path, medsight: Command) -> None:
    keep(tiny, home, "mine")
    note(home, tiny)
    broken = keep(tiny, home, "broken")
    (broken / "model.safetensors").write_bytes(b"short")
    run = medsight("model", "list", "--json")
    assert run.exit_code == 0, run.stderr
    rows = {row["name"]: row for row in json.loads(run.stdout)["models"]}
    assert list(rows) == ["medsight-mini", "medsight-8b", "broken", "mine", "a/b"]
    assert rows["mine"]["digest"] == rows["a/b"]["digest"] == open_checkpoint(tiny).digest
    assert (rows["mine"]["state"], rows["a/b"]["state"]) == ("in the folder of models", "pulled")
    assert rows["mine"]["precision"] == "fp32" and rows["medsight-mini"]["precision"] == "fp16"
    assert rows["medsight-8b"]["state"] == "not here" and rows["medsight-8b"]["folder"] is None
    assert "truncated" in rows["broken"]["notes"][0] and rows["broken"]["digest"] is None
    shown = medsight("model", "list").stdout
    assert "medsight-8b" in shown and "not here" in shown and str(broken) in shown


def test_large_weights_are_read_through_once(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = keep(tiny, home, "large")
    weights = folder / "model.safetensors"
    first = open_checkpoint(folder).digest
    assert checked.recall([weights]) is None  # a small one is not worth it
    monkeypatch.setattr(checked, "LARGE", 1000)
    assert open_checkpoint(folder).digest == first == checked.recall([weights])
    # What is remembered is what comes back: nothing is read.
    monkeypatch.setattr("medsight_core.inference.checkpoint._read_values", lambda *given: pytest.fail("was read"))
    assert open_checkpoint(folder).digest == first
    monkeypatch.undo()
    monkeypatch.setenv(library.ENVIRONMENT, str(home / "models"))
    monkeypatch.setattr(checked, "LARGE", 1000)
    content = bytearray(weights.read_bytes())
    stat = weights.stat()
    content[-1] ^= 1
    weights.write_bytes(content)
    second = open_checkpoint(folder).digest
    assert second != first
    # A change that leaves no trace in the file's dates: only reading anew sees it.
    content[-1] ^= 1
    seen = weights.stat()
    with weights.open("r+b") as stream:
        stream.seek(len(content) - 1)
        stream.write(content[-1:])
    os.utime(weights, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert open_checkpoint(folder).digest == second
    assert open_checkpoint(folder, anew=True).digest == first
    assert stat.st_size == seen.st_size


def test_what_is_remembered_may_be_damaged_or_unwritable(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "LARGE", 1000)
    digest = open_checkpoint(tiny).digest
    notes = home / "models" / ".checked.json"
    for content in ("", "[]", '{"format": 1, "folders": []}', '{"format": 1, "folders": {"x": 3}}', "[" * 100_000):
        notes.write_text(content)
        assert open_checkpoint(tiny).digest == digest
    monkeypatch.setenv(library.ENVIRONMENT, str(tiny / "config.json" / "below a file"))
    assert open_checkpoint(tiny).digest == digest


def test_the_built_in_model_is_what_was_published(medsight: Command) -> None:
    """Whoever trains it anew says `medsight model verify medsight-mini --record`."""
    run = medsight("model", "verify", "medsight-mini")
    assert run.exit_code == 0 and "as SHA256SUMS says" in run.stdout, run.stderr
