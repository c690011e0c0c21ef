"""Combinations of parts that mean nothing, or that nobody can compute exactly, each with the reason."""

from __future__ import annotations

from ...errors import InputError


def reasons(rule):
    """(what makes it meaningless, the two settings, why)."""
    biased, several = rule.memory.biased, rule.memory.kind != "linear"
    muon, exact, implicit = (rule.optimiser == name for name in ("muon", "exact", "implicit"))
    yield (exact or implicit) and several, ("optimiser", "model"), "its minimum has no closed form"
    yield exact and biased, ("optimiser", "model"), "give the keys a channel of ones instead, which has a ridge too"
    yield exact and rule.loss == "dot", ("optimiser", "loss"), "that loss has no minimum"
    yield exact and rule.loss != "squared", ("optimiser", "loss"), "its minimum has no closed form"
    yield implicit and rule.loss == "dot", ("optimiser", "loss"), "the implicit step of that loss is the gradient's"
    yield implicit and rule.loss != "squared", ("optimiser", "loss"), "only the squared loss has its step here"
    yield (exact or implicit) and rule.chunk_size != 1, ("optimiser", "chunk_size"), "it takes one token at a time"
    yield (exact or implicit) and rule.whole, ("optimiser", "read"), "its queries see the memory of their own token"
    yield (exact or implicit) and rule.norm != "none", ("optimiser", "norm"), "its minimum has no closed form"
    yield (
        exact and rule.forgetting == "channel",
        ("optimiser", "forgetting"),
        "old losses fade as wholes, by a scalar",
    )
    yield exact and rule.order != "decay_first", ("optimiser", "order"), "there is no gradient for a decay to follow"
    yield muon and not rule.whole, ("optimiser", "read"), "it takes one step a mini-batch; read before or after it"
    yield muon and biased, ("optimiser", "model"), "a bias is a vector, which has no orthogonal factor"
    yield rule.forgetting == "channel" and several, ("forgetting", "model"), "hidden channels are no key channels"
    yield (
        rule.forgetting == "channel" and biased,
        ("forgetting", "model"),
        "a bias belongs to no channel; give the keys a channel of ones instead",
    )
    yield rule.norm != "none" and rule.loss != "squared", ("norm", "loss"), "the LayerNorm's loss is the squared one"
    yield (
        rule.weight_norm != "none" and not rule.whole,
        ("weight_norm", "read"),
        "weights are rescaled once a mini-batch; read before or after its step",
    )
    yield rule.weight_norm != "none" and biased, ("weight_norm", "model"), "a bias has no row to be rescaled"


def check(rule):
    """Refuse a combination without meaning."""
    for wrong, (one, other), why in reasons(rule):
        if wrong:
            raise InputError(f"{one} {getattr(rule, one)} does not go with {other} {getattr(rule, other)}: {why}.")
    if not rule.huber_delta > 0:
        raise InputError(f"huber_delta is {rule.huber_delta:g}; it must be positive.")
