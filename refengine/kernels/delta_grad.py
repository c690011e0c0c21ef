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
from ._simd import BLOCK, absolute, at, block, fma, load, put, splat, spread, store, turn
from .delta import ERASE, ERASE_IS_KEY, NO_ERASE, column_squares, columns_in, copied, heads_in, offset

WINDOW = 64  # micro-steps between two marks
ZERO, ONE, FRONT = 0, 1, 2  # cells in front of a packed window, and how many
OF_QUERY, OF_ERASE, OF_KEY, OF_DECAY, OF_SIZE = range(5)  # whose row is packed, or summed


@inline
def line(x, batch, t, head, lines, to, K):
    """One vector, or one number, into flat `lines` from `to` on, rounded if need be."""
    copied(x, offset(x, batch, t, head), lines, to, K if x.shape[3] > 1 else 1)


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
def tiles_out(tiles, y, start, column, W):
    """Tiles [tiles, WINDOW, L] into the columns from `column` on of y [M, V] from row `start` on, in the order of
    memory."""
    L, V = tiles.shape[2], y.shape[1]
    for j in range(W):
        for tile in range(tiles.shape[0]):
            left = column + tile * L
            copied(tiles, (tile * WINDOW + j) * L, y, (start + j) * V + left, min(L, V - left))


@inline
def square_out(tile, line, squares, to, n, zero):
    """The first n of a tile's columns' squares into flat `squares` from `to` on."""
    store(line, 0, column_squares(tile, zero))
    copied(line, 0, squares, to, n)


@njit
def forth(place, heads, k, e, a, v, b, S, marks, squares, u, scratch, rule):
    """The forward sweep of one head and one block of columns: u [M, V]; the states [windows, K, V] before every window,
    and the squares of their columns [windows, V].

    place    (batch, begin, low, high, column): micro-steps low .. high of a sequence that began at `begin`, cut
             between windows; the block's first value column
    heads    (q, k, e, a, v): which head of each array
    arrays   as in kernels/delta.py
    state    S [tiles, K, L], carried on
    scratch  x [FRONT + 4 WINDOW K], v or do, u, w [all tiles, WINDOW, L], b [WINDOW, L]
    rule     (micro, pre, erase)
    """
    batch, begin, first, last, column = place
    _, hk, he, ha, hv = heads
    _, pre, erase = rule
    x, vs, us, ws, bs = scratch
    tiles, K, L = S.shape
    V = v.shape[3]
    zero = x[ZERO]
    m = (K + 3) // 4
    ks, decays = FRONT, FRONT + WINDOW * K
    es = ks if erase == ERASE_IS_KEY else FRONT + 2 * WINDOW * K
    a_step = 1 if a.shape[3] > 1 else 0
    for start in range(first, last, WINDOW):
        W = min(WINDOW, last - start)
        window = (start - begin) // WINDOW
        for j in range(W):
            line(k, batch, start + j, hk, x, ks + j * K, K)
            line(a, batch, start + j, ha, x, decays + j * K, K)
            if erase == ERASE:
                line(e, batch, start + j, he, x, es + j * K, K)
        heads_in(v, batch, start, hv, column, W, vs[:tiles], zero)
        for n in range(tiles):
            left = column + n * L
            tile = S[n]
            square_out(tile, ws, squares, window * V + left, min(L, V - left), zero)
            for i in range(K):
                copied(tile, i * L, marks, (window * K + i) * V + left, min(L, V - left))
            if n == 0 or b.shape[3] > 1:
                columns_in(b, batch, start, hv, left if b.shape[3] > 1 else 0, W, bs, zero)
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
                miss = load(vs, (n * WINDOW + j) * L) - (p_left + p)
                d = load(bs, j * L) * miss
                store(us, (n * WINDOW + j) * L, miss)
            for i in range(K):
                store(tile, i * L, fma(splat(at(x, ks + (W - 1) * K + i)), d, load(tile, i * L)))
        tiles_out(us[:tiles], u, start - begin, column, W)


@njit
def back(place, heads, q, k, e, a, b, do, scale, G, w, squares, scratch, rule):
    """The backward sweep of one head and one block of columns: w [M, V], and the squares [windows, V] of the columns of
    G at every window's first micro-step. G [tiles, K, L] comes in as the final state's cotangent and leaves as the
    initial state's. The rest as in `forth`."""
    batch, begin, first, last, column = place
    hq, hk, he, ha, hv = heads
    micro, pre, erase = rule
    x, hs, us, ws, bs = scratch
    tiles, K, L = G.shape
    V = do.shape[3]
    zero = x[ZERO]
    m = (K + 3) // 4
    ks, decays, qs = FRONT, FRONT + WINDOW * K, FRONT + 3 * WINDOW * K
    es = ks if erase == ERASE_IS_KEY else FRONT + 2 * WINDOW * K
    a_step = 1 if a.shape[3] > 1 else 0
    for windows_after in range((last - first + WINDOW - 1) // WINDOW):
        start = first + ((last - first - 1) // WINDOW - windows_after) * WINDOW
        W = min(WINDOW, last - start)
        for j in range(W):
            line(k, batch, start + j, hk, x, ks + j * K, K)
            line(a, batch, start + j, ha, x, decays + j * K, K)
            if erase == ERASE:
                line(e, batch, start + j, he, x, es + j * K, K)
            if (start - begin + j + 1) % micro == 0:
                line(q, batch, (start + j) // micro, hq, x, qs + j * K, K)
        reads_in(do, batch, start, begin, hv, column, W, micro, hs[:tiles], zero)
        for n in range(tiles):
            left = column + n * L
            tile = G[n]
            if n == 0 or b.shape[3] > 1:
                columns_in(b, batch, start, hv, left if b.shape[3] > 1 else 0, W, bs, zero)
            nudge = splat(-zero)
            for back_j in range(W):
                j = W - 1 - back_j
                decay, d_step, erasing, e_step = ONE, 0, ZERO, 0
                if back_j > 0:
                    decay, d_step = decays + (j + 1) * K, a_step
                    if erase:
                        erasing, e_step = es + (j + 1) * K, 1
                query, q_step = (qs + j * K, 1) if (start - begin + j + 1) % micro == 0 else (ZERO, 0)
                h = scale * load(hs, (n * WINDOW + j) * L)
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
                store(ws, (n * WINDOW + j) * L, s)
                nudge = splat(-zero) - load(bs, j * L) * s
            square_out(tile, us, squares, (start - begin) // WINDOW * V + left, min(L, V - left), zero)
            erasing, e_step = (es, 1) if erase else (ZERO, 0)
            homeward(x, ks, ZERO, 0, decays, a_step, erasing, e_step, nudge, splat(zero), tile, 0, K, pre, zero)
        tiles_out(ws[:tiles], w, start - begin, column, W)


@inline
def reads_in(do, batch, start, begin, head, column, W, micro, tiles, zero):
    """The columns from `column` on of what W micro-steps' read-outs owe into tiles [tiles, WINDOW, L], in the order of
    memory; zeros where nothing is read."""
    L = tiles.shape[2]
    for j in range(W):
        read = (start - begin + j + 1) % micro == 0
        source = offset(do, batch, (start + j) // micro, head)
        for tile in range(tiles.shape[0]):
            left = column + tile * L
            n = min(L, do.shape[3] - left) if read else 0
            to = (tile * tiles.shape[1] + j) * L
            copied(do, source + left, tiles, to, n)
            for i in range(n, L):
                put(tiles, to + i, zero)


@inline
def knowns_in(u, w, b, do, batch, start, begin, head, W, micro, scale, knowns):
    """d = b u, n = -(b w) and h = s o' of W micro-steps into [3, WINDOW, V]."""
    V, L = u.shape[1], BLOCK // knowns.itemsize
    zero = scale - scale
    whole_blocks = V - V % L
    for j in range(W):
        t = start - begin + j
        d, n, h = j * V, (WINDOW + j) * V, (2 * WINDOW + j) * V
        step = offset(b, batch, start + j, head)
        if b.shape[3] > 1:
            copied(b, step, knowns, n, V)
        else:
            put(knowns, n, at(b, step))
            by = at(knowns, n)
            for c in range(1, V):
                put(knowns, n + c, by)
        for c in range(0, whole_blocks, L):
            bc = block(knowns, n + c)
            store(knowns, d + c, bc * block(u, t * V + c))
            store(knowns, n + c, -(bc * block(w, t * V + c)))
        for c in range(whole_blocks, V):
            bc = at(knowns, n + c)
            put(knowns, d + c, bc * at(u, t * V + c))
            put(knowns, n + c, -(bc * at(w, t * V + c)))
        if (t + 1) % micro == 0:
            copied(do, offset(do, batch, (start + j) // micro, head), knowns, h, V)
            for c in range(V):
                knowns[2, j, c] = scale * knowns[2, j, c]
        else:
            for c in range(V):
                knowns[2, j, c] = zero


@inline
def replay(x, d, n, h, a, k, S, to, after, low, high, pre, erase, zero):
    """Columns low .. high of one micro-step, forward, from the tile at flat `to` of S to the one at `after`: dq, de."""
    L = S.shape[2]
    dq = spread(zero)
    de = dq
    for c in range(low, high):
        s = block(S, to + c * L)
        decayed = a * s
        if erase:
            de = fma(spread(at(x, n + c)), s if pre else decayed, de)
        s = fma(k, spread(at(x, d + c)), decayed)
        dq = fma(spread(at(x, h + c)), s, dq)
        store(S, after + c * L, s)
    return dq, de


@inline
def rewind(x, d, n, h, a, q, e, S, to, G, base, low, high, pre, decays, zero):
    """Columns low .. high of one micro-step, backward: dk, da and the sum of the sizes of da's terms."""
    L = S.shape[2]
    dk = spread(zero)
    da = dk
    size = dk
    for c in range(low, high):
        g = fma(q, spread(at(x, h + c)), block(G, base + c * L))
        dk = fma(spread(at(x, d + c)), g, dk)
        nudge = spread(at(x, n + c))
        if not pre:
            g = fma(e, nudge, g)
        if decays:
            term = g * block(S, to + c * L)
            da = da + term
            size = size + absolute(term)
        g = a * g
        if pre:
            g = fma(e, nudge, g)
        store(G, base + c * L, g)
    return dk, da, size


@inline
def mark_in(marks, window, row, column, S, columns, square, zero):
    """Rows row .. row + L and columns column .. column + `columns` of a marked state [K, V] into S[0] [columns, L],
    zeros beyond the last row."""
    K, V, L = marks.shape[1], marks.shape[2], S.shape[2]
    source = (window * K + row) * V + column
    whole_blocks = columns - columns % L if row + L <= K else 0
    for c in range(0, whole_blocks, L):
        for i in range(L):
            store(square, i * L, block(marks, source + i * V + c))
        turn(square, S, c * L, L)
    for c in range(whole_blocks, columns):
        for i in range(L):
            put(S, c * L + i, at(marks, source + i * V + c) if row + i < K else zero)


@inline
def vectors_in(x, batch, t, head, low, n, packed, to):
    """Rows low .. low + n of one vector into flat `packed` from `to` on; one number stands for all."""
    source = offset(x, batch, t, head)
    if x.shape[3] > 1:
        copied(x, source + low, packed, to, n)
    else:
        for i in range(n):
            put(packed, to + i, at(x, source))


@inline
def rows_in(q, k, e, a, batch, heads, start, begin, W, row, n, packed, micro, erase):
    """Rows row .. row + n of a window's k, a, e and q (0 where nothing is read) into packed [4, WINDOW, P]."""
    hq, hk, he, ha = heads
    P = packed.shape[2]
    for j in range(W):
        vectors_in(k, batch, start + j, hk, row, n, packed, (OF_KEY * WINDOW + j) * P)
        vectors_in(a, batch, start + j, ha, row, n, packed, (OF_DECAY * WINDOW + j) * P)
        if erase:
            vectors_in(e, batch, start + j, he, row, n, packed, (OF_ERASE * WINDOW + j) * P)
        to = (OF_QUERY * WINDOW + j) * P
        if (start - begin + j + 1) % micro == 0:
            vectors_in(q, batch, (start + j) // micro, hq, row, n, packed, to)
        else:
            for i in range(n):
                put(packed, to + i, np.float32(0.0))


@inline
def half(knowns, packed, S, G, base, sums, tile, low, high, m, W, last, rule, zero):
    """Two of a tile's four segments, columns low .. high, through a window: forward from S[0], and back. Their sums go
    into `sums` [5, WINDOW, P]; those of the `last` two are added to the first two's."""
    pre, erase, decays = rule
    V, L, P, H = knowns.shape[2], G.shape[2], packed.shape[2], S.shape[1]
    middle = min(m, high - low)
    end = high - low
    for j in range(W):
        d, n, h = j * V + low, (WINDOW + j) * V + low, (2 * WINDOW + j) * V + low
        now = j * P + tile * L
        a, k = block(packed, OF_DECAY * WINDOW * P + now), block(packed, OF_KEY * WINDOW * P + now)
        S0, S1 = j * H * L, (j + 1) * H * L
        x0, y0 = replay(knowns, d, n, h, a, k, S, S0, S1, 0, middle, pre, erase, zero)
        x1, y1 = replay(knowns, d, n, h, a, k, S, S0, S1, middle, end, pre, erase, zero)
        together(sums, (OF_QUERY * WINDOW) * P + now, x0 + x1, last)
        together(sums, (OF_ERASE * WINDOW) * P + now, y0 + y1, last)
    for back_j in range(W):
        j = W - 1 - back_j
        d, n, h = j * V + low, (WINDOW + j) * V + low, (2 * WINDOW + j) * V + low
        now = j * P + tile * L
        a, q = block(packed, OF_DECAY * WINDOW * P + now), block(packed, OF_QUERY * WINDOW * P + now)
        e = block(packed, OF_ERASE * WINDOW * P + now)
        S0 = j * H * L
        x0, y0, z0 = rewind(knowns, d, n, h, a, q, e, S, S0, G, base, 0, middle, pre, decays, zero)
        x1, y1, z1 = rewind(knowns, d, n, h, a, q, e, S, S0, G, base, middle, end, pre, decays, zero)
        together(sums, (OF_KEY * WINDOW) * P + now, x0 + x1, last)
        together(sums, (OF_DECAY * WINDOW) * P + now, y0 + y1, last)
        together(sums, (OF_SIZE * WINDOW) * P + now, z0 + z1, last)


@inline
def together(sums, to, x, last):
    """One block of sums, added to what is there of the first two segments."""
    store(sums, to, block(sums, to) + x if last else x)


@inline
def rows_out(y, batch, t, head, low, n, sums, source, more):
    """n sums into rows low .. of a vector of y [B, M, heads, K], or added to it."""
    L = BLOCK // y.itemsize
    to = offset(y, batch, t, head) + low
    whole_blocks = n - n % L
    for i in range(0, whole_blocks, L):
        x = block(sums, source + i)
        store(y, to + i, block(y, to + i) + x if more else x)
    for i in range(whole_blocks, n):
        put(y, to + i, at(y, to + i) + at(sums, source + i) if more else at(sums, source + i))


@inline
def fours_out(y, batch, t, head, low, n, sums, source, more):
    """Likewise, but y has one number for each four rows: their sum, in order."""
    to = offset(y, batch, t, head) + low // 4
    for i in range(0, n, 4):
        s = at(sums, source + i)
        for r in range(i + 1, min(i + 4, n)):
            s = s + at(sums, source + r)
        put(y, to + i // 4, at(y, to + i // 4) + s if more else s)


@njit
def rows(place, heads, q, k, e, a, b, do, u, w, marks, scale, G, dq, dk, de, da, size, scratch, rule, more):
    """The last sweep of one head and one block of rows.

    place    (batch, begin, low, high, row): as in `forth`; the block's first row
    state    G [tiles, V, L]: the final state's cotangent, transposed
    written  dq [B, T, *, K]; dk, de [B, M, *, K] (where the key erases its two parts are summed in dk); da and the
             sum of its terms' sizes [B, M, *, K], or one for each four rows where the decay is one number
    scratch  S [WINDOW + 1, V in two halves, L], packed [4, WINDOW, padded K], d, n, h [3, WINDOW, V],
             sums [5, WINDOW, padded K], square [L, L]
    rule     (micro, pre, erase, decays)
    more     of q, k, e, a: whether another value head has been here, and this one's is added

    A tile goes through a window two segments of columns at a time, so that its states of a window stay in the
    second-level cache; vectors come and go by whole rows, in the order of memory.
    """
    batch, begin, first, last, row = place
    hq, hk, he, ha, hv = heads
    micro, pre, erase, decays = rule
    more_q, more_k, more_e, more_a = more
    S, packed, knowns, sums, square = scratch
    tiles, V, L = G.shape
    n = min(tiles * L, k.shape[3] - row)
    P = packed.shape[2]
    zero = scale - scale
    m = (V + 3) // 4
    for windows_after in range((last - first + WINDOW - 1) // WINDOW):
        window = (last - begin - 1) // WINDOW - windows_after
        start = begin + window * WINDOW
        W = min(WINDOW, last - start)
        knowns_in(u, w, b, do, batch, start, begin, hv, W, micro, scale, knowns)
        rows_in(q, k, e, a, batch, (hq, hk, he, ha), start, begin, W, row, n, packed, micro, erase)
        for tile in range(tiles):
            for side in range(2):
                low = min(2 * m * side, V)
                high = min(low + 2 * m, V)
                mark_in(marks, window, row + tile * L, low, S, high - low, square, zero)
                which = (pre, erase != NO_ERASE, decays)
                half(knowns, packed, S, G, (tile * V + low) * L, sums, tile, low, high, m, W, side == 1, which, zero)
        for j in range(W):
            t = start + j
            if (t - begin + 1) % micro == 0:
                rows_out(dq, batch, t // micro, hq, row, n, sums, (OF_QUERY * WINDOW + j) * P, more_q)
            if erase == ERASE:
                rows_out(de, batch, t, he, row, n, sums, (OF_ERASE * WINDOW + j) * P, more_e)
            elif erase:
                rows_out(dk, batch, t, hk, row, n, sums, (OF_ERASE * WINDOW + j) * P, more_k)
            rows_out(dk, batch, t, hk, row, n, sums, (OF_KEY * WINDOW + j) * P, more_k or erase == ERASE_IS_KEY)
            if decays and a.shape[3] > 1:
                rows_out(da, batch, t, ha, row, n, sums, (OF_DECAY * WINDOW + j) * P, more_a)
                rows_out(size, batch, t, ha, row, n, sums, (OF_SIZE * WINDOW + j) * P, more_a)
            elif decays:
                fours_out(da, batch, t, ha, row, n, sums, (OF_DECAY * WINDOW + j) * P, more_a)
                fours_out(size, batch, t, ha, row, n, sums, (OF_SIZE * WINDOW + j) * P, more_a)


@njit
def across(place, hv, b, u, w, dv, db, size):
    """dv = b w [B, M, HV, V]; db and the sum of its terms' sizes [B, M, HV, V or 1], of one sequence and head."""
    batch, begin, end = place
    V = u.shape[1]
    m = (V + 3) // 4
    zero = u.dtype.type(0)
    for t in range(begin, end):
        step = offset(b, batch, t, hv)
        to = offset(dv, batch, t, hv)
        steps = offset(db, batch, t, hv)
        if b.shape[3] > 1:
            copied(b, step, dv, to, V)
            for c in range(V):
                put(dv, to + c, at(dv, to + c) * w[t - begin, c])
        else:
            put(dv, to, at(b, step))  # rounded, if need be
            by = at(dv, to)
            for c in range(V):
                put(dv, to + c, by * w[t - begin, c])
        if db.shape[3] > 1:
            for c in range(V):
                put(db, steps + c, u[t - begin, c] * w[t - begin, c])
                put(size, steps + c, abs(at(db, steps + c)))
        else:
            s0, s1, s2, s3, z0, z1, z2, z3 = zero, zero, zero, zero, zero, zero, zero, zero
            for c in range(m):  # the four segments side by side
                x = u[t - begin, c] * w[t - begin, c]
                s0, z0 = s0 + x, z0 + abs(x)
                if m + c < V:
                    x = u[t - begin, m + c] * w[t - begin, m + c]
                    s1, z1 = s1 + x, z1 + abs(x)
                if 2 * m + c < V:
                    x = u[t - begin, 2 * m + c] * w[t - begin, 2 * m + c]
                    s2, z2 = s2 + x, z2 + abs(x)
                if 3 * m + c < V:
                    x = u[t - begin, 3 * m + c] * w[t - begin, 3 * m + c]
                    s3, z3 = s3 + x, z3 + abs(x)
            put(db, steps, (s0 + s1) + (s2 + s3))
            put(size, steps, (z0 + z1) + (z2 + z3))


@njit
def enter(state, S):
    """Rows of a cotangent of the final state, as columns [V, K'], into tiles [tiles, V, L], zeros beyond the last."""
    tiles, V, L = S.shape
    for n in range(tiles):
        for i in range(V):
            for j in range(min(L, state.shape[1] - n * L)):
                S[n, i, j] = state[i, n * L + j]


@njit
def in_order(x, total):
    """total [n] = x [n, 0] + x [n, 1] + .., one after the other."""
    for n in range(x.shape[0]):
        s = x[n, 0]
        for i in range(1, x.shape[1]):
            s = s + x[n, i]
        total[n] = s
