"""Honest imitations of low-precision kernels for the exact learner (kernels/mesa.py), token by token:

    H <- a H + (b k) k',   G <- a G + (b k) v',   (H + Lambda) x = q,   y = q + m (x - q),   o = s G' y

The system is solved in the arithmetic by Cholesky's factors, or, as the released kernels do it, by so many steps of
conjugate gradients in which H and the direction it is applied to are rounded to the operand format. Also rounded to
it: G and y as they are read; to the state's format: H and G after every token; to the output's: o. Sums are chains in
the arithmetic. All arrays that are not inputs or outputs are flat.
"""

from __future__ import annotations

import numpy as np

from ._jit import njit, part
from ._simd import at, put
from .delta import offset
from .rounding import settle


@part
def cholesky(H, lamb, q, L, x, K):
    """x = (H + diag(lamb))^-1 q."""
    for i in range(K):
        for j in range(i + 1):
            s = H[i * K + j]
            if i == j:
                s += lamb[i]
            for m in range(j):
                s -= L[i * K + m] * L[j * K + m]
            if i == j:
                L[i * K + i] = np.sqrt(s)
            else:
                L[i * K + j] = s / L[j * K + j]
    for i in range(K):
        s = q[i]
        for m in range(i):
            s -= L[i * K + m] * x[m]
        x[i] = s / L[i * K + i]
    for i in range(K - 1, -1, -1):
        s = x[i]
        for m in range(i + 1, K):
            s -= L[m * K + i] * x[m]
        x[i] = s / L[i * K + i]


@part
def apply(H, lamb, p, y, K, zero):
    """y = (H + diag(lamb)) p."""
    for i in range(K):
        s = zero
        for j in range(K):
            s += H[i * K + j] * p[j]
        y[i] = s + lamb[i] * p[i]


@part
def descend(H, lamb, q, x, r, p, y, seen, K, steps, eps, diagonal, on, form, noise, noisy, cursor, zero):
    """x after so many steps of conjugate gradients from zero, or from q / (diagonal + eps)."""
    for i in range(K):
        x[i] = q[i] / (H[i * K + i] + lamb[i] + eps) if diagonal else zero
    apply(H, lamb, x, y, K, zero)
    rr = zero
    for i in range(K):
        r[i] = q[i] - y[i]
        p[i] = r[i]
        rr += r[i] * r[i]
    for _ in range(steps):
        for i in range(K):
            seen[i] = p[i]
        if on:
            cursor = settle(p, 0, seen, 0, K, form, noise, noisy, cursor)
        apply(H, lamb, seen, y, K, zero)
        s = zero
        for i in range(K):
            s += p[i] * y[i]
        alpha = rr / (s + eps)
        before = rr
        rr = zero
        for i in range(K):
            x[i] += alpha * p[i]
            r[i] -= alpha * y[i]
            rr += r[i] * r[i]
        ratio = rr / (before + eps)
        for i in range(K):
            p[i] = r[i] + ratio * p[i]
    return cursor


@njit
def learned(
    place, until, heads, q, k, v, b, a, mix, lamb, H, G, room, o, forms, on, noise, noisy, cursor, rule, scale, eps
):
    """One sequence and value head; H [K K] and G [K V] are carried on.

    place   (batch, first token); until: one past the last
    heads   (q, k, v, mix, lamb): which head of each; arrays [B, T, heads, D], lamb [heads, K or 1]
    rule    (exact, steps, diagonal, share, mixes): Cholesky or conjugate gradients; lamb a share of |H|; y is mixed
    """
    batch, begin = place
    hq, hk, hv, hm, hl = heads
    exact, steps, diagonal, share, mixes = rule
    x, r, p, y, seen, ridge, L, R, RG, out = room
    K, V = k.shape[3], v.shape[3]
    zero = scale - scale
    for t in range(begin, until):
        at_q, at_k, at_v = offset(q, batch, t, hq), offset(k, batch, t, hk), offset(v, batch, t, hv)
        decay, weight = at(a, offset(a, batch, t, hv)), at(b, offset(b, batch, t, hv))
        size = zero
        for i in range(K):
            w = weight * at(k, at_k + i)
            for j in range(K):
                h = decay * H[i * K + j] + w * at(k, at_k + j)
                H[i * K + j] = h
                size += h * h
            for j in range(V):
                G[i * V + j] = decay * G[i * V + j] + w * at(v, at_v + j)
        if on[1]:
            cursor = settle(H, 0, H, 0, K * K, forms[1], noise, noisy, cursor)
            cursor = settle(G, 0, G, 0, K * V, forms[1], noise, noisy, cursor)
        for i in range(K):
            ridge[i] = lamb[hl, i] if lamb.shape[1] > 1 else lamb[hl, 0]
            if share:
                ridge[i] *= np.sqrt(size)
            out[i] = at(q, at_q + i)
        if exact:
            cholesky(H, ridge, out, L, x, K)
        else:
            for i in range(K * K):
                R[i] = H[i]
            if on[0]:
                cursor = settle(H, 0, R, 0, K * K, forms[0], noise, noisy, cursor)
            cursor = descend(
                R, ridge, out, x, r, p, y, seen, K, steps, eps, diagonal, on[0], forms[0], noise, noisy, cursor, zero
            )
        for i in range(K):
            y[i] = x[i]
            if mixes:
                y[i] = out[i] + at(mix, offset(mix, batch, t, hm)) * (x[i] - out[i])
        for i in range(K * V):
            RG[i] = G[i]
        if on[0]:
            cursor = settle(y, 0, y, 0, K, forms[0], noise, noisy, cursor)
            cursor = settle(G, 0, RG, 0, K * V, forms[0], noise, noisy, cursor)
        for j in range(V):
            s = zero
            for i in range(K):
                s += y[i] * RG[i * V + j]
            out[j] = scale * s
        if on[2]:
            cursor = settle(out, 0, out, 0, V, forms[2], noise, noisy, cursor)
        at_o = offset(o, batch, t, hv)
        for j in range(V):
            put(o, at_o + j, out[j])
    return cursor
