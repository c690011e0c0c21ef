"""A rigorous bound on the rounding of the delta core's adjoint, from what its sweeps (kernels/delta_grad.py, or the
device's) left: u, w, and the squares of the columns of S and G at every window.

Hats and the slots of a micro-step (|M|, |k|, what its operands are off by) as in kernels/delta.py. All columns go
together, in numbers a micro-step: N >= |S^|, E >= |S^ - S| before it and U >= |u^ - u|, Frobenius and Euclidean, then
backward N >= |G^|, E >= |G^ - G|. The transpose of M has M's norm, and the largest over columns serves all. With
h = s o', read into G first:

    E += dq |h| + |q| dh + u N                                     dh = (ds + 3u) |h|
    W  = omega + |k| E          >= |w^ - w|                        omega = (g |k| + dk) N >= |w^ - k . G^|
    nu = |b| omega + db |w^| + u |n|,   dn = |b| W + db |w^| + u |n|,   dd = |b| U + db |u^| + u |d|
    X  = |M| E + de |n| + |e| nu + u N_X,   N_X = N + |e| |n|     the bound of G~ (order "post")
    E' = |a| X + mu |a| N_X  (post),    |M| E + mu |a| N + de |n| + |e| nu + u N'  (pre)

A sum over columns of column vectors x y errs by at most dx |y| + (|x| + dx) dy + g |x| |y| (Cauchy-Schwarz): that
bounds dq, dk, de, db and, as |x * y| <= |x| |y|, da. All of it is float64, whatever the sweeps' type; every step
inflates its N and E by 1 + 32 u of that type, more than its own roundings, and whoever takes the sums inflates those.
"""

from __future__ import annotations

import numpy as np

from ._jit import inline, njit
from ._simd import BLOCK, at, block, fma, put, total
from .delta import (
    CAST_B,
    CAST_V,
    DB,
    DK,
    DV,
    ERASE,
    ERASE_IS_KEY,
    K_NORM,
    MINUS_K_E,
    MU,
    PER_B,
    PREDICT,
    Q_NORM,
    REST,
    SIDE,
    SIZE_A,
    SLOTS,
    TWO_A0,
    dot,
    fill,
    offset,
    read_slots,
    squares,
    step_slots,
    widen,
)

# Behind the slots of kernels/delta.py: g |k| + dk, |e|, de, dq; then |M|, |b| and |b^ - b|, the largest over columns.
TO_W, E_NORM, DE, DQ, OPERATOR, SIZE_B, WRONG_B = range(SLOTS, SLOTS + 7)
ALL_SLOTS = SLOTS + 7
NORM, ERROR, MISS, SIZE_U = range(4)  # what the way forward keeps: N and E before a micro-step, U, |u^|
KEPT = 4
OF_Q, OF_K, OF_E, OF_A, OF_V, OF_B = range(6)  # whose error
SUMS = 6


@inline
def slots_of(place, heads, q, k, e, a, errors, lines, slots, start, W, rule, numbers):
    """The slots of W micro-steps, lines [4, K padded to whole blocks]."""
    batch, begin = place
    hq, hk, he, ha, hv = heads
    dq, dk, de, da, dv, db = errors
    micro, pre, erase = rule
    P = lines.shape[1]
    u, tau = np.float64(numbers[2]), np.float64(numbers[3])
    sums = (k.shape[3] // 4 + 3) * u
    cast = u if k.itemsize > lines.itemsize else 0.0
    cast_gate = u if a.itemsize > lines.itemsize else 0.0
    up = (1.0 + (P + 8) * 2.0 * u) * (1.0 + 64.0 * u)
    floor = 1.01 * np.sqrt(tau)
    fill(lines, 1, numbers[2] - numbers[2])
    for j in range(W):
        t = start + j
        w = slots[j]
        widen(k, batch, t, hk, lines, 0)
        widen(a, batch, t, ha, lines, 2)
        if a.shape[3] > 1:
            for i in range(a.shape[3], P):
                put(lines, 2 * P + i, at(lines, 2 * P))
        if erase == ERASE:
            widen(e, batch, t, he, lines, 1)
        off_k, off_e = dk[batch, t, hk], de[batch, t, he]
        bounds = (off_k, off_e, da[batch, t, ha], dv[batch, t, hv], db[batch, t, hv])
        erasing = lines[0] if erase == ERASE_IS_KEY else lines[1]
        reads = (t - begin + 1) % micro == 0
        if reads:
            widen(q, batch, t // micro, hq, lines, 3)
        kk, qq = squares(lines[0], lines[3])
        channels = a.shape[3]
        step_slots(w, kk, lines[0], erasing, lines[2], channels, bounds, pre, erase, u, u, sums, cast, cast_gate, tau)
        w[TO_W] = (sums * up * w[K_NORM] + w[DK]) * up
        w[E_NORM] = w[K_NORM] if erase == ERASE_IS_KEY else 0.0
        w[DE] = w[DK] if erase == ERASE_IS_KEY else 0.0
        if erase == ERASE:
            ne = (np.sqrt(dot(erasing, erasing)) + floor) * up
            off_e += cast * ne + tau
            w[E_NORM] = (ne + off_e) * up
            w[DE] = off_e * up
        w[Q_NORM] = 0.0
        w[DQ] = 0.0
        if reads:
            off_q = dq[batch, t // micro, hq]
            read_slots(w, qq, lines[3], off_q, u, sums, cast, tau)
            w[DQ] = (off_q + cast * w[Q_NORM] + tau) * up


@inline
def smaller(x, y):
    """y where x is no number."""
    return x if x < y else y


@inline
def size(x, source, n, u, least):
    """An upper bound on the Euclidean norm of n numbers of flat x: the sum of their sizes where squares overflow, or
    come to less than `least` and may have lost something."""
    L = BLOCK // x.itemsize
    whole = source + n - n % L
    squares = np.float64(0.0)
    if n >= L:
        s = block(x, source) * block(x, source)
        for i in range(source + L, whole, L):
            s = fma(block(x, i), block(x, i), s)
        squares = np.float64(total(s))
    for i in range(whole, source + n):
        squares += np.float64(at(x, i)) * np.float64(at(x, i))
    if least <= squares < np.inf:
        return np.sqrt(squares) * (1.0 + (n + 16) * u)
    sizes = np.float64(0.0)
    for i in range(source, source + n):
        sizes += abs(np.float64(at(x, i)))
    return sizes * (1.0 + (n + 16) * u)


@njit
def norm(x, u, least):
    """`size` of a whole array."""
    return size(x, 0, x.size, u, least)


@inline
def measured(columns, window, K, u, tau):
    """An upper bound on the Frobenius norm of a state from its columns' squares [windows, V]."""
    V, s = columns.shape[1], 0.0
    for j in range(V):
        s += np.float64(columns[window, j])
    return (np.sqrt(s) + 1.01 * np.sqrt(tau * V)) * (1.0 + (K + V + 16) * u)


@inline
def gain(w, b, batch, t, head):
    """|M|, |b| and |b^ - b| of one micro-step: convex in b, so the largest over columns is at one of its ends."""
    step = offset(b, batch, t, head)
    low = np.float64(at(b, step))
    high = low
    broken = low * 0.0  # NaN where any is no number
    for i in range(step + 1, step + b.shape[3]):
        y = np.float64(at(b, i))
        low, high, broken = min(low, y), max(high, y), broken + y * 0.0
    up = 1.0 + 2.0**-48
    w[SIZE_B] = max(abs(low), abs(high)) + broken
    w[WRONG_B] = (w[SIZE_B] * w[CAST_B] + w[DB]) * up
    w[OPERATOR] = norm_at(low, w) * up + broken
    if high > low:
        w[OPERATOR] = max(w[OPERATOR], norm_at(high, w) * up)


@inline
def norm_at(b, w):
    """|M| at one b, and what the inexact b, k, e, a add."""
    y, side = b * w[MINUS_K_E] + w[TWO_A0], b * w[SIDE]
    return 0.5 * np.sqrt(y * y + side * side) + (abs(b) * w[PER_B] + w[REST])


@inline
def product_error(x, dx, y, dy, rounding):
    """dx |y| + (|x| + dx) dy + rounding |x| |y|"""
    return dx * y + ((x + dx) * dy + rounding * (x * y))


@inline
def forth(place, heads, q, k, e, a, v, b, errors, N, E, u, columns, slots, kept, lines, window, rule, numbers):
    """The way forward: fill `slots` and `kept`."""
    batch, begin, end = place
    _, pre, _ = rule
    unit, tau = np.float64(numbers[2]), np.float64(numbers[3])
    V = u.shape[1]
    tiny, least, grow = tau * V, tau * V / unit, 1.0 + 32.0 * unit
    for start in range(begin, end, window):
        W = min(window, end - start)
        now = slots[start - begin : start - begin + W]
        slots_of((batch, begin), heads, q, k, e, a, errors, lines, now, start, W, rule, numbers)
        N = smaller(measured(columns, (start - begin) // window, k.shape[3], unit, tau), N)
        for j in range(W):
            t = start - begin + j
            w = now[j]
            gain(w, b, batch, start + j, heads[4])
            miss = size(u, t * V, V, unit, least)
            d = w[SIZE_B] * miss + tiny
            decayed = w[SIZE_A] * N + tiny
            given = decayed * w[MU] + (N + E) * tiny + tiny
            seen = w[SIZE_A] * E + given  # of S~
            inner = w[DV] + (N if pre else decayed) * w[PREDICT] + miss * unit + tiny
            if w[CAST_V] > 0.0:
                inner += size(v, offset(v, batch, start + j, heads[4]), V, unit, least) * w[CAST_V]
            kept[t, NORM] = N
            kept[t, ERROR] = E
            kept[t, MISS] = ((E if pre else seen) * w[E_NORM] + inner) * grow
            kept[t, SIZE_U] = miss
            rest = (w[SIZE_B] + w[WRONG_B]) * inner + w[WRONG_B] * miss + d * unit + tiny
            N = (d * w[K_NORM] + decayed + tiny) * grow
            carried = w[OPERATOR] * E + given if pre else w[OPERATOR] * seen
            E = (carried + rest * w[K_NORM] + d * w[DK] + 2.0 * unit * N + tiny) * grow
    kept[end - begin, NORM] = N
    kept[end - begin, ERROR] = E


@inline
def back(place, head, do, N, E, w, columns, slots, kept, wrong, window, K, rule, gammas, numbers):
    """The way back: fill `wrong`, and return what bounds the initial state's cotangent."""
    batch, begin, end = place
    micro, pre, _ = rule
    scale, off = abs(np.float64(numbers[0])), np.float64(numbers[1])
    unit, tau = np.float64(numbers[2]), np.float64(numbers[3])
    along, across, in_b = gammas
    V = w.shape[1]
    tiny, least, grow = tau * V, tau * V / unit, 1.0 + 32.0 * unit
    for t in range(end - begin - 1, -1, -1):
        c = slots[t]
        h = 0.0
        if (t + 1) % micro == 0:
            h = size(do, offset(do, batch, (begin + t) // micro, head), V, unit, least) * scale
        dh = h * (off + 3.0 * unit) + tiny
        N = (N + h * c[Q_NORM] + tiny) * grow
        if t % window == 0:
            N = smaller(measured(columns, t // window, K, unit, tau), N)
        E = E + h * c[DQ] + dh * c[Q_NORM] + 2.0 * unit * N + tiny
        miss, owed = kept[t, SIZE_U], size(w, t * V, V, unit, least)
        d, n = c[SIZE_B] * miss + tiny, c[SIZE_B] * owed + tiny
        size_b = c[SIZE_B] + c[WRONG_B]
        omega = N * c[TO_W] + tiny
        dw = E * c[K_NORM] + omega
        rounded = c[WRONG_B] * owed + n * unit + tiny
        dn = size_b * dw + rounded
        S, dS, du = kept[t, NORM], kept[t, ERROR], kept[t, MISS]
        dd = size_b * du + c[WRONG_B] * miss + d * unit + tiny
        norm_x = N + n * c[E_NORM] + tiny
        noise = n * c[DE] + (size_b * omega + rounded) * c[E_NORM] + tiny
        error_x = c[OPERATOR] * E + norm_x * 2.0 * unit + noise
        decayed = S * c[SIZE_A]
        x, dx = (S, dS) if pre else (decayed, dS * c[SIZE_A] + decayed * c[MU])
        g, dg = (N, E) if pre else (norm_x, error_x)
        wrong[OF_Q, t] = product_error(kept[t + 1, NORM], kept[t + 1, ERROR], h, dh, along)
        wrong[OF_K, t] = product_error(N, E, d, dd, along)
        wrong[OF_E, t] = product_error(x, dx, n, dn, along)
        wrong[OF_A, t] = product_error(g, dg, S, dS, across)
        wrong[OF_V, t] = dn
        wrong[OF_B, t] = product_error(miss, du, owed, dw, in_b)
        if pre:
            decayed = c[SIZE_A] * N + tiny
            N = (n * c[E_NORM] + decayed) * grow
            E = c[OPERATOR] * E + decayed * c[MU] + N * 2.0 * unit + noise
        else:
            N = (c[SIZE_A] * norm_x + tiny) * grow
            E = c[SIZE_A] * error_x + N * c[MU] + tiny
        E = (E + (N + E) * tiny + tiny) * grow
    return E


@njit
def follow(place, heads, q, k, e, a, v, b, errors, do, ends, u, w, columns, wrong, scratch, rule, gammas, numbers):
    """The bound of one head of one sequence, all its columns together.

    place    (batch, begin, end): micro-steps begin .. end
    heads    (q, k, e, a, v): which head of each array; arrays and errors as in kernels/delta.py
    ends     the Frobenius norm and error of the initial state, and of the final state's cotangent
    given    u, w [M, V]; columns [2, windows, V]: of S before, of G at the first micro-step of every window
    written  wrong [SUMS, M]; returned: how far any column of the initial state's cotangent may be off
    scratch  slots [M, ALL_SLOTS], kept [M + 1, KEPT], lines [4, padded K]
    rule     (micro, pre, erase), and micro-steps in a window; numbers: what `constants` of kernels/delta.py gives
    gammas   roundings of a sum over columns, over columns and rows, and in db
    """
    slots, kept, lines = scratch
    rule, window = rule
    start, start_error, final, final_error = ends
    forward = (start, start_error, u, columns[0], slots, kept, lines, window, rule, numbers)
    forth(place, heads, q, k, e, a, v, b, errors, *forward)
    backward = (do, final, final_error, w, columns[1], slots, kept, wrong, window, k.shape[3], rule, gammas, numbers)
    return back(place, heads[4], *backward)
