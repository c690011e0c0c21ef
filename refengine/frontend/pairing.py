"""What predicts what: shifts, short convolutions and tied values, before the op.

A memory trained on pairs (k, v) and read with q predicts the offset sk - sv - sq, where sq, sk, sv are the shifts of
q, k, v: with all zero it predicts the present, with the key shifted by one the next token. A convolution on K is the
learnable form of that shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import conv as kernel
from ..numbers.bounded import Bounded
from ..numbers.doubled import Doubled

Segment = tuple[int, int, int]  # (row of the batch, first token, one past the last)


@dataclass(frozen=True)
class Conv:
    """A short depthwise causal convolution: y_t = act(sum_i weight[:, i] x_{t-W+1+i} + bias) (+ x_t with `residual`).

    weight [D, W], the current token's tap last, where D counts all channels of the tensor (heads * K, or heads * V);
    [heads, K, W] is taken too. bias [D] or None. activation "silu" (the field's default) or None. state [N, D, W -
    1]: the tokens before each sequence, newest last (flash-linear-attention's [N, D, W] is taken too; its oldest slot
    is never read); None for zeros. With a shift of n the state holds W - 1 + n tokens. Source: causal-conv1d,
    flash-linear-attention `ShortConvolution`.
    """

    weight: Any
    bias: Any = None
    activation: str | None = "silu"
    state: Any = None
    residual: bool = False


@dataclass(frozen=True)
class Paired:
    """One tensor's part of the pairing, checked and widened: weight [W, C] or None, bias [C], past [N, P, C]."""

    shift: int
    weight: NDArray[np.float64] | None
    bias: NDArray[np.float64] | None
    silu: bool
    residual: bool
    past: NDArray[np.float64]


def convolve_doubled(early: NDArray[np.float64], rule: Paired, heads: int) -> Doubled:
    """`Conv` in double-double, of one sequence [T + W - 1, C] that begins W - 1 tokens early: [1, T, heads, D]."""
    assert rule.weight is not None and rule.bias is not None
    W, C = rule.weight.shape

    def exact(x: NDArray[np.float64]) -> Doubled:
        return Doubled.exact(x.reshape(1, -1, heads, C // heads))

    T = len(early) - W + 1
    z = exact(np.repeat(rule.bias[None], T, axis=0))
    for i in range(W):
        z = z + exact(rule.weight[i]) * exact(early[i : i + T])
    z = z * z.sigmoid() if rule.silu else z
    return z + exact(early[W - 1 :]) if rule.residual else z


def pair(
    x: NDArray[Any], rule: Paired, segments: Sequence[Segment], number: type[Bounded] = Bounded
) -> tuple[Bounded, NDArray[np.float64]]:
    """Shifted and convolved x [B, T, heads, D], and the tokens [N, P, C] that the next call needs before it."""
    B, T, H, D = x.shape
    flat = np.ascontiguousarray(x, dtype=np.float64).reshape(B, T, H * D)
    y, low, error = np.empty_like(flat), np.zeros_like(flat), np.zeros((B, T, H))
    left = np.empty_like(rule.past)
    scratch = np.empty((2, H * D))
    for n, (b, t0, t1) in enumerate(segments):
        early = np.concatenate([rule.past[n], flat[b, t0:t1]])
        left[n] = early[t1 - t0 :]
        early = early[: len(early) - rule.shift]
        if rule.weight is None:
            y[b, t0:t1] = early
        elif number is Doubled:
            z = convolve_doubled(early, rule, H)
            y[b, t0:t1], low[b, t0:t1] = (part.reshape(-1, H * D) for part in z.parts)
            error[b, t0:t1] = z.error[0]
        else:
            kernel.short_conv(
                early, rule.weight, rule.bias, rule.silu, rule.residual, y[b, t0:t1], error[b, t0:t1], scratch
            )
    parts = (y, low) if number is Doubled else (y,)
    return number.of(tuple(part.reshape(x.shape) for part in parts), error), left
