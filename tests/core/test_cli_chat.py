"""`medsight chat`: what can be typed, what comes back, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

import medsight_core.cli.chat as chat_module
from medsight_core.backend import Whole
from medsight_core.cli import app
from medsight_core.events import Done, Event, Progress, TextDelta, Warning
from medsight_core.imaging.volume import Volume
from tests.chat.scripted import Scripted, answer, events_of, fails, says


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MEDSIGHT_BACKEND", "MEDSIGHT_TOKEN", "MEDSIGHT_CA", "MEDSIGHT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    affine = np.array([[-1.5, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3.5, 8], [0, 0, 0, 1.0]])
    array = np.random.default_rng(0).integers(0, 900, (32, 24, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, affine), "scan.nii.gz")
    return tmp_path


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted(says("The liver and the spleen.", "liver", "spleen"))
    monkeypatch.setattr(chat_module, "open_backend", lambda chosen: scripted)
    return scripted


def chat(*lines: str, options: tuple[str, ...] = (), code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["chat", "scan.nii.gz", *options], input="".join(f"{line}\n" for line in lines))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def test_a_conversation_through_a_pipe_reads_as_one(backend: Scripted) -> None:
    stdout, stderr = chat("What is shown?", "", "And then?")
    lines = stdout.splitlines()
    assert lines[0].startswith("unknown, 5 slices of") and "scripted on cpu" in lines[0] and "Research use" in lines[0]
    start = lines.index("slice 2> What is shown?")
    assert lines[start + 1] == "The liver and the spleen."
    assert "liver" in lines[start + 3] and "0.87 certain" in lines[start + 3] and "mm²" in lines[start + 3]
    assert stderr.count("note: Mind the gap.") == 1, "said once, not with every answer"
    assert [question.text for question, _ in backend.asked] == ["What is shown?", "And then?"]
    raw = answer(backend.asked[0][0].volume, 2, words=("liver", "spleen")).raw
    assert backend.asked[1][0].history == (("What is shown?", raw),)


def test_slices_and_the_volume_are_gone_to(backend: Scripted) -> None:
    stdout, stderr = chat(
        "/slice 4", "What?", "/volume coronal 2:9", "All?", "/volume exact", "/slice 9", "/volume 1:99",
        "/volume sideways", "And?", "/s 1", "/sli 1", "Here?",
    )  # fmt: skip
    assert [(question.slice_index, whole) for question, whole in backend.asked] == [
        (4, None),
        (4, Whole(plane="coronal", slices=range(2, 9))),
        (4, Whole(exact=True, shown=4)),
        (1, None),
    ]
    assert "slice 4> /volume coronal 2:9" in stdout and "volume, coronal, slices 2 to 8> All?" in stdout
    assert stderr.count("error: ") == 4
    assert "slices 0 to 4" in stderr and "/s may be /slice, /scribble, /segment, /show" in stderr


def test_marks_segment_and_go_along_with_the_next_question(backend: Scripted) -> None:
    stdout, stderr = chat(
        "/point 5,6", "/negative 9,9", "/undo", "/redo", "What is this?", "/point 99,1", "/point x", "/negative 1",
        "/box 1,1,9,9", "/new", "/scribble 1,1;2,2", "/segment", "/segment the liver",
    )  # fmt: skip
    counts = [[(s.prompt.kind, s.prompt.positive) for s in request.strokes] for request in backend.segmented]
    assert counts == [
        [("point", True)],
        [("point", True), ("point", False)],
        [("box", True)],
        [("scribble", True)],
        [("scribble", True)],
        [("scribble", True)],
    ]
    assert backend.segmented[-1].text == "the liver" and not backend.segmented[-1].whole
    assert len(backend.asked[0][0].prompts) == 2
    x, y = backend.segmented[0].volume.slice_frame(2).to_index(backend.segmented[0].strokes[0].prompt.points)[0][:0:-1]
    assert (round(x, 6), round(y, 6)) == (5, 6)
    assert "slice 2, 2 marks> /undo" in stdout and "slice 2, 1 mark> /redo" in stdout
    assert "outside the image" in stderr and "/point takes X,Y" in stderr and "/negative takes X,Y" in stderr


def test_the_volume_is_segmented_from_marks_or_words(backend: Scripted) -> None:
    chat("/segment", "/slice 1", "/point 5,6", "/volume 0:3", "/segment", "/segment liver")
    marked, followed, named = backend.segmented
    assert not marked.whole and followed.whole and followed.slices == range(3) and followed.slice_index == 1
    assert len(followed.strokes) == 1 and named.text == "liver" and named.whole


def test_a_failure_keeps_the_words_and_can_be_asked_again(backend: Scripted) -> None:
    replies = iter([fails("interrupted", TextDelta("There is a ")), says("There is a liver.", "liver")])
    backend.reply = lambda volume, k: next(replies)(volume, k)
    stdout, stderr = chat("What?", "/export out", "/retry", "/retry", "/export out")
    assert stdout.index("There is a \n") < stdout.index("There is a liver.")
    assert "error: Interrupted: It broke off. Ask again." in stderr and "/retry asks again" in stderr
    assert "no complete answer" in stderr and "last answer is complete" in stderr
    assert "> Interrupted: It broke off" in Path("out/conversation.md").read_text(encoding="utf-8")


def test_export_writes_what_ask_writes_and_the_conversation(backend: Scripted) -> None:
    stdout, _ = chat("What?", "/point 5,6", "/export deep/out", "/show", "/undo", "/export first")
    assert sorted(os.listdir("deep/out")) == [
        "answer.json", "conversation.md", "masks", "overlay.png", "report.html", "segmentation.seg.nrrd",
    ]  # fmt: skip
    content = json.loads(Path("deep/out/answer.json").read_text(encoding="utf-8"))
    assert content["question"] == "Segment what is marked." and content["prompts"][0]["kind"] == "point"
    assert "Written to deep/out/: report.html" in stdout and "Written: medsight-chat/answer-2.png" in stdout
    assert Path("medsight-chat/answer-2.png").stat().st_size > 1000
    assert json.loads(Path("first/answer.json").read_text(encoding="utf-8"))["question"] == "What?"


def test_what_cannot_be_done_is_one_line_and_the_talk_goes_on(backend: Scripted) -> None:
    Path("file").write_text("")
    stdout, stderr = chat(
        "/undo", "/redo", "/retry", "/show", "/export", "/segment", "/dance", "/slice x", "/", "What?", "/export file",
        "/clear", "/undo", "/undo",
    )  # fmt: skip
    assert stderr.count("error: ") == 10 and len(backend.asked) == 1
    assert "conversation is empty; /undo brings it back" in stdout and "The last turn is: What? (slice 2)" in stdout


def test_quit_leaves_and_help_lists(backend: Scripted) -> None:
    stdout, _ = chat("/help", "/quit", "What?")
    assert not backend.asked
    for name in ("/slice N", "/volume", "/point X,Y", "/negative", "/box", "/segment", "/undo", "/redo", "/clear",
                 "/export DIR", "/show", "/retry", "/quit", "Ctrl-C"):  # fmt: skip
        assert name in stdout


def test_what_a_volume_will_cost_is_said_first(backend: Scripted) -> None:
    def reply(volume: Volume, k: int) -> list[Event]:
        return [Progress(0, 9, "Looks at 9 slices: about 1 s."), Warning("Careful."), *events_of(answer(volume, k))]

    backend.reply = reply
    _, stderr = chat("What?")
    assert stderr.splitlines()[:2] == ["Looks at 9 slices: about 1 s.", "note: Careful."]


def test_an_interrupt_stops_the_answer_and_not_the_program(backend: Scripted) -> None:
    def until_cancelled(volume: Volume, k: int) -> object:
        yield TextDelta("There ")
        os.kill(os.getpid(), signal.SIGINT)
        assert backend.cancel is not None and backend.cancel.wait(20)
        yield Done(answer(volume, k, "There "))

    def stuck(volume: Volume, k: int) -> object:
        yield TextDelta("Here ")
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)

    before = signal.getsignal(signal.SIGINT)
    replies: list[Callable] = [until_cancelled, stuck, says()]
    backend.reply = lambda volume, k: replies.pop(0)(volume, k)
    stdout, stderr = chat("What?", "And?", "On?", "/retry")
    assert "slice 2> On?" in stdout and "Here" in stdout and stdout.count("The liver and the spleen.") == 1
    assert "Stopped before it was complete." in stderr
    assert signal.getsignal(signal.SIGINT) is before


def test_control_characters_do_not_reach_the_terminal(backend: Scripted) -> None:
    backend.reply = says("a\x1b[31m b")
    stdout, _ = chat("What\x1b[2J?")
    assert "\x1b" not in stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--slice", "9"), "slices 0 to 4"),
        (("--model", "nowhere"), "not a folder"),
        (("--backend", "http://gpu.example", "--model", "."), "Leave out one"),
        (("--out", "scan.nii.gz"), "not a folder"),
    ],
)
def test_bad_options_are_named_before_the_model_is_loaded(
    options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_module, "open_backend", lambda chosen: pytest.fail("the model was loaded"))
    stdout, stderr = chat(options=options, code=2)
    assert stdout == "" and stderr.count("\n") == 1 and words in stderr
