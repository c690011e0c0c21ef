"""What a mini-batch does to the weights: the coefficients of the dual form, the weights of its last token, or one step
for all of it (momentum, Newton-Schulz, rows rescaled).

The equations and the order of operations are those of fast_weights.py.
"""

from __future__ import annotations

import numpy as np

from ._jit import njit, part
from ._products import product
from ._simd import called, fma
from .fast_rows import clear, row_dot, scaled_copy
from .fast_rule import POST_NORM


@part
def mixing(a, eta, reader, decays, momentum, n, N, beta, phi, chain):
    """N [n, n] (zeros above the diagonal), beta and phi: what each token sees of the mini-batch."""
    called()
    b, e, f = 1.0, 1.0, 0.0
    for i in range(n):
        row = N[i]
        if decays or momentum:
            above = N[i - 1] if i > 0 else row
            b = a[i] * b
            e = eta[i] * e
            f = a[i] * f + e
            for j in range(i):
                chain[j] = eta[i] * chain[j]
                row[j] = a[i] * above[j] + chain[j]
        else:
            for j in range(i):
                row[j] = 1.0
        chain[i] = 1.0
        row[i] = 1.0
        for j in range(i + 1, n):
            row[j] = 0.0
        beta[i] = b
        phi[i] = f
    for i in range(n):
        row = N[i]
        for j in range(i + 1):
            row[j] = reader[i] * row[j]


@part
def closing(a, eta, reader, n, last, tail):
    """The coefficients of the mini-batch's end: last_j = N_nj, tail_j = eta_{j+1} .. eta_n; returns (beta_n, phi_n,
    eta_1 .. eta_n)."""
    called()
    r, e, g = 1.0, 1.0, 1.0
    for j in range(n - 1, -1, -1):
        g = r + eta[j + 1] * g if j + 1 < n else 1.0
        last[j] = g * reader[n - 1]
        tail[j] = e
        r = r * a[j]
        e = e * eta[j]
    f, c = 0.0, 1.0
    for i in range(n):
        c = c * eta[i]
        f = a[i] * f + c
    return r, f, e


@part
def descend(W, b, P, c, A, E, F, last, tail, ends, bias, decays, momentum, panel):
    """The weights of the mini-batch's last token, and the momentum behind them."""
    called()
    no, yes = np.int64(0), np.int64(1)
    one = E.dtype.type(1)
    beta, phi, chain = ends
    w, p = W.reshape(W.size), P.reshape(P.size)
    if decays:
        for i in range(w.size):
            w[i] = beta * w[i]
        if bias:
            for j in range(b.size):
                b[j] = beta * b[j]
    if momentum:
        for i in range(w.size):
            w[i] = w[i] + phi * p[i]
        if bias:
            for j in range(b.size):
                b[j] = b[j] + phi * c[j]
    scaled_copy(E, last, F)
    product(W, A, yes, F, no, -one, panel)
    if bias:
        for i in range(F.shape[0]):
            f = F[i]
            for j in range(b.size):
                b[j] = b[j] - f[j]
    if momentum:
        for i in range(p.size):
            p[i] = chain * p[i]
        scaled_copy(E, tail, F)
        product(P, A, yes, F, no, -one, panel)
        if bias:
            for j in range(c.size):
                c[j] = chain * c[j]
            for i in range(F.shape[0]):
                f = F[i]
                for j in range(c.size):
                    c[j] = c[j] - f[j]


@part
def ages(fade, batch, t0, head, out):
    """The product of each key channel's decays from the mini-batch's first token to each: row 0 holds that before
    these tokens, and in the end of all."""
    called()
    for i in range(1, out.shape[0]):
        row, above = out[i], out[i - 1]
        for r in range(row.size):
            row[r] = fade[batch, t0 + i - 1, head, r] * above[r]
    first, last = out[0], out[out.shape[0] - 1]
    for r in range(first.size):
        first[r] = last[r]


@part
def by_channel(Q, A, E, fade, place, W, P, D, R, eta, reader, momentum, out):
    """One layer whose rows decay each by a factor of its own, token by token: W_i and P_i of what was there before
    the mini-batch, D_i and R_i of what it teaches, read as q (W_i + reader_i D_i); and its last token's weights."""
    called()
    batch, t0, head = place
    clear(D)
    clear(R)
    clear(out)
    for i in range(out.shape[0]):
        e, o = E[i], out[i]
        for r in range(W.shape[0]):
            w, p, d, s = W[r], P[r], D[r], R[r]
            a, key, query = fade[batch, t0 + i, head, r], A[i, r], Q[i, r]
            for j in range(o.size):
                s[j] = eta[i] * s[j] - key * e[j]
                d[j] = a * d[j] + s[j]
                w[j] = a * w[j]
                if momentum:
                    p[j] = eta[i] * p[j]
                    w[j] = w[j] + p[j]
                o[j] = o[j] + query * (w[j] + reader[i] * d[j])
    for r in range(W.shape[0]):
        w, p, d, s = W[r], P[r], D[r], R[r]
        for j in range(w.size):
            w[j] = w[j] + reader[out.shape[0] - 1] * d[j]
            if momentum:
                p[j] = p[j] + s[j]


@part
def orthogonalise(G, A, B, T, steps, panel):
    """Newton-Schulz in place: G / (|G| + 1e-7), then X <- a X + (b M + c M^2) X, M = X X' (from the narrow side)."""
    called()
    no, yes = np.int64(0), np.int64(1)
    one = G.dtype.type(1)
    rows, cols = G.shape
    g, t = G.reshape(G.size), T.reshape(T.size)
    size = np.sqrt(row_dot(G, 0, G, 0, g.size)) + 1e-7
    for i in range(g.size):
        g[i] = g[i] / size
    for s in range(steps.shape[0]):
        clear(A)
        clear(B)
        clear(T)
        if rows <= cols:
            product(A, G, no, G, yes, one, panel)
        else:
            product(A, G, yes, G, no, one, panel)
        product(B, A, no, A, no, one, panel)
        m, x = A.reshape(A.size), B.reshape(B.size)
        for i in range(x.size):
            x[i] = steps[s, 1] * m[i] + steps[s, 2] * x[i]
        if rows <= cols:
            product(T, B, no, G, no, one, panel)
        else:
            product(T, G, no, B, no, one, panel)
        for i in range(g.size):
            g[i] = steps[s, 0] * g[i] + t[i]


@njit
def column_norms(W, inside, out):
    """The length of each column (of what feeds one unit), with LaCT's 1e-5 under the root (`inside` 1), beside it (0),
    or none (-1)."""
    called()
    for j in range(out.size):
        out[j] = 0.0
    for i in range(W.shape[0]):
        row = W[i]
        for j in range(row.size):
            out[j] = fma(np.float64(row[j]), np.float64(row[j]), out[j])
    for j in range(out.size):
        if inside == 1:
            out[j] = np.sqrt(out[j] + 1e-5)
        else:
            out[j] = np.sqrt(out[j]) + (1e-5 if inside == 0 else 0.0)


@part
def renorm(W, lengths, inside, room, out):
    """out = W with every column brought back to its first length."""
    called()
    column_norms(W, inside, room)
    for i in range(W.shape[0]):
        row, to = W[i], out[i]
        for j in range(row.size):
            to[j] = row[j] / room[j] * lengths[j]


@part
def halves(whole, left, right, out):
    """[left | right] taken apart, or put together."""
    called()
    h = left.shape[1]
    for i in range(whole.shape[0]):
        w, a, b = whole[i], left[i], right[i]
        for j in range(h):
            if out:
                a[j] = w[j]
                b[j] = w[h + j]
            else:
                w[j] = a[j]
                w[h + j] = b[j]


@part
def begin(G, P, g, c, push, momentum):
    """What one step for the whole mini-batch adds to: push P, or nothing; g likewise, of a bias."""
    called()
    rows, old = G.reshape(G.size), P.reshape(P.size)
    for i in range(rows.size):
        rows[i] = push * old[i] if momentum else 0.0
    for j in range(g.size):
        g[j] = push * c[j] if momentum else 0.0


@part
def learn(G, g, A, E, panel):
    """The descent of some more tokens."""
    called()
    product(G, A, np.int64(1), E, np.int64(0), -E.dtype.type(1), panel)
    for i in range(E.shape[0]):
        e = E[i]
        for j in range(g.size):
            g[j] = g[j] - e[j]


@part
def leap(W, b, P, c, G, g, lengths, room, square, parts, decay, rule, steps, panel):
    """One step for the whole mini-batch, its gradients summed: momentum, Newton-Schulz, the weights, the rescaling of
    their columns."""
    called()
    no, yes = np.int64(0), np.int64(1)
    momentum, muon, apart, overwrite, weight_norm, inside = rule
    w, p, d = W.reshape(W.size), P.reshape(P.size), G.reshape(G.size)
    for j in range(g.size):
        if momentum:
            c[j] = g[j]
        b[j] = decay * b[j] + g[j]
    if momentum:
        for i in range(d.size):
            p[i] = d[i]
    if overwrite:
        for i in range(d.size):
            w[i] = d[i]
    elif decay != 1.0:
        for i in range(d.size):
            w[i] = decay * w[i]
    if muon:
        M, Q, T = square
        if apart:
            left, right, T = parts
            halves(G, left, right, yes)
            orthogonalise(left, M, Q, T, steps, panel)
            orthogonalise(right, M, Q, T, steps, panel)
            halves(G, left, right, no)
        else:
            orthogonalise(G, M, Q, T, steps, panel)
    for i in range(d.size):
        w[i] = w[i] + d[i]
    if weight_norm == POST_NORM:
        renorm(W, lengths, inside, room, W)
