"""`refengine.grad`: exact vector-Jacobian products of everything `solve` computes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..io.interop import to_numpy
from ..numbers.bounded import Bounded
from ..numbers.traced import Traced, leaf, pull_back
from ..spec import Delta, FastWeights, Mesa, Softmax
from .axes import shape_text
from .checks import floats
from .delta import certain
from .device import GRADIENTS, home
from .prepare import prepare
from .problem import Asked, Problem, build
from .run import Progress
from .solution import Cotangents

Array = NDArray[Any]
FAMILIES: dict[type, str] = {
    Delta: ".delta_grad",
    FastWeights: ".fast_weights_grad",
    Mesa: ".mesa_grad",
    Softmax: ".softmax_grad",
}  # where the `adjoint` of what an op lowers to is
WITHOUT = ("states_at", "form")  # of `solve`: nothing to differentiate, or only one


@dataclass(frozen=True)
class Gradient(Mapping[str, Array]):
    """What `grad` returns: a mapping from the name of an input to its gradient, float64, in the shape of that input.

    Besides the op's inputs: "initial_state" [N, HV, K, V] (of several states "initial_state.NAME"), "conv_k.weight"
    [channels, width], "conv_k.bias", "gate.a", "gate.A_log", "gate.dt_bias", "beta_logits", and "pairing_state.NAME"
    [N, channels, width - 1 + shift] of a shifted or convolved tensor, where they take part, given or not.

    bound: of an input [B, T, heads, channels] [B, T, heads], of "initial_state" [N, HV, V] (the Euclidean norm of that
    column's error), else in the shape of the input: no entry of that row is further than this from the exact gradient
    for the inputs as given. info["certificate"] says whether that is proved ("rigorous") or compared.

    condition: of each gate and step size of the delta core, entry by entry, how many times larger the terms of its sum
    are together than the sum: the factor by which cancellation alone makes another computation of the same gradient
    worse. info: how it ran.
    """

    gradients: dict[str, Array]
    bound: dict[str, Array] = field(default_factory=dict)
    condition: dict[str, Array] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        return self.gradients[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.gradients)

    def __len__(self) -> int:
        return len(self.gradients)


def grad(
    op: str,
    *,
    do: Any = None,
    dht: Any = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **arguments: Any,
) -> Gradient:
    """What a loss owes to every input: the gradients of <do, o> + <dht, final_state>, exact but for rounding.

    Parameters
    ----------
    op, **arguments
        As `refengine.solve` takes them, except states_at and form.
    do
        [B, T, HV, V]: the loss's gradient in the outputs; None for zeros.
    dht
        [N, HV, K, V]: its gradient in the final state; None for zeros. Where the op carries several states, a tuple
        in their order, or a mapping by their names.
    threads, progress
        As in `refengine.solve`; the answer has the same bits for any number of threads.

    Returns
    -------
    Gradient
        A mapping: g["q"], g["initial_state"], g["conv_k.weight"], ...

    Raises
    ------
    refengine.InputError
        A tensor or option does not fit; one sentence that names it, the axis and both numbers.
    """
    for name in WITHOUT:
        if name in arguments:
            raise InputError(f"grad takes no {name!r}.")
    if do is None and dht is None:
        raise InputError("do and dht are both missing: nothing is asked of the outputs or of the final state.")
    known = {f.name for f in fields(Asked)}
    tensors = {name: x for name, x in arguments.items() if name not in known}
    p = build(op, tensors, Asked(**{name: x for name, x in arguments.items() if name in known}))
    return of_problem(p, do, dht, threads, progress)


def of_problem(
    p: Problem, do: Any = None, dht: Any = None, threads: int | None = None, progress: Progress | None = None
) -> Gradient:
    """The same, of a problem that has been checked."""
    clock = time.perf_counter()
    if p.precision == "certified":
        raise InputError("grad has no precision 'certified' in this version; it has 'float64' and 'float32'.")
    B, T, HV, V = (p.sizes[letter] for letter in ("B", "T", "HV", "V"))
    asked = np.zeros((B, T, HV, V), p.precision) if do is None else like("do", do, (B, T, HV, V), "[B, T, HV, V]", p)
    leaves: dict[str, Traced] = {}
    lowered, _ = prepare(p, lambda name, array: leaves.setdefault(name, leaf(array)))
    if type(lowered) not in FAMILIES:
        raise InputError(f"{p.op.name} has no gradient in this version.")
    on_gpu, why_not = home(p, lowered, GRADIENTS)
    family = import_module(on_gpu or FAMILIES[type(lowered)], __package__)
    found: Cotangents = family.adjoint(p, lowered, asked, last_states(p, dht), threads, progress)
    owed = transposed(lowered, found.operands) | {leaves[name].serial: x for name, x in found.inputs.items()}
    for tensor in p.op.inputs:
        if tensor.integer:
            leaves.pop(tensor.name, None)
    owing = {name: owed[x.serial] if x.serial in owed else x.number.filled(0.0) for name, x in leaves.items()}
    gradients = {name: as_given(p, name, x.value) for name, x in owing.items()}
    bound = {name: bound_as_given(p, name, x, gradients[name]) for name, x in owing.items()}
    names = ("initial_state",) if len(p.op.states) == 1 else tuple(f"initial_state.{t.name}" for t in p.op.states)
    gradients |= {name: x.astype(np.float64, copy=False) for name, x in zip(names, found.initial, strict=True)}
    bound |= {
        name: certain(wrong, np.isfinite(x).all(axis=2))
        for name, x, wrong in zip(names, found.initial, found.initial_bound, strict=True)
    }
    ran: dict[str, Any] = {
        "plan": tuple(dict.fromkeys([*([why_not] if why_not else []), *(y for x in found.plans for y in x.lines())])),
        "device": "cuda" if on_gpu else "cpu",
        "threads": max(part.threads for part in found.plans),
        "seconds": time.perf_counter() - clock,
        "certificate": found.certificate,
    }
    if found.seconds_forward is not None:
        ran["seconds_forward"] = found.seconds_forward
    return Gradient(gradients, bound, condition(p, lowered, found, leaves, gradients), p.conventions() | ran)


def like(name: str, value: Any, shape: tuple[int, ...], meaning: str, p: Problem) -> Array:
    """A cotangent, of the shape of what it is one of."""
    x = floats(name, value, p.asked.allow_nonfinite)
    if x.shape != shape:
        raise InputError(f"{name} has shape {shape_text(x)}; it is {meaning} = {list(shape)}.")
    return x


def last_states(p: Problem, dht: Any) -> tuple[Array | None, ...]:
    """What is asked of each of the op's final states."""
    states = p.op.states
    if dht is None:
        return (None,) * len(states)
    given = [dht] if len(states) == 1 else [dht.get(t.name) for t in states] if isinstance(dht, Mapping) else list(dht)
    if len(given) != len(states):
        raise InputError(f"dht has {len(given)} parts; {p.op.name} carries {len(states)} states.")
    names = ["dht"] if len(states) == 1 else [f"dht.{t.name}" for t in states]
    shapes = [tuple(p.sizes[letter] for letter in t.axes[0].split()) for t in states]
    return tuple(
        None if x is None else like(name, x, shape, f"[{', '.join(t.axes[0].split())}]", p)
        for name, x, shape, t in zip(names, given, shapes, states, strict=True)
    )


def transposed(lowered: Any, operands: Mapping[str, Bounded]) -> dict[int, Bounded]:
    """The cotangents of everything before the family, from those of its operands; "theta.1" is the second of theta."""
    numbers = {}
    for name in operands:
        whole, _, index = name.partition(".")
        numbers[name] = getattr(lowered, whole)[int(index)] if index else getattr(lowered, whole)
    return pull_back([(x, operands[name]) for name, x in numbers.items() if isinstance(x, Traced)])


def bound_as_given(p: Problem, name: str, x: Bounded, gradient: Array) -> Array:
    """How far a gradient may be off: a number a row of channels where it has rows, else a number an entry."""
    error = certain(x.error, finite_rows(x.value))
    if gradient.ndim == 4 and "." not in name:
        return error
    return as_given(p, name, np.broadcast_to(error[..., None], x.value.shape))


def finite_rows(value: Array) -> Array:
    """Which rows are finite through and through."""
    with np.errstate(all="ignore"):
        finite = np.asarray(np.isfinite(value.sum(axis=-1)))  # finite only if every entry is
    return finite if finite.all() else np.asarray(np.isfinite(value).all(axis=-1))


def as_given(p: Problem, name: str, value: Array) -> Array:
    """Numbers as the tape has them in the shape of the input they belong to."""
    value = np.ascontiguousarray(value, dtype=np.float64)
    owner, _, part = name.partition(".")
    if owner == "pairing_state":  # [N, P, heads, D]
        return np.ascontiguousarray(value.reshape(*value.shape[:2], -1).transpose(0, 2, 1))
    if part:
        conv = owner.startswith("conv_")
        value = np.ascontiguousarray(np.moveaxis(value, 0, -1)) if conv else value  # [width, heads, D]
        given = getattr(getattr(p.asked, owner), part)
        return value.reshape(-1 if given is None else np.shape(to_numpy(given, name)))
    given = p.beta_logits if name == "beta_logits" else p.tensors[name]
    return value if given is None else value.reshape(given.shape)


def condition(
    p: Problem, lowered: Any, found: Cotangents, leaves: Mapping[str, Traced], gradients: Mapping[str, Array]
) -> dict[str, Array]:
    """Of gates and step sizes, how much larger the terms of a gradient are than the gradient. Each operand's path to
    them only scales and adds terms of one sign, so their sizes go the same way, an operand at a time."""
    names = [t.name for t in p.op.inputs if t.role == "decay" or t.name == "beta"]
    total: dict[str, Array] = {}
    for operand, size in found.sizes.items():
        owed = transposed(lowered, {operand: Bounded.exact(size)})
        for name in (*names, "gate.a", "gate.A_log", "gate.dt_bias", "beta_logits"):
            if name in leaves and leaves[name].serial in owed:
                total[name] = total.get(name, 0) + np.abs(as_given(p, name, owed[leaves[name].serial].value))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {n: np.where(x > 0, np.maximum(x / np.abs(gradients[n]), 1.0), 1.0) for n, x in total.items()}
