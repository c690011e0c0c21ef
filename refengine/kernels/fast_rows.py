"""Rows of a mini-batch, one a token: activations, LayerNorm, and the errors of each loss.

Order of operations: sums over a row in blocks of the same lanes on every machine; all else elementwise, each operation
rounded unless it says fma.
"""

from __future__ import annotations

import numpy as np

from . import _math
from ._jit import inline, part
from ._simd import BLOCK, at, block, called, fma, prefetch, put, spread, store, take, total
from .fast_rule import DOT, HUBER, POWER, SILU, SWIGLU

GELU_A, GELU_B = 1.5957691216057308, 0.07135481627260025  # 2 sqrt(2 / pi), and that times 0.044715


@inline
def row_sum(x, base, D):
    """Sum of D entries from flat `base` on."""
    L = BLOCK // x.itemsize
    whole = D - D % L
    s = 0.0
    if whole:
        lanes = block(x, base)
        for i in range(L, whole, L):
            lanes = lanes + block(x, base + i)
        s = np.float64(total(lanes))
    for i in range(whole, D):
        s = s + at(x, base + i)
    return s


@inline
def row_dot(x, xb, y, yb, D):
    """Sum of D products of entries from flat `xb` and `yb` on."""
    L = BLOCK // x.itemsize
    whole = D - D % L
    s = 0.0
    if whole:
        lanes = block(x, xb) * block(y, yb)
        for i in range(L, whole, L):
            lanes = fma(block(x, xb + i), block(y, yb + i), lanes)
        s = np.float64(total(lanes))
    for i in range(whole, D):
        s = fma(np.float64(at(x, xb + i)), np.float64(at(y, yb + i)), s)
    return s


@part
def clear(x):
    called()
    flat = x.reshape(x.size)
    for i in range(flat.size):
        flat[i] = 0.0


@part
def gather(x, batch, t0, head, factor, turned, out):
    """Tokens t0 .. of one head of x [B, T, heads, D] into the rows of out, times `factor`, back to front if so said."""
    called()
    n, D = out.shape
    step = x.shape[2] * x.shape[3]
    base = ((batch * x.shape[1] + t0) * x.shape[2] + head) * D
    line = 64 // x.itemsize
    for i in range(n):
        row = out[i]
        for d in range(0, D, line):
            prefetch(x, base + (i + n) * step + d)  # what comes next
        for d in range(D):
            row[d] = at(x, base + i * step + d) * factor
        if turned:
            turn_row(row)


@part
def scatter(x, o, batch, t0, head, turned):
    """The rows of x into tokens t0 .. of one head of o, back to front if so said."""
    called()
    n, D = x.shape
    step = o.shape[2] * o.shape[3]
    base = ((batch * o.shape[1] + t0) * o.shape[2] + head) * D
    for i in range(n):
        row = x[i]
        if turned:
            turn_row(row)
        for d in range(D):
            put(o, base + i * step + d, row[d])


@inline
def turn_row(row):
    last = row.size - 1
    for j in range(row.size // 2):
        row[j], row[last - j] = row[last - j], row[j]


@part
def fade_rows(x, factors, out):
    """Each row of x by the factors of a row, of which the first is that before."""
    called()
    for i in range(x.shape[0]):
        row, f, to = x[i], factors[i + 1], out[i]
        for j in range(row.size):
            to[j] = f[j] * row[j]


@part
def scale_rows(x, factors):
    called()
    for i in range(x.shape[0]):
        row = x[i]
        f = factors[i]
        for j in range(row.size):
            row[j] = row[j] * f


@part
def scaled_copy(x, factors, out):
    called()
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        f = factors[i]
        for j in range(row.size):
            to[j] = row[j] * f


@part
def add_row(x, row, factors):
    """x_i += factor_i row"""
    called()
    for i in range(x.shape[0]):
        out = x[i]
        f = factors[i]
        for j in range(row.size):
            out[j] = out[j] + f * row[j]


@inline
def curve(z, act):
    """(y, y', y'') of an activation, for numbers and vectors alike."""
    if act == SILU:
        s = _math.quick_sigmoid(z)
        t = s * (1.0 - s)
        return z * s, fma(z, t, s), t * (2.0 + z * (1.0 - 2.0 * s))
    q = z * z
    s = _math.quick_sigmoid(z * (GELU_A + GELU_B * q))
    t = s * (1.0 - s)
    p = GELU_A + (3.0 * GELU_B) * q
    return z * s, fma(z, t * p, s), t * (2.0 * p + z * ((1.0 - 2.0 * s) * (p * p) + (6.0 * GELU_B) * z))


@inline
def activated(Z, X, D, i, j, like, model, act, slope):
    """X (and D) of row i from column j on: as many as make a block of `like`, or one."""
    h = X.shape[1]
    z = i * Z.shape[1] + j
    y, bend, _ = curve(take(Z, z, like), act)
    u = y
    if model == SWIGLU:
        u = take(Z, z + h, like)
        store(X, i * h + j, y * u)
    else:
        store(X, i * h + j, y)
    if slope and model == SWIGLU:
        store(D, z, u * bend)
        store(D, z + h, y)
    elif slope:
        store(D, z, bend)


@part
def activate(Z, X, D, model, act, slope):
    """X = act(Z), and where `slope` is set D = its derivative (SwiGLU: of X by the gate, then by the up half)."""
    called()
    n, h = X.shape
    whole = h - h % (BLOCK // 8)
    for i in range(n):
        for j in range(0, whole, BLOCK // 8):
            activated(Z, X, D, i, j, spread(1.0), model, act, slope)
        for j in range(whole, h):
            activated(Z, X, D, i, j, 1.0, model, act, slope)


@inline
def standardise(Z, base, V, eps):
    """(mean, 1 / sqrt(variance + eps)) of a row; the row itself less its mean."""
    m = row_sum(Z, base, V) / V
    for j in range(V):
        put(Z, base + j, at(Z, base + j) - m)
    return 1.0 / np.sqrt(row_dot(Z, base, Z, base, V) / V + eps)


@part
def norm_errors(Z, target, w, b, eps, E):
    """E = dL/dZ of 1/2 |LN(Z) - target|^2; Z is left standardised.

    x = (Z - mean) / sigma, m = w (w x + b - target), E = (m - mean m - x mean(m x)) / sigma
    """
    called()
    n, V = Z.shape
    for i in range(n):
        base = i * V
        r = standardise(Z, base, V, eps)
        z, t, e = Z[i], target[i], E[i]
        for j in range(V):
            z[j] = z[j] * r
            e[j] = w[j] * (fma(np.float64(w[j]), np.float64(z[j]), np.float64(b[j])) - t[j])
        c1 = row_sum(E, base, V) / V
        c2 = row_dot(E, base, Z, base, V) / V
        for j in range(V):
            e[j] = ((e[j] - c1) - z[j] * c2) * r


@part
def norm_output(Z, other, w, b, eps, out):
    """out = other + LN(Z); Z is left standardised."""
    called()
    n, V = Z.shape
    for i in range(n):
        r = standardise(Z, i * V, V, eps)
        z, x, y = Z[i], other[i], out[i]
        for j in range(V):
            y[j] = x[j] + fma(np.float64(w[j]), z[j] * r, np.float64(b[j]))


@part
def plain_errors(Z, v, loss, parameter, E):
    """dL/dZ of 1/2 |Z - v|^2; of -Z.v; of Huber's loss (linear beyond `parameter`); of sum |Z - v|^p / p."""
    called()
    n, V = v.shape
    for i in range(n):
        z, t, e = Z[i], v[i], E[i]
        for j in range(V):
            if loss == DOT:
                e[j] = -t[j]
            else:
                d = np.float64(z[j]) - t[j]
                if loss == HUBER:
                    d = min(max(d, -parameter), parameter) if d == d else d
                elif loss == POWER:
                    s = abs(d)
                    for _ in range(int(parameter) - 2):
                        d = d * s
                e[j] = d
