"""A problem: every input checked, widened exactly and laid out, every convention spelled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..errors import GrowingGateWarning, InputError, StepSizeWarning, nearest
from ..frontend.gates import Gate
from ..frontend.norm import L2Norm
from ..frontend.pairing import Conv, Paired, Segment
from ..spec import Op
from .axes import Sizes, measure, shape_text
from .checks import chosen, finite, fit, floats, integers, offsets, one_of, room, schedule, states, stops, unused, whole


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of one call of `solve`, as given, under its names and with its defaults."""

    scale: float | None = None
    initial_state: Any = None
    cu_seqlens: Any = None
    use_qk_l2norm: bool | L2Norm = False
    key_shift: int = 0
    query_shift: int = 0
    value_shift: int = 0
    tie_values: bool = False
    conv_q: Conv | None = None
    conv_k: Conv | None = None
    conv_v: Conv | None = None
    pairing_state: Mapping[str, Any] | None = None
    gate: Gate | None = None
    beta_logits: Any = None
    allow_neg_eigval: bool = False
    precision: str = "float64"
    device: str = "cpu"
    form: str = "auto"
    convention: str | None = None
    states_at: Sequence[int] | None = None
    allow_nonfinite: bool = False


PRECISIONS = ("float64", "float32", "certified")
DEVICES = ("cpu", "cuda", "auto")
FORMS = ("auto", "recurrent")


@dataclass(frozen=True)
class Problem:
    """What `solve` was asked. Tensors are as given, but exactly widened to float32 or float64; `None` stands for an
    absent option."""

    op: Op
    tensors: Mapping[str, NDArray[Any]]
    sizes: Sizes
    segments: tuple[Segment, ...]
    initial: tuple[NDArray[Any] | None, ...]  # one for each of the op's states
    convention: str
    scale: float | None
    options: Mapping[str, Any]
    pairing: Mapping[str, Paired] = field(default_factory=dict)
    norm: L2Norm | None = None
    gate: Gate | None = None
    beta_logits: NDArray[Any] | None = None
    states_at: tuple[int, ...] = ()
    asked: Asked = field(default_factory=Asked)

    @property
    def precision(self) -> str:
        return self.asked.precision

    @property
    def allow_neg_eigval(self) -> bool:
        return self.asked.allow_neg_eigval

    @property
    def title(self) -> str:
        """The op; of one that its options compose, with those that are not as they are by default."""
        rules = self.op.options if self.op.compose else {}
        chosen = [f"{name} {self.options[name]}" for name, rule in rules.items() if self.options[name] != rule.default]
        return f"{self.op.name} with {', '.join(chosen)}" if chosen else self.op.name

    @property
    def initial_state(self) -> NDArray[Any] | None:
        """Where the op has one state: its start."""
        return self.initial[0] if self.initial else None

    def batches(self, t0: int, t1: int) -> list[tuple[int, int, bool, bool]]:
        """Tokens t0 .. t1 of a row in mini-batches: (first, one past the last, update, apply). Where the op takes a
        schedule, a mini-batch that is not full does not update."""
        size = self.options.get("chunk_size", max(t1 - t0, 1)) if self.op.chunked else 1
        always = not self.op.scheduled
        return [(t, min(t + size, t1), always or t + size <= t1, True) for t in range(t0, t1, size)]

    def mini_batches(self, n: int) -> list[tuple[int, int, bool, bool]]:
        """Those of one sequence, or what its schedule says."""
        _, t0, t1 = self.segments[n]
        if "schedule" not in self.tensors:
            return self.batches(t0, t1)
        return [(t0 + int(a), t0 + int(b), bool(u), bool(x)) for a, b, u, x in self.tensors["schedule"]]

    @property
    def scale_is(self) -> str:
        """What scale=None means here: "K^-1/2" or "1"."""
        return self.op.scale_of.get(self.convention, self.op.scale)

    def conventions(self) -> dict[str, Any]:
        """Everything needed to ask the same again, spelled."""
        said: dict[str, Any] = {
            "op": self.op.name,
            "convention": self.convention,
            "scale": self.scale_is if self.scale is None else self.scale,
        }
        said |= dict(self.options)
        kept = ("key_shift", "query_shift", "value_shift", "tie_values", "allow_neg_eigval", "allow_nonfinite")
        said |= {name: getattr(self.asked, name) for name in kept}
        said |= {"use_qk_l2norm": self.norm is not None, "states_at": list(self.states_at)}
        if self.norm:
            said |= {"l2norm_eps": self.norm.eps, "l2norm_place": self.norm.place}
        for name, rule in self.pairing.items():
            if rule.weight is not None:
                kind = "silu" if rule.silu else "no activation"
                said[f"conv_{name}"] = f"width {rule.weight.shape[0]}, {kind}{', residual' if rule.residual else ''}"
        if self.gate is not None:
            said["gate"] = (
                "softplus" if self.gate.lower_bound is None else f"sigmoid, lower bound {self.gate.lower_bound}"
            )
        if self.beta_logits is not None:
            said["beta"] = "2 sigmoid(beta_logits)" if self.allow_neg_eigval else "sigmoid(beta_logits)"
        return said | {"precision": self.precision, "device": self.asked.device}


def paired(
    name: str,
    tensor: NDArray[Any],
    shift: int,
    conv: Conv | None,
    state: Any,
    count: int,
    micro: int,
    allow_nonfinite: bool,
) -> Paired:
    """One tensor's shift and convolution, checked against its heads and channels."""
    channels = micro * tensor.shape[-2] * tensor.shape[-1]
    weight = bias = None
    width = 1
    if conv is not None:
        if not isinstance(conv, Conv):
            raise InputError(
                f"conv_{name} is a {type(conv).__name__}; it is a refengine.Conv(weight, bias, activation, state)."
            )
        if conv.activation not in ("silu", "swish", None):
            known = nearest(str(conv.activation), ("silu", "swish"))
            raise InputError(f"conv_{name} has no activation {conv.activation!r}{known}, or None.")
        given = floats(f"conv_{name}.weight", conv.weight, allow_nonfinite)
        width = given.shape[-1] if given.ndim else 0
        if width == 0:
            raise InputError(
                f"conv_{name}.weight has shape {shape_text(given)}; it is [channels, width] with a width of at least 1."
            )
        weight = np.ascontiguousarray(fit(f"conv_{name}.weight", given, (channels, width), "[channels, width]").T)
        bias = np.zeros(channels)
        if conv.bias is not None:
            bias = fit(
                f"conv_{name}.bias", floats(f"conv_{name}.bias", conv.bias, allow_nonfinite), (channels,), "[channels]"
            )
        if conv.state is not None and state is not None:
            raise InputError(f"conv_{name}.state and pairing_state[{name!r}] are both given; they are the same thing.")
        state = conv.state if state is None else state
    reach = shift + width - 1
    room(
        f"The {reach} tokens before each sequence that {name}'s shift and convolution look back to",
        count * reach * channels,
        [tensor],
        times=64,
    )
    past = np.zeros((count, reach, channels))
    if state is not None:
        given = floats(f"conv_{name}.state", state, allow_nonfinite)
        if given.ndim >= 3 and given.shape[-1] == reach + 1:
            given = given[..., 1:]  # flash-linear-attention keeps one slot more, which is never read
        past = np.ascontiguousarray(
            fit(f"conv_{name}.state", given, (count, channels, reach), "[N, channels, width - 1 + shift]").transpose(
                0, 2, 1
            )
        )
    return Paired(
        shift, weight, bias, conv is not None and conv.activation is not None, conv is not None and conv.residual, past
    )


def take(
    op: Op, given: Mapping[str, Any], implied: set[str], allow_nonfinite: bool, options: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """The op's inputs among the arguments, every one accounted for."""
    names = [t.name for t in op.inputs]
    for name in given:
        if name not in names:
            known = [*names, *op.options, *(f.name for f in fields(Asked))]
            raise InputError(f"{op.name} takes no {name!r}{unused(op, options, name) or nearest(name, known)}.")
    tensors = {
        t.name: integers(t.name, given[t.name]) if t.integer else floats(t.name, given[t.name], allow_nonfinite)
        for t in op.inputs
        if given.get(t.name) is not None
    }
    for tensor in op.inputs:
        if tensor.required and tensor.name not in tensors and tensor.name not in implied:
            raise InputError(
                f"{op.name} needs {tensor.name} [{', '.join(tensor.axes[0].split())}] ({tensor.doc}), which is missing."
            )
    return tensors


def gather(
    op: Op, given: Mapping[str, Any], asked: Asked, options: Mapping[str, Any]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The op's inputs, and what stands in for them: `gate` for the log decay, `beta_logits` for beta, the keys for
    tied values."""
    names = [t.name for t in op.inputs]
    decay = op.role("decay")
    stand_ins: dict[str, Any] = {}
    implied = set()
    if asked.gate is not None:
        stand_ins["gate"] = raw_gate(asked.gate, op, asked.allow_nonfinite)
        implied.add(decay[0].name)
    if asked.beta_logits is not None:
        op.tensor("beta")
        stand_ins["beta_logits"] = floats("beta_logits", asked.beta_logits, asked.allow_nonfinite)
        implied.add("beta")
    elif asked.allow_neg_eigval:
        raise InputError("allow_neg_eigval doubles sigmoid(beta_logits); with beta itself given, give it doubled.")
    for name in implied:
        if given.get(name) is not None:
            other = "beta_logits" if name == "beta" else "gate"
            raise InputError(f"{name} and {other} are both given; {other} is what {name} is computed from.")
    if asked.tie_values:
        if "k" not in names:
            raise InputError(f"tie_values sets v to k, but {op.name} has no k.")
        given = {**given, "v": given.get("k")}
    return take(op, given, implied, asked.allow_nonfinite, options), stand_ins


def pairing(
    op: Op, tensors: Mapping[str, NDArray[Any]], asked: Asked, count: int, options: Mapping[str, Any]
) -> dict[str, Paired]:
    """What each tensor's shift and convolution are: queries, keys and values by their roles, a convolution on the
    first of each."""
    shifts = {"query": asked.query_shift, "key": asked.key_shift, "value": asked.value_shift}
    convs = {"query": asked.conv_q, "key": asked.conv_k, "value": asked.conv_v}
    states = asked.pairing_state or {}
    rules = {}
    for role, given in shifts.items():
        shift = whole(f"{role}_shift", given, 0)
        for i, tensor in enumerate(op.role(role)):
            conv = convs[role] if i == 0 else None
            if tensor.name in tensors and (shift or conv is not None):
                micro = options.get("num_householder", 1) if "T*n" in tensor.axes[0].split() else 1
                carried = states.get(tensor.name)
                rules[tensor.name] = paired(
                    tensor.name, tensors[tensor.name], shift, conv, carried, count, micro, asked.allow_nonfinite
                )
    for name in states:
        if name not in rules:
            raise InputError(f"pairing_state has {name!r}, which is neither shifted nor convolved here.")
    return rules


def warn(op: Op, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Say what is legal and seldom meant."""

    def say(said: str, x: NDArray[Any], entry: Any, category: type[Warning]) -> None:
        at = np.unravel_index(entry, x.shape)
        place = ", ".join(str(int(i)) for i in at)
        warnings.warn(said.format(number=f"{float(x[at]):.3g} at [{place}]"), category, stacklevel=5)

    for tensor in op.role("decay"):
        g = tensors.get(tensor.name)
        if g is not None and g.size and np.nanmax(g) > 0:
            said = f"{tensor.name} is positive, {{number}}: legal, but the state grows there."
            if g.min() > 0 and g.max() <= 1:
                said += " Every one is within 0 and 1: a decay itself? It is given by its logarithm."
            say(said, g, np.nanargmax(g), GrowingGateWarning)
    for tensor in op.role("step"):
        beta = tensors.get(tensor.name)
        if beta is not None and beta.size and not (np.nanmin(beta) >= 0 and np.nanmax(beta) <= 2):
            said = f"{tensor.name} is {{number}}: legal, but a step is within 0 and 2; logits are given as beta_logits."
            say(said, beta, np.nanargmax(np.abs(beta - 1)), StepSizeWarning)


def raw_gate(gate: Gate | Any, op: Op, allow_nonfinite: bool) -> Gate:
    """Gate parameters as arrays."""
    if not isinstance(gate, Gate):
        raise InputError(f"gate is a {type(gate).__name__}; it is a refengine.Gate(a, A_log, dt_bias, lower_bound).")
    if len(op.role("decay")) != 1:
        raise InputError(f"{op.name} has no gate to be computed from raw parameters.")
    if gate.lower_bound is None and gate.A_log is None:
        raise InputError("gate.A_log is missing; only with gate.lower_bound may it be left out.")
    if gate.lower_bound is not None and not float("-inf") < gate.lower_bound < 0:
        raise InputError(f"gate.lower_bound is {gate.lower_bound}; it must be negative and finite.")
    rest = {
        n: None if getattr(gate, n) is None else floats(f"gate.{n}", getattr(gate, n), allow_nonfinite)
        for n in ("A_log", "dt_bias")
    }
    return Gate(floats("gate.a", gate.a, allow_nonfinite), **rest, lower_bound=gate.lower_bound)


def sized_gate(gate: Gate, sizes: Sizes) -> Gate:
    """A_log [HV]; dt_bias [HV, 1 or K], as a's channels."""
    wide = gate.a.shape[3] if gate.a.ndim == 4 else 1
    A_log = None if gate.A_log is None else fit("gate.A_log", gate.A_log, (sizes["HV"],), "[HV]")
    dt_bias = (
        None
        if gate.dt_bias is None
        else fit("gate.dt_bias", gate.dt_bias, (sizes["HV"], wide), "[HV]" if wide == 1 else "[HV, K]")
    )
    return Gate(gate.a, A_log, dt_bias, gate.lower_bound)


def norm_of(use_qk_l2norm: bool | L2Norm) -> L2Norm | None:
    if isinstance(use_qk_l2norm, L2Norm):
        return use_qk_l2norm
    if not isinstance(use_qk_l2norm, (bool, np.bool_, type(None))):
        raise InputError(f"use_qk_l2norm is {use_qk_l2norm!r}; it is True, False or a refengine.L2Norm.")
    return L2Norm() if use_qk_l2norm else None


def build(op: str, given: Mapping[str, Any], asked: Asked) -> Problem:
    """Check everything that was asked."""
    spec, options = chosen(ops.get(op), given)
    one_of("precision", asked.precision, PRECISIONS)
    one_of("device", asked.device, DEVICES)
    one_of("form", asked.form, FORMS)
    loose = asked.allow_nonfinite
    tensors, stand_ins = gather(spec, {n: x for n, x in given.items() if n not in spec.options}, asked, options)
    gate, beta_logits = stand_ins.get("gate"), stand_ins.get("beta_logits")
    measured = dict(tensors)
    if gate is not None:
        measured[spec.role("decay")[0].name] = gate.a
    if beta_logits is not None:
        measured["beta"] = beta_logits
    sizes = measure(spec, measured, options)
    segments = offsets(asked.cu_seqlens, sizes)
    sizes.bind("N", len(segments), "the problem", 0)
    states_at = stops(asked.states_at, segments)
    if "schedule" in tensors:
        schedule(tensors["schedule"], segments, states_at)
    initial = states(spec, asked.initial_state, sizes, loose, tensors)
    numbers = sum(prod(sizes.get(a, 1) for a in t.axes[0].split()) for t in spec.states) * (1 + len(states_at))
    given_states = [x for x in initial if x is not None]
    # A state has K numbers for each of a token's V: no problem with a token and K up to 1024 is refused.
    room("The states", numbers, [*measured.values(), *given_states], times=4096)
    warn(spec, tensors)
    return Problem(
        op=spec,
        tensors=tensors,
        sizes=sizes,
        segments=segments,
        initial=initial,
        convention=spec.convention(asked.convention),
        scale=finite("scale", asked.scale),
        options=options,
        pairing=pairing(spec, tensors, asked, len(segments), options),
        norm=norm_of(asked.use_qk_l2norm),
        gate=None if gate is None else sized_gate(gate, sizes),
        beta_logits=beta_logits,
        states_at=states_at,
        asked=asked,
    )
