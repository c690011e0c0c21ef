"""Honest imitations of low-precision kernels for the delta core: the recurrence, and the chunked WY form.

What is computed is kernels/delta.py's recurrence,

    S~_i = diag(a_i) S_{i-1},   d_i = b_i (v_i - e_i . X_i),   S_i = S~_i + k_i d_i',   o_i = s (q_i . S_i),

X = S~ (order "post") or S_{i-1} ("pre"), in float32 or float64 arithmetic (that of the arrays), with a rounding to the
policy's formats wherever a kernel stores a number or hands it to a matrix unit. Nothing is certified here: this is how
others err.

In chunks of rows 0 .. n-1 from state S, with Gamma_i = a_0 .. a_i and D(i, m) = Gamma_i / Gamma_m, formed as the
exponential of a difference of sums of log decays, as kernels do:

    A_im = e_i . D(i, m) k_m   (m < i; D(i-1, m) for "pre"),    P_im = q_i . D(i, m) k_m   (m <= i)
    T = (I + diag(b) A)^-1,    W = T diag(b) (e Gamma),    U = T (b v)
    N = U - W S                what is written
    O = s ((q Gamma) S + P N)
    S <- Gamma_{n-1} S + sum_m (D(n-1, m) k_m) N_m'

Rounded to the operand format: T, b Gamma e, b v, W, U, S as it is read, N, P, and N (or k) with the decay to the
chunk's end; Gamma meets q S where it is one number a head, and q where it has channels of its own. Rounded to the
state's format: S where a chunk (or a step) ends; to the output's: O. Sums are chains of fused multiply-adds in the
arithmetic. All arrays that are not inputs or outputs are flat.
"""

from __future__ import annotations

import numpy as np

from . import _math
from ._jit import inline, njit, part
from ._simd import BYTES, at, fma, load, put, splat, store
from .delta import dot, offset
from .inverses import by_blocks, by_squares
from .rounding import drawn, rounded, settle

ROWS = 4  # rows of a product at a time
PAD = 256  # bytes to a multiple of which rows are padded: noise is drawn for the padding too, so it is every machine's
ANCHOR = 16  # rows that share one reference point of channel-wise decays

# Mistakes of the chunk algebra, one bit each: switches that a kernel's author may have set wrong.
SLIPS = {
    "state_lost": 1,  # every chunk starts from nothing
    "tail_gate": 2,  # a partial last chunk takes its last log decay as 0
    "no_diagonal": 4,  # P without m = i
    "mask_without_decay": 8,  # P without D
    "w_ungated": 16,  # W without Gamma
    "u_doubly_gated": 32,  # U with Gamma
    "exclusive_gate": 64,  # q meets Gamma_{i-1}
    "no_correction": 128,  # T = I: the writes of a chunk do not see one another
    "last_diagonal": 256,  # P without m = i in the last row of every chunk
    "truncated_inverse": 512,  # T by the first three terms of its series
    "one_newton_step": 1024,  # T = I - A, one step from I
    "factored_decay": 2048,  # D as the product of exp(G_i) and exp(-G_m)
    "unmasked_decay": 4096,  # D above the diagonal too, times 0
    "turned_in_read": 8192,  # S' for S where q reads it, if it is square
    "turned_in_correction": 16384,  # and where W meets it
    "squares_in_half": 32768,  # T by repeated squares in binary16
    "blocks_in_bf16": 65536,  # T by blocks, multiplied in bfloat16
}
LOST, TAIL, NO_DIAGONAL, BARE_MASK, BARE_W, GATED_U, EXCLUSIVE, UNCORRECTED, LAST_DIAGONAL = list(SLIPS.values())[:9]
TRUNCATED, NEWTON, FACTORED, UNMASKED, TURNED_READ, TURNED_CORRECTION, SQUARES, BLOCKS = list(SLIPS.values())[9:]


@part
def product(A, a, lda, B, b, ldb, C, c, ldc, n, m, p, triangular, zero):
    """C [n, p] = A [n, m] B [m, p], flat from a, b, c on; p a whole number of tiles, n of ROWS. A triangular A is
    zero above its diagonal."""
    L = splat(zero)
    for j in range(0, p, lanes_of(B)):
        for i in range(0, n, ROWS):
            c0 = L
            c1 = L
            c2 = L
            c3 = L
            for l in range(min(m, i + ROWS) if triangular else m):
                x = load(B, b + l * ldb + j)
                c0 = fma(splat(at(A, a + i * lda + l)), x, c0)
                c1 = fma(splat(at(A, a + (i + 1) * lda + l)), x, c1)
                c2 = fma(splat(at(A, a + (i + 2) * lda + l)), x, c2)
                c3 = fma(splat(at(A, a + (i + 3) * lda + l)), x, c3)
            store(C, c + i * ldc + j, c0)
            store(C, c + (i + 1) * ldc + j, c1)
            store(C, c + (i + 2) * ldc + j, c2)
            store(C, c + (i + 3) * ldc + j, c3)


@inline
def lanes_of(x):
    return BYTES // x.itemsize


@inline
def padded(n, x):
    """A row of n numbers, padded."""
    whole = PAD // x.itemsize
    return (n + whole - 1) // whole * whole


@part
def clear(x, count, zero):
    for i in range(count):
        x[i] = zero


@part
def take(x, batch, t, head, to, ld, n, rows, zero):
    """One head's rows t .. t + n of x [B, M, heads, D] into `to` [rows, ld] with zeros around them."""
    clear(to, rows * ld, zero)
    step = x.shape[2] * x.shape[3]
    base = offset(x, batch, t, head)
    for i in range(n):
        for j in range(x.shape[3]):
            to[i * ld + j] = at(x, base + i * step + j)


@part
def gather(x, batch, t, head, order, to, ld, n, rows, zero):
    """As `take`, the channels in an order."""
    clear(to, rows * ld, zero)
    step = x.shape[2] * x.shape[3]
    base = offset(x, batch, t, head)
    for i in range(n):
        for j in range(x.shape[3]):
            to[i * ld + j] = at(x, base + i * step + order[j])


@part
def transpose(x, n, D, ld, to, rows, ldt, zero):
    """x [n, D] as `to` [rows, ldt]."""
    clear(to, rows * ldt, zero)
    for i in range(n):
        for j in range(D):
            to[j * ldt + i] = x[i * ld + j]


@part
def seen(S, R, order, K, Kr, V, Vp, turned, on, form, noise, noisy, cursor):
    """R, the state as it is read: rounded; transposed where that is asked and it is square, whatever order its rows
    are in."""
    if turned and K == V:
        for i in range(K):
            for j in range(K):
                R[i * Vp + order[j]] = S[j * Vp + order[i]]
        if on:
            cursor = settle(R, 0, R, 0, Kr * Vp, form, noise, noisy, cursor)
    elif on:
        cursor = settle(S, 0, R, 0, Kr * Vp, form, noise, noisy, cursor)
    else:
        for i in range(Kr * Vp):
            R[i] = S[i]
    return cursor


@part
def exponential(x, y, count):
    """y = exp(x) over flat arrays of one arithmetic, rounded to it."""
    for i in range(count):
        y[i] = _math.exp(np.float64(x[i]))


@part
def scalar_scores(E, Q, KT, G, b, A, P, F, n, nr, K, Kp, Cp, pre, decays, slips, zero):
    """A and P of a chunk whose decay is one number a head: the products, then D on them."""
    product(E, 0, Kp, KT, 0, Cp, A, 0, Cp, nr, K, Cp, False, zero)
    product(Q, 0, Kp, KT, 0, Cp, P, 0, Cp, nr, K, Cp, False, zero)
    for i in range(n):
        row = i * Cp
        if decays:
            for m in range(i + 1):
                F[m] = G[i] - G[m]
            exponential(F, F, i + 1)
            if slips & (FACTORED | UNMASKED):
                overflowing(G, F, A, P, i, n, row, pre, slips, zero)
            for m in range(i + 1):
                if not slips & BARE_MASK:
                    P[row + m] *= F[m]
            if pre and i > 0:
                for m in range(i):
                    F[m] = G[i - 1] - G[m]
                exponential(F, F, i)
            for m in range(i):
                A[row + m] *= F[m]
    finish_scores(A, P, b, n, nr, Cp, slips, zero)


@part
def overflowing(G, F, A, P, i, n, row, pre, slips, zero):
    """Row i of A and P as they come out whose exponentials overflow: D(i, m) in two factors, the second left in F, or
    what is above the diagonal times 0."""
    if slips & FACTORED:
        for m in range(i + 1):
            F[m] = _math.exp(np.float64(G[i]))
            P[row + m] *= F[m]
            if not pre:
                A[row + m] *= F[m]
            F[m] = _math.exp(-np.float64(G[m]))
    else:
        for m in range(i + 1, n):
            F[m] = _math.exp(np.float64(G[i] - G[m]))
            P[row] += F[m] * zero


@part
def finish_scores(A, P, b, n, nr, Cp, slips, zero):
    """diag(b) A below the diagonal, P up to it, zeros elsewhere."""
    for i in range(nr):
        row = i * Cp
        for m in range(Cp):
            if m >= i or i >= n:
                A[row + m] = zero
            else:
                A[row + m] *= b[i]
            if m > i or i >= n:
                P[row + m] = zero
        if slips & NO_DIAGONAL or (slips & LAST_DIAGONAL and i == n - 1):
            P[row + i] = zero


@part
def against_anchor(x, G, anchors, before, first, n, Kp, K, back, y, F, zero):
    """Rows first .. first + n of x with exp(G_i - anchor), or (back) exp(anchor - G_i); the anchor is row `before` of
    `anchors` (-1: nothing has decayed)."""
    for i in range(first, first + n):
        for j in range(K):
            base = anchors[before * Kp + j] if before >= 0 else zero
            F[j] = base - G[i * Kp + j] if back else G[i * Kp + j] - base
        exponential(F, F, K)
        for j in range(K):
            y[i * Kp + j] = x[i * Kp + j] * F[j]


@part
def wide_scores(
    E, Q, Kx, GE, G, g, b, A, P, X, Y, KT, F, n, nr, K, Kp, Cp, pre, slips, on, form, noise, noisy, cursor, zero
):
    """A and P of a chunk whose decay has channels of its own: ANCHOR rows at a time against what is before them, both
    sides decayed from their common anchor and rounded; inside such a block pair by pair, in the arithmetic."""
    clear(A, nr * Cp, zero)
    clear(P, nr * Cp, zero)
    for first in range(0, n, ANCHOR):
        rows = min(ANCHOR, n - first)
        up = (rows + ROWS - 1) // ROWS * ROWS
        if first > 0:
            clear(Y, nr * Kp, zero)
            against_anchor(Kx, G, G, first - 1, 0, first, Kp, K, True, Y, F, zero)
            if on:
                cursor = settle(Y, 0, Y, 0, first * Kp, form, noise, noisy, cursor)
            transpose(Y, first, K, Kp, KT, (K + ROWS - 1) // ROWS * ROWS, Cp, zero)
            for which in range(2):
                clear(X, nr * Kp, zero)
                if which == 0:
                    against_anchor(E, GE, G, first - 1, first, rows, Kp, K, False, X, F, zero)
                else:
                    against_anchor(Q, G, G, first - 1, first, rows, Kp, K, False, X, F, zero)
                if on:
                    cursor = settle(X, first * Kp, X, first * Kp, rows * Kp, form, noise, noisy, cursor)
                product(X, first * Kp, Kp, KT, 0, Cp, A if which == 0 else P, first * Cp, Cp, up, K, Cp, False, zero)
        for m in range(first, first + rows):
            for j in range(Kp):
                F[j] = Kx[m * Kp + j]
            P[m * Cp + m] = dot(F[:Kp], Q[m * Kp : m * Kp + Kp])
            for i in range(m + 1, first + rows):
                if pre:
                    A[i * Cp + m] = dot(F[:Kp], E[i * Kp : i * Kp + Kp])
                for j in range(K):
                    F[j] *= g[i * Kp + j]
                if not pre:
                    A[i * Cp + m] = dot(F[:Kp], E[i * Kp : i * Kp + Kp])
                P[i * Cp + m] = dot(F[:Kp], Q[i * Kp : i * Kp + Kp])
    finish_scores(A, P, b, n, nr, Cp, slips, zero)
    return cursor


@part
def invert(A, T, n, nr, Cp, slips, zero):
    """T = (I + A)^-1, A strictly lower triangular, row by row."""
    clear(T, nr * Cp, zero)
    if slips & (TRUNCATED | NEWTON):
        for i in range(n):
            T[i * Cp + i] = zero + np.float32(1)
        for _ in range(1 if slips & NEWTON else 2):  # T <- I - A T, the last row first
            for i in range(n - 1, -1, -1):
                for j in range(Cp):
                    row = zero
                    for m in range(i):
                        row -= A[i * Cp + m] * T[m * Cp + j]
                    T[i * Cp + j] = row
                T[i * Cp + i] = zero + np.float32(1)
        return
    for i in range(n):
        for j in range(0, Cp, lanes_of(T)):
            row = splat(zero)
            if not slips & UNCORRECTED:
                for m in range(i):
                    row = fma(splat(-at(A, i * Cp + m)), load(T, m * Cp + j), row)
            store(T, i * Cp + j, row)
        T[i * Cp + i] = zero + np.float32(1)


@njit
def chunked(place, cuts, heads, order, q, k, e, v, b, g, S, room, o, forms, on, noise, noisy, cursor, rule, scale):
    """One sequence and head by chunks; S [K to ROWS, padded V] is carried on.

    place   (batch, first micro-step of the sequence)
    cuts    [chunks + 1]: the micro-steps where chunks begin and end
    heads   (q, k, e, g, v): which head of each array [B, T or M, heads, D]; b [B, M, HV, 1]; g is the log decay
    order   of the key channels: sums over them, and the rows of S, go by it
    forms   operand, state, output, and what SQUARES and BLOCKS round to; on: which of the first three round at all
    rule    (micro, pre, erases, wide, decays, slips)
    """
    batch, _ = place
    hq, hk, he, hg, hv = heads
    micro, pre, erases, wide, decays, slips = rule
    Q, Kx, E, KT, X, Y, A, P, T, W, U, N, R, O, G, GE, D, B, F = room
    K, V = k.shape[3], v.shape[3]
    Kp, Vp = padded(K, S), padded(V, S)
    Kr = (K + ROWS - 1) // ROWS * ROWS
    zero = scale - scale
    for c in range(cuts.size - 1):
        t = cuts[c]
        n = cuts[c + 1] - t
        nr = (n + ROWS - 1) // ROWS * ROWS
        Cp = padded(n, S)
        if slips & LOST and c > 0:
            clear(S, Kr * Vp, zero)
        gather(k, batch, t, hk, order, Kx, Kp, n, nr, zero)
        take(b, batch, t, hv, B, 1, n, nr, zero)
        clear(Q, nr * Kp, zero)
        for i in range(n):
            if (t + i + 1) % micro == 0:
                base = offset(q, batch, (t + i) // micro, hq)
                for j in range(K):
                    Q[i * Kp + j] = at(q, base + order[j])
        ld = Kp if wide else 1
        if wide:
            gather(g, batch, t, hg, order, D, ld, n, nr, zero)
        else:
            take(g, batch, t, hg, D, ld, n, nr, zero)
        for j in range(K if wide else 1):
            total = zero
            for i in range(n):
                GE[i * ld + j] = total
                total += D[i * ld + j]
                G[i * ld + j] = total
                if not pre:
                    GE[i * ld + j] = total
        tail = slips & TAIL and c == cuts.size - 2 and c > 0 and n < cuts[c] - cuts[c - 1]
        cursor = chunk_scores(
            erases, e, batch, t, he, order, E, Kx, Q, KT, X, Y, A, P, T, G, GE, D, B, F, n, nr, K, Kp, Kr, Cp, wide,
            pre, decays, slips, on[0], forms[0], forms[3:], noise, noisy, cursor, zero,
        )  # fmt: skip
        # what is written
        take(v, batch, t, hv, X, Vp, n, nr, zero)
        for i in range(n):
            for j in range(V):
                X[i * Vp + j] *= B[i]
        turned = bool(slips & TURNED_CORRECTION)
        cursor = seen(S, R, order, K, Kr, V, Vp, turned, on[0], forms[0], noise, noisy, cursor)
        if on[0]:
            cursor = settle(X, 0, X, 0, n * Vp, forms[0], noise, noisy, cursor)
        if erases:
            cursor = written(
                E, X, Y, A, T, W, U, N, R, G, GE, B, F, n, nr, K, Kp, Vp, Cp, wide, decays, slips, on[0], forms[0],
                noise, noisy, cursor, zero,
            )  # fmt: skip
        else:
            for i in range(nr * Vp):
                N[i] = X[i]
        # what is read
        if turned != bool(slips & TURNED_READ):
            cursor = seen(S, R, order, K, Kr, V, Vp, not turned, on[0], forms[0], noise, noisy, cursor)
        if wide and decays:
            exponential(G, W, n * Kp)
            for i in range(n):
                for j in range(K):
                    past = W[i * Kp + j]
                    if slips & EXCLUSIVE:
                        past = W[(i - 1) * Kp + j] if i > 0 else zero + np.float32(1)
                    Y[i * Kp + j] = Q[i * Kp + j] * past
            if on[0]:
                cursor = settle(Y, 0, Y, 0, n * Kp, forms[0], noise, noisy, cursor)
            product(Y, 0, Kp, R, 0, Vp, O, 0, Vp, nr, K, Vp, False, zero)
        else:
            product(Q, 0, Kp, R, 0, Vp, O, 0, Vp, nr, K, Vp, False, zero)
            exponential(G, F, n)
            for i in range(n):
                past = F[i]
                if slips & EXCLUSIVE:
                    past = F[i - 1] if i > 0 else zero + np.float32(1)
                for j in range(Vp):
                    O[i * Vp + j] *= past
        if on[0]:
            cursor = settle(P, 0, P, 0, nr * Cp, forms[0], noise, noisy, cursor)
        product(P, 0, Cp, N, 0, Vp, U, 0, Vp, nr, n, Vp, True, zero)
        for i in range(nr * Vp):
            O[i] = scale * (O[i] + U[i])
        if on[2]:
            cursor = settle(O, 0, O, 0, n * Vp, forms[2], noise, noisy, cursor)
        for i in range(n):
            if (t + i + 1) % micro == 0:
                base = offset(o, batch, (t + i) // micro, hv)
                for j in range(V):
                    put(o, base + j, O[i * Vp + j])
        # what is kept
        cursor = kept(
            S, Kx, KT, X, Y, N, R, G, F, n, nr, K, Kp, Kr, Vp, Cp, wide, decays, tail, on[0], forms[0], noise, noisy,
            cursor, zero,
        )  # fmt: skip
        if on[1]:
            cursor = settle(S, 0, S, 0, Kr * Vp, forms[1], noise, noisy, cursor)
    return cursor


@part
def chunk_scores(
    erases, e, batch, t, he, order, E, Kx, Q, KT, X, Y, A, P, T, G, GE, D, B, F, n, nr, K, Kp, Kr, Cp, wide, pre,
    decays, slips, on, form, coarse, noise, noisy, cursor, zero,
):  # fmt: skip
    """E, then A, P and T of a chunk, T and nothing else rounded."""
    gather(e, batch, t, he, order, E, Kp, n, nr, zero)
    if wide and decays:
        for i in range(n - 1, -1, -1):  # steps between sums that were rounded, so that products of them tell D(i, m)
            for j in range(K):
                D[i * Kp + j] = G[i * Kp + j] - (G[(i - 1) * Kp + j] if i > 0 else zero)
        exponential(D, D, n * Kp)
        cursor = wide_scores(
            E, Q, Kx, GE, G, D, B, A, P, X, Y, KT, F, n, nr, K, Kp, Cp, pre, slips, on, form, noise, noisy, cursor, zero
        )
        transpose(Kx, n, K, Kp, KT, Kr, Cp, zero)
    else:
        transpose(Kx, n, K, Kp, KT, Kr, Cp, zero)
        scalar_scores(E, Q, KT, G, B, A, P, F, n, nr, K, Kp, Cp, pre, decays, slips, zero)
    if erases:
        if slips & (SQUARES | BLOCKS):
            clear(T, nr * Cp, zero)
            if slips & SQUARES:
                by_squares(A, T, X, F, n, Cp, coarse[0], zero)
            else:
                by_blocks(A, T, F, n, Cp, coarse[1], zero)
        else:
            invert(A, T, n, nr, Cp, slips, zero)
        if on:
            cursor = settle(T, 0, T, 0, nr * Cp, form, noise, noisy, cursor)
    return cursor


@part
def written(
    E, X, Y, A, T, W, U, N, R, G, GE, B, F, n, nr, K, Kp, Vp, Cp, wide, decays, slips, on, form, noise, noisy, cursor,
    zero,
):  # fmt: skip
    """N = T (b v) - (T (b e Gamma)) S; X holds b v, R the state."""
    clear(Y, nr * Kp, zero)
    for i in range(n):
        if decays and not slips & BARE_W:
            for j in range(K if wide else 1):
                F[j] = GE[i * Kp + j] if wide else GE[i]
            exponential(F, F, K if wide else 1)
        for j in range(K):
            gate = B[i]
            if decays and not slips & BARE_W:
                gate *= F[j] if wide else F[0]
            Y[i * Kp + j] = E[i * Kp + j] * gate
    if slips & GATED_U and decays and not wide:
        exponential(G, F, n)
        for i in range(n):
            for j in range(Vp):
                X[i * Vp + j] *= F[i]
    if on:
        cursor = settle(Y, 0, Y, 0, n * Kp, form, noise, noisy, cursor)
    product(T, 0, Cp, Y, 0, Kp, W, 0, Kp, nr, n, Kp, True, zero)
    product(T, 0, Cp, X, 0, Vp, U, 0, Vp, nr, n, Vp, True, zero)
    if on:
        cursor = settle(W, 0, W, 0, n * Kp, form, noise, noisy, cursor)
        cursor = settle(U, 0, U, 0, n * Vp, form, noise, noisy, cursor)
    product(W, 0, Kp, R, 0, Vp, N, 0, Vp, nr, K, Vp, False, zero)
    for i in range(nr * Vp):
        N[i] = U[i] - N[i]
    if on:
        cursor = settle(N, 0, N, 0, n * Vp, form, noise, noisy, cursor)
    return cursor


@part
def kept(
    S, Kx, KT, X, Y, N, R, G, F, n, nr, K, Kp, Kr, Vp, Cp, wide, decays, tail, on, form, noise, noisy, cursor, zero,
):  # fmt: skip
    """S <- Gamma S + sum over the chunk of what was written, decayed to its end."""
    if wide and decays:
        for i in range(n):
            for j in range(K):
                F[j] = (zero if tail else G[(n - 1) * Kp + j]) - G[i * Kp + j]
            exponential(F, F, K)
            for j in range(K):
                Y[i * Kp + j] = Kx[i * Kp + j] * F[j]
        if on:
            cursor = settle(Y, 0, Y, 0, n * Kp, form, noise, noisy, cursor)
        transpose(Y, n, K, Kp, KT, Kr, Cp, zero)
        for j in range(K):
            F[j] = zero if tail else G[(n - 1) * Kp + j]
        exponential(F, F, K)
        for i in range(K):
            for j in range(Vp):
                S[i * Vp + j] *= F[i]
        product(KT, 0, Cp, N, 0, Vp, R, 0, Vp, Kr, n, Vp, False, zero)
    else:
        last = zero if tail else G[n - 1]
        if decays:
            for i in range(n):
                F[i] = last - G[i]
            exponential(F, F, n)
            for i in range(n):
                for j in range(Vp):
                    X[i * Vp + j] = N[i * Vp + j] * F[i]
            if on:
                cursor = settle(X, 0, X, 0, n * Vp, form, noise, noisy, cursor)
            F[0] = last
            exponential(F, F, 1)
            for i in range(Kr * Vp):
                S[i] *= F[0]
            product(KT, 0, Cp, X, 0, Vp, R, 0, Vp, Kr, n, Vp, False, zero)
        else:
            product(KT, 0, Cp, N, 0, Vp, R, 0, Vp, Kr, n, Vp, False, zero)
    for i in range(Kr * Vp):
        S[i] += R[i]
    return cursor


@njit
def recurrent(place, until, heads, order, q, k, e, v, b, g, S, room, o, forms, on, noise, noisy, cursor, rule, scale):
    """One sequence and head step by step, arguments as for `chunked`; `until` is one past the last micro-step; b
    [B, M, HV, 1 or V]. Rounded to the operand format: S as the prediction and the read-out see it, and d."""
    batch, begin = place
    hq, hk, he, hg, hv = heads
    micro, pre, erases, wide, _, _ = rule
    p, r, d, F = room
    V = v.shape[3]
    Vp = padded(V, S)
    zero = scale - scale
    for t in range(begin, until):
        at_k, at_e, at_v = offset(k, batch, t, hk), offset(e, batch, t, he), offset(v, batch, t, hv)
        at_b, at_g = offset(b, batch, t, hv), offset(g, batch, t, hg)
        for i in range(g.shape[3]):
            F[i] = at(g, at_g + (order[i] if wide else i))
        exponential(F, F, g.shape[3])
        first = cursor
        for j in range(0, Vp, lanes_of(S)):
            cursor = faded(S, j, Vp, F, wide, e, at_e, order, p, pre, forms[0], on[0], noise, noisy, first, zero)
        for j in range(V):
            d[j] = at(v, at_v + j)
            if erases:
                d[j] -= p[j]
            d[j] *= at(b, at_b + j) if b.shape[3] > 1 else at(b, at_b)
        if on[0]:
            cursor = settle(d, 0, d, 0, V, forms[0], noise, noisy, cursor)
        reads = (t + 1) % micro == 0
        at_q = offset(q, batch, t // micro, hq)
        first = cursor
        for j in range(0, Vp, lanes_of(S)):
            cursor = added(S, j, Vp, k, at_k, d, q, at_q, order, r, reads, forms, on, noise, noisy, first, zero)
        if reads:
            at_o = offset(o, batch, t // micro, hv)
            for j in range(V):
                r[j] *= scale
            if on[2]:
                cursor = settle(r, 0, r, 0, V, forms[2], noise, noisy, cursor)
            for j in range(V):
                put(o, at_o + j, r[j])
    return cursor


@part
def faded(S, j, Vp, F, wide, e, at_e, order, p, pre, form, on, noise, noisy, cursor, zero):
    """Some columns of S <- a S, and what e sees of S (before or after) in p; the cursor behind the noise of a whole
    S."""
    s = splat(zero)
    for i in range(order.size):
        x = load(S, i * Vp + j)
        y = x * (F[i] if wide else F[0])
        store(S, i * Vp + j, y)
        seen = x if pre else y
        if on:
            start = drawn(cursor, Vp)
            seen = rounded(seen, load(noise, start + j), form, noisy)
            cursor = start + Vp
        s = fma(splat(at(e, at_e + order[i])), seen, s)
    store(p, j, s)
    return cursor


@part
def added(S, j, Vp, k, at_k, d, q, at_q, order, r, reads, forms, on, noise, noisy, cursor, zero):
    """Some columns of S <- S + k d', stored, and what q reads of them in r; the cursor as from `faded`."""
    written, s = load(d, j), splat(zero)
    for i in range(order.size):
        x = fma(splat(at(k, at_k + order[i])), written, load(S, i * Vp + j))
        if on[1]:
            start = drawn(cursor, Vp)
            x = rounded(x, load(noise, start + j), forms[1], noisy)
            cursor = start + Vp
        store(S, i * Vp + j, x)
        if reads:
            if on[0]:
                start = drawn(cursor, Vp)
                x = rounded(x, load(noise, start + j), forms[0], noisy)
                cursor = start + Vp
            s = fma(splat(at(q, at_q + order[i])), x, s)
    store(r, j, s)
    return cursor
