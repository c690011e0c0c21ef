"""The delta family's job: lowered inputs as the kernel takes them, and tasks over (sequence, value head, block of
columns)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from threading import Event, local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import delta as kernel
from ..numbers.bounded import Bounded
from ..spec import ERASE_KEY, Delta
from .carry import Carry
from .plan import Plan, plan
from .prepare import scale_of
from .problem import Problem
from .solution import Answer

SPAN = 2048  # tokens between two looks at the stop flag
COMPILED: set[tuple[Any, ...]] = set()  # jobs and types whose kernel was asked for in this process
Array = NDArray[Any]


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros whose first entry starts a cache line."""
    return together((shape,), dtype)[0]


def together(shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> tuple[Array, ...]:
    """`aligned` of each shape, in one piece: NumPy lets go of the GIL for zeros, and between two threads at their
    start each time costs more than the zeros."""
    sizes = [-(-prod(shape) * dtype.itemsize // 64) * 64 for shape in shapes]
    raw = np.zeros(sum(sizes) + 64, np.uint8)
    start: int = -raw.__array_interface__["data"][0] % 64
    starts = accumulate(sizes, initial=start)
    return tuple(np.ndarray(shape, dtype, raw, at) for shape, at in zip(shapes, starts, strict=False))


@dataclass(frozen=True)
class Operands:
    """The lowered inputs as the kernel takes them: C order, one float type for vectors, float64 for gates, every
    error beside its array."""

    arrays: tuple[Array, ...]  # q k e a v b
    errors: tuple[Array, ...]  # the same order
    erase: int
    pre: bool
    micro: int
    wide: bool  # the decay or the erase vector has channels of its own

    @staticmethod
    def order(x: Delta) -> tuple[Bounded, ...]:
        """q k e a v b, every one there."""
        B, M, HV, _ = x.v.value.shape
        one = x.v.exact(np.ones((B, M, 1, 1)))
        e = x.k.exact(x.k.value) if x.e is None else x.k if x.e is ERASE_KEY else x.e
        return x.q, x.k, e, one if x.a is None else x.a, x.v, (one if x.b is None else x.b).heads(HV)

    @classmethod
    def of(cls, x: Delta) -> Operands:
        order = cls.order(x)
        _, _, e, a, _, b = order
        erase = kernel.NO_ERASE if x.e is None else kernel.ERASE_IS_KEY if x.e is ERASE_KEY else kernel.ERASE
        kind = np.dtype(np.float32 if all(y.value.dtype == np.float32 for y in (x.q, x.k, e, x.v)) else np.float64)
        vectors = {id(y): np.ascontiguousarray(y.value, dtype=kind) for y in (x.q, x.k, e, x.v)}
        gates = {id(y): np.ascontiguousarray(y.value, dtype=np.float64) for y in (a, b)}
        arrays = tuple({**vectors, **gates}[id(y)] for y in order)
        errors = tuple(np.ascontiguousarray(y.error) for y in order)
        wide = erase == kernel.ERASE or arrays[3].shape[3] > 1
        return cls(arrays, errors, erase, x.order == "pre", x.micro, wide)


class Job:
    """One problem under way: its operands, its outputs, and the tasks that fill them."""

    carry: Carry | None = None  # of a problem that is one window of a longer one
    norm: Array  # [N, heads, padded columns], for the next window
    error: Array

    def __init__(self, p: Problem, x: Delta, threads: int | None) -> None:
        self.p = p
        self.operands = Operands.of(x)
        self.dtype = np.dtype(np.float32 if p.precision == "float32" else np.float64)
        q, k, _, _, v, _ = self.operands.arrays
        B, T = q.shape[:2]
        self.K, self.heads, self.columns = k.shape[3], v.shape[2], v.shape[3]
        self.lanes = kernel.lanes(self.dtype)
        self.plan: Plan = plan(p, self.heads, self.columns, self.lanes, threads)
        N = len(p.segments)
        self.constants = kernel.constants(*scale_of(p), self.K, self.dtype)
        self.o = np.empty((B, T, self.heads, self.columns), self.dtype)
        self.bound = np.zeros((self.plan.blocks, B, self.heads, T), self.dtype)
        self.final = np.empty((N, self.heads, self.K, self.columns), self.dtype)
        self.final_bound = np.empty((N, self.heads, self.columns), self.dtype)
        self.states = np.empty((len(p.states_at), *self.final.shape), self.dtype)
        self.folded = x.folded
        self.start = initial(p, x.folded)
        self.room = local()

    def tasks(self) -> Iterator[tuple[int, int, int]]:
        """(sequence, head, block), longest sequences first."""
        order = sorted(range(len(self.p.segments)), key=lambda n: self.p.segments[n][1] - self.p.segments[n][2])
        return ((n, h, block) for n in order for h in range(self.heads) for block in range(self.plan.blocks))

    def scratch(self) -> tuple[Array, ...]:
        """This thread's packing room."""
        if not hasattr(self.room, "arrays"):
            W, L, d = kernel.WINDOW, self.lanes, self.dtype
            packed, tiles = (W + 1, kernel.row_length(self.K, self.operands.wide)), -(-self.columns // L)
            shapes = (packed, (W, kernel.SLOTS), *[(tiles, W, L)] * 2, *[(W, L)] * 7)
            self.room.arrays = together(shapes, d)
        arrays: tuple[Array, ...] = self.room.arrays
        return arrays

    def run(self, task: tuple[int, int, int], stop: Event, done: Callable[[int], None]) -> None:
        """One task from the initial to the final state."""
        n, h, block = task
        row, t0, t1 = self.p.segments[n]
        tiles = -(-self.columns // self.lanes)
        left = tiles * block // self.plan.blocks
        count = tiles * (block + 1) // self.plan.blocks - left
        first, last = left * self.lanes, min((left + count) * self.lanes, self.columns)
        state = self.enter(count, None if self.start is None else self.start[n, h, :, first:last])
        before = 0
        if self.carry is not None and self.carry.state is not None:
            before = self.carry.tokens
            self.carry.enter(n, h, first, state)
        micro = self.operands.micro
        heads = tuple(h // (self.heads // x.shape[2]) for x in self.operands.arrays[:5])
        stops = sorted({t0, t1, *(t0 + t for t in self.p.states_at), *range(t0, t1, SPAN)})
        wanted = {t0 + t for t in self.p.states_at}
        for i, t in enumerate(stops):
            if stop.is_set():
                return
            if t in wanted:
                at_t = [j for j, after in enumerate(self.p.states_at) if t0 + after == t]
                self.states[at_t, n, h, :, first:last] = self.columns_of(state, last - first)[0]
            if t == t1:
                break
            place = (row, t * micro, stops[i + 1] * micro, (t0 - before) * micro, first)
            self.advance(place, heads, state, self.bound[block, row, h])
            done((stops[i + 1] - t) * (last - first))
        self.leave(n, h, slice(first, last), state)
        if self.carry is not None:
            padded = slice(first, first + count * self.lanes)
            self.norm[n, h, padded], self.error[n, h, padded] = state[1].reshape(-1), state[2].reshape(-1)

    def windowed(self, carry: Carry) -> None:
        """This job is one window: it goes on from `carry`."""
        self.carry = carry
        shape = (*self.final.shape[:2], -(-self.columns // self.lanes) * self.lanes)
        self.norm, self.error = np.zeros(shape, self.dtype), np.zeros(shape, self.dtype)

    def pass_on(self) -> None:
        """Leave to the next window what it goes on from."""
        carry, T = self.carry, self.operands.arrays[4].shape[1] // self.operands.micro
        if carry is not None:
            carry.tokens, carry.state, carry.norm, carry.error = carry.tokens + T, self.final, self.norm, self.error

    @property
    def rule(self) -> tuple[int, bool, int, bool]:
        return self.operands.micro, self.operands.pre, self.operands.erase, self.operands.wide

    def enter(self, tiles: int, start: Array | None) -> tuple[Array, ...]:
        """A block's tiles, from zeros or from columns [K, width] of the initial state; bounds on their columns' norms
        and errors."""
        S, N, E = together(((tiles, self.K, self.lanes), *[(tiles, self.lanes)] * 2), self.dtype)
        if start is not None:
            part = np.ascontiguousarray(start)
            cast = self.constants[2] * (part.itemsize > self.dtype.itemsize)
            kernel.enter(part, S, N, E, self.constants[4], self.constants[6], cast)
        return S, N, E

    def advance(self, place: tuple[int, ...], heads: tuple[int, ...], state: tuple[Array, ...], bound: Array) -> None:
        """A block's tiles through some tokens."""
        arrays = (*self.operands.arrays, *self.operands.errors)
        kernel.run(place, heads, *arrays, *state, self.o, bound, self.scratch(), self.rule, self.constants)

    def leave(self, n: int, h: int, columns: slice, state: tuple[Array, ...]) -> None:
        """The final state of a block."""
        found = self.columns_of(state, columns.stop - columns.start)
        self.final[n, h, :, columns], self.final_bound[n, h, columns] = found

    def columns_of(self, state: tuple[Array, ...], width: int) -> tuple[Array, Array]:
        """The state [K, width] in a block's tiles, and its error bound [width]."""
        S, _, E = state
        columns, wrong = np.empty((self.K, width), self.dtype), np.empty(width, self.dtype)
        kernel.leave(S, E, columns, wrong)
        return columns, wrong

    def compile(self) -> None:
        """Have the kernel compiled here, where Ctrl-C is heard, by asking it for no tokens."""
        given = (*self.operands.arrays, *self.operands.errors)
        types = (type(self), self.dtype, *((x.dtype, x.flags.writeable) for x in given))
        if types not in COMPILED:
            nothing = (0, 0, 0, 0, 0)
            self.advance(nothing, nothing, self.enter(0, None), np.zeros(0, self.dtype))
            COMPILED.add(types)

    @property
    def work(self) -> int:
        tokens = sum(t1 - t0 for _, t0, t1 in self.p.segments)
        return int(tokens * self.heads * self.columns)

    def answer(self) -> Answer:
        o, o_bound = self.o, self.bound.max(axis=0, initial=0.0).transpose(0, 2, 1)
        final, final_bound, states = self.final, self.final_bound, self.states
        if self.folded:
            HV, V = self.p.sizes["HV"], self.p.sizes["V"]
            o, o_bound = o.reshape(*o.shape[:2], HV, V), o_bound.reshape(*o.shape[:2], HV, V).max(axis=-1)
            final, states = unfolded(final, HV, V), unfolded(states, HV, V)
            final_bound = final_bound.reshape(-1, HV, V)
        certain_o = certain(o_bound, True)  # what is read is part of its own bound
        certain_state = certain(final_bound, np.isfinite(final).all(axis=2))
        return Answer(o, certain_o, (final,), (certain_state,), (states,), "rigorous (running bound)")


def initial(p: Problem, folded: bool) -> Array | None:
    """The initial state, value channels as heads where the lowering made them so."""
    if p.initial_state is None or not folded:
        return p.initial_state
    N, HV, K, V = p.initial_state.shape
    return np.ascontiguousarray(p.initial_state.transpose(0, 1, 3, 2)).reshape(N, HV * V, K, 1)


def unfolded(states: Array, HV: int, V: int) -> Array:
    """[..., HV * V, K, 1] as [..., HV, K, V]."""
    before, K = states.shape[:-3], states.shape[-2]
    return np.ascontiguousarray(np.swapaxes(states.reshape(*before, HV, V, K), -1, -2))


def certain(bound: Array, finite: Any) -> Array:
    """The bound, infinite where the answer is not finite or the bound itself broke down."""
    return np.where(np.isfinite(bound) & finite, bound, np.inf).astype(bound.dtype)
