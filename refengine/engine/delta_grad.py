"""The delta family's adjoint: two jobs, the sweeps over columns and then those over rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from threading import Event, local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import delta as state_kernel
from ..kernels import delta_grad as kernel
from ..kernels import delta_grad_bound as bound
from ..kernels._simd import BLOCK
from ..kernels.delta import ERASE, ERASE_IS_KEY, lanes
from ..numbers.bounded import Bounded
from ..numbers.traced import Traced
from ..spec import Delta
from .delta import SPAN, Operands, aligned, unfolded
from .plan import Plan, plan
from .prepare import scale_of
from .problem import Problem
from .run import Progress, run_all
from .solution import Cotangents

Array = NDArray[Any]
Task = tuple[int, ...]


class Adjoint:
    """One problem's adjoint under way: its operands, and what the sweeps leave for one another."""

    def __init__(self, p: Problem, x: Delta, do: Array, dfinal: Array | None) -> None:
        self.p = p
        self.operands = Operands.of(x)
        self.dtype = np.dtype(p.precision)
        q, k, e, a, v, b = self.operands.arrays
        B, T = q.shape[:2]
        self.K, self.heads, self.columns, M = k.shape[3], v.shape[2], v.shape[3], v.shape[1]
        self.micro, self.erase = self.operands.micro, self.operands.erase
        self.decays = x.a is not None
        self.constants = state_kernel.constants(*scale_of(p), self.K, self.dtype)
        self.errors = self.operands.errors
        self.do = np.ascontiguousarray(do.reshape(B, T, self.heads, self.columns), dtype=self.dtype)
        self.end = folded(dfinal, x.folded)
        self.start = folded(p.initial_state, x.folded)
        self.u, self.w = (np.empty((B, self.heads, M, self.columns), self.dtype) for _ in range(2))
        self.initial = np.zeros((len(p.segments), self.heads, self.K, self.columns), self.dtype)
        self.initial_wrong = np.zeros((len(p.segments), self.heads, self.columns))
        windows = [-(-(t1 - t0) * self.micro // kernel.WINDOW) for _, t0, t1 in p.segments]
        self.marks = [np.empty((self.heads, n, self.K, self.columns), self.dtype) for n in windows]
        self.squares = [np.empty((2, self.heads, n, self.columns), self.dtype) for n in windows]
        self.wrong = np.zeros((B, self.heads, bound.SUMS, M))
        rows = self.K if a.shape[3] > 1 else -(-self.K // 4)
        self.dq, self.dk, self.dv, self.db, self.db_size = (np.empty(y.shape, self.dtype) for y in (q, k, v, b, b))
        self.de = np.empty(e.shape if self.erase == ERASE else (1, 1, 1, 1), self.dtype)
        self.da, self.da_size = (
            np.empty((*a.shape[:3], rows) if self.decays else (1, 1, 1, 1), self.dtype) for _ in range(2)
        )

    @property
    def rule(self) -> tuple[int, bool, int]:
        return self.micro, self.operands.pre, self.erase

    @property
    def gammas(self) -> tuple[Any, ...]:
        """Roundings of a sum over columns, over columns and rows, and in db, each with those of adding value heads."""
        u, members = float(self.constants[2]), self.heads // min(y.shape[2] for y in self.operands.arrays[:5])
        along = self.columns // 4 + 8 + 3 * members
        in_b = self.columns // 4 + 8 if self.operands.arrays[5].shape[3] == 1 else 4
        return tuple(float(n * u * (1 + 4 * n * u)) for n in (along, along + self.K, in_b))

    def of_head(self, h: int) -> tuple[int, ...]:
        """Which head of q, k, e, a, v value head h reads."""
        return tuple(h // (self.heads // y.shape[2]) for y in self.operands.arrays[:5])

    def spans(self, n: int) -> list[tuple[int, int, int, int]]:
        """One sequence's micro-steps in spans that end between windows: (row, first of all, from, to)."""
        row, t0, t1 = self.p.segments[n]
        begin, end, step = t0 * self.micro, t1 * self.micro, -(-SPAN // kernel.WINDOW) * kernel.WINDOW
        return [(row, begin, t, min(t + step, end)) for t in range(begin, end, step)]

    def of_sequence(self, x: Array, n: int, h: int) -> Array:
        """u or w of one sequence and head."""
        row, t0, t1 = self.p.segments[n]
        return x[row, h, t0 * self.micro : t1 * self.micro]

    def longest_first(self) -> list[int]:
        return sorted(range(len(self.p.segments)), key=lambda n: self.p.segments[n][1] - self.p.segments[n][2])

    def forget(self) -> None:
        """What only the sweeps needed."""
        del self.u, self.w, self.marks, self.squares

    @property
    def tokens(self) -> int:
        return int(sum(t1 - t0 for _, t0, t1 in self.p.segments))

    def cotangents(self, x: Delta, plans: tuple[Plan, ...]) -> Cotangents:
        """What the sweeps found, with its bound."""
        up = 1.0 + 64 * float(self.constants[2])
        sums = self.wrong.transpose(2, 0, 3, 1) * up  # [SUMS, B, M, heads]
        sums[bound.OF_K] += sums[bound.OF_E] * (self.erase == ERASE_IS_KEY)
        of_q = sums[bound.OF_Q][:, self.micro - 1 :: self.micro]
        owed = {"q": (self.dq, of_q), "k": (self.dk, sums[bound.OF_K]), "v": (self.dv, sums[bound.OF_V])}
        sizes = {}
        if self.erase == ERASE:
            owed["e"] = self.de, sums[bound.OF_E]
        if x.b is not None:
            owed["b"], sizes["b"] = (self.db, sums[bound.OF_B]), self.db_size
        if x.a is not None:
            channels = self.operands.arrays[3].shape[3]
            owed["a"] = summed(self.da, channels), sums[bound.OF_A]
            sizes["a"] = summed(self.da_size, channels)
        initial, initial_wrong = self.initial, self.initial_wrong
        if x.folded:
            HV, V = self.p.sizes["HV"], self.p.sizes["V"]
            initial, initial_wrong = unfolded(initial, HV, V), initial_wrong.reshape(-1, HV, V)
        return Cotangents(
            {name: of_group(y, off) for name, (y, off) in owed.items()},
            {name: y.astype(np.float64, copy=False) for name, y in sizes.items()},
            (initial,),
            (initial_wrong,),
            "rigorous (running bound)",
            plans,
        )


def of_group(x: Array, wrong: Array) -> Bounded:
    """What value heads [B, T, heads] owe together to the heads of x [B, T, *, D]."""
    B, T, heads, _ = x.shape
    together = wrong.reshape(B, T, heads, wrong.shape[2] // heads).sum(axis=3) * (1 + wrong.shape[2] * 2.0**-52)
    return Bounded(x.astype(np.float64, copy=False), np.where(np.isfinite(together), together, np.inf))


class Columns:
    """u and w, and the states at every window: `forth`, then `back`."""

    def __init__(self, adjoint: Adjoint, threads: int | None) -> None:
        self.of = adjoint
        self.lanes = lanes(adjoint.dtype)
        self.plan: Plan = plan(adjoint.p, adjoint.heads, adjoint.columns, self.lanes, threads)
        self.room = local()
        self.seconds_forth: list[float] = []

    @property
    def work(self) -> int:
        return int(2 * self.of.tokens * self.of.heads * self.of.columns)

    def tasks(self) -> Iterator[Task]:
        """(sequence, head, block)."""
        of = self.of
        return ((n, h, block) for n in of.longest_first() for h in range(of.heads) for block in range(self.plan.blocks))

    def scratch(self) -> tuple[Array, ...]:
        if not hasattr(self.room, "arrays"):
            W, d, L = kernel.WINDOW, self.of.dtype, self.lanes
            x = aligned((kernel.FRONT + 4 * W * self.of.K,), d)
            x[kernel.ONE] = 1
            tiles = -(-self.of.columns // L)
            self.room.arrays = (x, *(aligned((tiles, W, L), d) for _ in range(3)), aligned((W, L), d))
        arrays: tuple[Array, ...] = self.room.arrays
        return arrays

    def run(self, task: Task, stop: Event, done: Callable[[int], None]) -> None:
        n, h, block = task
        of = self.of
        tiles = -(-of.columns // self.lanes)
        left = tiles * block // self.plan.blocks
        count = tiles * (block + 1) // self.plan.blocks - left
        first, last = left * self.lanes, min((left + count) * self.lanes, of.columns)
        spans = of.spans(n)
        state = aligned((count, of.K, self.lanes), of.dtype)
        for given, sweep, order in ((of.start, self.forth, spans), (of.end, self.back, spans[::-1])):
            state[...] = 0
            if given is not None:
                kernel.enter(np.ascontiguousarray(given[n, h, :, first:last]), state)
            for span in order:
                if stop.is_set():
                    return
                sweep((*span, first), state, n, h)
                done((span[3] - span[2]) // of.micro * (last - first))
        of.initial[n, h, :, first:last] = state.transpose(1, 0, 2).reshape(of.K, -1)[:, : last - first]

    def forth(self, place: Task, state: Array, n: int, h: int) -> None:
        of = self.of
        found = (of.marks[n][h], of.squares[n][0, h], of.of_sequence(of.u, n, h))
        clock = time.perf_counter()
        kernel.forth(place, of.of_head(h), *of.operands.arrays[1:], state, *found, self.scratch(), of.rule)
        self.seconds_forth.append(time.perf_counter() - clock)

    def back(self, place: Task, state: Array, n: int, h: int) -> None:
        of = self.of
        q, k, e, a, _, b = of.operands.arrays
        found = (of.constants[0], state, of.of_sequence(of.w, n, h), of.squares[n][1, h])
        kernel.back(place, of.of_head(h), q, k, e, a, b, of.do, *found, self.scratch(), of.rule)

    def compile(self) -> None:
        if self.of.marks and self.of.heads:
            state = aligned((0, self.of.K, self.lanes), self.of.dtype)
            self.forth((0,) * 5, state, 0, 0)
            self.back((0,) * 5, state, 0, 0)


class Rows:
    """Everything else, by blocks of rows; the value heads that share a head of some operand in turn."""

    def __init__(self, adjoint: Adjoint, threads: int | None) -> None:
        self.of = adjoint
        self.lanes = BLOCK // adjoint.dtype.itemsize
        self.groups = min(y.shape[2] for y in adjoint.operands.arrays[: 4 if adjoint.decays else 3])
        self.plan: Plan = plan(adjoint.p, self.groups, adjoint.K, self.lanes, threads)
        self.room = local()

    @property
    def work(self) -> int:
        return int(self.of.tokens * self.of.heads * self.of.K)

    def tasks(self) -> Iterator[Task]:
        """(sequence, group, block)."""
        return (
            (n, group, block)
            for n in self.of.longest_first()
            for group in range(self.groups)
            for block in range(self.plan.blocks)
        )

    def scratch(self) -> tuple[Array, ...]:
        if not hasattr(self.room, "arrays"):
            W, V, L, d = kernel.WINDOW, self.of.columns, self.lanes, self.of.dtype
            P = -(-self.of.K // L) * L
            shapes = ((W + 1, 2 * -(-V // 4), L), (4, W, P), (3, W, V), (5, W, P), (L, L))
            self.room.arrays = tuple(aligned(shape, d) for shape in shapes)
        arrays: tuple[Array, ...] = self.room.arrays
        return arrays

    def run(self, task: Task, stop: Event, done: Callable[[int], None]) -> None:
        n, group, block = task
        of = self.of
        tiles = -(-of.K // self.lanes)
        top = tiles * block // self.plan.blocks
        count = tiles * (block + 1) // self.plan.blocks - top
        first, last = top * self.lanes, min((top + count) * self.lanes, of.K)
        members = of.heads // self.groups
        for h in range(group * members, (group + 1) * members):
            G = aligned((count, of.columns, self.lanes), of.dtype)
            if of.end is not None:
                kernel.enter(np.ascontiguousarray(of.end[n, h, first:last].T), G)
            for span in reversed(of.spans(n)):
                if stop.is_set():
                    return
                self.sweep((*span, first), h, G, n)
                done((span[3] - span[2]) // of.micro * (last - first))

    def sweep(self, place: Task, h: int, G: Array, n: int) -> None:
        of = self.of
        q, k, e, a, _, b = of.operands.arrays
        rule = (*of.rule, of.decays)
        more = tuple(h % (of.heads // y.shape[2]) > 0 for y in (q, k, e, a))
        known = (of.do, of.of_sequence(of.u, n, h), of.of_sequence(of.w, n, h), of.marks[n][h], of.constants[0], G)
        found = (of.dq, of.dk, of.de, of.da, of.da_size)
        kernel.rows(place, of.of_head(h), q, k, e, a, b, *known, *found, self.scratch(), rule, more)

    def compile(self) -> None:
        if self.of.marks and self.of.heads:
            self.sweep((0, 0, 0, 0, 0), 0, aligned((0, self.of.columns, self.lanes), self.of.dtype), 0)


class Across:
    """What needs all columns of a head and none of its states: dv, db, and the bound."""

    def __init__(self, adjoint: Adjoint, threads: int | None) -> None:
        self.of = adjoint
        self.plan: Plan = plan(adjoint.p, adjoint.heads, 1, lanes(adjoint.dtype), threads)

    @property
    def work(self) -> int:
        return int(self.of.tokens * self.of.heads)

    def tasks(self) -> Iterator[Task]:
        """(sequence, head)."""
        return ((n, h) for n in self.of.longest_first() for h in range(self.of.heads))

    def run(self, task: Task, stop: Event, done: Callable[[int], None]) -> None:
        n, h = task
        of = self.of
        row, t0, t1 = of.p.segments[n]
        self.across((row, t0 * of.micro, t1 * of.micro), n, h)
        done(t1 - t0)

    def across(self, place: Task, n: int, h: int) -> None:
        of = self.of
        row, begin, end = place
        u, w = of.of_sequence(of.u, n, h), of.of_sequence(of.w, n, h)
        kernel.across(place, h, of.operands.arrays[5], u, w, of.dv, of.db, of.db_size)
        slots, kept = np.empty((end - begin, bound.ALL_SLOTS)), np.empty((end - begin + 1, bound.KEPT))
        scratch = (slots, kept, aligned((4, -(-of.K // 16) * 16), of.dtype))
        ends = tuple(x for given in (of.start, of.end) for x in self.norm(given, n, h))
        given = (*of.operands.arrays, of.errors, of.do, ends, u, w, of.squares[n][:, h], of.wrong[row, h, :, begin:end])
        rule = of.rule, kernel.WINDOW
        of.initial_wrong[n, h] = bound.follow(place, of.of_head(h), *given, scratch, rule, of.gammas, of.constants)

    def norm(self, given: Array | None, n: int, h: int) -> tuple[float, float]:
        """The Frobenius norm of a state on entry, and its error."""
        if given is None:
            return 0.0, 0.0
        u, tau = (float(x) for x in self.of.constants[2:4])
        state = np.ascontiguousarray(given[n, h])
        norm = bound.norm(state, u, tau * state.size / u)
        return norm, norm * u * (state.itemsize > self.of.dtype.itemsize)

    def compile(self) -> None:
        if self.of.p.segments and self.of.heads:
            self.across((self.of.p.segments[0][0], 0, 0), 0, 0)


def folded(state: Array | None, fold: bool) -> Array | None:
    """A state's columns as heads, where the lowering made them so."""
    if state is None or not fold:
        return state
    N, HV, K, V = state.shape
    return np.ascontiguousarray(state.transpose(0, 1, 3, 2)).reshape(N, HV * V, K, 1)


def summed(x: Array, channels: int) -> Array:
    """One number for a decay of one number, from its fours, in order."""
    if channels > 1:
        return x
    total = np.empty((*x.shape[:-1], 1), x.dtype)
    kernel.in_order(x.reshape(-1, x.shape[-1]), total.reshape(-1))
    return total


def adjoint(
    p: Problem, x: Delta, do: Array, dfinal: tuple[Array | None, ...], threads: int | None, progress: Progress | None
) -> Cotangents:
    """What a loss owes to every operand of the lowered problem, and to its initial state."""
    plain: dict[str, Any] = {n: y.plain for n, y in vars(x).items() if isinstance(y, Traced)}
    a = Adjoint(p, replace(x, **plain), do, dfinal[0])
    jobs = Columns(a, threads), Rows(a, threads), Across(a, threads)
    run_jobs(jobs, progress)
    a.forget()
    seconds_forward = sum(jobs[0].seconds_forth) / jobs[0].plan.threads
    return replace(a.cotangents(x, tuple(job.plan for job in jobs[:2])), seconds_forward=seconds_forward)


def run_jobs(jobs: tuple[Any, ...], progress: Progress | None) -> None:
    """One after the other; progress is told of all of them together."""
    before, whole = 0, sum(job.work for job in jobs)
    for job in jobs:
        run_all(job, progress and partial(later, progress, before, whole))
        before += job.work


def later(progress: Progress, before: int, whole: int, n: int, _: int) -> None:
    """Work done in one job, told as that much after those before."""
    progress(before + n, whole)
