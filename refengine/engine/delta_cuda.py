"""The delta family's job on a GPU: the recurrence and its bound there, what the bound needs of the inputs here.

A task is a run of sequences and a run of value heads, from the initial to the final state, by windows of tokens that
fit the device's memory. The slots of a window's bounds are filled by the CPU's own kernel while the GPU is at its
recurrence, so every bit is the CPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from math import lcm
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RefengineError, UnavailableError
from ..kernels import delta as cpu
from ..kernels.cuda import _device
from ..kernels.cuda import delta as kernel
from ..kernels.cuda._jit import COLUMNS, LANES, cuda, kind_of, ready
from ..spec import Delta
from . import delta
from .plan import Plan, available_cores
from .problem import Problem
from .solution import Answer

SHARE = 0.8  # of the free memory that a task takes
GRID = 65535  # heads, and sequences, of one launch
SPAN = 8192  # tokens of one window at the most: what a look at the stop flag waits for
Array = NDArray[Any]
Placed = tuple[
    int, int, int, list[int]
]  # an array [rows, length, heads, width], and the head of it for each value head


@dataclass(frozen=True)
class DevicePlan(Plan):
    """A plan for a GPU; `notes` says what its memory made of it."""

    device: str = ""
    cut: str = f"blocks of {COLUMNS} columns, {LANES} threads a column"
    notes: list[str] = field(default_factory=list)

    def lines(self) -> tuple[str, ...]:
        return (f"form {self.form}: {self.why}", f"{self.tasks} tasks ({self.cut}) on {self.device}", *self.notes)


def refusal(x: Delta) -> RefengineError | None:
    """Why a problem cannot run on this machine's GPU."""
    K = x.k.value.shape[3]
    if K > kernel.MAX_K:
        return InputError(f"device 'cuda' takes at most {kernel.MAX_K} key channels, and k has K = {K}.")
    why = _device.refusal()
    return None if why is None else UnavailableError(why)


def longest(segments: Sequence[tuple[int, int, int]]) -> int:
    """Tokens of the longest sequence."""
    return max((t1 - t0 for _, t0, t1 in segments), default=0)


def runs(N: int, heads: int, unit: int, need: Callable[[int, int], int]) -> Iterator[tuple[range, range]]:
    """Runs of sequences, and of heads by whole units, as long as the device has memory for what each needs."""
    rows, units = max(1, min(N, GRID)), max(1, min(heads, GRID) // unit)
    room = SHARE * _device.free()
    while rows * units > 1 and need(rows, units * unit) > room:
        if rows > 1:
            rows = -(-rows // 2)
        else:
            units = -(-units // 2)
    step = units * unit
    for n in range(0, N, rows):
        for h in range(0, heads, step):
            yield range(n, min(n + rows, N)), range(h, min(h + step, heads))


def halving(window: int, attempt: Callable[[int], None], refusal: Callable[[], str]) -> int:
    """Try with a window of so many tokens, and with half of it where the device has no memory; the window that went."""
    while True:
        try:
            attempt(window)
            return window
        except Exception as error:
            if not _device.out_of_memory(error):
                raise
            if window == 1:
                raise UnavailableError(f"The device has no memory for {refusal()}, {_device.free()} free.") from error
        window = -(-window // 2)


def part(x: Array, rows: slice, low: int, high: int, heads: range, of: int) -> tuple[Array, int]:
    """An operand's rows and tokens (or micro-steps) low .. high for some of so many value heads, and the first of its
    own heads there. One head for all stays so."""
    ratio = of // x.shape[2]
    first, last = heads.start // ratio, -(-heads.stop // ratio)
    return np.ascontiguousarray(x[rows, low:high, first:last]), first


def tables(segments: Sequence[tuple[int, int, int]], first_row: int, arrays: list[Placed]) -> tuple[Array, Array]:
    """`where` and `step` of kernels/cuda/delta.py for arrays [rows, length, heads, width], each with which of its heads
    every value head reads."""
    where = np.zeros((len(segments), len(arrays[0][3]), len(arrays)), np.int64)
    for i, (row, _, _) in enumerate(segments):
        for c, (length, count, width, local) in enumerate(arrays):
            where[i, :, c] = ((row - first_row) * length * count + np.array(local)) * width
    return where, np.array([count * width for _, count, width, _ in arrays], np.int64)


def by_columns(state: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """States [N, HV, K, V] as the kernels have them, columns before rows and the rows padded."""
    found = np.zeros(shape, dtype)
    if state is not None:
        found[..., : state.shape[2]] = state.swapaxes(2, 3)
    return found


class Job:
    """One problem under way on the GPU; `here` holds its operands and outputs, and what the CPU adds to a bound."""

    def __init__(self, p: Problem, x: Delta, threads: int | None) -> None:
        self.here = delta.Job(p, x, threads)
        self.here.bound = np.zeros((1, *self.here.bound.shape[1:]), self.here.dtype)
        self.segments = p.segments
        self.workers = threads or available_cores()
        ratios = [self.here.heads // a.shape[2] for a in self.here.operands.arrays if a.shape[2] > 1]
        self.unit = lcm(*ratios)  # value heads that share key heads stay together
        self.span = SPAN
        self.notes: list[str] = []
        why = "the sequential recurrence is the definition's own order; bits as on the CPU"
        self.plan = DevicePlan(
            "recurrent", why, 1, 1, COLUMNS, len(list(self.tasks())), _device.name(), notes=self.notes
        )

    @property
    def work(self) -> int:
        return self.here.work

    def answer(self) -> Answer:
        return self.here.answer()

    def compile(self) -> None:
        """A task compiles what it runs."""

    def tasks(self) -> Iterator[tuple[range, range]]:
        """Runs of sequences and heads that fit the memory with a useful window; all of them if they do."""
        T = min(longest(self.segments), 256)
        return runs(len(self.segments), self.here.heads, self.unit, lambda n, h: self.bytes(n, h, T))

    def bytes(self, sequences: int, heads: int, tokens: int) -> int:
        """What a task takes of the device's memory, with a window of so many tokens."""
        here = self.here
        shared = (a.itemsize * max(1, heads * a.shape[2] // here.heads) * a.shape[3] for a in here.operands.arrays)
        own = here.dtype.itemsize * heads * (3 * here.columns + kernel.SLOTS + -(-here.columns // COLUMNS))
        state = here.dtype.itemsize * heads * here.columns * (LANES * kernel.segment(here.K) + 4)
        return int(sequences * (tokens * here.operands.micro * (sum(shared) + own) + state))

    def run(self, task: tuple[range, range], stop: Event, done: Callable[[int], None]) -> None:
        """One task, in windows; in smaller ones where the device has no memory for them after all."""
        sequences, heads = task
        T = max(self.segments[n][2] for n in sequences) - min(self.segments[n][1] for n in sequences)
        window = max(1, min(self.span, T))
        while window > 1 and self.bytes(len(sequences), len(heads), window) > SHARE * _device.free():
            window = -(-window // 2)
        asked = window
        window = halving(
            asked,
            lambda tokens: Piece(self, sequences, heads, tokens).run(stop),
            lambda: (
                f"one token of {len(heads)} heads of {len(sequences)} sequences: "
                f"{self.bytes(len(sequences), len(heads), 1)} bytes needed"
            ),
        )
        if window < asked:
            self.span = window
        note = f"windows of {window} tokens, as the device's memory allows"
        if window < min(SPAN, T) and note not in self.notes:
            self.notes.append(note)
        done(sum(self.segments[n][2] - self.segments[n][1] for n in sequences) * len(heads) * self.here.columns)


class Piece:
    """One task's states on the device, and its way through the windows."""

    def __init__(self, job: Job, sequences: range, heads: range, window: int) -> None:
        self.here, self.workers = job.here, job.workers
        self.sequences, self.heads, self.window = sequences, heads, window
        self.segments = [job.segments[n] for n in sequences]
        rows = [row for row, _, _ in self.segments]
        self.rows = slice(min(rows), max(rows) + 1)
        self.stream = cuda.stream()
        micro, pre, erase, _ = self.here.rule
        a, b = self.here.operands.arrays[3], self.here.operands.arrays[5]
        wide, wide_b, kind = a.shape[3] > 1, b.shape[3] > 1, kind_of(self.here.dtype)
        self.recur = kernel.recur(self.here.K, kind, micro, pre, erase, wide, wide_b)
        self.follow = kernel.follow(kind, micro, pre, wide_b)
        self.grid = (-(-self.here.columns // COLUMNS), len(heads), len(sequences))
        self.enter()

    def enter(self) -> None:
        """The states, columns before rows and rows padded; the bounds on their columns' norms and errors."""
        here = self.here
        shape = (len(self.sequences), len(self.heads), here.columns)
        where = np.ix_(self.sequences, self.heads)
        start = None if here.start is None else here.start[where]
        S = by_columns(start, (*shape, LANES * kernel.segment(here.K)), here.dtype)
        N, E = np.zeros(shape, here.dtype), np.zeros(shape, here.dtype)
        if here.start is not None:
            tiles = -(-here.columns // here.lanes)
            for i, n in enumerate(self.sequences):
                for j, h in enumerate(self.heads):
                    _, norm, error = here.enter(tiles, here.start[n, h])
                    N[i, j], E[i, j] = norm.ravel()[: here.columns], error.ravel()[: here.columns]
        self.S, self.N, self.E = (cuda.to_device(x, stream=self.stream) for x in (S, N, E))

    def run(self, stop: Event) -> None:
        """Every window, and the final states."""
        here = self.here
        first, last = min(t0 for _, t0, _ in self.segments), max(t1 for _, _, t1 in self.segments)
        self.keep_states(0, range(len(self.segments)))
        for w0 in range(first, last, self.window):
            if stop.is_set():
                return
            self.through(w0, min(w0 + self.window, last))
        S = self.S.copy_to_host(stream=self.stream)
        E = self.E.copy_to_host(stream=self.stream)
        self.stream.synchronize()
        where = np.ix_(self.sequences, self.heads)
        here.final[where] = S[..., : here.K].swapaxes(2, 3)
        here.final_bound[where] = E

    def keep_states(self, after: int, reached: Iterable[int]) -> None:
        """The states of the sequences that have just gone through so many tokens, where they are wanted."""
        wanted = [j for j, t in enumerate(self.here.p.states_at) if t == after]
        if not wanted:
            return
        S = self.S.copy_to_host(stream=self.stream)
        self.stream.synchronize()
        for i in reached:
            for j in wanted:
                part = self.here.states[j][self.sequences[i], self.heads.start : self.heads.stop]
                part[...] = S[i, ..., : self.here.K].swapaxes(1, 2)

    def through(self, w0: int, w1: int) -> None:
        """Tokens w0 .. w1 of the rows."""
        here = self.here
        micro = here.operands.micro
        count = self.rows.stop - self.rows.start
        flat = [
            part(x, self.rows, w0 * by, w1 * by, self.heads, here.heads)
            for x, by in zip(here.operands.arrays, (1, *[micro] * 5), strict=True)
        ]
        arrays = [x.reshape(-1) for x, _ in flat]
        q, k, a, v, b = (cuda.to_device(arrays[i], stream=self.stream) for i in (0, 1, 3, 4, 5))
        e = cuda.to_device(arrays[2], stream=self.stream) if here.operands.erase == cpu.ERASE else k
        tokens, heads, columns, blocks = w1 - w0, len(self.heads), here.columns, self.grid[0]
        o, miss, d = (
            cuda.device_array(count * n * heads * columns, here.dtype, stream=self.stream)
            for n in (tokens, tokens * micro, tokens * micro)
        )
        worst = cuda.device_array(count * tokens * heads * blocks, here.dtype, stream=self.stream)
        where, step = self.layout([x.shape for x, _ in flat], [first for _, first in flat], tokens)
        where, step = cuda.to_device(where, stream=self.stream), cuda.to_device(step, stream=self.stream)
        spans, refreshes = self.spans(w0, w1)
        squares = cuda.device_array((max(1, refreshes), heads, columns), here.dtype, stream=self.stream)
        numbers = cuda.to_device(np.array(here.constants, here.dtype), stream=self.stream)
        threads = LANES * COLUMNS
        on_device = []
        for span, after, reached in spans:
            on_device.append(cuda.to_device(span, stream=self.stream))
            ready(self.recur, self.grid, threads, self.stream)(
                *(q, k, e, a, v, b, here.constants[0], columns, where, step, on_device[-1]),
                *(self.S, o, miss, d, squares),
            )
            self.keep_states(after, reached)
        slots = cuda.to_device(self.slots(w0, w1), stream=self.stream)
        for span in on_device:
            ready(self.follow, self.grid, COLUMNS, self.stream)(
                *(v, b, slots, numbers, columns, where, step, span),
                *(miss, d, o, squares, self.N, self.E, worst),
            )
        found, off = o.copy_to_host(stream=self.stream), worst.copy_to_host(stream=self.stream)
        self.stream.synchronize()
        h = slice(self.heads.start, self.heads.stop)
        here.o[self.rows, w0:w1, h] = found.reshape(count, tokens, heads, columns)
        largest = off.reshape(count, tokens, heads, blocks).max(axis=3)
        here.bound[0, self.rows, h, w0:w1] = largest.transpose(0, 2, 1)

    def layout(self, shapes: list[tuple[int, ...]], firsts: list[int], tokens: int) -> tuple[Array, Array]:
        """`where` and `step` of kernels/cuda/delta.py: q k e a v b, then o, miss and d, the slots, the o-bounds."""
        here = self.here
        heads, columns, blocks, M = len(self.heads), here.columns, self.grid[0], tokens * here.operands.micro
        ratios = [here.heads // x.shape[2] for x in here.operands.arrays]
        h = list(range(heads))
        given: list[Placed] = [
            (length, count, width, [(self.heads.start + j) // r - f for j in h])
            for (_, length, count, width), f, r in zip(shapes, firsts, ratios, strict=True)
        ]
        own: list[Placed] = [
            (tokens, heads, columns, h),
            (M, heads, columns, h),
            (0, 0, 0, h),
            (tokens, heads, blocks, h),
        ]
        where, step = tables(self.segments, self.rows.start, given + own)
        for i, (row, _, _) in enumerate(self.segments):
            where[i, :, kernel.C] = ((row - self.rows.start) * heads + np.arange(heads)) * M * kernel.SLOTS
        step[kernel.C] = kernel.SLOTS
        return where, step

    def spans(self, w0: int, w1: int) -> tuple[list[tuple[Array, int, list[int]]], int]:
        """One launch for every stretch between two states that are kept: `span` of kernels/cuda/delta.py, after how
        many tokens it ends, and the sequences that get there; and the refreshes of them all."""
        micro = self.here.operands.micro
        stops = sorted({0, *self.here.p.states_at, max((t1 - t0 for _, t0, t1 in self.segments), default=0)})
        spans, refreshes = [], 0
        for start, end in pairwise(stops):
            span, reached = np.zeros((len(self.segments), 4), np.int64), []
            for i, (_, t0, t1) in enumerate(self.segments):
                low, high = max(w0, t0 + start), min(w1, t1, t0 + end)
                if low < high:
                    before, after = (low - t0) * micro, (high - t0) * micro
                    first = -(-before // kernel.REFRESH)
                    span[i] = (low - w0) * micro, (high - w0) * micro, before, refreshes - first
                    refreshes += -(-after // kernel.REFRESH) - first
                    if high == t0 + end:
                        reached.append(i)
            if span.any():
                spans.append((span, end, reached))
        return spans, refreshes

    def slots(self, w0: int, w1: int) -> Array:
        """What the bound needs of the inputs, [rows, heads, micro-steps, SLOTS] flat, by the CPU's own kernel."""
        here = self.here
        micro = here.operands.micro
        count, M = self.rows.stop - self.rows.start, (w1 - w0) * micro
        slots = np.zeros((count, len(self.heads), M, kernel.SLOTS), here.dtype)

        def fill(task: tuple[int, int]) -> None:
            n, j = task
            row, t0, t1 = self.segments[n]
            low, high = max(w0, t0), min(w1, t1)
            if low >= high:
                return
            h = self.heads[j]
            heads = tuple(h // (here.heads // x.shape[2]) for x in here.operands.arrays[:5])
            x = here.scratch()[0]
            part = slots[row - self.rows.start, j, (low - w0) * micro : (high - w0) * micro]
            place = (row, low * micro, high * micro, t0 * micro, 0)
            operands = (*here.operands.arrays[:4], *here.operands.errors)
            cpu.certify(place, heads, *operands, x, part, here.rule, here.constants)

        tasks = [(n, j) for n in range(len(self.segments)) for j in range(len(self.heads))]
        if self.workers == 1:
            for task in tasks:
                fill(task)
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                list(pool.map(fill, tasks))
        return slots.reshape(-1)
