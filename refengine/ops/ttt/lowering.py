"""Which family solves what was composed: the delta core and the exact learner where they have it, with their proved
bounds, and the fast weights for all else."""

from __future__ import annotations

from ...spec import ERASE_KEY, Delta, FastWeights, Mesa
from ..mesa_net import positive
from ..parts import NEWTON_SCHULZ
from .losses import EPS

MOMENTA = {"W1": "P1", "b1": "c1", "W2": "P2", "b2": "c2", "gate": "Pgate", "down": "Pdown", "up": "Pup"}


def delta_core(rule):
    """Whether the recurrence is one of the delta core's."""
    return (
        rule.model == "linear"
        and rule.loss in ("squared", "dot")
        and rule.optimiser in ("gradient", "implicit")
        and rule.read == "during"
        and rule.norm == "none"
        and rule.chunk_size == 1
    )


def step_of(rule, x, HV):
    """A token's step: theta, or where it is implicit theta / (1 + theta |k|^2)."""
    if rule.optimiser != "implicit":
        return x["theta"]
    theta = x["theta"].heads(HV)
    square = x["k"].square_sum().heads(HV)
    square = square + square.filled(1.0) if rule.memory.biased else square
    return theta / (theta.filled(1.0) + theta * square)


def lower(rule, x, *, HV, **_):
    decay = None if rule.forgetting == "none" else x["g"].decay()
    learnt = {n: x[n] for n in "qkv"}
    if rule.optimiser == "exact":
        a = x["theta"].filled(1.0) if decay is None else decay
        return Mesa(**learnt, a=a, b=x["theta"], lamb=positive(x["lamb"], "the ridge of every channel"))
    theta, tok = step_of(rule, x, HV), x.get("tok")
    if delta_core(rule):
        b = theta if tok is None else theta * tok
        erase = ERASE_KEY if rule.loss == "squared" else None
        order = "post" if rule.order == "decay_first" else "pre"
        return Delta(**learnt, e=erase, b=b, a=decay, order=order)
    others = [x.get(n) for n in ("theta_out", "theta_up")]
    first = {w.slot: x.get(w.name) for w in rule.memory.weights}
    slots = tuple(w.slot for w in rule.memory.weights)
    momenta = tuple(MOMENTA[slot] for slot in slots)
    return FastWeights(
        **learnt,
        theta=(theta, *[theta if y is None else y for y in others]),
        slots=slots + momenta if rule.momentum else slots,
        model=rule.memory.kind,
        activation=rule.activation,
        loss=rule.objective.kind,
        loss_parameter=float(rule.parameter),
        read=rule.read,
        output={"none": "plain", "query": "query", "self": "self"}[rule.norm],
        norm=() if rule.norm == "none" else (x["ln_weight"].value[0, 0], x["ln_bias"].value[0, 0]),
        norm_eps=EPS,
        decay=decay,
        before=rule.order == "decay_first",
        eta=x.get("eta"),
        reader=tok,
        whole=rule.whole,
        muon=NEWTON_SCHULZ[rule.ns_coefficients] if rule.optimiser == "muon" else None,
        weight_norm=rule.weight_norm,
        start={} if rule.weight_norm == "none" else {slot: y.value for slot, y in first.items()},
    )
