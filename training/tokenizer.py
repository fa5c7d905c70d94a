"""A small tokenizer of one's own, for models whose language model starts from nothing."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from medsight_core.codes import RegionCode
from medsight_core.markup import CLOSE, OPEN
from medsight_core.model.processing import IMAGE_TOKEN, PROMPT_TOKEN

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def region_words(groups: int, codes: int) -> list[str]:
    """What every tokenizer of MedSIGHT has beside words: the markup of grounded terms, and the region codes."""
    return [OPEN, CLOSE] + [str(RegionCode(group, index)) for group in range(groups) for index in range(codes)]


def build_tokenizer(texts: Iterable[str], *, vocab_size: int, groups: int, codes: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`, with region codes that stay visible in decoded text.

    Args:
        texts: sentences that the model will read and write.
        vocab_size: of the whole, codes included.
        groups, codes: K and M of the codebook.
    """
    special = ["<pad>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, PROMPT_TOKEN]
    plain = region_words(groups, codes)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(plain),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens([AddedToken(name, normalized=False, special=False) for name in plain])
    fast.chat_template = CHAT_TEMPLATE
    return fast
