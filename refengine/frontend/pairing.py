"""What predicts what: shifts, short convolutions and tied values, before the op.

A memory trained on pairs (k, v) and read with q predicts the offset sk - sv - sq, where sq, sk, sv are the shifts of
q, k, v: with all zero it predicts the present, with the key shifted by one the next token. A convolution on K is the
learnable form of that shift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import conv as kernel
from ..kernels import elementwise
from ..numbers.bounded import UP, Array, Bounded, U, apply, row_norm
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
    x: Any, rule: Paired, segments: Sequence[Segment], parts: Sequence[Any], convolve: Callable[..., None]
) -> tuple[Any, NDArray[np.float64]]:
    """Shifted and convolved x, and the tokens [N, P, C] that the next call needs before it.

    x [B, T, heads, D]; entries of one token (DeltaProduct: [B, T * n, heads, D]) are so many more heads of it. `parts`
    are the numbers behind `rule`: past, and with a convolution its weight and bias. `convolve` is
    `kernels.conv.short_conv`, or what does the same on another device.
    """
    shape, C = x.value.shape, rule.past.shape[2]
    B, D = shape[0], shape[3]
    flat = (
        np.ascontiguousarray(x.value, dtype=np.float64).reshape(B, -1, C) if x.value.size else x.value.reshape(B, 0, C)
    )
    doubled = isinstance(x, Doubled)
    y, low, error = np.empty_like(flat), np.zeros_like(flat), np.zeros((*flat.shape[:2], C // D))
    left = np.empty_like(rule.past)
    scratch = np.empty((2, C))
    for n, (b, t0, t1) in enumerate(segments):
        early, left[n] = before(flat, rule, n, segments[n])
        if rule.weight is None:
            y[b, t0:t1] = early
        elif doubled:
            z = convolve_doubled(early, rule, C // D)
            y[b, t0:t1], low[b, t0:t1] = (part.reshape(-1, C) for part in z.parts)
            error[b, t0:t1] = z.error[0]
        else:
            convolve(early, rule.weight, rule.bias, rule.silu, rule.residual, y[b, t0:t1], error[b, t0:t1], scratch)

    def pull(d: Bounded) -> tuple[Bounded, ...]:
        given = Bounded(d.value.reshape(*flat.shape[:2], C // D, D), d.error.reshape(*flat.shape[:2], C // D))
        dx, *rest = unpair(given, flat, rule, segments)
        return (Bounded(dx.value.reshape(shape), dx.error.reshape(shape[:3])), *rest[: len(parts)])

    found = tuple(part.reshape(shape) for part in ((y, low) if doubled else (y,)))
    return x.derive(x.plain.of(found, error.reshape(shape[:3])), pull, *parts), left


def before(flat: Array, rule: Paired, n: int, segment: Segment) -> tuple[Array, Array]:
    """What one sequence's convolution reads, W - 1 tokens early, and what the next call needs before it."""
    b, t0, t1 = segment
    early = np.concatenate([rule.past[n], flat[b, t0:t1]])
    return early[: len(early) - rule.shift], early[t1 - t0 :]


def unpair(d: Bounded, flat: Array, rule: Paired, segments: Sequence[Segment]) -> tuple[Bounded, ...]:
    """The transpose of `pair`: cotangents of x, past, weight and bias from that of y, [B, T, heads, D]."""
    heads, D = d.value.shape[2:]
    N, P, _ = rule.past.shape
    W = 1 if rule.weight is None else rule.weight.shape[0]
    dx = Bounded.exact(np.zeros(d.value.shape))
    past = Bounded.exact(np.zeros((N, P, heads, D)))
    taps = [Bounded.exact(np.zeros((1, heads, D)))] * W
    bias = taps[0]
    for n, segment in enumerate(segments):
        b, t0, t1 = segment
        T = t1 - t0
        dy = Bounded(d.value[b, t0:t1], d.error[b, t0:t1])
        early, _ = before(flat, rule, n, segment)
        owed = Bounded.exact(np.zeros((T + P, heads, D)))
        if rule.weight is None:
            owed = owed.plus(dy, 0)
        else:
            dz = dy if not rule.silu else dy * bend(early, rule, T, heads)
            for i, tap in enumerate(rule.weight.reshape(W, heads, D)):
                owed = owed.plus(dz * Bounded.exact(tap), i)
                taps[i] = taps[i] + (dz * Bounded.exact(early[i : i + T].reshape(T, heads, D))).along(0)
            bias = bias + dz.along(0)
            owed = owed.plus(dy, W - 1) if rule.residual else owed
        past.value[n], past.error[n] = owed.value[:P], owed.error[:P]
        dx.value[b, t0:t1], dx.error[b, t0:t1] = owed.value[P:], owed.error[P:]
    weight = Bounded(np.concatenate([x.value for x in taps]), np.concatenate([x.error for x in taps]))
    return dx, past, weight, bias


def bend(early: Array, rule: Paired, T: int, heads: int) -> Bounded:
    """The slope of SiLU, s (1 + z (1 - s)), s = sigmoid(z), at every z of a sequence; it moves by at most dz / 2."""
    C = early.shape[1]
    z, error, scratch = np.empty((T, C)), np.zeros((T, heads)), np.empty((2, C))
    kernel.short_conv(early, rule.weight, rule.bias, False, False, z, error, scratch)
    s, rest = apply(elementwise.sigmoid, z), apply(elementwise.sigmoid, -z)
    value = (s + z * (s * rest)).reshape(T, heads, C // heads)
    return Bounded(value, 0.5 * error * UP + 8 * U * np.sqrt(C // heads) + row_norm(value) * 4 * U)
