"""Short depthwise causal convolution over time, with a bound on its rounding.

    z_t = bias + sum_{i < W} w_i x_{t - (W - 1) + i}        a chain of fused multiply-adds, oldest tap first
    y_t = act(z_t) (+ x_t)                                   act: none or SiLU, z sigmoid(z)

A chain of W fused multiply-adds from `bias` errs by at most W u (|bias| + sum |w_i x_i|) to
first order; SiLU has a slope below 1.1 and rounds twice.
"""

from __future__ import annotations

import numpy as np

from . import _math
from ._jit import njit
from ._simd import fma

U = 2.0**-53


@njit
def short_conv(x, w, bias, silu, residual, y, error, scratch):
    """One sequence. x [T + W - 1, C] begins W - 1 tokens early; w [W, C]; bias [C]; y [T, C]; error [T, G]: a bound
    on the Euclidean norm of the error in each of G groups of C / G channels; scratch [2, C]."""
    T, C = y.shape
    W = w.shape[0]
    G = error.shape[1]
    D = C // G
    z = scratch[0]
    size = scratch[1]
    for t in range(T):
        for c in range(C):
            z[c] = bias[c]
            size[c] = abs(bias[c])
        for i in range(W):
            row = x[t + i]
            tap = w[i]
            for c in range(C):
                p = tap[c] * row[c]
                z[c] = fma(tap[c], row[c], z[c])
                size[c] += abs(p)
        out = y[t]
        for c in range(C):
            size[c] *= (W + 2) * U * (1.0 + 1e-9)
        if silu:
            for c in range(C):
                out[c] = z[c] * _math.sigmoid(z[c])
                size[c] = 1.1 * size[c] + 3.0 * U * abs(out[c])
        else:
            for c in range(C):
                out[c] = z[c]
        if residual:
            row = x[t + W - 1]
            for c in range(C):
                out[c] += row[c]
                size[c] += U * abs(out[c])
        for g in range(G):
            s = 0.0
            for c in range(g * D, (g + 1) * D):
                s += size[c] * size[c]
            error[t, g] = np.sqrt(s) * (1.0 + 1e-9) + D * 2.0**-536
