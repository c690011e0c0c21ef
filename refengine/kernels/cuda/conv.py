"""The short convolution of kernels/conv.py on a GPU, in its order, with the sigmoid of kernels/_math.py: its bits."""

from __future__ import annotations

from functools import cache
from math import factorial
from typing import Any

from .._dd import LN2_A, LN2_B, LN2_C, ONE_OVER_LN2, SHIFT
from ..conv import U
from ._jit import cuda, fma, jit, part, power_of_two, product, sqrt

THREADS = 128
TAIL = tuple(1.0 / factorial(n) for n in range(17, 5, -1))  # of e^r, in double; what comes before it in double-double
HEAD = (
    (0.008333333333333333, 1.1564823173178714e-19),
    (0.041666666666666664, 2.3129646346357427e-18),
    (0.16666666666666666, 9.25185853854297e-18),
    (0.5, 0.0),
    (1.0, 0.0),
    (1.0, 0.0),
)


@part
def fast_two_sum(a, b):
    """a + b = high + low exactly, for |a| >= |b|."""
    high = a + b
    return high, b - (high - a)


@part
def sigmoid(x):
    """1 / (1 + e^-x), e^-|x| as high + low."""
    y = -abs(x)
    y = -760.0 if y < -760.0 else y
    n = (product(y, ONE_OVER_LN2) + SHIFT) - SHIFT
    r = fma(-n, LN2_A, y)
    p = product(n, LN2_B)
    rh = r - p
    c = rh - r
    rl = (r - (rh - c)) + (-p - c)
    rh, rl = fast_two_sum(rh, rl - (fma(n, LN2_B, -p) + product(n, LN2_C)))
    h = TAIL[0]
    for coefficient in TAIL[1:]:
        h = fma(h, rh, coefficient)
    l = 0.0
    for ch, cl in HEAD:
        p = product(rh, h)
        e = fma(rh, h, -p) + (product(rh, l) + product(rl, h))
        s, t = fast_two_sum(ch, p)
        h, l = fast_two_sum(s, t + (e + cl))
    half = (product(n, 0.5) + SHIFT) - SHIFT
    first, second = power_of_two(half + SHIFT), power_of_two((n - half) + SHIFT)
    h, l = product(product(h, first), second), product(product(l, first), second)
    d, dl = fast_two_sum(1.0, h)
    dl += l
    nh = 1.0 if x >= 0.0 else h
    nl = 0.0 if x >= 0.0 else l
    f = nh / d
    return f + (fma(-f, d, nh) + (nl - product(f, dl))) / d


@cache
def short_conv(silu: bool, residual: bool) -> Any:
    """As on the CPU; `rounding` is the part of |w x| that a chain of taps may err by, `floor` what underflow adds.

    Grid (ceil(T / THREADS), G, 1), blocks of THREADS threads: a thread is a token's group of channels.
    """

    @jit(THREADS, 1)
    def kernel(x, w, bias, rounding, floor, y, error):
        T, C = y.shape
        W = w.shape[0]
        D = C // error.shape[1]
        t = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        g = cuda.blockIdx.y
        if t < T:
            s = 0.0
            for c in range(g * D, (g + 1) * D):
                z = bias[c]
                size = abs(z)
                for i in range(W):
                    size += abs(product(w[i, c], x[t + i, c]))
                    z = fma(w[i, c], x[t + i, c], z)
                size = product(size, rounding)
                if silu:
                    z = product(z, sigmoid(z))
                    size = product(1.1, size) + product(3.0 * U, abs(z))
                if residual:
                    z = z + x[t + W - 1, c]
                    size += product(U, abs(z))
                y[t, c] = z
                s += product(size, size)
            error[t, g] = product(sqrt(s), 1.0 + 1e-9) + floor

    return kernel


__all__ = ["THREADS", "short_conv", "sigmoid"]
