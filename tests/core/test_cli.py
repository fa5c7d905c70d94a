"""The command: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import typer
from pydicom import examples
from rich.console import Console
from typer.testing import CliRunner

import medsight_core.cli.ask as ask_module
from medsight_core import __version__, events
from medsight_core.backend import Whole
from medsight_core.cli import app, group
from medsight_core.cli.console import AnswerView
from medsight_core.cli.prompts import parse_pixels
from medsight_core.errors import InputError
from medsight_core.imaging.volume import open_volume
from medsight_core.markup import Grounding, MarkupStream
from medsight_core.regions import Answer, Provenance, Question, Region
from medsight_core.terminology import display_colours

REPOSITORY = Path(__file__).resolve().parents[2]
CT = str(examples.get_path("ct"))  # 128 x 128 pixels


class FakeBackend:
    """Says one sentence, streamed, about a square on the asked slice; notes what it was asked."""

    raw = "There is a <p>liver lesion</p>[C0_16] here."

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def ask(self, question: Question, *, whole: Whole | None = None) -> Iterator[events.Event]:
        self.asked.append(question)
        frame, stream, regions = question.volume.slice_frame(question.slice_index), MarkupStream(), []
        mask = np.zeros(frame.shape[1:], bool)
        mask[20:40, 30:60] = True
        yield events.Progress(1, 2, "looking")
        for start in range(0, len(self.raw), 5):
            for piece in stream.feed(self.raw[start : start + 5]):
                if isinstance(piece, Grounding):
                    found = Region(
                        code=str(piece.code), label="lesion", span=piece.span, score=0.87,
                        slice_index=question.slice_index, mask=mask, frame=frame,
                    )  # fmt: skip
                    regions.append(found)
                    yield events.RegionFound(found)
                else:
                    yield events.TextDelta(piece)
        origin = Provenance(model="fake", digest="sha256:0", timings={"decode": 0.1})
        yield events.Done(
            Answer(text=stream.text, raw=self.raw, regions=tuple(regions), warnings=(), provenance=origin)
        )


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend()
    monkeypatch.setattr(ask_module, "open_backend", lambda chosen: fake)
    return fake


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDSIGHT_DEBUG", raising=False)
    return tmp_path


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def refused(*arguments: str) -> str:
    """One clear line on stderr, exit code 2, nothing written."""
    before = sorted(os.listdir())
    stdout, stderr = run(*arguments, code=2)
    assert stdout == ""
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert sorted(os.listdir()) == before
    return stderr


def test_ask_prints_the_answer_and_the_regions_and_says_where_the_files_are(backend: FakeBackend) -> None:
    stdout, stderr = run("ask", CT, "Where is the lesion?")
    assert stdout.startswith("There is a liver lesion here.\n")
    for words in ("lesion", "[C0_16]", "0.87", "certain", "mm²"):
        assert words in stdout
    assert "[C0_16]" not in stdout.splitlines()[0]
    last = stdout.splitlines()[-1]
    assert last.startswith("Written to medsight-answer/: report.html") and "segmentation.dcm" in last
    assert "fake" in stderr and " s" in stderr
    made = {path.name for path in Path("medsight-answer").iterdir()}
    assert made == {"answer.json", "overlay.png", "report.html", "segmentation.dcm", "masks"}


def test_json_is_all_there_is_on_stdout(backend: FakeBackend) -> None:
    stdout, _ = run("ask", CT, "Where is the lesion?", "--json", "--out", "here")
    content = json.loads(stdout)
    assert content.pop("out") == "here"
    assert content == json.loads(Path("here/answer.json").read_text(encoding="utf-8"))
    assert content["regions"][0]["area_pixels"] == 600
    assert {"read_scan", "load_model", "ask", "decode"} <= set(content["timings"])


def test_quiet_prints_the_answer_only(backend: FakeBackend) -> None:
    assert run("ask", CT, "Where?", "--quiet") == ("There is a liver lesion here.\n", "")
    assert Path("medsight-answer/report.html").is_file()


def test_prompts_are_put_into_the_patient(backend: FakeBackend) -> None:
    run("ask", CT, "What?", "--point", "10,20.5", "--point", "0,0", "--box", "50,60,5,6", "--scribble", "1,2;3,4;5,6")
    (question,) = backend.asked
    frame = question.volume.slice_frame(question.slice_index)
    assert [prompt.kind for prompt in question.prompts] == ["point", "point", "box", "scribble"]
    back = [frame.to_index(prompt.points)[:, [2, 1]].round(6).tolist() for prompt in question.prompts]
    assert back == [[[10, 20.5]], [[0, 0]], [[50, 60], [5, 6]], [[1, 2], [3, 4], [5, 6]]]
    header = examples.ct
    expected = [float(v) for v in header.ImagePositionPatient]
    assert question.prompts[1].points[0] == pytest.approx(expected)
    dy, dx = (float(v) for v in header.PixelSpacing)
    assert question.prompts[0].points[0] == pytest.approx([expected[0] + 10 * dx, expected[1] + 20.5 * dy, expected[2]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ask", CT, ""), "question is empty"),
        (("ask", CT, "  "), "question is empty"),
        (("ask", "nowhere.dcm", "What?"), "no file or folder nowhere.dcm"),
        (("info", "nowhere.dcm"), "no file or folder nowhere.dcm"),
        (("ask", CT, "What?", "--slice", "1"), "only slice is 0"),
        (("ask", CT, "What?", "--slice", "-1"), "only slice is 0"),
        (("ask", CT, "What?", "--point", "128,3"), "128 columns and 128 rows"),
        (("ask", CT, "What?", "--point", "3,-1"), "Y from 0 to 127"),
        (("ask", CT, "What?", "--box", "0,0,500,500"), "outside the image"),
        (("ask", CT, "What?", "--point", "3"), "--point takes X,Y"),
        (("ask", CT, "What?", "--point", "3,x"), "--point takes X,Y"),
        (("ask", CT, "What?", "--point", "nan,1"), "--point takes X,Y"),
        (("ask", CT, "What?", "--box", "1,2,3"), "X0,Y0,X1,Y1"),
        (("ask", CT, "What?", "--box", "1,2,1,9"), "two different corners"),
        (("ask", CT, "What?", "--scribble", "1,2"), "X,Y;X,Y"),
        (("ask", CT, "What?", "--model", "nowhere"), "not a folder"),
        (("ask", CT, "What?", "--out", "/dev/null"), "not a folder"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_the_model_is_loaded(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(chosen: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(ask_module, "open_backend", load)
    assert words in refused(*arguments)


def test_a_text_file_called_dcm_is_refused(folder: Path) -> None:
    (folder / "fake.dcm").write_text("hello, I am a text file\n" * 20)
    assert "fake.dcm" in refused("ask", "fake.dcm", "What?")


def test_a_failure_of_the_backend_is_one_line(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = events.Failed("bad", "It is\ntoo large.", "Use less.")
    monkeypatch.setattr(backend, "ask", lambda question, whole: iter([failed]))
    assert refused("ask", CT, "What?") == "error: It is too large. Use less.\n"


def test_an_unexpected_error_is_one_line_and_names_itself(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(question: Question, whole: Whole | None) -> Iterator[events.Event]:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(backend, "ask", fail)
    stdout, stderr = run("ask", CT, "What?", code=1)
    assert stdout == "" and stderr.count("\n") == 1
    assert "ZeroDivisionError: division by zero" in stderr and "report" in stderr
    monkeypatch.setenv("MEDSIGHT_DEBUG", "1")
    result = CliRunner().invoke(app, ["ask", CT, "What?"])
    assert result.exit_code == 1 and "Traceback" in result.stderr


def test_an_interrupt_writes_nothing(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(question: Question, whole: Whole | None) -> Iterator[events.Event]:
        yield events.TextDelta("There is")
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "ask", stop)
    _, stderr = run("ask", CT, "What?", code=130)
    assert stderr == "Stopped; nothing was written.\n"
    assert os.listdir() == []


def test_warnings_are_said(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer(
        text="ok", raw="ok", regions=(), warnings=("Mind the gap.",), provenance=Provenance(model="m", digest="d")
    )
    told = [events.Warning("On the way."), events.TextDelta("ok"), events.Warning("Mind the gap."), events.Done(answer)]
    monkeypatch.setattr(backend, "ask", lambda question, whole: iter(told))
    stdout, stderr = run("ask", CT, "What?")
    assert "warning: On the way.\nwarning: Mind the gap.\n" in stderr and "No region was found" in stdout


def test_control_characters_of_a_model_do_not_reach_the_terminal(backend: FakeBackend) -> None:
    backend.raw = "a\x1b[31m <p>b\x07</p>[C0_1]"
    stdout, _ = run("ask", CT, "What?", "--quiet")
    assert stdout == "a�[31m b�\n"


def test_on_a_terminal_grounded_words_take_the_colour_of_their_region(backend: FakeBackend) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80, highlight=False)
    volume = open_volume(Path(CT))
    with AnswerView(console) as view:
        view.busy("looking 1/2")
        for event in backend.ask(Question(text="What?", volume=volume, slice_index=0)):
            if isinstance(event, events.TextDelta):
                view.write(event.text)
            elif isinstance(event, events.RegionFound):
                view.found(event.region)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    red, green, blue = display_colours(["lesion"])[0].rgb
    last = shown[shown.rindex("There is") :]
    assert re.search(rf"\x1b\[[0-9;]*38;2;{red};{green};{blue}m" + "liver lesion\x1b", last)
    assert "looking" not in last


def test_info_tells_how_a_scan_is_read() -> None:
    stdout, _ = run("info", CT)
    for words in ("CT", "128 × 128 pixels", "0.6615 mm", "columns to the left", "rows to the back"):
        assert words in stdout
    facts = json.loads(run("info", CT, "--json")[0])
    assert (facts["kind"], facts["modality"], facts["slices"], facts["rows"]) == ("dicom", "CT", 1, 128)
    assert facts["spacing_mm"][1:] == [0.661468, 0.661468]


def test_version() -> None:
    assert run("version") == (f"medsight {__version__}\n", "")


@pytest.mark.parametrize("command", [(), ("ask",), ("info",)])
def test_help_teaches_with_examples(command: tuple[str, ...]) -> None:
    stdout, _ = run(*command, "--help")
    assert "medsight ask" in stdout or "medsight info" in stdout
    if command == ("ask",):
        assert "from 0" in stdout and "--point" in stdout


def test_help_needs_neither_torch_nor_pydicom_and_is_fast() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'pydicom', 'numpy', 'SimpleITK', 'PIL'): sys.modules[name] = None\n"
        "from medsight_core.cli import app\n"
        "app(['ask', '--help'])\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "QUESTION" in done.stdout
    assert time.perf_counter() - start < 10  # a quarter of a second on a free machine


def test_other_packages_bring_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        EntryPoint("a", f"{__name__}:extra", group.PLUGINS),
        EntryPoint("b", f"{__name__}:add_more", group.PLUGINS),
    ]
    monkeypatch.setattr(group, "entry_points", lambda group: found)
    monkeypatch.setattr(EntryPoint, "load", lambda entry: globals()[entry.value.partition(":")[2]])
    stdout, _ = run("--help")
    assert "bake" in stdout and "brew" in stdout and "ask" in stdout
    assert run("bake", "bread")[0] == "baked bread\n"
    assert run("brew")[0] == "brewed\n"


def test_a_broken_package_does_not_take_our_commands_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "entry_points", lambda group: [EntryPoint("a", "no_such_package.cli:app", group)])
    stdout, stderr = run("--help")
    assert "ask" in stdout and "no_such_package" in stderr
    assert run("version")[1] == ""
    assert "no_such_package.cli could not be loaded" in refused("train")


@pytest.mark.parametrize("arguments", [("nonsense",), ("ask", CT), ("ask", CT, "What?", "--slice", "x")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    _, stderr = run(*arguments, code=2)
    assert "Usage" in stderr


def test_pixels_are_read_exactly() -> None:
    assert parse_pixels("point", "3,4.5") == ((3.0, 4.5),)
    assert parse_pixels("box", " 1, 2,3 ,4") == ((1.0, 2.0), (3.0, 4.0))
    assert parse_pixels("scribble", "1,2;3,4;") == ((1.0, 2.0), (3.0, 4.0))
    with pytest.raises(InputError):
        parse_pixels("box", "1,2;3,4")


extra = typer.Typer()


@extra.command()
def bake(what: str) -> None:
    """Bakes something."""
    typer.echo(f"baked {what}")


@extra.command()
def other() -> None:
    """Makes `extra` a group."""


def add_more(target: typer.Typer) -> None:
    target.command("brew")(lambda: typer.echo("brewed"))
