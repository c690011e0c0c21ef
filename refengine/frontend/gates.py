"""Gates from their raw parameters, as layers compute them before the op.

In float64 every elementary function is within one ulp (kernels/_math.py). With x = a + dt_bias, |dx| <= u |x|:

    softplus form   g = -exp(A_log) softplus(x)             relative error <= (|x| + 7) u, as sigmoid(x) <= softplus(x)
    bounded form    g = lower_bound sigmoid(exp(A_log) x)   relative error <= (5 |exp(A_log) x| + 5) u
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels import elementwise
from ..numbers.bounded import TINY, UP, Array, Bounded, U, apply, row_norm
from ..numbers.doubled import Doubled


@dataclass(frozen=True)
class Gate:
    """The log decay from raw parameters.

    g = -exp(A_log) softplus(a + dt_bias); with `lower_bound`, g = lower_bound sigmoid(exp(A_log) (a + dt_bias)).

    a [B, T, HV] or [B, T, HV, K]; A_log [HV] (None with `lower_bound`: a factor of 1); dt_bias [HV], [HV, K] or
    [HV * K] as `a` has it. Source: Gated DeltaNet (softplus), Kimi Delta Attention (both; lower_bound is -5 there).
    """

    a: Any
    A_log: Any = None
    dt_bias: Any = None
    lower_bound: float | None = None


def log_decay(a: Any, A_log: Any | None, dt_bias: Any | None, lower_bound: float | None) -> Any:
    """g [B, T, HV, 1 or K] of raw gates a of that shape; A_log [1, 1, HV, 1], dt_bias [1, 1, HV, 1 or K]."""
    if isinstance(a, Doubled):
        return log_decay_doubled(a, A_log, dt_bias, lower_bound)
    x = a.value.astype(np.float64, copy=False)
    x = x if dt_bias is None else x + dt_bias.value
    factor = np.ones((1, 1, 1, 1)) if A_log is None else apply(elementwise.exp, A_log.value)
    under = TINY
    if lower_bound is None:
        under = TINY + float(factor.max(initial=0.0)) * 2.0**-1070  # a softplus in the subnormals is off by 2^-1073
        value = -(factor * apply(elementwise.softplus, x))
        relative = np.abs(x) + 7
    else:
        z = factor * x
        value = lower_bound * apply(elementwise.sigmoid, z)
        relative = 5 * np.abs(z) + 5
    g = within(value, relative, under)
    given = [y for y in (A_log, dt_bias) if y is not None]

    def pull(d: Bounded) -> tuple[Bounded, ...]:
        if lower_bound is None:
            slope = within(-(factor * apply(elementwise.sigmoid, x)), np.abs(x) + 8)
            dx, dA = d * slope, d * g
        else:
            peak = apply(elementwise.sigmoid, z) * apply(elementwise.sigmoid, -z)
            dz = d * within(lower_bound * peak, 10 * np.abs(z) + 12)
            dx, dA = dz * within(factor, np.full(factor.shape, 2.0)), dz * within(z, np.full(z.shape, 5.0))
        owed = {id(A_log): dA, id(dt_bias): dx}
        return (dx, *[owed[id(y)].summed(y.plain) for y in given])

    return a.derive(g, pull, *given)


def log_decay_doubled(a: Doubled, A_log: Doubled | None, dt_bias: Doubled | None, lower_bound: float | None) -> Doubled:
    """The same in double-double."""
    x = a if dt_bias is None else a + dt_bias
    factor = Doubled.exact(np.ones((1, 1, 1, 1))) if A_log is None else A_log.exp()
    if lower_bound is None:
        return -(factor * x.softplus())
    return x.filled(lower_bound) * (factor * x).sigmoid()


def within(value: Array, ulps: Array, under: float = TINY) -> Bounded:
    """Values that are off by so many u of themselves, and `under`."""
    return Bounded(value, row_norm(value * (ulps * U)) * UP + under * value.shape[-1])


def step_size(logits: Any, allow_neg_eigval: bool) -> Any:
    """beta = sigmoid(logits), doubled where negative eigenvalues are allowed."""
    if isinstance(logits, Doubled):
        once = logits.sigmoid()
        return once * once.filled(2.0) if allow_neg_eigval else once
    z, most = logits.value, 2.0 if allow_neg_eigval else 1.0
    value = apply(elementwise.sigmoid, z) * most
    beta = Bounded(value, row_norm(value) * 2 * U * UP + TINY)

    def pull(d: Bounded) -> tuple[Bounded]:
        slope = most * (apply(elementwise.sigmoid, z) * apply(elementwise.sigmoid, -z))
        return (d * within(slope, np.full(slope.shape, 6.0)),)

    return logits.derive(beta, pull)
