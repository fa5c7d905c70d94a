"""`--backend`: the commands with a server give what they give with a model in this process, and need no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from medsight_core.cli import app
from medsight_core.inference.engine import Engine
from medsight_core.inference.scheduler import Scheduler
from tests.inference.tiny import save_tiny
from tests.server.running import serving

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It writes gibberish; a little of it will do."""
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny")
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"max_new_tokens": 12}))
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> str:
    affine = np.array([[-1.5, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3.5, 8], [0, 0, 0, 1.0]])
    array = np.random.default_rng(0).integers(0, 900, (48, 40, 4)).astype(np.int16)
    path = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return str(path)


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    scheduler = Scheduler(Engine.from_pretrained(model, device="cpu"))
    with serving(scheduler, tmp_path_factory.mktemp("store"), token=TOKEN) as running:
        yield running.url
    scheduler.close()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MEDSIGHT_BACKEND", "MEDSIGHT_TOKEN", "MEDSIGHT_CA", "MEDSIGHT_DEBUG", "MEDSIGHT_MODEL"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str, code: int = 0, env: dict[str, str] | None = None, typed: str = "") -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments), env=env, input=typed)
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def timeless(text: str) -> Any:
    content = json.loads(text)
    for name in ("timings", "out"):
        content.pop(name)
    for name in ("estimated_seconds", "encoded"):  # a server remembers slices from one command to the next
        content["settings"].pop(name, None)
    return content


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "Segment the left lung in this image.", "--slice", "1", "--point", "9,9"),
        ("ask", "What is shown?", "--volume", "--slices", "1:3"),
        ("segment", "--point", "20,20", "--volume"),
        ("segment", "--prompt", "left lung", "--slice", "2"),
    ],
)
def test_a_server_gives_what_a_model_here_gives(command: tuple[str, ...], scan: str, model: Path, url: str) -> None:
    name, *words = command
    local, _ = run(name, scan, *words, "--json", "--out", "here", "--model", str(model), "--device", "cpu")
    remote, _ = run(name, scan, *words, "--json", "--out", "there", "--backend", url, "--token", TOKEN)
    mine, theirs = timeless(local), timeless(remote)
    assert mine.pop("model") == theirs.pop("model")
    assert mine == theirs
    files = [sorted(path.name for path in Path(folder).rglob("*")) for folder in ("here", "there")]
    assert files[0] == files[1]
    for path in Path("here").rglob("*.nrrd"):
        assert path.read_bytes() == Path("there", path.name).read_bytes()


def test_the_environment_says_who_is_asked(scan: str, model: Path, url: str) -> None:
    environment = {"MEDSIGHT_BACKEND": url, "MEDSIGHT_TOKEN": TOKEN}
    stdout, _ = run("ask", scan, "What?", "--quiet", env=environment)
    stdout, _ = run("chat", scan, env=environment, typed="What?\n")
    assert "tiny" in stdout
    _, stderr = run("ask", scan, "What?", env=environment | {"MEDSIGHT_TOKEN": "wrong"}, code=2)
    assert stderr == (
        "error: The token is missing or wrong. Give the token that the server was started with: --token or "
        "MEDSIGHT_TOKEN; over HTTP, the header Authorization: Bearer TOKEN.\n"
    )
    _, stderr = run("ask", scan, "What?", "--model", str(model), env=environment, code=2)
    assert "Leave out one of --backend and --model" in stderr
    run("ask", scan, "What?", "--model", str(model), "--backend", "", env=environment)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "http://gpu.example"), "--insecure-http"),
        (("--backend", "ftp://gpu.example"), "https://HOST:PORT"),
        (("--backend", "http://127.0.0.1:1"), "medsight serve"),
        (("--backend", "https://gpu.example", "--ca", "nothing.pem"), "no certificate"),
        (("--backend", "https://nowhere.invalid"), "no computer called nowhere.invalid"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_line(options: tuple[str, ...], words: str, scan: str) -> None:
    for command in (("ask", scan, "What?"), ("segment", scan, "--point", "9,9"), ("chat", scan)):
        stdout, stderr = run(*command, *options, code=2)
        assert stdout == "" and stderr.count("\n") == 1 and words in stderr


def test_pictures_are_looked_at_before_they_are_sent(url: str) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save("photo.png")
    _, stderr = run("ask", "photo.png", "What?", "--backend", url, "--token", TOKEN)
    assert "warning: " in stderr and "ask on this machine instead" in stderr
    _, stderr = run("ask", "photo.png", "What?", "--backend", url, "--token", TOKEN, "--quiet")
    assert "ask on this machine instead" in stderr, "nobody should have to look for it"


def test_a_client_needs_no_torch(scan: str, url: str) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors', 'fastapi', 'blosc2'): sys.modules[name] = None\n"
        "from medsight_core.cli import app\n"
        "app()\n"
    )
    for command in (
        ("ask", scan, "What?"),
        ("segment", scan, "--point", "20,20", "--volume"),
        ("chat", scan),
    ):
        result = subprocess.run(
            [sys.executable, "-c", program, *command, "--backend", url, "--token", TOKEN],
            cwd=REPOSITORY if command[0] == "chat" else Path.cwd(),
            env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
            input="What?\n",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
