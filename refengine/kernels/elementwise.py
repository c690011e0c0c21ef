"""Elementwise maps and row sums over flat arrays: the arithmetic of the front end. y is written."""

from __future__ import annotations

import numpy as np

from . import _math
from ._dd import two_sum
from ._jit import njit
from ._simd import BLOCK, block, fma, total


@njit
def exp(x, y):
    for i in range(x.size):
        y[i] = _math.exp(x[i])


@njit
def log(x, y):
    for i in range(x.size):
        y[i] = _math.log(x[i])


@njit
def sigmoid(x, y):
    for i in range(x.size):
        y[i] = _math.sigmoid(x[i])


@njit
def softplus(x, y):
    for i in range(x.size):
        y[i] = _math.softplus(x[i])


@njit
def rsqrt(x, y):
    for i in range(x.size):
        y[i] = _math.rsqrt(x[i])


@njit
def silu(x, y):
    """x sigmoid(x)"""
    for i in range(x.size):
        y[i] = x[i] * _math.sigmoid(x[i])


@njit
def square_sums(x, y):
    """Sum of squares of each row of x [rows, D], in blocks of the same lanes on every machine, then what is left
    over, in order."""
    D = x.shape[1]
    L = BLOCK // x.itemsize
    whole = D - D % L
    for n in range(x.shape[0]):
        row = x[n]
        s = 0.0
        if whole:
            lanes = block(row, 0) * block(row, 0)
            for i in range(L, whole, L):
                lanes = fma(block(row, i), block(row, i), lanes)
            s = total(lanes)
        for i in range(whole, D):
            s = fma(row[i], row[i], s)
        y[n] = np.float64(s)


@njit
def column_sums(x, y, size):
    """Sum of each column of x [N, C], first row first, every rounding caught by a two-sum and added at the end; and
    the sum of sizes. The first is off by at most u |y| + (N u)^2 / (1 - N u)^2 size."""
    C = y.size
    lost = np.float64(0.0)
    for c in range(C):
        s = np.float64(0.0)
        lost = np.float64(0.0)
        whole = np.float64(0.0)
        for n in range(x.shape[0]):
            s, e = two_sum(s, x[n, c])
            lost = lost + e
            whole = whole + abs(x[n, c])
        y[c] = s + lost
        size[c] = whole


@njit
def furthest(x, y, apart, size):
    """Of each row of x and y [rows, D]: the largest |x - y| and the largest |x|; NaN where there is any."""
    D = x.shape[1]
    for n in range(x.shape[0]):
        far, most = np.float64(0.0), np.float64(0.0)
        for i in range(D):
            a, b = np.float64(x[n, i]), np.float64(y[n, i])
            d, a = abs(a - b), abs(a)
            far = far if d <= far or far != far else d
            most = most if a <= most or most != most else a
        apart[n] = far
        size[n] = most
