"""What a recurrent kernel is expected to err, without running one: second moments of independent roundings.

With P = E sum over the value channels of (error of S) (error of S)' [K, K], u^ = KAPPA u of each format, e erasing,
X the state that is predicted from (S~, or S where it is not decayed yet) and d = b (v - X' e), every step, with its
decays as kernels form them, S~ = a S, d, and S = S~ + k d':

    P <- diag(a) P diag(a) + E aa' o SS' + diag(m~)                     E aa' o SS': see `decays`
    P <- (1 - b k e') P (1 - b k e')' + n k k' + diag(m)                (e meets P as it was, where X is not decayed)
    n = b^2 (u^_op^2 sum_i e_i^2 |X_i|^2 + sums) + u^_op^2 |d|^2        m_i = u^_state^2 |S_i|^2 + sums
    sigma_o^2 = s^2 (q' P q + u^_op^2 sum_i q_i^2 |S_i|^2 + sums) + u^_io^2 |o|^2

m~ and `sums` are the roundings of the arithmetic itself: of every partial sum, whose last product is fused into it,
and of what is multiplied alone. It is what an emulation of the recurrence errs on average, at every token, to within
15 % (tests/verify/test_predict.py), and says which kind of rounding owns how much of it.
Inputs are taken as numbers of the declared formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnavailableError
from ..numbers.formats import KAPPA, to_nearest
from .emulate import Core
from .policy import Policy

Array = NDArray[Any]
SITES = ("operand", "state", "io", "accum")


@dataclass(frozen=True)
class Expected:
    """Root mean square errors: of rows of o [B, T, HV] and of rows of the final state [N, HV, K], Euclidean."""

    o: Array
    final_state: Array


def predicted(core: Core, policy: Policy, sites: Sequence[str] = SITES) -> Expected:
    """What the recurrence errs in the policy's formats; `sites`: the roundings that are made."""
    if core.folded or (core.b is not None and core.b.shape[3] > 1):
        raise UnavailableError("Steps of each value channel's own are beyond the prediction.")
    wide = policy.arithmetic
    size = {site: (KAPPA * policy.format(site).u) ** 2 for site in sites}
    noise = {s: size.get(s, 0.0) if s == "accum" or policy.format(s).within(wide) else 0.0 for s in SITES}
    B, M, heads, _ = core.v.shape
    o = np.zeros((B, M // core.micro, heads))
    final = np.zeros((len(core.segments), heads, core.k.shape[3]))
    for n, (row, t0, t1) in enumerate(core.segments):
        o[row, t0:t1], final[n] = _sequence(core, noise, policy, n, row, t0 * core.micro, t1 * core.micro)
    return Expected(np.sqrt(o), np.sqrt(final))


def shares(core: Core, policy: Policy) -> dict[str, float]:
    """Which part of the expected squared error of o each kind of rounding owns."""
    alone = {site: float((predicted(core, policy, (site,)).o ** 2).sum()) for site in SITES}
    total = sum(alone.values())
    return {site: part / total for site, part in alone.items()} if total else alone


def _sequence(
    core: Core, noise: Mapping[str, float], policy: Policy, n: int, row: int, m0: int, m1: int
) -> tuple[Array, Array]:
    """Squares of one sequence: (of o [T, heads], of the final state's rows [heads, K])."""
    heads, stored = core.v.shape[2], policy.format("operand")
    op, sums = noise["operand"], noise["accum"]

    def at(x: Array, m: int) -> Array:
        return np.repeat(x[row, m], heads // x.shape[2], axis=0)

    K, V = core.k.shape[3], core.v.shape[3]
    S = np.zeros((heads, K, V)) if core.start is None else core.start[n].astype(np.float64)
    P = np.zeros((heads, K, K))
    diagonal = np.arange(K)
    squares = np.zeros(((m1 - m0) // core.micro, heads))
    ones = np.ones((heads, 1))
    for m in range(m0, m1):
        k, v = at(core.k, m), at(core.v, m)
        b = ones if core.b is None else at(core.b, m)
        a = ones if core.g is None else np.exp(at(core.g, m))
        stepped = (b != 1)[:, 0]
        before = S
        S, P, kept = a[..., None] * S, P * a[:, :, None] * a[:, None, :], P
        if sums:
            P += decays(a, before, policy.arithmetic)
            P[:, diagonal, diagonal] += sums * square(S) * (a != 1)
        d, wrong = b * v, sums * square(b * v) * stepped
        if core.e is not None:
            e = at(core.e, m)
            X = before if core.pre else S
            p, slips = read(e, X, op, sums)
            d = b * (v - p)
            wrong = b[:, 0] ** 2 * (slips + sums * square(v - p)) + sums * square(d) * stepped
            along = np.einsum("hij,hj->hi", kept if core.pre else P, e)
            through = (a if core.pre else ones) * along
            P = P - b[..., None] * (k[:, :, None] * through[:, None] + through[:, :, None] * k[:, None])
            wrong = wrong + b[:, 0] ** 2 * (e * along).sum(axis=1)
        if op:  # a value that is written as it was given is a number of the format already
            wrong = wrong + op * square(np.where(to_nearest(d, stored) == d, 0.0, d))
        P = P + wrong[:, None, None] * (k[:, :, None] * k[:, None, :])
        S = S + k[:, :, None] * d[:, None, :]
        P[:, diagonal, diagonal] += (sums + noise["state"]) * square(S)
        if (m + 1) % core.micro == 0:
            q = at(core.q, m // core.micro)
            out, slips = read(q, S, op, sums)
            out = core.scale * out
            carried = core.scale**2 * (np.einsum("hi,hij,hj->h", q, P, q) + slips)
            squares[(m - m0) // core.micro] = carried + (sums + noise["io"]) * square(out)
    return squares, P[:, diagonal, diagonal]


def decays(a: Array, S: Array, arithmetic: np.dtype[Any]) -> Array:
    """What P gains by the rounding of the decays themselves: one number errs in all the rows that it meets at once.

    Most decays are close below 1, where KAPPA would say half as much again: their spacing is known."""
    errs = np.where(a == 1, 0.0, np.spacing(a.astype(arithmetic)).astype(np.float64) ** 2 / 12)
    together = S @ S.swapaxes(1, 2)
    return np.asarray(errs[..., None] * (together if a.shape[1] == 1 else together * np.eye(S.shape[1])))


def square(x: Array) -> Array:
    """Of each row's length."""
    return np.asarray((x * x).sum(axis=-1))


def read(x: Array, S: Array, op: float, sums: float) -> tuple[Array, Array]:
    """(S' x, the expected square of its own roundings): those of S as it is read and of the partial sums, each of one
    fused multiplication and addition."""
    terms = x[:, :, None] * S
    partial = np.cumsum(terms, axis=1)
    products = square(terms).sum(axis=1)
    return partial[:, -1], op * products + sums * square(partial).sum(axis=1)
