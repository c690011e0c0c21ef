"""The delta family's adjoint: two jobs, the sweeps over columns and then those over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
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
        self.initial_wrong = np.zeros((len(p.segments), self.heads, self.columns), self.dtype)
        self.marks = [self.room_for_marks((t1 - t0) * self.micro) for _, t0, t1 in p.segments]
        rows = self.K if a.shape[3] > 1 else -(-self.K // 4)
        self.dq, self.dk, self.dv, self.db, self.db_size = (np.empty(y.shape, self.dtype) for y in (q, k, v, b, b))
        self.de = np.empty(e.shape if self.erase == ERASE else (1, 1, 1, 1), self.dtype)
        self.da, self.da_size = (
            np.empty((*a.shape[:3], rows) if self.decays else (1, 1, 1, 1), self.dtype) for _ in range(2)
        )

    @property
    def gammas(self) -> tuple[Any, ...]:
        """Roundings of a sum over columns, over columns and rows, and in db, each with those of adding value heads."""
        u, members = self.constants[2], self.heads // min(y.shape[2] for y in self.operands.arrays[:5])
        along = self.columns // 4 + 8 + 3 * members
        in_b = self.columns // 4 + 8 if self.operands.arrays[5].shape[3] == 1 else 4
        return tuple(self.dtype.type(n * u * (1 + 4 * n * u)) for n in (along, along + self.K, in_b))

    def room_for_marks(self, micro_steps: int) -> Array:
        return np.empty((self.heads, -(-micro_steps // kernel.WINDOW), self.K, self.columns), self.dtype)

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
        del self.u, self.w, self.marks

    @property
    def tokens(self) -> int:
        return int(sum(t1 - t0 for _, t0, t1 in self.p.segments))

    def cotangents(self, x: Delta, wrong: Array, plans: tuple[Plan, ...]) -> Cotangents:
        """What the sweeps found, with its bound: `wrong` [B, heads, SUMS, M] over all columns."""
        u, floor = float(self.constants[2]), float(self.constants[6])
        up = 1.0 + (self.columns + 64) * 4 * u
        sums = np.moveaxis(wrong, 2, 0).transpose(0, 1, 3, 2) * up  # [SUMS, B, M, heads]
        sums[bound.OF_V] = np.sqrt(sums[bound.OF_V]) + self.columns * floor
        if self.db.shape[3] > 1:
            sums[bound.OF_B] = np.sqrt(sums[bound.OF_B]) + self.columns * floor
        sums *= up
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
    """u and w, and what the bound needs of every column: `forth`, then `back`."""

    def __init__(self, adjoint: Adjoint, threads: int | None) -> None:
        self.of = adjoint
        self.lanes = lanes(adjoint.dtype)
        self.plan: Plan = plan(adjoint.p, adjoint.heads, adjoint.columns, self.lanes, threads)
        B, heads, M, _ = adjoint.u.shape
        self.wrong = np.zeros((B, heads, -(-adjoint.columns // 8), bound.SUMS, M), adjoint.dtype)
        self.room = local()

    @property
    def work(self) -> int:
        return int(2 * self.of.tokens * self.of.heads * self.of.columns)

    def tasks(self) -> Iterator[Task]:
        """(sequence, head, block)."""
        of = self.of
        return ((n, h, block) for n in of.longest_first() for h in range(of.heads) for block in range(self.plan.blocks))

    def scratch(self) -> tuple[Array, ...]:
        if not hasattr(self.room, "arrays"):
            W, d, K = kernel.WINDOW, self.of.dtype, self.of.K
            x = aligned((kernel.FRONT + 4 * W * K,), d)
            x[kernel.ONE] = 1
            rows = [*[(-(-self.of.columns // self.lanes), W, self.lanes)] * 3, *[(W, self.lanes)] * 3]
            shapes = (*rows, (4, -(-K // 16) * 16), (bound.SUMS, W, self.lanes))
            self.room.arrays = (x, *(aligned(shape, d) for shape in shapes))
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
        micro_steps = sum(high - low for _, _, low, high in spans)
        kept = self.kept(count, micro_steps)
        state = self.enter(count, of.start, (n, h, slice(None), slice(first, last)))
        for span in spans:
            if stop.is_set():
                return
            self.forth((*span, first), state, kept, n, h)
            done((span[3] - span[2]) // of.micro * (last - first))
        state = self.enter(count, of.end, (n, h, slice(None), slice(first, last)))
        for span in reversed(spans):
            if stop.is_set():
                return
            self.back((*span, first), state, kept, n, h)
            done((span[3] - span[2]) // of.micro * (last - first))
        column, wrong = np.empty((of.K, last - first), of.dtype), np.empty(last - first, of.dtype)
        state_kernel.leave(state[0], state[2], column, wrong)
        of.initial[n, h, :, first:last], of.initial_wrong[n, h, first:last] = column, wrong

    def kept(self, tiles: int, micro_steps: int) -> tuple[Array, Array]:
        """What `forth` keeps for `back` to bound with, of every column and of every micro-step."""
        shape = (tiles, micro_steps + 1, 3, self.lanes)
        slots = (micro_steps, bound.ALL_SLOTS)
        if getattr(self.room, "kept", None) is None or self.room.kept[0].shape != shape:
            self.room.kept = None  # first, for the next may take its place
            self.room.kept = np.empty(shape, self.of.dtype), np.empty(slots, self.of.dtype)
        kept: tuple[Array, Array] = self.room.kept
        return kept

    def enter(self, tiles: int, given: Array | None, which: tuple[Any, ...]) -> tuple[Array, ...]:
        """Columns of a state in tiles, with bounds on their norms and errors."""
        of = self.of
        S = aligned((tiles, of.K, self.lanes), of.dtype)
        N, E = aligned((tiles, self.lanes), of.dtype), aligned((tiles, self.lanes), of.dtype)
        if given is not None:
            part = np.ascontiguousarray(given[which])
            cast = of.constants[2] * (part.itemsize > of.dtype.itemsize)
            state_kernel.enter(part, S, N, E, of.constants[4], of.constants[6], cast)
        return S, N, E

    def forth(self, place: Task, state: tuple[Array, ...], kept: tuple[Array, Array], n: int, h: int) -> None:
        of = self.of
        rule = (of.micro, of.operands.pre, of.erase)
        found = (of.marks[n][h], of.of_sequence(of.u, n, h), *kept)
        arrays = of.operands.arrays
        kernel.forth(place, of.of_head(h), *arrays, of.errors, *state, *found, self.scratch(), rule, of.constants)

    def back(self, place: Task, state: tuple[Array, ...], kept: tuple[Array, Array], n: int, h: int) -> None:
        of = self.of
        rule = (of.micro, of.operands.pre, of.erase)
        q, k, e, a, _, b = of.operands.arrays
        row, t0, t1 = of.p.segments[n]
        u, w = of.of_sequence(of.u, n, h), of.of_sequence(of.w, n, h)
        wrong = self.wrong[row, h, :, :, t0 * of.micro : t1 * of.micro]
        given = (q, k, e, a, b, of.do, *state, u, w, *kept, wrong)
        kernel.back(place, of.of_head(h), *given, self.scratch(), rule, of.gammas, of.constants)

    def compile(self) -> None:
        if self.of.marks and self.of.heads:
            kept = self.kept(0, 0)
            state = self.enter(0, None, ())
            self.forth((0,) * 5, state, kept, 0, 0)
            self.back((0,) * 5, state, kept, 0, 0)


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
                kernel.enter(of.end[n, h, first:last].T, G)
            for span in reversed(of.spans(n)):
                if stop.is_set():
                    return
                self.sweep((*span, first), h, G, n)
                done((span[3] - span[2]) // of.micro * (last - first))
            if block == 0:
                self.across(n, h)

    def sweep(self, place: Task, h: int, G: Array, n: int) -> None:
        of = self.of
        q, k, e, a, _, b = of.operands.arrays
        rule = (of.micro, of.operands.pre, of.erase, of.decays)
        more = tuple(h % (of.heads // y.shape[2]) > 0 for y in (q, k, e, a))
        known = (of.do, of.of_sequence(of.u, n, h), of.of_sequence(of.w, n, h), of.marks[n][h], of.constants[0], G)
        found = (of.dq, of.dk, of.de, of.da, of.da_size)
        kernel.rows(place, of.of_head(h), q, k, e, a, b, *known, *found, self.scratch(), rule, more)

    def across(self, n: int, h: int) -> None:
        of = self.of
        row, t0, t1 = of.p.segments[n]
        place = (row, t0 * of.micro, t1 * of.micro)
        b, u, w = of.operands.arrays[5], of.of_sequence(of.u, n, h), of.of_sequence(of.w, n, h)
        kernel.across(place, h, b, u, w, of.dv, of.db, of.db_size)

    def compile(self) -> None:
        if self.of.marks and self.of.heads:
            self.sweep((0, 0, 0, 0, 0), 0, aligned((0, self.of.columns, self.lanes), self.of.dtype), 0)
            row, _, _ = self.of.p.segments[0]
            b, u = self.of.operands.arrays[5], self.of.u[row, 0]
            kernel.across((row, 0, 0), 0, b, u, u, self.of.dv, self.of.db, self.of.db_size)


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


def over_columns(wrong: Array) -> Array:
    """The sums over each eight columns, together: [B, heads, SUMS, M]."""
    B, heads, groups, sums, M = wrong.shape
    whole = np.empty((B, heads, sums, M))
    kernel.groups_together(wrong.reshape(B * heads, groups, sums * M), whole.reshape(B * heads, sums * M))
    return whole


def adjoint(
    p: Problem, x: Delta, do: Array, dfinal: tuple[Array | None, ...], threads: int | None, progress: Progress | None
) -> Cotangents:
    """What a loss owes to every operand of the lowered problem, and to its initial state."""
    plain: dict[str, Any] = {n: y.plain for n, y in vars(x).items() if isinstance(y, Traced)}
    a = Adjoint(p, replace(x, **plain), do, dfinal[0])
    columns, rows = Columns(a, threads), Rows(a, threads)
    before, whole, plans = columns.work, columns.work + rows.work, (columns.plan, rows.plan)
    run_all(columns, progress and (lambda n, _: progress(n, whole)))
    run_all(rows, progress and (lambda n, _: progress(before + n, whole)))
    wrong = over_columns(columns.wrong)
    del columns, rows
    a.forget()
    return a.cotangents(x, wrong, plans)
