"""A problem of the exact learner (MesaNet, Gated KalmaNet) as a kernel of the declared policy would compute it.

Where the system is to be solved exactly: by Cholesky's factors (a recurrent kernel), or by conjugate gradients that
have converged (a chunked one). A kernel that takes so many steps and no more implements another definition,
solver="cg", and is judged as that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.prepare import prepare, scale_of
from ..engine.problem import Problem
from ..errors import UnavailableError
from ..kernels import elementwise
from ..kernels import emulate_mesa as kernel
from ..kernels.rounding import POOL
from ..numbers import formats
from ..numbers.bounded import apply
from ..numbers.philox import words
from ..spec import Mesa
from .emulate import Core, Run, in_parallel, log_decay, plain
from .policy import Policy

Array = NDArray[Any]
CONVERGED = 2  # steps of conjugate gradients for each key channel
NEARLY_0 = 1e-30  # what they add to a denominator


@dataclass(frozen=True)
class Learner:
    """The exact learner's inputs as plain float64 arrays [B, T, heads, channels]; `g` the log decay, lamb [heads,
    K or 1], mix [B, T, heads, 1] or None, start (h_kk, h_kv) or None."""

    q: Array
    k: Array
    v: Array
    b: Array
    g: Array
    lamb: Array
    mix: Array | None
    share: bool
    solver: str
    steps: int
    eps: float
    diagonal: bool
    scale: float
    start: tuple[Array, Array] | None
    segments: tuple[tuple[int, int, int], ...]
    names: tuple[str, ...]
    micro: int = 1
    problem: Problem | None = None  # what it was lowered from

    @classmethod
    def lowered(cls, p: Problem, x: Mesa) -> Learner:
        if x.solver == "chebyshev":
            raise UnavailableError(f"{p.op.name} by Chebyshev's steps cannot be emulated so far; solver='exact' can.")
        heads = x.v.value.shape[2]
        keys, values = p.initial
        return cls(
            q=plain(x.q),
            k=plain(x.k),
            v=plain(x.v),
            b=plain(x.b.heads(heads)),
            g=log_decay(plain(x.a.heads(heads))),
            lamb=plain(x.lamb)[0, 0],
            mix=None if x.mix is None else plain(x.mix),
            share=x.share,
            solver=x.solver,
            steps=CONVERGED * p.sizes["K"] if x.solver == "exact" else x.iterations,
            eps=NEARLY_0 if x.solver == "exact" else x.eps,
            diagonal=x.start == "diagonal",
            scale=scale_of(p)[0],
            start=None if keys is None or values is None else (np.asarray(keys, np.float64), np.asarray(values)),
            segments=tuple(p.segments),
            names=tuple(p.op.final_names()),
            problem=p,
        )

    def outputs(self, policy: Policy, run: Run) -> dict[str, Array]:
        """o and the final states in the policy's arithmetic."""
        order = np.arange(self.k.shape[3])
        if run.permutation:
            order = np.argsort(words(len(order), (0x6F726465, 0x72), stream=run.permutation), kind="stable")
        job = _Job(self.permuted(order), policy, run)
        in_parallel(job, None)
        back = np.argsort(order)
        finals = job.final[0][:, :, back][..., back], job.final[1][:, :, back]
        return {"o": job.o, **dict(zip(self.names, map(np.ascontiguousarray, finals), strict=True))}

    def permuted(self, order: NDArray[np.integer]) -> Learner:
        """Key channels in another order."""
        start = self.start
        if start is not None:
            start = start[0][:, :, order][..., order], start[1][:, :, order]
        lamb = self.lamb if self.lamb.shape[1] == 1 else self.lamb[:, order]
        return replace(self, q=self.q[..., order], k=self.k[..., order], lamb=lamb, start=start)


def core_of(p: Problem) -> Core | Learner:
    """The problem lowered, as what can be emulated."""
    lowered, _ = prepare(p)
    return Learner.lowered(p, lowered) if isinstance(lowered, Mesa) else Core.lowered(p, lowered)


class _Job:
    """One emulation under way: inputs rounded, outputs to be filled, a task for each sequence and head."""

    def __init__(self, core: Learner, policy: Policy, run: Run) -> None:
        self.core, self.policy, self.of = core, policy, run
        self.dtype = policy.arithmetic
        self.noise = formats.noise(run.seed, self.dtype)
        laps = iter(range(1, 99))

        def enter(x: Array, part: str) -> Array:
            return formats.settle(x, policy.format(part), self.dtype, run.seed, cursor=next(laps) * 7919)

        self.q, self.k, self.v = (enter(x, "operand") for x in (core.q, core.k, core.v))
        self.b = enter(core.b, "gate")
        decay = apply(elementwise.exp, enter(core.g, "gate").astype(np.float64))
        self.a = np.ascontiguousarray(decay.astype(self.dtype))
        none = np.zeros((1, 1, 1, 1), self.dtype)
        self.mix = none if core.mix is None else enter(core.mix, "gate")
        self.lamb = enter(core.lamb, "gate")
        parts = [policy.format(part) for part in ("operand", "state", "io")]
        self.forms = tuple(part.form(self.dtype) for part in parts)
        self.on = tuple(part.within(self.dtype) for part in parts)
        self.K, self.V, self.heads = core.k.shape[3], core.v.shape[3], core.v.shape[2]
        self.o = np.zeros(core.v.shape, self.dtype)
        shape = (len(core.segments), self.heads, self.K)
        self.final = np.zeros((*shape, self.K), self.dtype), np.zeros((*shape, self.V), self.dtype)
        self.local = local()

    def room(self) -> tuple[Array, ...]:
        if not hasattr(self.local, "arrays"):
            K, V = self.K, self.V
            sizes = [K] * 6 + [K * K, K * K, K * V, max(K, V)]
            self.local.arrays = tuple(np.zeros(max(size, 1), self.dtype) for size in sizes)
        arrays: tuple[Array, ...] = self.local.arrays
        return arrays

    def run(self, task: tuple[int, int]) -> None:
        n, h = task
        row, t0, t1 = self.core.segments[n]
        stored, cursor = self.policy.format("state"), (n * 104729 + h * 7919) % POOL
        states = [np.zeros((self.K, width), self.dtype) for width in (self.K, self.V)]
        if self.core.start is not None:
            for i, given in enumerate(self.core.start):
                states[i][:] = formats.settle(given[n, h], stored, self.dtype, self.of.seed, cursor)
        H, G = (x.reshape(-1) for x in states)
        of = (self.q, self.k, self.v, self.mix)
        heads = (
            *(h // (self.heads // x.shape[2]) if x.shape[2] > 1 else 0 for x in of),
            h if len(self.lamb) > 1 else 0,
        )
        exact = self.core.solver == "exact" and self.of.algorithm == "recurrent"
        rule = (exact, self.core.steps, self.core.diagonal, self.core.share, self.core.mix is not None)
        arrays = (self.q, self.k, self.v, self.b, self.a, self.mix, self.lamb, H, G, self.room(), self.o)
        how = (self.forms, self.on, self.noise, self.of.seed != 0, cursor, rule)
        numbers = (self.dtype.type(self.core.scale), self.dtype.type(self.core.eps))
        kernel.learned((row, t0), t1, heads, *arrays, *how, *numbers)
        self.final[0][n, h], self.final[1][n, h] = H.reshape(self.K, -1), G.reshape(self.K, -1)
