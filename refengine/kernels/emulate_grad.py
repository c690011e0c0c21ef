"""Honest imitations of low-precision backward kernels for the delta core, chunk by chunk.

With the chunk algebra of kernels/emulate.py (Z is what is owed to the state after a chunk, dO to its scaled outputs):

    dN = P' dO + (D(n-1, .) k) Z             dP = tril(dO N')
    dX = T' dN,  dY = -T' (dN S')            dA = -tril(dX U' + dY W', -1), times b_i
    dv = b dX                                db = v . dX + (e Gamma) . dY + sum_m dA_im A_im / b_i
    dq = Gamma (dO S') + (dP D) k            de = Gamma (b dY) + (dA D) k
    dk = (dP D)' q + (dA D)' e + D(n-1, .) (N Z')
    dS = Gamma_{n-1} Z + (q Gamma)' dO - W' dN
    dG_i = q_i . dq_i + e_i . de_i - k_i . dk_i, to the last also Gamma_{n-1} S . Z + sum_m k_m . D(n-1, m) (N Z')_m
    dg_i = the sum of dG from i on

Rounded to the operand format: S, Z, P, T, W, U, N, dN, dW, dX, dY, and dP and dA with their decays (with channel-wise
decays: k, q and e with theirs); to the state's: dS. Sums and dg are in the arithmetic, as kernels have them. All arrays
that are not inputs or outputs are flat.
"""

from __future__ import annotations

import numpy as np

from ._jit import inline, njit, part
from ._simd import at, put
from .delta import offset
from .emulate import (
    ROWS,
    clear,
    exponential,
    gather,
    invert,
    padded,
    product,
    scalar_scores,
    take,
    transpose,
    wide_scores,
)
from .rounding import drawn, rounded, settle

# Mistakes of a backward pass, one bit each.
SLIPS = {
    "last_gate": 1,  # dg without what the chunk's last decay owes for what is kept
    "state_gate": 2,  # dg without S . Z
    "db_of_w": 4,  # db without e Gamma . dY
    "db_of_a": 8,  # db without dA . A
    "exclusive_sum": 16,  # dg_i without dG_i
    "dk_of_a": 32,  # dk without (dA D)' e
    "dk_of_state": 64,  # dk without D(n-1, .) (N Z')
    "de": 128,  # what is erased owes nothing to its key
    "state_lost": 256,  # Z is 0 for every chunk but the last
    "dq_of_state": 512,  # dq without Gamma (dO S')
    "carry_ungated": 1024,  # dS with Z, not Gamma_{n-1} Z
}
LAST_GATE, STATE_GATE, DB_W, DB_A, EXCLUSIVE, DK_A, DK_STATE, NO_DE, LOST, DQ_STATE, BARE_CARRY = SLIPS.values()


@part
def add(x, y, count):
    for i in range(count):
        x[i] += y[i]


@part
def decayed(x, G, anchors, base, n, K, Kp, wide, back, y, F, zero):
    """Rows of x with exp(G_i), or (back) exp(anchor - G_i), the anchor row `base` of `anchors`."""
    for i in range(n):
        for j in range(K if wide else 1):
            if back:
                F[j] = anchors[base * Kp + j] - G[i * Kp + j] if wide else anchors[base] - G[i]
            else:
                F[j] = G[i * Kp + j] if wide else G[i]
        exponential(F, F, K if wide else 1)
        for j in range(K):
            y[i * Kp + j] = x[i * Kp + j] * (F[j] if wide else F[0])


@part
def under_decay(M, G, GE, n, Cp, strict, F):
    """M_im D(i, m) for m <= i (strict: D of what erases, for m < i), nothing elsewhere."""
    for i in range(n):
        for m in range(i + 1):
            F[m] = (GE[i] if strict else G[i]) - G[m]
        exponential(F, F, i + 1)
        for m in range(n):
            M[i * Cp + m] *= F[m] if m < i or (m == i and not strict) else F[0] - F[0]


@inline
def rounded_or_not(x, r, form, noisy, on):
    return rounded(x, r, form, noisy) if on else x


@part
def pairs(Q, Kx, E, D, dP, dA, dq, de, dk, F, n, K, Kp, Cp, pre, erases, slips, on, form, noise, noisy, cursor, zero):
    """(dP D) k, (dA D) k, (dP D)' q and (dA D)' e, added to dq, de and dk, where D has channels."""
    for m in range(n):
        for j in range(K):
            F[j] = zero + np.float32(1)
        for i in range(m, n):
            for half in range(2):
                if half == 1 and i > m:
                    for j in range(K):
                        F[j] *= D[i * Kp + j]
                start = drawn(cursor, 3 * K)
                cursor = start + 3 * K
                if erases and i > m and (half == 0) == pre:
                    a = dA[i * Cp + m]
                    for j in range(K):
                        key = rounded_or_not(F[j] * Kx[m * Kp + j], noise[start + j], form, noisy, on)
                        gone = rounded_or_not(F[j] * E[i * Kp + j], noise[start + K + j], form, noisy, on)
                        de[i * Kp + j] += a * key
                        if not slips & DK_A:
                            dk[m * Kp + j] += a * gone
                if half == 1:
                    a = dP[i * Cp + m]
                    for j in range(K):
                        key = rounded_or_not(F[j] * Kx[m * Kp + j], noise[start + j], form, noisy, on)
                        query = rounded_or_not(F[j] * Q[i * Kp + j], noise[start + 2 * K + j], form, noisy, on)
                        dq[i * Kp + j] += a * key
                        dk[m * Kp + j] += a * query
    return cursor


@njit
def backward(
    place, cuts, heads, order, q, k, e, v, b, g, do, Z, room, grad_room, marks, dq, dk, de, dv, db, dg, forms, on,
    noise, noisy, cursor, rule, wrong, scale,
):  # fmt: skip
    """One sequence and head. As `emulate.chunked`; do [B, T, HV, V]; Z [K to ROWS, padded V] what is owed to the final
    state, and on return to the initial one; marks [chunks, K to ROWS * padded V] the states before each chunk; dq
    [B, T, HV, K], dk, de [B, M, HV, K], dv [B, M, HV, V], db [B, M, HV, 1], dg [B, M, HV, 1 or K]: every value head its
    own. wrong: SLIPS."""
    batch, _ = place
    hq, hk, he, hg, hv = heads
    micro, pre, erases, wide, decays, _ = rule
    Q, Kx, E, KT, X, Y, A, P, T, W, U, N, R, O, G, GE, D, B, F = room
    dO, dN, dX, dW, dY, Dq, Dk, De, Dkd, M1, M2, MT, AB, ZR, RT, ZT, NT, KT2, KV, ONE, DG = grad_room
    K, V = k.shape[3], v.shape[3]
    Kp, Vp = padded(K, Z), padded(V, Z)
    Kr, Vr = (K + ROWS - 1) // ROWS * ROWS, (V + ROWS - 1) // ROWS * ROWS
    zero = scale - scale
    chunks = cuts.size - 1
    form, rounds = forms[0], on[0]
    for c in range(chunks - 1, -1, -1):
        t = cuts[c]
        n = cuts[c + 1] - t
        nr = (n + ROWS - 1) // ROWS * ROWS
        Cp = padded(n, Z)
        ld = Kp if wide else 1
        if wrong & LOST and c < chunks - 1:
            clear(Z, Kr * Vp, zero)
        gather(k, batch, t, hk, order, Kx, Kp, n, nr, zero)
        gather(e, batch, t, he, order, E, Kp, n, nr, zero)
        take(b, batch, t, hv, B, 1, n, nr, zero)
        if wide:
            gather(g, batch, t, hg, order, D, ld, n, nr, zero)
        else:
            take(g, batch, t, hg, D, ld, n, nr, zero)
        clear(Q, nr * Kp, zero)
        clear(dO, nr * Vp, zero)
        for i in range(n):
            ONE[i] = zero + np.float32(1)
            if (t + i + 1) % micro == 0:
                base, out = offset(q, batch, (t + i) // micro, hq), offset(do, batch, (t + i) // micro, hv)
                for j in range(K):
                    Q[i * Kp + j] = at(q, base + order[j])
                for j in range(V):
                    dO[i * Vp + j] = scale * at(do, out + j)
        for j in range(K if wide else 1):
            total = zero
            for i in range(n):
                GE[i * ld + j] = total
                total += D[i * ld + j]
                G[i * ld + j] = total
                if not pre:
                    GE[i * ld + j] = total
        # forward, once more
        if wide and decays:
            for i in range(n - 1, -1, -1):
                for j in range(K):
                    D[i * Kp + j] = G[i * Kp + j] - (G[(i - 1) * Kp + j] if i > 0 else zero)
            exponential(D, D, n * Kp)
            cursor = wide_scores(
                E, Q, Kx, GE, G, D, ONE, A, P, X, Y, KT, F, n, nr, K, Kp, Cp, pre, 0, rounds, form, noise, noisy,
                cursor, zero,
            )  # fmt: skip
        else:
            transpose(Kx, n, K, Kp, KT, Kr, Cp, zero)
            scalar_scores(E, Q, KT, G, ONE, A, P, F, n, nr, K, Kp, Cp, pre, decays, 0, zero)
        for i in range(Kr * Vp):
            R[i] = marks[c, i]
            ZR[i] = Z[i]
        if rounds:
            cursor = settle(R, 0, R, 0, Kr * Vp, form, noise, noisy, cursor)
            cursor = settle(ZR, 0, ZR, 0, Kr * Vp, form, noise, noisy, cursor)
            cursor = settle(P, 0, P, 0, nr * Cp, form, noise, noisy, cursor)
            cursor = settle(dO, 0, dO, 0, n * Vp, form, noise, noisy, cursor)
        take(v, batch, t, hv, X, Vp, n, nr, zero)
        for i in range(n):
            for j in range(V):
                N[i * Vp + j] = X[i * Vp + j] * B[i]
        clear(Y, nr * Kp, zero)
        if erases:
            for i in range(n):
                for m in range(Cp):
                    AB[i * Cp + m] = A[i * Cp + m] * B[i]
            invert(AB, T, n, nr, Cp, 0, zero)
            if rounds:
                cursor = settle(T, 0, T, 0, nr * Cp, form, noise, noisy, cursor)
                cursor = settle(N, 0, N, 0, n * Vp, form, noise, noisy, cursor)
            if decays:
                decayed(E, GE, GE, 0, n, K, Kp, wide, False, Y, F, zero)
            else:
                for i in range(n * Kp):
                    Y[i] = E[i]
            clear(De, nr * Kp, zero)
            for i in range(n):
                for j in range(K):
                    De[i * Kp + j] = Y[i * Kp + j] * B[i]
            if rounds:
                cursor = settle(De, 0, De, 0, n * Kp, form, noise, noisy, cursor)
            clear(O, nr * Vp, zero)
            for i in range(n * Vp):
                O[i] = N[i]
            product(T, 0, Cp, De, 0, Kp, W, 0, Kp, nr, n, Kp, True, zero)
            product(T, 0, Cp, O, 0, Vp, U, 0, Vp, nr, n, Vp, True, zero)
            if rounds:
                cursor = settle(W, 0, W, 0, n * Kp, form, noise, noisy, cursor)
                cursor = settle(U, 0, U, 0, n * Vp, form, noise, noisy, cursor)
            product(W, 0, Kp, R, 0, Vp, N, 0, Vp, nr, K, Vp, False, zero)
            for i in range(nr * Vp):
                N[i] = U[i] - N[i]
        if rounds:
            cursor = settle(N, 0, N, 0, n * Vp, form, noise, noisy, cursor)
        # what is owed to what was written, dN
        transpose(P, n, n, Cp, MT, nr, Cp, zero)
        product(MT, 0, Cp, dO, 0, Vp, dN, 0, Vp, nr, n, Vp, False, zero)
        clear(Dkd, nr * Kp, zero)
        if decays:
            decayed(Kx, G, G, n - 1, n, K, Kp, wide, True, Dkd, F, zero)
        else:
            for i in range(n * Kp):
                Dkd[i] = Kx[i]
        if rounds:
            cursor = settle(Dkd, 0, Dkd, 0, n * Kp, form, noise, noisy, cursor)
        product(Dkd, 0, Kp, ZR, 0, Vp, O, 0, Vp, nr, K, Vp, False, zero)
        add(dN, O, n * Vp)
        if rounds:
            cursor = settle(dN, 0, dN, 0, n * Vp, form, noise, noisy, cursor)
        transpose(R, K, V, Vp, RT, Vr, Kp, zero)
        transpose(ZR, K, V, Vp, ZT, Vr, Kp, zero)
        for i in range(n):
            DG[i] = zero  # of b
        clear(De, nr * Kp, zero)
        clear(M2, nr * Cp, zero)
        if erases:
            transpose(T, n, n, Cp, MT, nr, Cp, zero)
            product(MT, 0, Cp, dN, 0, Vp, dX, 0, Vp, nr, n, Vp, False, zero)
            product(dN, 0, Vp, RT, 0, Kp, dW, 0, Kp, nr, V, Kp, False, zero)
            for i in range(nr * Kp):
                dW[i] = -dW[i]
            if rounds:
                cursor = settle(dW, 0, dW, 0, n * Kp, form, noise, noisy, cursor)
            product(MT, 0, Cp, dW, 0, Kp, dY, 0, Kp, nr, n, Kp, False, zero)
            for i in range(n):
                if not wrong & DB_W:
                    for j in range(K):
                        DG[i] += Y[i * Kp + j] * dY[i * Kp + j]
            if decays:
                decayed(dY, GE, GE, 0, n, K, Kp, wide, False, De, F, zero)
            else:
                for i in range(n * Kp):
                    De[i] = dY[i]
            for i in range(n):
                for j in range(K):
                    De[i * Kp + j] *= B[i]
            if rounds:
                cursor = settle(dX, 0, O, 0, n * Vp, form, noise, noisy, cursor)
                cursor = settle(dY, 0, dY, 0, n * Kp, form, noise, noisy, cursor)
            else:
                for i in range(n * Vp):
                    O[i] = dX[i]
            for i in range(n * Vp, nr * Vp):
                O[i] = zero
            transpose(U, n, V, Vp, NT, Vr, Cp, zero)
            product(O, 0, Vp, NT, 0, Cp, M2, 0, Cp, nr, V, Cp, False, zero)
            transpose(W, n, K, Kp, KT2, Kr, Cp, zero)
            product(dY, 0, Kp, KT2, 0, Cp, M1, 0, Cp, nr, K, Cp, False, zero)
            for i in range(nr):
                for m in range(Cp):
                    x = zero
                    if m < i and i < n:
                        x = -(M1[i * Cp + m] + M2[i * Cp + m])
                        if not wrong & DB_A:
                            DG[i] += x * A[i * Cp + m]
                        x *= B[i]
                    M2[i * Cp + m] = x
        else:
            for i in range(nr * Vp):
                dX[i] = dN[i]
        for i in range(n):
            at_v, at_b = offset(dv, batch, t + i, hv), offset(db, batch, t + i, hv)
            for j in range(V):
                DG[i] += X[i * Vp + j] * dX[i * Vp + j]
                put(dv, at_v + j, B[i] * dX[i * Vp + j])
            put(db, at_b, DG[i])
        # dP, and through the scores and the state to q, k, e
        transpose(N, n, V, Vp, NT, Vr, Cp, zero)
        product(dO, 0, Vp, NT, 0, Cp, M1, 0, Cp, nr, V, Cp, False, zero)
        for i in range(nr):
            for m in range(Cp):
                if m > i or i >= n:
                    M1[i * Cp + m] = zero
        product(dO, 0, Vp, RT, 0, Kp, Dk, 0, Kp, nr, V, Kp, False, zero)
        clear(Dq, nr * Kp, zero)
        if not wrong & DQ_STATE:
            if decays:
                decayed(Dk, G, G, 0, n, K, Kp, wide, False, Dq, F, zero)
            else:
                add(Dq, Dk, n * Kp)
        clear(Dk, nr * Kp, zero)
        if wide and decays:
            if rounds:
                cursor = settle(M1, 0, M1, 0, nr * Cp, form, noise, noisy, cursor)
                cursor = settle(M2, 0, M2, 0, nr * Cp, form, noise, noisy, cursor)
            cursor = pairs(
                Q, Kx, E, D, M1, M2, Dq, De, Dk, F, n, K, Kp, Cp, pre, erases, wrong, rounds, form, noise, noisy,
                cursor, zero,
            )  # fmt: skip
        else:
            if decays:
                under_decay(M1, G, GE, n, Cp, False, F)
                under_decay(M2, G, GE, n, Cp, True, F)
            if rounds:
                cursor = settle(M1, 0, M1, 0, nr * Cp, form, noise, noisy, cursor)
                cursor = settle(M2, 0, M2, 0, nr * Cp, form, noise, noisy, cursor)
            product(M1, 0, Cp, Kx, 0, Kp, dW, 0, Kp, nr, n, Kp, True, zero)
            add(Dq, dW, n * Kp)
            transpose(M1, n, n, Cp, MT, nr, Cp, zero)
            product(MT, 0, Cp, Q, 0, Kp, dW, 0, Kp, nr, n, Kp, False, zero)
            add(Dk, dW, n * Kp)
            if erases:
                product(M2, 0, Cp, Kx, 0, Kp, dW, 0, Kp, nr, n, Kp, True, zero)
                add(De, dW, n * Kp)
                if not wrong & DK_A:
                    transpose(M2, n, n, Cp, MT, nr, Cp, zero)
                    product(MT, 0, Cp, E, 0, Kp, dW, 0, Kp, nr, n, Kp, False, zero)
                    add(Dk, dW, n * Kp)
        product(N, 0, Vp, ZT, 0, Kp, dY, 0, Kp, nr, V, Kp, False, zero)
        if decays:
            decayed(dY, G, G, n - 1, n, K, Kp, wide, True, dY, F, zero)
        if not wrong & DK_STATE:
            add(Dk, dY, n * Kp)
        for i in range(n):
            at_k = offset(dk, batch, t + i, hv)
            for j in range(K):
                put(dk, at_k + order[j], Dk[i * Kp + j])
                put(de, at_k + order[j], zero if wrong & NO_DE else De[i * Kp + j])
            if (t + i + 1) % micro == 0:
                at_q = offset(dq, batch, (t + i) // micro, hv)
                for j in range(K):
                    put(dq, at_q + order[j], Dq[i * Kp + j])
        # the decays
        if decays:
            last = n - 1
            for j in range(K):
                F[j] = G[last * Kp + j] if wide else G[last]
            exponential(F, F, K)
            channels = K if wide else 1
            clear(DG, K, zero)
            for j in range(K):
                to = j if wide else 0
                if not wrong & LAST_GATE:
                    for m in range(n):
                        DG[to] += Kx[m * Kp + j] * dY[m * Kp + j]
                if not wrong & STATE_GATE:
                    for i in range(V):
                        DG[to] += F[j] * (marks[c, j * Vp + i] * Z[j * Vp + i])
            for i in range(n - 1, -1, -1):
                at_g = offset(dg, batch, t + i, hv)
                for j in range(channels):
                    if wrong & EXCLUSIVE:
                        put(dg, at_g + (order[j] if wide else j), DG[j])
                for j in range(K):
                    to = j if wide else 0
                    x = Q[i * Kp + j] * Dq[i * Kp + j] - Kx[i * Kp + j] * Dk[i * Kp + j]
                    if erases and not pre:
                        x += E[i * Kp + j] * De[i * Kp + j]
                    DG[to] += x
                for j in range(channels):
                    if not wrong & EXCLUSIVE:
                        put(dg, at_g + (order[j] if wide else j), DG[j])
                if erases and pre:
                    for j in range(K):
                        DG[j if wide else 0] += E[i * Kp + j] * De[i * Kp + j]
        # what is owed to the state before
        clear(Y, nr * Kp, zero)
        if decays:
            decayed(Q, G, G, 0, n, K, Kp, wide, False, Y, F, zero)
        else:
            for i in range(n * Kp):
                Y[i] = Q[i]
        if rounds:
            cursor = settle(Y, 0, Y, 0, n * Kp, form, noise, noisy, cursor)
        transpose(Y, n, K, Kp, KT, Kr, Cp, zero)
        product(KT, 0, Cp, dO, 0, Vp, KV, 0, Vp, Kr, n, Vp, False, zero)
        if decays and not wrong & BARE_CARRY:
            for j in range(K):
                F[j] = G[(n - 1) * Kp + j] if wide else G[n - 1]
            exponential(F, F, K)
            for j in range(K):
                for i in range(Vp):
                    Z[j * Vp + i] *= F[j]
        add(Z, KV, Kr * Vp)
        if erases:
            product(KT2, 0, Cp, dN, 0, Vp, KV, 0, Vp, Kr, n, Vp, False, zero)
            for i in range(Kr * Vp):
                Z[i] -= KV[i]
        if on[1]:
            cursor = settle(Z, 0, Z, 0, Kr * Vp, forms[1], noise, noisy, cursor)
    return cursor
