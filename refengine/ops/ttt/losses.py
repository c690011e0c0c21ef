"""The losses L(z, v) of what a memory answers, each by its gradient at z, in plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..parts import layer_norm_errors

EPS = 1e-6  # of the LayerNorm


@dataclass(frozen=True)
class Loss:
    kind: str  # what spec.FastWeights calls it
    equation: str
    slope: Callable[..., Any]  # (z, v, parameter)
    parameter: str = ""  # the option it has


def magnitude(x):
    """|x|, also of complex numbers near the real line, as complex steps are."""
    return np.where(x.real < 0, -x, x) if np.iscomplexobj(x) else np.abs(x)


def squared(z, v, _):
    return z - v


def dot(z, v, _):
    return -v


def huber(z, v, most):
    """z - v, kept between -most and most."""
    d = z - v
    return (magnitude(d + most) - magnitude(d - most)) / 2


def p_norm(z, v, p):
    d = z - v
    size = magnitude(d)
    for _ in range(p - 2):
        d = d * size
    return d


def normed(z, target, weight, bias):
    """Of 1/2 |LN(z) - target|^2."""
    return layer_norm_errors(z, target, weight, bias, EPS)


LOSSES = {
    "squared": Loss("squared", "1/2 |f(k) - v|^2", squared),
    "dot": Loss("dot", "-<f(k), v>", dot),
    "huber": Loss("huber", "sum of d^2 / 2 where |d| <= huber_delta, else huber_delta (|d| - huber_delta / 2), "
                  "d = f(k) - v", huber, "huber_delta"),
    "p_norm": Loss("power", "1/p sum |f(k) - v|^p, p = power", p_norm, "power"),
}  # fmt: skip
