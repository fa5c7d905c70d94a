"""Questions in, events out: the whole engine on a real, tiny model."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsight_core.codes import RegionCode
from medsight_core.errors import InputError
from medsight_core.events import Done, Progress, RegionFound, TextDelta, Warning
from medsight_core.inference.engine import Engine
from medsight_core.regions import Answer, Prompt, Question
from tests.inference.tiny import ask_about, noise, photograph, save_tiny, stack

TWO = "The image shows the <p>left lung</p>[C0_3] and the <p>right lung</p>[C2_1]."
ONE = "The <p>liver</p>[C1_0]."
NONE = "No, there is no polyp here."


def same(first: Answer, second: Answer) -> None:
    """Equal but for the rounding of sums: not one word, and at most a pixel in a thousand."""
    assert first.raw == second.raw
    assert first.warnings == second.warnings
    assert [(r.code, r.label, r.span) for r in first.regions] == [(r.code, r.label, r.span) for r in second.regions]
    for one, other in zip(first.regions, second.regions, strict=True):
        assert np.mean(one.mask != other.mask) <= 1e-3
        assert one.score == pytest.approx(other.score, abs=1e-3)


def click(volume, row: float, column: float) -> Prompt:
    return Prompt(kind="point", points=volume.slice_frame(volume.middle).to_lps([[0, row, column]]))


def questions() -> list[Question]:
    """Different images, one image twice, prompts, history, long and short."""
    first, second = noise(50, 80, 1), noise(90, 40, 2)
    return [
        ask_about(first),
        ask_about(second, "Is there a polyp?"),
        ask_about(first, "What is this?", prompts=(click(first, 20, 30),)),
        ask_about(second, "And the liver, is that to be seen in this image?", history=(("Is there a polyp?", "No."),)),
        ask_about(first, "The liver?"),
    ]


def test_words_tied_to_masks(scripted: Callable[..., Engine]) -> None:
    volume = stack(np.random.default_rng(0).integers(0, 900, (3, 40, 70)).astype(np.int16))
    answer = scripted(TWO).answer(ask_about(volume))
    assert answer.text == "The image shows the left lung and the right lung."
    assert answer.raw == TWO
    assert len(answer.regions) + len(answer.warnings) == 2
    for region in answer.regions:
        assert (region.code, region.label) in {("[C0_3]", "left lung"), ("[C2_1]", "right lung")}
        assert region.span.of(answer.text) == region.label
        assert region.mask.shape == (40, 70) and region.mask.any()
        assert region.slice_index == 1 and region.frame.is_close(volume.slice_frame(1))
        assert 0 < region.score <= 1


def test_no_code_no_mask(scripted: Callable[..., Engine]) -> None:
    answer = scripted(NONE).answer(ask_about(noise()))
    assert answer.text == NONE
    assert answer.regions == () and answer.warnings == ()


def test_events_come_in_order_and_add_up(scripted: Callable[..., Engine]) -> None:
    engine = scripted(TWO)
    events = list(engine.ask(ask_about(noise())))
    answer = events[-1].answer
    assert sum(isinstance(event, Done) for event in events) == 1
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer.text
    assert tuple(event.region for event in events if isinstance(event, RegionFound)) == answer.regions
    assert tuple(event.sentence for event in events if isinstance(event, Warning)) == answer.warnings
    assert isinstance(events[0], Progress)
    assert answer.regions, "the test needs a region"
    written = ""
    for event in events:
        if isinstance(event, TextDelta):
            written += event.text
        elif isinstance(event, RegionFound):
            assert event.region.span.of(written) == event.region.label
    # The first region does not wait for the second one's words.
    first = next(i for i, event in enumerate(events) if isinstance(event, RegionFound | Warning))
    assert "right" not in "".join(event.text for event in events[:first] if isinstance(event, TextDelta))


def test_a_code_as_the_last_token_leaves_the_other_texts_cut_off(scripted: Callable[..., Engine]) -> None:
    engine = scripted("The liver[C1_0]", NONE)
    limit = 1 + engine._model.lm_head.scripts[0].index(engine._codes.token_id(RegionCode(1, 0)))
    cut, whole = engine.answer_batch([ask_about(noise()), ask_about(noise())], max_new_tokens=limit)
    assert len(cut.regions) + len(cut.warnings) == 2
    for answer in (cut, whole):
        assert answer.warnings[-1] == f"The answer was cut off after {limit} tokens."


def test_provenance(scripted: Callable[..., Engine], engine: Engine) -> None:
    answer = engine.answer(ask_about(noise()), max_new_tokens=9)
    said = answer.provenance
    assert (said.model, said.digest) == (engine.name, engine.digest)
    assert said.settings["max_new_tokens"] == 9
    assert set(said.timings) == {"encode", "prefill", "decode", "masks", "total"}
    assert said.timings["total"] == pytest.approx(sum(v for k, v in said.timings.items() if k != "total"))
    assert scripted(NONE).answer(ask_about(noise())).provenance.settings["max_new_tokens"] == 128
    answer.to_json()


def test_the_same_answer_every_time(engine: Engine, checkpoint: Path) -> None:
    again = Engine.from_pretrained(checkpoint, device="cpu")
    for question in questions():
        first, second, third = engine.answer(question), engine.answer(question), again.answer(question)
        assert first.raw == second.raw == third.raw
        for one, two, three in zip(first.regions, second.regions, third.regions, strict=True):
            assert (one.mask == two.mask).all() and (one.mask == three.mask).all()
            assert one.score == two.score == three.score


def test_a_batch_answers_as_one_by_one(engine: Engine) -> None:
    asked = questions()
    alone = [engine.answer(question) for question in asked]
    assert len({len(answer.regions) for answer in alone}) > 1, "the test needs different numbers of codes"
    assert sum(len(answer.regions) for answer in alone) > 5
    for batch in (asked, asked[::-1], asked[1:3]):
        answers = engine.answer_batch(batch)
        for question, answer in zip(batch, answers, strict=True):
            same(answer, alone[asked.index(question)])


@pytest.mark.parametrize("options", [{"joint_decoding": True}, {"joint_decoding": False}])
def test_a_batch_with_the_perceiver_decoder(tmp_path: Path, options: dict[str, bool]) -> None:
    """Codes of two questions about one image are not decoded together: neither answer knows of the other."""
    engine = Engine.from_pretrained(save_tiny(tmp_path / "p", mask_decoder="perceiver", **options), device="cpu")
    asked = questions()
    alone = [engine.answer(question) for question in asked]
    assert sum(len(answer.regions) for answer in alone) > 5
    for answer, single in zip(engine.answer_batch(asked), alone, strict=True):
        same(answer, single)


@pytest.mark.parametrize("decoder", ["perceiver", "head"])
def test_kept_of_a_slice_is_what_its_masks_are_drawn_from(tmp_path: Path, decoder: str) -> None:
    """The finest pixels for the head; the coarse start for the perceiver, which makes its own."""
    engine = Engine.from_pretrained(save_tiny(tmp_path / "p", mask_decoder=decoder), device="cpu")
    asked = questions()[0]
    first = engine.answer(asked)
    ((kept, size),) = engine.perceived.memory._kept.values()
    assert (kept.start is None, kept.regions.pixels.numel() > 0) == (decoder == "head",) * 2
    assert size > 0
    same(engine.answer(asked), first)
    assert engine.perceived.passes == 1


def test_joint_masks_come_at_the_end(tmp_path: Path, scripted: Callable[..., Engine]) -> None:
    engine = scripted(TWO, folder=save_tiny(tmp_path / "p", mask_decoder="perceiver", joint_decoding=True))
    kinds = [type(e) for e in engine.ask(ask_about(noise())) if isinstance(e, TextDelta | RegionFound)]
    assert RegionFound in kinds
    assert kinds == sorted(kinds, key=lambda kind: kind is RegionFound)


def test_different_numbers_of_codes_in_one_batch(scripted: Callable[..., Engine]) -> None:
    volume = noise()
    answers = scripted(TWO, NONE, ONE).answer_batch([ask_about(volume, f"Question {n}?") for n in range(3)])
    assert [answer.raw for answer in answers] == [TWO, NONE, ONE]
    assert [len(answer.regions) + len(answer.warnings) for answer in answers] == [2, 0, 1]
    (alone,) = scripted(ONE).answer(ask_about(volume, "Question 2?")).regions
    (batched,) = answers[2].regions
    assert np.mean(batched.mask != alone.mask) <= 1e-3


def test_an_empty_batch_and_a_long_one(engine: Engine) -> None:
    assert engine.answer_batch([]) == []
    volume = noise()
    answers = engine.answer_batch([ask_about(volume, f"Lung {n}?") for n in range(18)], max_new_tokens=3)
    assert len(answers) == 18
    same(answers[17], engine.answer(ask_about(volume, "Lung 17?"), max_new_tokens=3))


def test_a_slice_is_looked_at_once(engine: Engine) -> None:
    passes: list[str] = []
    core = engine._model.model
    hooks = [
        module.register_forward_hook(lambda *_, name=name: passes.append(name))
        for name, module in (("vision", core.vision), ("perceiver", core.perceiver))
    ]
    first, second = noise(seed=1), noise(seed=2)
    asked = [ask_about(v, f"{t}?") for v, t in ((first, "lung"), (first, "liver"), (second, "lung"))]
    asked += [ask_about(first, "this?", prompts=(click(first, 9, 9),)) for _ in range(2)]
    try:
        engine.answer_batch(asked, max_new_tokens=2)
    finally:
        for hook in hooks:
            hook.remove()
    assert passes.count("vision") == 2
    assert passes.count("perceiver") == 3


def test_interleaved_questions_do_not_mix(engine: Engine) -> None:
    asked = [*questions()[:2], questions()[2]]
    alone = [engine.answer(question) for question in asked]
    streams = [engine.ask(question) for question in asked]
    ends = [event for row in itertools.zip_longest(*streams) for event in row if isinstance(event, Done)]
    mixed = {event.answer.raw: event.answer for event in ends}
    for answer in alone:
        same(mixed[answer.raw], answer)
        for one, other in zip(mixed[answer.raw].regions, answer.regions, strict=True):
            assert (one.mask == other.mask).all()


def test_threads_do_not_mix(engine: Engine) -> None:
    asked = questions()
    alone = [engine.answer(question) for question in asked]
    answers: dict[int, Answer] = {}
    threads = [
        threading.Thread(target=lambda i=i, q=q: answers.update({i: engine.answer(q)})) for i, q in enumerate(asked)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, answer in enumerate(alone):
        same(answers[i], answer)


def test_stopping(scripted: Callable[..., Engine]) -> None:
    cancel = threading.Event()
    words = ""
    answer = None
    for event in scripted(TWO).ask(ask_about(noise()), cancel=cancel):
        if isinstance(event, TextDelta):
            words += event.text
            if "left lung" in words:
                cancel.set()
        elif isinstance(event, Done):
            answer = event.answer
    assert answer is not None
    assert answer.text == words and "right" not in words
    assert answer.warnings[-1] == "The answer was stopped before it was complete."


def test_an_answer_that_is_cut_off_says_so(scripted: Callable[..., Engine]) -> None:
    answer = scripted(TWO).answer(ask_about(noise()), max_new_tokens=5)
    assert answer.warnings == ("The answer was cut off after 5 tokens.",)
    whole = scripted(TWO).answer(ask_about(noise()))
    assert whole.text.startswith(answer.text) and len(answer.text) < len(whole.text)
    with pytest.raises(InputError):
        scripted(TWO).ask(ask_about(noise()), max_new_tokens=0)


def test_bad_input_is_refused_before_the_first_event(engine: Engine) -> None:
    volume = noise(50, 80)
    outside = Prompt(kind="point", points=volume.slice_frame(0).to_lps([[0, 5, 200]]))
    with pytest.raises(InputError, match="at 200,5 lies outside the image, which has 80 columns and 50 rows"):
        engine.ask(ask_about(volume, prompts=(outside,)))
    with pytest.raises(InputError):
        engine.answer_batch([ask_about(volume), ask_about(volume, prompts=(outside,))])


def test_an_empty_mask_is_a_warning_not_a_region(scripted: Callable[..., Engine]) -> None:
    engine = scripted(ONE)
    head = engine._model.model.perceiver.segmentation_cls_head.proj
    for parameter in head.parameters():
        parameter.data.zero_()  # every logit is 0: no pixel is more likely inside than not
    answer = engine.answer(ask_about(noise()))
    assert answer.regions == ()
    assert answer.warnings == ('The answer points at "liver" ([C1_0]), but its mask is empty.',)
    assert answer.text == "The liver."


def test_prompts_and_history_are_read(engine: Engine) -> None:
    volume = noise()
    plain = engine.answer(ask_about(volume))
    clicked = engine.answer(ask_about(volume, prompts=(click(volume, 20, 30),)))
    elsewhere = engine.answer(ask_about(volume, prompts=(click(volume, 45, 75),)))
    later = engine.answer(ask_about(volume, history=(("What is this?", "The <p>liver</p>[C1_0]."),)))
    assert len({plain.raw, clicked.raw, elsewhere.raw, later.raw}) > 2


@pytest.mark.parametrize("value", [0, 77, 255])
@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (2, 300), (301, 3)])
def test_pictures_without_content(engine: Engine, value: int, shape: tuple[int, int]) -> None:
    answer = engine.answer(ask_about(photograph(np.full((*shape, 3), value, np.uint8))), max_new_tokens=12)
    assert all(region.mask.shape == shape for region in answer.regions)
    constant = stack(np.full((2, *shape), value, np.float32))
    answer = engine.answer(ask_about(constant), max_new_tokens=12)
    assert all(region.mask.shape == shape and np.isfinite(region.score) for region in answer.regions)


@pytest.mark.parametrize("options", [{"vision": "clip"}, {"code_state": "before"}, {"use_prompts": False}])
def test_other_configurations(tmp_path: Path, options: dict[str, object]) -> None:
    engine = Engine.from_pretrained(save_tiny(tmp_path / "other", **options), device="cpu")
    volume = noise()
    answers = engine.answer_batch([ask_about(volume), ask_about(volume, "Is there a polyp?")])
    same(answers[1], engine.answer(ask_about(volume, "Is there a polyp?")))
    if options.get("use_prompts") is False:
        with pytest.raises(InputError, match="does not read"):
            engine.ask(ask_about(volume, prompts=(click(volume, 5, 5),)))


def test_bfloat16_from_pixels_to_masks(checkpoint: Path) -> None:
    """What CUDA computes in, here on the CPU: every part takes it, clicks and codes included."""
    engine = Engine.from_pretrained(checkpoint, device="cpu", precision="bf16")
    volume = noise()
    answers = engine.answer_batch(
        [ask_about(volume), ask_about(volume, prompts=(click(volume, 20, 30),))], max_new_tokens=40
    )
    assert sum(len(answer.regions) for answer in answers) > 2
    assert answers[0].provenance.settings["dtype"] == "bfloat16"


def test_the_two_code_states_are_two_things(tmp_path: Path, scripted: Callable[..., Engine]) -> None:
    masks = []
    for state in ("at", "before"):
        folder = save_tiny(tmp_path / state, code_state=state)
        answer = scripted(ONE, folder=folder).answer(ask_about(noise()))
        masks.append([region.mask.tobytes() for region in answer.regions])
    assert masks[0] != masks[1]
