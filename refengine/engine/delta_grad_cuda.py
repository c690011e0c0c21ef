"""The delta family's adjoint on a GPU: its sweeps there, the rest here.

A task is a run of sequences and a run of value heads, whole: the states before every window, u and w lie in the
device's memory, and a launch is a window of them all. The bound is followed here, by the CPU's own job, from u, w and
the squares of the states' columns, and so are dv and db; so every bit is the CPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import lcm
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RefengineError, UnavailableError
from ..kernels import delta_grad as cpu
from ..kernels.cuda import _device
from ..kernels.cuda import delta as forward
from ..kernels.cuda import delta_grad as kernel
from ..kernels.cuda._jit import COLUMNS, LANES, cuda, kind_of, ready
from ..kernels.delta import ERASE, ERASE_IS_KEY
from ..numbers.traced import Traced
from ..spec import Delta
from . import delta_cuda
from .delta_cuda import DevicePlan, Placed, by_columns, longest, part, runs, tables
from .delta_grad import Across, Adjoint, run_jobs
from .plan import Plan
from .problem import Problem
from .run import Progress
from .solution import Cotangents

Array = NDArray[Any]
THREADS = LANES * COLUMNS


def refusal(x: Delta) -> RefengineError | None:
    """Why this machine's GPU cannot run the adjoint of a problem."""
    V = x.v.value.shape[3]
    if V > forward.MAX_K:
        return InputError(
            f"device 'cuda' takes gradients of at most {forward.MAX_K} value channels, and v has V = {V}."
        )
    return delta_cuda.refusal(x)


class Sweeps:
    """All three sweeps of one problem."""

    def __init__(self, of: Adjoint) -> None:
        self.of, self.segments = of, of.p.segments
        self.windows = -(-longest(self.segments) * of.micro // cpu.WINDOW)
        shared = of.operands.arrays[: 2 + (of.erase == ERASE)] + of.operands.arrays[3:4] * of.decays
        self.unit = lcm(*(of.heads // x.shape[2] for x in shared))  # value heads that owe one head together
        why = "the sequential recurrence is the definition's own order; bits as on the CPU"
        self.notes = [f"gradients: states kept every {cpu.WINDOW} micro-steps, and the bound followed on the CPU"]
        self.plan: Plan = DevicePlan(
            "recurrent", why, 1, 1, COLUMNS, len(list(self.tasks())), _device.name(), notes=self.notes
        )

    @property
    def work(self) -> int:
        return int(3 * self.of.tokens * self.of.heads)

    def tasks(self) -> Iterator[tuple[range, range]]:
        """Runs of sequences and heads that fit the memory; all of them if they do."""
        return runs(len(self.segments), self.of.heads, self.unit, self.bytes)

    def bytes(self, sequences: int, heads: int) -> int:
        """What a task takes of the device's memory."""
        of = self.of
        M = longest(self.segments) * of.micro
        shared = sum(
            a.itemsize * max(1, heads * a.shape[2] // of.heads) * a.shape[3] * (2 if i < 4 else 1)
            for i, a in enumerate(of.operands.arrays)
        )
        state = of.columns * LANES * forward.segment(of.K)
        past = cpu.WINDOW * LANES * forward.segment(of.columns) * kernel.padded(of.K)
        lines = cpu.WINDOW * (kernel.line_of(of.K, of.columns, of.dtype.itemsize)[0] + 5 * kernel.padded(of.K))
        each = M * 4 * of.columns + (self.windows + 3) * state + past + lines
        return int(sequences * (M * shared + of.dtype.itemsize * heads * each))

    def run(self, task: tuple[range, range], stop: Event, done: Callable[[int], None]) -> None:
        """One task; in halves of its heads where the device has no memory for it after all."""
        sequences, heads = task
        if not self.windows:
            if self.of.end is not None:
                self.of.initial[...] = self.of.end
            return
        try:
            Piece(self, sequences, heads).run(stop)
        except Exception as error:
            if not _device.out_of_memory(error):
                raise
            if len(heads) == self.unit and len(sequences) == 1:
                raise UnavailableError(
                    f"The device has no memory for the gradients of {len(heads)} heads of one sequence: "
                    f"{self.bytes(1, len(heads))} bytes needed, {_device.free()} free."
                ) from error
            self.notes.append("cut again, as the device's memory allows")
        else:
            done(sum(t1 - t0 for _, t0, t1 in (self.segments[n] for n in sequences)) * len(heads) * 3)
            return
        if len(sequences) > 1:
            middle = sequences.start + len(sequences) // 2
            parts = [(range(sequences.start, middle), heads), (range(middle, sequences.stop), heads)]
        else:
            middle = heads.start + -(-len(heads) // self.unit // 2) * self.unit
            parts = [(sequences, range(heads.start, middle)), (sequences, range(middle, heads.stop))]
        for each in parts:
            self.run(each, stop, done)

    def compile(self) -> None:
        """A task compiles what it runs."""


class Piece:
    """One task's arrays on the device, and the sweeps over them."""

    def __init__(self, job: Sweeps, sequences: range, heads: range) -> None:
        self.job, self.of, self.sequences, self.heads = job, job.of, sequences, heads
        self.segments = [job.segments[n] for n in sequences]
        rows = [row for row, _, _ in self.segments]
        self.rows = slice(min(rows), max(rows) + 1)
        self.stream = cuda.stream()
        of = self.of
        self.T = of.operands.arrays[0].shape[1]
        self.kind = kind_of(of.dtype)
        a, b = of.operands.arrays[3], of.operands.arrays[5]
        self.wide, self.wide_b = a.shape[3] > 1, b.shape[3] > 1
        self.rule = (of.micro, of.operands.pre, of.erase, self.wide, self.wide_b)
        flat = [
            part(x, self.rows, 0, self.T * by, heads, of.heads)
            for x, by in zip((*of.operands.arrays, of.do), (1, *[of.micro] * 5, 1), strict=True)
        ]
        sent = [cuda.to_device(x.reshape(-1), stream=self.stream) for x, _ in flat]
        sent[2] = sent[2] if of.erase == ERASE else sent[1]
        self.q, self.k, self.e, self.a, self.v, self.b, self.do = sent
        self.shapes, self.firsts = [x.shape for x, _ in flat], [first for _, first in flat]
        self.count = self.rows.stop - self.rows.start
        self.place()
        spans = [self.span(w) for w in range(job.windows)]
        self.steps = [int((span[:, forward.END] - span[:, forward.BEGIN]).max()) for span in spans]
        self.spans = [self.to_device(span) for span in spans]
        self.row = self.to_device(np.array([row - self.rows.start for row in rows], np.int64))
        steps = self.count * len(heads) * self.T * of.micro * of.columns
        self.u, self.w = self.empty(steps), self.empty(steps)

    def to_device(self, x: Array) -> Any:
        return cuda.to_device(x, stream=self.stream)

    def empty(self, *shape: int) -> Any:
        return cuda.device_array(shape, self.of.dtype, stream=self.stream)

    def place(self) -> None:
        """Where in each array a sequence and a head begin, for the recurrence and for the sweeps of the adjoint."""
        of, h, M = self.of, list(range(len(self.heads))), self.T * self.of.micro
        own: list[Placed] = []
        for x, (_, length, count, width), first in zip(
            (*of.operands.arrays, of.do), self.shapes, self.firsts, strict=True
        ):
            ratio = of.heads // x.shape[2]
            own.append((length, count, width, [(self.heads.start + j) // ratio - first for j in h]))
        nothing: Placed = (0, 0, 0, h)
        recur = tables(self.segments, self.rows.start, [*own[:6], nothing, nothing, nothing, nothing])
        sweep = tables(self.segments, self.rows.start, [*own, nothing])
        for tables_of, column in ((recur, forward.D), (sweep, kernel.OF_U)):
            for i, (row, _, _) in enumerate(self.segments):
                tables_of[0][i, :, column] = ((row - self.rows.start) * len(h) + np.array(h)) * M * of.columns
            tables_of[1][column] = of.columns
        self.recur_tables, self.tables = ([self.to_device(x) for x in both] for both in (recur, sweep))

    def span(self, window: int) -> Array:
        """One window of every sequence, empty behind its end; where its refreshes go, which nothing reads."""
        span = np.zeros((len(self.segments), 4), np.int64)
        before = window * cpu.WINDOW
        for i, (_, t0, t1) in enumerate(self.segments):
            low = t0 * self.of.micro + before
            high = min(low + cpu.WINDOW, t1 * self.of.micro)
            if low < high:
                refreshes = cpu.WINDOW // forward.REFRESH
                span[i] = low, high, before, (i - window) * refreshes
        return span

    def run(self, stop: Event) -> None:
        """Forth, back, and over rows; then all that was found into its place."""
        marks = self.forth(stop)
        self.back(stop)
        owed = self.over_rows(marks, stop)
        if not stop.is_set():
            self.bring(owed)

    def grid(self, n: int) -> tuple[int, int, int]:
        return -(-n // COLUMNS), len(self.heads), len(self.sequences)

    def states(self, given: Array | None) -> Any:
        """States of these sequences and heads on the device."""
        of = self.of
        shape = (len(self.sequences), len(self.heads), of.columns, LANES * forward.segment(of.K))
        here = None if given is None else given[np.ix_(self.sequences, self.heads)]
        return self.to_device(by_columns(here, shape, of.dtype))

    def keep_squares(self, which: int, window: int, squares: Any) -> None:
        found = squares.copy_to_host(stream=self.stream)
        self.stream.synchronize()
        for n, of_sequence in zip(self.sequences, found, strict=True):
            kept = self.of.squares[n]
            if window < kept.shape[2]:
                kept[which, self.heads.start : self.heads.stop, window] = of_sequence

    def forth(self, stop: Event) -> list[Any]:
        """u, by the recurrence, whose v - p it is; the states before every window."""
        of, grid = self.of, self.grid(self.of.columns)
        S, marks = self.states(of.start), []
        squares = self.empty(*S.shape[:3])
        d, o = self.empty(self.u.size), self.empty(of.columns)
        refreshes = self.empty(len(self.sequences) * cpu.WINDOW // forward.REFRESH, len(self.heads), of.columns)
        recur, squared = forward.recur(of.K, self.kind, *self.rule), kernel.squared(of.K, self.kind)
        for w, span in enumerate(self.spans):
            if stop.is_set():
                break
            marks.append(self.empty(*S.shape))
            marks[w].copy_to_device(S, stream=self.stream)
            ready(squared, grid, COLUMNS, self.stream)(of.columns, S, squares)
            self.keep_squares(0, w, squares)
            ready(recur, grid, THREADS, self.stream)(
                *(self.q, self.k, self.e, self.a, self.v, self.b, of.constants[0], of.columns),
                *(*self.recur_tables, span, S, o, self.u, d, refreshes),
            )
        return marks

    def back(self, stop: Event) -> None:
        """w, and the initial state's cotangent."""
        of, grid = self.of, self.grid(self.of.columns)
        G = self.states(of.end)
        squares = self.empty(*G.shape[:3])
        sweep = kernel.back(of.K, self.kind, *self.rule)
        for w in reversed(range(len(self.spans))):
            if stop.is_set():
                break
            ready(sweep, grid, THREADS, self.stream)(
                *(self.q, self.k, self.e, self.a, self.b, self.do, of.constants[0], of.columns),
                *(*self.tables, self.spans[w], G, self.w, squares),
            )
            self.keep_squares(1, w, squares)
        found = G.copy_to_host(stream=self.stream)
        self.stream.synchronize()
        of.initial[np.ix_(self.sequences, self.heads)] = found[..., : of.K].swapaxes(2, 3)

    def outputs(self) -> dict[str, tuple[Array, int, int, int, bool]]:
        """Of everything that rows owe: where it goes, which operand it is of, what of a value head comes before, what
        it is itself, and whether rows go by fours."""
        of, fours = self.of, not self.wide
        erased = kernel.OF_ERASE if of.erase == ERASE_IS_KEY else kernel.OF_KEY
        found = {
            "dq": (of.dq, 0, kernel.OF_QUERY, kernel.OF_QUERY, False),
            "dk": (of.dk, 1, erased, kernel.OF_KEY, False),
        }
        if of.erase == ERASE:
            found["de"] = of.de, 2, kernel.OF_ERASE, kernel.OF_ERASE, False
        if of.decays:
            found["da"] = of.da, 3, kernel.OF_DECAY, kernel.OF_DECAY, fours
            found["da_size"] = of.da_size, 3, kernel.OF_SIZE, kernel.OF_SIZE, fours
        return found

    def over_rows(self, marks: list[Any], stop: Event) -> dict[str, Any]:
        """What rows owe, window by window from the last."""
        of, heads, N = self.of, len(self.heads), len(self.sequences)
        K, V, size = of.K, of.columns, of.dtype.itemsize
        outputs = self.outputs()
        owed = {
            name: self.empty(self.count * self.shapes[operand][1] * self.shapes[operand][2] * y.shape[3])
            for name, (y, operand, _, _, _) in outputs.items()
        }
        G = self.states(of.end).reshape(-1)
        grid = self.grid(K)
        lines = self.empty(N * heads * cpu.WINDOW * kernel.line_of(K, V, size)[0])
        kept = cpu.WINDOW * forward.segment(V) * THREADS if of.decays else 1
        past = self.empty(grid[0] * heads * N * kept)
        found = self.empty(N * heads * cpu.WINDOW * kernel.FOUND * kernel.padded(K))
        pack = kernel.pack(K, V, self.kind, of.micro, of.erase, self.wide, self.wide_b)
        replay = kernel.replay(K, V, self.kind, of.operands.pre, of.erase != 0, of.decays)
        rewind = kernel.rewind(K, V, self.kind, of.operands.pre, of.erase == ERASE_IS_KEY, of.decays)
        for w in reversed(range(len(self.spans))):
            if stop.is_set():
                break
            span = self.spans[w]
            steps = self.steps[w]
            ready(pack, (steps, heads, N), THREADS, self.stream)(
                *(self.q, self.k, self.e, self.a, self.b, self.do, of.constants[0]),
                *(*self.tables, span, self.u, self.w, lines),
            )
            ready(replay, grid, THREADS, self.stream)(span, lines, marks.pop().reshape(-1), past, found)
            ready(rewind, grid, THREADS, self.stream)(span, lines, G, past, found)
            for name, (_, operand, before, slot, fours) in outputs.items():
                length, count = self.shapes[operand][1:3]
                gather = kernel.gather(K, self.kind, of.micro if name == "dq" else 1, fours, before, slot)
                ready(gather, (steps, count, N), THREADS, self.stream)(
                    *(found, heads // count, span, self.row, length, owed[name])
                )
        return owed

    def bring(self, owed: dict[str, Any]) -> None:
        """Everything to where the CPU's sweeps leave it."""
        of, heads = self.of, slice(self.heads.start, self.heads.stop)
        M = self.T * of.micro
        shape = (self.count, len(self.heads), M, of.columns)
        u, w = (x.copy_to_host(stream=self.stream).reshape(shape) for x in (self.u, self.w))
        outputs = self.outputs()
        there = {
            name: x.copy_to_host(stream=self.stream).reshape(
                self.count, *self.shapes[outputs[name][1]][1:3], outputs[name][0].shape[3]
            )
            for name, x in owed.items()
        }
        self.stream.synchronize()
        for row, t0, t1 in self.segments:
            r, steps = row - self.rows.start, slice(t0 * of.micro, t1 * of.micro)
            of.u[row, heads, steps], of.w[row, heads, steps] = u[r, :, steps], w[r, :, steps]
            for name, found in there.items():
                y, operand, *_ = outputs[name]
                tokens = slice(t0, t1) if name == "dq" else steps
                first = self.firsts[operand]
                y[row, tokens, first : first + found.shape[2]] = found[r, tokens]


def adjoint(
    p: Problem, x: Delta, do: Array, dfinal: tuple[Array | None, ...], threads: int | None, progress: Progress | None
) -> Cotangents:
    """What a loss owes to every operand of the lowered problem, and to its initial state: as the CPU finds it."""
    plain: dict[str, Any] = {n: y.plain for n, y in vars(x).items() if isinstance(y, Traced)}
    of = Adjoint(p, replace(x, **plain), do, dfinal[0])
    of.marks.clear()  # they lie on the device
    sweeps, across = Sweeps(of), Across(of, threads)
    run_jobs((sweeps, across), progress)
    of.forget()
    return of.cotangents(x, (sweeps.plan, across.plan))
