"""Region codes: the names of the codebook's entries, as the language model writes them.

A region code is one token of the vocabulary, such as ``[C2_16]``: modality group 2, code 16 (paper, section on the
modality-grouped codebook). The released checkpoints spell the same thing ``[M2_16]``. How a checkpoint spells its codes
is read from its tokenizer, once, into a `RegionVocabulary`; nobody else formats or looks up names. People are shown our
spelling, whichever checkpoint wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from medsight_core.errors import CheckpointError, MedSightError

CODE_PATTERN: Final = re.compile(r"\[[CM](\d{1,5})_(\d{1,5})\]", re.ASCII)
"""A whole region code; groups are the modality group and the index."""

CODE_BEGINNING: Final = re.compile(r"\[(?:[CM](?:\d{1,5}(?:_(?:\d{1,5})?)?)?)?", re.ASCII)
"""Every proper beginning of a region code, to be used with ``fullmatch``: what a stream must hold back."""


@dataclass(frozen=True, slots=True, order=True)
class RegionCode:
    """One entry of the codebook.

    Attributes:
        group: Modality group, from 0.
        index: Code within the group, from 0.
    """

    group: int
    index: int

    def __post_init__(self) -> None:
        if self.group < 0 or self.index < 0:
            raise MedSightError(
                "bad_region_code",
                f"A region code has a group and an index of 0 or more, got {self.group} and {self.index}.",
            )

    def __str__(self) -> str:
        return f"[C{self.group}_{self.index}]"

    @classmethod
    def parse(cls, text: str) -> RegionCode:
        """Reads one code, spelled ``[C2_16]`` or, in released checkpoints, ``[M2_16]``.

        Raises:
            MedSightError: The text is not exactly one region code.
        """
        match = CODE_PATTERN.fullmatch(text)
        if match is None:
            raise MedSightError("bad_region_code", f"A region code looks like [C2_16], got {text[:40]!r}.")
        return cls(int(match[1]), int(match[2]))


class CodeMatch(NamedTuple):
    """A code found in a text, at ``text[start:end]``."""

    code: RegionCode
    start: int
    end: int


def find_codes(text: str) -> Iterator[CodeMatch]:
    """Every region code in a text, in order, whichever checkpoint wrote it."""
    for match in CODE_PATTERN.finditer(text):
        yield CodeMatch(RegionCode(int(match[1]), int(match[2])), match.start(), match.end())


@dataclass(frozen=True, slots=True)
class RegionVocabulary:
    """The codes a tokenizer knows: name <-> region code <-> token id.

    Build it with `from_tokens`; iteration order is by group, then index.

    Attributes:
        names: Region code to its spelling in this tokenizer.
        token_ids: Region code to its token id.
    """

    names: Mapping[RegionCode, str]
    token_ids: Mapping[RegionCode, int]
    _codes: Mapping[int, RegionCode] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.names.keys() != self.token_ids.keys():
            raise CheckpointError("bad_vocabulary", "Every region code needs both a name and a token id.")
        order = sorted(self.names)
        by_id = {self.token_ids[code]: code for code in order}
        if len(by_id) != len(order):
            raise CheckpointError("bad_vocabulary", "Two region codes share one token id in this tokenizer.")
        # Plain dicts, not read-only proxies: a vocabulary travels to data-loading processes and must pickle.
        object.__setattr__(self, "names", {code: self.names[code] for code in order})
        object.__setattr__(self, "token_ids", {code: self.token_ids[code] for code in order})
        object.__setattr__(self, "_codes", by_id)

    @classmethod
    def from_tokens(cls, tokens: Mapping[str, int]) -> RegionVocabulary:
        """Picks the region codes out of a tokenizer's table, such as ``tokenizer.get_vocab()``.

        Args:
            tokens: Token text to token id; everything that is not a region code is passed over.

        Raises:
            CheckpointError: There are none, one code has two names, or a group's indices have a hole.
        """
        names: dict[RegionCode, str] = {}
        ids: dict[RegionCode, int] = {}
        for name, token_id in tokens.items():
            if CODE_PATTERN.fullmatch(name) is None:
                continue
            code = RegionCode.parse(name)
            if code in names:
                raise CheckpointError(
                    "bad_vocabulary", f"The tokenizer spells one region code twice, {names[code]} and {name}."
                )
            names[code], ids[code] = name, token_id
        if not names:
            raise CheckpointError(
                "bad_vocabulary",
                "The tokenizer has no region codes such as [C0_0].",
                "Use a MedSIGHT checkpoint; a plain language model cannot ground its words.",
            )
        groups: dict[int, int] = {}
        for code in names:
            groups[code.group] = groups.get(code.group, 0) + 1
        for group, size in sorted(groups.items()):
            if any(RegionCode(group, index) not in names for index in range(size)):
                raise CheckpointError(
                    "bad_vocabulary", f"Group {group} of the tokenizer's region codes does not count from 0 upwards."
                )
        return cls(names=names, token_ids=ids)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[RegionCode]:
        return iter(self.names)

    def __contains__(self, code: object) -> bool:
        return code in self.names

    def name(self, code: RegionCode) -> str:
        """The code as this checkpoint writes it."""
        return self.names[code]

    def token_id(self, code: RegionCode) -> int:
        """The token id of a code."""
        return self.token_ids[code]

    def code(self, token_id: int) -> RegionCode | None:
        """The code of a token id, or None where the token is not a code."""
        return self._codes.get(token_id)

    def spelt(self, text: str) -> str:
        """A text with every code that this checkpoint knows as it writes it; the way back from how codes are shown."""
        return CODE_PATTERN.sub(lambda match: self.names.get(RegionCode.parse(match[0]), match[0]), text)

    def finditer(self, text: str) -> Iterator[CodeMatch]:
        """Every code of this vocabulary in a text, in order; codes of other vocabularies are passed over."""
        for match in find_codes(text):
            if self.names.get(match.code) == text[match.start : match.end]:
                yield match
