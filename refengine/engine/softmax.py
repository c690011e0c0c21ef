"""Softmax attention's job: tasks over (sequence, query head, block of queries)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event, local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import delta as columns
from ..kernels import softmax as kernel
from ..spec import Softmax
from .delta import aligned, certain
from .plan import Plan, available_cores
from .prepare import scale_of
from .problem import Problem
from .solution import Answer

BLOCK = 256  # queries a task: their keys are packed once
Array = NDArray[Any]


class Job:
    """One problem under way: its operands, its outputs, and the tasks that fill them."""

    def __init__(self, p: Problem, x: Softmax, threads: int | None) -> None:
        self.p = p
        self.dtype = np.dtype(np.float32 if p.precision == "float32" else np.float64)
        operands = (x.q, x.k, x.v)
        kind = np.dtype(np.float32 if all(y.value.dtype == np.float32 for y in operands) else np.float64)
        self.arrays = tuple(np.ascontiguousarray(y.value, kind) for y in operands)
        self.errors = tuple(np.ascontiguousarray(y.error) for y in operands)
        q, k, v = self.arrays
        self.heads, self.shared = q.shape[2], q.shape[2] // k.shape[2]
        self.constants = columns.constants(*scale_of(p), q.shape[3], self.dtype)
        self.o = np.empty((*q.shape[:3], v.shape[3]), self.dtype)
        self.bound = np.zeros((q.shape[0], self.heads, q.shape[1]), self.dtype)
        self.lanes = columns.lanes(self.dtype)
        why = "every query reads all keys before it: nothing is compressed, and the cost grows with T squared"
        tasks = sum(1 for _ in self.tasks())
        used = max(1, min(threads or available_cores(), tasks))
        self.plan = Plan("direct", why, used, 1, self.lanes, tasks)
        self.room = local()

    def tasks(self) -> Iterator[tuple[int, int, int, int]]:
        """(sequence, head, first query, one past the last); the longest histories first."""
        cuts = [(t1 - t, n, t, t1) for n, (_, t0, t1) in enumerate(self.p.segments) for t in range(t0, t1, BLOCK)]
        return ((n, h, t, min(t + BLOCK, t1)) for _, n, t, t1 in sorted(cuts) for h in range(self.heads))

    def scratch(self) -> tuple[Array, ...]:
        """This thread's room, for the longest sequence."""
        if not hasattr(self.room, "arrays"):
            K, V, L = self.arrays[1].shape[3], self.arrays[2].shape[3], self.lanes
            T, width = (-(-n // L) * L for n in (max((t1 - t0 for _, t0, t1 in self.p.segments), default=0), V))
            shapes = ((K,), (K, T), (T, width), (T // L, L), (width,))
            facts = np.zeros((T, kernel.FACTS))
            self.room.arrays = (*(aligned(shape, self.dtype) for shape in shapes), facts)
        arrays: tuple[Array, ...] = self.room.arrays
        return arrays

    def attend(self, place: tuple[int, int, int, int], h: int) -> None:
        arrays = (*self.arrays, *self.errors, self.o)
        kernel.run(place, (h, h // self.shared), *arrays, self.bound[place[0], h], self.constants, self.scratch())

    def run(self, task: tuple[int, int, int, int], stop: Event, done: Callable[[int], None]) -> None:
        n, h, low, high = task
        if not stop.is_set():
            row, t0, _ = self.p.segments[n]
            self.attend((row, t0, low, high), h)
            done((high - low) * (low + high - 2 * t0))

    def compile(self) -> None:
        """Have the kernel compiled here, where Ctrl-C is heard, by asking it for no queries."""
        if self.heads and self.p.segments:
            self.attend((0, 0, 0, 0), 0)

    @property
    def work(self) -> int:
        pairs = sum((t1 - t0) ** 2 for _, t0, t1 in self.p.segments)
        return int(pairs * self.heads)

    def answer(self) -> Answer:
        bound = certain(self.bound.transpose(0, 2, 1), np.isfinite(self.o).all(axis=3))
        return Answer(self.o, bound, (), (), (), "rigorous (running bound)")
