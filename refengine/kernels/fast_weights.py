"""Fast weights: a memory of one or two layers, trained mini-batch by mini-batch inside one head.

Rows are tokens, weights are [in, out]. On the n tokens of a mini-batch, all gradients at its first weights W:

    keys     Z1 = k W1 (+ b1),  X2 = act(Z1),  Z2 = X2 W2 (+ b2)      one layer: Z = k W1 (+ b1)
             SwiGLU: W1 = [gate | up], X2 = silu(Z_gate) * Z_up       * is elementwise
    errors   E2 = dL/dZ2,  E1 = (E2 W2') * act'(Z1), then each row times its step theta_j

Every gradient is a sum of outer products a_j e_j' (a = k or X2, e = E), so a layer as token i sees it is

    x W_i = beta_i x W + phi_i x P - sum_{j <= i} N_ij (x . a_j) e_j      (a bias: x . a_j is 1)

with P the momentum and, of the token recurrences P <- eta_t P - g_t, W <- a_t W + P, the coefficients

    beta_i = a_i beta_{i-1},  phi_i = a_i phi_{i-1} + eta_1 .. eta_i,  N_ij = a_i N_{i-1,j} + eta_{j+1} .. eta_i,

each row of N times its reader factor. That is the dual form: matrix products alone. The mini-batch ends with the
weights of its last row, or, where the whole mini-batch is one step (`inner` 0), with

    P <- mean(eta) P - sum_j a_j e_j',  W <- W prod(a) + P or its orthogonal factor (Newton-Schulz), rows rescaled.

Order of operations: products as in _products.py; sums over a row in blocks of the same lanes on every machine; all
else elementwise, each operation rounded unless it says fma.
"""

from __future__ import annotations

import numpy as np

from ._jit import njit, part
from ._products import lower_product, product
from ._simd import called
from .fast_rows import (
    activate,
    add_row,
    clear,
    fade_rows,
    gather,
    norm_errors,
    norm_output,
    plain_errors,
    scale_rows,
    scatter,
)
from .fast_rule import AFTER, DOT, DURING, LINEAR, PLAIN, PRE_NORM, RESIDUAL_OUTPUT, RESIDUAL_QUERY, SWIGLU
from .fast_steps import ages, begin, by_channel, closing, descend, leap, learn, mixing, renorm


@part
def see(X, W, b, P, c, A, E, out, moved, S, N, beta, phi, during, bias, decays, momentum, panel):
    """A layer read by tokens: at its weights of the start, or as each token of the mini-batch sees it."""
    called()
    no, yes = np.int64(0), np.int64(1)
    n = X.shape[0]
    one = E.dtype.type(1)
    clear(out)
    product(out, X, no, W, no, one, panel)
    if not during:
        if bias:
            for i in range(n):
                row = out[i]
                for j in range(row.size):
                    row[j] = row[j] + b[j]
        return
    if decays:
        scale_rows(out, beta)
    if bias:
        add_row(out, b, beta)
    if momentum:
        clear(moved)
        product(moved, X, no, P, no, one, panel)
        for i in range(n):
            row, p = out[i], moved[i]
            for j in range(row.size):
                row[j] = row[j] + phi[i] * p[j]
        if bias:
            add_row(out, c, phi)
    clear(S)
    product(S, X, no, A, yes, one, panel)
    extra = 1.0 if bias else 0.0
    for i in range(n):
        s, m = S[i], N[i]
        for j in range(i + 1):
            s[j] = m[j] * (s[j] + extra)
    lower_product(out, S, E, -one, panel)


@part
def keys(rule, K, V, layers, room, theta, beta, lnw, lnb, numbers, panel):
    """The key side of a mini-batch: activations and errors, each error times its step."""
    called()
    no, yes = np.int64(0), np.int64(1)
    model, act, loss, _, output, _, bias, decays, _, before = rule[:10]
    W1, b1, W2, b2 = layers
    Z1, X2, slope, E1, Z2, E2, back = room
    one = E2.dtype.type(1)
    aged = before and decays
    if model != LINEAR:
        see(K, W1, b1, W1, b1, K, E1, Z1, Z1, Z1, Z1, beta, beta, no, bias, no, no, panel)
        if aged:
            scale_rows(Z1, beta)
        activate(Z1, X2, slope, model, act, yes)
    if loss != DOT or output != PLAIN:
        see(X2, W2, b2, W2, b2, X2, E2, Z2, Z2, Z2, Z2, beta, beta, no, bias, no, no, panel)
        if aged:
            scale_rows(Z2, beta)
    if output != PLAIN:
        for i in range(V.shape[0]):
            v, k = V[i], K[i]
            for j in range(v.size):
                v[j] = v[j] - k[j]
        norm_errors(Z2, V, lnw, lnb, numbers[1], E2)
    else:
        plain_errors(Z2, V, loss, numbers[2], E2)
    if model != LINEAR:
        clear(back)
        product(back, E2, no, W2, yes, one, panel)
        if aged:
            scale_rows(back, beta)
        h = back.shape[1]
        for i in range(back.shape[0]):
            e, x, d = E1[i], back[i], slope[i]
            for j in range(h):
                e[j] = x[j] * d[j] * theta[0, i]
                if model == SWIGLU:
                    e[h + j] = x[j] * d[h + j] * theta[2, i]
    scale_rows(E2, theta[1])


@part
def respond(output, Q, out, room, lnw, lnb, numbers):
    """What is said of an answer Z: Z itself, q + LN(Z), Z + LN(Z)."""
    called()
    if output == RESIDUAL_QUERY:
        norm_output(out, Q, lnw, lnb, numbers[1], out)
    elif output == RESIDUAL_OUTPUT:
        for i in range(out.shape[0]):
            row, copy = out[i], room[i]
            for j in range(row.size):
                copy[j] = row[j]
        norm_output(out, room, lnw, lnb, numbers[1], out)


@part
def read(rule, Q, K, layers, sides, room, queries, mix, lnw, lnb, numbers, during, panel):
    """The query side: what the memory answers, into the last of `queries`."""
    called()
    model, act, _, _, output, _, bias, decays, momentum = rule[:9]
    W1, b1, W2, b2 = layers
    P1, c1, P2, c2 = sides
    _, X2, slope, E1, _, E2, _ = room
    Y1, Y2, moved1, moved2, out = queries
    S, N, beta, phi = mix
    if model != LINEAR:
        see(Q, W1, b1, P1, c1, K, E1, Y1, moved1, S, N, beta, phi, during, bias, decays, momentum, panel)
        activate(Y1, Y2, slope, model, act, np.int64(0))
    see(Y2, W2, b2, P2, c2, X2, E2, out, moved2, S, N, beta, phi, during, bias, decays, momentum, panel)
    respond(output, Q, out, moved2, lnw, lnb, numbers)


@part
def coefficients(gates, batch, t0, head, aged, c):
    """The rows a, eta, reader, theta of some tokens, and what the mini-batch has left of its start after each."""
    called()
    a, eta, reader, theta, _ = gates
    most = theta.shape[3] - 1
    for i in range(c.shape[1]):
        c[0, i] = a[batch, t0 + i, head]
        c[1, i] = eta[batch, t0 + i, head]
        c[2, i] = reader[batch, t0 + i, head]
        for x in range(3):
            c[3 + x, i] = theta[batch, t0 + i, head, min(x, most)]
        aged = c[0, i] * aged
        c[6, i] = aged
    return aged


@njit
def run(place, chunks, q, k, v, gates, layers, sides, lengths, ln, o, scratch, rule, numbers, steps):
    """Mini-batches of one head, one after the other. Where the whole mini-batch is one step its tokens come in pieces
    of as many as `scratch` has rows: every sum over tokens is one chain, which no cut touches.

    place    (batch, q's head, k's, v's); chunks [M, 4]: (first token, one past the last, update, apply)
    arrays   q, k [B, T, *, K]; v [B, T, HV, V]; gates: a, eta, reader [B, T, HV], theta [B, T, HV, 1 or 3] (gate,
             second layer, up), fade [B, T, HV, K] (instead of a, of one layer; by_channel)
    state    layers (W1, b1, W2, b2) and sides (their momenta), carried on; one layer is the second, the first empty
    lengths  of W1's columns and W2's at the start, for the rescaling; ln (weight, bias) of the LayerNorm
    written  o [B, T, HV, V]
    scratch  as engine/fast_weights.py allots it; rule: RULE; numbers (scale, eps of the LayerNorm, the loss's own);
             steps [n, 3]: Newton-Schulz coefficients
    """
    model, _, _, mode, output, inner, bias, decays, momentum, before = rule[:10]
    muon, grouped, overwrite, weight_norm, inside, wide, turned = rule[10:]
    batch, hq, hk, hv = place
    inputs, rows1, rows2, mixes, gated, leaps, panel = scratch
    W1, b1, W2, b2 = layers
    P1, c1, P2, c2 = sides
    U1, U2, G1, G2, sum1, sum2, room1, room2, square1, square2, parts = leaps
    eta, fade = gates[1], gates[4]
    one = o.dtype.type(1)
    no, yes = np.int64(0), np.int64(1)
    during = yes if mode == DURING else no
    for m in range(chunks.shape[0]):
        t0, t1, update, apply = chunks[m]
        leaps_now = update and not inner
        now = (W1, b1, W2, b2)
        if weight_norm == PRE_NORM and lengths[2][0] == 0.0:
            renorm(W1, lengths[0], inside, room1, U1)
            renorm(W2, lengths[1], inside, room2, U2)
            now = (U1, b1, U2, b2)
        if leaps_now:
            push = 0.0
            for t in range(t0, t1):
                push = push + eta[batch, t, hv]
            begin(G1, P1, sum1, c1, push / (t1 - t0), momentum)
            begin(G2, P2, sum2, c2, push / (t1 - t0), momentum)
        if wide:
            for j in range(inputs[3].shape[1]):
                inputs[3][0, j] = one
        aged = 1.0
        most = t1 - t0 if inner else inputs[0].shape[0]
        for late in range(2 if apply and mode == AFTER else 1):
            for t in range(t0, t1, most):
                n = min(most, t1 - t)
                K, Q, V, aging, seen = inputs[0][:n], inputs[1][:n], inputs[2][:n], inputs[3][: n + 1], inputs[4][:n]
                Z1, X2, slope, E1, back = rows1[0][:n], rows1[1][:n], rows1[2][:n], rows1[3][:n], rows1[4][:n]
                Y1, Y2, moved1, F1 = rows1[5][:n], rows1[6][:n], rows1[7][:n], rows1[8][:n]
                Z2, E2, moved2, F2, out = rows2[0][:n], rows2[1][:n], rows2[2][:n], rows2[3][:n], rows2[4][:n]
                if model == LINEAR:
                    X2, Y2 = K, Q
                c = gated[:, :n]
                gather(q, batch, t, hq, numbers[0], turned, Q)
                if not late:
                    gather(k, batch, t, hk, one, turned, K)
                    gather(v, batch, t, hv, one, turned, V)
                    aged = coefficients(gates, batch, t, hv, aged, c)
                side = n if during else 0
                S, N = mixes[0][: side * side].reshape(side, side), mixes[1][: side * side].reshape(side, side)
                if during:
                    mixing(c[0], c[1], c[2], decays, momentum, n, N, c[6], c[7], c[8])
                if not late and (update or during):
                    known = X2
                    if wide:
                        ages(fade, batch, t, hv, aging)
                        if before:
                            known = seen
                            fade_rows(K, aging, seen)
                    room = (Z1, known, slope, E1, Z2, E2, back)
                    keys(rule, K, V, now, room, c[3:6], c[6], ln[0], ln[1], numbers, panel)
                if wide and inner:
                    where = (batch, t, hv)
                    by_channel(Q, K, E2, fade, where, W2, P2, U2, G2, c[1], c[2], momentum, out)
                    respond(output, Q, out, moved2, ln[0], ln[1], numbers)
                elif apply and late == (mode == AFTER):
                    room = (Z1, X2, slope, E1, Z2, E2, back)
                    queries, mix = (Y1, Y2, moved1, moved2, out), (S, N, c[6], c[7])
                    read(rule, Q, K, now, sides, room, queries, mix, ln[0], ln[1], numbers, during, panel)
                if apply and late == (mode == AFTER):
                    scatter(out, o, batch, t, hv, turned)
                if late or not update:
                    continue
                if leaps_now:
                    learn(G2, sum2, X2, E2, panel)
                    learn(G1, sum1, K, E1, panel)
                elif not wide:
                    ends = closing(c[0], c[1], c[2], n, c[8], c[9])
                    descend(W2, b2, P2, c2, X2, E2, F2, c[8], c[9], ends, bias, decays, momentum, panel)
                    if model != LINEAR:
                        descend(W1, b1, P1, c1, K, E1, F1, c[8], c[9], ends, bias, decays, momentum, panel)
            if late:
                continue
            if leaps_now:
                if wide:
                    scale_rows(W2, inputs[3][0])
                whole = (momentum, muon, no, overwrite, weight_norm, inside)
                how = (momentum, muon, yes if model == SWIGLU and not grouped else no, overwrite, weight_norm, inside)
                leap(W2, b2, P2, c2, G2, sum2, lengths[1], room2, square2, parts, aged, whole, steps, panel)
                if model != LINEAR:
                    leap(W1, b1, P1, c1, G1, sum1, lengths[0], room1, square1, parts, aged, how, steps, panel)
                lengths[2][0] = 0.0
            if apply and mode == AFTER and weight_norm == PRE_NORM:
                renorm(W1, lengths[0], inside, room1, U1)
                renorm(W2, lengths[1], inside, room2, U2)
                now = (U1, b1, U2, b2) if lengths[2][0] == 0.0 else now
