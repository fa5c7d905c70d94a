"""The decode loop against the library's, and code states against one pass over the finished text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.decoding import Slots, Step, Text, WrittenCode, prefill
from medsight_core.inference.loading import load
from medsight_core.model import MedSightForConditionalGeneration

NEW = 24


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> MedSightForConditionalGeneration:
    return load(open_checkpoint(checkpoint))[0].eval()


@pytest.fixture
def before(model: MedSightForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "code_state", "before")


def prompts(lengths: list[int]) -> list[torch.Tensor]:
    """Prompts as they leave `embed`: word embeddings, here of no words in particular."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(length, 32, generator=generator) for length in lengths]


def pad_left(prompts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as the library takes them: one batch with zeros on the left, and its attention mask."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    embeds = [torch.cat((prompt.new_zeros(n, 32), prompt)) for n, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in padding]
    return torch.stack(embeds), torch.tensor(mask)


def begin(
    model: MedSightForConditionalGeneration,
    together: list[torch.Tensor],
    *,
    max_new_tokens: int = NEW,
    stop_ids: frozenset[int] | set[int] = frozenset(),
    **options,
) -> tuple[Slots, list[Text], list[tuple[Text, Step]]]:
    """A loop with texts in it, and their first steps."""
    slots = Slots(model, stop_ids=stop_ids, **options)
    read = [prefill(model, prompt[None]) for prompt in together]
    joined = slots.join(read, limits=[max_new_tokens] * len(read))
    return slots, [text for text, _ in joined], [(text, step) for text, steps in joined for step in steps]


def collect(
    model: MedSightForConditionalGeneration, together: list[torch.Tensor], **options
) -> tuple[list[list[int]], list[list[WrittenCode]]]:
    """Runs the loop to its end: tokens and codes of each text."""
    slots, texts, steps = begin(model, together, **options)
    tokens: dict[Text, list[int]] = {text: [] for text in texts}
    codes: dict[Text, list[WrittenCode]] = {text: [] for text in texts}
    over: set[Text] = set()
    while steps:
        for text, step in steps:
            assert text not in over, "nothing comes behind the last step"
            codes[text] += step.codes
            tokens[text] += [] if step.token is None else [step.token]
            over |= {text} if step.last else set()
        steps = slots.step()
    assert over == set(texts) and not len(slots)
    return [tokens[text] for text in texts], [codes[text] for text in texts]


def generate(
    model: MedSightForConditionalGeneration, embeds: torch.Tensor, mask: torch.Tensor, **options
) -> list[list[int]]:
    """What the library writes; it pads with 0 behind the end of a text."""
    options = {"eos_token_id": None, "pad_token_id": 0} | options
    with torch.inference_mode():
        out = model.generate(inputs_embeds=embeds, attention_mask=mask, do_sample=False, max_new_tokens=NEW, **options)
    return out.tolist()


def code_ids(model: MedSightForConditionalGeneration) -> frozenset[int]:
    return frozenset(model.config.code_token_ids)


@pytest.mark.parametrize("lengths", [[13], [9, 9], [5, 17, 11, 1]])
def test_the_same_tokens_as_the_library(model: MedSightForConditionalGeneration, lengths: list[int]) -> None:
    ours, _ = collect(model, prompts(lengths), code_ids=code_ids(model))
    assert ours == generate(model, *pad_left(prompts(lengths)))
    assert len({token for text in ours for token in text}) > 4, "a model that repeats itself proves nothing"


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_the_same_tokens_as_the_library_with_a_repetition_penalty(model: MedSightForConditionalGeneration) -> None:
    """One by one: in a padded batch of embeddings the library leaves as many new tokens out as there is padding."""
    together = prompts([5, 17, 11, 1])
    ours, _ = collect(model, together, repetition_penalty=1.3)
    for prompt, text in zip(together, ours, strict=True):
        whole = torch.ones(1, len(prompt), dtype=torch.long)
        assert [text] == generate(model, prompt[None], whole, repetition_penalty=1.3)
    assert ours != collect(model, together)[0]


def test_texts_end_where_the_library_ends_them(model: MedSightForConditionalGeneration) -> None:
    together = prompts([5, 17, 11])
    whole, _ = collect(model, together)
    stops = {whole[0][3], whole[2][7]}
    ours, _ = collect(model, together, stop_ids=stops)
    library = generate(model, *pad_left(together), eos_token_id=sorted(stops))
    assert len({len(text) for text in ours}) > 1
    for text, theirs in zip(ours, library, strict=True):
        end = next((i for i, token in enumerate(theirs) if token in stops), len(theirs))
        assert text == theirs[:end]


def test_padding_does_not_change_a_text(model: MedSightForConditionalGeneration) -> None:
    together = prompts([5, 17, 11, 1])
    batched, _ = collect(model, together)
    for prompt, text in zip(together, batched, strict=True):
        assert collect(model, [prompt])[0] == [text]


def passed_once(
    model: MedSightForConditionalGeneration, prompt: torch.Tensor, text: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and probabilities at every position, from one pass without a cache over prompt and text."""
    with torch.no_grad():
        words = model.get_input_embeddings()(torch.tensor(text))
        out = model(inputs_embeds=torch.cat((prompt, words))[None])
    return out.last_hidden_state[0], out.logits[0].softmax(-1)


def check_states(model: MedSightForConditionalGeneration, stop_ids: frozenset[int] = frozenset()) -> None:
    together = prompts([5, 17, 11])
    codes_of = code_ids(model)
    texts, codes = collect(model, together, code_ids=codes_of, stop_ids=stop_ids)
    counts = []
    for prompt, text, mine in zip(together, texts, codes, strict=True):
        places = [i for i, token in enumerate(text) if token in codes_of]
        assert [code.position for code in mine] == places
        assert [code.token_id for code in mine] == [text[i] for i in places]
        counts.append(len(mine))
        if not mine:
            continue
        hidden, probabilities = passed_once(model, prompt, text)
        # Positions of the codes in the whole sequence, from the model's own rule for training.
        rows = torch.zeros(len(places), dtype=torch.long)
        wanted = model.code_states(hidden[None], rows, torch.tensor(places) + len(prompt))
        torch.testing.assert_close(torch.stack([code.state for code in mine]), wanted, atol=2e-5, rtol=1e-4)
        likely = [float(probabilities[len(prompt) + i - 1, text[i]]) for i in places]
        assert [code.probability for code in mine] == pytest.approx(likely, abs=1e-5)
    assert len(set(counts)) > 1 and sum(counts) > 4, f"codes per text: {counts}; the test needs different numbers"


def test_states_at_the_codes_equal_those_of_one_pass(model: MedSightForConditionalGeneration) -> None:
    check_states(model)


@pytest.mark.usefixtures("before")
def test_states_before_the_codes_equal_those_of_one_pass(model: MedSightForConditionalGeneration) -> None:
    check_states(model)


def test_states_do_not_depend_on_when_other_texts_end(model: MedSightForConditionalGeneration) -> None:
    texts, _ = collect(model, prompts([5, 17, 11]))
    plain = next(token for token in texts[1][4:] if token not in code_ids(model))
    check_states(model, frozenset({plain}))


@pytest.mark.parametrize("state", ["at", "before"])
def test_a_code_as_the_very_last_token_has_its_state(
    model: MedSightForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(model.config, "code_state", state)
    (prompt,) = prompts([9])
    (text,), _ = collect(model, [prompt])
    last = next(i for i, token in enumerate(text) if token in code_ids(model))
    (cut,), (codes,) = collect(model, [prompt], code_ids=code_ids(model), max_new_tokens=last + 1)
    assert cut == text[: last + 1]
    hidden, _ = passed_once(model, prompt, cut)
    place = len(prompt) + last - (state == "before")
    assert [code.position for code in codes] == [last]
    torch.testing.assert_close(codes[0].state, hidden[place], atol=2e-5, rtol=1e-4)


def test_without_codes_nothing_is_kept(model: MedSightForConditionalGeneration) -> None:
    texts, codes = collect(model, prompts([5, 17]))
    assert codes == [[], []]
    assert [len(text) for text in texts] == [NEW, NEW]
