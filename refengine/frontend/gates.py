"""Gates from their raw parameters, as layers compute them before the op.

In float64 every elementary function is within one ulp (kernels/_math.py). With x = a + dt_bias, |dx| <= u |x|:

    softplus form   g = -exp(A_log) softplus(x)             relative error <= (|x| + 7) u, as sigmoid(x) <= softplus(x)
    bounded form    g = lower_bound sigmoid(exp(A_log) x)   relative error <= (5 |exp(A_log) x| + 5) u
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def log_decay(a: NDArray[Any], A_log: Array | None, dt_bias: Array | None, lower_bound: float | None) -> Bounded:
    """g [B, T, HV, 1 or K] of rank-4 raw gates; A_log [HV], dt_bias [HV, 1 or K]."""
    x = a.astype(np.float64, copy=False) if dt_bias is None else a.astype(np.float64, copy=False) + dt_bias
    factor = np.ones(1) if A_log is None else apply(elementwise.exp, A_log)
    under = TINY
    if lower_bound is None:
        under = TINY + float(factor.max(initial=0.0)) * 2.0**-1070  # a softplus in the subnormals is off by 2^-1073
        value = -(factor[:, None] * apply(elementwise.softplus, x))
        relative = np.abs(x) + 7
    else:
        z = factor[:, None] * x
        value = lower_bound * apply(elementwise.sigmoid, z)
        relative = 5 * np.abs(z) + 5
    return Bounded(value, row_norm(value * (relative * U)) * UP + under * value.shape[-1])


def log_decay_doubled(
    a: NDArray[Any], A_log: Array | None, dt_bias: Array | None, lower_bound: float | None
) -> Doubled:
    """The same in double-double."""
    x = Doubled.exact(a) if dt_bias is None else Doubled.exact(a) + Doubled.exact(dt_bias[None, None])
    factor = Doubled.exact(np.zeros((1, 1, 1, 1)) if A_log is None else A_log[None, None, :, None]).exp()
    if lower_bound is None:
        return -(factor * x.softplus())
    return x.filled(lower_bound) * (factor * x).sigmoid()


def step_size(logits: NDArray[Any], allow_neg_eigval: bool) -> Bounded:
    """beta = sigmoid(logits), doubled where negative eigenvalues are allowed."""
    value = apply(elementwise.sigmoid, logits) * (2.0 if allow_neg_eigval else 1.0)
    return Bounded(value, row_norm(value) * 2 * U * UP + TINY)


def step_size_doubled(logits: NDArray[Any], allow_neg_eigval: bool) -> Doubled:
    """The same in double-double."""
    value = Doubled.exact(logits).sigmoid()
    return value * value.filled(2.0) if allow_neg_eigval else value
