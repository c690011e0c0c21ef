"""Elementwise maps and row sums over flat arrays: the arithmetic of the front end. y is written."""

from __future__ import annotations

import numpy as np

from . import _math
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
