"""The inputs of a golden case, from its name alone.

Tier E inputs are chosen so that every number met on the way, in any chunking and any order, has at most eight
significant bits: one-hot keys, small integers, steps of 0, 1/2 and 1, gates that keep all or nothing (exp(-1024) is 0).
A kernel is then right exactly if its answer is the golden's to the bit, in any format from bfloat16 up.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..frontend.gates import Gate
from ..frontend.pairing import Conv
from ..spec import Op, Tensor
from .cases import Case
from .draw import Array, rounded, unit

CLOSED = -1024.0  # a gate whose exp is 0 even in float64


def arguments(case: Case) -> dict[str, Any]:
    """The keyword arguments of `refengine.solve`, and `do` and `dht` where the case has gradients."""
    out: dict[str, Any] = dict(case.regime.settings) | case.options
    out["scale"] = 0.125 if case.regime.tier == "E" else None
    if case.convention != case.op.convention(None):
        out["convention"] = case.convention
    draw = exact if case.regime.tier == "E" else real if case.regime.tier == "real" else ordinary
    out |= draw(case)
    if case.lengths:
        out["cu_seqlens"] = np.concatenate([[0], np.cumsum(case.lengths)]).astype(np.int32)
    if case.start:
        shape = tuple({**case.size, "N": case.sequences}[a] for a in ["N", "HV", "K", "V"])
        unit_of = writes(case) if case.regime.tier == "E" else 1
        out["initial_state"] = stored(signs(case, "initial_state", shape, unit_of), "float32")
    if case.regime.gradients:
        B, T, HV, V, K = (case.size[a] for a in ("B", "T", "HV", "V", "K"))
        out["do"] = stored(signs(case, "do", (B, T, HV, V)), "float32")
        out["dht"] = stored(signs(case, "dht", (case.sequences, HV, K, V)), "float32")
    return out


def signs(case: Case, name: str, shape: tuple[int, ...], size: int = 1) -> Array:
    """-size, 0 or size in tier E, else nearly normal numbers."""
    stream = case.stream(name)
    if case.regime.tier == "E":
        return stream.integers(shape, -1, 1) * float(size)
    return stream.normal(shape)


def stored(x: Array, dtype: str) -> NDArray[Any]:
    """In the type a golden keeps it in, to which it has been rounded before."""
    return rounded(x, dtype).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)


def kept_as(op: Op, tensor: Tensor) -> str:
    """bfloat16 for vectors of a layer's width, float32 for gates and steps."""
    vector = tensor.role in ("query", "key", "value") or (op.name in ("rwkv7", "dplr", "iplr") and tensor.name in "ab")
    return "bfloat16" if vector else "float32"


# ---- tier E ----


def writes(case: Case) -> int:
    """What must divide a value so that halving it at every write of its row leaves an integer."""
    if case.regime.name != "permuted" and case.op.name != "longhorn":
        return 1
    longest = max(case.lengths or (case.size["T"],)) * case.options.get("num_householder", 1)
    return int(2 ** -(-longest // case.size["K"]))


def hot(case: Case, shape: tuple[int, ...]) -> Array:
    """One-hot keys: at random, or in permutation after permutation (every row equally often)."""
    stream, K = case.stream("k"), shape[-1]
    B, T, H = shape[:3]
    if case.regime.name == "permuted" or case.op.name == "longhorn":
        at = stream.permutations(B * H * -(-T // K), K).reshape(B, H, -1)[:, :, :T].swapaxes(1, 2)
    else:
        at = stream.integers((B, T, H), 0, K - 1)
    return np.asarray(np.eye(K)[at])


def exact(case: Case) -> dict[str, Any]:
    """Inputs whose every intermediate has at most eight bits."""
    op = case.op
    permuted = case.regime.name == "permuted"
    key = next(t for t in op.inputs if t.role == "key")
    keys = hot(case, case.shape(key))
    out: dict[str, Any] = {}
    for tensor in op.inputs:
        shape, stream = case.shape(tensor), case.stream(tensor.name)
        if tensor.role == "query":
            x = stream.integers(shape, -2, 2) * 1.0
            if permuted:
                four = stream.permutations(int(np.prod(shape[:-1])), shape[-1]).reshape(shape) < 4
                x = np.where(four, stream.integers(shape, 0, 1) * 2.0 - 1, 0.0)
        elif tensor.role == "key":
            x = keys
            if tensor.name == "p" and not permuted:  # now and then another key predicts
                x = np.where(stream.integers((*shape[:-1], 1), 0, 3) > 0, keys, np.roll(keys, 1, axis=-1))
        elif tensor.role == "value":
            forgets = bool(op.role("decay")) or any(t.name == "beta" for t in op.inputs)
            x = stream.integers(shape, -1, 1) * float(writes(case) * (3 if forgets and writes(case) == 1 else 1))
        elif tensor.role == "decay":
            x = np.where(stream.integers(shape, 0, 3) == 0, CLOSED, 0.0)
            x[:, -2:] = 0.0  # so that something is left to see in the final state
        elif tensor.name == "d":
            x = stream.integers(shape, 0, 1) * 1.0
        elif op.name in ("rwkv7", "dplr", "iplr"):  # a = -k, b = k rate
            rate = stream.integers((*shape[:-1], 1), 0, 1) * 1.0
            x = -keys if tensor.name == "a" else keys * (0.5 + 0.5 * rate if permuted else rate)
        else:  # steps, and gates of what is erased and written
            x = stream.integers(shape, 0, 1) * 1.0
            if permuted and op.name != "longhorn":
                x = 0.5 + 0.5 * x
        out[tensor.name] = stored(x, kept_as(op, tensor))
    return out


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


def ordinary(case: Case) -> dict[str, Any]:
    """Inputs of the usual kind, made difficult in one respect."""
    op, out = case.op, {}
    for tensor in op.inputs:
        shape, stream = case.shape(tensor), case.stream(tensor.name)
        if tensor.name == "p":  # the keys, each with a size of its own
            x = keys_of(case, op.role("key")[0]) * (0.5 + 0.5 * stream.uniform((*shape[:-1], 1)))
        elif tensor.role == "key":
            x = keys_of(case, tensor)
        elif tensor.role in ("query", "value"):
            x = stream.normal(shape)
        elif tensor.role == "decay":
            x = gates_of(case, tensor)
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
        out[tensor.name] = stored(x, kept_as(op, tensor))
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
