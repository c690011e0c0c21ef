"""The fast weights' job: tasks over (sequence, value head), and what is said about their error.

A small problem is solved once more by its definition in balls, which encloses the exact answer: a rigorous bound.
For any other the same sums are taken a second time in the opposite order of channels (and in float64), with what the
front end may have rounded moved as far as it says. How far the two answers are apart is an honest measure of the
rounding and no proof, so that bound is labelled `compared`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from threading import Event, local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import elementwise, fast_rule, fast_steps
from ..kernels import fast_weights as kernel
from ..kernels._products import panel_shape
from ..numbers.bounded import Bounded
from ..spec import FastWeights
from .definition import define
from .delta import aligned, certain
from .plan import Plan, available_cores
from .prepare import scale_of
from .problem import Problem
from .run import run_all
from .solution import Answer

Array = NDArray[Any]
PIECE = 256  # tokens of a mini-batch that is one step taken at a time: they stay in the second-level cache
SPAN, WORK = 1024, 1 << 27  # tokens between two looks at the stop flag; or multiplications, if those take longer
BALLS = 400_000  # multiplications that the definition may take in balls, about a tenth of a second
BITS, RADIUS = (128, 512, 2048), 2.0**-70  # of a ball: tried in turn until none is wider than that
SAFETY, FLOOR = 8.0, 64.0  # of the compared bound: times the distance, and units of the last place of what is largest
MODELS = {"linear": fast_rule.LINEAR, "mlp": fast_rule.MLP, "swiglu": fast_rule.SWIGLU}
LOSSES = {"squared": fast_rule.SQUARED, "dot": fast_rule.DOT, "huber": fast_rule.HUBER, "power": fast_rule.POWER}
READS = {"during": fast_rule.DURING, "before": fast_rule.BEFORE, "after": fast_rule.AFTER}
OUTPUTS = {"plain": fast_rule.PLAIN, "query": fast_rule.RESIDUAL_QUERY, "self": fast_rule.RESIDUAL_OUTPUT}
WEIGHT_NORMS = {"none": fast_rule.NO_NORM, "post": fast_rule.POST_NORM, "pre": fast_rule.PRE_NORM}


@dataclass(frozen=True)
class Operands:
    """The lowered inputs as the kernel takes them, in one float type; gates in float64."""

    vectors: tuple[Array, ...]  # q k v
    gates: tuple[Array, ...]  # a eta reader [B, T, HV], theta [B, T, HV, 1 or 3], a by channels [B, T, HV, K] or [0]
    norm: tuple[Array, Array]  # LayerNorm weight and bias [HV, V]
    rule: tuple[int, ...]
    numbers: tuple[Any, ...]
    steps: Array

    @classmethod
    def of(cls, p: Problem, x: FastWeights, dtype: np.dtype[Any]) -> Operands:
        B, T, HV = (p.sizes[a] for a in ("B", "T", "HV"))
        q, k, v = (np.ascontiguousarray(y.value, dtype=dtype) for y in (x.q, x.k, x.v))
        one = np.ones((B, T, HV))

        def gate(y: Any) -> Array:
            return one if y is None else np.ascontiguousarray(y.heads(HV).value[..., 0], dtype=np.float64)

        reader = harmonic(p) if isinstance(x.reader, str) else gate(x.reader)
        theta = np.ascontiguousarray(np.concatenate([y.heads(HV).value for y in x.theta], axis=3), dtype=np.float64)
        V = v.shape[3]
        ln = x.norm or (np.ones((HV, V)), np.zeros((HV, V)))
        rule = {
            "model": MODELS[x.model],
            "act": fast_rule.GELU if x.activation == "gelu" and x.model != "swiglu" else fast_rule.SILU,
            "loss": LOSSES[x.loss],
            "read": READS[x.read],
            "output": OUTPUTS[x.output],
            "inner": not x.whole,
            "bias": "b2" in x.slots,
            "decays": x.decay is not None and not x.by_channel,
            "momentum": x.eta is not None,
            "before": x.before,
            "muon": x.muon is not None,
            "grouped": x.grouped,
            "overwrite": x.overwrite,
            "weight_norm": WEIGHT_NORMS[x.weight_norm],
            "norm_inside": x.norm_inside,
            "by_channel": x.by_channel,
            "backwards": x.backwards,
        }
        eta = 0.0 * one if x.eta is None else gate(x.eta)
        numbers = (dtype.type(scale_of(p)[0]), x.norm_eps, x.loss_parameter)
        steps = np.zeros((0, 3)) if x.muon is None else np.asarray(x.muon, dtype=np.float64)
        norm = (np.ascontiguousarray(ln[0], dtype=dtype), np.ascontiguousarray(ln[1], dtype=dtype))
        fade = np.zeros((0, 0, 0, 0))
        if x.by_channel:
            fade = np.ascontiguousarray(x.decay.heads(HV).value, dtype=np.float64)
        decay = one if x.by_channel else gate(x.decay)
        return cls((q, k, v), (decay, eta, reader, theta, fade), norm, codes(rule), numbers, steps)


def codes(rule: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(rule[name]) for name in fast_rule.RULE)


def harmonic(p: Problem) -> Array:
    """1 / (the token's place in its mini-batch, from 1)."""
    out = np.ones((p.sizes["B"], p.sizes["T"], p.sizes["HV"]))
    for row, t0, t1 in p.segments:
        out[row, t0:t1] = 1.0 / (1 + np.arange(t1 - t0) % p.options["chunk_size"])[:, None]
    return out


class Weights:
    """One head's memory as the kernel keeps it, [in, out], and as the op names it."""

    def __init__(self, x: FastWeights, shapes: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        K, R, V = shapes
        wide = 2 * R if x.model == "swiglu" else R
        one_layer = x.model == "linear"
        first = (0, 0) if one_layer else (K, wide)
        second = (K, V) if one_layer else (R, V)
        self.R = R
        self.layers = tuple(aligned(s, dtype) for s in (first, first[1:], second, second[1:]))
        self.sides = tuple(aligned(s, dtype) for s in (first, first[1:], second, second[1:]))

    def view(self, slot: str) -> Array:
        """What a state of that name is here."""
        where = self.sides if slot[0] in "Pc" else self.layers
        if slot in ("W1", "P1", "b1", "c1"):
            return where[0 if slot[0] in "WP" else 1]
        if slot in ("W2", "P2", "b2", "c2"):
            return where[2 if slot[0] in "WP" else 3]
        part = slot.removeprefix("P")
        if part == "down":
            return where[2].T
        return (where[0][:, : self.R] if part == "gate" else where[0][:, self.R :]).T

    def copy(self) -> Weights:
        other = object.__new__(Weights)
        other.R = self.R
        other.layers = tuple(a.copy() for a in self.layers)
        other.sides = tuple(a.copy() for a in self.sides)
        return other


class Job:
    """One problem under way."""

    def __init__(self, p: Problem, x: FastWeights, threads: int | None) -> None:
        self.p, self.x = p, x
        self.dtype = np.dtype(p.precision)
        self.operands = Operands.of(p, x, self.dtype)
        q, k, v = self.operands.vectors
        B, T = q.shape[:2]
        self.heads = v.shape[2]
        self.shapes = (k.shape[3], p.sizes.get("R", 0), v.shape[3])
        self.o = np.zeros((B, T, self.heads, v.shape[3]), self.dtype)
        N = len(p.segments)
        self.chunks = [as_chunks(p.mini_batches(n)) for n in range(N)]
        self.span = max(
            SPAN, WORK // (8 * max(1, self.shapes[0] * self.shapes[2] + 3 * sum(self.shapes) * self.shapes[1]))
        )
        self.longest = max((int((c[:, 1] - c[:, 0]).max(initial=1)) for c in self.chunks), default=1)
        sizes = [tuple(p.sizes[a] for a in t.axes[0].split()[2:]) for t in p.op.states]
        self.final = tuple(np.zeros((N, self.heads, *s), self.dtype) for s in sizes)
        self.states = tuple(np.zeros((len(p.states_at), N, self.heads, *s), self.dtype) for s in sizes)
        tasks = N * self.heads
        many = max(1, min(threads or available_cores(), tasks))
        why = "mini-batches in turn, each by its dual form (matrix products alone)"
        self.plan = Plan("dual", why, many, 1, panel_shape(self.dtype.itemsize)[1], tasks)
        self.room = local()

    def tasks(self) -> Iterator[tuple[int, int]]:
        """(sequence, head), longest sequences first."""
        order = sorted(range(len(self.p.segments)), key=lambda n: self.p.segments[n][1] - self.p.segments[n][2])
        return ((n, h) for n in order for h in range(self.heads))

    def scratch(self) -> tuple[Any, ...]:
        """This thread's room for one mini-batch."""
        if not hasattr(self.room, "arrays"):
            tokens = min(self.longest, PIECE) if self.x.whole else self.longest
            self.room.arrays = scratch(self.x, self.shapes, tokens, self.dtype)
        arrays: tuple[Any, ...] = self.room.arrays
        return arrays

    def begin(self, n: int, h: int) -> tuple[Weights, tuple[Array, ...]]:
        """The memory before the first token, and the lengths its columns keep."""
        memory = Weights(self.x, self.shapes, self.dtype)
        first = Weights(self.x, self.shapes, self.dtype)
        untouched = 1.0
        for slot, given in zip(self.x.slots, self.p.initial, strict=True):
            if slot in self.x.start:
                first.view(slot)[...] = self.x.start[slot][h]
            if given is not None:
                memory.view(slot)[...] = given[n, h]
            if slot in self.x.start and not np.array_equal(memory.view(slot), first.view(slot)):
                untouched = 0.0
        lengths = np.empty(first.layers[0].shape[1]), np.empty(first.layers[2].shape[1]), np.array([untouched])
        fast_steps.column_norms(first.layers[0], -1, lengths[0])
        fast_steps.column_norms(first.layers[2], -1, lengths[1])
        return memory, lengths

    def go(self, n: int, h: int, chunks: Array, memory: Weights, lengths: tuple[Array, ...], o: Array) -> None:
        """Some mini-batches of one head."""
        given = self.operands
        shared = tuple(h // (self.heads // y.shape[2]) for y in given.vectors)
        ln = tuple(y[h] for y in given.norm)
        kernel.run(
            (self.p.segments[n][0], *shared), chunks, *given.vectors, given.gates, memory.layers, memory.sides, lengths,
            ln, o, self.scratch(), given.rule, given.numbers, given.steps,
        )  # fmt: skip

    def run(self, task: tuple[int, int], stop: Event, done: Callable[[int], None]) -> None:
        """One head of one sequence, from the initial to the final state."""
        n, h = task
        t0 = self.p.segments[n][1]
        chunks = self.chunks[n]
        memory, lengths = self.begin(n, h)
        at, size = 0, self.p.options["chunk_size"]
        for after in [*sorted(set(self.p.states_at)), None]:
            goal = len(chunks) if after is None else after // size
            while at < goal:
                if stop.is_set():
                    return
                upto = at + max(1, int(np.searchsorted(chunks[at:goal, 1], chunks[at, 0] + self.span, side="right")))
                self.go(n, h, chunks[at:upto], memory, lengths, self.o)
                done(int((chunks[at:upto, 1] - chunks[at:upto, 0]).sum()))
                at = upto
            if after is not None:
                self.remember(n, h, (t0 + goal * size, t0 + after), memory, lengths)
        for state, slot in zip(self.final, self.x.slots, strict=True):
            state[n, h] = memory.view(slot)

    def remember(self, n: int, h: int, part: tuple[int, int], memory: Weights, lengths: tuple[Array, ...]) -> None:
        """The state after so many tokens, the last mini-batch begun but not whole."""
        other, kept = memory.copy(), tuple(x.copy() for x in lengths)
        self.go(n, h, as_chunks(self.p.batches(*part)), other, kept, np.empty_like(self.o))
        after = part[1] - self.p.segments[n][1]
        for j in (j for j, t in enumerate(self.p.states_at) if t == after):
            for state, slot in zip(self.states, self.x.slots, strict=True):
                state[j, n, h] = other.view(slot)

    def compile(self) -> None:
        """Have the kernel compiled here, where Ctrl-C is heard, by asking it for no tokens."""
        if self.final[0].size and self.p.segments:
            memory, lengths = self.begin(0, 0)
            self.go(0, 0, np.zeros((0, 4), np.int64), memory, lengths, self.o)

    @property
    def work(self) -> int:
        return int(self.heads * sum((c[:, 1] - c[:, 0]).sum() for c in self.chunks))

    def answer(self) -> Answer:
        rigorous = affordable(self.p, self.x, self.shapes)
        o_bound, final_bound = enclosed(self) if rigorous else compared(self)
        said = "rigorous (the definition in balls)" if rigorous else "compared (the same sums in the opposite order)"
        finite = [np.isfinite(state).all(axis=2) for state in self.final]
        bounds = tuple(certain(b, f) for b, f in zip(final_bound, finite, strict=True))
        certain_o = certain(o_bound, np.isfinite(self.o).all(axis=-1))
        return Answer(self.o, certain_o, self.final, bounds, self.states, said)


def as_chunks(batches: list[tuple[int, int, bool, bool]]) -> Array:
    return np.array(batches, dtype=np.int64).reshape(-1, 4)


def scratch(x: FastWeights, shapes: tuple[int, int, int], C: int, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """The kernel's room for C tokens at a time."""
    K, R, V = shapes
    one_layer = x.model == "linear"
    wide = 0 if one_layer else 2 * R if x.model == "swiglu" else R
    R = K if one_layer else R
    few = 0 if one_layer else C
    biased = "b2" in x.slots
    square = C * C if x.read == "during" else 0

    def room(*shape: int) -> Array:
        return aligned(shape, dtype)

    def gram(rows: int, cols: int) -> tuple[Array, ...]:
        side = min(rows, cols) if x.muon is not None else 0
        return room(side, side), room(side, side), room(rows, cols)

    inputs = (room(C, K), room(C, K), room(C, V), room(C + 1, K), room(C if x.by_channel else 0, K))
    rows1 = (
        tuple(room(C, n) for n in (wide, R, wide, wide, R, wide, R, wide, wide))
        if few
        else tuple(room(C, n) for n in (0, R, 0, 0, 0, 0, R, 0, 0))
    )
    rows2 = tuple(room(C, V) for _ in range(5))
    mixes = (room(square), aligned((square,), np.dtype(np.float64)))
    first, second = (0 if one_layer else K, wide), (R, V)
    split = x.model == "swiglu" and x.muon is not None and not x.grouped
    half = (K, R) if split else (0, 0)
    leaps = (
        room(*first), room(*second), room(*first), room(*second),
        np.empty(wide if biased else 0), np.empty(V if biased else 0), np.empty(wide), np.empty(V),
        gram(*(half if split else first)), gram(*second), (room(*half), room(*half), room(*half)),
    )  # fmt: skip
    return inputs, rows1, rows2, mixes, np.zeros((10, C)), leaps, aligned(panel_shape(dtype.itemsize), dtype)


def affordable(p: Problem, x: FastWeights, shapes: tuple[int, int, int]) -> bool:
    """Whether the definition in balls is a matter of a moment."""
    K, R, V = shapes
    weights = K * V if x.model == "linear" else (3 if x.model == "swiglu" else 2) * max(K, V) * R
    size = p.options["chunk_size"]
    tokens = sum(t1 - t0 for _, t0, t1 in p.segments) * p.sizes["HV"]
    each = weights * (4 + (size if x.read == "during" else 0))
    if x.muon is not None:
        side = min(K, R, V)
        each += len(x.muon) * (2 * weights * side + 3 * side**3) // size
    return tokens * each <= BALLS and find_spec("flint") is not None


def enclosed(job: Job) -> tuple[Array, list[Array]]:
    """How far the answer is from any point of the balls; with more bits until those are small."""
    from flint import arb, ctx

    def away(values: Array, balls: Array) -> Array:
        each = np.frompyfunc(lambda y, ball: float(abs(arb(float(y)) - ball).abs_upper()), 2, 1)
        with np.errstate(all="ignore"):
            return np.asarray(each(values, balls), dtype=np.float64).reshape(values.shape)

    def wide(balls: Array) -> bool:
        return any(not ball.rad() <= abs(ball).abs_upper() * RADIUS for ball in balls.ravel() if ball.rad() > RADIUS)

    before = ctx.prec
    try:
        for bits in BITS:
            ctx.prec = bits
            o, final = define(job.p, "balls")
            finals = final if isinstance(final, tuple) else (final,)
            if not any(map(wide, (o, *finals))):
                break
    finally:
        ctx.prec = before
    up = 1.0 + 2.0**-20  # over the roundings of a length, and into the answer's own type
    columns = [length(away(mine, balls)) * up for mine, balls in zip(job.final, finals, strict=True)]
    return away(job.o, o).max(axis=-1, initial=0.0) * up, columns


def length(x: Array) -> Array:
    """The Euclidean norm of each column of a state [N, HV, rows, columns], or of a vector [N, HV, entries]."""
    return np.asarray(np.sqrt(np.square(x).sum(axis=2)))


def backwards(x: Array, kept: int) -> Array:
    """Every axis but the first few in the opposite order."""
    return np.ascontiguousarray(x[(slice(None),) * kept + (slice(None, None, -1),) * (x.ndim - kept)])


def opposite_problem(p: Problem) -> Problem:
    """The same question in float64 with every channel's axis turned round."""
    initial = tuple(None if x is None else backwards(x, 2) for x in p.initial)
    return replace(p, initial=initial, states_at=(), asked=replace(p.asked, precision="float64"))


def opposite(x: FastWeights) -> FastWeights:
    """The lowered inputs likewise, each row moved by the error it may have."""

    def moved(y: Bounded) -> Bounded:
        if not y.error.any():
            return y
        D = y.value.shape[-1]
        push = y.error[..., None] * np.where(np.arange(D) % 2, -1.0, 1.0) / np.sqrt(D)
        return Bounded.exact(y.value + push)

    norm = tuple(backwards(y, 1) for y in x.norm)
    start = {slot: backwards(y, 1) for slot, y in x.start.items()}
    decay = Bounded.exact(backwards(x.decay.value, 3)) if x.by_channel else x.decay
    theta = tuple(moved(y) for y in x.theta)
    q, k, v = moved(x.q), moved(x.k), moved(x.v)
    return replace(x, q=q, k=k, v=v, norm=norm, start=start, decay=decay, theta=theta, backwards=True)


def compared(job: Job) -> tuple[Array, list[Array]]:
    """A multiple of the distance to the same sums in the opposite order, the largest so far in each sequence."""
    p = job.p
    other = Job(opposite_problem(p), opposite(job.x), job.plan.threads)
    run_all(other, None)
    u = 2.0**-53
    rounding = SAFETY if job.dtype == np.float64 else 1.0 + SAFETY * 2.0**-20
    apart, size = np.empty(job.o.shape[:-1]), np.empty(job.o.shape[:-1])
    V = job.o.shape[-1]
    elementwise.furthest(job.o.reshape(-1, V), other.o.reshape(-1, V), apart.reshape(-1), size.reshape(-1))
    bound = np.zeros(apart.shape)
    for row, t0, t1 in p.segments:
        so_far = rounding * apart[row, t0:t1] + FLOOR * u * size[row, t0:t1]
        bound[row, t0:t1] = np.maximum.accumulate(so_far, axis=0)
    finals = []
    for mine, theirs in zip(job.final, other.final, strict=True):
        wide = np.asarray(mine, dtype=np.float64)
        distance, size = length(wide - backwards(theirs, 2)), length(wide)
        finals.append(rounding * distance + FLOOR * u * size)
    return bound, finals
