"""The release's tokenizer as one `tokenizer.json`: its words, its added tokens and how each is treated.

What the release saved is read as JSON and put together here, never by a class that its files name. Region codes keep
the names that they have there, and stay visible in decoded text whatever they were marked as.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from medsight_core.codes import CODE_PATTERN, RegionVocabulary
from medsight_core.convert.release import ADDED_TOKENS, Release, read_json
from medsight_core.errors import CheckpointError
from medsight_core.model.official_settings import CHAT_TEMPLATE, IMAGE_TOKEN

WHOLE: Final = "tokenizer.json"
WORDS: Final = "vocab.json"
MERGES: Final = "merges.txt"
SETTINGS: Final = "tokenizer_config.json"
LONGEST: Final = 2048
"""Tokens of a text that the release was trained on, where its configuration does not say."""

_END: Final = "<|im_end|>"
_PAD: Final = "<|endoftext|>"


def read_tokenizer(release: Release) -> PreTrainedTokenizerFast:
    """The release's tokenizer.

    Raises:
        CheckpointError: Files are missing, or number the tokens differently.
    """
    folder = release.instruct
    table = _table(folder)
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    added = _added(table, settings, release.added_tokens, folder)
    table["added_tokens"] = [added[number] for number in sorted(added)]
    try:
        tokenizer = Tokenizer.from_str(json.dumps(table))
    except Exception as error:  # whatever the library raises over a table that strangers wrote
        raise CheckpointError(
            "bad_vocabulary",
            f"The tokenizer in {folder} cannot be used ({type(error).__name__}).",
            "Download it again.",
        ) from error
    for number, token in added.items():
        if tokenizer.token_to_id(token["content"]) != number:
            raise CheckpointError(
                "bad_vocabulary",
                f"{token['content']} is token {tokenizer.token_to_id(token['content'])} of the tokenizer in {folder}, "
                f"expected {number}.",
                f"Take tokenizer and {ADDED_TOKENS} from one release.",
            )
    absent = [name for name in (_END, _PAD, IMAGE_TOKEN) if tokenizer.token_to_id(name) is None]
    if absent:
        raise CheckpointError(
            "bad_vocabulary", f"The tokenizer in {folder} lacks {', '.join(absent)}.", "Take the release's tokenizer."
        )
    longest = release.config.get("tokenizer_model_max_length", LONGEST)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PAD,
        padding_side="left",
        model_max_length=longest if isinstance(longest, int) else LONGEST,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def vocabulary_of(tokenizer: PreTrainedTokenizerFast, release: Release) -> RegionVocabulary:
    """The region codes of a tokenizer, all of which have a row in the language model.

    Raises:
        CheckpointError: bad_vocabulary.
    """
    size = release.config.get("vocab_size")
    if isinstance(size, int) and len(tokenizer) > size:
        raise CheckpointError(
            "bad_vocabulary",
            f"The tokenizer in {release.instruct} has {len(tokenizer):,} tokens, the language model {size:,} rows.",
            "Take both from one release.",
        )
    return RegionVocabulary.from_tokens(tokenizer.get_vocab())


def _table(folder: Path) -> dict[str, Any]:
    """The tokenizer as JSON; made of words and merges where only these were saved."""
    if (folder / WHOLE).is_file():
        return read_json(folder / WHOLE)
    absent = [name for name in (WORDS, MERGES) if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            "bad_vocabulary",
            f"{folder} has no tokenizer: neither {WHOLE} nor {' and '.join(absent)}.",
            "Download it again.",
        )
    lines = (folder / MERGES).read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        made = Qwen2Tokenizer(vocab=read_json(folder / WORDS), merges=merges)
    except Exception as error:
        raise CheckpointError(
            "bad_vocabulary", f"{folder / WORDS} and {MERGES} do not fit together.", "Download it again."
        ) from error
    found: dict[str, Any] = json.loads(made.backend_tokenizer.to_str())
    return found


def _added(
    table: Mapping[str, Any], settings: Mapping[str, Any], ids: Mapping[str, int], folder: Path
) -> dict[int, dict[str, Any]]:
    """Added tokens by id, of all places where a tokenizer's files tell them; the later ones tell more."""
    whole = (folder / WHOLE).is_file()  # otherwise those of the table are the library's guess
    told = [(int(token["id"]), token) for token in table.get("added_tokens", []) if whole]
    told += [(int(number), token) for number, token in (settings.get("added_tokens_decoder") or {}).items()]
    own = folder / ADDED_TOKENS
    for names in (read_json(own) if own.is_file() else {}, ids):
        told += [(number, {"content": name}) for name, number in names.items()]
    found: dict[int, dict[str, Any]] = {}
    for number, token in told:
        name = str(token["content"])
        known = found.setdefault(number, {"content": name, "special": name.startswith("<|")})
        if known["content"] != name:
            raise CheckpointError(
                "bad_vocabulary",
                f"Token {number} is {known['content']} in one file of {folder} and {name} in another.",
                f"Take tokenizer and {ADDED_TOKENS} from one release.",
            )
        known |= {key: value for key, value in token.items() if key != "id"}
    for number, token in found.items():
        plain = {"id": number, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        found[number] = plain | token
        if CODE_PATTERN.fullmatch(token["content"]):
            found[number] |= {"special": False, "normalized": False}
    return found
