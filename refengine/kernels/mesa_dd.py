"""The exact learner in double-double: mesa.py's recurrence over pairs (_dd.py), and its system solved by refinement.

H and G advance as there, every entry a product with the decay plus a product of b k_i with k_j or v_j. The systems of
as many tokens as there are lanes are solved by Cholesky in float64 and refined STEPS times: with A = H + Lambda, q and
x in pairs,

    r = q - A x   in double-double;   x <- x + (L L')^-1 r

each step shrinking the error by about cond(A) 2^-50, down to cond(A) 2^-104. How far that got is not assumed: the last
residual is what mesa.py's bound is made of.

With u = 2^-53 an entry of H, G or r, and the read-out, err in a step by 5 u^2 for every product and 3 u^2 for the sum;
y = q + m (x - q) by 3, 5 and 3; |H| by K^2 3 u^2 for the squares' sum and 8 u^2 for the root. So that bound holds with
UNIT = 2^-100 = 64 u^2, its own arithmetic rounding by u; every sum is one chain: 8 K u^2 < (ceil(K / 4) + 2) UNIT.
"""

from __future__ import annotations

import numpy as np

from ._dd import add, root, times
from ._jit import inline, njit
from ._simd import BLOCK, at, block, largest, load, negative, splat, spread, store, turn
from .delta import columns_in, columns_out, dot
from .delta_dd import U
from .mesa import follow, pack, step_slots
from .spd import factor, inner, place, shift, substitute

STEPS = 5


@inline
def sum_of_products(ah, al, bh, bl, ch, cl, dh, dl):
    """a b + c d"""
    xh, xl = times(ah, al, bh, bl)
    yh, yl = times(ch, cl, dh, dl)
    return add(xh, xl, yh, yl)


@inline
def advance(H, HL, keys, writes, decays, count, A, square):
    """H through `count` tokens, and its lower triangle after each of them into that token's lane of A; keys, writes,
    decays, A and square are pairs of arrays, each part as in mesa.advance."""
    K, P = H.shape
    L = square[0].shape[0]
    for i in range(K):
        for j in range(0, i + 1, L):
            h, l = block(H, i * P + j), block(HL, i * P + j)
            for s in range(count):
                a, al = spread(decays[0][s]), spread(decays[1][s])
                w, wl = spread(at(writes[0], s * P + i)), spread(at(writes[1], s * P + i))
                h, l = sum_of_products(h, l, a, al, w, wl, block(keys[0], s * P + j), block(keys[1], s * P + j))
                store(square[0], s * L, h)
                store(square[1], s * L, l)
            store(H, i * P + j, h)
            store(HL, i * P + j, l)
            to = 8 * L * (i // 4) * (i // 4 + 1) + (4 * j + i % 4) * L
            turn(square[0], A[0], to, 4 * L)
            turn(square[1], A[1], to, 4 * L)


@inline
def remember(S, SL, v, vl, writes, decays, reads, count, o, ol, scale):
    """One tile of G through `count` tokens, read after each; writes, decays, reads are pairs of arrays."""
    K, L = S.shape
    P = writes[0].shape[1]
    for s in range(count):
        a, al = splat(decays[0][s]), splat(decays[1][s])
        y, yl = load(v, s * L), load(vl, s * L)
        r = splat(0.0)
        rl = r
        for i in range(K):
            w, wl = splat(at(writes[0], s * P + i)), splat(at(writes[1], s * P + i))
            g, gl = sum_of_products(load(S, i * L), load(SL, i * L), a, al, y, yl, w, wl)
            store(S, i * L, g)
            store(SL, i * L, gl)
            g, gl = times(g, gl, splat(at(reads[0], s * P + i)), splat(at(reads[1], s * P + i)))
            r, rl = add(r, rl, g, gl)
        r, rl = times(r, rl, splat(scale[0]), splat(scale[1]))
        store(o, s * L, r)
        store(ol, s * L, rl)


@inline
def frobenius(A, AL, n, size):
    """|A| in the Frobenius norm, a lane's pair in size[0] and size[1]."""
    L = BLOCK // A.itemsize
    h = spread(0.0)
    l = h
    for i in range(n):
        for j in range(i + 1):
            x, xl = block(A, place(i, j, L)), block(AL, place(i, j, L))
            x, xl = times(x, xl, x, xl)
            if j < i:
                x, xl = x + x, xl + xl
            h, l = add(h, l, x, xl)
    store(size, 0, h)
    store(size, L, l)
    for s in range(L):
        size[0, s], size[1, s] = root(size[0, s], size[1, s])


@inline
def ridged(A, AL, n, by, by_low, step, nothing):
    """A + Lambda: a block of Lambda for each row (step 1) or the same for all; the rows beyond n those of 1."""
    L = BLOCK // A.itemsize
    shift(A, n, nothing, 0, 1.0)
    for i in range(n):
        d = place(i, i, L)
        h, l = add(block(A, d), block(AL, d), block(by, i * step * L), block(by_low, i * step * L))
        store(A, d, h)
        store(AL, d, l)


@inline
def defect(A, AL, n, x, xl, q, ql, r):
    """r = q - A x, of which the high part is kept; zero beyond row n."""
    L = BLOCK // A.itemsize
    for i in range(n):
        h, l = block(q, i * L), block(ql, i * L)
        for j in range(n):
            a = place(max(i, j), min(i, j), L)
            p, pl = times(block(A, a), block(AL, a), block(x, j * L), block(xl, j * L))
            h, l = add(h, l, negative(p), negative(pl))
        store(r, i * L, h)
    for i in range(n * L, r.size, L):
        store(r, i, spread(0.0))


@inline
def solve(A, AL, F, n, q, ql, x, xl, r, d):
    """x = A^-1 q in every lane, and r = q - A x."""
    L = BLOCK // A.itemsize
    factor(A, n, F, 1.0)
    for i in range(0, x.size, L):
        store(x, i, spread(0.0))
        store(xl, i, spread(0.0))
        store(r, i, block(q, i))
    for _ in range(STEPS + 1):
        for i in range(0, x.size, L):
            store(d, i, block(r, i))
        substitute(F, n, d)
        for i in range(0, x.size, L):
            h, l = add(block(x, i), block(xl, i), block(d, i), spread(0.0))
            store(x, i, h)
            store(xl, i, l)
        defect(A, AL, n, x, xl, q, ql, r)


@inline
def enter_tokens(where, heads, highs, lows, count, lines, decays, qs, L):
    """`count` tokens' keys, b keys, queries and decays; lines: keys, writes, queries, each a pair."""
    batch, start = where
    hq, hk, _, hb, ha, _ = heads
    keys, writes, queries = lines
    K = highs[0].shape[3]
    for part, source in enumerate((highs, lows)):
        for s in range(count):
            pack(source[1], batch, start + s, hk, keys[part], s)
            pack(source[0], batch, start + s, hq, queries[part], s)
            decays[part][s] = source[4][batch, start + s, ha, 0]
            for i in range(K):
                qs[part][i * L + s] = queries[part][s, i]
    for s in range(count):
        b, bl = highs[3][batch, start + s, hb, 0], lows[3][batch, start + s, hb, 0]
        for i in range(K):
            writes[0][s, i], writes[1][s, i] = times(b, bl, keys[0][s, i], keys[1][s, i])


@inline
def mixed_in(x, queries, reads, s, K, mixed, m, ml):
    """y = x, or q + m (x - q), of lane s."""
    L = queries[0].shape[0]
    for i in range(K):
        h, l = x[0][i * L + s], x[1][i * L + s]
        if mixed:
            q, ql = queries[0][s, i], queries[1][s, i]
            h, l = add(h, l, -q, -ql)
            h, l = times(h, l, m, ml)
            h, l = add(h, l, q, ql)
        reads[0][s, i], reads[1][s, i] = h, l


@njit
def run(where, heads, highs, lows, errors, ridge, numbers, scale, memory, o, ol, bound, room):
    """Tokens t0 .. t1 of one value head, as mesa.run.

    highs, lows  the pairs of q, k, v, b, a, m; errors: what each may be off by; scale: the scale's pair
    ridge        as there, after lamb as many zeros
    memory       H [K, P]; track [3]; S [tiles, K, lanes]; N, E, fed, left [tiles, lanes]; the low parts of H and S
    written      o, ol [B, T, HV, V] and bound [T], of the pair
    numbers      what delta_dd.constants gives
    room         pairs of keys, writes, queries, reads [L, P], decays [L], square [L, L], A's panels, q, x [K to a
                 multiple of four times L], v, o [L, lanes]; then F's panels, r, d as x, size [4, L], slots [L, SLOTS],
                 row bounds [L, lanes]
    """
    batch, t0, t1 = where
    hq, hk, hv, hb, ha, hm = heads
    dq, dk, dv, db, da, dm = errors
    lamb, nothing, smallest, greatest, wrong, share = ridge
    H, track, S, N, E, fed, left, HL, SL = memory
    pairs, (F, r, d, size, slots, worst) = room
    keys, writes, queries, reads, decays, square, A, qs, x, vs, os = pairs
    tiles, K, lanes = S.shape
    L = slots.shape[0]
    tau, up, floor = numbers[3], numbers[4], numbers[6]
    m, ml = highs[5], lows[5]
    mixed = m.size > 0
    for start in range(t0, t1, L):
        count = min(L, t1 - start)
        enter_tokens((batch, start), heads, highs, lows, count, (keys, writes, queries), decays, qs, L)
        advance(H, HL, keys, writes, decays, count, A, square)
        if share > 0.0:
            frobenius(A[0], A[1], K, size)
            for s in range(L):
                size[2, s], size[3, s] = times(lamb[0, s], 0.0, size[0, s], size[1, s])
                if size[0, s] == 0.0:
                    size[2, s], size[3, s] = 1.0, 0.0
            ridged(A[0], A[1], K, size[2], size[3], 0, nothing)
        else:
            ridged(A[0], A[1], K, lamb, nothing, 1, nothing)
        solve(A[0], A[1], F, K, qs[0], qs[1], x[0], x[1], r, d)
        store(square[0], 0, inner(x[0], x[0]))
        store(square[0], L, inner(r, r))
        for s in range(count):
            t = start + s
            mix, mix_low = (m[batch, t, hm, 0], ml[batch, t, hm, 0]) if mixed else (1.0, 0.0)
            mixed_in(x, queries, reads, s, K, mixed, mix, mix_low)
            sizes = (
                (np.sqrt(dot(keys[0][s], keys[0][s])) + floor) * up,
                (np.sqrt(dot(queries[0][s], queries[0][s])) + floor) * up,
                (np.sqrt(square[0][0, s]) + floor) * up,
                (np.sqrt(square[0][1, s]) + floor) * up,
            )
            wrong_m = dm[batch, t, hm] if mixed else 0.0
            wrong_a, wrong_v, wrong_b = da[batch, t, ha], dv[batch, t, hv], db[batch, t, hb]
            wrongs = (dq[batch, t, hq], dk[batch, t, hk], wrong_a, wrong_v, wrong_b, wrong_m)
            token = (decays[0][s], highs[3][batch, t, hb, 0], mix, mixed)
            given = (smallest, greatest, wrong, share)
            if share > 0.0:
                given = (size[2, s], size[2, s], wrong, share)
            step_slots(slots[s], track, sizes, wrongs, token, given, (K, numbers[2], U, 0.0, 0.0, tau, floor))
            store(worst, s * lanes, splat(0.0))
        for n in range(tiles):
            first = n * lanes
            columns_in(highs[2], batch, start, hv, first, count, vs[0], 0.0)
            columns_in(lows[2], batch, start, hv, first, count, vs[1], 0.0)
            remember(S[n], SL[n], vs[0], vs[1], writes, decays, reads, count, os[0], os[1], scale)
            follow(vs[0], os[0], slots, count, N[n], E[n], fed[n], left[n], worst, numbers)
            columns_out(os[0], o, batch, start, hv, first, 0, count, 1)
            columns_out(os[1], ol, batch, start, hv, first, 0, count, 1)
        for s in range(count):
            bound[start + s] = largest(load(worst, s * lanes))
