"""A text as tokens: characters (any white space is one space) or words, the most frequent by name, the rest as one."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnavailableError
from ..io import text as file

UNITS = ("characters", "words")
LENGTH = 12_000  # tokens at scale 1
VOCABULARY = 128  # tokens with a name of their own, the rest's included
LEAST = 1000  # tokens below which chance is larger than what is to be seen
WORD = re.compile(r"\w+|[^\w\s]")
SPACE = re.compile(r"\s+")
READ = {"characters": 4, "words": 32}  # characters to read for each token that is wanted


@dataclass(frozen=True)
class Text:
    """ids [T]: tokens by frequency in the first half, the most frequent 0; so a tie is broken by what was seen before
    any score is counted. Where there are more kinds than VOCABULARY the last id is all that are rarer."""

    source: str
    unit: str
    ids: NDArray[np.int64]
    size: int
    rest: float  # share of the tokens that have no name of their own

    def one_hot(self) -> NDArray[np.float64]:
        """[1, T, 1, V]"""
        return np.eye(self.size)[None, self.ids, None]

    def upto(self, tokens: int) -> Text:
        """Its beginning, under the same names."""
        return Text(self.source, self.unit, self.ids[:tokens], self.size, self.rest)


def load(path: str | os.PathLike[str] | None = None, unit: str = "characters", scale: int = 1) -> Text:
    """The first tokens of a file, or of the prose that ships with CPython."""
    length = LENGTH * scale
    characters = READ[unit] * length
    if path is None:
        source, content = "pydoc_data.topics", shipped()[:characters]
    else:
        source, content = os.fsdecode(path), file.read(path, characters)
    tokens = list(SPACE.sub(" ", content).strip()) if unit == "characters" else WORD.findall(content)
    if len(tokens) < LEAST:
        raise InputError(f"{source}: has {len(tokens)} of the {LEAST} {unit} that the study needs at least.")
    return tokenised(source, unit, tokens[:length])


def shipped() -> str:
    """CPython's own help, topic after topic."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UnavailableError("This Python has no pydoc_data.topics to read; give a text by --text FILE.") from error
    return "\n".join(topics[name] for name in sorted(topics))


def tokenised(source: str, unit: str, tokens: list[str]) -> Text:
    """Number the tokens."""
    early, all_kinds = Counter(tokens[: len(tokens) // 2]), sorted(set(tokens))
    if len(all_kinds) == 1:
        raise InputError(
            f"{source}: has {len(tokens)} {unit}, all of them {all_kinds[0]!r}; the study needs two kinds."
        )
    ranked = sorted(all_kinds, key=lambda token: (-early[token], token))
    size = min(len(ranked), VOCABULARY)
    number = {token: min(i, size - 1) for i, token in enumerate(ranked)}
    ids = np.array([number[token] for token in tokens], np.int64)
    rest = float((ids == size - 1).mean()) if len(ranked) > size else 0.0
    return Text(source, unit, ids, size, rest)
