"""The definition: a memory trained on the tokens of one mini-batch, from the parts chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..mesa_net import eliminate
from ..parts import NEWTON_SCHULZ, layer_norm, orthogonalised
from .losses import EPS, LOSSES, Loss, normed
from .models import MODELS, Model


@dataclass(frozen=True)
class Rule:
    """The parts chosen, by the names of the options."""

    model: str
    loss: str
    optimiser: str
    forgetting: str
    order: str
    read: str
    norm: str
    weight_norm: str
    activation: str
    ns_coefficients: str
    huber_delta: float
    power: int
    chunk_size: int

    @property
    def memory(self) -> Model:
        return MODELS[self.model]

    @property
    def objective(self) -> Loss:
        return LOSSES[self.loss]

    @property
    def parameter(self) -> Any:
        """The loss's own."""
        return getattr(self, self.objective.parameter) if self.objective.parameter else 0

    @property
    def whole(self) -> bool:
        """One step a mini-batch."""
        return self.read != "during"

    @property
    def momentum(self) -> bool:
        """Whether there are states of it."""
        return self.optimiser in ("heavy_ball", "muon")


def decays(forgetting, g, n):
    """What every token multiplies the weights by."""
    if forgetting == "none":
        return [1] * n
    return [a if forgetting == "scalar" else a[:, None] for a in np.exp(g)]


def exact(S, q, k, v, theta, fade, lamb):
    """The regression on all tokens so far, solved anew at every token."""
    H, G = S
    o = []
    for i, key in enumerate(k):
        H = fade[i] * H + theta[i] * key[:, None] * key
        G = fade[i] * G + theta[i] * key[:, None] * v[i]
        o.append(eliminate(H + np.diag(lamb), q[i]) @ G)
    return (H, G), np.stack(o)


def gradients(rule, W, fade, k, v, theta, ln):
    """Of every token its step times its gradient by each weight, at the mini-batch's first weights or at those
    decayed so far."""
    model, aged = rule.memory, 1
    found = []
    for i, key in enumerate(k):
        aged = fade[i] * aged
        at = [aged * w for w in W] if rule.order == "decay_first" and rule.forgetting != "none" else W

        def slope(z, i=i, key=key):
            if rule.norm != "none":
                return normed(z, v[i] - key, *ln)
            return rule.objective.slope(z, v[i], rule.parameter)

        steps = [t[i] for t in theta]
        if rule.optimiser == "implicit":
            steps = [t / (1 + t * (key @ key + model.biased)) for t in steps]
        d = model.gradients(at, key, slope, rule.activation)
        found.append([steps[w.step] * x for w, x in zip(model.weights, d, strict=True)])
    return found


def rescaled(rule, W, first):
    """Every unit's weights brought back to the length they had at first."""
    out = []
    for kind, w, x in zip(rule.memory.weights, W, first, strict=True):
        now, then = ((y * y).sum(axis=kind.inputs, keepdims=True) for y in (w, x))
        out.append(w / (np.sqrt(now) + 1e-5) * np.sqrt(then))
    return out


def effective(rule, W, first):
    """The weights as f has them."""
    if rule.weight_norm != "pre" or all((w == x).all() for w, x in zip(W, first, strict=True)):
        return W
    return rescaled(rule, W, first)


def answer(rule, W, query, ln):
    z = rule.memory.answer(W, query, rule.activation)
    if rule.norm == "none":
        return z
    weight, bias = ln
    return (query if rule.norm == "query" else z) + layer_norm(z, weight, bias, EPS)


def token_by_token(rule, W, M, d, fade, eta, tok, q, ln):
    """Every token advances the weights by its own part, and reads what is then there."""
    start, learnt, late = W, [0 * w for w in W], [0 * w for w in W]
    o = []
    for i, query in enumerate(q):
        held = 0 if eta is None else eta[i]
        late = [held * p - x for p, x in zip(late, d[i], strict=True)]
        learnt = [fade[i] * w + p for w, p in zip(learnt, late, strict=True)]
        start = [fade[i] * w for w in start]
        if eta is not None:
            M = [held * m for m in M]
            start = [w + m for w, m in zip(start, M, strict=True)]
        seen = 1 if tok is None else tok[i]
        now = [w + seen * x for w, x in zip(start, learnt, strict=True)]
        o.append(answer(rule, now, query, ln))
    return now, [m + p for m, p in zip(M, late, strict=True)], np.stack(o)


def at_once(rule, W, M, d, fade, eta):
    """One step for the whole mini-batch."""
    step = [-sum(x[1:], x[0]) for x in zip(*d, strict=True)]
    if eta is not None:
        step = M = [x + eta.sum() / len(eta) * m for x, m in zip(step, M, strict=True)]
    if rule.optimiser == "muon":
        step = [orthogonalised(x, NEWTON_SCHULZ[rule.ns_coefficients]) for x in step]
    aged = 1
    for a in fade:
        aged = a * aged
    return [aged * w + x for w, x in zip(W, step, strict=True)], M


def step(rule, S, *, q, k, v, theta, theta_out=None, theta_up=None, g=None, eta=None, tok=None, lamb=None,
         ln_weight=None, ln_bias=None, w=None, w0=None, w1=None, w2=None, scale, update=True, apply=True):  # fmt: skip
    S = S if isinstance(S, tuple) else (S,)
    fade, q = decays(rule.forgetting, g, len(k)), scale * q
    if rule.optimiser == "exact":
        return exact(S, q, k, v, theta, fade, lamb)
    given = {"w": w, "w0": w0, "w1": w1, "w2": w2}
    kinds = rule.memory.weights
    first, ln = [given.get(kind.name) for kind in kinds], (ln_weight, ln_bias)
    W, M = list(S[: len(kinds)]), list(S[len(kinds) :]) or [0] * len(kinds)
    theta = [theta, theta if theta_out is None else theta_out, theta if theta_up is None else theta_up]
    o, base = None, effective(rule, W, first)
    if update or not rule.whole:
        d = gradients(rule, base, fade, k, v, theta, ln)
    if apply and rule.read == "before":
        o = np.stack([answer(rule, base, query, ln) for query in q])
    if not rule.whole:
        W, M, o = token_by_token(rule, W, M, d, fade, eta, tok, q, ln)
    elif update:
        W, M = at_once(rule, W, M, d, fade, eta)
        W = rescaled(rule, W, first) if rule.weight_norm == "post" else W
    if apply and rule.read == "after":
        base = effective(rule, W, first)
        o = np.stack([answer(rule, base, query, ln) for query in q])
    S = (*W, *M) if rule.momentum else tuple(W)
    return (S if len(S) > 1 else S[0]), o
