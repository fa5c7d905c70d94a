"""Models come from a hub: whole, resumed after interruptions, held against digests, and never as code."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from medsight_core.errors import InputError
from medsight_core.inference.checkpoint import locate, open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.models import library, pull
from medsight_core.models.hub import PART, Hub
from medsight_core.models.known import known_models
from medsight_core.models.manifest import Pulled, manifest_file, read_manifest
from tests.convert.command import convert
from tests.convert.release import write_release
from tests.inference.tiny import ask_about, noise
from tests.models.conftest import REPO, REPOSITORY, Command, run_apart
from tests.models.hub import FakeHub, serve_hub

WEIGHTS = "model.safetensors"


def hub_at(served: FakeHub, home: Path) -> Hub:
    return Hub(endpoint=served.url, cache=home / "hf" / "hub")


def bring(served: FakeHub, home: Path, asked: str = REPO) -> tuple[Pulled, int]:
    """Pulls; gives the manifest and how many bytes were told to have come."""
    known, revision = pull.asked_for(asked)
    there, came = hub_at(served, home), list[int]()
    return pull.pull(there, known, pull.plan_pull(there, known, revision), came=came.append), sum(came)


def fails(served: FakeHub, home: Path, asked: str = REPO) -> InputError:
    with pytest.raises(InputError) as caught:
        bring(served, home, asked)
    return caught.value


def test_what_was_pulled_answers_by_its_name(hub: FakeHub, home: Path, tiny: Path) -> None:
    pulled, came = bring(hub, home)
    files = {file.path: file for file in pulled.sources[0].files}
    assert came == pulled.bytes == sum(file.bytes for file in files.values())
    assert "modeling.py" not in files and "optimizer.pt" not in files
    assert {WEIGHTS, "config.json", "tokenizer.json", "docs/notes.txt"} <= set(files)
    folder = locate(REPO)
    assert not list(folder.rglob("*.py"))
    opened = open_checkpoint(REPO)
    assert opened.name == "tiny-medsight"
    assert opened.digest == open_checkpoint(tiny).digest
    engine = Engine.from_pretrained(REPO, device="cpu")
    answer = engine.answer(ask_about(noise()), max_new_tokens=4)
    assert answer.raw == Engine.from_pretrained(tiny, device="cpu").answer(ask_about(noise()), max_new_tokens=4).raw
    # A second pull fetches nothing.
    hub.gets.clear()
    again, came = bring(hub, home)
    assert (came, hub.gets) == (0, [])
    assert again.sources == pulled.sources


def test_it_lies_where_the_hubs_own_library_looks(hub: FakeHub, home: Path) -> None:
    from huggingface_hub import snapshot_download

    pulled, _ = bring(hub, home)
    commit = pulled.sources[0].commit
    found = snapshot_download(REPO, cache_dir=home / "hf" / "hub", revision=commit, local_files_only=True)
    assert Path(found) == pulled.sources[0].folder


def test_a_broken_connection_goes_on_where_it_ended(
    hub: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    hub.cut[WEIGHTS] = 50_000
    pulled, came = bring(hub, home)
    starts = [start for path, start, _ in hub.gets if path == WEIGHTS]
    assert starts[0] == 0 and 30_000 < starts[1] <= 50_000
    assert came == pulled.bytes
    assert (pulled.sources[0].folder / WEIGHTS).read_bytes() == (tiny / WEIGHTS).read_bytes()


def test_a_killed_pull_goes_on_where_it_ended(home: Path) -> None:
    """The process dies in the middle of a large file, and another one fetches only what is missing."""
    content = random.Random(1).randbytes(3_000_000)
    program = (
        "import sys\n"
        "from huggingface_hub import constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 65536\n"
        "from medsight_core.cli import app\n"
        "app(['model', 'pull', 'a/b', '--mirror', sys.argv[1]])\n"
    )
    with serve_hub({"a/b": {"config.json": b'{"model_type": "medsight"}', WEIGHTS: content}}) as served:
        served.slow = 0.01
        command = [sys.executable, "-c", program, served.url]
        running = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        blobs = home / "hf" / "hub" / "models--a--b" / "blobs"
        deadline = time.monotonic() + 60
        while sum(file.stat().st_size for file in blobs.glob(f"*{PART}")) < 500_000:
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert read_manifest(manifest_file(home / "models", "a/b")) is None
        served.slow = 0.0
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        starts = [start for path, start, _ in served.gets if path == WEIGHTS]
    assert len(starts) == 2 and starts[1] >= 500_000
    assert (locate("a/b") / WEIGHTS).read_bytes() == content
    assert not list(blobs.glob(f"*{PART}"))


def test_ctrl_c_keeps_what_came(home: Path) -> None:
    with serve_hub({"a/b": {"config.json": b"{}", WEIGHTS: b"w" * 3_000_000}}) as served:
        served.slow = 0.02
        running = subprocess.Popen(
            [sys.executable, "-m", "medsight_core.cli", "model", "pull", "a/b", "--mirror", served.url],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not any(path == WEIGHTS for path, _, _ in served.gets):
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "say the same command again to go on" in said


def test_a_token_goes_to_the_hub_and_nowhere_else(hub: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    error = fails(hub, home)
    assert error.code == "no_token"
    assert "HF_TOKEN" in error.remedy
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    bring(hub, home)
    large = [told for path, _, told in hub.gets if path == WEIGHTS]
    assert large == [False]  # the content network, another host, did not see it


def test_terms_that_were_not_agreed_to_are_named(hub: FakeHub, home: Path) -> None:
    hub.refusal = (403, "GatedRepo")
    error = fails(hub, home)
    assert error.code == "gated"
    assert f"{hub.url}/{REPO}" in error.remedy
    hub.refusal = (401, "RepoNotFound")  # what the hub says of private repositories
    assert fails(hub, home).code == "no_repository"
    hub.refusal = (500, "")
    assert fails(hub, home).code == "hub_failed"


def test_what_is_not_there_is_named(hub: FakeHub, home: Path) -> None:
    assert fails(hub, home, "someone/else").code == "no_repository"
    assert fails(hub, home, f"{REPO}@v9").code == "no_revision"
    assert bring(hub, home, f"{REPO}@v1")[0].sources[0].revision == "v1"


def test_a_file_that_changed_on_its_way_is_refused(hub: FakeHub, home: Path) -> None:
    hub.spoilt.add(WEIGHTS)
    error = fails(hub, home)
    assert error.code == "damaged_download"
    assert WEIGHTS in error.sentence
    assert not [file for file in (home / "hf").rglob("*") if file.is_file() and file.stat().st_size > 30_000]
    assert read_manifest(manifest_file(home / "models", REPO)) is None
    hub.spoilt = {"config.json"}  # a small one, which git keeps: its id is held against
    assert "config.json" in fails(hub, home).sentence
    hub.spoilt.clear()
    bring(hub, home)


def test_a_file_that_changed_in_the_cache_is_fetched_again(hub: FakeHub, home: Path) -> None:
    pulled, _ = bring(hub, home)
    blob = (pulled.sources[0].folder / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    assert fails(hub, home).code == "damaged_download"
    bring(hub, home)
    assert open_checkpoint(REPO).digest


def test_there_must_be_room(hub: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=pull.SPARE))
    error = fails(hub, home)
    assert error.code == "no_space"
    assert "HF_HOME" in error.remedy
    assert not hub.gets


def test_a_disk_that_is_full_in_the_middle(hub: FakeHub, home: Path) -> None:
    """No file may grow beyond a limit, as on a full disk; what came before stays."""
    program = (
        "import resource, sys\n"
        "from huggingface_hub import constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 4096\n"
        "import medsight_core.cli.model_files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))\n"
        "from medsight_core.cli import app\n"
        "app(['model', 'pull', sys.argv[1], '--mirror', sys.argv[2]])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, REPO, hub.url], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2, run.stderr
    assert "is full. Make room" in run.stderr
    assert "Traceback" not in run.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 60_000
    _, came = bring(hub, home)
    starts = [start for path, start, _ in hub.gets if path == WEIGHTS]
    assert starts[-1] > 40_000 and came < 1_000_000


def test_offline_asks_nobody(hub: FakeHub, home: Path, medsight: Command) -> None:
    never = medsight("model", "pull", REPO, "--offline")
    assert never.exit_code == 2 and "was not pulled before" in never.stderr
    pulled, _ = bring(hub, home)
    hub.gets.clear()
    here = medsight("model", "pull", REPO, "--offline", HF_ENDPOINT="http://127.0.0.1:9")
    assert here.exit_code == 0 and "is here" in here.stdout
    (pulled.sources[0].folder / "config.json").unlink()
    lacking = medsight("model", "pull", REPO, "--offline")
    assert lacking.exit_code == 2 and "config.json is missing" in lacking.stderr
    forbidden = run_apart("model", "pull", REPO, "--mirror", hub.url, HF_HUB_OFFLINE="1")
    assert forbidden.returncode == 2 and "HF_HUB_OFFLINE" in forbidden.stderr
    assert not hub.gets


def test_a_hub_that_is_not_there(home: Path, medsight: Command) -> None:
    run = medsight("model", "pull", "a/b", HF_ENDPOINT="http://127.0.0.1:9")
    assert run.exit_code == 2
    assert "http://127.0.0.1:9 cannot be reached" in run.stderr and "Traceback" not in run.stderr


def test_pickles_come_only_where_they_are_converted(home: Path) -> None:
    trap = b"cos\nsystem\n(S'touch opened'\ntR." + b"x" * 5000
    with serve_hub({"a/b": {"config.json": b"{}", "pytorch_model.bin": trap}, "a/c": {"README.md": b"-"}}) as served:
        error = fails(served, home, "a/b")
        assert error.code == "pickled_weights" and "pytorch_model.bin" in error.sentence
        assert fails(served, home, "a/c").code == "no_weights"


def release_hub() -> dict[str, dict[str, bytes]]:
    """As the authors' release is said to look, without its weights' meaning: nothing here is opened."""
    weights = random.Random(2).randbytes(20_000)
    return {
        "Caf0914/MedSIGHT": {
            "region_perceiver/0079280.pt": weights,
            "mm_projector.bin": weights[:9000],
            "added_tokens.json": b"{}",
            "medsight_full_instruct/config.json": b'{"model_type": "llava_qwen"}',
            "medsight_full_instruct/model-00001-of-00001.safetensors": weights[5:],
            "medsight_full_instruct/training_args.bin": b"x",
            "medsight_full_instruct/run.py": b"x",
        },
        "UzairK/unimed_clip_vit_l14_base_text_encoder": {
            "unimed_clip_vit_l14_base_text_encoder.pt": weights[7:],
            "other.pt": weights[9:],
        },
    }


def test_the_released_model_comes_from_two_places_and_says_how_to_convert_it(home: Path, medsight: Command) -> None:
    with serve_hub(release_hub()) as served:
        dry = medsight("model", "pull", "medsight-8b", "--dry-run", HF_ENDPOINT=served.url)
        assert dry.exit_code == 0 and "region_perceiver/0079280.pt" in dry.stdout
        assert not served.gets and not (home / "models").exists()
        run = medsight("model", "pull", "medsight-8b", HF_ENDPOINT=served.url)
        assert run.exit_code == 0, run.stderr
        taken = {path for path, _, _ in served.gets}
    assert not {path for path in taken if path.endswith((".py", "training_args.bin", "other.pt"))}
    assert "never downloaded" in run.stderr and "CC BY-NC" in run.stderr
    line = next(line for line in run.stdout.splitlines() if line.startswith("  medsight convert "))
    _, _, release, out, option, clip = line.split()
    assert (Path(release) / "medsight_full_instruct" / "config.json").is_file()
    assert Path(out) == home / "models" / "medsight-8b"
    assert option == "--clip" and Path(clip).is_file()
    assert str(REPOSITORY) not in line
    refused = medsight("ask", str(REPOSITORY / "README.md"), "Where?", "--model", "medsight-8b")
    assert refused.exit_code == 2 and "not converted yet" in refused.stderr and "medsight convert" in refused.stderr


def test_from_the_hub_to_an_answer(home: Path, medsight: Command) -> None:
    """A release with real, tiny tensors: pulled, converted as the command says, asked by its name."""
    release = write_release(home / "release", loud=3.0)
    found = [file for file in release.rglob("*") if file.is_file()]
    files = {file.relative_to(release).as_posix(): file.read_bytes() for file in found}
    clip = "unimed_clip_vit_l14_base_text_encoder"
    with serve_hub({"Caf0914/MedSIGHT": files, f"UzairK/{clip}": {f"{clip}.pt": files.pop(f"{clip}.pt")}}) as served:
        run = medsight("model", "pull", "medsight-8b", HF_ENDPOINT=served.url)
    line = next(line for line in run.stdout.splitlines() if line.startswith("  medsight convert "))
    convert(*line.split()[2:], "-q")
    assert "medsight convert" not in medsight("model", "plan", "medsight-8b").stdout
    question = ask_about(noise(), "Segment the liver in this image.")
    assert Engine.from_pretrained("medsight-8b", device="cpu").answer(question, max_new_tokens=4).regions
    verified = medsight("model", "verify", "medsight-8b")
    assert verified.exit_code == 0 and "as the hub told and conversion.json says" in verified.stdout
    rows = {row["name"]: row for row in json.loads(medsight("model", "list", "--json").stdout)["models"]}
    assert rows["medsight-8b"]["state"] == "in the folder of models"


def test_a_repository_that_is_no_checkpoint_of_ours(home: Path, medsight: Command) -> None:
    with serve_hub({"a/b": {"config.json": b'{"model_type": "llama"}', WEIGHTS: b"w" * 5000}}) as served:
        run = medsight("model", "pull", "a/b", HF_ENDPOINT=served.url)
    assert run.exit_code == 2
    assert "no MedSIGHT checkpoint" in run.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../../outside.json"},
        {"path": "a\\b.json"},
        {"path": "/etc/passwd.json"},
        {"path": "C:x.json"},
        {"oid": "../x"},
        {"size": -1},
    ],
    ids=str,
)
def test_a_hub_that_lies_about_paths(home: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_hub({"a/b": {"config.json": b"{}", WEIGHTS: b"w" * 5000}}) as served:
        honest = served.tree("a/b")
        monkeypatch.setattr(served, "tree", lambda repo: [honest[0] | change, *honest[1:]])
        assert fails(served, home, "a/b").code == "strange_answer"
        assert not served.gets


def test_one_pull_of_a_repository_at_a_time(hub: FakeHub, home: Path) -> None:
    with hub_at(hub, home).alone(REPO):
        found: list[InputError] = []
        thread = threading.Thread(target=lambda: found.append(fails(hub, home)))
        thread.start()
        thread.join()
    assert found[0].code == "in_use"


@pytest.mark.parametrize("text", ["", "tiny", "a/b/c", "../x", "a/b@", "https://hub/a/b", "a b/c"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        pull.asked_for(text)
    assert caught.value.code == "bad_name"
    assert "medsight-8b" in caught.value.remedy


def test_the_built_in_model_is_not_pulled() -> None:
    with pytest.raises(InputError, match="comes with the package"):
        pull.asked_for("medsight-mini")


def test_what_cannot_be_written_is_said(hub: FakeHub, home: Path) -> None:
    (home / "hf").write_text("a file where a folder should be")
    assert fails(hub, home).code == "bad_output"


def test_without_the_hubs_library_the_sentence_says_what_to_install(
    medsight: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    run = medsight("model", "pull", REPO)
    assert run.exit_code == 2 and "pip install 'medsight[model]'" in run.stderr
    assert medsight("model", "list").exit_code == 0


def test_every_known_model_tells_what_it_is() -> None:
    for known in known_models().values():
        assert known.about.endswith(".")
        for source in known.sources:
            assert library.is_name(source.repo) and "/" in source.repo
    told = json.dumps([known.name for known in known_models().values()])
    assert "medsight-8b" in told and os.sep not in told
