"""What the adjoint of the fast weights (engine/fast_backward.py) is made of: products, sums along rows, activations
with two derivatives, and the coefficients of the dual form with theirs.

Each is compiled by itself, and the engine puts them together: a mini-batch's adjoint as one kernel would take minutes
to compile. Order of operations as in fast_weights.py.
"""

from __future__ import annotations

import numpy as np

from . import _products, fast_rows
from ._jit import inline, njit
from ._simd import BLOCK, spread, store, take
from .fast_rows import curve, row_dot
from .fast_rule import SWIGLU


@njit
def product(C, A, A_transposed, B, B_transposed, panel):
    """C += A B"""
    _products.product(C, A, A_transposed, B, B_transposed, C.dtype.type(1), panel)


@njit
def row_dots(x, y, out):
    """out_i = x_i . y_i"""
    D = x.shape[1]
    for i in range(x.shape[0]):
        out[i] = row_dot(x, i * D, y, i * D, D)


@njit
def activate(Z, X, D, model, act):
    """X = act(Z), D = its derivative."""
    fast_rows.activate(Z, X, D, model, act, np.int64(1))


@inline
def owed(Z, dX, dD, dZ, i, j, like, model, act):
    """dZ of row i from column j on: as many as make a block of `like`, or one."""
    h = dX.shape[1]
    z = i * Z.shape[1] + j
    y, slope, bend = curve(take(Z, z, like), act)
    x, d = take(dX, i * h + j, like), take(dD, z, like)
    own = x * slope + d * bend
    if model == SWIGLU:
        store(dZ, z, take(Z, z + h, like) * own + take(dD, z + h, like) * slope)
        store(dZ, z + h, x * y + d * slope)
    else:
        store(dZ, z, own)


@njit
def activate_back(Z, dX, dD, dZ, model, act):
    """What X and D owe to Z."""
    n, h = dX.shape
    whole = h - h % (BLOCK // 8)
    for i in range(n):
        for j in range(0, whole, BLOCK // 8):
            owed(Z, dX, dD, dZ, i, j, spread(1.0), model, act)
        for j in range(whole, h):
            owed(Z, dX, dD, dZ, i, j, 1.0, model, act)


@njit
def coefficients(a, eta, reader, general, M, C, N, beta, phi, chain):
    """M_ij = a_i M_{i-1,j} + C_ij, C_ij = eta_i C_{i-1,j}, N = reader M (zeros above the diagonal); beta, phi and
    chain_i = eta_1 .. eta_i."""
    b, e, f = 1.0, 1.0, 0.0
    for i in range(a.size):
        b, e = a[i] * b, eta[i] * e
        f = a[i] * f + e
        beta[i], phi[i], chain[i] = b, f, e
    for i in range(N.shape[0]):
        for j in range(N.shape[0]):
            C[i, j] = M[i, j] = 1.0 if j <= i else 0.0
            if j < i and general:
                C[i, j] = eta[i] * C[i - 1, j]
                M[i, j] = a[i] * M[i - 1, j] + C[i, j]
            N[i, j] = reader[i] * M[i, j]


@njit
def coefficients_back(a, eta, reader, general, M, C, beta, phi, chain, dN, dC, dbeta, dphi, dchain, da, deta, dreader):
    """What the coefficients owe to a, eta and reader, added to what is there."""
    side = dN.shape[0]
    for i in range(side):
        for j in range(i + 1):
            dreader[i] += dN[i, j] * M[i, j]
            dN[i, j] = reader[i] * dN[i, j]
    for i in range(side - 1 if general else 0, 0, -1):
        for j in range(i):
            x = dC[i, j] + dN[i, j]
            da[i] += dN[i, j] * M[i - 1, j]
            dN[i - 1, j] += a[i] * dN[i, j]
            deta[i] += x * C[i - 1, j]
            dC[i - 1, j] += eta[i] * x
    for i in range(a.size - 1, -1, -1):
        x = dchain[i] + dphi[i]
        if i == 0:
            da[0] += dbeta[0]
            deta[0] += x
        else:
            da[i] += dphi[i] * phi[i - 1] + dbeta[i] * beta[i - 1]
            deta[i] += x * chain[i - 1]
            dphi[i - 1] += a[i] * dphi[i]
            dbeta[i - 1] += a[i] * dbeta[i]
            dchain[i - 1] += eta[i] * x
