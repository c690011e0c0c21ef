"""`Bounded` in double-double: the same bounds at a hundred bits, for `precision="certified"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ..kernels import elementwise_dd
from .bounded import TINY, UP, Array, Bounded, Parts, row_norm


def apply(function: Any, *numbers: Parts) -> Parts:
    """An elementwise kernel on pairs of arrays of any shapes that broadcast."""
    flat = [np.ascontiguousarray(x, dtype=np.float64) for x in np.broadcast_arrays(*(x for p in numbers for x in p))]
    high, low = np.empty_like(flat[0]), np.empty_like(flat[0])
    function(*(x.ravel() for x in flat), high.ravel(), low.ravel())
    return high, low


@dataclass(frozen=True)
class Doubled(Bounded):
    """value + low, unevaluated, |low| <= ulp(value) / 2; `error` bounds the Euclidean norm of what a row's sum is off
    by. The units are those of kernels/_dd.py, rounded up."""

    low: Array

    unit: ClassVar[float] = 2.0**-102
    elementary: ClassVar[float] = 2.0**-98

    @property
    def parts(self) -> Parts:
        return self.value, self.low

    @classmethod
    def of(cls, parts: Parts, error: Array) -> Self:
        """A pair, or one array of exact numbers."""
        return cls(parts[0], error, parts[1] if len(parts) == 2 else np.zeros(parts[0].shape))

    @staticmethod
    def product(x: Parts, y: Parts) -> Parts:
        return apply(elementwise_dd.times, x, y)

    @staticmethod
    def sum(x: Parts, y: Parts) -> Parts:
        return apply(elementwise_dd.add, x, y)

    @staticmethod
    def quotient(x: Parts, y: Parts) -> Parts:
        return apply(elementwise_dd.over, x, y)

    @staticmethod
    def exponential(x: Parts) -> Parts:
        return apply(elementwise_dd.exp, x)

    @staticmethod
    def squares(x: Parts) -> Parts:
        shape = x[0].shape
        rows = [np.ascontiguousarray(part, dtype=np.float64).reshape(-1, shape[-1]) for part in x]
        sums = np.empty((2, len(rows[0])))
        elementwise_dd.square_sums(*rows, *sums)
        return sums[0].reshape(shape[:-1]), sums[1].reshape(shape[:-1])

    def function(self, kernel: Any, slope: float | Array) -> Self:
        """An elementary function, whose slope is at most that."""
        parts = apply(kernel, self.parts)
        return self.of(parts, (slope * self.error + self.elementary * row_norm(parts[0]) + TINY) * UP)

    def sigmoid(self) -> Self:
        return self.function(elementwise_dd.sigmoid, 0.25)

    def softplus(self) -> Self:
        return self.function(elementwise_dd.softplus, 1.0)

    def exp(self) -> Self:
        """Of exact numbers."""
        return self.function(elementwise_dd.exp, 0.0)

    def root(self) -> Self:
        """The square root of rows of one number; where that may be 0, by |root a - root b| <= root |a - b|."""
        parts = apply(elementwise_dd.root, self.parts)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(parts[0][..., 0] > 0, self.error / parts[0][..., 0], np.inf)
        error = np.fmin(slope, np.sqrt(self.error))
        return self.of(parts, (error + self.elementary * row_norm(parts[0]) + TINY) * UP)

    def at_least(self, number: float) -> Self:
        """max(x, number)"""
        below = self.value < number
        return self.of((np.where(below, number, self.value), np.where(below, 0.0, self.low)), self.error)
