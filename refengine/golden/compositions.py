"""Which learners of `ttt` have goldens: compositions of its parts that are no other op."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..engine.checks import chosen
from ..ops.ttt.learning import Rule
from ..ops.ttt.lowering import delta_core
from ..spec import Op

MINI_BATCH = 4
COMPOSITIONS: Mapping[str, Mapping[str, Any]] = {
    "huber": dict(loss="huber", huber_delta=2.5, forgetting="scalar"),
    "p_norm": dict(loss="p_norm"),
    "after_decay": dict(forgetting="channel", order="gradient_first", chunk_size=1),
    "implicit": dict(optimiser="implicit", forgetting="scalar", chunk_size=1),
    "implicit_bias": dict(model="linear_bias", optimiser="implicit", chunk_size=1),
    "bias": dict(model="linear_bias", optimiser="heavy_ball", forgetting="scalar"),
    "dot_channel": dict(loss="dot", optimiser="heavy_ball", forgetting="channel"),
    "norm": dict(norm="query", optimiser="heavy_ball", forgetting="scalar", order="gradient_first"),
    "mlp_bias": dict(model="mlp_bias", loss="huber", huber_delta=0.75, activation="gelu"),
    "mlp_whole": dict(model="mlp", forgetting="scalar", read="after"),
    "swiglu": dict(model="swiglu", loss="dot", optimiser="heavy_ball"),
    "muon": dict(optimiser="muon", read="before", weight_norm="pre", ns_coefficients="muon"),
}
INEXACT = ("implicit", "implicit_bias", "norm", "mlp_bias", "muon")  # a quotient, a LayerNorm, two units, a root


def composed(op: Op, name: str) -> Op:
    """The op that the parts of that name make."""
    return chosen(op, {"chunk_size": MINI_BATCH, **COMPOSITIONS[name]})[0]


def in_the_core(op: Op) -> bool:
    """Whether it is a composition that the delta core solves."""
    rule = op.step.args[0] if isinstance(op.step, partial) else None
    return isinstance(rule, Rule) and bool(delta_core(rule))  # type: ignore[no-untyped-call]
