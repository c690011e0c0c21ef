"""Causal softmax attention in double-double: the sums of softmax.py over pairs (_dd.py), and the same bound upon them.

Per head and query t over the keys j <= t: s_j = scale (q . k_j), w_j = exp(s_j - max s), o = (sum w_j v_j) / sum w_j.

Every sum is one chain, over the channels or over the keys. With u = 2^-53 a step of a chain errs by 5 u^2 for the
product and 3 u^2 for the sum, a difference by 3 u^2, the quotient by 16 u^2, the exponential by EXP: so softmax.py's
bound holds with UNIT = 2^-100 = 64 u^2, whose g = (ceil(K / 4) + 2) UNIT is more than the (8 K + 5) u^2 of a score.
"""

from __future__ import annotations

from ._dd import add, exp, over, times
from ._jit import inline, njit
from ._simd import at, load, put, splat, store
from .delta import offset
from .softmax import NOTHING, length, pack, reach, weighed

EXP = 2.0**-98


@inline
def scores(query, low, keys, lows, count, scale, s, sl):
    """scale (q . k_j) for the first `count` keys, and on to the end of the last lanes."""
    K, T = keys.shape
    for j in range(0, count, s.shape[1]):
        h = splat(0.0)
        l = h
        for i in range(K):
            ph, pl = times(load(keys, i * T + j), load(lows, i * T + j), splat(at(query, i)), splat(at(low, i)))
            h, l = add(h, l, ph, pl)
        h, l = times(h, l, splat(scale[0]), splat(scale[1]))
        store(s, j, h)
        store(sl, j, l)


@inline
def weigh(count, s, sl, facts, of_query, kind):
    """Scores become weights; returns their sum as a pair and what the bound needs."""
    best = 0
    for j in range(1, count):
        if at(s, j) > at(s, best):
            best = j
    top, top_low = at(s, best), at(sl, best)
    th, tl = 0.0, 0.0
    sums = NOTHING
    for j in range(count):
        here = at(s, j)
        xh, xl = add(here, at(sl, j), -top, -top_low)
        wh, wl = exp(xh, xl)
        put(s, j, wh)
        put(sl, j, wl)
        th, tl = add(th, tl, wh, wl)
        sums = weighed(sums, wh, (here, xh, of_query[0], of_query[1]), facts[j], kind, EXP)
    return th, tl, sums


@njit
def run(place, heads, highs, lows, errors, oh, ol, bound, numbers, scale, room):
    """Queries low .. high of one sequence and head, as softmax.run.

    highs, lows  the pairs of q, k, v; errors: what each may be off by; scale: the scale's pair
    written      oh, ol [B, T, HV, V] and bound [T], of the pair
    numbers      what delta_dd.constants gives
    room         of high parts, and once more of low ones: query [K], keys [K, T], values [T, V'], scores and weights
                 [T / L, L], a row [V'], facts [T, FACTS]
    """
    batch, begin, low, high = place
    hq, hk = heads
    (q, k, v), (ql, kl, vl), (dq, dk, dv) = highs, lows, errors
    (query, keys, values, s, row, facts), (query_low, keys_low, values_low, sl, row_low, unused) = room
    K, V, L = q.shape[3], v.shape[3], s.shape[1]
    scale_error, u, tiny = numbers[1], numbers[2], numbers[3]
    kind = (scale[0], scale_error, u, ((K + 3) // 4 + 2) * u, tiny)
    width = values.shape[1]
    pack(k, v, dk, dv, batch, begin, hk, high - begin, 0.0, keys, values, facts)
    pack(kl, vl, dk, dv, batch, begin, hk, high - begin, 0.0, keys_low, values_low, unused)
    for t in range(low, high):
        n = t - begin + 1
        source = offset(q, batch, t, hq)
        for i in range(K):
            put(query, i, at(q, source + i))
            put(query_low, i, at(ql, source + i))
        scores(query, query_low, keys, keys_low, n, scale, s, sl)
        th, tl, sums = weigh(n, s, sl, facts, (length(q, source, K), dq[batch, t, hq] + tiny), kind)
        out = offset(oh, batch, t, hq)
        largest = 0.0
        for c in range(0, width, L):
            h = splat(0.0)
            l = h
            for j in range(n):
                at_v = j * width + c
                ph, pl = times(load(values, at_v), load(values_low, at_v), splat(at(s, j)), splat(at(sl, j)))
                h, l = add(h, l, ph, pl)
            h, l = over(h, l, splat(th), splat(tl))
            store(row, c, h)
            store(row_low, c, l)
        for c in range(V):
            put(oh, out + c, at(row, c))
            put(ol, out + c, at(row_low, c))
            largest = max(largest, abs(at(row, c)))
        bound[t] = reach(sums, n, largest, (n + 8) * u, tiny) * (1.0 + n * 2.0**-50)
