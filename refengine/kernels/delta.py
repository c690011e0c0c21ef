"""The delta core: one recurrence for the family, and beside it a rigorous bound on its own rounding.

Per head and micro-step, for a state S of K x V with columns S_j (every value column is independent of the others):

    S~   = diag(a) S
    p_j  = e . X_j              X = S~ (order "post") or S (order "pre")
    d_j  = b_j (v_j - p_j)
    S'_j = S~_j + k d_j
    o_j  = s (q . S'_j)         where a token ends

Order of operations (part of the definition, the same on every machine): rows are summed in four segments of ceil(K /
4) rows, each a chain of fused multiply-adds from zero, and the segments as (0 + 1) + (2 + 3); the decay is a rounded
product, the update a fused multiply-add; the correction rounds v - p, then its product with b; the read-out rounds
its product with s. No reduction crosses columns, so neither lanes, tiles nor threads touch the bits.

One sweep over the rows does token t's read-out, t + 1's decay and t + 1's prediction while a row is in a register; a
tile of K x lanes stays in the first-level cache. Tokens go by windows whose q, k, e, a are packed once and serve
every tile.

The bound
---------
Hats are what is computed, u the unit roundoff, g = m u / (1 - m u) with m = ceil(K / 4) + 2 the roundings in one term
of a sum. What the kernel is given may itself be rounded: |q^ - q| <= dq, |k^ - k| <= dk, |e^ - e| <= de (Euclidean),
|v^ - v| <= dv, |b^ - b| <= db, |a^ - a| <= da a^. For one column let N >= |S^| and E >= |S^ - S|; N~ and E~ the same
after the decay. Then

    S~^ - S~  = diag(a) (S^ - S) + rounding,   |rounding| <= mu N~,   mu = u + (1 + u) da   (0 if nothing decays)
    d^ - d    = (d^ - b^ u^) + (b^ - b) u^ + b ((u^ - (v^ - p^)) + (v^ - v) - (p^ - p))
    p^ - p    = (p^ - e^ . X^) + (e^ - e) . X^ + e . (X^ - X)

The last term joins the decay in the operator M, and all others are small scalars:

    M = I - b k e'  on S~ (post),  diag(a) - b k e'  on S (pre)
    r = db |u^| + |b| (dv + (g |e^| + de) |X^| + u |u^|) + u |d^|        with |b| <= |b^| + db
    E' = |M| E + |k| r + dk |d^| + u N',     N' = N~ + |k^| |d^|,     o: s ((g |q^| + dq) N' + |q| E') + 2u |o^|

|a0 I - b k e'| is (sqrt(P) + sqrt((2 a0 - c)^2 + P - c^2)) / 2 exactly, with c = b k.e and P = b^2 |k|^2 |e|^2: the
two singular values that are not a0 have product a0 |a0 - c| and sum of squares 2 a0^2 - 2 a0 c + P. For e = k it is
max(1, |1 - b |k|^2|). A spread of the decays adds (max a - min a) / 2 around their centre a0 (order pre). M is taken
at the exact b, k, e: that costs |b| (|k| de + dk |e|) + db |k| |e| more. N grows by the triangle inequality and is
measured afresh every REFRESH micro-steps. Every slot is rounded up by 1 + 64 u, more than the roundings of one step
of N, E and the o-bound, and TAU covers underflow.
"""

from __future__ import annotations

import numpy as np

from ._jit import inline, njit
from ._simd import (
    BLOCK,
    BYTES,
    absolute,
    at,
    block,
    fma,
    largest,
    load,
    maximum,
    minimum,
    prefetch,
    put,
    smallest,
    splat,
    sqrt,
    store,
    take,
    total,
)

WINDOW = 64  # micro-steps packed at a time: at K = 128 their k and q take 128 KiB of the second-level cache
SOON = 4  # micro-steps between asking for a token's numbers and using them
REFRESH = 32  # micro-steps between two measurements of a column's norm
NO_ERASE, ERASE_IS_KEY, ERASE = 0, 1, 2

# What the bound of one micro-step needs besides the columns, one slot each; every one an upper bound.
SIZE_A, MU, MINUS_K_E, TWO_A0, SIDE, PER_B, REST = range(
    7
)  # |M| + what the inexact b, k, e, a add = PER_B |b| + REST + sqrt(..) / 2
PREDICT, DV, CAST_V, DB, CAST_B, K_NORM, DK = range(7, 14)  # g |e| + de; dv + CAST_V |v|; db + CAST_B |b|; |k|; dk
READ, Q_NORM = range(14, 16)  # g |q| + dq; |q|
SLOTS = 16
CELLS = 16  # behind a packed row: its decay where that is one number, and a zero (the rest is for alignment)


def lanes(dtype: np.dtype) -> int:
    """Value columns in one tile."""
    return BYTES // dtype.itemsize


def constants(scale: float, scale_error: float, K: int, dtype: np.dtype) -> tuple[np.floating, ...]:
    """(scale, its relative error, u, TAU, what rounds a norm up, 1/2 rounded up, FLOOR), in the kernel's type."""
    info = np.finfo(dtype)
    u = float(info.eps) / 2
    tau = (K + 64) * float(info.smallest_subnormal)
    with np.errstate(all="ignore"):
        cast = float(dtype.type(scale))
        if abs(cast - scale) > u * abs(cast):
            scale_error = float("inf")  # the scale is out of the type's range
        floor = 1.01 * tau**0.5
        return tuple(dtype.type(x) for x in (cast, scale_error, u, tau, 1 + (K + 16) * u, 0.5 + 64 * u, floor))


def row_length(K: int, wide: bool) -> int:
    """Entries in one packed row: k, q, and a and e where either differs from row to row, each padded; two cells."""
    return (4 if wide else 2) * padded(K) + CELLS


def padded(K: int) -> int:
    """Entries in one packed vector: whole blocks."""
    return -(-K // 16) * 16


@inline
def rows(x, k, q, a, a_step, e, e_step, d, S, low, high, pre, zero):
    """Rows low..high of a sweep: finish the update by d, read with q, decay by a, predict with e.

    Returns (prediction, read-out). x is read from flat `k`, `q`, `a` and `e` on; a step of 0 is one number for all
    rows.
    """
    L = S.shape[1]
    p = splat(zero)
    r = splat(zero)
    if pre:
        for i in range(low, high):
            s = fma(splat(at(x, k + i)), d, load(S, i * L))
            r = fma(splat(at(x, q + i)), s, r)
            p = fma(splat(at(x, e + e_step * i)), s, p)
            store(S, i * L, at(x, a + a_step * i) * s)
    else:
        for i in range(low, high):
            s = fma(splat(at(x, k + i)), d, load(S, i * L))
            r = fma(splat(at(x, q + i)), s, r)
            s = at(x, a + a_step * i) * s
            p = fma(splat(at(x, e + e_step * i)), s, p)
            store(S, i * L, s)
    return p, r


@inline
def sweep(x, k, q, a, a_step, e, e_step, d, S, pre, zero):
    """All rows, in the canonical four segments: (0 + 1) + (2 + 3)."""
    K = S.shape[0]
    m = (K + 3) // 4
    p = splat(zero)
    r = p
    p_left = p
    r_left = p
    for segment in range(4):
        low = min(segment * m, K)
        pn, rn = rows(x, k, q, a, a_step, e, e_step, d, S, low, min(low + m, K), pre, zero)
        if segment == 0 or segment == 2:
            p_left = p
            r_left = r
            p = pn
            r = rn
        else:
            p = p + pn
            r = r + rn
    return p_left + p, r_left + r


@inline
def column_squares(S, zero):
    """Sum of squares of each column of a tile, in the canonical four segments too."""
    K, L = S.shape
    m = (K + 3) // 4
    n = splat(zero)
    left = n
    for segment in range(4):
        low = min(segment * m, K)
        part = splat(zero)
        for i in range(low, min(low + m, K)):
            s = load(S, i * L)
            part = fma(s, s, part)
        if segment == 0 or segment == 2:
            left = n
            n = part
        else:
            n = n + part
    return left + n


@inline
def recur(x, wide, erase, v, b, S, miss, d_all, o, squares, first, pre, scale, zero):
    """One tile through one window of W micro-steps: the recurrence.

    x [W + 1, row_length]: row j holds the key and query of micro-step j - 1, the decay and erase vector of micro-step
    j (which is the key of row j + 1 where those are the same). v, b [W, L] in; S [K, L] carried on; o, and for the
    bound v - p, d and now and then the columns' squares after the decay [W, L] out.
    """
    W = v.shape[0]
    L = S.shape[1]
    R = x.shape[1]
    P = (R - CELLS) // (4 if wide else 2)
    d = splat(-zero)  # -0: the first sweep leaves every state as it is, signed zeros too
    for j in range(W + 1):
        k = j * R
        a, a_step, e, e_step = k + R - CELLS, 0, k + R - CELLS + 1, 0
        if j < W and wide:
            a, a_step = k + 2 * P, 1
        if j < W and erase == ERASE_IS_KEY:
            e, e_step = k + R, 1
        elif j < W and erase == ERASE:
            e, e_step = k + 3 * P, 1
        p, r = sweep(x, k, k + P, a, a_step, e, e_step, d, S, pre, zero)
        if j > 0:
            store(o, (j - 1) * L, scale * r)
        if j == W:
            break
        if (first + j) & (REFRESH - 1) == 0:
            store(squares, j * L, column_squares(S, zero))
        u = load(v, j * L) - p
        d = load(b, j * L) * u
        store(miss, j * L, u)
        store(d_all, j * L, d)


@inline
def gains(b, c, operator, wrong_b, half):
    """What the bound of each micro-step needs of b alone: an upper bound on |M|, and |b^ - b|."""
    L = b.shape[1]
    for j in range(operator.shape[0]):
        w = c[j]
        bj = load(b, j * L)
        abs_b = absolute(bj)
        y = fma(bj, splat(w[MINUS_K_E]), splat(w[TWO_A0]))
        side = bj * w[SIDE]
        gap = sqrt(fma(y, y, side * side))
        store(operator, j * L, fma(gap, splat(half), fma(abs_b, splat(w[PER_B]), splat(w[REST]))))
        store(wrong_b, j * L, fma(abs_b, splat(w[CAST_B]), splat(w[DB])))


@inline
def follow(v, b, operators, wrong_bs, c, N, E, miss, d_all, o, squares, worst, first, pre, numbers):
    """The same window again, for the bound: N, E [L] are carried on, worst [W, L] collects the o-bounds of a row."""
    scale, scale_error, u, tau, norm_up, _, floor = numbers
    W = v.shape[0]
    L = v.shape[1]
    size_s = abs(scale)
    read_error = scale_error + u + u
    tiny = splat(tau)
    norm = load(N, 0)
    error = load(E, 0)
    for j in range(W):
        w = c[j]
        at_j = j * L
        abs_b = absolute(load(b, at_j))
        operator = load(operators, at_j)
        wrong_b = load(wrong_bs, at_j)
        abs_miss = absolute(load(miss, at_j))
        abs_d = absolute(load(d_all, at_j))
        decayed = fma(splat(w[SIZE_A]), norm, tiny)
        if (first + j) & (REFRESH - 1) == 0:
            decayed = minimum(decayed, fma(sqrt(load(squares, at_j)), splat(norm_up), splat(floor)))
        given = fma(decayed, splat(w[MU]), fma(norm + error, tiny, tiny))
        seen = norm if pre else decayed
        carried = fma(operator, error, given) if pre else operator * fma(splat(w[SIZE_A]), error, given)
        inner = fma(absolute(load(v, at_j)), splat(w[CAST_V]), splat(w[DV])) + fma(
            seen, splat(w[PREDICT]), fma(abs_miss, splat(u), tiny)
        )
        rest = fma(abs_b + wrong_b, inner, fma(wrong_b, abs_miss, fma(abs_d, splat(u), tiny)))
        norm = fma(abs_d, splat(w[K_NORM]), decayed + tiny)
        error = carried + fma(rest, splat(w[K_NORM]), fma(abs_d, splat(w[DK]), fma(norm, splat(u + u), tiny)))
        off = fma(norm, splat(w[READ]), fma(error, splat(w[Q_NORM]), tiny))
        off = fma(off, splat(size_s), fma(absolute(load(o, at_j)), splat(read_error), tiny))
        store(worst, at_j, maximum(load(worst, at_j), off))
    store(N, 0, norm)
    store(E, 0, error)


@inline
def dot(x, y):
    """x . y over two padded rows, in blocks of the same lanes on every machine."""
    L = BLOCK // x.itemsize
    s = block(x, 0) * block(y, 0)
    for i in range(L, x.size, L):
        s = fma(block(x, i), block(y, i), s)
    return np.float64(total(s))


@inline
def squares(x, y):
    """(x . x, y . y), as `dot` sums them; side by side they take the time of one."""
    L = BLOCK // x.itemsize
    s = block(x, 0) * block(x, 0)
    r = block(y, 0) * block(y, 0)
    for i in range(L, x.size, L):
        s = fma(block(x, i), block(x, i), s)
        r = fma(block(y, i), block(y, i), r)
    return np.float64(total(s)), np.float64(total(r))


@inline
def extent(x, channels):
    """(smallest, largest) entry of a padded row of `channels` different numbers."""
    if channels == 1:
        return np.float64(x[0]), np.float64(x[0])
    L = BLOCK // x.itemsize
    low = block(x, 0)
    top = low
    for i in range(L, x.size, L):
        low = minimum(low, block(x, i))
        top = maximum(top, block(x, i))
    return np.float64(smallest(low)), np.float64(largest(top))


@inline
def step_slots(w, kk, k, e, a, channels, bounds, pre, erase, u, unit, sums, cast, cast_gate, tau):
    """The slots of one micro-step, in float64; kk is k . k. The bound's own arithmetic rounds by `u`, one operation of
    the recurrence by `unit`, one of its sums by `sums`; `cast` is the rounding of q, k, e, v on entry (0 if exact),
    `cast_gate` that of a, b."""
    dk, de, da, dv, db = bounds
    many = (k.size + 8) * 2.0 * u  # over the roundings here, of sums above all, and of a slot to the kernel's type
    up = (1.0 + many) * (1.0 + 64.0 * u)  # and over those of `follow`
    floor = 1.01 * np.sqrt(tau)
    nk = (np.sqrt(kk) + floor) * up
    ke, ne, gram = 0.0, 0.0, 0.0
    if erase == ERASE_IS_KEY:
        ke, ne = kk, nk
    elif erase == ERASE:
        ee = dot(e, e)
        ke, ne = dot(k, e), (np.sqrt(ee) + floor) * up
        gram = max(0.0, kk * ee - ke * ke) + 4.0 * many * nk * ne * nk * ne + 2.0 * tau * (nk + ne) * (nk + ne)
    dk += cast * nk + tau
    de += cast * ne + tau
    dv += tau
    db += tau
    low, top = extent(a, channels)
    still = low == 1.0 and top == 1.0 and da == 0.0 and cast_gate == 0.0
    da += cast_gate
    size = max(abs(low), abs(top))
    centre, spread, moved = 1.0, 0.0, 0.0
    if pre:
        centre, spread = 0.5 * (top + low), 0.5 * (top - low)
        moved = 0.0 if still else da * size
    norms = (nk + dk) * (ne + de)
    w[SIZE_A] = up if still else (size * (1.0 + da) + tau) * up
    w[MU] = 0.0 if still else (unit + da * (1.0 + u)) * up
    w[MINUS_K_E] = -ke
    w[TWO_A0] = 2.0 * centre
    w[SIDE] = (np.sqrt(gram) + floor) * up
    w[PER_B] = (0.5 * nk * ne + (nk + dk) * de + dk * ne + (many + cast_gate) * norms + 2.0 * tau) * up
    w[REST] = (floor + spread + db * norms + moved + many * (abs(centre) + spread)) * up
    w[PREDICT] = (sums * up * ne + de) * up
    w[DV] = dv * up
    w[CAST_V] = cast * up
    w[DB] = db * up
    w[CAST_B] = cast_gate * up
    w[K_NORM] = (nk + dk) * up
    w[DK] = dk * up


@inline
def read_slots(w, qq, q, dq, u, sums, cast, tau):
    """The slots of one read-out; qq is q . q."""
    up = (1.0 + (q.size + 8) * 2.0 * u) * (1.0 + 64.0 * u)
    nq = (np.sqrt(qq) + np.sqrt(tau) * 1.01) * up
    dq += cast * nq + tau
    w[READ] = (sums * up * nq + dq) * up
    w[Q_NORM] = (nq + dq) * up


@inline
def offset(x, batch, t, head):
    """Flat index of the first channel of one token's head in [B, T, heads, channels]."""
    return ((batch * x.shape[1] + t) * x.shape[2] + head) * x.shape[3]


@inline
def ahead(x, source, n):
    """Have the same n numbers of a token that comes soon brought near: with many heads it lies on another page, where
    no machine looks by itself."""
    for i in range(source, source + n, 64 // x.itemsize):
        prefetch(x, i + SOON * x.shape[2] * x.shape[3])


@inline
def copied(x, source, y, to, n):
    """n numbers from flat `source` of x on to flat `to` of y, rounded if need be."""
    L = BLOCK // y.itemsize
    whole = n - n % L
    for i in range(0, whole, L):
        store(y, to + i, take(x, source + i, y))
    for i in range(whole, n):
        put(y, to + i, at(x, source + i))


@inline
def vector_in(x, batch, t, head, y, to, P):
    """One vector into flat to .. to + P of y, rounded if need be, with zeros behind it."""
    source = offset(x, batch, t, head)
    ahead(x, source, x.shape[3])
    copied(x, source, y, to, x.shape[3])
    for i in range(to + x.shape[3], to + P):
        put(y, i, np.float32(0.0))


@inline
def widen(x, batch, t, head, lines, n):
    """One vector into line n."""
    vector_in(x, batch, t, head, lines, n * lines.shape[1], lines.shape[1])


@inline
def fill(lines, n, value):
    """One number all along line n."""
    for i in range(lines.shape[1]):
        put(lines, n * lines.shape[1] + i, value)


@inline
def row_in(x, base, left, tile_rows, j, zero):
    """Columns left .. left + L of one micro-step into row j, zeros beyond the last; one column stands for all."""
    L = tile_rows.shape[1]
    n = min(L, x.shape[3] - left)
    ahead(x, base + left, n)
    copied(x, base + left, tile_rows, j * L, n)
    for i in range(n, L):
        tile_rows[j, i] = at(x, base) if x.shape[3] == 1 else zero


@inline
def columns_in(x, batch, start, head, left, W, tile_rows, zero):
    """Columns left .. left + L of W micro-steps into [W, L]."""
    base = offset(x, batch, start, head)
    for j in range(W):
        row_in(x, base + j * x.shape[2] * x.shape[3], left, tile_rows, j, zero)


@inline
def heads_in(x, batch, start, head, column, W, tiles, zero):
    """The columns from `column` on of W micro-steps into tiles [tiles, WINDOW, L], in the order of memory."""
    base = offset(x, batch, start, head)
    for j in range(W):
        for n in range(tiles.shape[0]):
            row_in(x, base + j * x.shape[2] * x.shape[3], column + n * tiles.shape[2], tiles[n], j, zero)


@inline
def row_out(tile_rows, j, o, base, left):
    """Row j into its columns of o."""
    L = tile_rows.shape[1]
    copied(tile_rows, j * L, o, base + left, min(L, o.shape[3] - left))


@inline
def columns_out(tile_rows, o, batch, t, head, left, first, W, micro):
    """The read-outs of a window into their columns of o."""
    base = offset(o, batch, t, head)
    for j in range(W):
        if (first + j + 1) % micro == 0:
            row_out(tile_rows, j, o, base, left)
            base += o.shape[2] * o.shape[3]


@inline
def heads_out(tiles, o, batch, t, head, column, first, W, micro):
    """`columns_out` of all tiles, in the order of memory."""
    base = offset(o, batch, t, head)
    for j in range(W):
        if (first + j + 1) % micro == 0:
            for n in range(tiles.shape[0]):
                row_out(tiles[n], j, o, base, column + n * tiles.shape[2])
            base += o.shape[2] * o.shape[3]


@inline
def prepare(place, heads, q, k, e, a, dq, dk, de, da, dv, db, x, slots, start, W, rule, numbers):
    """Pack a window's q, k, e, a, and fill the slots of its bounds.

    Row j of x holds k and q of micro-step j - 1 (of none in row 0), and a and e of micro-step j (a one in row W).
    """
    batch, _, _, begin, _ = place
    hq, hk, he, ha, hv = heads
    micro, pre, erase, wide = rule
    R = x.shape[1]
    P = (R - CELLS) // (4 if wide else 2)
    u, tau = np.float64(numbers[2]), np.float64(numbers[3])
    sums = (P // 4 + 3) * u
    zero = numbers[2] - numbers[2]
    cast = u if k.itemsize > x.itemsize else 0.0
    cast_gate = u if a.itemsize > x.itemsize else 0.0
    for i in range(2 * P):
        put(x, i, zero)
    for j in range(W):
        t = start + j
        here, after = x[j], x[j + 1]
        key, erased, decay = after[:P], after[:P], here[R - CELLS :]
        vector_in(k, batch, t, hk, key, 0, P)
        put(decay, 0, at(a, offset(a, batch, t, ha)))
        put(decay, 1, zero)
        if wide:
            decay = here[2 * P : 3 * P]
            vector_in(a, batch, t, ha, decay, 0, P)
            for i in range(a.shape[3], P):
                put(decay, i, at(decay, 0))
        if erase == ERASE:
            erased = here[3 * P : 4 * P]
            vector_in(e, batch, t, he, erased, 0, P)
        query = after[P : 2 * P]
        reads = (start - begin + j + 1) % micro == 0
        if reads:
            vector_in(q, batch, t // micro, hq, query, 0, P)
        else:
            for i in range(P):
                put(query, i, zero)
        kk, qq = squares(key, query)
        bounds = (dk[batch, t, hk], de[batch, t, he], da[batch, t, ha], dv[batch, t, hv], db[batch, t, hv])
        channels = a.shape[3]
        step_slots(slots[j], kk, key, erased, decay, channels, bounds, pre, erase, u, u, sums, cast, cast_gate, tau)
        if reads:
            read_slots(slots[j], qq, query, dq[batch, t // micro, hq], u, sums, cast, tau)
    put(x, W * R + R - CELLS, numbers[2] / numbers[2])
    put(x, W * R + R - CELLS + 1, zero)


@njit
def run(place, heads, q, k, e, a, v, b, dq, dk, de, da, dv, db, S, N, E, o, bound, scratch, rule, numbers):
    """Micro-steps t0 .. t1 of one head and one block of columns: pack a window, then every tile through it.

    place    (batch, t0, t1, begin, column): micro-steps t0..t1 of row `batch`, in a sequence that began at micro-step
             `begin`; the block's first value column
    heads    (q, k, e, a, v): which head of each array
    arrays   q [B, T, *, K]; k, e [B, M, *, K]; a [B, M, *, K or 1]; v [B, M, HV, V]; b [B, M, HV, V or 1]; M = T micro
    errors   dq .. db [B, T or M, *], the bounds of the docstring above
    state    S [tiles, K, L], N and E [tiles, L], carried on
    written  o [B, T, HV, V] and bound [T]
    scratch  x [W + 1, row_length], slots [W, SLOTS]; v, o [tiles, W, L]; b, its two gains, v - p,
             d, squares, row bounds [W, L]
    rule     (micro, pre, erase); numbers: what `constants` gives
    """
    batch, t0, t1, begin, column = place
    hv = heads[4]
    micro, pre, erase, wide = rule
    u = numbers[2]
    zero = u - u
    x, slots, vs, os, bs, operator, wrong_b, miss, ds, squares, worst = scratch
    tiles, _, L = S.shape
    for start in range(t0, t1, WINDOW):
        W = min(WINDOW, t1 - start)
        first = start - begin
        prepare(place, heads, q, k, e, a, dq, dk, de, da, dv, db, x, slots, start, W, rule, numbers)
        for j in range(W):
            store(worst, j * L, splat(zero))
        heads_in(v, batch, start, hv, column, W, vs[:tiles], zero)
        for n in range(tiles):
            if n == 0 or b.shape[3] > 1:
                columns_in(b, batch, start, hv, column + n * L if b.shape[3] > 1 else 0, W, bs, zero)
                gains(bs, slots, operator[:W], wrong_b, numbers[5])
            recur(x, wide, erase, vs[n, :W], bs, S[n], miss, ds, os[n], squares, first, pre, numbers[0], zero)
            follow(
                *(vs[n, :W], bs, operator, wrong_b, slots, N[n], E[n]),
                *(miss, ds, os[n], squares, worst, first, pre, numbers),
            )
        heads_out(os[:tiles], o, batch, start // micro, hv, column, first, W, micro)
        for j in range(W):
            if (first + j + 1) % micro == 0:
                bound[(start + j) // micro] = largest(load(worst, j * L))


@njit
def certify(place, heads, q, k, e, a, dq, dk, de, da, dv, db, x, slots, rule, numbers):
    """The slots alone, [t1 - t0, SLOTS], of micro-steps t0 .. t1 of one head; as in `run` else."""
    _, t0, t1, _, _ = place
    for start in range(t0, t1, WINDOW):
        W = min(WINDOW, t1 - start)
        prepare(
            *(place, heads, q, k, e, a, dq, dk, de, da, dv, db),
            *(x, slots[start - t0 : start - t0 + W], start, W, rule, numbers),
        )


@njit
def enter(h0, S, N, E, up, floor, cast):
    """Columns of an initial state [K, V'] into tiles; its norm bounded, its error `cast` of that (0 if exact)."""
    tiles, K, L = S.shape
    for n in range(tiles):
        for i in range(K):
            for j in range(L):
                S[n, i, j] = h0[i, n * L + j] if n * L + j < h0.shape[1] else up - up
        store(N[n], 0, sqrt(column_squares(S[n], up - up)) * up + splat(floor))
        store(E[n], 0, load(N[n], 0) * cast)


@njit
def leave(S, E, ht, bound):
    """Tiles into the columns of a state [K, V'] and of its error bound [V']."""
    for n in range(S.shape[0]):
        for j in range(min(S.shape[2], ht.shape[1] - n * S.shape[2])):
            bound[n * S.shape[2] + j] = E[n, j]
            for i in range(S.shape[1]):
                ht[i, n * S.shape[2] + j] = S[n, i, j]
