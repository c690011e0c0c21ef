"""Goldens in other forms: .npy files, JSON with hexadecimal numbers, and ONNX test data for what its LinearAttention
can express."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import FileError, InputError, UnavailableError
from ..io import tensorfile
from .files import put
from .integrity import CASE, is_suite, read_json
from .record import INPUTS, TRUTH, canonical

Array = NDArray[Any]
RULES = {  # LinearAttention's update rule, and which of our inputs is its decay
    "linear_attn": ("linear", None),
    "simple_gla": ("gated", "g"),
    "gla": ("gated", "g"),
    "delta_rule": ("delta", None),
    "gated_delta_rule": ("gated_delta", "g"),
    "kda": ("gated_delta", "g"),
}
OPSET = 27


def tensors_of(folder: Path) -> tuple[dict[str, Array], dict[str, str]]:
    inputs, settings = tensorfile.read(folder / INPUTS)
    truth, _ = tensorfile.read(folder / TRUTH)
    return inputs | truth, settings


def as_npy(folder: Path, target: Path) -> None:
    """One file a tensor; bfloat16 as its 16 bits, in NAME.bf16.npy."""
    tensors, _ = tensors_of(folder)
    for name, x in tensors.items():
        bf16 = x.dtype == ml_dtypes.bfloat16
        np.save(target / f"{name}{'.bf16' if bf16 else ''}.npy", x.view("<u2") if bf16 else x, allow_pickle=False)
    put(target / CASE, (folder / CASE).read_bytes())


def as_json(folder: Path, target: Path) -> None:
    """Every number as C and Python write it in hexadecimal, exactly; tensors flat, in C order."""
    tensors, settings = tensors_of(folder)
    numbers = {
        name: {
            "shape": list(x.shape),
            "values": [int(n) for n in x.ravel()] if x.dtype.kind == "i" else [float(n).hex() for n in x.ravel()],
        }
        for name, x in tensors.items()
    }
    put(target / "case.hex.json", canonical({"settings": settings, "tensors": numbers}))
    put(target / CASE, (folder / CASE).read_bytes())


def expressible(record: Mapping[str, Any]) -> bool:
    """Whether LinearAttention computes this: one of its rules, no packing, nothing before the op, state K x V."""
    front = {"front_end", "l2norm", "varlen"} & set(record["flags"])
    return record["op"]["name"] in RULES and not front


def as_onnx(folder: Path, target: Path) -> None:
    """model.onnx and test_data_set_0, all in float32; key heads repeated for the value heads that share them."""
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise UnavailableError("ONNX files need the package onnx.") from None
    record, (tensors, _) = read_json(folder / CASE), tensors_of(folder)
    rule, decay = RULES[record["op"]["name"]]
    B, T, HV, V = tensors["v"].shape

    def flat(name: str) -> Array:
        x = np.repeat(tensors[name], HV // tensors[name].shape[2], axis=2)
        return np.asarray(x, dtype=np.float32).reshape(B, T, -1)

    feed = {"query": flat("q"), "key": flat("k"), "value": flat("v"), "past_state": tensors.get("initial_state")}
    feed |= {"decay": flat(decay) if decay else None, "beta": flat("beta") if "beta" in tensors else None}
    given = {name: np.asarray(x, dtype=np.float32) for name, x in feed.items() if x is not None}
    out = {"output": tensors["o"].reshape(B, T, HV * V), "present_state": tensors["final_state"]}
    node = helper.make_node(
        "LinearAttention",
        [name if name in given else "" for name in feed],
        list(out),
        update_rule=rule,
        q_num_heads=HV,
        kv_num_heads=HV,
        scale=record["conventions"]["scale"],
    )
    entry, left = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in group.items()]
        for group in (given, out)
    )
    graph = helper.make_graph([node], record["id"], entry, left)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="refengine")
    put(target / "model.onnx", model.SerializeToString())
    data = target / "test_data_set_0"
    data.mkdir(exist_ok=True)
    for kind, group in (("input", given), ("output", out)):
        for i, (name, x) in enumerate(group.items()):
            proto = numpy_helper.from_array(np.ascontiguousarray(x, dtype=np.float32), name)
            put(data / f"{kind}_{i}.pb", proto.SerializeToString())


FORMS: Mapping[str, Callable[[Path, Path], None]] = {"npy": as_npy, "json-hex": as_json, "onnx": as_onnx}


def export(root: Path, target: Path, form: str, only_ops: tuple[str, ...] = (), tiers: tuple[str, ...] = ()) -> int:
    """A suite's cases in another form, under the same names; how many there were."""
    is_suite(root)
    count = 0
    for folder in sorted(p.parent for p in (root / "cases").rglob(CASE)):
        record = read_json(folder / CASE)
        wanted = (not only_ops or record["op"]["name"] in only_ops) and (not tiers or record["tier"] in tiers)
        if not wanted or (form == "onnx" and not expressible(record)):
            continue
        try:
            into = target / folder.relative_to(root / "cases")
            into.mkdir(parents=True, exist_ok=True)
            FORMS[form](folder, into)
        except FileError:
            raise
        except OSError as error:
            raise FileError(f"{target}: cannot be written ({error.strerror}).") from error
        count += 1
    if count == 0:
        raise InputError(f"{root} has no case of that kind to export as {form}.")
    return count
