"""Numbers that remember where they came from, for gradients: what `lower` and the front end compute with when
somebody asks for them.

A `Traced` is a `Bounded` with the numbers it was computed from and the transpose of the last step, linear in the
cotangent, in `Bounded` arithmetic: so every cotangent carries a bound on its own error too. It has the methods of
`Bounded` and so stands in for one; an op's `lower` is its only declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bounded import Array, Bounded

Pull = Callable[[Bounded], tuple[Bounded | None, ...]]
_serial = count()


class Traced:
    """`number`, computed from `sources`; `pull` takes its cotangent to theirs (None: nothing)."""

    __slots__ = ("number", "pull", "serial", "sources")

    def __init__(self, number: Bounded, sources: tuple[Traced, ...] = (), pull: Pull | None = None) -> None:
        self.number, self.sources, self.pull, self.serial = number, sources, pull, next(_serial)

    @property
    def value(self) -> Array:
        return self.number.value

    @property
    def error(self) -> Array:
        return self.number.error

    @property
    def plain(self) -> Bounded:
        return self.number

    def derive(self, number: Bounded, pull: Pull, *others: Any) -> Traced:
        """What was computed from this (and the others) outside of this class."""
        return Traced(number, (self, *others), pull)

    def __mul__(self, other: Traced) -> Traced:
        x, y = self.number, other.number
        return self.derive(x * y, lambda d: ((d * y).summed(x), (d * x).summed(y)), other)

    def __add__(self, other: Traced) -> Traced:
        x, y = self.number, other.number
        return self.derive(x + y, lambda d: (d.summed(x), d.summed(y)), other)

    def __sub__(self, other: Traced) -> Traced:
        x, y = self.number, other.number
        return self.derive(x - y, lambda d: (d.summed(x), (-d).summed(y)), other)

    def __truediv__(self, other: Traced) -> Traced:
        x, y = self.number, other.number
        z = x / y

        def pull(d: Bounded) -> tuple[Bounded, Bounded]:
            dx = d / y
            return dx.summed(x), -(dx * z).summed(y)

        return self.derive(z, pull, other)

    def __neg__(self) -> Traced:
        return self.derive(-self.number, lambda d: (-d,))

    def heads(self, count: int) -> Traced:
        here = self.number.value.shape[2]
        return self.derive(self.number.heads(count), lambda d: (d.gathered(here),)) if count != here else self

    def filled(self, number: float) -> Traced:
        return Traced(self.number.filled(number))

    def per_head(self, values: NDArray[Any]) -> Traced:
        return Traced(self.number.per_head(values))

    def fold(self) -> Traced:
        channels = self.number.value.shape[3]
        return self.derive(self.number.fold(), lambda d: (d.unfold(channels),))

    def unfold(self, channels: int) -> Traced:
        return self.derive(self.number.unfold(channels), lambda d: (d.fold() if channels > 1 else d,))

    def interleave(self, *others: Traced) -> Traced:
        n = 1 + len(others)
        together = self.number.interleave(*[x.number for x in others])
        return self.derive(together, lambda d: tuple(d.every(n, i) for i in range(n)), *others)

    def square_sum(self) -> Traced:
        x = self.number
        return self.derive(x.square_sum(), lambda d: (d * (x + x),))

    def relative(self) -> Traced:
        return self.derive(self.number.relative(), lambda d: (d,))

    def decay(self) -> Traced:
        a = self.number.decay()
        return self.derive(a, lambda d: (d * a.absolute(),))

    def decay_first(self, micro: int) -> Traced:
        a = self.decay()
        return a.interleave(*[a.filled(1.0)] * (micro - 1))


def pull_back(given: Iterable[tuple[Any, Bounded]]) -> dict[int, Bounded]:
    """The cotangents of every number that those in `given` came from, by `serial`, from theirs."""
    owed: dict[int, Bounded] = {}
    waiting: dict[int, Traced] = {}

    def owe(x: Traced, d: Bounded) -> None:
        owed[x.serial] = owed[x.serial] + d if x.serial in owed else d
        waiting[x.serial] = x

    for x, d in given:
        owe(x, d)
    while waiting:  # newest first: whatever came from a number is newer than it
        x = waiting.pop(max(waiting))
        if x.pull is not None:
            for source, part in zip(x.sources, x.pull(owed[x.serial]), strict=True):
                if part is not None:
                    owe(source, part)
    return owed


def leaf(array: NDArray[Any]) -> Traced:
    """A number that is asked for its cotangent, exact."""
    return Traced(Bounded.exact(np.asarray(array)))
