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

from . import _math
from ._jit import inline, njit, part
from ._products import product
from ._simd import BLOCK, at, block, called, fma, put, total

LINEAR, MLP, SWIGLU = range(3)
GELU, SILU = range(2)
SQUARED, DOT, HUBER, POWER = range(4)
DURING, BEFORE, AFTER = range(3)  # the queries see the weights of their own token, of the start, of the end
PLAIN, RESIDUAL_QUERY, RESIDUAL_OUTPUT = range(3)  # o = Z;  q + LN(Z);  Z + LN(Z)
NO_NORM, POST_NORM, PRE_NORM = range(3)
RULE = (
    "model", "act", "loss", "read", "output", "inner", "bias", "decays", "momentum", "before",
    "muon", "grouped", "overwrite", "weight_norm", "norm_inside",
)  # fmt: skip
GELU_A, GELU_B = 1.5957691216057308, 0.07135481627260025  # 2 sqrt(2 / pi), and that times 0.044715


@inline
def row_sum(x, base, D):
    """Sum of D entries from flat `base` on."""
    L = BLOCK // x.itemsize
    whole = D - D % L
    s = 0.0
    if whole:
        lanes = block(x, base)
        for i in range(L, whole, L):
            lanes = lanes + block(x, base + i)
        s = np.float64(total(lanes))
    for i in range(whole, D):
        s = s + at(x, base + i)
    return s


@inline
def row_dot(x, xb, y, yb, D):
    """Sum of D products of entries from flat `xb` and `yb` on."""
    L = BLOCK // x.itemsize
    whole = D - D % L
    s = 0.0
    if whole:
        lanes = block(x, xb) * block(y, yb)
        for i in range(L, whole, L):
            lanes = fma(block(x, xb + i), block(y, yb + i), lanes)
        s = np.float64(total(lanes))
    for i in range(whole, D):
        s = fma(np.float64(at(x, xb + i)), np.float64(at(y, yb + i)), s)
    return s


@part
def clear(x):
    called()
    flat = x.reshape(x.size)
    for i in range(flat.size):
        flat[i] = 0.0


@part
def gather(x, batch, t0, head, factor, out):
    """Tokens t0 .. of one head of x [B, T, heads, D] into the rows of out, times `factor`."""
    called()
    n, D = out.shape
    step = x.shape[2] * x.shape[3]
    base = ((batch * x.shape[1] + t0) * x.shape[2] + head) * D
    for i in range(n):
        row = out[i]
        for d in range(D):
            row[d] = at(x, base + i * step + d) * factor


@part
def scatter(x, o, batch, t0, head):
    """The rows of x into tokens t0 .. of one head of o."""
    called()
    n, D = x.shape
    step = o.shape[2] * o.shape[3]
    base = ((batch * o.shape[1] + t0) * o.shape[2] + head) * D
    for i in range(n):
        row = x[i]
        for d in range(D):
            put(o, base + i * step + d, row[d])


@part
def mixing(a, eta, reader, decays, momentum, n, N, beta, phi, chain):
    """N [n, n] (zeros above the diagonal), beta and phi: what each token sees of the mini-batch."""
    called()
    b, e, f = 1.0, 1.0, 0.0
    for i in range(n):
        row = N[i]
        if decays or momentum:
            above = N[i - 1] if i > 0 else row
            b = a[i] * b
            e = eta[i] * e
            f = a[i] * f + e
            for j in range(i):
                chain[j] = eta[i] * chain[j]
                row[j] = a[i] * above[j] + chain[j]
        else:
            for j in range(i):
                row[j] = 1.0
        chain[i] = 1.0
        row[i] = 1.0
        for j in range(i + 1, n):
            row[j] = 0.0
        beta[i] = b
        phi[i] = f
    for i in range(n):
        row = N[i]
        for j in range(i + 1):
            row[j] = reader[i] * row[j]


@part
def closing(a, eta, reader, n, last, tail):
    """The coefficients of the mini-batch's end: last_j = N_nj, tail_j = eta_{j+1} .. eta_n; returns (beta_n, phi_n,
    eta_1 .. eta_n)."""
    called()
    r, e, g = 1.0, 1.0, 1.0
    for j in range(n - 1, -1, -1):
        g = r + eta[j + 1] * g if j + 1 < n else 1.0
        last[j] = g * reader[n - 1]
        tail[j] = e
        r = r * a[j]
        e = e * eta[j]
    f, c = 0.0, 1.0
    for i in range(n):
        c = c * eta[i]
        f = a[i] * f + c
    return r, f, e


@part
def activate(Z, X, D, model, act, slope):
    """X = act(Z), and where `slope` is set D = its derivative (SwiGLU: of X by the gate, then by the up half)."""
    called()
    n, h = X.shape
    for i in range(n):
        z, x, d = Z[i], X[i], D[i]
        if model == SWIGLU:
            for j in range(h):
                s = _math.sigmoid(np.float64(z[j]))
                y = z[j] * s
                x[j] = y * z[h + j]
                if slope:
                    d[j] = z[h + j] * (s * (1.0 + z[j] * (1.0 - s)))
                    d[h + j] = y
        elif act == SILU:
            for j in range(h):
                s = _math.sigmoid(np.float64(z[j]))
                x[j] = z[j] * s
                if slope:
                    d[j] = s * (1.0 + z[j] * (1.0 - s))
        else:
            for j in range(h):
                q = np.float64(z[j]) * z[j]
                s = _math.sigmoid(z[j] * (GELU_A + GELU_B * q))
                x[j] = z[j] * s
                if slope:
                    d[j] = s + z[j] * ((s * (1.0 - s)) * (GELU_A + 3.0 * GELU_B * q))


@inline
def standardise(Z, base, V, eps):
    """(mean, 1 / sqrt(variance + eps)) of a row; the row itself less its mean."""
    m = row_sum(Z, base, V) / V
    for j in range(V):
        put(Z, base + j, at(Z, base + j) - m)
    return 1.0 / np.sqrt(row_dot(Z, base, Z, base, V) / V + eps)


@part
def norm_errors(Z, target, w, b, eps, E):
    """E = dL/dZ of 1/2 |LN(Z) - target|^2; Z is left standardised.

    x = (Z - mean) / sigma, m = w (w x + b - target), E = (m - mean m - x mean(m x)) / sigma
    """
    called()
    n, V = Z.shape
    for i in range(n):
        base = i * V
        r = standardise(Z, base, V, eps)
        z, t, e = Z[i], target[i], E[i]
        for j in range(V):
            z[j] = z[j] * r
            e[j] = w[j] * (fma(np.float64(w[j]), np.float64(z[j]), np.float64(b[j])) - t[j])
        c1 = row_sum(E, base, V) / V
        c2 = row_dot(E, base, Z, base, V) / V
        for j in range(V):
            e[j] = ((e[j] - c1) - z[j] * c2) * r


@part
def norm_output(Z, other, w, b, eps, out):
    """out = other + LN(Z); Z is left standardised."""
    called()
    n, V = Z.shape
    for i in range(n):
        r = standardise(Z, i * V, V, eps)
        z, x, y = Z[i], other[i], out[i]
        for j in range(V):
            y[j] = x[j] + fma(np.float64(w[j]), z[j] * r, np.float64(b[j]))


@part
def plain_errors(Z, v, loss, parameter, E):
    """dL/dZ of 1/2 |Z - v|^2; of -Z.v; of Huber's loss (linear beyond `parameter`); of sum |Z - v|^p / p."""
    called()
    n, V = v.shape
    for i in range(n):
        z, t, e = Z[i], v[i], E[i]
        for j in range(V):
            if loss == DOT:
                e[j] = -t[j]
            else:
                d = np.float64(z[j]) - t[j]
                if loss == HUBER:
                    d = min(max(d, -parameter), parameter) if d == d else d
                elif loss == POWER:
                    s = abs(d)
                    for _ in range(int(parameter) - 2):
                        d = d * s
                e[j] = d


@part
def scale_rows(x, factors):
    called()
    for i in range(x.shape[0]):
        row = x[i]
        f = factors[i]
        for j in range(row.size):
            row[j] = row[j] * f


@part
def add_row(x, row, factors):
    """x_i += factor_i row"""
    called()
    for i in range(x.shape[0]):
        out = x[i]
        f = factors[i]
        for j in range(row.size):
            out[j] = out[j] + f * row[j]


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
        for j in range(i + 1, n):
            s[j] = 0.0
    product(out, S, no, E, no, -one, panel)


@part
def scaled_copy(x, factors, out):
    called()
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        f = factors[i]
        for j in range(row.size):
            to[j] = row[j] * f


@part
def descend(W, b, P, c, A, E, F, last, tail, ends, bias, decays, momentum, panel):
    """The weights of the mini-batch's last token, and the momentum behind them."""
    called()
    no, yes = np.int64(0), np.int64(1)
    one = E.dtype.type(1)
    beta, phi, chain = ends
    w, p = W.reshape(W.size), P.reshape(P.size)
    if decays:
        for i in range(w.size):
            w[i] = beta * w[i]
        if bias:
            for j in range(b.size):
                b[j] = beta * b[j]
    if momentum:
        for i in range(w.size):
            w[i] = w[i] + phi * p[i]
        if bias:
            for j in range(b.size):
                b[j] = b[j] + phi * c[j]
    scaled_copy(E, last, F)
    product(W, A, yes, F, no, -one, panel)
    if bias:
        for i in range(F.shape[0]):
            f = F[i]
            for j in range(b.size):
                b[j] = b[j] - f[j]
    if momentum:
        for i in range(p.size):
            p[i] = chain * p[i]
        scaled_copy(E, tail, F)
        product(P, A, yes, F, no, -one, panel)
        if bias:
            for j in range(c.size):
                c[j] = chain * c[j]
            for i in range(F.shape[0]):
                f = F[i]
                for j in range(c.size):
                    c[j] = c[j] - f[j]


@part
def orthogonalise(G, A, B, T, steps, panel):
    """Newton-Schulz in place: G / (|G| + 1e-7), then X <- a X + (b M + c M^2) X, M = X X' (from the narrow side)."""
    called()
    no, yes = np.int64(0), np.int64(1)
    one = G.dtype.type(1)
    rows, cols = G.shape
    g, t = G.reshape(G.size), T.reshape(T.size)
    size = np.sqrt(row_dot(G, 0, G, 0, g.size)) + 1e-7
    for i in range(g.size):
        g[i] = g[i] / size
    for s in range(steps.shape[0]):
        clear(A)
        clear(B)
        clear(T)
        if rows <= cols:
            product(A, G, no, G, yes, one, panel)
        else:
            product(A, G, yes, G, no, one, panel)
        product(B, A, no, A, no, one, panel)
        m, x = A.reshape(A.size), B.reshape(B.size)
        for i in range(x.size):
            x[i] = steps[s, 1] * m[i] + steps[s, 2] * x[i]
        if rows <= cols:
            product(T, B, no, G, no, one, panel)
        else:
            product(T, G, no, B, no, one, panel)
        for i in range(g.size):
            g[i] = steps[s, 0] * g[i] + t[i]


@njit
def column_norms(W, inside, out):
    """The length of each column (of what feeds one unit), with LaCT's 1e-5 under the root (`inside` 1), beside it (0),
    or none (-1)."""
    called()
    for j in range(out.size):
        out[j] = 0.0
    for i in range(W.shape[0]):
        row = W[i]
        for j in range(row.size):
            out[j] = fma(np.float64(row[j]), np.float64(row[j]), out[j])
    for j in range(out.size):
        if inside == 1:
            out[j] = np.sqrt(out[j] + 1e-5)
        else:
            out[j] = np.sqrt(out[j]) + (1e-5 if inside == 0 else 0.0)


@part
def renorm(W, lengths, inside, room, out):
    """out = W with every column brought back to its first length."""
    called()
    column_norms(W, inside, room)
    for i in range(W.shape[0]):
        row, to = W[i], out[i]
        for j in range(row.size):
            to[j] = row[j] / room[j] * lengths[j]


@part
def halves(whole, left, right, out):
    """[left | right] taken apart, or put together."""
    called()
    h = left.shape[1]
    for i in range(whole.shape[0]):
        w, a, b = whole[i], left[i], right[i]
        for j in range(h):
            if out:
                a[j] = w[j]
                b[j] = w[h + j]
            else:
                w[j] = a[j]
                w[h + j] = b[j]


@part
def leap(W, P, G, A, E, lengths, room, square, parts, decay, push, rule, steps, panel):
    """One step for the whole mini-batch: momentum, Newton-Schulz, the weights, the rescaling of their columns."""
    called()
    no, yes = np.int64(0), np.int64(1)
    momentum, muon, apart, overwrite, weight_norm, inside = rule
    one = E.dtype.type(1)
    w, p, g = W.reshape(W.size), P.reshape(P.size), G.reshape(G.size)
    for i in range(g.size):
        g[i] = push * p[i] if momentum else 0.0
    product(G, A, yes, E, no, -one, panel)
    if momentum:
        for i in range(g.size):
            p[i] = g[i]
    if overwrite:
        for i in range(g.size):
            w[i] = g[i]
    elif decay != 1.0:
        for i in range(g.size):
            w[i] = decay * w[i]
    if muon:
        M, Q, T = square
        if apart:
            left, right, T = parts
            halves(G, left, right, yes)
            orthogonalise(left, M, Q, T, steps, panel)
            orthogonalise(right, M, Q, T, steps, panel)
            halves(G, left, right, no)
        else:
            orthogonalise(G, M, Q, T, steps, panel)
    for i in range(g.size):
        w[i] = w[i] + g[i]
    if weight_norm == POST_NORM:
        renorm(W, lengths, inside, room, W)


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
    if output == RESIDUAL_QUERY:
        norm_output(out, Q, lnw, lnb, numbers[1], out)
    elif output == RESIDUAL_OUTPUT:
        for i in range(out.shape[0]):
            row, copy = out[i], moved2[i]
            for j in range(row.size):
                copy[j] = row[j]
        norm_output(out, moved2, lnw, lnb, numbers[1], out)


@njit
def run(place, chunks, q, k, v, gates, layers, sides, lengths, ln, o, scratch, rule, numbers, steps):
    """Mini-batches of one head, one after the other.

    place    (batch, q's head, k's, v's); chunks [M, 4]: (first token, one past the last, update, apply)
    arrays   q, k [B, T, *, K]; v [B, T, HV, V]; gates: a, eta, reader [B, T, HV], theta [B, T, HV, 1 or 3] (gate,
             second layer, up)
    state    layers (W1, b1, W2, b2) and sides (their momenta), carried on; one layer is the second, the first empty
    lengths  of W1's columns and W2's at the start, for the rescaling; ln (weight, bias) of the LayerNorm
    written  o [B, T, HV, V]
    scratch  as engine/fast_weights.py allots it; rule: RULE; numbers (scale, eps of the LayerNorm, the loss's own);
             steps [n, 3]: Newton-Schulz coefficients
    """
    model, _, _, mode, _, inner, bias, decays, momentum, _, muon, grouped, overwrite, weight_norm, inside = rule
    batch, hq, hk, hv = place
    inputs, rows1, rows2, mixes, c, leaps, panel = scratch
    W1, b1, W2, b2 = layers
    P1, c1, P2, c2 = sides
    U1, U2, G1, G2, room1, room2, square1, square2, parts = leaps
    a, eta, reader, theta = gates
    one = o.dtype.type(1)
    wide = theta.shape[3] - 1
    for m in range(chunks.shape[0]):
        t0, t1, update, apply = chunks[m]
        n = t1 - t0
        K, Q, V = inputs[0][:n], inputs[1][:n], inputs[2][:n]
        gather(k, batch, t0, hk, one, K)
        gather(q, batch, t0, hq, numbers[0], Q)
        gather(v, batch, t0, hv, one, V)
        aged = 1.0
        for i in range(n):
            c[0, i] = a[batch, t0 + i, hv]
            c[1, i] = eta[batch, t0 + i, hv]
            c[2, i] = reader[batch, t0 + i, hv]
            for x in range(3):
                c[3 + x, i] = theta[batch, t0 + i, hv, min(x, wide)]
            aged = c[0, i] * aged
            c[6, i] = aged
        Z1, X2, slope, E1, back = rows1[0][:n], rows1[1][:n], rows1[2][:n], rows1[3][:n], rows1[4][:n]
        Y1, Y2, moved1, F1 = rows1[5][:n], rows1[6][:n], rows1[7][:n], rows1[8][:n]
        Z2, E2, moved2, F2, out = rows2[0][:n], rows2[1][:n], rows2[2][:n], rows2[3][:n], rows2[4][:n]
        if model == LINEAR:
            X2, Y2 = K, Q
        now = (W1, b1, W2, b2)
        if weight_norm == PRE_NORM and lengths[2][0] == 0.0:
            renorm(W1, lengths[0], inside, room1, U1)
            renorm(W2, lengths[1], inside, room2, U2)
            now = (U1, b1, U2, b2)
        room = (Z1, X2, slope, E1, Z2, E2, back)
        queries = (Y1, Y2, moved1, moved2, out)
        no, yes = np.int64(0), np.int64(1)
        during = yes if mode == DURING else no
        side = n if during else 0
        S, N = mixes[0][: side * side].reshape(side, side), mixes[1][: side * side].reshape(side, side)
        if during:
            mixing(c[0], c[1], c[2], decays, momentum, n, N, c[6], c[7], c[8])
        mix = (S, N, c[6], c[7])
        if update or during:
            keys(rule, K, V, now, room, c[3:6], c[6], ln[0], ln[1], numbers, panel)
        if apply and mode != AFTER:
            read(rule, Q, K, now, sides, room, queries, mix, ln[0], ln[1], numbers, during, panel)
        if update and inner:
            ends = closing(c[0], c[1], c[2], n, c[8], c[9])
            descend(W2, b2, P2, c2, X2, E2, F2, c[8], c[9], ends, bias, decays, momentum, panel)
            if model != LINEAR:
                descend(W1, b1, P1, c1, K, E1, F1, c[8], c[9], ends, bias, decays, momentum, panel)
        elif update:
            push = 0.0
            for i in range(n):
                push = push + c[1, i]
            decay, push = c[6, n - 1], push / n
            how = (momentum, muon, yes if model == SWIGLU and not grouped else no, overwrite, weight_norm, inside)
            whole = (momentum, muon, no, overwrite, weight_norm, inside)
            leap(W2, P2, G2, X2, E2, lengths[1], room2, square2, parts, decay, push, whole, steps, panel)
            if model != LINEAR:
                leap(W1, P1, G1, K, E1, lengths[0], room1, square1, parts, decay, push, how, steps, panel)
            lengths[2][0] = 0.0
        if apply and mode == AFTER:
            if weight_norm == PRE_NORM:
                renorm(W1, lengths[0], inside, room1, U1)
                renorm(W2, lengths[1], inside, room2, U2)
                now = (U1, b1, U2, b2) if lengths[2][0] == 0.0 else now
            read(rule, Q, K, now, sides, room, queries, mix, ln[0], ln[1], numbers, no, panel)
        if apply:
            scatter(out, o, batch, t0, hv)
