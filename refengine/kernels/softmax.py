"""Causal softmax attention, and beside it a rigorous bound on its own rounding.

Per head and query t over the keys j <= t of its sequence:

    s_j = scale (q . k_j);   m = max s;   w_j = exp(s_j - m);   l = sum w_j;   o = (sum w_j v_j) / l

Order of operations: q . k_j goes in four segments of ceil(K / 4) channels, each a chain of fused multiply-adds from
zero, added as (0 + 1) + (2 + 3); the sums over j are chains in the order of the tokens, l in float64 always. Lanes are
keys and then value columns, so neither they nor the cut into queries touch the bits.

The bound
---------
With |q^ - q| <= dq, |k^_j - k_j| <= dk_j (Euclidean), |v^_j - v_j| <= dv_j, g = (ceil(K / 4) + 2) u, a score is off by

    delta_j = |scale| (g |q^| |k^_j| + dq |k^_j| + |q^| dk_j + dq dk_j) + (2 u + the scale's own error) |s^_j|

and a weight by a factor exp(eps_j), eps_j = delta_j + u |s^_j - m^| + (u + 2^-52): a common factor of all weights is
no error. Let o' be what the computed weights give exactly; as sum w^_j (v_j - o') = 0,

    o - o' = sum (w_j - w^_j) (v_j - o') / sum w_j,    |w_j - w^_j| <= w^_j eps_j exp(eps),    eps = max eps_j

so |o - o'| <= exp(2 eps) (mean of eps_j |v_j| + |o'| mean of eps_j), means under the computed weights. The sums round
by (n + 8) u mean |v_j|, and the values' own errors add their mean. Nothing is ever further off than the values are
long: o is one of their averages. TAU covers what underflows.
"""

from __future__ import annotations

import numpy as np

from . import _math
from ._jit import inline, njit
from ._simd import at, fma, load, put, splat, store
from .delta import offset

NORM, KEY_ERROR, SIZE, VALUE_ERROR = range(4)  # of a key and its value: |k|, dk, max |v|, dv
FACTS = 4
NOTHING = (0.0,) * 8  # of `weighed`


@inline
def length(x, source, count):
    """The Euclidean norm of `count` numbers from flat `source` on, rounded up."""
    squares = 0.0
    for i in range(count):
        squares += np.float64(at(x, source + i)) * np.float64(at(x, source + i))
    return np.sqrt(squares) * (1.0 + (count + 8) * 2.0**-52) + count * 2.0**-536


@inline
def pack(k, v, dk, dv, batch, begin, hk, count, cast, keys, values, facts):
    """`count` keys into columns of keys [K, T], their values into rows [T, V'], and their sizes and errors."""
    K, V, T = k.shape[3], v.shape[3], keys.shape[1]
    for j in range(count):
        source = offset(k, batch, begin + j, hk)
        for i in range(K):
            put(keys, i * T + j, at(k, source + i))
        norm = length(k, source, K)
        facts[j, NORM] = norm
        facts[j, KEY_ERROR] = dk[batch, begin + j, hk] + cast * norm
        source = offset(v, batch, begin + j, hk)
        top = 0.0
        for c in range(V):
            x = at(v, source + c)
            put(values, j * values.shape[1] + c, x)
            top = max(top, abs(np.float64(x)))
        facts[j, SIZE] = top
        facts[j, VALUE_ERROR] = dv[batch, begin + j, hk] + cast * top


@inline
def scores(query, keys, count, scale, s):
    """scale (q . k_j) for the first `count` keys, and on to the end of the last lanes."""
    K, T = keys.shape
    L = s.shape[1]
    m = (K + 3) // 4
    zero = scale - scale
    for j in range(0, count, L):
        total = splat(zero)
        left = total
        for segment in range(4):
            x = splat(zero)
            low = min(segment * m, K)
            for i in range(low, min(low + m, K)):
                x = fma(splat(at(query, i)), load(keys, i * T + j), x)
            if segment == 0 or segment == 2:
                left = total
                total = x
            else:
                total = total + x
        store(s, j, scale * (left + total))


@inline
def weighed(sums, w, of_score, fact, numbers, exp_error):
    """`sums` with one more key of weight w: of w, w eps, w eps |v|, w |v|, w dv; the largest eps, |v| and dv.

    of_score (s_j, s_j - m, |q|, dq); numbers (scale, its relative error, u, g, TAU); exp_error: of the exponential
    """
    total, spread, worth, length, given, most, longest, least_sure = sums
    here, x, size_q, wrong_q = of_score
    scale, scale_error, u, g, tiny = numbers
    delta = (g * size_q + wrong_q) * fact[NORM] + (size_q + wrong_q) * fact[KEY_ERROR] + tiny
    delta = abs(scale) * delta + (scale_error + 2.0 * u) * abs(here) + tiny
    eps = delta + u * abs(x) + (u + exp_error)
    total += w
    spread += w * eps
    worth += w * eps * fact[SIZE]
    length += w * fact[SIZE]
    given += w * fact[VALUE_ERROR]
    most, longest, least_sure = max(most, eps), max(longest, fact[SIZE]), max(least_sure, fact[VALUE_ERROR])
    return total, spread, worth, length, given, most, longest, least_sure


@inline
def reach(sums, n, largest, rounded, tiny):
    """The bound on every entry of o, none larger than `largest`; `rounded`: what a sum over n keys errs by."""
    total, spread, worth, length, given, most, longest, least_sure = sums
    rounding = 1.01 * rounded * length / total if rounded < 0.005 else np.inf
    off = rounding + given / total + 4.0 * n * tiny * (longest + largest + 1.0)
    off += _math.exp(2.0 * min(most, 1.0)) * (worth + (largest + rounding) * spread) / total
    if not (most <= 1.0 and off <= longest + least_sure + largest):
        off = longest + least_sure + largest
    return off


@njit
def run(place, heads, q, k, v, dq, dk, dv, o, bound, numbers, room):
    """Queries low .. high of one sequence and head.

    place    (batch, begin, low, high): the sequence begins at token `begin`
    heads    (of q and o, of k and v)
    written  o [B, T, HV, V] and bound [T], an upper bound on each entry's error
    numbers  (scale, its relative error, u, TAU, ...) as in kernels/delta.py
    room     query [K], keys [K, T], values [T, V'], scores and weights [T / L, L], a row [V'], facts [T, FACTS]; T is
             at least `high - begin`, and a multiple of the lanes L, as is V'; all but the facts in the type of o
    """
    batch, begin, low, high = place
    hq, hk = heads
    query, keys, values, s, row, facts = room
    K, V, L = q.shape[3], v.shape[3], s.shape[1]
    scale, scale_error, unit, tau = numbers[0], numbers[1], numbers[2], numbers[3]
    u, tiny = np.float64(unit), np.float64(tau)
    cast = u if q.itemsize > query.itemsize else 0.0
    g = ((K + 3) // 4 + 2) * u
    kind = (np.float64(scale), scale_error, u, g, tiny)
    pack(k, v, dk, dv, batch, begin, hk, high - begin, cast, keys, values, facts)
    for t in range(low, high):
        n = t - begin + 1
        source = offset(q, batch, t, hq)
        for i in range(K):
            put(query, i, at(q, source + i))
        size_q = length(q, source, K)
        wrong_q = dq[batch, t, hq] + cast * size_q + tiny
        scores(query, keys, n, scale, s)
        top = at(s, 0)
        for j in range(1, n):
            top = max(top, at(s, j))
        sums = NOTHING
        for j in range(n):
            here = np.float64(at(s, j))
            x = at(s, j) - top
            put(s, j, _math.exp(np.float64(x)))
            of_score = (here, np.float64(x), size_q, wrong_q)
            sums = weighed(sums, np.float64(at(s, j)), of_score, facts[j], kind, 2.0**-52)
        for c in range(0, row.size, L):
            x = splat(scale - scale)
            for j in range(n):
                x = fma(splat(at(s, j)), load(values, j * row.size + c), x)
            store(row, c, x)
        divisor = row.dtype.type(sums[0])
        out = offset(o, batch, t, hq)
        largest = 0.0
        for c in range(V):
            put(o, out + c, at(row, c) / divisor)
            largest = max(largest, abs(np.float64(at(o, out + c))))
        bound[t] = reach(sums, n, largest, (n + 8) * u, tiny) * (1.0 + 64.0 * u + n * 2.0**-50)
