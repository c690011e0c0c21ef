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
        error = error + U * row_norm(value) + TINY
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

    def unfold(self, channels: int) -> Bounded:
        """Back from `fold`: [B, T, H * D, 1] to [B, T, H, D]."""
        B, T, heads, _ = self.value.shape
        shape = (B, T, heads // channels, channels)
        return self if channels == 1 else Bounded(self.value.reshape(shape), row_norm(self.error.reshape(shape)) * UP)


def interleave(*parts: Bounded) -> Bounded:
    """Micro-steps: one token of each part in turn; [B, T, H, D] each, [B, T * parts, H, D] together."""
    value = np.stack([part.value.astype(np.float64, copy=False) for part in parts], axis=2)
    error = np.stack([part.error for part in parts], axis=2)
    B, T, n, H, D = value.shape
    return Bounded(value.reshape(B, T * n, H, D), error.reshape(B, T * n, H))


def low_rank(a: Bounded, b: Bounded, k: Bounded, v: Bounded) -> tuple[Bounded, Bounded, Bounded]:
    """b (a' S) + k v' as two micro-steps that predict before the decay, S <- S~ + b (0 + a' S) and S <- S + k v':
    their k, e, v."""
    return interleave(b, k), interleave(-a, a.filled(0.0)), interleave(v.filled(0.0), v)


def every_token(value: Array, error: Array, B: int, T: int) -> Bounded:
    """One number a head, and its bound, the same at every token: [H] to [B, T, H, 1]."""
    return Bounded(np.tile(value[:, None], (B, T, 1, 1)), np.tile(error, (B, T, 1)))


def square_sum(x: Bounded) -> Bounded:
    """|x|^2 of each row, as rows of one."""
    value = _square_sums(x.value)
    norm = np.sqrt(value) * (1.0 + (x.value.shape[-1] + 8) * U) + x.value.shape[-1] * FLOOR
    error = (2.0 * norm + x.error) * x.error + (x.value.shape[-1] + 8) * U * value + TINY
    return Bounded(value[..., None], error * UP)


def sigmoid(x: Bounded) -> Bounded:
    """1 / (1 + e^-x); its slope is at most 1/4."""
    value = apply(elementwise.sigmoid, x.value)
    return Bounded(value, (0.25 * x.error + 2 * U * row_norm(value) + TINY) * UP)


def decay(g: Bounded) -> Bounded:
    """exp(g), its error *relative* and the largest of a row: what `Delta.a` holds. Where g is exactly 0 nothing
    decays, without error."""
    value = apply(elementwise.exp, g.value)
    still = ((g.value == 0.0).all(axis=-1)) & (g.error == 0.0)
    with np.errstate(over="ignore"):
        relative = np.where(still, 0.0, np.expm1(g.error * UP) * UP + 2 * U)
    return Bounded(value, relative * UP)


def decay_first(g: Bounded, micro: int) -> Bounded:
    """`decay` at the first micro-step of every token, and none at the others."""
    a = decay(g)
    return interleave(a, *[a.filled(1.0)] * (micro - 1))


def _width(whole: Array, part: Array) -> float:
    """What broadcasting one number over a row does to the Euclidean norm of its error."""
    return float(np.sqrt(whole.shape[-1] / part.shape[-1])) * UP


def _sum(x: Bounded, y: Bounded, value: Array) -> Bounded:
    error = x.error * _width(value, x.value) + y.error * _width(value, y.value) + U * row_norm(value)
    return Bounded(value, error * UP)
