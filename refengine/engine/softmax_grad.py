"""Softmax attention's adjoint: a task for every sequence and value head, twice, to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import softmax_grad as kernel
from ..numbers.bounded import Bounded, U, row_norm
from ..spec import Softmax
from .plan import Plan, plan
from .prepare import scale_of
from .problem import Problem
from .run import Progress, run_all
from .solution import Cotangents

Array = NDArray[Any]


class Adjoint:
    """One problem's adjoint under way in one float type, its channels in order or reversed."""

    def __init__(self, p: Problem, x: Softmax, do: Array, dtype: Any, way: int, threads: int | None) -> None:
        self.p, self.way, self.dtype = p, way, np.dtype(dtype)
        self.arrays = tuple(np.ascontiguousarray(y.value[..., ::way], self.dtype) for y in (x.q, x.k, x.v))
        self.do = np.ascontiguousarray(do[..., ::way], self.dtype)
        B, T, self.heads, _ = self.arrays[0].shape
        self.found = tuple(np.zeros((B, T, self.heads, y.shape[3]), self.dtype) for y in self.arrays)
        self.scale = self.dtype.type(scale_of(p)[0])
        self.plan: Plan = plan(p, self.heads, 1, 1, threads)

    @property
    def work(self) -> int:
        return int(sum(t1 - t0 for _, t0, t1 in self.p.segments) * self.heads)

    def tasks(self) -> Iterator[tuple[tuple[int, int, int], int]]:
        """(row and tokens, head), longest sequences first."""
        order = sorted(self.p.segments, key=lambda segment: segment[1] - segment[2])
        return ((segment, h) for segment in order for h in range(self.heads))

    def run(self, task: tuple[tuple[int, int, int], int], stop: Event, done: Callable[[int], None]) -> None:
        place, h = task
        if not stop.is_set():
            heads = (*(h // (self.heads // y.shape[2]) for y in self.arrays), h)
            room = np.empty((2, place[2] - place[1]), self.dtype)
            kernel.back(place, heads, *self.arrays, self.do, self.scale, room, *self.found)
            done(place[2] - place[1])

    def compile(self) -> None:
        if self.heads and self.p.segments:
            self.run(((0, 0, 0), 0), Event(), lambda work: None)


def adjoint(
    p: Problem, x: Softmax, do: Array, dfinal: tuple[Array | None, ...], threads: int | None, progress: Progress | None
) -> Cotangents:
    """What a loss owes to q, k and v: in float64 twice, the second time with all channels in reverse; in float32 once,
    against float64."""
    roads = ((p.precision, 1), ("float64", 1 if p.precision == "float32" else -1))
    first, second = (Adjoint(p, x, do, dtype, way, threads) for dtype, way in roads)
    run_all(first, progress and (lambda n, _: progress(n, 2 * first.work)))
    run_all(second, progress and (lambda n, _: progress(first.work + n, 2 * first.work)))
    owed = {}
    for name, one, other in zip("qkv", first.found, second.found, strict=True):
        value = one.astype(np.float64)
        apart = row_norm(value - other[..., :: second.way]) + U * row_norm(value)
        owed[name] = Bounded(value, apart).gathered(getattr(x, name).value.shape[2])
    said = "compared (with float64)" if p.precision == "float32" else "compared (with the channels in reverse order)"
    return Cotangents(owed, {}, (), (), said, (first.plan,))
