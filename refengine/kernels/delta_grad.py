"""The adjoint of the delta core: what a loss owes to every input of kernels/delta.py, with no state divided or stored
for more than a window.

Per head and micro-step, for the loss l with o' = dl/do, G = dl/dS' and h = s o' where a token ends (0 elsewhere):

    G   += q h'                          d  = b u
    w    = G' k                          n  = -(b w)
    dq  += S' h                          dv = -n         db = u w (summed over columns where b is one number)
    dk   = G d                           de = X n        X = S~ (order "post") or S (order "pre")
    post: G~ = G + e n';  da = rows of G~ * S;  G <- diag(a) G~
    pre:                  da = rows of G  * S;  G <- diag(a) G + e n'

Four sweeps, each a linear recurrence with everything else known, so each is cut into tasks of its own:

    `forth`  columns, forward:   S~ for u = v - e . X, leaving S at the start of every window of WINDOW micro-steps
    `back`   columns, backward:  G for w; ends in d initial_state
    `rows`   rows of S and G, window by window from the last: S again from its mark, WINDOW + 1 states of one tile, for
             dq and de; then G for dk and da, which is a product of both
    `across` what is left: n, d, db, and sums over rows

The decay is never divided by, so it may be 0. Memory is O(T (K + V)): u, w, and K V / WINDOW numbers a micro-step.

Order of operations, the same on every machine: sums over rows or columns go in four segments of ceil(n / 4), each a
chain of fused multiply-adds from zero, and the segments as (0 + 1) + (2 + 3); h, d, n and every decay are rounded
products, every update a fused multiply-add. The terms of da and db are rounded products, added in the same order:
their sum, and the sum of their sizes, which says how far it is cancellation. Where a decay is one number its rows are
summed by fours, and the fours in order. Lanes are columns or rows, so neither lanes, tiles nor threads touch the
bits.
"""

from __future__ import annotations

import numpy as np

from ._jit import inline, njit
from ._simd import absolute, at, fma, load, load_narrow, put, splat, splat_narrow, store
from .delta import ERASE, ERASE_IS_KEY, NO_ERASE, column_squares, columns_in, gains, offset
from .delta_grad_bound import eights, follow_back, follow_forth, slots_of

WINDOW = 64  # micro-steps between two marks
ZERO, ONE, FRONT = 0, 1, 2  # cells in front of a packed window, and how many


@inline
def line(x, batch, t, head, lines, to, K):
    """One vector, or one number, into flat `lines` from `to` on, rounded if need be."""
    source = offset(x, batch, t, head)
    for i in range(K if x.shape[3] > 1 else 1):
        put(lines, to + i, at(x, source + i))


@inline
def whole(x, batch, t, head, low, n, lines, to, L):
    """Rows low .. low + n of one vector; one number stands for all; zeros up to L."""
    source = offset(x, batch, t, head)
    for i in range(n):
        put(lines, to + i, at(x, source + low + i if x.shape[3] > 1 else source))
    for i in range(n, L):
        put(lines, to + i, np.float32(0.0))


@inline
def onward(x, k, a, a_step, e, e_step, d, S, low, high, pre, zero):
    """Rows low .. high, forward: finish the update by d, decay by a, predict with e."""
    L = S.shape[1]
    p = splat(zero)
    for i in range(low, high):
        s = fma(splat(at(x, k + i)), d, load(S, i * L))
        if pre:
            p = fma(splat(at(x, e + e_step * i)), s, p)
        s = at(x, a + a_step * i) * s
        if not pre:
            p = fma(splat(at(x, e + e_step * i)), s, p)
        store(S, i * L, s)
    return p


@inline
def homeward(x, k, q, q_step, a, a_step, e, e_step, n, h, G, low, high, pre, zero):
    """Rows low .. high, backward: undo the micro-step after by a, e, n; read by q, h; and G' k."""
    L = G.shape[1]
    w = splat(zero)
    for i in range(low, high):
        g = load(G, i * L)
        if pre:
            g = fma(splat(at(x, e + e_step * i)), n, at(x, a + a_step * i) * g)
        else:
            g = at(x, a + a_step * i) * fma(splat(at(x, e + e_step * i)), n, g)
        g = fma(splat(at(x, q + q_step * i)), h, g)
        w = fma(splat(at(x, k + i)), g, w)
        store(G, i * L, g)
    return w


@inline
def columns_out(rows, y, to, left, W):
    """[W, L] into columns left .. of y [M, V] from row `to` on."""
    for j in range(W):
        for i in range(min(rows.shape[1], y.shape[1] - left)):
            y[to + j, left + i] = rows[j, i]


@njit
def forth(place, heads, q, k, e, a, v, b, errors, S, N, E, marks, u, kept, scratch, rule, numbers):
    """The forward sweep of one head and one block of columns: u [M, V], the states [windows, K, V] before every window,
    and what the bound keeps.

    place    (batch, begin, low, high, column): micro-steps low .. high of a sequence that began at `begin`, cut
             between windows; the block's first value column
    heads    (q, k, e, a, v): which head of each array
    arrays   as in kernels/delta.py; errors: those of q, k, e, a, v, b
    state    S [tiles, K, L], N and E [tiles, L], carried on
    written  u, marks, kept [tiles, M + 1, 3, L]
    scratch  x [FRONT + 4 WINDOW K], rows [WINDOW, L] six times, lines [4, padded K], slots [WINDOW, ALL_SLOTS], sums
             [SUMS, WINDOW, L]
    rule     (micro, pre, erase); numbers: what `constants` of kernels/delta.py gives
    """
    batch, begin, first, last, column = place
    _, hk, he, ha, hv = heads
    _, pre, erase = rule
    x, vs, bs, us, _, operators, wrong_bs, lines, slots, _ = scratch
    tiles, K, L = S.shape
    zero = x[ZERO]
    m = (K + 3) // 4
    ks, es, decays = FRONT, FRONT + WINDOW * K, FRONT + 2 * WINDOW * K
    a_step = 1 if a.shape[3] > 1 else 0
    for start in range(first, last, WINDOW):
        W = min(WINDOW, last - start)
        for j in range(W):
            line(k, batch, start + j, hk, x, ks + j * K, K)
            line(a, batch, start + j, ha, x, decays + j * K, K)
            if erase:
                line(e, batch, start + j, he, x, es + j * K, K)
        slots_of((batch, begin), heads, q, k, e, a, errors, lines, slots, start, W, rule, numbers)
        for n in range(tiles):
            left = column + n * L
            tile = S[n]
            square = column_squares(tile, zero)
            mark = marks[(start - begin) // WINDOW]
            for i in range(K):
                for c in range(min(L, v.shape[3] - left)):
                    mark[i, left + c] = tile[i, c]
            columns_in(v, batch, start, hv, left, W, vs, zero)
            if n == 0 or b.shape[3] > 1:
                columns_in(b, batch, start, hv, left if b.shape[3] > 1 else 0, W, bs, zero)
                gains(bs, slots, operators[:W], wrong_bs, numbers[5])
            d = splat(-zero)  # -0: the first sweep leaves every state as it is
            for j in range(W):
                key = ks + max(j - 1, 0) * K
                erasing, step = (es + j * K, 1) if erase else (ZERO, 0)
                p = splat(zero)
                p_left = p
                for segment in range(4):
                    low = min(segment * m, K)
                    high = min(low + m, K)
                    now = onward(x, key, decays + j * K, a_step, erasing, step, d, tile, low, high, pre, zero)
                    if segment == 0 or segment == 2:
                        p_left = p
                        p = now
                    else:
                        p = p + now
                miss = load(vs, j * L) - (p_left + p)
                d = load(bs, j * L) * miss
                store(us, j * L, miss)
            for i in range(K):
                store(tile, i * L, fma(splat(at(x, ks + (W - 1) * K + i)), d, load(tile, i * L)))
            columns_out(us, u, start - begin, left, W)
            at_kept = (n * kept.shape[1] + start - begin) * 3 * L
            follow_forth(vs[:W], bs, us, operators, wrong_bs, slots, N[n], E[n], square, kept, at_kept, pre, numbers)


@njit
def back(place, heads, q, k, e, a, b, do, errors, G, N, E, u, w, kept, wrong, scratch, rule, gammas, numbers):
    """The backward sweep of one head and one block of columns: w [M, V], and wrong [V / 8, SUMS, M], the bound's sums
    over each eight columns. G [tiles, K, L] comes in as the final state's cotangent and leaves as the initial state's,
    N and E [tiles, L] with it. The rest as in `forth`."""
    batch, begin, first, last, column = place
    hq, hk, he, ha, hv = heads
    micro, pre, erase = rule
    x, hs, bs, ws, us, operators, wrong_bs, lines, slots, sums = scratch
    scale = numbers[0]
    tiles, K, L = G.shape
    zero = x[ZERO]
    m = (K + 3) // 4
    ks, es, decays, qs = FRONT, FRONT + WINDOW * K, FRONT + 2 * WINDOW * K, FRONT + 3 * WINDOW * K
    a_step = 1 if a.shape[3] > 1 else 0
    for windows_after in range((last - first + WINDOW - 1) // WINDOW):
        start = first + ((last - first - 1) // WINDOW - windows_after) * WINDOW
        W = min(WINDOW, last - start)
        for j in range(W):
            line(k, batch, start + j, hk, x, ks + j * K, K)
            line(a, batch, start + j, ha, x, decays + j * K, K)
            if erase:
                line(e, batch, start + j, he, x, es + j * K, K)
            if (start - begin + j + 1) % micro == 0:
                line(q, batch, (start + j) // micro, hq, x, qs + j * K, K)
        slots_of((batch, begin), heads, q, k, e, a, errors, lines, slots, start, W, rule, numbers)
        for n in range(tiles):
            left = column + n * L
            tile = G[n]
            reads_in(do, batch, start, begin, hv, left, W, micro, hs, zero)
            if n == 0 or b.shape[3] > 1:
                columns_in(b, batch, start, hv, left if b.shape[3] > 1 else 0, W, bs, zero)
                gains(bs, slots, operators[:W], wrong_bs, numbers[5])
            nudge = splat(-zero)
            for back_j in range(W):
                j = W - 1 - back_j
                decay, d_step, erasing, e_step = ONE, 0, ZERO, 0
                if back_j > 0:
                    decay, d_step = decays + (j + 1) * K, a_step
                    if erase:
                        erasing, e_step = es + (j + 1) * K, 1
                query, q_step = (qs + j * K, 1) if (start - begin + j + 1) % micro == 0 else (ZERO, 0)
                h = scale * load(hs, j * L)
                s = splat(zero)
                s_left = s
                for segment in range(4):
                    low = min(segment * m, K)
                    high = min(low + m, K)
                    now = homeward(
                        *(x, ks + j * K, query, q_step, decay, d_step, erasing, e_step),
                        *(nudge, h, tile, low, high, pre, zero),
                    )
                    if segment == 0 or segment == 2:
                        s_left = s
                        s = now
                    else:
                        s = s + now
                s = s_left + s
                store(ws, j * L, s)
                nudge = splat(-zero) - load(bs, j * L) * s
            square = column_squares(tile, zero)
            erasing, e_step = (es, 1) if erase else (ZERO, 0)
            homeward(x, ks, ZERO, 0, decays, a_step, erasing, e_step, nudge, splat(zero), tile, 0, K, pre, zero)
            columns_out(ws, w, start - begin, left, W)
            for j in range(W):
                for i in range(min(L, u.shape[1] - left)):
                    us[j, i] = u[start - begin + j, left + i]
                for i in range(u.shape[1] - left, L):
                    us[j, i] = zero
            at_kept = (n * kept.shape[1] + start - begin) * 3 * L
            which = (pre, b.shape[3] > 1)
            follow_back(
                *(
                    bs[:W],
                    hs,
                    us,
                    ws,
                    operators,
                    wrong_bs,
                    slots,
                    N[n],
                    E[n],
                    square,
                    kept,
                    at_kept,
                    sums,
                    which,
                    gammas,
                    numbers,
                )
            )
            eights(sums, W, wrong, left // 8, start - begin)


@inline
def reads_in(do, batch, start, begin, head, left, W, micro, rows, zero):
    """Columns left .. left + L of what W micro-steps' read-outs owe into [W, L]; zeros where nothing is read."""
    L = rows.shape[1]
    n = min(L, do.shape[3] - left)
    for j in range(W):
        read = (start - begin + j + 1) % micro == 0
        source = offset(do, batch, (start + j) // micro, head) + left
        for i in range(L):
            rows[j, i] = zero
        if read:
            for i in range(n):
                put(rows, j * L + i, at(do, source + i))


@inline
def knowns_in(u, w, b, do, batch, start, begin, head, W, micro, scale, knowns):
    """d = b u, n = -(b w) and h = s o' of W micro-steps into [3, WINDOW, V]."""
    V = u.shape[1]
    zero = scale - scale
    for j in range(W):
        t = start - begin + j
        step = offset(b, batch, start + j, head)
        per_column = 1 if b.shape[3] > 1 else 0
        read = offset(do, batch, (start + j) // micro, head)
        for c in range(V):
            knowns[1, j, c] = at(b, step + per_column * c)
            knowns[0, j, c] = knowns[1, j, c] * u[t, c]
            knowns[1, j, c] = -(knowns[1, j, c] * w[t, c])
            knowns[2, j, c] = zero
        if (t + 1) % micro == 0:
            for c in range(V):
                knowns[2, j, c] = at(do, read + c)
                knowns[2, j, c] = scale * knowns[2, j, c]


@inline
def replay(x, d, n, h, a, k, S, to, after, low, high, pre, erase, zero):
    """Columns low .. high of one micro-step, forward, from the tile at flat `to` of S to the one at `after`: dq, de."""
    L = S.shape[2]
    dq = splat_narrow(zero)
    de = dq
    for c in range(low, high):
        s = load_narrow(S, to + c * L)
        decayed = a * s
        if erase:
            de = fma(splat_narrow(at(x, n + c)), s if pre else decayed, de)
        s = fma(k, splat_narrow(at(x, d + c)), decayed)
        dq = fma(splat_narrow(at(x, h + c)), s, dq)
        store(S, after + c * L, s)
    return dq, de


@inline
def rewind(x, d, n, h, a, q, e, S, to, G, base, low, high, pre, decays, zero):
    """Columns low .. high of one micro-step, backward: dk, da and the sum of the sizes of da's terms."""
    L = S.shape[2]
    dk = splat_narrow(zero)
    da = dk
    size = dk
    for c in range(low, high):
        g = fma(q, splat_narrow(at(x, h + c)), load_narrow(G, base + c * L))
        dk = fma(splat_narrow(at(x, d + c)), g, dk)
        nudge = splat_narrow(at(x, n + c))
        if not pre:
            g = fma(e, nudge, g)
        if decays:
            term = g * load_narrow(S, to + c * L)
            da = da + term
            size = size + absolute(term)
        g = a * g
        if pre:
            g = fma(e, nudge, g)
        store(G, base + c * L, g)
    return dk, da, size


@inline
def rows_out(y, batch, t, head, low, n, line, more):
    """The first n lanes of a line into rows low .. of a vector of y [B, M, heads, K], or added to it."""
    to = offset(y, batch, t, head) + low
    for i in range(n):
        put(y, to + i, at(y, to + i) + at(line, i) if more else at(line, i))


@inline
def fours_out(y, batch, t, head, low, n, line, more):
    """Likewise, but y has one number for each four rows: their sum, in order."""
    to = offset(y, batch, t, head) + low // 4
    for i in range(0, n, 4):
        s = at(line, i)
        for r in range(i + 1, min(i + 4, n)):
            s = s + at(line, r)
        put(y, to + i // 4, at(y, to + i // 4) + s if more else s)


@njit
def rows(place, heads, q, k, e, a, b, do, u, w, marks, scale, G, dq, dk, de, da, size, scratch, rule, more):
    """The last sweep of one head and one block of rows.

    place    (batch, begin, low, high, row): as in `forth`; the block's first row
    state    G [tiles, V, L]: the final state's cotangent, transposed
    written  dq [B, T, *, K]; dk, de [B, M, *, K] (where the key erases its two parts are summed in dk); da and the
             sum of its terms' sizes [B, M, *, K], or one for each four rows where the decay is one number
    scratch  S [WINDOW + 1, V, L], lines [4 WINDOW, L], d, n, h [3, WINDOW, V], sums [3, L]
    rule     (micro, pre, erase, decays)
    more     of q, k, e, a: whether another value head has been here, and this one's is added
    """
    batch, begin, first, last, row = place
    hq, hk, he, ha, hv = heads
    micro, pre, erase, decays = rule
    more_q, more_k, more_e, more_a = more
    S, lines, knowns, sums = scratch
    tiles, V, L = G.shape
    K = k.shape[3]
    wide = a.shape[3] > 1
    zero = scale - scale
    m = (V + 3) // 4
    ks, es, at_a, qs = 0, WINDOW * L, 2 * WINDOW * L, 3 * WINDOW * L
    for windows_after in range((last - first + WINDOW - 1) // WINDOW):
        start = first + ((last - first - 1) // WINDOW - windows_after) * WINDOW
        W = min(WINDOW, last - start)
        knowns_in(u, w, b, do, batch, start, begin, hv, W, micro, scale, knowns)
        for tile in range(tiles):
            low = row + tile * L
            n = min(L, K - low)
            for j in range(W):
                whole(k, batch, start + j, hk, low, n, lines, ks + j * L, L)
                whole(a, batch, start + j, ha, low, n, lines, at_a + j * L, L)
                if erase:
                    whole(e, batch, start + j, he, low, n, lines, es + j * L, L)
                if (start - begin + j + 1) % micro == 0:
                    whole(q, batch, (start + j) // micro, hq, low, n, lines, qs + j * L, L)
                else:
                    whole(q, batch, 0, hq, low, 0, lines, qs + j * L, L)
            mark = marks[(start - begin) // WINDOW]
            for c in range(V):
                for i in range(L):
                    S[0, c, i] = mark[low + i, c] if i < n else zero
            for j in range(W):
                d, nudge, h = j * V, (WINDOW + j) * V, (2 * WINDOW + j) * V
                x = splat_narrow(zero)
                y = x
                x_left = x
                y_left = x
                for segment in range(4):
                    c = min(segment * m, V)
                    xn, yn = replay(
                        *(knowns, d, nudge, h, load_narrow(lines, at_a + j * L), load_narrow(lines, ks + j * L)),
                        *(S, j * V * L, (j + 1) * V * L, c, min(c + m, V), pre, erase != NO_ERASE, zero),
                    )
                    if segment == 0 or segment == 2:
                        x_left, y_left = x, y
                        x, y = xn, yn
                    else:
                        x, y = x + xn, y + yn
                if (start - begin + j + 1) % micro == 0:
                    store(sums, 0, x_left + x)
                    rows_out(dq, batch, (start + j) // micro, hq, low, n, sums[0], more_q)
                if erase == ERASE:
                    store(sums, 0, y_left + y)
                    rows_out(de, batch, start + j, he, low, n, sums[0], more_e)
                elif erase:
                    store(sums, 0, y_left + y)
                    rows_out(dk, batch, start + j, hk, low, n, sums[0], more_k)
            for back_j in range(W):
                j = W - 1 - back_j
                d, nudge, h = j * V, (WINDOW + j) * V, (2 * WINDOW + j) * V
                x = splat_narrow(zero)
                y, z, x_left, y_left, z_left = x, x, x, x, x
                for segment in range(4):
                    c = min(segment * m, V)
                    xn, yn, zn = rewind(
                        *(knowns, d, nudge, h, load_narrow(lines, at_a + j * L), load_narrow(lines, qs + j * L)),
                        *(load_narrow(lines, es + j * L), S, j * V * L, G, tile * V * L, c, min(c + m, V), pre, decays),
                        zero,
                    )
                    if segment == 0 or segment == 2:
                        x_left, y_left, z_left = x, y, z
                        x, y, z = xn, yn, zn
                    else:
                        x, y, z = x + xn, y + yn, z + zn
                store(sums, 0, x_left + x)
                store(sums, L, y_left + y)
                store(sums, 2 * L, z_left + z)
                rows_out(dk, batch, start + j, hk, low, n, sums[0], more_k or erase == ERASE_IS_KEY)
                if decays and wide:
                    rows_out(da, batch, start + j, ha, low, n, sums[1], more_a)
                    rows_out(size, batch, start + j, ha, low, n, sums[2], more_a)
                elif decays:
                    fours_out(da, batch, start + j, ha, low, n, sums[1], more_a)
                    fours_out(size, batch, start + j, ha, low, n, sums[2], more_a)


@njit
def across(place, hv, b, u, w, dv, db, size):
    """dv = b w [B, M, HV, V]; db and the sum of its terms' sizes [B, M, HV, V or 1], of one sequence and head."""
    batch, begin, end = place
    V = u.shape[1]
    m = (V + 3) // 4
    zero = u.dtype.type(0)
    per_column = 1 if b.shape[3] > 1 else 0
    for t in range(begin, end):
        step = offset(b, batch, t, hv)
        to = offset(dv, batch, t, hv)
        steps = offset(db, batch, t, hv)
        for c in range(V):
            put(dv, to + c, at(b, step + per_column * c))
            put(dv, to + c, at(dv, to + c) * w[t - begin, c])
        if db.shape[3] > 1:
            for c in range(V):
                put(db, steps + c, u[t - begin, c] * w[t - begin, c])
                put(size, steps + c, abs(at(db, steps + c)))
        else:
            left, left_size, total, total_size = zero, zero, zero, zero
            for segment in range(4):
                s, z = zero, zero
                low = min(segment * m, V)
                for c in range(low, min(low + m, V)):
                    term = u[t - begin, c] * w[t - begin, c]
                    s = s + term
                    z = z + abs(term)
                if segment == 0 or segment == 2:
                    left, left_size = total, total_size
                    total, total_size = s, z
                else:
                    total, total_size = total + s, total_size + z
            put(db, steps, left + total)
            put(size, steps, left_size + total_size)


@njit
def enter(state, S):
    """Rows of a cotangent of the final state, as columns [V, K'], into tiles [tiles, V, L], zeros beyond the last."""
    tiles, V, L = S.shape
    for n in range(tiles):
        for i in range(V):
            for j in range(min(L, state.shape[1] - n * L)):
                S[n, i, j] = state[i, n * L + j]
