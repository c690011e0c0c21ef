"""l2norm of rows by the three conventions in use, with a bound on its rounding.

    inside   y = x / sqrt(|x|^2 + eps)      flash-linear-attention, Hugging Face
    outside  y = x / (|x| + eps)            the Comba repository's recurrent kernel, Gated KalmaNet, LaCT
    max      y = x / max(|x|, eps)          torch.nn.functional.normalize, RWKV-7

The computed square sum has a relative error below m u, m = D / 8 + 24, which the root halves; three or four roundings
follow. An error dx of the input moves y by at most dx times the largest 1 / denominator between x and x + dx (all
three maps have that slope).
"""

from __future__ import annotations

import numpy as np

from . import _math
from ._jit import njit

INSIDE, OUTSIDE, MAX = 0, 1, 2
U = 2.0**-53


@njit
def l2norm(x, squares, dx, eps, place, y, dy):
    """x, y [rows, D]; squares, dx, dy [rows]: |x|^2 as `square_sums` gives it, the error bound going in and coming
    out."""
    n, D = x.shape
    relative = (0.5 * (D // 8 + 24) + 5.0) * U * (1.0 + 1e-9)
    for j in range(n):
        s = squares[j]
        norm = np.sqrt(s)
        if place == INSIDE:
            r = _math.rsqrt(s + eps)
            for i in range(D):
                y[j, i] = x[j, i] * r
        else:
            d = norm + eps if place == OUTSIDE else max(norm, eps)
            for i in range(D):
                y[j, i] = x[j, i] / d
        least = max(norm * (1.0 - relative) - dx[j], 0.0)
        if place == INSIDE:
            least = np.sqrt(least * least + eps)
        elif place == OUTSIDE:
            least += eps
        else:
            least = max(least, eps)
        size = (norm + D * 2.0**-536) / (
            np.sqrt(s + eps) if place == INSIDE else (norm + eps if place == OUTSIDE else max(norm, eps))
        )
        dy[j] = (relative * size + dx[j] / least) * (1.0 + 1e-9) + 2.0**-1000
