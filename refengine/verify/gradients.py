"""Gradients as a backward kernel of the declared policy would compute them: chunk by chunk, and through what comes
before the op in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.delta import unfolded
from ..engine.delta_grad import folded
from ..engine.gradient import Gradient, as_given, last_states, like, of_problem, transposed
from ..engine.prepare import prepare
from ..engine.problem import Problem
from ..errors import UnavailableError
from ..kernels import emulate as forward
from ..kernels import emulate_grad as kernel
from ..numbers import formats
from ..numbers.bounded import Bounded
from ..numbers.traced import Traced, leaf
from ..spec import Delta
from .emulate import Core, Job, Run, cuts, in_parallel
from .policy import Policy
from .yardstick import part_of

Array = NDArray[Any]
WITHOUT_CHUNKS = 16  # a recurrent policy's backward pass is emulated in chunks of so many steps


@dataclass(frozen=True)
class Backward:
    """A problem's gradients asked for: the truth, the tape back to its inputs, and the core's cotangents."""

    problem: Problem
    core: Core
    lowered: Any
    leaves: Mapping[str, Traced]
    do: Array  # [B, T, heads, V] of the core
    dht: Array | None
    truth: Gradient

    @classmethod
    def of(cls, p: Problem, core: Core, do: Any, dht: Any) -> Backward:
        leaves: dict[str, Traced] = {}
        lowered, _ = prepare(p, lambda name, array: leaves.setdefault(name, leaf(array)))
        if not isinstance(lowered, Delta) or (core.b is not None and core.b.shape[3] > 1):
            raise UnavailableError(f"{p.title} as it is asked here has no gradients that can be judged so far.")
        sizes = tuple(p.sizes[letter] for letter in ("B", "T", "HV", "V"))
        asked = np.zeros(sizes) if do is None else like("do", do, sizes, "[B, T, HV, V]", p)
        end = last_states(p, dht)[0]
        B, T = sizes[:2]
        return cls(
            p,
            core,
            lowered,
            leaves,
            np.ascontiguousarray(asked.reshape(B, T, core.v.shape[2], -1), np.float64),
            folded(None if end is None else np.asarray(end, np.float64), lowered.folded),
            of_problem(p, do, dht),
        )

    def inputs(self, operands: Mapping[str, Array], initial: Array) -> dict[str, Array]:
        """What is owed to every input, from what is owed to the core's."""
        owed = transposed(self.lowered, {name: Bounded.exact(x) for name, x in operands.items()})
        found = {}
        for name, x in self.leaves.items():
            value = owed.get(x.serial, x.number.filled(0.0)).value
            found[f"d{name}"] = as_given(self.problem, name, value)
        return {**found, "dinitial_state": initial}


class _Back(Job):
    """One emulated backward pass under way; every value head has gradients of its own until the end."""

    def __init__(self, of: Backward, policy: Policy, run: Run, wrong: int) -> None:
        super().__init__(of.core, policy, run)
        self.back, self.wrong = of, wrong
        B, M, heads, T = *self.core.v.shape[:3], self.o.shape[1]
        self.do = formats.settle(of.do, policy.format("operand"), self.dtype, run.seed, cursor=97 * 7919)
        each = {"dq": (T, self.K), "dk": (M, self.K), "de": (M, self.K), "dv": (M, self.V), "db": (M, 1)}
        wide = 1 if self.core.g is None else self.core.g.shape[3]
        self.found = {n: np.zeros((B, m, heads, d), self.dtype) for n, (m, d) in {**each, "dg": (M, wide)}.items()}

    def more_room(self) -> tuple[Array, ...]:
        """This thread's scratch arrays of the way back."""
        if not hasattr(self.local, "more"):
            rows = forward.ROWS
            C, Vr = -(-self.span // rows) * rows, -(-self.V // rows) * rows
            Kp, Cp = (-(-n // self.pad) * self.pad for n in (self.K, self.span))
            Vp, Kr = self.Vp, self.Kr
            sizes = [C * Vp] * 3 + [C * Kp] * 6 + [C * Cp] * 4 + [Kr * Vp, Vr * Kp, Vr * Kp, Vr * Cp, Kr * Cp, Kr * Vp]
            sizes += [C, max(Kp, C)]
            self.local.more = tuple(np.zeros(max(size, 1), self.dtype) for size in sizes)
        arrays: tuple[Array, ...] = self.local.more
        return arrays

    def run(self, task: tuple[int, int]) -> None:
        n, h = task
        row, t0, t1 = self.core.segments[n]
        S, Z = self.enter(n, h), np.zeros((self.Kr, self.Vp), self.dtype)
        if self.back.dht is not None:
            Z[: self.K, : self.V] = self.back.dht[n, h][self.order]
        at = cuts(self.core, self.of, t0, t1)
        heads, cursor, rule = self.rule(n, h)
        marks = np.zeros((max(len(at) - 1, 1), S.size), self.dtype)
        where, scale, noisy = (row, t0 * self.core.micro), self.dtype.type(self.core.scale), self.of.seed != 0
        arrays = (self.q, self.k, self.e, self.v, self.b, self.g)
        for c in range(len(at) - 1):
            marks[c] = S.reshape(-1)
            rest = (S.reshape(-1), self.room(), self.o, self.forms, self.on, self.noise, noisy, cursor, rule, scale)
            cursor = forward.chunked(where, at[c : c + 2], heads, self.order, *arrays, *rest)
        room = (self.do, Z.reshape(-1), self.room(), self.more_room(), marks, *self.found.values())
        how = (self.forms, self.on, self.noise, noisy, cursor, rule, self.wrong, scale)
        kernel.backward(where, at, heads, self.order, *arrays, *room, *how)
        self.final[n, h, self.order] = Z[: self.K, : self.V]


def by_chunks(run: Run) -> Run:
    """How the way back is emulated."""
    return run if run.algorithm == "chunk" else replace(run, algorithm="chunk", chunk=WITHOUT_CHUNKS)


def emulate(
    of: Backward, policy: Policy, run: Run, slips: tuple[str, ...] = (), threads: int | None = None
) -> dict[str, Array]:
    """The gradients of every input, by their names with a d before, in float64 but rounded to the policy's formats."""
    run = by_chunks(run)
    job = _Back(of, policy, run, sum(kernel.SLIPS[name] for name in slips))
    in_parallel(job, threads)
    core, found = of.core, job.found
    shared = of.lowered.e is not None and core.e is core.k
    operands = {"q": found["dq"], "k": found["dk"] + found["de"] if shared else found["dk"], "v": found["dv"]}
    if core.e is not None and not shared:
        operands["e"] = found["de"]
    if core.b is not None:
        operands["b"] = found["db"]
    if core.g is not None:
        a = np.asarray(of.lowered.a.value, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            operands["a"] = np.where(a > 0, gathered(found["dg"], a.shape[2]) / a, 0.0)
    for name in operands:
        operands[name] = gathered(operands[name], getattr(of.lowered, name).value.shape[2])
    initial = job.final.astype(np.float64)
    if core.folded:
        initial = unfolded(initial, *core.folded)
    return {
        name: formats.settle(x, policy.format(part_of(name, x.ndim)), policy.arithmetic, run.seed, 89 * 7919).astype(
            np.float64
        )
        for name, x in of.inputs(operands, initial).items()
    }


def gathered(x: Array, heads: int) -> Array:
    """What value heads owe together to the heads that they share, in float64."""
    B, M, every, D = x.shape
    return np.asarray(x.astype(np.float64).reshape(B, M, heads, every // heads, D).sum(axis=3))
