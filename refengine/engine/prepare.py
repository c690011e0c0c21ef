"""From a problem to its kernel family's inputs: pairing, norm, gates, then the op's own lowering. Every step carries
its error bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frontend.gates import log_decay, step_size
from ..frontend.pairing import pair
from ..numbers.bounded import Bounded
from ..numbers.doubled import Doubled
from ..spec import Tensor
from .device import convolver
from .problem import Problem

Array = NDArray[Any]
CONVS = {"query": "q", "key": "k", "value": "v"}  # which convolution is whose


def rank4(tensor: Tensor, array: Array) -> Array:
    """[B, T, heads, channels]: one channel where an input is one number a head, one row and token where it is one a
    head for all. What has more axes than that (the weights of a memory) stays as it is."""
    layout = tensor.layout(array.ndim) or ()
    if layout[0] != "B":
        return array[None, None, :, None] if layout == ("HV",) else array[None, None] if len(layout) == 2 else array
    return array[..., None] if array.ndim == 3 else array


def prepare(p: Problem, number: Callable[[str, Array], Any] | None = None) -> tuple[Any, dict[str, Array]]:
    """The family's inputs, and the tokens each paired tensor carries on to the next call. `number` makes a number of
    every array that somebody gave, which it is told the name of; None for those of the problem's precision."""
    kind = Doubled if p.precision == "certified" else Bounded
    number = number or (lambda name, array: kind.exact(array))
    pasts: dict[str, Array] = {}
    inputs: dict[str, Any] = {}
    tied = p.asked.tie_values
    for tensor in p.op.inputs:
        array = p.tensors.get(tensor.name)
        x = None if array is None else number("k" if tied and tensor.name == "v" else tensor.name, rank4(tensor, array))
        if x is not None and tensor.name in p.pairing:
            rule = p.pairing[tensor.name]
            parts = {f"pairing_state.{tensor.name}": by_head(rule.past, x)}
            if rule.weight is not None and rule.bias is not None:
                conv = f"conv_{CONVS[tensor.role]}"
                parts |= {f"{conv}.weight": by_head(rule.weight, x), f"{conv}.bias": by_head(rule.bias[None], x)}
            x, left = pair(x, rule, p.segments, [number(*part) for part in parts.items()], convolver(p))
            pasts[tensor.name] = left.transpose(0, 2, 1)
        if p.norm is not None and x is not None and tensor.role in ("query", "key"):
            x = p.norm(x)
        inputs[tensor.name] = x
    if p.gate is not None:
        a = p.gate.a if p.gate.a.ndim == 4 else p.gate.a[..., None]
        A_log = None if p.gate.A_log is None else number("gate.A_log", p.gate.A_log[None, None, :, None])
        dt_bias = None if p.gate.dt_bias is None else number("gate.dt_bias", p.gate.dt_bias[None, None])
        inputs[p.op.role("decay")[0].name] = log_decay(number("gate.a", a), A_log, dt_bias, p.gate.lower_bound)
    if p.beta_logits is not None:
        logits = number("beta_logits", rank4(p.op.tensor("beta"), p.beta_logits))
        inputs["beta"] = step_size(logits, p.allow_neg_eigval)
    known: dict[str, Any] = {"convention": p.convention, **p.sizes, **p.options}
    return p.op.lower(inputs, **known), pasts


def by_head(x: Array, like: Any) -> Array:
    """[..., C] as [..., heads, D], with the channels D of `like`."""
    D = like.value.shape[3]
    return x.reshape(*x.shape[:-1], x.shape[-1] // D, D)


def scale_of(p: Problem) -> tuple[float, float]:
    """The scale, and how far it may be from the number it stands for, relative to it."""
    if p.scale is not None:
        return p.scale, 0.0
    if p.scale_is == "1":
        return 1.0, 0.0
    return float(1.0 / np.sqrt(np.float64(p.sizes["K"]))), 2.0 * 2.0**-53
