"""The exact learner: regression on all past tokens, solved anew at every token, with a rigorous bound.

Per head and token, from a memory of pairs H [K, K], G [K, V] and a ridge Lambda (a diagonal that does not decay):

    H_t = a_t H_{t-1} + (b_t k_t) k_t'       G_t = a_t G_{t-1} + (b_t k_t) v_t'
    x_t = (H_t + Lambda_t)^-1 q_t            y_t = x_t, or q_t + m_t (x_t - q_t)
    o_t = s G_t' y_t                         Lambda_t = diag(lamb), or lamb |H_t| (Frobenius) times the identity

Order of operations (part of the definition): H and G advance token by token, every entry a rounded product with the
decay and a fused multiply-add of the rounded b k_i with k_j or v_j; of H the lower triangle alone is computed. The
systems of as many tokens as there are lanes are then solved together, one a lane (kernels/spd.py). The read-out is
four segments of ceil(K / 4) rows, each a chain from zero, added as (0 + 1) + (2 + 3), and its product with s. So no
token's arithmetic depends on where a sequence is cut or on how tokens are grouped, and no matrix is kept for a token.

The bound
---------
Hats are what is computed, stars exact, u the unit roundoff, norms Euclidean (Frobenius for H). Whatever solved the
system, with rho = (H* + Lambda*) x^ - q*

    o* - o^ = s [ G*' (y* - y^) + (G* - G^)' y^ ] + the rounding of the read-out
    G*_j . (x* - x^) = -S*_j . rho,      S*_j = (H* + Lambda*)^-1 G*_j

    |rho| <= |r^| + (K + 3) u (|A^| |x^| + |q^|) + (|H^ - H*| + |Lambda^ - Lambda*| + u |A^|) |x^| + dq

where r^ = q^ - A^ x^ is evaluated and A^ is the rounded H^ + Lambda^. |H^ - H*| and |G^_j - G*_j| run beside the
recurrence as in kernels/delta.py. With l = min Lambda* - m > 0, where m bounds how far H* is from being positive
semidefinite (that of the initial state, decayed, and of negative weights b), and with c_j the decayed start of G_j and
n_j the decayed sum of b v_j^2,

    |S*_j| <= min(|G*_j| / l, c_j / l + sqrt(n_j / l) / 2)

The second: with M' M = sum of the weighted k k' and M' N_j that of the weighted k v_j, A = H + Lambda is at least
M' M + l, so (A^-1 M')(A^-1 M')' <= A^-1 - l A^-2 <= 1 / (4 l).
"""

from __future__ import annotations

import numpy as np

from ._jit import inline, njit
from ._simd import (
    BLOCK,
    absolute,
    at,
    block,
    fma,
    largest,
    load,
    maximum,
    minimum,
    put,
    splat,
    spread,
    sqrt,
    store,
    turn,
)
from .delta import columns_in, columns_out, dot, offset
from .spd import chebyshev, conjugate_gradients, defect, factor, frobenius, inner, place, shift, substitute

EXACT, CG, CG_DIAGONAL, CHEBYSHEV = range(4)

# What a token's bound needs besides the columns, one slot each, all upper bounds.
DECAY, MU, W, DW, DV, CAST_V, WEIGHT = range(7)  # |a|; its rounding and error; |b k|; its error; dv; u of a cast; b
INV, ROOT, RHO, SLIP, SIZE_Y, READ = range(7, 13)  # 1 / l; 1 / (2 sqrt l); |m rho|; y apart from x; |y|; its rounding
SLOTS = 13


@inline
def advance(H, keys, writes, decays, count, A, square):
    """H through `count` tokens, and its lower triangle after each of them into that token's lane of A.

    keys, writes [L, P]: k and b k of each token; H [K, P]; square [L, L].
    """
    K, P = H.shape
    L = square.shape[0]
    whole = BLOCK // A.itemsize
    for i in range(K):
        for j in range(0, i + 1, L):
            h = block(H, i * P + j)
            if count == whole:
                for s in range(whole):
                    h = fma(spread(at(writes, s * P + i)), block(keys, s * P + j), decays[s] * h)
                    store(square, s * whole, h)
            else:
                for s in range(count):
                    h = fma(spread(at(writes, s * P + i)), block(keys, s * P + j), decays[s] * h)
                    store(square, s * L, h)
            store(H, i * P + j, h)
            turn(square, A, 8 * L * (i // 4) * (i // 4 + 1) + (4 * j + i % 4) * L, 4 * L)


@inline
def remember(S, v, writes, decays, reads, count, o, scale, zero):
    """One tile of G through `count` tokens, read after each: S [K, L], v and o [count, L]."""
    K, L = S.shape
    P = writes.shape[1]
    m = (K + 3) // 4
    for s in range(count):
        a = splat(decays[s])
        y = load(v, s * L)
        r = splat(zero)
        left = r
        before = r
        for segment in range(4):
            r = splat(zero)
            for i in range(min(segment * m, K), min(segment * m + m, K)):
                g = fma(splat(at(writes, s * P + i)), y, a * load(S, i * L))
                r = fma(splat(at(reads, s * P + i)), g, r)
                store(S, i * L, g)
            if segment == 0 or segment == 2:
                before = r
            elif segment == 1:
                left = before + r
        store(o, s * L, scale * (left + (before + r)))


@inline
def follow(v, o, slots, count, N, E, fed, left, worst, numbers):
    """The same tile's bounds: N >= |G^_j|, E >= |G^_j - G*_j|, fed = n_j, left = c_j [L] are carried on, worst
    [count, L] collects the o-bounds of a row."""
    scale, scale_error, u, tau, _, half, floor = numbers
    L = v.shape[1]
    size_s = abs(scale)
    read_error = scale_error + u + u
    tiny = splat(tau)
    norm, error, n, c = load(N, 0), load(E, 0), load(fed, 0), load(left, 0)
    for s in range(count):
        w = slots[s]
        value = absolute(load(v, s * L))
        wrong_v = fma(value, splat(w[CAST_V]), splat(w[DV]))
        exact_v = value + wrong_v
        decayed = fma(splat(w[DECAY]), norm, tiny)
        norm = fma(value, splat(w[W]), decayed + tiny)
        error = fma(splat(w[DECAY]), error, fma(decayed, splat(w[MU]), tiny))
        error = fma(value, splat(w[DW]), fma(wrong_v, splat(w[W] + w[DW]), error)) + fma(norm, splat(u + u), tiny)
        n = fma(splat(w[WEIGHT]) * exact_v, exact_v, fma(splat(w[DECAY]), n, tiny))
        c = fma(splat(w[DECAY]), c, tiny)
        held = norm + error
        fit = fma(c, splat(w[INV]), (sqrt(n) + floor) * w[ROOT])
        fit = minimum(fit, held * w[INV])
        off = fma(fit, splat(w[RHO]), fma(held, splat(w[SLIP]), fma(error, splat(w[SIZE_Y]), norm * w[READ])))
        off = fma(off + tiny, splat(size_s), fma(absolute(load(o, s * L)), splat(read_error), tiny))
        store(worst, s * L, maximum(load(worst, s * L), off * (half + half)))
    store(N, 0, norm)
    store(E, 0, error)
    store(fed, 0, n)
    store(left, 0, c)


@inline
def pack(x, batch, t, head, lines, n):
    """One vector into row n of lines [*, P]."""
    source, to = offset(x, batch, t, head), n * lines.shape[1]
    for i in range(x.shape[3]):
        put(lines, to + i, at(x, source + i))


@inline
def solve(A, F, q, x, r, p, w, size, rule, K, zero, one):
    """x = A^-1 q in every lane, by the chosen solver, and r = q - A x."""
    solver, steps, eps = rule
    L = BLOCK // A.itemsize
    if solver == EXACT:
        for i in range(0, x.size, L):
            store(x, i, block(q, i))
        factor(A, K, F, one)
        substitute(F, K, x)
    elif solver == CHEBYSHEV:
        chebyshev(A, K, q, size[0], size[1], x, p, w, steps, eps, one)
    else:
        conjugate_gradients(A, K, q, x, r, p, w, steps, eps, solver == CG_DIAGONAL, zero)
    defect(A, K, x, q, r)


@inline
def step_slots(w, track, sizes, errors, token, ridge, numbers):
    """One token's slots, and the bounds on H carried on.

    track   [|H^|, |H^ - H*|, how far H* is from positive semidefinite]
    sizes   |k|, |q|, |x|, |r| of the token, rounded up
    errors  (dq, dk, da, dv, db, dm) of the inputs
    token   (a, b, m; whether m counts): as given
    ridge   (smallest and largest of Lambda, its error, the share of |H| it is or 0)
    numbers (K, u, that of the bound's own arithmetic, the rounding of a cast vector, of a cast gate, TAU, FLOOR)
    """
    nk, nq, nx, nr = sizes
    dq, dk, da, dv, db, dm = errors
    a, b, mix, mixed = token
    smallest, greatest, wrong, share = ridge
    K, u, own, vector, gate, tau, floor = numbers
    up = (1.0 + (K + 16) * 4.0 * own) * (1.0 + 64.0 * own)
    still = a == 1.0 and da == 0.0
    dk += vector * nk + tau
    dq += vector * nq + tau
    db += gate * abs(b) + tau
    dm += gate * abs(mix) + tau
    da += 0.0 if still else gate
    nw = (abs(b) * nk + tau) * up
    dw = (db * nk + (abs(b) + db) * dk + u * nw + tau) * up
    size_a = up if still else (abs(a) * (1.0 + da) + tau) * up
    mu = 0.0 if still else (u + da * (1.0 + u)) * up
    decayed = size_a * track[0] + tau
    norm = (decayed + nw * nk + tau) * up
    error = 1.5 * (dw * (nk + dk) + (nw + dw) * dk) + 2.0 * u * norm + K * tau
    error = (size_a * track[1] + mu * decayed + error) * up
    short = (size_a * track[2] + max(0.0, db - b) * (nk + dk) * (nk + dk)) * up
    track[0], track[1], track[2] = norm, error, short
    if share > 0.0:
        wrong = (share * (error + K * floor) + (K * K + 64) * u * greatest) * up
        smallest -= wrong
    least = max(0.0, smallest - short) * (1.0 - 8.0 * own)
    matrix = (norm + greatest) * up
    rho = nr + (K + 3) * u * (matrix * nx + nq) + (error + wrong + u * matrix) * nx + dq + K * tau
    w[INV] = up / least
    slip = 0.0
    ny = nx
    if mixed:
        away = nx + nq + dq + rho * up / least
        slip = (abs(1.0 - mix) + dm + u) * dq + (dm + 3.0 * u * (1.0 + abs(mix))) * away + K * tau
        ny = abs(1.0 - mix) * nq + abs(mix) * nx
        rho *= abs(mix)
    w[DECAY] = size_a
    w[MU] = mu
    w[W] = nw
    w[DW] = dw
    w[DV] = dv + tau
    w[CAST_V] = vector
    w[WEIGHT] = (abs(b) + db) * up if db <= b else np.inf
    w[ROOT] = 0.5 * up / np.sqrt(least)
    w[RHO] = rho * up
    w[SLIP] = slip * up
    w[SIZE_Y] = ny * up
    w[READ] = (K // 4 + 4) * u * ny * up + tau


@njit
def run(where, heads, arrays, errors, ridge, rule, numbers, memory, o, bound, scratch, solved):
    """Tokens t0 .. t1 of one value head, so many at a time as there are lanes.

    where    (batch, t0, t1)
    heads    (q, k, v, b, a, m): which head of each array
    arrays   q, k [B, T, *, K]; v [B, T, HV, V]; b, a, m [B, T, *, 1]; no tokens of m where y = x
    errors   of each [B, T, *], bounds on their own errors (of a: relative)
    ridge    (lamb [K, L], or [1, L] of a share of |H|; its smallest, largest and error; that share or 0)
    rule     (solver, steps, eps or Chebyshev's first omega); numbers: what `constants` gives
    memory   H [K, P], its lower triangle; track [3] (see step_slots); S [tiles, K, lanes]; N, E, fed, left [tiles,
             lanes] (see follow)
    written  o [B, T, HV, V] and bound [T]
    scratch  keys, writes, queries, reads [L, P]; decays [L]; square [L, L]; A, F panels; q, x, r, p, w [K to a multiple
             of four times L]; size [3, L]; slots [L, SLOTS]; v, o, row bounds [L, lanes]
    solved   x [t1 - t0, K], where the systems were solved on another device, in this order; else no tokens
    """
    batch, t0, t1 = where
    hq, hk, hv, hb, ha, hm = heads
    q, k, v, b, a, m = arrays
    dq, dk, dv, db, da, dm = errors
    lamb, smallest, greatest, wrong, share = ridge
    H, track, S, N, E, fed, left = memory
    keys, writes, queries, reads, decays, square, A, F, qs, x, r, p, w, size, slots, vs, os, worst = scratch
    tiles, K, lanes = S.shape
    L = square.shape[0]
    zero = numbers[2] - numbers[2]
    one = numbers[2] / numbers[2]
    u, up, floor = np.float64(numbers[2]), np.float64(numbers[4]), np.float64(numbers[6])
    vector = u if k.itemsize > square.itemsize else 0.0
    gate = u if b.itemsize > square.itemsize else 0.0
    kind = (K, u, u, vector, gate, np.float64(numbers[3]), floor)
    mixed = m.size > 0
    for start in range(t0, t1, L):
        count = min(L, t1 - start)
        for s in range(count):
            pack(k, batch, start + s, hk, keys, s)
            pack(q, batch, start + s, hq, queries, s)
            put(decays, s, a[batch, start + s, ha, 0])
            put(size, s, b[batch, start + s, hb, 0])
            for i in range(K):
                writes[s, i] = size[0, s] * keys[s, i]
                qs[i * L + s] = queries[s, i]
        advance(H, keys, writes, decays, count, A, square)
        if share > 0.0:
            frobenius(A, K, size[0], zero)
            for s in range(L):
                size[1, s] = lamb[0, s] * size[0, s] if size[0, s] != zero else one
            shift(A, K, size[1], 0, one)
        else:
            shift(A, K, lamb, 1, one)
        if solved.shape[0] > 0:
            for i in range(K):
                for s in range(L):
                    x[i * L + s] = solved[start - t0 + s, i] if s < count else zero
            defect(A, K, x, qs, r)
        else:
            solve(A, F, qs, x, r, p, w, size, rule, K, zero, one)
        store(square, 0, sqrt(inner(x, x)))
        store(square, L, sqrt(inner(r, r)))
        for s in range(count):
            t = start + s
            mix = m[batch, t, hm, 0] if mixed else 1.0
            for i in range(K):
                reads[s, i] = x[i * L + s]
            if mixed:
                put(size, 2 * L, mix)
                for i in range(K):
                    reads[s, i] = fma(size[2, 0], reads[s, i] - queries[s, i], queries[s, i])
            sizes = (
                (np.sqrt(dot(keys[s], keys[s])) + floor) * up,
                (np.sqrt(dot(queries[s], queries[s])) + floor) * up,
                (np.float64(square[0, s]) + floor) * up,
                (np.float64(square[1, s]) + floor) * up,
            )
            wrongs = (
                dq[batch, t, hq],
                dk[batch, t, hk],
                da[batch, t, ha],
                dv[batch, t, hv],
                db[batch, t, hb],
                dm[batch, t, hm] if mixed else 0.0,
            )
            token = (np.float64(decays[s]), b[batch, t, hb, 0], mix, mixed)
            given = (smallest, greatest, wrong, share)
            if share > 0.0:
                of_h = np.float64(size[1, s])
                given = (of_h, of_h, wrong if size[0, s] != zero else np.inf, share)
            step_slots(slots[s], track, sizes, wrongs, token, given, kind)
            store(worst, s * lanes, splat(zero))
        for n in range(tiles):
            first = n * lanes
            columns_in(v, batch, start, hv, first, count, vs, zero)
            remember(S[n], vs, writes, decays, reads, count, os, numbers[0], zero)
            follow(vs, os, slots, count, N[n], E[n], fed[n], left[n], worst, numbers)
            columns_out(os, o, batch, start, hv, first, 0, count, 1)
        for s in range(count):
            bound[start + s] = largest(load(worst, s * lanes))


@njit
def nearly_semidefinite(h, by, A, F):
    """Whether the Cholesky factor of h + by, h [n, n] symmetric, exists in floating point. Then no eigenvalue of h is
    below -(by + 4 (n + 8) u trace(h + by)) (Rump, BIT 46 (2006), 433-452)."""
    n = h.shape[0]
    L = BLOCK // A.itemsize
    for i in range((n + 3) // 4 * 4):
        for j in range(i + 1):
            store(A, place(i, j, L), spread(h[i, j] if i < n else by - by))
        store(A, place(i, i, L), spread(h[i, i] + by if i < n else by / by))
    factor(A, n, F, by / by)
    d = block(F, place(n - 1, n - 1, L))
    return largest(d - d) == 0.0
