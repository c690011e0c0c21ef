"""The adjoint of the exact learner (kernels/mesa.py): each token's matrix factored once, for its solution and for the
adjoint one.

Per head, for what is owed to the output o' and, carried backward, to the memory H', G':

    A = H + Lambda;  A x = q;  y = q + mix (x - q);  y' = scale G o';  A z = mix y'
    dq = z + (1 - mix) y';   dmix = y'.(x - q);   dLambda -= z x;   H' -= z x';   G' += scale y o'
    a share of |H| as Lambda (1 where H is 0):  dshare -= |H| z.x;   H' -= share (z.x) H / |H|
    dk = b ((H' + H'') k + G' v);   dv = b G'' k;   db = k.H' k + k.G' v;   da = H'.H_before + G'.G_before
    H' <- a H';   G' <- a G'

The systems of as many tokens as there are lanes are solved at once, by the forward's own solver; where that iterates, x
and z are what it gives, as if the solve were exact.

Memories are kept at the start of every window of WINDOW tokens and within one window. Sums along a row go in blocks of
the same lanes on every machine, all others in the order of their index.
"""

from __future__ import annotations

from ._jit import inline, njit
from ._simd import BLOCK
from .fast_rows import row_dot
from .mesa import solve
from .spd import frobenius, place, shift

WINDOW = 64  # tokens between two marks
VECTORS = 7  # of the solver: q, x, z, what is owed to y, and three that it iterates with
ROWS = 6


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
def matrices(Hs, first, count, lamb, share, A, size, K, zero):
    """H + Lambda of `count` tokens, whose memories stand from `first` on in Hs, into the lanes of A; the lanes beyond
    hold the first token's."""
    L = BLOCK // A.itemsize
    for lane in range(L):
        H = Hs[first + (lane if lane < count else 0)]
        for i in range(K):
            for r in range(i + 1):
                A[place(i, r, L) + lane] = H[i, r]
    one = A.dtype.type(1)
    if share:
        frobenius(A, K, size[0], zero)
        for lane in range(L):
            size[1, lane] = lamb[0, lane] * size[0, lane] if size[0, lane] > zero else one
        shift(A, K, size[1], 0, one)
    else:
        shift(A, K, lamb, 1, one)


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
def back(where, heads, arrays, lamb, share, mixed, scale, do, marks_H, marks_G, dH, dG, room, rule, found):
    """Tokens t1 .. t0 of one head. dH, dG: what is owed to the memory at the end, and then to that at the start.

    arrays   q, k, v, b, a, mix; all of one float type; lamb [K, L] or, of a share, [1, L]
    room     the memories of a window [WINDOW + 1, K, K], [WINDOW + 1, K, V]; A and F panels; vectors [VECTORS, K to a
             multiple of four times L]; size [3, L]; rows [ROWS, K]; columns [2, V]
    rule     (solver, steps, eps or Chebyshev's first omega), as in kernels/mesa.py
    found    dq, dk, dv, db, da, dmix [B, T, HV, *] and dlamb [K], or [1] of a share
    """
    batch, t0, t1 = where
    hq, hk, hv, hb, ha, hm = heads
    q, k, v, b, a, mix = arrays
    Hs, Gs, A, F, vectors, size, rows, columns = room
    dq, dk, dv, db, da, dmix, dlamb = found
    K, V = dG.shape
    L = BLOCK // A.itemsize
    qs, xs, zs, owed = vectors[0], vectors[1], vectors[2], vectors[3]
    x, y, z, key, along, part = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]
    asked, value = columns[0], columns[1]
    zero = scale - scale
    one = A.dtype.type(1)
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
        for groups_after in range((W + L - 1) // L):
            group = ((W - 1) // L - groups_after) * L
            count = min(L, W - group)
            matrices(Hs, group + 1, count, lamb, share, A, size, K, zero)
            for lane in range(L):
                t = start + group + (lane if lane < count else 0)
                m = mix[batch, t, hm, 0] if mixed else one
                for c in range(V):
                    asked[c] = do[batch, t, hv, c]
                for i in range(K):
                    s = scale * row_dot(Gs[t - start + 1], i * V, asked, 0, V)
                    owed[i * L + lane] = s
                    qs[i * L + lane] = m * owed[i * L + lane]
            solve(A, F, qs, zs, vectors[4], vectors[5], vectors[6], size, rule, K, zero, one)
            for lane in range(L):
                t = start + group + (lane if lane < count else 0)
                for i in range(K):
                    qs[i * L + lane] = q[batch, t, hq, i]
            solve(A, F, qs, xs, vectors[4], vectors[5], vectors[6], size, rule, K, zero, one)
            for lanes_after in range(count):
                lane = count - 1 - lanes_after
                j = group + lane
                t = start + j
                at, bt = a[batch, t, ha, 0], b[batch, t, hb, 0]
                m = mix[batch, t, hm, 0] if mixed else one
                through, dm = zero, zero
                for i in range(K):
                    qi, g = q[batch, t, hq, i], owed[i * L + lane]
                    x[i], z[i] = xs[i * L + lane], zs[i * L + lane]
                    y[i] = scale * (qi + m * (x[i] - qi))
                    dq[batch, t, hv, i] = z[i] + (1 - m) * g
                    dm = dm + g * (x[i] - qi)
                    through = through + z[i] * x[i]
                    if not share:
                        dlamb[i] = dlamb[i] - z[i] * x[i]
                    key[i] = k[batch, t, hk, i]
                    along[i] = zero
                if mixed:
                    dmix[batch, t, hv, 0] = dm
                more = zero
                if share and size[0, lane] > zero:
                    dlamb[0] = dlamb[0] - through * size[0, lane]
                    more = lamb[0, 0] * through / size[0, lane]
                dvt = dv[batch, t, hv]
                for c in range(V):
                    asked[c], value[c], dvt[c] = do[batch, t, hv, c], v[batch, t, hv, c], zero
                tb, ta = zero, zero
                for i in range(K):
                    d, h, g = dH[i], Hs[j + 1, i], dG[i]
                    zi, yi, ki = z[i], y[i], key[i]
                    for r in range(K):
                        d[r] = d[r] - zi * x[r]
                    if share:
                        for r in range(K):
                            d[r] = d[r] - more * h[r]
                    for c in range(V):
                        g[c] = g[c] + yi * asked[c]
                    ta = ta + (row_dot(dH, i * K, Hs[j], i * K, K) + row_dot(dG, i * V, Gs[j], i * V, V))
                    part[i] = row_dot(dH, i * K, key, 0, K) + row_dot(dG, i * V, value, 0, V)
                    tb = tb + ki * part[i]
                    for r in range(K):
                        along[r] = along[r] + d[r] * ki
                        d[r] = at * d[r]
                    for c in range(V):
                        dvt[c] = dvt[c] + bt * (g[c] * ki)
                        g[c] = at * g[c]
                for i in range(K):
                    dk[batch, t, hv, i] = bt * (part[i] + along[i])
                db[batch, t, hv, 0] = tb
                da[batch, t, hv, 0] = ta
