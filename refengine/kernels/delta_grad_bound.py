"""A rigorous bound on the rounding of the delta core's adjoint (kernels/delta_grad.py), followed beside its sweeps.

Hats, u, g and the slots of a micro-step (|M|, |k|, what its operands are off by) as in kernels/delta.py. Of each column
the forward sweep keeps N >= |S^|, E >= |S^ - S| before every micro-step and U >= |u^ - u|. The backward one carries
N >= |G^|, E >= |G^ - G|. The transpose of M has M's norm. With h = s o', read into G first:

    E += dq |h| + |q| dh + u N                                     dh = (ds + 3u) |h|
    W  = omega + |k| E          >= |w^ - w|                        omega = (g |k| + dk) N >= |w^ - k . G^|
    nu = |b| omega + db |w^| + u |n|,   dn = |b| W + db |w^| + u |n|,   dd = |b| U + db |u^| + u |d|
    X  = |M| E + de |n| + |e| nu + u N_X,   N_X = N + |e| |n|     the bound of G~ (order "post")
    E' = |a| X + mu |a| N_X  (post),    |M| E + mu |a| N + de |n| + |e| nu + u N'  (pre)

A sum over columns of column vectors x y errs by at most sum dx |y| + (|x| + dx) dy + g |x| |y|, Euclidean: that bounds
dq, dk, de and, as |x * y| <= |x| |y|, da. Every step inflates its N and E by 1 + 32 u, more than its own roundings;
whoever adds the columns inflates the sums.
"""

from __future__ import annotations

import numpy as np

from ._jit import inline
from ._simd import absolute, at, fma, load, minimum, put, splat, sqrt, store
from .delta import (
    CAST_V,
    DK,
    DV,
    ERASE,
    ERASE_IS_KEY,
    K_NORM,
    MU,
    PREDICT,
    Q_NORM,
    SIZE_A,
    SLOTS,
    dot,
    fill,
    read_slots,
    step_slots,
    widen,
)

# Behind the slots of kernels/delta.py: g |k| + dk, |e|, de, dq.
TO_W, E_NORM, DE, DQ = range(SLOTS, SLOTS + 4)
ALL_SLOTS = SLOTS + 4
NORM, ERROR, MISS = range(3)  # what the forward sweep keeps of a column
OF_Q, OF_K, OF_E, OF_A, OF_V, OF_B = range(6)  # whose sum over columns
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
        for i in range(a.shape[3], P):
            put(lines, 2 * P + i, at(lines, 2 * P))
        if erase == ERASE:
            widen(e, batch, t, he, lines, 1)
        off_k, off_e = dk[batch, t, hk], de[batch, t, he]
        bounds = (off_k, off_e, da[batch, t, ha], dv[batch, t, hv], db[batch, t, hv])
        erasing = lines[0] if erase == ERASE_IS_KEY else lines[1]
        kk, channels = dot(lines[0], lines[0]), a.shape[3]
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
        if (t - begin + 1) % micro == 0:
            widen(q, batch, t // micro, hq, lines, 3)
            off_q = dq[batch, t // micro, hq]
            read_slots(w, dot(lines[3], lines[3]), lines[3], off_q, u, sums, cast, tau)
            w[DQ] = (off_q + cast * w[Q_NORM] + tau) * up


@inline
def growth(u):
    """1 + 32 u, in the type of u."""
    u = u + u
    u = u + u
    u = u + u
    return (u + u + u + u) + (u / u)


@inline
def follow_forth(v, b, us, operators, wrong_bs, slots, N, E, square, kept, at_kept, pre, numbers):
    """A window of one tile, forward: N, E [L] are carried on, and kept before each micro-step with U, flat from
    `at_kept` on. `square` is the columns' squares before the window, `operators` and `wrong_bs` what
    `gains` of kernels/delta.py gives."""
    _, _, u, tau, norm_up, _, floor = numbers
    W, L = v.shape
    tiny, grow = splat(tau), splat(growth(u))
    norm = minimum(load(N, 0), fma(sqrt(square), splat(norm_up), splat(floor)))
    error = load(E, 0)
    for j in range(W):
        w = slots[j]
        bj, miss = load(b, j * L), absolute(load(us, j * L))
        size_b, size_d = absolute(bj), absolute(bj * load(us, j * L))
        decayed = fma(splat(w[SIZE_A]), norm, tiny)
        given = fma(decayed, splat(w[MU]), fma(norm + error, tiny, tiny))
        seen = fma(splat(w[SIZE_A]), error, given)  # of S~
        operator, wrong_b = load(operators, j * L), load(wrong_bs, j * L)
        inner = fma(absolute(load(v, j * L)), splat(w[CAST_V]), splat(w[DV]))
        inner = inner + fma(norm if pre else decayed, splat(w[PREDICT]), fma(miss, splat(u), tiny))
        to = at_kept + 3 * j * L
        store(kept, to + NORM * L, norm)
        store(kept, to + ERROR * L, error)
        store(kept, to + MISS * L, grow * fma(error if pre else seen, splat(w[E_NORM]), inner))
        rest = fma(size_b + wrong_b, inner, fma(wrong_b, miss, fma(size_d, splat(u), tiny)))
        norm = grow * fma(size_d, splat(w[K_NORM]), decayed + tiny)
        carried = fma(operator, error, given) if pre else operator * seen
        error = carried + fma(rest, splat(w[K_NORM]), fma(size_d, splat(w[DK]), fma(norm, splat(u + u), tiny)))
        error = grow * error
    store(N, 0, norm)
    store(E, 0, error)
    store(kept, at_kept + 3 * W * L + NORM * L, norm)
    store(kept, at_kept + 3 * W * L + ERROR * L, error)


@inline
def product_error(x, dx, y, dy, rounding):
    """dx |y| + (|x| + dx) dy + rounding |x| |y|"""
    return fma(dx, y, fma(x + dx, dy, rounding * (x * y)))


@inline
def follow_back(b, hs, us, ws, operators, wrong_bs, slots, N, E, square, kept, at_kept, wrong, rule, gammas, numbers):
    """A window of one tile, backward: N, E [L] of G are carried on; wrong [SUMS, WINDOW, L] is each column's part of
    the sums.
    `square` is the columns' squares of G at its first micro-step. Roundings of a sum over columns, over columns and
    rows, and in db: gammas."""
    scale, scale_error, u, tau, norm_up, _, floor = numbers
    pre, wide_b = rule
    along, across, in_b = gammas
    W, L = b.shape[0], b.shape[1]
    room = wrong.shape[1]
    tiny, grow = splat(tau), splat(growth(u))
    norm, error = load(N, 0), load(E, 0)
    for back_j in range(W):
        j = W - 1 - back_j
        w = slots[j]
        h = absolute(scale * load(hs, j * L))
        dh = fma(h, splat(scale_error + u + u + u), tiny)
        norm = grow * fma(h, splat(w[Q_NORM]), norm + tiny)
        if j == 0:
            norm = minimum(norm, fma(sqrt(square), splat(norm_up), splat(floor)))
        error = fma(h, splat(w[DQ]), fma(dh, splat(w[Q_NORM]), fma(norm, splat(u + u), error + tiny)))
        bj, uj, wj = load(b, j * L), load(us, j * L), load(ws, j * L)
        n, d = absolute(bj * wj), absolute(bj * uj)
        size_b, uj, wj = absolute(bj), absolute(uj), absolute(wj)
        operator, wrong_b = load(operators, j * L), load(wrong_bs, j * L)
        size_b = size_b + wrong_b
        omega = fma(norm, splat(w[TO_W]), tiny)
        dw = fma(error, splat(w[K_NORM]), omega)
        rounded = fma(wrong_b, wj, fma(n, splat(u), tiny))
        dn = fma(size_b, dw, rounded)
        to = at_kept + 3 * j * L
        norm_s, error_s, du = (load(kept, to + NORM * L), load(kept, to + ERROR * L), load(kept, to + MISS * L))
        dd = fma(size_b, du, fma(wrong_b, uj, fma(d, splat(u), tiny)))
        norm_x = fma(n, splat(w[E_NORM]), norm + tiny)
        noise = fma(n, splat(w[DE]), fma(fma(size_b, omega, rounded), splat(w[E_NORM]), tiny))
        error_x = fma(operator, error, fma(norm_x, splat(u + u), noise))
        decayed = norm_s * w[SIZE_A]
        x, dx = (norm_s, error_s) if pre else (decayed, fma(error_s, splat(w[SIZE_A]), decayed * w[MU]))
        off_b = product_error(uj, du, wj, dw, splat(in_b))
        put_line(
            wrong, OF_Q * room + j, product_error(load(kept, to + 3 * L), load(kept, to + 4 * L), h, dh, splat(along))
        )
        put_line(wrong, OF_K * room + j, product_error(norm, error, d, dd, splat(along)))
        put_line(wrong, OF_E * room + j, product_error(x, dx, n, dn, splat(along)))
        g, dg = (norm, error) if pre else (norm_x, error_x)
        put_line(wrong, OF_A * room + j, product_error(g, dg, norm_s, error_s, splat(across)))
        put_line(wrong, OF_V * room + j, dn * dn)
        put_line(wrong, OF_B * room + j, off_b * off_b if wide_b else off_b)
        if pre:
            decayed = fma(splat(w[SIZE_A]), norm, tiny)
            norm = grow * fma(n, splat(w[E_NORM]), decayed)
            error = fma(operator, error, fma(decayed, splat(w[MU]), fma(norm, splat(u + u), noise)))
        else:
            norm = grow * fma(splat(w[SIZE_A]), norm_x, tiny)
            error = fma(splat(w[SIZE_A]), error_x, fma(norm, splat(w[MU]), tiny))
        error = grow * fma(norm + error, tiny, error + tiny)
    store(N, 0, norm)
    store(E, 0, error)


@inline
def put_line(wrong, line, x):
    """One line of wrong [SUMS, W, L]."""
    store(wrong, line * wrong.shape[2], x)


@inline
def eights(lines, W, wrong, first, t):
    """Each eight columns of W lines, added in order, into wrong [V / 8, SUMS, M] from group `first` and micro-step t
    on: the same sums for any number of lanes."""
    for g in range(min(lines.shape[2] // 8, wrong.shape[0] - first)):
        for i in range(SUMS):
            for j in range(W):
                s = lines[i, j, 8 * g]
                for c in range(8 * g + 1, 8 * g + 8):
                    s = s + lines[i, j, c]
                wrong[first + g, i, t + j] = s
