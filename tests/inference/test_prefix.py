"""The beginning of a conversation is read once, and remembering it changes not one bit."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from medsight_core.inference.decoding import Prefilled
from medsight_core.inference.engine import Engine
from medsight_core.inference.memory import VolumeMemory, size_of
from medsight_core.inference.reply import finish
from medsight_core.regions import Question
from tests.inference.test_engine import click
from tests.inference.tiny import ask_about, noise, save_tiny

TURN = ("What is this?", "The <p>liver</p>[C1_0].")


def conversation(volume: object) -> list[Question]:
    """One slice, four questions: the later ones go on where the earlier ones ended."""
    return [
        ask_about(volume, TURN[0]),
        ask_about(volume, "And the left lung?", history=(TURN,)),
        ask_about(volume, "Is there a polyp?", history=(TURN, ("And the left lung?", "No."))),
        ask_about(volume, TURN[0], prompts=(click(volume, 20, 30),)),
    ]


def read(engine: Engine, question: Question) -> Prefilled:
    made = engine.make_ready(question)
    return finish(engine.prefixes.prefill(made, engine.embed(made, finish(engine.perceived.see(made)))))


def equal(one: Prefilled, two: Prefilled) -> bool:
    pairs = [(one.hidden, two.hidden)]
    pairs += [(a, b) for x, y in zip(one.layers, two.layers, strict=True) for a, b in zip(x, y, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_prompt_falls_into_the_image_and_its_turns(engine: Engine) -> None:
    volume = noise()
    first, second, third, clicked = map(engine.make_ready, conversation(volume))
    image = int((first.input_ids == engine.model.config.image_token_id).nonzero()[-1]) + 1
    assert first.cuts == clicked.cuts == (image,)
    assert second.cuts == (image, len(first.input_ids))
    assert third.cuts == (image, len(first.input_ids), len(second.input_ids))
    for earlier, later in ((first, second), (second, third)):
        assert torch.equal(later.input_ids[: len(earlier.input_ids)], earlier.input_ids)


def test_what_is_remembered_is_bit_for_bit_what_is_read_anew(engine: Engine, checkpoint: Path) -> None:
    volume = noise()
    warm = Engine.from_pretrained(checkpoint, device="cpu")
    for question in conversation(volume) * 2:
        cold = Engine.from_pretrained(checkpoint, device="cpu")
        assert equal(read(warm, question), read(cold, question))
    assert warm.prefixes.read < cold.prefixes.read * len(conversation(volume))
    tokens = warm.prefixes.read
    for question in conversation(volume):
        read(warm, question)
    assert warm.prefixes.read == tokens


def test_pieces_that_were_let_go_are_read_anew_beside_those_that_were_not(checkpoint: Path) -> None:
    volume = noise()
    engine, whole = (Engine.from_pretrained(checkpoint, device="cpu") for _ in range(2))
    question = conversation(volume)[2]
    wanted = read(whole, question)
    read(engine, question)
    kept = engine.prefixes.memory
    names = list(kept._kept)
    assert len(names) == 4
    for dropped in names:
        value = kept._kept[dropped][0]
        kept._drop(dropped)
        before = engine.prefixes.read
        assert equal(read(engine, question), wanted)
        assert engine.prefixes.read - before == value.length, "that piece alone"


def test_answers_are_the_same_with_and_without_memory(checkpoint: Path) -> None:
    volume = noise()
    warm = Engine.from_pretrained(checkpoint, device="cpu")
    for question in conversation(volume) * 2:
        cold = Engine.from_pretrained(checkpoint, device="cpu").answer(question, max_new_tokens=30)
        answer = warm.answer(question, max_new_tokens=30)
        assert answer.raw == cold.raw
        for one, two in zip(answer.regions, cold.regions, strict=True):
            assert (one.mask == two.mask).all() and one.score == two.score
    assert (warm.features.encoded, warm.perceived.passes) == (1, 2)


def test_other_pictures_and_other_slices_share_nothing(engine: Engine) -> None:
    one, two = noise(seed=1), noise(seed=2)
    assert not equal(read(engine, ask_about(one)), read(engine, ask_about(two)))
    again = noise(seed=1)
    tokens = engine.prefixes.read
    assert equal(read(engine, ask_about(one)), read(engine, ask_about(again)))
    assert engine.prefixes.read > tokens, "an equal volume is another one"


def test_a_model_that_sees_prompts_in_words_alone_is_remembered_too(tmp_path: Path) -> None:
    engine = Engine.from_pretrained(save_tiny(tmp_path / "clip", vision="clip"), device="cpu")
    volume = noise()
    first = read(engine, ask_about(volume))
    assert equal(first, read(engine, ask_about(volume)))


def memory(budget: int) -> VolumeMemory[torch.Tensor]:
    return VolumeMemory(budget=budget)


def test_memory_keeps_what_was_used_last_within_its_budget() -> None:
    volume, value = noise(), torch.zeros(10)
    kept = memory(3 * size_of(value))
    for n in range(3):
        kept.put(volume, n, value)
    assert kept.get(volume, 0) is value
    kept.put(volume, 3, value)
    assert [kept.get(volume, n) is not None for n in range(4)] == [True, False, True, True]
    assert kept.bytes == 3 * size_of(value)
    kept.put(volume, 3, torch.zeros(99))
    assert kept.bytes == size_of(torch.zeros(99)), "the last one stays, however large"
    kept.clear()
    assert kept.bytes == 0 and kept.get(volume, 3) is None


def test_memory_forgets_volumes_that_are_gone() -> None:
    one, two = noise(), noise()
    kept = memory(1 << 20)
    for volume in (one, two):
        kept.put(volume, "k", torch.zeros(10))
    half = kept.bytes // 2
    del volume, one
    gc.collect()
    assert kept.bytes == half
    kept.forget(two)
    assert kept.bytes == 0 and kept.get(two, "k") is None


@pytest.mark.parametrize("budget", [0, 1])
def test_an_engine_without_memory_answers_all_the_same(checkpoint: Path, budget: int) -> None:
    engine, ample = (Engine.from_pretrained(checkpoint, device="cpu") for _ in range(2))
    for part in (engine.perceived.memory, engine.prefixes.memory, engine.features):
        part.budget = budget
    for question in conversation(noise()):
        assert engine.answer(question, max_new_tokens=12).raw == ample.answer(question, max_new_tokens=12).raw
