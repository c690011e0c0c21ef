"""The learners compared: an op with its step, decay and ridge held constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ops

Array = NDArray[Any]


@dataclass(frozen=True)
class Learner:
    """constants: inputs of the op besides q, k, v: a number, one a channel, or a matrix, the same for every token and
    head. start: the op's states before the first token, if not zero, the same for every head. options: its own."""

    label: str
    op: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    start: Sequence[Array] = ()
    scale: float = 1.0

    def arguments(self, q: Array, k: Array, v: Array) -> dict[str, Any]:
        """What `solve` takes. q, k [B, T, H, K], v [B, T, H, V]."""
        B, T, H, K = k.shape
        sizes = {"B": B, "T": T, "H": H, "HV": v.shape[2], "K": K, "V": v.shape[3]}
        filled = {}
        for name, value in self.constants.items():
            axes = ops.get(self.op).tensor(name).axes[0].split()
            constant = np.asarray(value, np.float64)
            own = (1,) * (len(axes) - constant.ndim) + constant.shape  # an axis of the op's own is as long as given
            shape = [sizes.get(axis, size) for axis, size in zip(axes, own, strict=True)]
            filled[name] = np.broadcast_to(constant, shape)
        return {"q": q, "k": k, "v": v, "scale": self.scale, **filled, **self.options}

    def starting(self, heads: int) -> dict[str, Any]:
        """Where it starts, unless at zero."""
        state = tuple(np.broadcast_to(x, (heads, *x.shape)) for x in self.start)
        return {"initial_state": state} if state else {}


def linear() -> Learner:
    return Learner("linear attention", "linear_attn")


def delta(beta: float) -> Learner:
    return Learner(f"DeltaNet β={beta:g}", "delta_rule", {"beta": beta})


def gated_delta(beta: float, alpha: float) -> Learner:
    return Learner(f"Gated DeltaNet β={beta:g} α={alpha:g}", "gated_delta_rule", {"beta": beta, "g": log(alpha)})


def kimi(beta: float, alpha: Array) -> Learner:
    return Learner(f"KDA β={beta:g} α={alpha[0]:.2g}–{alpha[-1]:.2g}", "kda", {"beta": beta, "g": np.log(alpha)})


def comba(beta: float, alpha: float) -> Learner:
    return Learner(f"Comba β={beta:g} α={alpha:g}", "comba", {"beta": beta, "g": log(alpha)})


def mesa(lamb: float, beta: float = 1.0, gamma: float = 1.0) -> Learner:
    return Learner(f"Mesa λ={lamb:g}", "mesa_net", {"beta": beta, "g": log(gamma), "lamb": lamb})


def softmax(scale: float) -> Learner:
    return Learner("softmax attention", "softmax_attention", scale=scale)


def titans(theta: float, eta: float) -> Learner:
    return Learner(f"Titans θ={theta:g} η={eta:g}", "titans", {"alpha": 0.0, "eta": eta, "theta": theta})


def ttt(rng: np.random.Generator, channels: int, eta: float, size: float) -> Learner:
    """From random weights of that size: at zero the LayerNorm has no direction to start in."""
    start = size * rng.standard_normal((channels, channels)), np.zeros(channels)
    constants = {"w": 1 / sqrt(channels), "b": 0.0, "eta": eta}
    return Learner(f"TTT-Linear η={eta:g}", "ttt_linear", constants, {"chunk_size": 16}, start)


def lact(rng: np.random.Generator, channels: int, hidden: int) -> Learner:
    """With Muon, which leaves no step size to choose."""
    gate, up = rng.standard_normal((2, hidden, channels))
    down = rng.standard_normal((channels, hidden)) / sqrt(hidden)
    constants = {"w0": gate, "w1": down, "w2": up, "lr0": 0.01, "lr1": 0.01, "lr2": 0.01}
    return Learner("LaCT, Muon", "lact", constants, {"chunk_size": 64})
