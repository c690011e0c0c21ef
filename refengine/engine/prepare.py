"""From a problem to its kernel family's inputs: pairing, norm, gates, then the op's own lowering. Every step carries
its error bound."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frontend.gates import log_decay, log_decay_doubled, step_size, step_size_doubled
from ..frontend.pairing import pair
from ..numbers.bounded import Bounded
from ..numbers.doubled import Doubled
from ..spec import Tensor
from .problem import Problem

Array = NDArray[Any]


def rank4(tensor: Tensor, array: Array) -> Array:
    """[B, T, heads, channels]: one channel where an input is one number a head, one row and token where it is one a
    head for all. What has more axes than that (the weights of a memory) stays as it is."""
    layout = tensor.layout(array.ndim) or ()
    if layout[0] != "B":
        return array[None, None, :, None] if layout == ("HV",) else array[None, None] if len(layout) == 2 else array
    return array[..., None] if array.ndim == 3 else array


def through_pairing(p: Problem, name: str, array: Array, pasts: dict[str, Array], number: type[Bounded]) -> Bounded:
    """Shift and convolution; entries of one token (DeltaProduct) are so many more heads of it."""
    if name not in p.pairing:
        return number.exact(array)
    D = array.shape[3]
    heads = p.pairing[name].past.shape[2] // D
    out, left = pair(array.reshape(array.shape[0], p.sizes["T"], heads, D), p.pairing[name], p.segments, number)
    pasts[name] = left.transpose(0, 2, 1)
    return out.shaped(lambda part: part.reshape(array.shape), out.error.reshape(array.shape[:3]))


def prepare(p: Problem) -> tuple[Any, dict[str, Array]]:
    """The family's inputs, and the tokens each paired tensor carries on to the next call."""
    pasts: dict[str, Array] = {}
    doubled = p.precision == "certified"
    number = Doubled if doubled else Bounded
    inputs: dict[str, Bounded | None] = {}
    for tensor in p.op.inputs:
        array = p.tensors.get(tensor.name)
        bounded = None if array is None else through_pairing(p, tensor.name, rank4(tensor, array), pasts, number)
        inputs[tensor.name] = bounded
        if p.norm is not None and bounded is not None and tensor.role in ("query", "key"):
            inputs[tensor.name] = p.norm(bounded)
    if p.gate is not None:
        a = p.gate.a if p.gate.a.ndim == 4 else p.gate.a[..., None]
        gates = log_decay_doubled if doubled else log_decay
        inputs[p.op.role("decay")[0].name] = gates(a, p.gate.A_log, p.gate.dt_bias, p.gate.lower_bound)
    if p.beta_logits is not None:
        logits = rank4(p.op.tensor("beta"), p.beta_logits)
        inputs["beta"] = (step_size_doubled if doubled else step_size)(logits, p.allow_neg_eigval)
    known: dict[str, Any] = {"convention": p.convention, **p.sizes, **p.options}
    return p.op.lower(inputs, **known), pasts


def scale_of(p: Problem) -> tuple[float, float]:
    """The scale, and how far it may be from the number it stands for, relative to it."""
    if p.scale is not None:
        return p.scale, 0.0
    if p.scale_is == "1":
        return 1.0, 0.0
    return float(1.0 / np.sqrt(np.float64(p.sizes["K"]))), 2.0 * 2.0**-53
