"""The adjoint of the exact learner (kernels/mesa.py): each token's matrix factored once, for its solution and for the
adjoint one.

Per head, for what is owed to the output o' and, carried backward, to the memory H', G':

    A = H + Lambda;  A x = q;  y = q + mix (x - q);  y' = scale G o';  A z = mix y'
    dq = z + (1 - mix) y';   dmix = y'.(x - q);   dLambda -= z x;   H' -= z x';   G' += scale y o'
    a share of |H| as Lambda (1 where H is 0):  dshare -= |H| z.x;   H' -= share (z.x) H / |H|
    dk = b ((H' + H'') k + G' v);   dv = b G'' k;   db = k.H' k + k.G' v;   da = H'.H_before + G'.G_before
    H' <- a H';   G' <- a G'

Memories are kept at the start of every window of WINDOW tokens and within one window. Plain arithmetic in one order:
every sum goes in the order of its index.
"""

from __future__ import annotations

import numpy as np

from ._jit import inline, njit

WINDOW = 64  # tokens between two marks


@inline
def copy(x, y):
    """x into y."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = x[i, j]


@inline
def learn(H, G, a, b, k, v, after_H, after_G):
    """One token into the memories."""
    for i in range(H.shape[0]):
        c = b * k[i]
        for j in range(H.shape[1]):
            after_H[i, j] = a * H[i, j] + c * k[j]
        for j in range(G.shape[1]):
            after_G[i, j] = a * G[i, j] + c * v[j]


@inline
def factor(A, column):
    """The lower Cholesky factor of A in its place."""
    K = A.shape[0]
    for j in range(K):
        A[j, j] = np.sqrt(A[j, j])
        for i in range(j + 1, K):
            A[i, j] = A[i, j] / A[j, j]
            column[i] = A[i, j]
        for i in range(j + 1, K):
            c = column[i]
            for r in range(j + 1, i + 1):
                A[i, r] = A[i, r] - c * column[r]


@inline
def solve(A, y):
    """A^-1 y in the place of y, from the factor."""
    K = A.shape[0]
    for i in range(K):
        s = y[i]
        for j in range(i):
            s = s - A[i, j] * y[j]
        y[i] = s / A[i, i]
    for back_i in range(K):
        i = K - 1 - back_i
        y[i] = y[i] / A[i, i]
        for j in range(i):
            y[j] = y[j] - A[i, j] * y[i]


@njit
def forth(place, heads, k, v, a, b, H, G, marks_H, marks_G):
    """The memories [windows, K, K] and [windows, K, V] before every window of tokens t0 .. t1 of one head. H, G: at
    the start, and overwritten."""
    batch, t0, t1 = place
    _, hk, hv, hb, ha, _ = heads
    for t in range(t0, t1):
        if (t - t0) % WINDOW == 0:
            copy(H, marks_H[(t - t0) // WINDOW])
            copy(G, marks_G[(t - t0) // WINDOW])
        learn(H, G, a[batch, t, ha, 0], b[batch, t, hb, 0], k[batch, t, hk], v[batch, t, hv], H, G)


@njit
def back(place, heads, arrays, lamb, share, mixed, scale, do, marks_H, marks_G, dH, dG, room, found):
    """Tokens t1 .. t0 of one head. dH, dG: what is owed to the memory at the end, and then to that at the start.

    arrays   q, k, v, b, a, mix; all of one float type
    room     the memories of a window [WINDOW + 1, K, K], [WINDOW + 1, K, V], A [K, K], vectors [5, K]
    found    dq, dk, dv, db, da, dmix [B, T, HV, *] and dlamb [K], or [1] of a share
    """
    batch, t0, t1 = place
    hq, hk, hv, hb, ha, hm = heads
    q, k, v, b, a, mix = arrays
    Hs, Gs, A, vectors = room
    dq, dk, dv, db, da, dmix, dlamb = found
    K, V = dG.shape
    x, y, owed, z, column = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]
    zero = scale - scale
    for windows_after in range((t1 - t0 + WINDOW - 1) // WINDOW):
        window = (t1 - t0 - 1) // WINDOW - windows_after
        start = t0 + window * WINDOW
        W = min(WINDOW, t1 - start)
        copy(marks_H[window], Hs[0])
        copy(marks_G[window], Gs[0])
        for j in range(W):
            t = start + j
            learn(
                *(Hs[j], Gs[j], a[batch, t, ha, 0], b[batch, t, hb, 0], k[batch, t, hk], v[batch, t, hv]),
                *(Hs[j + 1], Gs[j + 1]),
            )
        for back_j in range(W):
            j = W - 1 - back_j
            t = start + j
            H, G = Hs[j + 1], Gs[j + 1]
            kt, vt, qt, ot = k[batch, t, hk], v[batch, t, hv], q[batch, t, hq], do[batch, t, hv]
            at, bt = a[batch, t, ha, 0], b[batch, t, hb, 0]
            m = mix[batch, t, hm, 0] if mixed else zero + 1
            size = zero
            if share:
                for i in range(K):
                    for r in range(K):
                        size = size + H[i, r] * H[i, r]
                size = np.sqrt(size)
            shift = lamb[0] * size if size > zero else zero + 1
            for i in range(K):
                for r in range(K):
                    A[i, r] = H[i, r]
                A[i, i] = A[i, i] + (shift if share else lamb[i])
                s = zero
                for c in range(V):
                    s = s + G[i, c] * ot[c]
                owed[i] = scale * s
                x[i] = qt[i]
                z[i] = m * owed[i]
            factor(A, column)
            solve(A, x)
            solve(A, z)
            through, dm = zero, zero
            for i in range(K):
                y[i] = qt[i] + m * (x[i] - qt[i])
                dq[batch, t, hv, i] = z[i] + (1 - m) * owed[i]
                dm = dm + owed[i] * (x[i] - qt[i])
                through = through + z[i] * x[i]
                if not share:
                    dlamb[i] = dlamb[i] - z[i] * x[i]
            if mixed:
                dmix[batch, t, hv, 0] = dm
            more = zero
            if share and size > zero:
                dlamb[0] = dlamb[0] - through * size
                more = lamb[0] * through / size
            tb, ta = zero, zero
            for i in range(K):
                for r in range(K):
                    dH[i, r] = dH[i, r] - z[i] * x[r] - more * H[i, r]
                for c in range(V):
                    dG[i, c] = dG[i, c] + scale * y[i] * ot[c]
            for c in range(V):
                dv[batch, t, hv, c] = zero
            for i in range(K):
                s, w = zero, zero
                for r in range(K):
                    s = s + dH[i, r] * kt[r]
                    w = w + dH[r, i] * kt[r]
                    ta = ta + dH[i, r] * Hs[j, i, r]
                u = zero
                for c in range(V):
                    u = u + dG[i, c] * vt[c]
                    ta = ta + dG[i, c] * Gs[j, i, c]
                    dv[batch, t, hv, c] = dv[batch, t, hv, c] + bt * (dG[i, c] * kt[i])
                dk[batch, t, hv, i] = bt * (s + w + u)
                tb = tb + kt[i] * (s + u)
            db[batch, t, hv, 0] = tb
            da[batch, t, hv, 0] = ta
            for i in range(K):
                for r in range(K):
                    dH[i, r] = at * dH[i, r]
                for c in range(V):
                    dG[i, c] = at * dG[i, c]
