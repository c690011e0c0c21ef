"""A problem: every input checked, widened exactly and laid out, every convention spelled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..errors import GrowingGateWarning, InputError, nearest
from ..frontend.gates import Gate
from ..frontend.norm import L2Norm
from ..frontend.pairing import Conv, Paired, Segment
from ..io.interop import exact_widen, to_numpy
from ..spec import Op, Tensor
from .axes import Sizes, measure, shape_text

PRECISIONS = ("float64", "float32")
DEVICES = ("cpu",)
FORMS = ("auto", "recurrent")


@dataclass(frozen=True)
class Problem:
    """What `solve` was asked. Tensors are as given, but exactly widened to float32 or float64; `None` stands for an absent option."""

    op: Op
    tensors: Mapping[str, NDArray[Any]]
    sizes: Sizes
    segments: tuple[Segment, ...]
    initial_state: NDArray[Any] | None
    convention: str
    scale: float | None
    options: Mapping[str, int]
    pairing: Mapping[str, Paired] = field(default_factory=dict)
    norm: L2Norm | None = None
    gate: Gate | None = None
    beta_logits: NDArray[Any] | None = None
    allow_neg_eigval: bool = False
    states_at: tuple[int, ...] = ()
    precision: str = "float64"
    device: str = "cpu"
    form: str = "auto"

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
        said |= {"use_qk_l2norm": self.norm is not None}
        if self.norm:
            said |= {"l2norm_eps": self.norm.eps, "l2norm_place": self.norm.place}
        for name, rule in self.pairing.items():
            said[f"{name}_shift"] = rule.shift
            if rule.weight is not None:
                said[f"conv_{name}"] = (
                    f"width {rule.weight.shape[0]}, {'silu' if rule.silu else 'no activation'}{', residual' if rule.residual else ''}"
                )
        if self.gate is not None:
            said["gate"] = (
                "softplus" if self.gate.lower_bound is None else f"sigmoid, lower bound {self.gate.lower_bound}"
            )
        if self.beta_logits is not None:
            said["beta"] = "2 sigmoid(beta_logits)" if self.allow_neg_eigval else "sigmoid(beta_logits)"
        return said | {"precision": self.precision}


def one_of(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise InputError(f"There is no {what} {value!r}{nearest(str(value), known)}.")
    return value


def floats(name: str, value: Any, allow_nonfinite: bool) -> NDArray[Any]:
    """Any array as float32 or float64, losing nothing."""
    array = exact_widen(to_numpy(value, name), name)
    if not allow_nonfinite and not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))
        at = ", ".join(str(int(i)) for i in where[0])
        raise InputError(
            f"{name} holds {len(where)} values that are NaN or infinite, the first at [{at}]; allow them with --allow-nonfinite (allow_nonfinite=True)."
        )
    return array


def offsets(cu_seqlens: Any, sizes: Sizes) -> tuple[Segment, ...]:
    """The sequences as (row, first token, one past the last)."""
    B, T = sizes["B"], sizes["T"]
    if cu_seqlens is None:
        return tuple((b, 0, T) for b in range(B))
    cu = to_numpy(cu_seqlens, "cu_seqlens")
    if cu.dtype.kind not in "iu":
        raise InputError(f"cu_seqlens is {cu.dtype}; it must be an integer dtype (int32, int64).")
    if cu.ndim != 1 or cu.size < 2:
        raise InputError(f"cu_seqlens has shape {shape_text(cu)}; it is one axis of N + 1 offsets, at least 2.")
    if B != 1:
        raise InputError(
            f"cu_seqlens packs sequences into one row, but {sizes.said['B']} has {B} rows (axis 0, B); it must have 1."
        )
    at = [int(x) for x in cu]
    if at[0] != 0:
        raise InputError(f"cu_seqlens starts at {at[0]}; it must start at 0.")
    for n, (left, right) in enumerate(pairwise(at)):
        if right < left:
            raise InputError(f"cu_seqlens falls from {left} to {right} at entry {n + 1}; offsets never fall.")
    if at[-1] != T:
        raise InputError(f"cu_seqlens ends at {at[-1]}, but {sizes.said['T']} has {T} tokens; it must end there.")
    return tuple((0, left, right) for left, right in pairwise(at))


def state_shape(sizes: Sizes, count: int) -> tuple[int, int, int, int]:
    return count, sizes["HV"], sizes["K"], sizes["V"]


def checked_state(value: Any, sizes: Sizes, count: int, allow_nonfinite: bool) -> NDArray[Any] | None:
    if value is None:
        return None
    state = floats("initial_state", value, allow_nonfinite)
    wanted = state_shape(sizes, count)
    if state.ndim != 4:
        raise InputError(
            f"initial_state has {state.ndim} axes {shape_text(state)}; it is [N, HV, K, V] = {list(wanted)}."
        )
    for axis, (letter, have, want) in enumerate(zip("N HV K V".split(), state.shape, wanted, strict=True)):
        if have != want:
            swapped = (
                " (it looks transposed: the layout is [N, HV, K, V])"
                if state.shape == (*wanted[:2], wanted[3], wanted[2])
                else ""
            )
            raise InputError(
                f"initial_state has {have} on axis {axis} ({letter}), but the problem has {want}{swapped}."
            )
    return state


def fit(name: str, array: NDArray[Any], shape: tuple[int, ...], meaning: str) -> NDArray[np.float64]:
    """An array that must have one shape, or as many numbers in that order."""
    if (
        array.shape != shape
        and (array.ndim == 1 or array.ndim >= len(shape))
        and array.size == int(np.prod(shape))
        and array.shape[-1] == (shape[-1] if array.ndim > 1 else array.size)
    ):
        array = array.reshape(shape)
    if array.shape != shape:
        raise InputError(f"{name} has shape {shape_text(array)}; it is {meaning} = {list(shape)}.")
    return np.ascontiguousarray(array, dtype=np.float64)


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
            raise InputError(
                f"conv_{name} has no activation {conv.activation!r}{nearest(str(conv.activation), ('silu', 'swish'))}, or None."
            )
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


def whole(what: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{what} is {value!r}; it is a whole number of at least {least}.")
    return int(value)


def take(op: Op, given: Mapping[str, Any], implied: set[str], allow_nonfinite: bool) -> dict[str, NDArray[Any]]:
    """The op's inputs among the arguments, every one accounted for."""
    names = [t.name for t in op.inputs]
    for name in given:
        if name not in names:
            raise InputError(f"{op.name} takes no {name!r}{nearest(name, names)}.")
    tensors = {n: floats(n, given[n], allow_nonfinite) for n in names if given.get(n) is not None}
    for tensor in op.inputs:
        if tensor.required and tensor.name not in tensors and tensor.name not in implied:
            raise InputError(
                f"{op.name} needs {tensor.name} [{', '.join(tensor.axes[0].split())}] ({tensor.doc}), which is missing."
            )
    return tensors


def warn_of_growth(op: Op, tensors: Mapping[str, NDArray[Any]]) -> None:
    for tensor in op.role("decay"):
        g = tensors.get(tensor.name)
        if g is not None and g.size and np.nanmax(g) > 0:
            at = ", ".join(str(int(i)) for i in np.unravel_index(np.nanargmax(g), g.shape))
            warnings.warn(
                f"{tensor.name} is positive, {float(np.nanmax(g)):.3g} at [{at}]: legal, but the state grows there.",
                GrowingGateWarning,
                stacklevel=4,
            )


def raw_gate(gate: Gate | Any, op: Op, allow_nonfinite: bool) -> Gate:
    """Gate parameters as arrays."""
    if not isinstance(gate, Gate):
        raise InputError(f"gate is a {type(gate).__name__}; it is a refengine.Gate(a, A_log, dt_bias, lower_bound).")
    if len(op.role("decay")) != 1:
        raise InputError(f"{op.name} has no gate to be computed from raw parameters.")
    if gate.lower_bound is None and gate.A_log is None:
        raise InputError("gate.A_log is missing; only with gate.lower_bound may it be left out.")
    if gate.lower_bound is not None and not gate.lower_bound < 0:
        raise InputError(f"gate.lower_bound is {gate.lower_bound}; it must be negative.")
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
    return L2Norm() if use_qk_l2norm else None


def finite_scale(scale: Any) -> float | None:
    if scale is None:
        return None
    value = float(scale)
    if not np.isfinite(value):
        raise InputError(f"scale is {value}; it must be finite.")
    return value


def build(
    op: str,
    given: Mapping[str, Any],
    *,
    scale: Any,
    initial_state: Any,
    cu_seqlens: Any,
    use_qk_l2norm: bool | L2Norm,
    shifts: Mapping[str, int],
    convs: Mapping[str, Conv | None],
    pairing_state: Mapping[str, Any],
    tie_values: bool,
    gate: Gate | None,
    beta_logits: Any,
    allow_neg_eigval: bool,
    precision: str,
    device: str,
    form: str,
    convention: str | None,
    states_at: Sequence[int] | None,
    allow_nonfinite: bool,
) -> Problem:
    """Check everything that was asked; every refusal is one sentence."""
    spec = ops.get(op)
    one_of("precision", precision, PRECISIONS)
    one_of("device", device, DEVICES)
    one_of("form", form, FORMS)
    options = {
        name: whole(name, given.get(name, default), 0 if name == "layer_idx" else 1)
        for name, default in spec.options.items()
    }
    given = {n: x for n, x in given.items() if n not in spec.options}
    roles = {"q": spec.role("query"), "k": spec.role("key"), "v": spec.role("value")}
    implied = set()
    if tie_values:
        given = {n: x for n, x in given.items() if n != "v"}
        implied.add("v")
    for argument, value, target in (
        ("gate", gate, [t.name for t in spec.role("decay")]),
        ("beta_logits", beta_logits, ["beta"]),
    ):
        if value is None:
            continue
        for name in target:
            if given.get(name) is not None:
                raise InputError(f"{name} and {argument} are both given; {argument} is what {name} is computed from.")
            implied.add(name)
    tensors = take(spec, given, implied, allow_nonfinite)
    measured: dict[str, NDArray[Any]] = dict(tensors)
    if tie_values:
        if "k" not in tensors:
            raise InputError(f"tie_values sets v to k, but {spec.name} has no k.")
        tensors["v"] = measured["v"] = tensors["k"]
    if gate is not None:
        gate = raw_gate(gate, spec, allow_nonfinite)
        measured[spec.role("decay")[0].name] = gate.a
    if beta_logits is not None:
        spec.tensor("beta")
        beta_logits = measured["beta"] = floats("beta_logits", beta_logits, allow_nonfinite)
    elif allow_neg_eigval:
        raise InputError("allow_neg_eigval doubles sigmoid(beta_logits); with beta itself given, give it doubled.")
    sizes = measure(spec, measured, options)
    segments = offsets(cu_seqlens, sizes)
    pairing = {}
    for letter, tensor_list in roles.items():
        for tensor in tensor_list:
            wanted = (
                shifts.get(letter, 0) or convs.get(letter) is not None or pairing_state.get(tensor.name) is not None
            )
            if tensor.name not in tensors or not wanted or (tensor is not tensor_list[0] and not shifts.get(letter)):
                continue
            conv = convs.get(letter) if tensor is tensor_list[0] else None
            micro = options.get("num_householder", 1) if "T*n" in tensor.axes[0].split() else 1
            pairing[tensor.name] = paired(
                tensor.name,
                tensors[tensor.name],
                whole(f"{letter} shift", shifts.get(letter, 0), 0),
                conv,
                pairing_state.get(tensor.name),
                len(segments),
                micro,
                allow_nonfinite,
            )
    for name in pairing_state:
        if name not in pairing:
            raise InputError(f"pairing_state has {name!r}, which is neither shifted nor convolved here.")
    warn_of_growth(spec, tensors)
    return Problem(
        op=spec,
        tensors=tensors,
        sizes=sizes,
        segments=segments,
        initial_state=checked_state(initial_state, sizes, len(segments), allow_nonfinite),
        convention=spec.convention(convention),
        scale=finite_scale(scale),
        options=options,
        pairing=pairing,
        norm=norm_of(use_qk_l2norm),
        gate=None if gate is None else sized_gate(gate, sizes),
        beta_logits=beta_logits,
        allow_neg_eigval=allow_neg_eigval,
        states_at=stops(states_at, segments),
        precision=precision,
        device=device,
        form=form,
    )


def stops(states_at: Sequence[int] | None, segments: tuple[Segment, ...]) -> tuple[int, ...]:
    """After how many tokens of each sequence the state is wanted."""
    if states_at is None:
        return ()
    wanted = tuple(whole("states_at", t, 0) for t in np.asarray(states_at).tolist())
    for t in wanted:
        for n, (_, t0, t1) in enumerate(segments):
            if t > t1 - t0:
                raise InputError(f"states_at asks for the state after {t} tokens, but sequence {n} has {t1 - t0}.")
    return wanted


__all__ = ["Problem", "Tensor", "build"]
