"""The exact learner's job: lowered inputs as the kernel takes them, and tasks over (sequence, value head)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event, local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..kernels import delta as columns
from ..kernels import mesa as kernel
from ..kernels import spd
from ..numbers.bounded import Bounded
from ..spec import Mesa
from . import delta
from .delta import aligned, certain
from .plan import Plan, plan
from .prepare import scale_of
from .problem import Problem
from .solution import Answer

SOLVERS = {"exact": kernel.EXACT, "cg": kernel.CG, "chebyshev": kernel.CHEBYSHEV}
LEAST = 2.0**-20  # a start may be short of semidefinite by so much of its trace: what rounding to float32 leaves
APART = "rigorous (residual and running bound): the distance from the exact solution, not from so many exact steps"
CERTIFICATES = {
    "exact": "rigorous (residual and running bound)",
    "cg": APART,
    "chebyshev": APART,
}
Array = NDArray[Any]


def operands(x: Mesa) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """q k v b a m in C order, vectors in one float type and the rest in float64, and the errors of each."""
    none = Bounded(np.zeros((0, 0, 1, 1)), np.zeros((0, 0, 1)))
    vectors = (x.q, x.k, x.v)
    kind = np.dtype(np.float32 if all(y.value.dtype == np.float32 for y in vectors) else np.float64)
    rest = (x.b, x.a, none if x.mix is None else x.mix)
    arrays = (
        *(np.ascontiguousarray(y.value, kind) for y in vectors),
        *(np.ascontiguousarray(y.value, np.float64) for y in rest),
    )
    return arrays, tuple(np.ascontiguousarray(y.error) for y in (*vectors, *rest))


class Job:
    """One problem under way: its operands, its outputs, and the tasks that fill them."""

    def __init__(self, p: Problem, x: Mesa, threads: int | None) -> None:
        self.p, self.x = p, x
        self.arrays, self.errors = operands(x)
        self.dtype = np.dtype(np.float32 if p.precision == "float32" else np.float64)
        q, _, v, *_ = self.arrays
        B, T = q.shape[:2]
        self.K, self.heads, self.columns = q.shape[3], v.shape[2], v.shape[3]
        self.lanes = spd.lanes(self.dtype)
        self.plan: Plan = plan(p, self.heads, 1, self.lanes, threads)
        self.constants = columns.constants(*scale_of(p), self.K, self.dtype)
        N = len(p.segments)
        self.o = np.empty((B, T, self.heads, self.columns), self.dtype)
        self.bound = np.zeros((B, self.heads, T), self.dtype)
        sizes = (self.K, self.columns)
        self.final = tuple(np.empty((N, self.heads, self.K, n), self.dtype) for n in sizes)
        self.final_bound = tuple(np.empty((N, self.heads, n), self.dtype) for n in sizes)
        self.states = tuple(np.empty((len(p.states_at), *f.shape), self.dtype) for f in self.final)
        self.short = np.zeros((N, self.heads))
        if p.initial[0] is not None:
            for n, h in np.ndindex(self.short.shape):
                self.short[n, h] = shortfall(p.initial[0][n, h], (n, h))
        self.room = local()

    def tasks(self) -> Iterator[tuple[int, int]]:
        """(sequence, head), longest sequences first."""
        order = sorted(range(len(self.p.segments)), key=lambda n: self.p.segments[n][1] - self.p.segments[n][2])
        return ((n, h) for n in order for h in range(self.heads))

    def scratch(self) -> tuple[Array, ...]:
        """This thread's room: nothing in it grows with the tokens."""
        if not hasattr(self.room, "arrays"):
            L, rows = self.lanes, -(-self.K // 4) * 4
            P, tile = -(-self.K // L) * L, columns.lanes(self.dtype)
            shapes = [(L, P)] * 4 + [(L,), (L, L)] + [(spd.panels(self.K, L),)] * 2 + [(rows * L,)] * 5
            shapes += [(3, L), (L, kernel.SLOTS), *[(L, tile)] * 3]
            self.room.arrays = tuple(aligned(shape, self.dtype) for shape in shapes)
        arrays: tuple[Array, ...] = self.room.arrays
        return arrays

    def memory(self, n: int, h: int) -> tuple[Array, ...]:
        """The memory of one head at its start, and the bounds that run with it."""
        K, u = self.K, float(self.constants[2])
        tile = columns.lanes(self.dtype)
        tiles = -(-self.columns // tile)
        H, track = aligned((K, -(-K // self.lanes) * self.lanes), self.dtype), np.zeros(3)
        S = aligned((tiles, K, tile), self.dtype)
        N, E, fed, left = (aligned((tiles, tile), self.dtype) for _ in range(4))
        keys, values = self.p.initial
        if keys is not None:
            H[:, :K] = keys[n, h]
            norm = float(np.sqrt(np.square(H.astype(np.float64)).sum())) * (1 + K * K * 2.0**-52) + K * 2.0**-500
            track[:] = norm, norm * u * (keys.itemsize > self.dtype.itemsize), self.short[n, h]
        if values is not None:
            part = np.ascontiguousarray(values[n, h])
            cast = self.constants[2] * (part.itemsize > self.dtype.itemsize)
            columns.enter(part, S, N, E, self.constants[4], self.constants[6], cast)
            left[:] = N + E
        return H, track, S, N, E, fed, left

    def read(self, memory: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        """h_kk and h_kv as they stand, and the bound on each column of the second."""
        H, _, S, _, E, *_ = memory
        lower = np.tril(H[:, : self.K])
        values, wrong = np.empty((self.K, self.columns), self.dtype), np.empty(self.columns, self.dtype)
        columns.leave(S, E, values, wrong)
        return lower + np.tril(lower, -1).T, values, wrong

    def arguments(self, h: int) -> tuple[Any, ...]:
        """What the kernel takes of one head besides its memory."""
        heads = tuple(h // (self.heads // x.shape[2]) if x.size else 0 for x in self.arrays)
        exact = self.x.lamb.value[0, 0, h]
        lamb = np.repeat(exact.astype(self.dtype)[:, None], self.lanes, axis=1)
        wrong = float(np.abs(lamb[:, 0].astype(np.float64) - exact).max())
        share = float(exact[0]) * (1 + 2.0**-20) if self.x.share else 0.0
        ridge = (np.ascontiguousarray(lamb), float(exact.min()), float(exact.max()) + wrong, wrong, share)
        solver = SOLVERS[self.x.solver] + (self.x.solver == "cg" and self.x.start == "diagonal")
        number = self.x.omega if self.x.solver == "chebyshev" else self.x.eps
        rule = (solver, self.x.iterations, self.dtype.type(number))
        return heads, self.arrays, self.errors, ridge, rule, self.constants

    def run(self, task: tuple[int, int], stop: Event, done: Callable[[int], None]) -> None:
        """One task from the initial to the final state."""
        n, h = task
        row, t0, t1 = self.p.segments[n]
        memory, given = self.memory(n, h), self.arguments(h)
        stops = sorted({t0, t1, *(t0 + t for t in self.p.states_at), *range(t0, t1, delta.SPAN)})
        for i, t in enumerate(stops):
            if stop.is_set():
                return
            at_t = [j for j, after in enumerate(self.p.states_at) if t0 + after == t]
            if at_t:
                for states, value in zip(self.states, self.read(memory)[:2], strict=True):
                    states[at_t, n, h] = value
            if t == t1:
                break
            self.advance((row, t, stops[i + 1]), given, memory, self.bound[row, h])
            done(stops[i + 1] - t)
        self.leave(n, h, memory)

    def advance(self, where: tuple[int, ...], given: tuple[Any, ...], memory: tuple[Array, ...], bound: Array) -> None:
        """One head through some tokens."""
        kernel.run(where, *given, memory, self.o, bound, self.scratch(), np.empty((0, self.K), self.dtype))

    def leave(self, n: int, h: int, memory: tuple[Array, ...]) -> None:
        """The final states of a head."""
        self.final[0][n, h], self.final[1][n, h], self.final_bound[1][n, h] = self.read(memory)
        self.final_bound[0][n, h] = memory[1][1] * (1 + 4 * float(self.constants[2]))

    def compile(self) -> None:
        """Have the kernel compiled here, where Ctrl-C is heard, by asking it for no tokens."""
        if self.heads and self.p.segments:
            self.advance((0, 0, 0), self.arguments(0), self.memory(0, 0), np.zeros(0, self.dtype))

    @property
    def work(self) -> int:
        return int(sum(t1 - t0 for _, t0, t1 in self.p.segments) * self.heads)

    def answer(self) -> Answer:
        o_bound = certain(self.bound.transpose(0, 2, 1), True)  # what is read is part of its own bound
        final = tuple(certain(b, np.isfinite(f).all(axis=2)) for b, f in zip(self.final_bound, self.final, strict=True))
        return Answer(self.o, o_bound, self.final, final, self.states, CERTIFICATES[self.x.solver])


def shortfall(h: Array, where: tuple[int, int]) -> float:
    """How far below 0 an eigenvalue of an initial h_kk can be, or a refusal: what `nearly_semidefinite` can prove."""
    at = f"initial_state.h_kk[{where[0]}, {where[1]}]"
    h = np.ascontiguousarray(h, np.float64)
    if not np.isfinite(h).all():
        return float("inf")
    apart = np.argwhere(h != h.T)
    if len(apart):
        i, j = apart[0]
        raise InputError(
            f"{at} is {float(h[i, j])!r} at [{i}, {j}] but {float(h[j, i])!r} at [{j}, {i}]; it must be symmetric, "
            "such as (h_kk + h_kk') / 2."
        )
    K, trace = len(h), float(np.trace(h))
    if not h.any():
        return 0.0
    rounding = 4 * (K + 8) * 2.0**-53
    A, F = (np.zeros(spd.panels(K, 8)) for _ in range(2))
    by = rounding * trace
    while 0 < by <= max(LEAST, 2 * rounding) * trace:
        if kernel.nearly_semidefinite(h, by, A, F):
            return (by + rounding * (trace + K * by)) * (1 + 2.0**-20)
        by *= 4
    worst = float(np.linalg.eigvalsh(h)[0])
    raise InputError(f"{at} has the eigenvalue {worst:.3g}; it must be positive semidefinite.")
