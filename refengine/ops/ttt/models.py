"""The models f(W; x) that a memory can be, each with the gradient of a loss by its weights: one token, plain
arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..parts import gelu, gelu_slope, silu, silu_slope

ACTIVATIONS = {"silu": (silu, silu_slope), "gelu": (gelu, gelu_slope)}


@dataclass(frozen=True)
class Weight:
    """One array of a model: its axes without the head, what the kernel calls it, whose step it takes (0: theta, 1:
    theta_out, 2: theta_up), and the axis that a unit's inputs lie on (None: a bias)."""

    name: str
    axes: str
    slot: str
    step: int
    inputs: int | None


@dataclass(frozen=True)
class Model:
    """answer(W, x, activation) is f(x); gradients(W, x, slope, activation) those of the loss by each weight, where
    slope(z) is the gradient by z = f(x)."""

    kind: str  # what spec.FastWeights calls it
    equation: str
    weights: tuple[Weight, ...]
    answer: Callable[..., Any]
    gradients: Callable[..., Any]

    @property
    def biased(self) -> bool:
        return any(w.inputs is None for w in self.weights)


def outer(a, e):
    return a[:, None] * e


def linear(W, x, _):
    return x @ W[0]


def linear_gradients(W, x, slope, _):
    return (outer(x, slope(x @ W[0])),)


def affine(W, x, _):
    return x @ W[0] + W[1]


def affine_gradients(W, x, slope, _):
    e = slope(x @ W[0] + W[1])
    return outer(x, e), e


def layers(W, x, activation):
    w1, b1, w2, b2 = W
    return ACTIVATIONS[activation][0](x @ w1 + b1) @ w2 + b2


def layers_gradients(W, x, slope, activation):
    w1, b1, w2, b2 = W
    act, rise = ACTIVATIONS[activation]
    hidden = x @ w1 + b1
    seen = act(hidden)
    e2 = slope(seen @ w2 + b2)
    e1 = (w2 @ e2) * rise(hidden)
    return outer(x, e1), e1, outer(seen, e2), e2


def plain_layers(W, x, activation):
    return layers((W[0], 0, W[1], 0), x, activation)


def plain_layers_gradients(W, x, slope, activation):
    d1, _, d2, _ = layers_gradients((W[0], 0, W[1], 0), x, slope, activation)
    return d1, d2


def swiglu(W, x, _):
    w0, w1, w2 = W
    return w1 @ (silu(w0 @ x) * (w2 @ x))


def swiglu_gradients(W, x, slope, _):
    w0, w1, w2 = W
    gate, up = w0 @ x, w2 @ x
    seen = silu(gate) * up
    e = slope(w1 @ seen)
    back = e @ w1
    return outer(back * up * silu_slope(gate), x), outer(e, seen), outer(back * silu(gate), x)


W1, W2 = Weight("w1", "K R", "W1", 0, 0), Weight("w2", "R V", "W2", 1, 0)
MODELS = {
    "linear": Model("linear", "f(x) = w' x", (Weight("w", "K V", "W2", 1, 0),), linear, linear_gradients),
    "linear_bias": Model(
        "linear",
        "f(x) = w' x + b",
        (Weight("w", "K V", "W2", 1, 0), Weight("b", "V", "b2", 1, None)),
        affine,
        affine_gradients,
    ),
    "mlp": Model("mlp", "f(x) = w2' act(w1' x)", (W1, W2), plain_layers, plain_layers_gradients),
    "mlp_bias": Model(
        "mlp",
        "f(x) = w2' act(w1' x + b1) + b2",
        (W1, Weight("b1", "R", "b1", 0, None), W2, Weight("b2", "V", "b2", 1, None)),
        layers,
        layers_gradients,
    ),
    "swiglu": Model(
        "swiglu",
        "f(x) = w1 (silu(w0 x) * (w2 x))",
        (
            Weight("w0", "R K", "gate", 0, 1),
            Weight("w1", "V R", "down", 1, 1),
            Weight("w2", "R K", "up", 2, 1),
        ),
        swiglu,
        swiglu_gradients,
    ),
}
