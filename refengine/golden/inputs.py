"""The inputs of a golden case, from its name alone. Those of tier E are in exact.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frontend.gates import Gate
from ..frontend.pairing import Conv
from ..spec import Tensor
from .cases import Case, kind
from .draw import Array, stored, unit
from .exact import exact, first_memory, signs, units_of, writes


def arguments(case: Case) -> dict[str, Any]:
    """The keyword arguments of `refengine.solve`, and `do` and `dht` where the case has gradients."""
    out: dict[str, Any] = dict(case.regime.settings) | case.options
    out["scale"] = 0.125 if case.regime.tier == "E" else None
    if case.convention != case.op.convention(None):
        out["convention"] = case.convention
    draw = exact if case.regime.tier == "E" else real if case.regime.tier == "real" else ordinary
    drawn = draw(case)
    starts = {name: drawn.pop(name) for name in case.of_states("initial_state") if name in drawn}
    out |= drawn
    if case.lengths:
        out["cu_seqlens"] = np.concatenate([[0], np.cumsum(case.lengths)]).astype(np.int32)
    if case.op.states and (case.start or any(t.required for t in case.op.states)):
        unit_of = writes(case) if case.regime.tier == "E" else 1
        for name, shape in case.of_states("initial_state").items():
            if name not in starts:
                starts[name] = stored(memory(case, name, shape, unit_of), "float32")
        out["initial_state"] = by_state(starts)
    if case.regime.gradients:
        shape = tuple(case.size[a] for a in ("B", "T", "HV", "V"))
        units = units_of(case) if case.regime.tier == "E" else {}
        out.setdefault("do", stored(signs(case, "do", shape) * units.get("do", 1.0), "float32"))
        if case.op.states:
            ends = case.of_states("dht").items()
            owed = {name: signs(case, name, shape) / units.get(name.partition(".")[2], 1.0) for name, shape in ends}
            out["dht"] = by_state({name: stored(x, "float32") for name, x in owed.items()})
    return out


def by_state(parts: dict[str, NDArray[Any]]) -> Any:
    """One state's array, or several by the states' names."""
    return {name.split(".")[1]: x for name, x in parts.items()} if len(parts) > 1 else next(iter(parts.values()))


def memory(case: Case, name: str, shape: tuple[int, ...], size: int) -> Array:
    """What a memory starts from."""
    if name.endswith(".h_kk"):  # a Gram matrix, exactly
        x = case.stream(name).integers(shape, -2, 2)
        return np.asarray(np.einsum("nhij,nhkj->nhik", x, x) * 0.125)
    if kind(case.op) == "training" and case.regime.tier != "E":
        momentum = name[-2:] in ("m0", "m1", "m2") or name.endswith("momentum") or ".m_" in name
        return signs(case, name, shape) * (0.125 if momentum else 0.5)
    return first_memory(case, name, shape, size) if case.regime.tier == "E" else signs(case, name, shape)


# ---- tiers 1, 2, 3 ----


def keys_of(case: Case, tensor: Tensor) -> Array:
    """Unit keys, and what the regime makes of them."""
    stream, shape = case.stream(tensor.name), case.shape(tensor)
    name = case.regime.name
    x = stream.normal(shape)
    if name == "same_keys":
        x = np.broadcast_to(x[:, :1], shape)
    elif name == "parallel_keys":
        x = x[:, :1] + 0.125 * x
    x = unit(x)
    if name == "key_norms":
        sizes = np.array([1e-4, 1e-2, 1.0, 30.0, 0.0])
        x = x * sizes[stream.integers((*shape[:-1], 1), 0, 4)]
    return x


def gates_of(case: Case, tensor: Tensor) -> Array:
    """Log decays, on a grid of powers of two."""
    stream, shape, name = case.stream(tensor.name), case.shape(tensor), case.regime.name
    mild = -(stream.integers(shape, 0, 255) + 1) * 2.0**-11  # to -1/8
    if name == "still":
        return np.zeros(shape)
    if name == "strong":
        return np.array([-20.0, -5.0, -20.0, -(2.0**-10)])[stream.integers(shape, 0, 3)]
    if name == "unequal":
        return np.where(stream.integers(shape, 0, 5) == 0, -8.0, mild)
    if name == "padded":
        return np.where(
            pads(case, shape[1])[:, None] if len(shape) == 3 else pads(case, shape[1])[:, None, None], 0.0, mild
        )
    return mild


def pads(case: Case, entries: int) -> NDArray[np.bool_]:
    """Tokens of padding: the first three, the last two and some between; a step of 0 and a log decay of 0 mask them."""
    T = case.size["T"]
    t = np.arange(T)
    return np.repeat((t < 3) | (t >= T - 2) | (t % 7 == 4), entries // T)


def steps_of(case: Case, tensor: Tensor) -> Array:
    stream, shape, name = case.stream(tensor.name), case.shape(tensor), case.regime.name
    if name == "same_keys":
        return np.full(shape, 0.99)
    if name == "steps":
        return np.array([0.0, 0.5, 1.0, 2.0])[stream.integers(shape, 0, 3)]
    x = stream.uniform(shape)
    return np.where(pads(case, shape[1])[:, None], 0.0, x) if name == "padded" else x


def learning(case: Case, tensor: Tensor) -> Array:
    """What a memory that learns by mini-batches takes: weights, LayerNorm, gates and steps; and a ridge."""
    stream, shape, name = case.stream(tensor.name), case.shape(tensor), tensor.name
    if name in ("w0", "w1", "w2") or (name == "w" and case.parts):
        return 0.5 * stream.normal(shape)
    if name in ("w", "b", "ln_weight", "ln_bias"):
        return (name in ("w", "ln_weight")) + 0.125 * stream.normal(shape)
    if name == "lamb":
        return 0.25 + 0.75 * stream.uniform(shape)
    long = name == "momentum" or (name == "eta" and case.op.name in ("titans", "titans_mlp", "ttt"))
    small = {"titans_mlp": 0.03125, "p_norm": 0.0625}.get(case.options.get("loss", case.op.name), 0.25)
    return (0.875 if long else small) * stream.uniform(shape)


def ordinary(case: Case) -> dict[str, Any]:
    """Inputs of the usual kind, made difficult in one respect."""
    op, out = case.op, {}
    for tensor in op.inputs:
        if tensor.integer or (tensor.name == "tok" and case.regime.name != "heads"):
            continue  # a schedule, and a factor that has a default
        shape, stream = case.shape(tensor), case.stream(tensor.name)
        if tensor.name == "p":  # the keys, each with a size of its own
            x = keys_of(case, op.role("key")[0]) * (0.5 + 0.5 * stream.uniform((*shape[:-1], 1)))
        elif tensor.role == "key":
            x = keys_of(case, tensor)
        elif tensor.role in ("query", "value"):
            x = stream.normal(shape)
        elif tensor.role == "decay":
            x = gates_of(case, tensor)
        elif kind(op) == "training" or tensor.name == "lamb":
            x = learning(case, tensor)
        elif tensor.name == "beta":
            x = steps_of(case, tensor)
        elif tensor.name == "d":
            x = 0.125 * stream.uniform(shape)
        elif op.name in ("rwkv7", "dplr", "iplr"):
            x = -unit(case.stream("a").normal(shape))
            x = x if tensor.name == "a" else -x * stream.uniform((*shape[:-1], 1))
        else:
            x = stream.uniform(shape)
        if case.regime.name == "padded" and tensor.role in ("key", "value"):
            x = np.where(pads(case, shape[1])[:, None, None], 64.0 * stream.normal(shape), x)
        out[tensor.name] = stored(x, case.kept_as(tensor))
    return front(case, out) if case.regime.name == "front" else out


def front(case: Case, given: dict[str, Any]) -> dict[str, Any]:
    """The same with what a layer does before the op: convolutions on q, k, v, raw gates, beta's logits."""
    op, size = case.op, case.size
    stream = case.stream("conv")
    for letter, role in (("q", "query"), ("k", "key"), ("v", "value")):
        tensor = op.role(role)[0]
        per_token = case.options.get("num_householder", 1) if "T*n" in tensor.axes[0].split() else 1
        channels = given[tensor.name].shape[2] * given[tensor.name].shape[3] * per_token
        weight = stored(0.5 * stream.normal((channels, 4)), "float32")
        bias = stored(0.125 * stream.normal((channels,)), "float32") if letter == "v" else None
        given[f"conv_{letter}"] = Conv(weight, bias)
    stream = case.stream("gate")
    if len(op.role("decay")) == 1:
        raw = given.pop(op.role("decay")[0].name)
        wide = (size["K"],) if raw.ndim == 4 else ()
        A_log = stored(2.0 * stream.uniform((size["HV"],)) - 1.0, "float32")
        bias = stored(stream.normal((size["HV"], *wide)), "float32")
        given["gate"] = Gate(stored(4.0 * stream.normal(raw.shape), "float32"), A_log, bias)
    if "beta" in given:
        given["beta_logits"] = stored(3.0 * stream.normal(given.pop("beta").shape), "float32")
    return given


# ---- tier real ----


def real(case: Case) -> dict[str, Any]:
    """From the shipped sample: trained q, k, v; what else an op takes is drawn as ever."""
    from ..data import path
    from ..io.tensorfile import read

    sample, _ = read(path("minilm_layer3"))
    out = ordinary(case)
    roles = {"query": "q", "key": "k", "value": "v"}
    for tensor in case.op.inputs:
        source = sample.get(roles.get(tensor.role, tensor.name if tensor.name == "beta" else ""))
        if source is not None and tensor.axes[0].split()[1] in ("T", "T*n"):
            B, T, H = case.shape(tensor)[:3]
            out[tensor.name] = np.ascontiguousarray(source[:B, :T, :H])
    if case.op.role("decay") and out[case.op.role("decay")[0].name].ndim == 3:
        out[case.op.role("decay")[0].name] = np.ascontiguousarray(sample["g"][:1, : case.size["T"], : case.size["HV"]])
    return out
