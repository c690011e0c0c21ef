"""What a claim is, what came of it, and what follows: the verdict is computed from the figures, never asserted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lab import Lab

HOLDS, LIMITED, FAILS = "holds", "holds with a limit", "fails"


@dataclass(frozen=True)
class Figure:
    """A measurement, the theory beside it if there is one, and where it must lie, ends included.

    A `limit` shows, where it lies there, that the claim does not hold without one."""

    what: str
    measured: float
    low: float = -math.inf
    high: float = math.inf
    theory: float | None = None
    limit: bool = False

    @property
    def within(self) -> bool:
        return self.low <= self.measured <= self.high


def near(what: str, measured: float, theory: float, spread: float, limit: bool = False) -> Figure:
    """Within `spread` of theory."""
    return Figure(what, float(measured), float(theory - spread), float(theory + spread), float(theory), limit)


def at_most(what: str, measured: float, high: float, limit: bool = False) -> Figure:
    return Figure(what, float(measured), high=float(high), limit=limit)


def at_least(what: str, measured: float, low: float, limit: bool = False) -> Figure:
    return Figure(what, float(measured), low=float(low), limit=limit)


@dataclass(frozen=True)
class Table:
    """Figures of one kind by rows and columns; None where there is none."""

    title: str
    columns: Sequence[str]  # the first heads the rows' names
    rows: Sequence[Sequence[str | float | None]]


@dataclass(frozen=True)
class Findings:
    """What an experiment measured. data: what its plots draw, as plain numbers and lists."""

    figures: Sequence[Figure]
    tables: Sequence[Table] = ()
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Fails with any figure out of its spread; has a limit with any that shows one."""
        if not all(f.within for f in self.figures if not f.limit):
            return FAILS
        return LIMITED if any(f.within for f in self.figures if f.limit) else HOLDS


@dataclass(frozen=True)
class Claim:
    """number: its place in the argument. sentence: the claim. experiment: what is done. run: does it."""

    number: int
    name: str
    sentence: str
    experiment: str
    run: Callable[[Lab], Findings]
    reads_text: bool = False
    limit: str = ""  # in words, what the argument leaves out; said where a limit shows
    weight: float = 1.0  # roughly its seconds
