"""A pre-trained language model's vocabulary, widened: region codes, markup, placeholders, and a form of conversation.

No old word changes its id or its row. Conversations have the form that the model's own chat template gives them, unless
that form adds something between question and answer (a block for thoughts, say) or does not end an answer; then, and
where there is none, they have ChatML's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medsight_core.codes import CODE_PATTERN, RegionCode, RegionVocabulary
from medsight_core.errors import InputError
from medsight_core.model.processing import IMAGE_TOKEN, PROMPT_TOKEN
from training.tokenizer import CHAT_TEMPLATE, region_words

TURN_BEGINS, TURN_ENDS = "<|im_start|>", "<|im_end|>"
"""ChatML."""

SPREAD = 0.02
"""How far the rows of new words lie apart, by the spread of all rows: enough to tell them apart."""


@dataclass(frozen=True, kw_only=True)
class Widened:
    """What a tokenizer was given.

    Attributes:
        known: words that it had.
        new: ids of those that it did not have.
        alike: new id -> old id of a word that means much the same, whose row is a better beginning than any other.
        stops: ids that end an answer.
    """

    known: int
    new: tuple[int, ...]
    alike: Mapping[int, int]
    stops: tuple[int, ...]


def widen(tokenizer: PreTrainedTokenizerBase, *, groups: int, codes: int) -> Widened:
    """Add what MedSIGHT needs to a tokenizer, in place.

    Args:
        tokenizer: of the language model.
        groups, codes: K and M of the codebook.

    Raises:
        InputError: has_codes, it is the tokenizer of a MedSIGHT already.
    """
    before = dict(tokenizer.get_vocab())
    if any(CODE_PATTERN.fullmatch(word) for word in before):
        raise InputError(
            "has_codes",
            "The language model's tokenizer has region codes already.",
            "Start from a plain language model, or train the MedSIGHT model as it is.",
        )
    known, begin, end = len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id
    add_words(tokenizer, region_words(groups, codes), special=False)
    add_words(tokenizer, [IMAGE_TOKEN, PROMPT_TOKEN], special=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.padding_side = "left"
    stop = end_of_turn(tokenizer)
    if stop is None:
        use_chatml(tokenizer)
        stop = tokenizer.eos_token_id
    after = tokenizer.get_vocab()
    new = tuple(sorted(index for word, index in after.items() if word not in before))
    likely = {after.get(TURN_ENDS): end, after.get(TURN_BEGINS): end if begin is None else begin}
    alike = {fresh: old for fresh, old in likely.items() if fresh in new and old is not None}
    stops = tuple(dict.fromkeys(one for one in (stop, end) if one is not None))
    return Widened(known=known, new=new, alike=alike, stops=stops)


def add_words(tokenizer: PreTrainedTokenizerBase, words: list[str], *, special: bool) -> None:
    """Words that stay whole; special ones are left out of decoded text."""
    added = [AddedToken(word, normalized=False, special=special) for word in words]
    tokenizer.add_tokens(added, special_tokens=special)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that the chat template puts behind an answer.

    None where the template does not do for questions about images: there is none, an answer does not follow the text
    that asks for it at once, an answer has no end, or a further question changes how what came before is written (what
    the engine has read could then not be kept).
    """
    answer = f"The {RegionCode(0, 0)} liver."
    asked = {"role": "user", "content": f"{IMAGE_TOKEN}\n{PROMPT_TOKEN}\nWhat is it?"}
    told = {"role": "assistant", "content": answer}
    try:
        asking, whole, further = (
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header)
            for messages, header in (([asked], True), ([asked, told], False), ([asked, told, asked], True))
        )
        short, long, longer = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asking, whole, further)
        )
    except Exception:  # whatever a template of strangers raises, its own refusals among it
        return None
    said = whole.removeprefix(asking).lstrip()
    if not (whole.startswith(asking) and further.startswith(whole) and said.startswith(answer)):
        return None
    if long[: len(short)] != short or longer[: len(long)] != long:
        return None
    tail = tokenizer(said.removeprefix(answer).strip(), add_special_tokens=False)["input_ids"]
    return tail[0] if tail and tail[0] in tokenizer.added_tokens_decoder else None


def use_chatml(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer ChatML's form, with the word in front that its model has learnt to expect there."""
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    add_words(tokenizer, [TURN_BEGINS, TURN_ENDS], special=True)
    tokenizer.eos_token = TURN_ENDS
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + CHAT_TEMPLATE


@torch.no_grad()
def grow(model: PreTrainedModel, widened: Widened, *, size: int, seed: int) -> None:
    """Give a language model rows for new words, in its embeddings and in its head; the old rows stay as they are.

    A new row starts at the mean of the old ones, so that nothing is said that was not said before. Stage 3 puts the
    codebook in the place of the codes' rows.

    Args:
        model: a causal language model.
        widened: its tokenizer's new words.
        size: words of the tokenizer; a model that has more rows already keeps them.
        seed: of the little that tells new rows apart.
    """
    if size > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(size, mean_resizing=False)
    tables = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    new = torch.tensor(widened.new)
    for table in tables.values():
        spread, mean = torch.std_mean(table[: widened.known].float(), dim=0)
        noise = torch.randn(len(new), table.shape[1], generator=torch.Generator().manual_seed(seed))
        table[new] = (mean + SPREAD * spread * noise).to(table.dtype)
        for fresh, old in widened.alike.items():
            table[fresh] = table[old]


def own_ids(tokenizer: Any) -> list[int]:
    """Ids of the words that MedSIGHT teaches a language model: codes, markup, ChatML's marks if it has them."""
    vocabulary = tokenizer.get_vocab()
    codes = RegionVocabulary.from_tokens(vocabulary)
    names = [*region_words(0, 0), TURN_BEGINS, TURN_ENDS]
    return sorted({*codes.token_ids.values(), *(vocabulary[name] for name in names if name in vocabulary)})


def embeddings(model: nn.Module) -> list[nn.Parameter]:
    """The tables of words: one where head and embeddings are tied, else two."""
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return list({id(table): table for table in tables}.values())
