"""One mini-batch of fast weights backwards: what a loss owes to its tokens and to the weights it began with, from what
it owes to its answers and to the weights it left.

Rows are tokens, weights [in, out], names as in kernels/fast_weights.py; dX is the loss's gradient by X. Backwards
through a mini-batch: what its queries read after the update, the update, what they read before or during it, and the
errors of its keys, whose own derivative is the second one of the loss. A layer that tokens read as they see it,
O = beta * (X W + b) + phi * (X P + c) - (N * S) E with S = X A' (+ 1), owes

    dW += X' (beta * dO),  dP += X' (phi * dO),  dE -= (N * S)' dO,  dN += T * S,  T = -dO E'
    dX += (beta * dO) W' + (phi * dO) P' + (N * T) A,  dA += (N * T)' X

LayerNorm with x standardised, r = 1 / sigma and J(m) = (m - mean m - x mean(m x)) r owes J(w dy); the error in front
of it, E = J(s), s = w e, e = w x + b - t, owes for the cotangent g of E

    dz = J(w d - (mean(s x) g + mean(g x) s) r) - (g . E) r x / D,   dt = -d,   d = w J(g)

Newton-Schulz step by step, X' = a X + B X, B = b A + c A A, A = X X':

    dB = dX' X',  dA = b dB + c (dB A + A dB),  dX = a dX' + B' dX' + (dA + dA') X
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import fast_grad as kernel
from ..kernels import fast_rule
from ..kernels._products import panel_shape
from ..kernels.fast_steps import column_norms
from ..spec import FastWeights

Array = NDArray[Any]
Memory = list[Array]  # W1, b1, W2, b2, P1, c1, P2, c2
Sides = tuple[Array, Array, Array, Array]  # A and E of a gradient A' E, and what is owed to each
MODELS = {"linear": fast_rule.LINEAR, "mlp": fast_rule.MLP, "swiglu": fast_rule.SWIGLU}


@dataclass
class Tokens:
    """A mini-batch: its rows in the float type of the answer, its gates [n] in float64, theta [n, 3]."""

    q: Array  # times the scale
    k: Array
    v: Array
    a: Array
    eta: Array
    reader: Array
    theta: Array

    def zeros(self) -> Tokens:
        return Tokens(*(np.zeros_like(x) for x in vars(self).values()))


@dataclass
class Mix:
    """What each token sees of the others, and what is owed to it."""

    M: Array
    C: Array
    N: Array
    beta: Array
    phi: Array
    chain: Array

    def zeros(self) -> Mix:
        return Mix(*(np.zeros_like(x) for x in vars(self).values()))


@dataclass
class Keys:
    """The key side of a mini-batch: activations, errors, and each error times its step."""

    Z1: Array
    X2: Array
    slope: Array
    E1: Array
    Z2: Array
    E2: Array
    E2s: Array
    back: Array


class Backward:
    """Mini-batches of one lowered problem, in one float type."""

    def __init__(self, x: FastWeights, dtype: np.dtype[Any]) -> None:
        self.x, self.dtype = x, dtype
        self.act = fast_rule.GELU if x.activation == "gelu" and x.model != "swiglu" else fast_rule.SILU
        self.bias, self.decays, self.momentum = "b2" in x.slots, x.decay is not None, x.eta is not None
        self.aged = x.before and self.decays
        self.two = x.model != "linear"
        self.panel = np.zeros(panel_shape(dtype.itemsize), dtype)

    # Arithmetic in one order.

    def dot(self, A: Array, B: Array, turn: str = "") -> Array:
        """A B; `turn` says which of them is transposed."""
        left, right = "A" in turn, "B" in turn
        out = np.zeros((A.shape[left], B.shape[0 if right else 1]), self.dtype)
        kernel.product(out, np.ascontiguousarray(A), int(left), np.ascontiguousarray(B), int(right), self.panel)
        return out

    def rows(self, x: Array, y: Array) -> Array:
        """x_i . y_i, float64."""
        out = np.empty(len(x))
        kernel.row_dots(np.ascontiguousarray(x), np.ascontiguousarray(y), out)
        return out

    def inner(self, x: Array, y: Array) -> float:
        return float(self.rows(x.reshape(1, -1), y.reshape(1, -1))[0])

    def columns(self, x: Array) -> Array:
        """The sum over tokens."""
        return self.dot(np.ones((1, len(x)), self.dtype), x).reshape(-1)

    def by(self, factors: Array, x: Array) -> Array:
        """Each row times its factor."""
        return np.asarray(factors.astype(self.dtype)[:, None] * x)

    def centred(self, m: Array, x: Array, r: Array) -> Array:
        """J(m)"""
        D = m.shape[1]
        mean, along = self.rows(m, np.ones_like(m)) / D, self.rows(m, x) / D
        return self.by(r, m - mean.astype(self.dtype)[:, None] - self.by(along, x))

    def standardised(self, Z: Array) -> tuple[Array, Array]:
        """x and 1 / sigma"""
        D = Z.shape[1]
        low = Z - (self.rows(Z, np.ones_like(Z)) / D).astype(self.dtype)[:, None]
        r = 1.0 / np.sqrt(self.rows(low, low) / D + self.x.norm_eps)
        return self.by(r, low), r

    def activated(self, Z: Array) -> tuple[Array, Array]:
        """X and its slopes."""
        X, D = np.empty((len(Z), Z.shape[1] // (2 if self.x.model == "swiglu" else 1)), self.dtype), np.empty_like(Z)
        kernel.activate(Z, X, D, MODELS[self.x.model], self.act)
        return X, D

    def apart(self, D: Array, x: Array) -> Array:
        """x by the slopes of each half."""
        return np.asarray(D * (np.concatenate([x, x], axis=1) if self.x.model == "swiglu" else x))

    # Layers.

    def layer(self, X: Array, W: Array, b: Array) -> Array:
        out = self.dot(X, W)
        return np.asarray(out + b) if self.bias else out

    def layer_back(self, d: Array, X: Array, W: Array, dX: Array, dW: Array, db: Array) -> None:
        dX += self.dot(d, W, "B")
        dW += self.dot(X, d, "A")
        if self.bias:
            db += self.columns(d)

    def seen(self, X: Array, state: Memory, A: Array, E: Array, mix: Mix) -> Array:
        """A layer as each token of the mini-batch sees it."""
        W, b, P, c = state
        out = self.by(mix.beta, self.layer(X, W, b))
        if self.momentum:
            out = out + self.by(mix.phi, self.layer(X, P, c))
        S = self.dot(X, A, "B") + self.dtype.type(self.bias)
        return out - self.dot(np.tril(S) * mix.N.astype(self.dtype), E)

    def seen_back(
        self, d: Array, X: Array, state: Memory, A: Array, E: Array, dX: Array, dA: Array, dE: Array, owed: Memory,
        mix: Mix, dmix: Mix,
    ) -> None:  # fmt: skip
        (W, b, P, c), (dW, db, dP, dc) = state, owed
        if self.decays:
            dmix.beta += self.rows(d, self.layer(X, W, b))
        self.layer_back(self.by(mix.beta, d), X, W, dX, dW, db)
        if self.momentum:
            dmix.phi += self.rows(d, self.layer(X, P, c))
            self.layer_back(self.by(mix.phi, d), X, P, dX, dP, dc)
        N = mix.N.astype(self.dtype)
        S, T = np.tril(self.dot(X, A, "B") + self.dtype.type(self.bias)), np.tril(-self.dot(d, E, "B"))
        dmix.N += T * S
        dE -= self.dot(N * S, d, "A")
        dX += self.dot(N * T, A)
        dA += self.dot(N * T, X, "A")

    # The mini-batch.

    def mixed(self, t: Tokens, side: int) -> Mix:
        n = len(t.a)
        mix = Mix(*(np.zeros((side, side)) for _ in range(3)), *(np.zeros(n) for _ in range(3)))
        kernel.coefficients(t.a, t.eta, t.reader, self.decays or self.momentum, *vars(mix).values())
        return mix

    def target(self, t: Tokens) -> Array:
        return t.v if self.x.output == "plain" else t.v - t.k

    def keys(self, t: Tokens, state: Memory, ln: tuple[Array, Array], beta: Array) -> Keys:
        W1, b1, W2, b2 = state[:4]
        none = np.zeros((len(t.a), 0), self.dtype)
        Z1, X2, slope, E1, back = none, t.k, none, none, none
        if self.two:
            Z1 = self.layer(t.k, W1, b1)
            Z1 = self.by(beta, Z1) if self.aged else Z1
            X2, slope = self.activated(Z1)
        Z2 = self.layer(X2, W2, b2)
        Z2 = self.by(beta, Z2) if self.aged else Z2
        E2 = self.errors(Z2, self.target(t), ln)
        if self.two:
            back = self.dot(E2, W2, "B")
            back = self.by(beta, back) if self.aged else back
            E1 = self.apart(slope, back) * self.steps(t.theta, slope.shape[1])
        return Keys(Z1, X2, slope, E1, Z2, E2, self.by(t.theta[:, 1], E2), back)

    def steps(self, theta: Array, width: int) -> Array:
        """The first layer's step of each row, SwiGLU's halves apart."""
        if self.x.model != "swiglu":
            return theta[:, :1].astype(self.dtype)
        return np.repeat(theta[:, ::2], width // 2, axis=1).astype(self.dtype)

    def errors(self, Z: Array, target: Array, ln: tuple[Array, Array]) -> Array:
        x, w = self.x, ln[0]
        if x.output != "plain":
            y, r = self.standardised(Z)
            return self.centred(w * (w * y + ln[1] - target), y, r)
        off = Z - target
        if x.loss == "dot":
            return np.negative(target)
        if x.loss == "huber":
            return np.asarray(np.clip(off, -x.loss_parameter, x.loss_parameter))
        return off if x.loss == "squared" else self.steeper(off, np.abs(off))

    def steeper(self, y: Array, size: Array) -> Array:
        """y size^(p - 2), by products alone."""
        for _ in range(int(self.x.loss_parameter) - 2):
            y = y * size
        return y

    def errors_back(self, g: Array, key: Keys, target: Array, ln: tuple[Array, ...]) -> tuple[Array, Array]:
        """What the errors owe to Z2 and to the target; to the LayerNorm in place."""
        x, (w, b, dw, db) = self.x, ln
        if x.output != "plain":
            y, r = self.standardised(key.Z2)
            D = y.shape[1]
            e = w * y + b - target
            s, Jg = w * e, self.centred(g, y, r)
            d = w * Jg
            pull = self.by(self.rows(s, y) / D * r, g) + self.by(self.rows(g, y) / D * r, s)
            dZ = self.centred(w * d - pull, y, r) - self.by(self.rows(g, key.E2) * r / D, y)
            dw += self.columns(e * Jg + d * y)
            db += self.columns(d)
            return dZ, -d
        off = np.abs(key.Z2 - target)
        if x.loss == "dot":
            return np.zeros_like(g), -g
        if x.loss == "huber":
            g = np.where(off <= x.loss_parameter, g, self.dtype.type(0))
        elif x.loss == "power":
            g = self.steeper(g * self.dtype.type(x.loss_parameter - 1), off)
        return g, -g

    def keys_back(
        self, t: Tokens, dt: Tokens, key: Keys, dkey: Keys, state: Memory, owed: Memory, ln: tuple[Array, ...],
        mix: Mix, dmix: Mix,
    ) -> None:  # fmt: skip
        """What activations and errors owe to tokens, weights and steps."""
        (W1, b1, W2, b2), (dW1, db1, dW2, db2) = state[:4], owed[:4]
        dt.theta[:, 1] += self.rows(dkey.E2s, key.E2)
        dE2 = self.by(t.theta[:, 1], dkey.E2s)
        if self.two:
            h = key.back.shape[1]
            whole, steps = self.apart(key.slope, key.back), self.steps(t.theta, key.slope.shape[1])
            for i, part in ((0, slice(0, h)), (2, slice(h, None))):
                dt.theta[:, i] += self.rows(dkey.E1[:, part], whole[:, part])
            d = dkey.E1 * steps
            dslope = d * (np.concatenate([key.back, key.back], axis=1) if self.x.model == "swiglu" else key.back)
            d = d * key.slope
            dback = d[:, :h] + d[:, h:] if self.x.model == "swiglu" else d
            if self.aged:
                dmix.beta += self.rows(dback, self.dot(key.E2, W2, "B"))
                dback = self.by(mix.beta, dback)
            dE2 = dE2 + self.dot(dback, W2)
            dW2 += self.dot(dback, key.E2, "A")
        dZ2, dtarget = self.errors_back(dE2, key, self.target(t), ln)
        dt.v += dtarget
        if self.x.output != "plain":
            dt.k -= dtarget
        dX2 = dkey.X2 if self.two else dt.k
        if self.aged:
            dmix.beta += self.rows(dZ2, self.layer(key.X2, W2, b2))
            dZ2 = self.by(mix.beta, dZ2)
        self.layer_back(dZ2, key.X2, W2, dX2, dW2, db2)
        if self.two:
            dZ1 = np.empty_like(key.Z1)
            kernel.activate_back(key.Z1, dX2, dslope, dZ1, MODELS[self.x.model], self.act)
            if self.aged:
                dmix.beta += self.rows(dZ1, self.layer(t.k, W1, b1))
                dZ1 = self.by(mix.beta, dZ1)
            self.layer_back(dZ1, t.k, W1, dt.k, dW1, db1)

    def read_back(
        self, d: Array, t: Tokens, dt: Tokens, key: Keys | None, dkey: Keys | None, state: Memory, owed: Memory,
        ln: tuple[Array, ...], mix: Mix, dmix: Mix,
    ) -> None:  # fmt: skip
        """What answers owe to queries and weights, and, where tokens see each other (`key` is there), to the keys."""
        first, second = state[0:2] + state[4:6], state[2:4] + state[6:8]
        dfirst, dsecond = owed[0:2] + owed[4:6], owed[2:4] + owed[6:8]
        Y1 = slope = np.zeros((len(d), 0), self.dtype)
        Y2, dY2 = t.q, dt.q
        if self.two:
            Y1 = self.layer(t.q, *state[:2]) if key is None else self.seen(t.q, first, t.k, key.E1, mix)
            Y2, slope = self.activated(Y1)
            dY2 = np.zeros_like(Y2)
        if self.x.output != "plain":
            w, _, dw, db = ln
            Z = self.layer(Y2, *state[2:4]) if key is None else self.seen(Y2, second, key.X2, key.E2s, mix)
            y, r = self.standardised(Z)
            dw += self.columns(d * y)
            db += self.columns(d)
            through = self.centred(w * d, y, r)
            if self.x.output == "query":
                dt.q += d
            d = through if self.x.output == "query" else through + d
        if key is None or dkey is None:
            self.layer_back(d, Y2, state[2], dY2, *owed[2:4])
        else:
            dX2 = dkey.X2 if self.two else dt.k
            self.seen_back(d, Y2, second, key.X2, key.E2s, dY2, dX2, dkey.E2s, dsecond, mix, dmix)
        if not self.two:
            return
        dY1 = self.apart(slope, dY2)
        if key is None or dkey is None:
            self.layer_back(dY1, t.q, state[0], dt.q, *owed[:2])
        else:
            self.seen_back(dY1, t.q, first, t.k, key.E1, dt.q, dt.k, dkey.E1, dfirst, mix, dmix)

    # The update.

    def lesson_back(self, sides: Sides, factors: Array, dW: Array, db: Array, dfactors: Array) -> None:
        """Of W - sum_j f_j a_j e_j', b - sum_j f_j e_j: what they owe to a, e and f."""
        A, E, dA, dE = sides
        along = self.layer(A, dW, db)
        dfactors -= self.rows(E, along)
        dE -= self.by(factors, along)
        dA -= self.dot(self.by(factors, E), dW, "B")

    def descend_back(self, sides: Sides, state: Memory, owed: Memory, mix: Mix, dmix: Mix) -> None:
        """What the weights of the last token owe: in `owed` to those of the start, in place."""
        (W, b, P, c), (dW, db, dP, dc) = state, owed
        self.lesson_back(sides, mix.N[-1], dW, db, dmix.N[-1])
        if self.momentum:
            self.lesson_back(sides, mix.C[-1], dP, dc, dmix.C[-1])
            dmix.phi[-1] += self.inner(dW, P) + self.inner(db, c)
            dmix.chain[-1] += self.inner(dP, P) + self.inner(dc, c)
            for side, d in ((dP, dW), (dc, db)):
                side[...] = self.dtype.type(mix.chain[-1]) * side + self.dtype.type(mix.phi[-1]) * d
        if self.decays:
            dmix.beta[-1] += self.inner(dW, W) + self.inner(db, b)
            for d in (dW, db):
                d *= self.dtype.type(mix.beta[-1])

    def leap_back(
        self, sides: Sides, state: Memory, owed: Memory, decay: float, push: float, lengths: Array, dlengths: Array,
        halves: bool,
    ) -> tuple[float, float]:  # fmt: skip
        """Of one step for the whole mini-batch, likewise; returns what it owes to the decay and to the mean of eta."""
        x, one = self.x, self.dtype.type
        (A, E, dA, dE), (W, b, P, c), (dW, db, dP, dc) = sides, state, owed
        G = -self.dot(A, E, "A")
        G = one(push) * P + G if self.momentum else G
        parts = [slice(0, G.shape[1] // 2), slice(G.shape[1] // 2, None)] if halves else [slice(None)]
        chains = [self.schulz(np.ascontiguousarray(G[:, s])) for s in parts] if x.muon is not None else []
        if x.weight_norm == "post":
            shape = (len(G), G.shape[1] // len(parts))
            step = np.concatenate([turned(y[-1], shape) for y in chains], axis=1) if chains else G
            base = G if x.overwrite else one(decay) * W
            dW[...] = self.renorm_back(base + step, dW, lengths, dlengths)
        dG = dW.copy()
        for s, y in zip(parts, chains, strict=False):
            dG[:, s] = self.schulz_back(np.ascontiguousarray(G[:, s]), y, np.ascontiguousarray(dW[:, s]))
        of_decay, of_push = 0.0, 0.0
        if x.overwrite:
            dG += dW
            dW[...] = 0
        else:
            of_decay = self.inner(dW, W) + self.inner(db, b)
            dW *= one(decay)
        dg = db.copy()
        if self.momentum:
            dG, dg = dG + dP, dg + dc
            of_push = self.inner(dG, P) + self.inner(dg, c)
            dP[...], dc[...] = one(push) * dG, one(push) * dg
        db *= one(decay)
        dE -= self.layer(A, dG, dg)
        dA -= self.dot(E, dG, "B")
        return of_decay, of_push

    def schulz(self, G: Array) -> list[Array]:
        """Newton-Schulz of G, rows the narrow side: every X on the way."""
        size = np.sqrt(self.inner(G, G)) + 1e-7
        X = [turned(G / self.dtype.type(size), sorted(G.shape))]
        for a, _, _ in self.x.muon:
            X.append(self.dtype.type(a) * X[-1] + self.dot(self.grams(X[-1], len(X) - 1)[1], X[-1]))
        return X

    def grams(self, X: Array, s: int) -> tuple[Array, Array]:
        """A and B of one step."""
        A = self.dot(X, X, "B")
        _, b, c = (self.dtype.type(y) for y in self.x.muon[s])
        return A, b * A + c * self.dot(A, A)

    def schulz_back(self, G: Array, X: list[Array], d: Array) -> Array:
        d = turned(d, X[0].shape)
        for s in range(len(X) - 2, -1, -1):
            a, b, c = (self.dtype.type(y) for y in self.x.muon[s])
            A, B = self.grams(X[s], s)
            dB = self.dot(d, X[s], "B")
            dA = b * dB + c * (self.dot(dB, A) + self.dot(A, dB))
            d = a * d + self.dot(B, d, "A") + self.dot(dA + dA.T, X[s])
        length = np.sqrt(self.inner(G, G))
        size = self.dtype.type(length + 1e-7)
        along = self.dtype.type(self.inner(d, X[0]) / length if length > 0 else 0.0)
        return np.asarray((turned(d, G.shape) - along * G) / size)

    def lengths_of(self, W: Array) -> Array:
        r = np.empty(W.shape[1])
        column_norms(W, int(self.x.norm_inside), r)
        return r

    def renorm_back(self, U: Array, d: Array, lengths: Array, dlengths: Array) -> Array:
        """Of U l / r, column by column: what it owes to U, and in place to l."""
        r, plain = self.lengths_of(U), np.empty(U.shape[1])
        column_norms(U, -1, plain)
        along = self.rows(np.ascontiguousarray(d.T), np.ascontiguousarray(U.T))
        dlengths += along / r
        slope = r if self.x.norm_inside else plain  # dr/dU = U / slope
        pull = np.where(slope > 0, along * lengths / (r * r) / np.where(slope > 0, slope, 1.0), 0.0)
        return np.asarray(d * (lengths / r).astype(self.dtype) - U * pull.astype(self.dtype))

    # All of it.

    def effective(self, state: Memory, owed: Memory, lengths: Any, untouched: float) -> tuple[Memory, Memory]:
        """The weights that layers read, and where what is owed to those goes."""
        if self.x.weight_norm != "pre" or untouched:
            return state, owed
        U, dU = list(state), list(owed)
        for i, size in ((0, lengths[0]), (2, lengths[1])):
            U[i] = state[i] * (size / self.lengths_of(state[i])).astype(self.dtype)
            dU[i] = np.zeros_like(owed[i])
        return U, dU

    def fold(self, state: Memory, owed: Memory, dU: Memory, lengths: Any, dlengths: Any) -> None:
        for i, size, d in ((0, lengths[0], dlengths[0]), (2, lengths[1], dlengths[1])):
            if dU[i] is not owed[i]:
                owed[i] += self.renorm_back(state[i], dU[i], size, d)

    def back(
        self, d: Array, t: Tokens, update: bool, apply: bool, state: Memory, later: Memory,
        untouched: tuple[float, float], lengths: Any, ln: tuple[Array, ...], owed: Memory, dlengths: Any,
    ) -> Tokens:  # fmt: skip
        """What is owed to a mini-batch's tokens, in place to the weights (`owed`: after it, then before it), to the
        LayerNorm's (the last two of `ln`) and to the columns' first lengths."""
        x, dt, n = self.x, t.zeros(), len(t.a)
        during, inner = x.read == "during", not x.whole
        mix = self.mixed(t, n if during or (inner and update) else 0)
        dmix = mix.zeros()
        if apply and x.read == "after":
            now, dnow = self.effective(later, owed, lengths, untouched[1])
            self.read_back(d, t, dt, None, None, now, dnow, ln, mix, dmix)
            self.fold(later, owed, dnow, lengths, dlengths)
        now, dnow = self.effective(state, owed, lengths, untouched[0])
        key = self.keys(t, now, (ln[0], ln[1]), mix.beta) if update or during else None
        dkey = None if key is None else Keys(*(np.zeros_like(y) for y in vars(key).values()))
        if key is not None and dkey is not None and update:
            self.update_back(t, dt, key, dkey, state, owed, lengths, dlengths, mix, dmix)
        if apply and x.read != "after":
            seen = (key, dkey) if during else (None, None)
            self.read_back(d, t, dt, *seen, now, dnow, ln, mix, dmix)
        if key is not None and dkey is not None:
            self.keys_back(t, dt, key, dkey, now, dnow, ln, mix, dmix)
        self.fold(state, owed, dnow, lengths, dlengths)
        kept = (mix.M, mix.C, mix.beta, mix.phi, mix.chain)
        found = (dmix.N, dmix.C, dmix.beta, dmix.phi, dmix.chain)
        general = self.decays or self.momentum
        kernel.coefficients_back(t.a, t.eta, t.reader, general, *kept, *found, dt.a, dt.eta, dt.reader)
        return dt

    def update_back(
        self, t: Tokens, dt: Tokens, key: Keys, dkey: Keys, state: Memory, owed: Memory, lengths: Any, dlengths: Any,
        mix: Mix, dmix: Mix,
    ) -> None:  # fmt: skip
        dX2 = dkey.X2 if self.two else dt.k
        layers: list[tuple[Sides, slice, slice]]
        layers = [((key.X2, key.E2s, dX2, dkey.E2s), slice(2, 4), slice(6, 8))]
        layers += [((t.k, key.E1, dt.k, dkey.E1), slice(0, 2), slice(4, 6))] if self.two else []
        n, push = len(t.eta), 0.0
        for y in t.eta:
            push += float(y)
        for i, (sides, one, two) in enumerate(layers):
            before, after = state[one] + state[two], owed[one] + owed[two]
            if not self.x.whole:
                self.descend_back(sides, before, after, mix, dmix)
                continue
            halves = i == 1 and self.x.model == "swiglu" and not self.x.grouped
            decay, size, dsize = float(mix.beta[-1]), lengths[1 - i], dlengths[1 - i]
            of_decay, of_push = self.leap_back(sides, before, after, decay, push / n, size, dsize, halves)
            dmix.beta[-1] += of_decay
            dt.eta += of_push / n


def turned(x: Array, shape: Any) -> Array:
    """x, or its transpose where that has the shape."""
    return np.ascontiguousarray(x if x.shape == tuple(shape) else x.T)
