"""Arrays with a rigorous bound on their own error: what the front end hands to a kernel.

A `Bounded` holds float64 values [B, T, H, D] and, for each row of D channels, a bound on the Euclidean norm of the
error (so also on every entry). Arithmetic rounds once an operation, in the same way on every machine, and carries the
bound along. With u = 2^-53 and hats for computed values:

    |x^ y^ - x y|         <= max|x^| |dy| + max|y^| |dx| + |dx| |dy| + u |x^ y^|
    |x^ +- y^ - (x +- y)| <= |dx| + |dy| + u |x^ +- y^|

Every bound is multiplied by UP, more than the roundings of its own evaluation; TINY and FLOOR cover underflow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

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


def _column_sums(x: Array) -> tuple[Array, Array]:
    """Sums along the first axis, and the sums of sizes."""
    flat = np.ascontiguousarray(x, dtype=np.float64).reshape(len(x), -1 if x.size else int(np.prod(x.shape[1:])))
    value, size = np.empty(flat.shape[1]), np.empty(flat.shape[1])
    elementwise.column_sums(flat, value, size)
    return value.reshape(x.shape[1:]), size.reshape(x.shape[1:])


def apply(function: Any, x: NDArray[Any]) -> Array:
    """An elementwise kernel on an array of any shape, float64 out."""
    flat = np.ascontiguousarray(x, dtype=np.float64).ravel()
    y = np.empty_like(flat)
    function(flat, y)
    return y.reshape(x.shape)


Parts = tuple[Array, ...]


@dataclass(frozen=True)
class Bounded:
    """`value` [B, T, H, D] and `error` [B, T, H]: |value - exact| of a row is at most `error` (Euclidean)."""

    value: Array
    error: Array

    unit: ClassVar[float] = U  # what one operation may err by, relative to its result
    elementary: ClassVar[float] = 2 * U  # and one elementary function

    @classmethod
    def exact(cls, value: NDArray[Any]) -> Self:
        return cls.of((value,), np.zeros(value.shape[:-1]))

    # What another kind of number does otherwise: its parts, and arithmetic on them.

    @property
    def parts(self) -> Parts:
        return (self.value,)

    @classmethod
    def of(cls, parts: Parts, error: Array) -> Self:
        return cls(parts[0], error)

    @staticmethod
    def product(x: Parts, y: Parts) -> Parts:
        return (x[0].astype(np.float64, copy=False) * y[0],)

    @staticmethod
    def sum(x: Parts, y: Parts) -> Parts:
        return (x[0].astype(np.float64, copy=False) + y[0],)

    @staticmethod
    def quotient(x: Parts, y: Parts) -> Parts:
        return (x[0].astype(np.float64, copy=False) / y[0],)

    @staticmethod
    def squares(x: Parts) -> Parts:
        return (_square_sums(x[0]),)

    @staticmethod
    def exponential(x: Parts) -> Parts:
        return (apply(elementwise.exp, x[0]),)

    def shaped(self, change: Callable[..., Any], error: Array, *others: Self) -> Self:
        """A change of shape, on each part of `self` and of the others together."""
        return self.of(tuple(change(*each) for each in zip(*(x.parts for x in (self, *others)), strict=True)), error)

    # Where it came from: numbers/traced.py.

    @property
    def plain(self) -> Self:
        """The number alone."""
        return self

    def derive(self, number: Any, pull: Any, *others: Any) -> Any:
        """What was computed from this; a `Traced` remembers `pull`, the step's transpose."""
        return number

    # Arithmetic, each with its bound.

    def __mul__(self, other: Self) -> Self:
        parts = self.product(self.parts, other.parts)
        value = parts[0]
        mine = row_max(other.value) * self.error * _width(value, self.value)
        theirs = row_max(self.value) * other.error * _width(value, other.value)
        both = self.error * other.error * _width(value, self.value) * _width(value, other.value)
        return self.of(parts, (mine + theirs + both + self.unit * row_norm(value) + TINY) * UP)

    def __add__(self, other: Self) -> Self:
        parts = self.sum(self.parts, other.parts)
        value = parts[0]
        carried = self.error * _width(value, self.value) + other.error * _width(value, other.value)
        return self.of(parts, (carried + self.unit * row_norm(value)) * UP)

    def __sub__(self, other: Self) -> Self:
        return self + -other

    def __truediv__(self, other: Self) -> Self:
        """Row over one number a row; nothing is known where that might be zero."""
        parts = self.quotient(self.parts, other.parts)
        size = row_norm(parts[0])
        below = np.abs(other.value[..., 0]) / UP - other.error
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(below > 0, (self.error + size * other.error) / below, np.inf)
        nothing = (self.error == 0.0) & (row_max(self.value) == 0.0) & (below > 0)
        error = np.where(nothing, 0.0, error + self.unit * size + TINY)
        return self.of(parts, error * UP)

    def __neg__(self) -> Self:
        return self.of(tuple(-part for part in self.parts), self.error)

    def square_sum(self) -> Self:
        """|x|^2 of each row, as rows of one."""
        parts = self.squares(self.parts)
        D = self.value.shape[-1]
        norm = np.sqrt(parts[0]) * (1.0 + (D + 8) * U) + D * FLOOR
        error = (2.0 * norm + self.error) * self.error + (D + 8) * self.unit * parts[0] + TINY
        return self.of(tuple(part[..., None] for part in parts), error * UP)

    def relative(self) -> Self:
        """The same values with their error *relative* to the smallest of a row: what `Delta.a` holds."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a value of 0 has no relative bound
            error = np.where(self.error == 0.0, 0.0, self.error / np.abs(self.value).min(axis=-1) * UP)
        return self.of(self.parts, error)

    def decay(self) -> Self:
        """exp of a log decay, its error *relative* and the largest of a row: what `Delta.a` holds. Where the log is
        exactly 0 nothing decays, without error."""
        still = ((self.value == 0.0).all(axis=-1)) & (self.error == 0.0)
        with np.errstate(over="ignore"):
            relative = np.where(still, 0.0, np.expm1(self.error * UP) * UP + self.elementary)
        return self.of(self.exponential(self.parts), relative * UP)

    def decay_first(self, micro: int) -> Self:
        """`decay` at the first micro-step of every token, and none at the others."""
        a = self.decay()
        return a.interleave(*[a.filled(1.0)] * (micro - 1))

    # Shapes.

    def filled(self, number: float) -> Self:
        """That number everywhere, exactly."""
        return self.exact(np.full(self.value.shape, number))

    def per_head(self, values: NDArray[Any]) -> Self:
        """One exact number a head, the same at every token of `self`: [H] to [B, T, H, 1]."""
        B, T = self.value.shape[:2]
        return self.exact(np.tile(np.asarray(values, dtype=np.float64)[:, None], (B, T, 1, 1)))

    def heads(self, count: int) -> Self:
        """Every head repeated for the value heads that share it."""
        times = count // self.value.shape[2]
        return (
            self if times == 1 else self.shaped(lambda x: np.repeat(x, times, axis=2), np.repeat(self.error, times, 2))
        )

    def fold(self) -> Self:
        """Every channel a head of its own: [B, T, H, D] to [B, T, H * D, 1]."""
        B, T, H, D = self.value.shape
        return self.shaped(lambda x: x.reshape(B, T, H * D, 1), np.repeat(self.error, D, axis=2))

    def unfold(self, channels: int) -> Self:
        """Back from `fold`: [B, T, H * D, 1] to [B, T, H, D]."""
        B, T, heads, _ = self.value.shape
        shape = (B, T, heads // channels, channels)
        if channels == 1:
            return self
        return self.shaped(lambda x: x.reshape(shape), row_norm(self.error.reshape(shape)) * UP)

    def interleave(self, *others: Self) -> Self:
        """Micro-steps: one token of each in turn; [B, T, H, D] each, [B, T * parts, H, D] together."""
        B, T, H, D = self.value.shape
        n = 1 + len(others)
        error = np.stack([self.error, *(x.error for x in others)], axis=2).reshape(B, T * n, H)
        return self.shaped(lambda *x: np.stack(x, axis=2).reshape(B, T * n, H, D), error, *others)

    # Transposes of the above, of float64 numbers.

    def absolute(self) -> Bounded:
        """Back from `relative` and `decay`: the same values with their error absolute."""
        return Bounded(self.value, self.error * row_norm(self.value) * UP)

    def every(self, n: int, first: int) -> Bounded:
        """Each n-th token from `first` on: one part of what `interleave` put together."""
        return Bounded(self.value[:, first::n], self.error[:, first::n])

    def gathered(self, count: int) -> Bounded:
        """The transpose of `heads`: the sum over those that share a head, in order."""
        B, T, H, D = self.value.shape
        times = H // count
        parts = self.value.reshape(B, T, count, times, D), self.error.reshape(B, T, count, times)
        total = Bounded(parts[0][:, :, :, 0], parts[1][:, :, :, 0])
        for i in range(1, times):
            total = total + Bounded(parts[0][:, :, :, i], parts[1][:, :, :, i])
        return total

    def summed(self, like: Bounded) -> Bounded:
        """The transpose of broadcasting: the sum over every axis along which `like` has one number for many."""
        x, whole = self, self.value.shape
        for axis in range(len(whole) - 1):
            if like.value.shape[axis] != whole[axis]:
                x = x.along(axis)
        return x.row_sum() if like.value.shape[-1] != whole[-1] else x

    def row_sum(self) -> Bounded:
        """The sum of each row, as rows of one."""
        D = self.value.shape[-1]
        value, size = _column_sums(np.moveaxis(self.value, -1, 0))
        error = np.sqrt(D) * self.error + U * np.abs(value) + (D * U) ** 2 * size + TINY
        return Bounded(value[..., None], error * UP)

    def along(self, axis: int) -> Bounded:
        """The sum along one axis that is not the channels', which is kept with one entry."""
        N = self.value.shape[axis]
        value, size = _column_sums(np.moveaxis(self.value, axis, 0))
        error = self.error.sum(axis=axis) * (1 + 2 * N * U) + U * row_norm(value) + (N * U) ** 2 * row_norm(size) + TINY
        return Bounded(np.expand_dims(value, axis), np.expand_dims(error, axis) * UP)

    def plus(self, other: Bounded, at: int) -> Bounded:
        """With `other` added from entry `at` of the first axis on."""
        value, error, to = self.value.copy(), self.error.copy(), slice(at, at + len(other.value))
        part = Bounded(value[to], error[to]) + other
        value[to], error[to] = part.value, part.error
        return Bounded(value, error)


def _width(whole: Array, part: Array) -> float:
    """What broadcasting one number over a row does to the Euclidean norm of its error."""
    return float(np.sqrt(whole.shape[-1] / part.shape[-1])) * UP
