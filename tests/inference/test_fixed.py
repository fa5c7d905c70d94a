"""The decode loop over key/values of fixed shape writes what the plain one writes, compiled or not.

A CUDA graph cannot be recorded here; everything else of it runs, with the compiler's own machinery in front of plain
kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from medsight_core.errors import InputError
from medsight_core.inference import fixed
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.decoding import Slots, Text, prefill
from medsight_core.inference.engine import Engine
from medsight_core.inference.fixed import Boards, fitting_length, fitting_rows
from medsight_core.inference.loading import load
from medsight_core.inference.running import Running
from medsight_core.model import MedSightForConditionalGeneration
from tests.inference.test_decoding import collect, prompts


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> MedSightForConditionalGeneration:
    return load(open_checkpoint(checkpoint))[0].eval()


@pytest.fixture
def small_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards that become too small."""
    monkeypatch.setattr(fixed, "ROWS", (1, 2, 4))
    monkeypatch.setattr(fixed, "LENGTH", 16)


def codes_of(model: MedSightForConditionalGeneration) -> frozenset[int]:
    return frozenset(model.config.code_token_ids)


@pytest.mark.parametrize("lengths", [[13], [9, 9], [5, 17, 11, 1], [3, 8, 2, 9, 4, 7]])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_same_texts_and_codes_as_the_plain_loop(
    model: MedSightForConditionalGeneration, lengths: list[int], penalty: float
) -> None:
    options = {"code_ids": codes_of(model), "repetition_penalty": penalty}
    plain, states = collect(model, prompts(lengths), **options)
    ours, found = collect(model, prompts(lengths), boards=Boards(model), **options)
    assert ours == plain
    assert len({token for text in ours for token in text}) > 4, "a model that repeats itself proves nothing"
    for theirs, mine in zip(states, found, strict=True):
        assert [(c.position, c.token_id) for c in mine] == [(c.position, c.token_id) for c in theirs]
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.state, b.state, atol=2e-5, rtol=1e-4)
            assert a.probability == pytest.approx(b.probability, abs=1e-5)


def run(slots: Slots, texts: dict[Text, list[int]], steps: int) -> None:
    """Some steps of a loop; tokens go to the lists of their texts."""
    for _ in range(steps):
        for text, step in slots.step():
            texts[text] += [] if step.token is None else [step.token]


def join(slots: Slots, model: MedSightForConditionalGeneration, prompt: torch.Tensor, limit: int) -> tuple[Text, int]:
    """A text more; with its first token."""
    ((text, (first,)),) = slots.join([prefill(model, prompt[None])], limits=[limit])
    assert first.token is not None
    return text, first.token


@pytest.mark.parametrize("tight", [False, True])
def test_texts_come_and_go(
    model: MedSightForConditionalGeneration, tight: bool, request: pytest.FixtureRequest
) -> None:
    """One comes late, one ends early, a third takes its row, a fourth needs a larger board: each as if alone."""
    if tight:
        request.getfixturevalue("small_boards")
    given = prompts([7, 12, 4, 15])
    limits = [24, 6, 12, 30]
    alone = [collect(model, [p], max_new_tokens=n)[0][0] for p, n in zip(given, limits, strict=True)]
    boards = Boards(model)
    slots = Slots(model, stop_ids=frozenset(), boards=boards)
    texts: dict[Text, list[int]] = {}
    for prompt, limit, steps in zip(given, limits, (3, 6, 2, 60), strict=True):
        text, first = join(slots, model, prompt, limit)
        texts[text] = [first]
        run(slots, texts, steps)
    assert list(texts.values()) == alone
    assert not len(slots) and boards._idle, "the board is given back"


def test_a_board_is_used_again(model: MedSightForConditionalGeneration) -> None:
    """What texts before have left on it is not seen."""
    boards = Boards(model)
    long, short = prompts([40, 6])
    first = collect(model, [short], boards=boards)[0]
    (board,) = boards._idle
    collect(model, [long], boards=boards)
    assert collect(model, [short], boards=boards)[0] == first
    assert boards._idle == [board]
    for rows in (2, 9, 40, 70, 90):
        boards.give_back(boards.take(rows, 10, prefill(model, short[None]).layers))
    assert len(boards._idle) == fixed.MOST_IDLE
    boards.clear()
    assert not boards._idle


def test_a_step_that_fails_changes_nothing(model: MedSightForConditionalGeneration) -> None:
    slots = Slots(model, stop_ids=frozenset(), boards=Boards(model))
    texts: dict[Text, list[int]] = {}
    for prompt in prompts([5, 9]):
        text, first = join(slots, model, prompt, 20)
        texts[text] = [first]
    run(slots, texts, 4)

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    failing = model.model.language_model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        slots.step()
    failing.remove()
    run(slots, texts, 30)
    assert list(texts.values()) == collect(model, prompts([5, 9]), max_new_tokens=20)[0]


def test_a_loop_that_is_halved(model: MedSightForConditionalGeneration) -> None:
    """The later half goes on elsewhere although its rows are given to others."""
    slots = Slots(model, stop_ids=frozenset(), boards=Boards(model))
    given = prompts([5, 9, 3, 12, 8])
    texts: dict[Text, list[int]] = {}
    for prompt in given[:4]:
        text, first = join(slots, model, prompt, 20)
        texts[text] = [first]
    run(slots, texts, 3)
    other = slots.halve()
    text, first = join(slots, model, given[4], 20)
    texts[text] = [first]
    run(slots, texts, 30)
    run(other, texts, 30)
    assert list(texts.values()) == collect(model, given, max_new_tokens=20)[0]


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
def test_a_compiled_step_writes_the_same(model: MedSightForConditionalGeneration) -> None:
    """In one graph without breaks, and one for every size of board, however many boards there are."""
    compiler = partial(torch.compile, backend="eager", fullgraph=True, dynamic=False)
    boards = Boards(model, compiler=compiler)
    for lengths in ([13], [9, 6], [7]):
        assert collect(model, prompts(lengths), boards=boards)[0] == collect(model, prompts(lengths))[0]
    assert counters["stats"]["unique_graphs"] == 2
    again = Boards(model, compiler=compiler)
    assert collect(model, prompts([8]), boards=again)[0] == collect(model, prompts([8]))[0]
    assert counters["stats"]["unique_graphs"] == 2


def test_sizes() -> None:
    assert [fitting_rows(n) for n in (1, 2, 4, 5, 16, 17, 33)] == [1, 4, 4, 16, 16, 32, 48]
    assert [fitting_length(n) for n in (1, 1024, 1025, 5000)] == [1024, 1024, 2048, 8192]


def test_what_cannot_be_compiled_is_refused(
    model: MedSightForConditionalGeneration, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="compiled for CUDA; this model is to run on cpu"):
        Engine.from_pretrained(checkpoint, device="cpu", compiled=True)
    with pytest.raises(InputError, match="weights in int8"):
        Running(precision="int8", compiled=True)
    monkeypatch.setattr(model.config.text_config, "layer_types", ["full_attention", "sliding_attention"])
    with pytest.raises(InputError, match="full_attention, sliding_attention"):
        Boards(model)
