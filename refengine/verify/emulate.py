"""A problem of the delta core, as a kernel of the declared policy would compute it.

The same machine with nothing rounded (policy "f64", nearest) is an exact solver whose recurrence and chunk algebra
can be altered: what a mistake would compute."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.delta import initial, unfolded
from ..engine.plan import available_cores
from ..engine.prepare import prepare, scale_of
from ..engine.problem import Problem
from ..errors import UnavailableError
from ..kernels import elementwise
from ..kernels import emulate as kernel
from ..kernels.rounding import POOL
from ..numbers import formats
from ..numbers.bounded import apply
from ..numbers.formats import Format
from ..numbers.philox import words
from ..spec import ERASE_KEY, Delta
from .policy import Policy

Array = NDArray[Any]
SMALL = 2**22  # multiplications of a problem that threads only slow down
COARSE = "f16", "bf16"  # of inverses with a precision of their own
WIPED = -1000.0  # the log of a decay of 0: its exponential is 0 in every format


@dataclass(frozen=True)
class Core:
    """The delta core's inputs as plain float64 arrays [B, T or M, heads, channels]; `g` is the log decay or None, `e`
    None, or `k` itself."""

    q: Array
    k: Array
    e: Array | None
    v: Array
    b: Array | None
    g: Array | None
    scale: float
    start: Array | None  # [N, heads, K, V]
    segments: tuple[tuple[int, int, int], ...]
    pre: bool = False
    micro: int = 1
    folded: tuple[int, int] | None = None  # (HV, V) where value channels were made heads
    problem: Problem | None = None  # what it was lowered from
    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # by `held`

    @classmethod
    def of(cls, p: Problem) -> Core:
        """The problem, prepared and lowered."""
        lowered, _ = prepare(p)
        return cls.lowered(p, lowered)

    @classmethod
    def lowered(cls, p: Problem, x: Any) -> Core:
        if not isinstance(x, Delta):
            raise UnavailableError(
                f"{p.title} is not of the delta core; only that and the exact learners can be emulated so far."
            )
        k = plain(x.k)
        folded = (p.sizes["HV"], p.sizes["V"]) if x.folded else None
        return cls(
            q=plain(x.q),
            k=k,
            e=None if x.e is None else k if x.e is ERASE_KEY else plain(x.e),
            v=plain(x.v),
            b=None if x.b is None else plain(x.b.heads(x.v.value.shape[2])),
            g=None if x.a is None else log_decay(plain(x.a)),
            scale=scale_of(p)[0],
            start=initial(p, x.folded),
            segments=tuple(p.segments),
            pre=x.order == "pre",
            micro=x.micro,
            folded=folded,
            problem=p,
        )

    def begins(self, run: Run) -> NDArray[np.bool_]:
        """[B, T]: the tokens that begin a chunk and are not the first of their sequence."""
        found = np.zeros((self.v.shape[0], self.v.shape[1] // self.micro), bool)
        for row, t0, t1 in self.segments if run.algorithm == "chunk" else ():
            found[row, cuts(self, run, t0, t1)[1:-1] // self.micro] = True
        return found

    def outputs(self, policy: Policy, run: Run) -> dict[str, Array]:
        """o and the final state in the policy's arithmetic."""
        o, final = emulate(self, policy, run)
        return {"o": o, "final_state": final}

    def held(self, name: str, form: Format, arithmetic: np.dtype[Any]) -> Array | None:
        """A tensor in the arithmetic, the same for every run, if all its numbers are of the format already."""
        x = getattr(self, name)
        if (name, form) not in self.kept:
            self.kept[name, form] = np.array_equal(formats.to_nearest(x, form), x)
        if not self.kept[name, form]:
            return None
        if (name, arithmetic) not in self.kept:
            self.kept[name, arithmetic] = x.astype(arithmetic, copy=False)
        found: Array = self.kept[name, arithmetic]
        return found


@dataclass(frozen=True)
class Run:
    """One way to compute it. seed: of the noise, 0 for rounding to nearest; phase: how much shorter the first chunk
    of each sequence is (0: whole), or, with whole_end, whatever makes the last one whole; permutation: seed of the
    order of the key channels, 0 as they are; splits: tokens after which each sequence is cut into calls, the state
    handed on in the policy's format; slips: names of `kernels.emulate.SLIPS`."""

    algorithm: str = "recurrent"
    chunk: int = 64
    phase: int = 0
    whole_end: bool = False
    seed: int = 0
    permutation: int = 0
    splits: tuple[int, ...] = ()
    slips: tuple[str, ...] = ()


def emulate(core: Core, policy: Policy, run: Run, threads: int | None = None) -> tuple[Array, Array]:
    """(o [B, T, HV, V], final_state [N, HV, K, V]) in the policy's arithmetic."""
    job = Job(core, policy, run)
    in_parallel(job, threads)
    o, final = job.o, job.final
    if core.folded:
        o, final = o.reshape(*o.shape[:2], *core.folded), unfolded(final, *core.folded)
    return o, final


def span(core: Core, run: Run) -> int:
    """Micro-steps of a whole chunk."""
    return max(core.micro, run.chunk // core.micro * core.micro)


def cuts(core: Core, run: Run, t0: int, t1: int) -> NDArray[np.int64]:
    """Micro-steps of the sequence t0 .. t1 where chunks begin and end; calls begin with a chunk."""
    micro, whole = core.micro, span(core, run)
    calls = sorted({t0, t1, *(t0 + s for s in run.splits if 0 < s < t1 - t0)})
    at = {t1 * micro}
    for left, right in pairwise(calls):
        begin = left * micro
        phase = ((right - left) * micro if run.whole_end else run.phase // micro * micro) % whole
        at |= {begin, *range(begin + (phase or whole), right * micro, whole)}
    return np.array(sorted(at), np.int64)


def in_parallel(job: Any, threads: int | None) -> None:
    """Every sequence and head of a job, the longest first."""
    core = job.core
    tasks = [(n, h) for n in range(len(core.segments)) for h in range(core.v.shape[2])]
    tasks.sort(key=lambda task: core.segments[task[0]][1] - core.segments[task[0]][2])
    small = core.v.size * core.k.shape[3] < SMALL
    count = 1 if small else min(threads or available_cores(), max(1, len(tasks)))
    if count == 1:
        for task in tasks:
            job.run(task)
        return
    job.run(tasks[0])  # compiled once, here
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(job.run, task) for task in tasks[1:]]:
            future.result()


class Job:
    """One emulation under way: inputs rounded, outputs to be filled, a task for each sequence and head."""

    def __init__(self, core: Core, policy: Policy, run: Run) -> None:
        self.core, self.policy, self.of = core, policy, run
        self.dtype = policy.arithmetic
        self.noise = formats.noise(run.seed, self.dtype)
        B, M, self.heads, self.V = core.v.shape
        self.K = core.k.shape[3]
        self.order = np.arange(self.K)
        if run.permutation:
            self.order = np.argsort(words(self.K, (0x6F726465, 0x72), stream=run.permutation), kind="stable")
        laps = iter(range(1, 99))

        def enter(name: str, part: str, otherwise: float) -> Array:
            x, form = getattr(core, name), policy.format(part)
            if x is None:
                return np.full((B, M, self.heads, 1), otherwise, self.dtype)
            cursor = next(laps) * 7919
            same = core.held(name, form, self.dtype)
            return formats.settle(x, form, self.dtype, run.seed, cursor) if same is None else same

        self.q = enter("q", "operand", 0.0)
        self.k = enter("k", "operand", 0.0)
        self.e = self.k if core.e is None or core.e is core.k else enter("e", "operand", 0.0)
        self.v = enter("v", "operand", 0.0)
        self.b = enter("b", "gate", 1.0)
        self.g = enter("g", "gate", 0.0)
        parts = [policy.format(part) for part in ("operand", "state", "io")]
        self.forms = tuple(form.form(self.dtype) for form in (*parts, *map(formats.get, COARSE)))
        self.on = tuple(part.within(self.dtype) for part in parts)
        self.wide = core.g is not None and core.g.shape[3] > 1
        # T of the WY form is shared by all columns, so steps of their own are beyond it
        self.chunked = run.algorithm == "chunk" and self.b.shape[3] == 1
        self.o = np.zeros((B, M // core.micro, self.heads, self.V), self.dtype)
        self.final = np.zeros((len(core.segments), self.heads, self.K, self.V), self.dtype)
        self.pad = kernel.PAD // self.dtype.itemsize
        self.Vp = -(-self.V // self.pad) * self.pad
        self.Kr = -(-self.K // kernel.ROWS) * kernel.ROWS
        self.span = span(core, run)
        self.local = local()

    def room(self) -> tuple[Array, ...]:
        """This thread's scratch arrays."""
        if not hasattr(self.local, "arrays"):
            L, Kr, Vp = self.pad, self.Kr, self.Vp
            Kp = -(-self.K // L) * L
            if self.chunked:
                C = -(-self.span // kernel.ROWS) * kernel.ROWS
                Cp = -(-self.span // L) * L
                widest = max(Kp, Vp, Cp)
                sizes = [C * Kp] * 3 + [Kr * Cp] + [C * widest] * 2 + [C * Cp] * 3
                sizes += [C * Kp, C * Vp, C * Vp, Kr * Vp, C * Vp, C * Kp, C * Kp, C * Kp, C, max(widest, Cp, C)]
            else:
                sizes = [Vp, Vp, Vp, max(self.K, 1)]
            self.local.arrays = tuple(np.zeros(max(size, 1), self.dtype) for size in sizes)
        arrays: tuple[Array, ...] = self.local.arrays
        return arrays

    def enter(self, n: int, h: int) -> Array:
        """The state before one sequence, [K to ROWS, padded V]."""
        S = np.zeros((self.Kr, self.Vp), self.dtype)
        if self.core.start is not None:
            stored, cursor = self.policy.format("state"), (n * 8191 + h * 131) % POOL
            given = self.core.start[n, h][self.order]
            S[: self.K, : self.V] = formats.settle(given, stored, self.dtype, self.of.seed, cursor)
        return S

    def rule(self, n: int, h: int) -> tuple[tuple[int, ...], int, tuple[Any, ...]]:
        """(which head of each array, where in the noise to begin, what the kernel does)."""
        heads = tuple(h // (self.heads // x.shape[2]) for x in (self.q, self.k, self.e, self.g, self.v))
        slips = sum(kernel.SLIPS[name] for name in self.of.slips)
        rule = (self.core.micro, self.core.pre, self.core.e is not None, self.wide, self.core.g is not None, slips)
        return heads, (n * 104729 + h * 7919) % POOL, rule

    def run(self, task: tuple[int, int]) -> None:
        n, h = task
        row, t0, t1 = self.core.segments[n]
        micro = self.core.micro
        S = self.enter(n, h)
        arrays = (self.q, self.k, self.e, self.v, self.b, self.g)
        heads, cursor, rule = self.rule(n, h)
        flat, scale = S.reshape(-1), self.dtype.type(self.core.scale)
        rest = (flat, self.room(), self.o, self.forms, self.on, self.noise, self.of.seed != 0, cursor, rule, scale)
        if self.chunked:
            if t1 > t0:
                kernel.chunked((row, t0 * micro), cuts(self.core, self.of, t0, t1), heads, self.order, *arrays, *rest)
        else:
            kernel.recurrent((row, t0 * micro), t1 * micro, heads, self.order, *arrays, *rest)
        self.final[n, h, self.order] = S[: self.K, : self.V]


def log_decay(a: Array) -> Array:
    """The logarithm of a decay, where it was the exponential of a float32 number that number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        g = np.maximum(apply(elementwise.log, np.maximum(a, np.finfo(np.float64).tiny)), WIPED)
    g = np.where(a > 0, g, WIPED)
    near = g.astype(np.float32).astype(np.float64)
    return np.where(np.abs(g - near) <= 1e-13 * (1.0 + np.abs(g)), near, g)


def plain(x: Any) -> Array:
    return np.ascontiguousarray(x.value, dtype=np.float64)
