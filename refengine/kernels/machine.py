"""What this machine can do at most: the ceilings that a benchmark is measured against."""

from __future__ import annotations

from ._jit import njit
from ._simd import fma, largest, load, splat

CHAINS = 6  # of independent fused multiply-adds, each as wide as a tile's row: enough to hide their latency


@njit
def fused(n, x):
    """n fused multiply-adds in each of CHAINS chains of vectors."""
    a = splat(x)
    b, c, d, e, f, g = a, a, a, a, a, a
    for _ in range(n):
        b = fma(b, a, a)
        c = fma(c, a, a)
        d = fma(d, a, a)
        e = fma(e, a, a)
        f = fma(f, a, a)
        g = fma(g, a, a)
    return largest((b + c) + (d + e) + (f + g))


@njit
def read(x, lanes):
    """Every whole vector of x once."""
    a = splat(x[0])
    b = a
    for i in range(0, x.size - 2 * lanes, 2 * lanes):
        a = a + load(x, i)
        b = b + load(x, i + lanes)
    return largest(a + b)
