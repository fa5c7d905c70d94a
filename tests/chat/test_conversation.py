"""A conversation: what a turn becomes as its events come, what is asked next, and what can be taken back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medsight_core.backend import Stroke, Whole
from medsight_core.chat import Asked, Conversation, Turn, put
from medsight_core.chat.markdown import to_markdown
from medsight_core.chat.saving import from_json, to_json
from medsight_core.chat.suggestions import suggestions
from medsight_core.errors import InputError
from medsight_core.events import Failed, Progress, RegionFound, TextDelta, Warning
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Prompt
from tests.chat.scripted import Scripted, answer, events_of, fails, region, says, scan


@pytest.fixture
def volume() -> Volume:
    return scan()


def run(conversation: Conversation, asked: Asked, backend: Scripted, volume: Volume) -> Turn:
    """Puts what was asked, event by event; every event must leave a turn that can be shown."""
    for event in put(asked, backend, volume, history=conversation.history(asked.slice_index)):
        turn = conversation.take(event)
        assert "".join(piece.text for piece in turn.pieces()) == turn.text
    assert not conversation.running
    return turn


def talk(volume: Volume, *texts: str) -> tuple[Conversation, Scripted]:
    """A conversation of complete turns on slice 2."""
    conversation, backend = Conversation(), Scripted(says("The liver and the spleen.", "liver", "spleen"))
    for text in texts:
        run(conversation, conversation.ask(text, slice_index=2), backend, volume)
    return conversation, backend


def stroke(volume: Volume, k: int, row: float, column: float, *, positive: bool = True) -> Stroke:
    points = volume.frame.to_lps([[k, row, column]])  # type: ignore[union-attr]
    return Stroke(slice_index=k, prompt=Prompt(kind="point", points=points, positive=positive))


def test_a_turn_grows_with_its_events(volume: Volume) -> None:
    made = answer(volume, 2, words=("liver", "spleen"))
    turn, texts = Turn(number=3, asked=Asked(kind="ask", text="What?", slice_index=2)), []
    for event in events_of(made):
        assert turn.state == "running" and turn.answer() is None
        turn = turn.take(event)
        texts.append(turn.text)
    assert texts[1] == "The liver an" and texts[-1] == made.text and turn.raw == made.raw
    assert [finding.key for finding in turn.findings] == ["3.1", "3.2"]
    assert turn.state == "done" and turn.warnings == made.warnings and turn.progress is None and turn.note == ""
    complete = turn.answer()
    assert complete is not None and np.shares_memory(complete.regions[1].mask, made.regions[1].mask)
    assert turn.take(TextDelta("more")) is turn


def test_pieces_name_the_findings_of_their_words(volume: Volume) -> None:
    conversation, _ = talk(volume, "What?")
    (turn,) = conversation.turns
    named = [(piece.text, piece.keys) for piece in turn.pieces()]
    assert named == [("The ", ()), ("liver", ("1.1",)), (" and the ", ()), ("spleen", ("1.2",)), (".", ())]
    conversation.delete("1.1")
    assert ("spleen", ("1.2",)) in conversation.turns[0].pieces()
    assert all("1.1" not in piece.keys for piece in conversation.turns[0].pieces())


def test_follow_ups_take_the_answers_about_their_slice_along(volume: Volume) -> None:
    conversation, backend = talk(volume, "What?", "And then?")
    raw = conversation.turns[0].raw
    assert "[C0_16]" in raw and backend.asked[1][0].history == (("What?", raw),)
    run(conversation, conversation.ask("Here?", slice_index=3), backend, volume)
    assert backend.asked[-1][0].history == ()
    run(conversation, conversation.ask("All?", slice_index=2, whole=Whole()), backend, volume)
    run(conversation, conversation.segment("liver", slice_index=2), backend, volume)
    backend.reply = fails("interrupted", TextDelta("There"))
    run(conversation, conversation.ask("Broken?", slice_index=2), backend, volume)
    assert [question for question, _ in conversation.history(2)] == ["What?", "And then?"]


def test_a_stream_that_breaks_off_keeps_what_came(volume: Volume) -> None:
    conversation, backend = talk(volume, "What?")
    backend.reply = fails("interrupted", TextDelta("There is a "))
    turn = run(conversation, conversation.ask("More?", slice_index=2), backend, volume)
    assert turn.state == "failed" and turn.text == "There is a " and turn.answer() is None
    assert turn.note == "Interrupted: It broke off. Ask again."
    backend.reply = says("There is a liver.", "liver")
    again = run(conversation, conversation.retry(), backend, volume)
    assert again.state == "done" and again.asked is turn.asked
    assert [one.text for one in conversation.turns[1:]] == ["There is a ", "There is a liver."]
    with pytest.raises(InputError, match="complete"):
        conversation.retry()


def test_what_failed_without_a_word_is_replaced_by_the_next_try(volume: Volume) -> None:
    conversation, backend = Conversation(), Scripted(fails("connection_refused"))
    turn = run(conversation, conversation.ask("What?", slice_index=0), backend, volume)
    assert turn.note == "It broke off. Ask again."
    backend.reply = fails("stopped")
    assert run(conversation, conversation.retry(), backend, volume).state == "stopped"
    assert len(conversation.turns) == 1
    backend.reply = says()
    assert run(conversation, conversation.retry(), backend, volume).state == "done"
    assert len(conversation.turns) == 1 and conversation.last is not None
    assert conversation.last.number == 3, "a key never means something else"


def test_what_is_wrong_with_a_request_is_an_end_of_its_turn(volume: Volume) -> None:
    conversation, backend = Conversation(), Scripted(says())
    turn = run(conversation, conversation.ask("What?", slice_index=9), backend, volume)
    assert turn.failure is not None and turn.failure.code == "slice_out_of_range" and not backend.asked


def test_marks_refine_one_structure_until_words_end_it(volume: Volume) -> None:
    conversation, backend = Conversation(), Scripted(says("liver", "liver"))
    first, second = stroke(volume, 2, 5, 5), stroke(volume, 2, 9, 9, positive=False)
    run(conversation, conversation.mark(first), backend, volume)
    run(conversation, conversation.mark(second), backend, volume)
    assert len(conversation.turns) == 1 and conversation.marks == (first, second)
    assert backend.segmented[-1].strokes == (first, second)
    elsewhere = stroke(volume, 3, 5, 5)
    run(conversation, conversation.mark(elsewhere), backend, volume)
    run(conversation, conversation.segment(slice_index=0, whole=Whole(slices=range(1, 4))), backend, volume)
    request = backend.segmented[-1]
    assert request.whole and request.slices == range(1, 4) and request.slice_index == 3 and len(request.strokes) == 3
    run(conversation, conversation.ask("What is this?", slice_index=2), backend, volume)
    assert backend.asked[-1][0].prompts == (first.prompt, second.prompt) and conversation.marks == ()
    conversation.undo()
    assert len(conversation.marks) == 3
    run(conversation, conversation.mark(first, refine=False), backend, volume)
    assert conversation.marks == (first,) and len(conversation.turns) == 2


def test_a_refused_mark_is_none(volume: Volume) -> None:
    conversation, backend = Conversation(), Scripted(fails("prompt_outside"))
    run(conversation, conversation.mark(stroke(volume, 2, 5, 5)), backend, volume)
    assert conversation.marks == ()
    with pytest.raises(InputError, match="Nothing says"):
        conversation.segment(slice_index=2)


def test_every_step_is_taken_back_and_made_again(volume: Volume) -> None:
    conversation, _ = talk(volume, "What?", "And then?")
    states = [conversation.turns]
    conversation.hide("1.1")
    states.append(conversation.turns)
    conversation.rename("1.1", "  liver,\nright ")
    states.append(conversation.turns)
    conversation.delete("1.2")
    states.append(conversation.turns)
    conversation.clear()
    states.append(conversation.turns)
    assert conversation.findings == ()
    for state in reversed(states[:-1]):
        conversation.undo()
        assert conversation.turns == state
    conversation.undo()
    conversation.undo()
    assert not conversation.can_undo and conversation.turns == ()
    while conversation.can_redo:
        conversation.redo()
    conversation.undo()
    assert conversation.turns == states[3]
    finding = conversation.finding("1.1")
    assert finding.hidden and finding.name == "liver, right" and finding.region.label == "liver"
    assert conversation.turns[0].answer().regions[0].label == "liver, right"  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"no finding '1\.2'"):
        conversation.hide("1.2")
    conversation.rename("1.1", "liver")
    assert not conversation.can_redo, "a new step ends what could be made again"


def test_a_finding_may_be_edited_while_its_answer_is_written(volume: Volume) -> None:
    conversation, made = Conversation(), answer(volume, 2, words=("liver", "spleen"))
    conversation.ask("What?", slice_index=2)
    conversation.take(RegionFound(made.regions[0]))
    conversation.rename("1.1", "segment V")
    for event in events_of(made)[4:]:
        conversation.take(event)
    assert [finding.name for finding in conversation.findings] == ["segment V", "spleen"]
    conversation.undo()
    assert [finding.name for finding in conversation.findings] == ["liver", "spleen"]
    assert conversation.last is not None and conversation.last.state == "done"


def test_nothing_is_begun_or_undone_while_an_answer_is_written(volume: Volume) -> None:
    conversation, _ = talk(volume, "What?")
    conversation.ask("More?", slice_index=2)
    for forbidden in (
        lambda: conversation.ask("And?", slice_index=2),
        conversation.undo,
        conversation.clear,
        lambda: conversation.mark(stroke(volume, 2, 5, 5)),
    ):
        with pytest.raises(InputError, match="being written"):
            forbidden()
    assert not conversation.can_undo
    conversation.take(Failed("stopped", "Stopped.", ""))
    assert conversation.can_undo and conversation.last is not None and conversation.last.state == "stopped"


def test_an_event_that_comes_late_is_let_go(volume: Volume) -> None:
    conversation, _ = talk(volume, "What?")
    conversation.ask("More?", slice_index=2)
    conversation.take(Failed("stopped", "Stopped.", ""))
    conversation.ask("Else?", slice_index=2)
    assert conversation.take(TextDelta("late"), number=2).text == ""
    assert conversation.take(TextDelta("now"), number=3).text == "now"


def test_a_saved_conversation_is_restored_with_its_masks(volume: Volume) -> None:
    conversation, backend = talk(volume, "What?", "And *then*?")
    conversation.rename("1.1", "segment V")
    conversation.hide("1.2")
    conversation.delete("2.1")
    run(conversation, conversation.mark(stroke(volume, 2, 5, 5)), backend, volume)
    run(
        conversation,
        conversation.ask("All?", slice_index=1, whole=Whole(plane="coronal", slices=range(2, 5))),
        backend,
        volume,
    )
    backend.reply = fails(
        "interrupted",
        Warning("Careful."),
        RegionFound(region(volume, 2, conversation.findings[0].region.span, "x")),
        TextDelta("The liver"),
    )
    run(conversation, conversation.ask("Broken?", slice_index=2), backend, volume)
    text = json.dumps(to_json(conversation, volume), allow_nan=False)
    restored = from_json(json.loads(text), scan())
    assert json.dumps(to_json(restored, volume)) == text
    for turn, other in zip(conversation.turns, restored.turns, strict=True):
        for name in ("number", "text", "raw", "warnings", "state", "failure", "provenance"):
            assert getattr(turn, name) == getattr(other, name), name
        for finding, again in zip(turn.findings, other.findings, strict=True):
            assert (finding.key, finding.name, finding.hidden, finding.deleted) == (
                again.key, again.name, again.hidden, again.deleted,
            )  # fmt: skip
            assert np.array_equal(finding.region.mask, again.region.mask)
            assert finding.region.score == again.region.score
    assert restored.history(2) == conversation.history(2)
    assert restored.ask("On?", slice_index=0) and restored.last is not None and restored.last.number == 6


def test_an_answer_under_way_is_saved_as_interrupted(volume: Volume) -> None:
    conversation, _ = talk(volume, "What?")
    conversation.ask("More?", slice_index=2)
    conversation.take(TextDelta("There"))
    restored = from_json(json.loads(json.dumps(to_json(conversation, volume))), volume)
    assert restored.last is not None and restored.last.state == "failed" and restored.last.text == "There"
    assert conversation.running, "saving changes nothing"


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.update(version=2),
        lambda saved: saved.update(format="other"),
        lambda saved: saved.update(extra=1),
        lambda saved: saved["turns"][0].pop("asked"),
        lambda saved: saved["turns"][0].update(number=0),
        lambda saved: saved["turns"][0].pop("answer"),
        lambda saved: saved["turns"][0]["answer"].update(text="x"),
        lambda saved: saved["turns"][0]["findings"][0]["event"]["region"]["mask"].update(data="AAAA"),
        lambda saved: saved["turns"][0]["findings"][0].update(hidden="yes"),
        lambda saved: saved["turns"][0]["asked"]["request"].update(slice=99),
        lambda saved: saved.update(turns={}),
    ],
)
def test_a_damaged_conversation_is_refused(damage: object, volume: Volume) -> None:
    saved = json.loads(json.dumps(to_json(talk(volume, "What?")[0], volume)))
    damage(saved)  # type: ignore[operator]
    with pytest.raises(InputError, match="cannot be read") as caught:
        from_json(saved, volume)
    assert caught.value.code == "bad_conversation"


def test_a_conversation_belongs_to_its_scan(volume: Volume) -> None:
    saved = to_json(talk(volume, "What?")[0], volume)
    for other in (scan(slices=6), scan(slices=4)):
        with pytest.raises(InputError) as caught:
            from_json(saved, other)
        assert caught.value.code == "other_scan"
    saved["scan"]["middle"][3] += 0.5
    with pytest.raises(InputError, match="another scan"):
        from_json(saved, volume)


def test_the_transcript_is_text_whatever_was_said(volume: Volume) -> None:
    nasty = "Is <b>this</b> *it*? [x](http://y)\n# Title\n- item\n1. one `code` | a_b_ \\ ~~no~~ \x1b[31m"
    conversation, backend = talk(volume, nasty)
    backend.reply = fails("interrupted", TextDelta("There is"))
    run(conversation, conversation.ask("And?", slice_index=2), backend, volume)
    text = to_markdown(conversation.turns)
    assert "\\<b\\>this" in text and "\\*it\\*" in text and "\\# Title" in text and "\\- item" in text
    assert "1\\. one" in text and "\x1b" not in text and "\\[x\\](http" in text
    assert "**liver** and the **spleen**" in text and "score 0.87 (certain)" in text
    assert "> Interrupted: It broke off. Ask again." in text and "> Mind the gap." in text
    assert "Research use only" in text and "scripted (sha256:1)" in text and "(slice 2)" in text


def test_questions_to_begin_with_are_about_what_the_model_knows() -> None:
    known = ("liver", "spleen", "polyp")
    assert suggestions("CT", known) == (
        "Segment the liver in this image.", "What is shown in this image?", "Segment the spleen in this image.",
    )  # fmt: skip
    assert suggestions("Endoscopy", known)[0] == "Segment the polyp in this image."
    assert suggestions("unknown", known) == ("What is shown in this image?",)
    assert suggestions("X-ray", ("liver",)) == ("What is shown in this image?",)


def test_progress_is_shown_until_there_are_words(volume: Volume) -> None:
    turn = Turn(number=1, asked=Asked(kind="ask", text="What?", slice_index=2)).take(Progress(1, 4, "Looking"))
    assert turn.progress == Progress(1, 4, "Looking")
    assert turn.take(Failed("stopped", "", "")).progress is None
