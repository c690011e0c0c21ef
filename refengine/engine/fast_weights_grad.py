"""The fast weights' adjoint: a task for every sequence and value head, twice, to compare.

The weights before every mini-batch are found again from marks, one every so many mini-batches: of M mini-batches about
2 sqrt(M) memories are held, beside a few rows a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import isqrt
from threading import Event, local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..numbers.bounded import Bounded, U, row_norm
from ..numbers.traced import Traced
from ..spec import FastWeights
from .fast_backward import Backward, Tokens
from .fast_weights import FLOOR, SAFETY, Job, Weights, backwards, opposite, opposite_problem
from .plan import Plan
from .problem import Problem
from .run import Progress, run_all
from .solution import Cotangents

Array = NDArray[Any]
Memory = tuple[Weights, float]  # and whether it is still the one it began with


class Adjoint:
    """One problem's adjoint under way."""

    def __init__(self, p: Problem, x: FastWeights, do: Array, dfinal: tuple[Array | None, ...], threads: int | None):
        self.p, self.x, self.dfinal = p, x, dfinal
        self.job = job = Job(p, x, threads)
        self.plan: Plan = job.plan
        self.dtype = job.dtype
        self.do = np.asarray(do, self.dtype)
        B, T, HV = (p.sizes[a] for a in ("B", "T", "HV"))
        K, _, V = job.shapes
        shapes = [(K,), (K,), (V,), (), (), (), (3,)]
        self.found = tuple(np.zeros((B, T, HV, *s), self.dtype if len(s) and s != (3,) else float) for s in shapes)
        N = len(p.segments)
        self.norm = np.zeros((N, HV, 2, V))
        self.initial = tuple(np.zeros(y.shape, self.dtype) for y in job.final)
        self.start = {slot: np.zeros((N, *y.shape)) for slot, y in x.start.items()}
        self.room = local()

    @property
    def work(self) -> int:
        return self.job.work

    def tasks(self) -> Iterator[tuple[int, int]]:
        return self.job.tasks()

    def run(self, task: tuple[int, int], stop: Event, done: Callable[[int], None]) -> None:
        n, h = task
        chunks = self.job.chunks[n]
        step = max(1, isqrt(len(chunks)))
        weights, lengths = self.job.begin(n, h)
        marks: list[Memory] = []
        for at in range(0, len(chunks), step):
            if stop.is_set():
                return
            marks.append((weights.copy(), float(lengths[2][0])))
            self.job.go(n, h, chunks[at : at + step], weights, lengths, self.job.o)
        owed = Weights(self.x, self.job.shapes, self.dtype)
        for slot, given in zip(self.x.slots, self.dfinal, strict=True):
            if given is not None:
                owed.view(slot)[...] = given[n, h]
        dlengths = np.zeros(lengths[0].size), np.zeros(lengths[1].size)
        for at in reversed(range(0, len(chunks), step)):
            part = chunks[at : at + step]
            held = self.through(n, h, part, marks.pop(), lengths)
            for i in reversed(range(len(part))):
                if stop.is_set():
                    return
                self.back(n, h, part[i], held[i], held[i + 1], lengths, memory(owed), dlengths)
                done(int(part[i, 1] - part[i, 0]))
        for state, slot in zip(self.initial, self.x.slots, strict=True):
            state[n, h] = owed.view(slot)
        self.first_lengths(n, h, lengths, dlengths)

    def through(self, n: int, h: int, chunks: Array, mark: Memory, lengths: tuple[Array, ...]) -> list[Memory]:
        """The memory before each of some mini-batches, and after the last."""
        weights, untouched = mark
        lengths[2][0] = untouched
        held = [(weights.copy(), untouched)]
        for i in range(len(chunks)):
            self.job.go(n, h, chunks[i : i + 1], weights, lengths, self.job.o)
            held.append((weights.copy(), float(lengths[2][0])))
        return held

    def back(
        self, n: int, h: int, chunk: Array, before: Memory, after: Memory, lengths: tuple[Array, ...],
        owed: list[Array], dlengths: tuple[Array, Array],
    ) -> None:  # fmt: skip
        t0, t1, update, apply = (int(y) for y in chunk)
        where = self.p.segments[n][0], slice(t0, t1), h
        given = self.job.operands
        ln = (*(y[h] for y in given.norm), *self.norm[n, h])
        flags, untouched = (bool(update), bool(apply)), (before[1], after[1])
        start, later = memory(before[0]), [*after[0].layers, *before[0].sides]
        d, t = np.ascontiguousarray(self.do[where]), self.tokens(where)
        dt = self.backward().back(d, t, *flags, start, later, untouched, lengths[:2], ln, owed, dlengths)
        dt.q *= given.numbers[0]
        for found, part in zip(self.found, vars(dt).values(), strict=True):
            found[where] += part

    def tokens(self, where: tuple[int, slice, int]) -> Tokens:
        given = self.job.operands
        row, part, h = where
        way = -1 if self.x.backwards else 1
        heads = [y[row, part, h // (self.job.heads // y.shape[2]), ::way] for y in given.vectors]
        q, k, v = (np.ascontiguousarray(y, dtype=self.dtype) for y in heads)
        a, eta, reader, theta, _ = (np.ascontiguousarray(y[where]) if y.size else y for y in given.gates)
        steps = theta if theta.shape[1] == 3 else np.repeat(theta, 3, axis=1)
        return Tokens(q * given.numbers[0], k, v, a, eta, reader, np.ascontiguousarray(steps))

    def backward(self) -> Backward:
        """This thread's."""
        if not hasattr(self.room, "backward"):
            self.room.backward = Backward(self.x, self.dtype)
        mine: Backward = self.room.backward
        return mine

    def first_lengths(self, n: int, h: int, lengths: tuple[Array, ...], dlengths: tuple[Array, Array]) -> None:
        """What the columns' lengths owe to the weights they are those of."""
        first = Weights(self.x, self.job.shapes, np.dtype(np.float64))
        for slot, y in self.x.start.items():
            first.view(slot)[...] = y[h]
        for layer, size, d in zip(first.layers[::2], lengths, dlengths, strict=False):
            layer *= d / np.where(size > 0, size, np.inf)
        for slot in self.x.start:
            self.start[slot][n, h] = first.view(slot)

    def compile(self) -> None:
        """Have the forward kernel compiled here, where Ctrl-C is heard; the others are small."""
        if self.initial[0].size and self.p.segments:
            self.job.compile()

    def operands(self) -> dict[str, Array]:
        """What is owed to every operand by its name in the lowered problem, value heads apart."""
        dq, dk, dv, da, deta, dreader, dtheta = self.found
        owed = {"q": dq, "k": dk, "v": dv}
        gates = {"decay": da, "eta": deta, "reader": dreader}
        owed |= {name: y[..., None] for name, y in gates.items() if isinstance(getattr(self.x, name), Bounded)}
        for i, part in enumerate(thetas(self.x, dtheta)):
            owed[f"theta.{i}"] = part
        return {name: y.astype(np.float64) for name, y in owed.items()}


def thetas(x: FastWeights, d: Array) -> tuple[Array, ...]:
    """What is owed to each step; one that is all three's takes the sum."""
    parts = tuple(d[..., i : i + 1] for i in range(3))
    return parts if len(x.theta) > 1 else (parts[0] + parts[1] + parts[2],)


def memory(x: Weights) -> list[Array]:
    """W1, b1, W2, b2, P1, c1, P2, c2"""
    return [*x.layers, *x.sides]


def adjoint(
    p: Problem, x: FastWeights, do: Array, dfinal: tuple[Array | None, ...], threads: int | None,
    progress: Progress | None,
) -> Cotangents:  # fmt: skip
    """What a loss owes to every operand of the lowered problem, and to its initial memories: in float64 twice, the
    second time with all channels in reverse; in float32 once, against float64."""
    x = plain(x)
    if x.by_channel:
        raise InputError(f"{p.op.name} has no gradient where each key channel of such a memory decays by itself.")
    low = p.precision == "float32"
    first = Adjoint(p, x, do, dfinal, threads)
    if low:
        q = replace(p, asked=replace(p.asked, precision="float64"))
        second = Adjoint(q, x, do, dfinal, threads)
    else:
        turned = tuple(None if y is None else backwards(y, 2) for y in dfinal)
        second = Adjoint(opposite_problem(p), opposite(x), backwards(do, 3), turned, threads)
    run_all(first, progress and (lambda n, _: progress(n, 2 * first.work)))
    run_all(second, progress and (lambda n, _: progress(first.work + n, 2 * first.work)))

    def back(y: Array, kept: int) -> Array:
        return np.asarray(y, dtype=np.float64) if low else backwards(np.asarray(y, dtype=np.float64), kept)

    other = second.operands()
    owed = {}
    for name, value in first.operands().items():
        number = operand(x, name)
        theirs = other[name] if "theta" in name else back(other[name], 3)
        owed[name] = apart(value, theirs).gathered(number.value.shape[2])
    initial = tuple(y.astype(np.float64) for y in first.initial)
    off = tuple(
        SAFETY * np.sqrt(((y - back(z, 2)) ** 2).sum(axis=2)) + FLOOR * U * np.sqrt((y**2).sum(axis=2))
        for y, z in zip(initial, second.initial, strict=True)
    )
    inputs = of_inputs(p, x, first, second, back)
    said = "compared (with float64)" if low else "compared (with the channels in reverse order)"
    return Cotangents(owed, {}, initial, off, said, (first.plan,), inputs)


def plain(x: FastWeights) -> FastWeights:
    """Its numbers without their past."""
    numbers: dict[str, Any] = {n: y.plain for n, y in vars(x).items() if isinstance(y, Traced)}
    return replace(x, **numbers, theta=tuple(y.plain if isinstance(y, Traced) else y for y in x.theta))


def operand(x: Any, name: str) -> Any:
    """An operand by its name; "theta.1" is the second of theta."""
    name, _, index = name.partition(".")
    return getattr(x, name)[int(index)] if index else getattr(x, name)


def apart(value: Array, other: Array) -> Bounded:
    """A value with what its distance from another road says of it."""
    return Bounded(value, SAFETY * row_norm(value - other) + FLOOR * U * row_norm(value))


def of_inputs(
    p: Problem, x: FastWeights, first: Adjoint, second: Adjoint, back: Callable[[Array, int], Array]
) -> Mapping[str, Bounded]:
    """What is owed to inputs that no token has: the LayerNorm's, and first weights, by their lengths and, where no
    initial state is given, as the initial state."""
    found: dict[str, tuple[Array, Array]] = {}
    if x.norm:
        names = ("ln_weight", "ln_bias") if "ln_weight" in p.tensors else ("w", "b")
        for i, name in enumerate(names):
            one, two = (y.norm[:, :, i].sum(axis=0)[None, None] for y in (first, second))
            found[name] = one, back(two, 3)
    for i, (slot, state) in enumerate(zip(x.slots, p.op.states, strict=True)):
        if state.name not in p.tensors:
            continue
        one, two = (np.zeros(p.tensors[state.name].shape) for _ in range(2))
        if slot in x.start:
            one, two = first.start[slot].sum(axis=0), back(second.start[slot].sum(axis=0), 1)
        if unsaid(p, i):
            one = one + first.initial[i].astype(np.float64).sum(axis=0)
            two = two + back(second.initial[i].astype(np.float64).sum(axis=0), 1)
        found[state.name] = one, two
    return {name: apart(*pair) for name, pair in found.items()}


def unsaid(p: Problem, i: int) -> bool:
    """Whether nobody gave the initial value of a state, so that the input of its name is it."""
    given = p.asked.initial_state
    if given is None:
        return True
    if len(p.op.states) == 1:
        return False
    return (given.get(p.op.states[i].name) if isinstance(given, Mapping) else given[i]) is None
