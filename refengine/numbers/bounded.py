"""Arrays with a rigorous bound on their own error: what the front end hands to a kernel.

A `Bounded` holds float64 values [B, T, H, D] and, for each row of D channels, a bound on the Euclidean norm of the
error (so also on every entry). Arithmetic rounds once an operation, in the same way on every machine, and carries the
bound along. With u = 2^-53 and hats for computed values:

    |x^ y^ - x y|         <= max|x^| |dy| + max|y^| |dx| + |dx| |dy| + u |x^ y^|
    |x^ +- y^ - (x +- y)| <= |dx| + |dy| + u |x^ +- y^|

Every bound is multiplied by UP, more than the roundings of its own evaluation; TINY and FLOOR cover underflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import elementwise

U = 2.0**-53
UP = 1.0 + 2.0**-40
TINY = 2.0**-1000
FLOOR = 2.0**-536  # a number this small has a square that vanishes

Array = NDArray[np.float64]


def row_norm(x: Array) -> Array:
    """An upper bound on the Euclidean norm of every row."""
    return np.asarray(np.sqrt(_square_sums(x)) * (1.0 + (x.shape[-1] + 8) * 4 * U) + x.shape[-1] * FLOOR)


def row_max(x: Array) -> Array:
    """The largest magnitude in every row."""
    return np.asarray(np.abs(x).max(axis=-1, initial=0.0))


def _square_sums(x: Array) -> Array:
    flat = np.ascontiguousarray(x, dtype=np.float64).reshape(-1, x.shape[-1])
    sums = np.empty(len(flat))
    elementwise.square_sums(flat, sums)
    return sums.reshape(x.shape[:-1])


def apply(function: Any, x: NDArray[Any]) -> Array:
    """An elementwise kernel on an array of any shape, float64 out."""
    flat = np.ascontiguousarray(x, dtype=np.float64).ravel()
    y = np.empty_like(flat)
    function(flat, y)
    return y.reshape(x.shape)


@dataclass(frozen=True)
class Bounded:
    """`value` [B, T, H, D] and `error` [B, T, H]: |value - exact| of a row is at most `error` (Euclidean)."""

    value: Array
    error: Array

    @classmethod
    def exact(cls, value: NDArray[Any]) -> Bounded:
        return cls(value, np.zeros(value.shape[:-1]))

    def __mul__(self, other: Bounded) -> Bounded:
        value = self.value.astype(np.float64, copy=False) * other.value
        mine = row_max(other.value) * self.error * _width(value, self.value)
        theirs = row_max(self.value) * other.error * _width(value, other.value)
        both = self.error * other.error * _width(value, self.value) * _width(value, other.value)
        return Bounded(value, (mine + theirs + both + U * row_norm(value) + TINY) * UP)

    def __add__(self, other: Bounded) -> Bounded:
        return _sum(self, other, self.value.astype(np.float64, copy=False) + other.value)

    def __sub__(self, other: Bounded) -> Bounded:
        return _sum(self, other, self.value.astype(np.float64, copy=False) - other.value)

    def __truediv__(self, other: Bounded) -> Bounded:
        """Row over one number a row; nothing is known where that might be zero."""
        value = self.value.astype(np.float64, copy=False) / other.value
        below = np.abs(other.value[..., 0]) - other.error
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(below > 0, (self.error + row_norm(value) * other.error) / below, np.inf)
        nothing = (self.error == 0.0) & (row_max(self.value) == 0.0) & (below > 0)
        error = np.where(nothing, 0.0, error + U * row_norm(value) + TINY)
        return Bounded(value, error * UP)

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.error)

    def heads(self, count: int) -> Bounded:
        """Every head repeated for the value heads that share it."""
        times = count // self.value.shape[2]
        return (
            self if times == 1 else Bounded(np.repeat(self.value, times, axis=2), np.repeat(self.error, times, axis=2))
        )

    def filled(self, number: float) -> Bounded:
        """That number everywhere, exactly."""
        return Bounded.exact(np.full(self.value.shape, number))

    def fold(self) -> Bounded:
        """Every channel a head of its own: [B, T, H, D] to [B, T, H * D, 1]."""
        B, T, H, D = self.value.shape
        return Bounded(self.value.reshape(B, T, H * D, 1), np.repeat(self.error, D, axis=2))

    def per_head(self, values: NDArray[Any]) -> Bounded:
        """One exact number a head, the same at every token of `self`: [H] to [B, T, H, 1]."""
        B, T = self.value.shape[:2]
        return Bounded.exact(np.tile(np.asarray(values, dtype=np.float64)[:, None], (B, T, 1, 1)))

    def interleave(self, *others: Bounded) -> Bounded:
        """Micro-steps: one token of each in turn; [B, T, H, D] each, [B, T * parts, H, D] together."""
        parts = (self, *others)
        value = np.stack([part.value.astype(np.float64, copy=False) for part in parts], axis=2)
        error = np.stack([part.error for part in parts], axis=2)
        B, T, n, H, D = value.shape
        return Bounded(value.reshape(B, T * n, H, D), error.reshape(B, T * n, H))

    def square_sum(self) -> Bounded:
        """|x|^2 of each row, as rows of one."""
        value = _square_sums(self.value)
        norm = np.sqrt(value) * (1.0 + (self.value.shape[-1] + 8) * U) + self.value.shape[-1] * FLOOR
        error = (2.0 * norm + self.error) * self.error + (self.value.shape[-1] + 8) * U * value + TINY
        return Bounded(value[..., None], error * UP)

    def relative(self) -> Bounded:
        """The same values with their error *relative* to the smallest of a row: what `Delta.a` holds."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a value of 0 has no relative bound
            error = np.where(self.error == 0.0, 0.0, self.error / np.abs(self.value).min(axis=-1) * UP)
        return Bounded(self.value, error)

    def decay(self) -> Bounded:
        """exp of a log decay, its error *relative* and the largest of a row: what `Delta.a` holds. Where the log is
        exactly 0 nothing decays, without error."""
        value = apply(elementwise.exp, self.value)
        still = ((self.value == 0.0).all(axis=-1)) & (self.error == 0.0)
        with np.errstate(over="ignore"):
            relative = np.where(still, 0.0, np.expm1(self.error * UP) * UP + 2 * U)
        return Bounded(value, relative * UP)

    def decay_first(self, micro: int) -> Bounded:
        """`decay` at the first micro-step of every token, and none at the others."""
        a = self.decay()
        return a.interleave(*[a.filled(1.0)] * (micro - 1))

    def unfold(self, channels: int) -> Bounded:
        """Back from `fold`: [B, T, H * D, 1] to [B, T, H, D]."""
        B, T, heads, _ = self.value.shape
        shape = (B, T, heads // channels, channels)
        return self if channels == 1 else Bounded(self.value.reshape(shape), row_norm(self.error.reshape(shape)) * UP)


def _width(whole: Array, part: Array) -> float:
    """What broadcasting one number over a row does to the Euclidean norm of its error."""
    return float(np.sqrt(whole.shape[-1] / part.shape[-1])) * UP


def _sum(x: Bounded, y: Bounded, value: Array) -> Bounded:
    error = x.error * _width(value, x.value) + y.error * _width(value, y.value) + U * row_norm(value)
    return Bounded(value, error * UP)
