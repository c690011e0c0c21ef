"""The delta core in double-double: the recurrence of delta.py with about 100 bits, and the same bound upon it.

Every operand, the state and the read-out are pairs (see _dd.py). One sweep over the rows finishes a token and predicts
for the next:

    S_i <- a_i S_i + k_i d        of token t
    r   += q_i S_i                of token t
    p   += w_i S_i                of token t + 1, w = a e (order "post") or e (order "pre")

so that p = e . X whatever the order, and the decayed state is never stored. Sums go in the four segments of delta.py,
each a chain of lean products whose low parts are summed apart from the high ones.

What a step of this rounds, u = 2^-53, hats for what is computed:

* A row of the state stays within |low| <= 4 u |high|: the last of its additions is a fast one, exact unless a S and k d
  cancel below their own low parts, and then the rounded difference adds at most 2 u |high| to the low part.
* a S^ + k d^: lean products err by 12 u^2 |a S| and 6 u^2 |k d|, their low parts' sums, and that of these and of the
  exact low part of high a S + high k d, by 6 u^2 |a S| + 3 u^2 |k d| and 6 u^2 |a S| + 3 u^2 |k d| + u^2 |S'|; the last
  addition by 6 u^2 |a S| + 3 u^2 |k d| + 4 u^2 |S'|. As |k d| <= |a S| + |S'|: at most 45 u^2 |a S| + 20 u^2 |S'|.
* A chain of n products, A the sum of their magnitudes: 12 u^2 A from the products; the low parts are at most
  (n + 6) u A together, and summing them rounds by (n + 6) (n + 1) u^2 A. Joining four chains rounds three times by
  3 u^2 A, and w is within 5 u^2 of a e: (n + 12)^2 u^2 A covers all.
* v - p, its product with b, r's product with the scale: 3, 5 and 5 u^2 of themselves.

So delta.py's bound holds with UNIT = 2^-100 = 64 u^2 for the roundings of a step and (n + 12)^2 u^2 for those of a sum;
what the front end did not know of q, k, e, a, v, b enters it as there.
"""

from __future__ import annotations

import numpy as np

from . import delta
from ._dd import add, lean_product, times, two_sum
from ._jit import inline, njit
from ._simd import HALF, at, largest, load, load_half, splat, splat_half, store
from .delta import (
    ERASE_IS_KEY,
    NO_ERASE,
    REFRESH,
    WINDOW,
    columns_in,
    columns_out,
    dot,
    follow,
    gains,
    read_slots,
    step_slots,
    widen,
)

U = 2.0**-53
UNIT = 2.0**-100
CELLS = 8  # numbers in a packed row: a, k, q of one micro-step, w of the next, each a pair
LANES = HALF // 8  # value columns in one sweep; a tile is two of them


def constants(scale: float, scale_error: float, K: int) -> tuple[np.floating, ...]:
    """What delta.constants gives, for the bound here; `scale_error` relative to the scale's pair."""
    tau = 8 * (K + 64) * 2.0**-1074
    numbers = (scale, scale_error, UNIT, tau, 1 + (K + 16) * U, 0.5 + 64 * U, 1.01 * tau**0.5)
    return tuple(np.float64(x) for x in numbers)


@inline
def rows(x, base, low, high, dh, dl, SH, SL, zero):
    """Rows low..high of a sweep: finish the update by d, read with q, predict with w. Returns (prediction, read-out)
    as sums of high parts and of low parts."""
    L = SH.shape[1]
    ph = splat_half(zero)
    pl = ph
    rh = ph
    rl = ph
    for i in range(low, high):
        c = base + CELLS * i
        g, gl = lean_product(load_half(SH, i * L), load_half(SL, i * L), at(x, c), at(x, c + 1))
        f, fl = lean_product(dh, dl, at(x, c + 2), at(x, c + 3))
        s, t = two_sum(g, f)
        t = (gl + fl) + t
        h = s + t
        l = t - (h - s)
        store(SH, i * L, h)
        store(SL, i * L, l)
        g, gl = lean_product(h, l, at(x, c + 4), at(x, c + 5))
        rh, t = two_sum(rh, g)
        rl = rl + (t + gl)
        g, gl = lean_product(h, l, at(x, c + 6), at(x, c + 7))
        ph, t = two_sum(ph, g)
        pl = pl + (t + gl)
    ph, pl = two_sum(ph, pl)
    rh, rl = two_sum(rh, rl)
    return ph, pl, rh, rl


@inline
def sweep(x, base, dh, dl, SH, SL, zero):
    """All rows, in the canonical four segments: (0 + 1) + (2 + 3)."""
    K = SH.shape[0]
    m = (K + 3) // 4
    ph = splat_half(zero)
    pl, rh, rl = ph, ph, ph
    ph_left, pl_left, rh_left, rl_left = ph, ph, ph, ph
    for segment in range(4):
        low = min(segment * m, K)
        fh, fl, gh, gl = rows(x, base, low, min(low + m, K), dh, dl, SH, SL, zero)
        if segment == 0 or segment == 2:
            ph_left, pl_left, rh_left, rl_left = ph, pl, rh, rl
            ph, pl, rh, rl = fh, fl, gh, gl
        else:
            ph, pl = add(ph, pl, fh, fl)
            rh, rl = add(rh, rl, gh, gl)
    ph, pl = add(ph_left, pl_left, ph, pl)
    rh, rl = add(rh_left, rl_left, rh, rl)
    return ph, pl, rh, rl


@inline
def column_squares(SH, size, zero):
    """Sum of squares of each column's high parts, times size^2."""
    L = SH.shape[1]
    n = splat_half(zero)
    for i in range(SH.shape[0]):
        s = size * load_half(SH, i * L)
        n = n + s * s
    return n


@inline
def recur(x, slots, vh, vl, bh, bl, SH, SL, miss, d_all, oh, ol, squares, first, lane, scale, zero):
    """Half a tile, from column `lane` of it on, through one window of W micro-steps: the recurrence.

    x [W + 1, K * CELLS]: row j holds a, k, q of micro-step j - 1 and w of j. v, b [W, 2 LANES] in; the state SH, SL
    [K, LANES] carried on; o, and for the bound v - p, d and now and then the columns' squares after the decay out.
    """
    W = miss.shape[0]
    L = miss.shape[1]
    dh = splat_half(zero)
    dl = dh
    for j in range(W + 1):
        ph, pl, rh, rl = sweep(x, j * x.shape[1], dh, dl, SH, SL, zero)
        if j > 0:
            rh, rl = times(rh, rl, splat_half(scale[0]), splat_half(scale[1]))
            store(oh, (j - 1) * L + lane, rh)
            store(ol, (j - 1) * L + lane, rl)
        if j == W:
            break
        here = j * L + lane
        if (first + j) & (REFRESH - 1) == 0:
            store(squares, here, column_squares(SH, slots[j, delta.SIZE_A], zero))
        uh, ul = add(load_half(vh, here), load_half(vl, here), -ph, -pl)
        dh, dl = times(uh, ul, load_half(bh, here), load_half(bl, here))
        store(miss, here, uh)
        store(d_all, here, dh)


@inline
def lay(high, low, source, x, to, K):
    """K pairs, or one for all of them, into every eighth cell of x from flat `to` on."""
    step = 1 if high.shape[3] > 1 else 0
    for i in range(K):
        x[to + CELLS * i] = at(high, source + step * i)
        x[to + CELLS * i + 1] = at(low, source + step * i)


@inline
def blank(x, to, K, value):
    for i in range(K):
        x[to + CELLS * i] = value
        x[to + CELLS * i + 1] = 0.0


@inline
def prepare(place, heads, highs, lows, errors, x, lines, slots, start, W, rule, tau):
    """Pack a window's a, k, q, w, and fill the slots of its bounds. lines [4, padded K]: k, q, e, a."""
    batch, _, _, begin, _ = place
    hq, hk, he, ha, hv = heads
    micro, pre, erase, _ = rule
    q, k, e, a, _, _ = highs
    dq, dk, de, da, dv, db = errors
    K, P, R = k.shape[3], lines.shape[1], x.shape[1]
    flat = x.reshape(x.size)
    sums = float(((K + 3) // 4 + 12) ** 2) * U * U
    blank(flat, 0, K, 1.0)
    blank(flat, 2, K, 0.0)
    blank(flat, 4, K, 0.0)
    blank(flat, W * R + 6, K, 0.0)
    for n in range(4):
        for i in range(K, P):
            lines[n, i] = 0.0
    for j in range(W):
        t = start + j
        here, next_ = j * R, (j + 1) * R
        at_k, at_e, at_a = delta.offset(k, batch, t, hk), delta.offset(e, batch, t, he), delta.offset(a, batch, t, ha)
        lay(a, lows[3], at_a, flat, next_, K)
        lay(k, lows[1], at_k, flat, next_ + 2, K)
        if erase == NO_ERASE:
            blank(flat, here + 6, K, 0.0)
        else:
            lay(e, lows[2], at_e, flat, here + 6, K)
            if not pre:
                for i in range(here, here + K * CELLS, CELLS):
                    flat[i + 6], flat[i + 7] = times(flat[i + 6], flat[i + 7], flat[i + R], flat[i + R + 1])
        widen(k, batch, t, hk, lines, 0)
        widen(e, batch, t, he, lines, 2)
        widen(a, batch, t, ha, lines, 3)
        for i in range(a.shape[3], P):
            lines[3, i] = lines[3, 0]
        bounds = (dk[batch, t, hk], de[batch, t, he], da[batch, t, ha], dv[batch, t, hv], db[batch, t, hv])
        w = slots[j]
        line = 0 if erase == ERASE_IS_KEY else 2
        kk, channels = dot(lines[0], lines[0]), a.shape[3]
        step_slots(w, kk, lines[0], lines[line], lines[3], channels, bounds, pre, erase, U, UNIT, sums, 0.0, 0.0, tau)
        w[delta.MU] = max(w[delta.MU], UNIT)
        if (start - begin + j + 1) % micro == 0:
            lay(q, lows[0], delta.offset(q, batch, t // micro, hq), flat, next_ + 4, K)
            widen(q, batch, t // micro, hq, lines, 1)
            read_slots(w, dot(lines[1], lines[1]), lines[1], dq[batch, t // micro, hq], U, sums, 0.0, tau)
        else:
            blank(flat, next_ + 4, K, 0.0)


@njit
def run(place, heads, highs, lows, errors, SH, SL, N, E, oh, ol, bound, scratch, rule, numbers, scale):
    """Micro-steps t0 .. t1 of one head and one block of columns, as delta.run.

    highs, lows  the pairs of q, k, e, a, v, b; errors: what each may be off by, as there
    state        SH, SL [2 tiles, K, LANES], N and E [tiles, 2 LANES], carried on
    written      oh, ol [B, T, HV, V] and bound [T], of the pair
    scratch      x [W + 1, K * CELLS], lines [4, padded K], slots [W, SLOTS]; v, b as pairs, b's two gains, v - p, d,
                 o as a pair, squares, row bounds [W, 2 LANES]
    numbers      what `constants` gives; scale: the scale's pair
    """
    batch, t0, t1, begin, column = place
    hv = heads[4]
    micro, pre, _, _ = rule
    vh, bh, vl, bl = highs[4], highs[5], lows[4], lows[5]
    x, lines, slots, v, w, b, c, operator, wrong_b, miss, ds, os, low_os, squares, worst = scratch
    tiles, L = N.shape
    for start in range(t0, t1, WINDOW):
        W = min(WINDOW, t1 - start)
        first = start - begin
        prepare(place, heads, highs, lows, errors, x, lines, slots, start, W, rule, numbers[3])
        for j in range(W):
            store(worst, j * L, splat(0.0))
        for n in range(tiles):
            left = column + n * L
            columns_in(vh, batch, start, hv, left, W, v, 0.0)
            columns_in(vl, batch, start, hv, left, W, w, 0.0)
            if n == 0 or bh.shape[3] > 1:
                at_b = left if bh.shape[3] > 1 else 0
                columns_in(bh, batch, start, hv, at_b, W, b, 0.0)
                columns_in(bl, batch, start, hv, at_b, W, c, 0.0)
                gains(b, slots, operator[:W], wrong_b, numbers[5])
            for part in range(2):
                H, low = SH[2 * n + part], SL[2 * n + part]
                lane = part * LANES
                recur(x, slots, v, w, b, c, H, low, miss[:W], ds, os, low_os, squares, first, lane, scale, 0.0)
            follow(
                *(v[:W], b, operator, wrong_b, slots, N[n], E[n]),
                *(miss, ds, os, squares, worst, first, pre, numbers),
            )
            columns_out(os, oh, batch, start // micro, hv, left, first, W, micro)
            columns_out(low_os, ol, batch, start // micro, hv, left, first, W, micro)
        for j in range(W):
            if (first + j + 1) % micro == 0:
                bound[(start + j) // micro] = largest(load(worst, j * L))
