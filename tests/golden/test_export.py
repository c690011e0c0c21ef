"""Goldens in other forms say the same."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

import refengine
from refengine.data import goldens
from refengine.golden.export import export
from refengine.io.tensorfile import read

CORE = goldens("core")


def cases(root, name):
    found = sorted(p.parent for p in root.rglob(name))
    assert found
    return found


def original(root, folder):
    case = CORE / "cases" / folder.relative_to(root)
    return read(case / "inputs.safetensors")[0] | read(case / "truth.safetensors")[0]


def test_npy(tmp_path):
    assert export(CORE, tmp_path, "npy", ("kda",), ("E", "2")) == len(cases(tmp_path, "case.json"))
    for folder in cases(tmp_path, "case.json"):
        for name, x in original(tmp_path, folder).items():
            bf16 = x.dtype == ml_dtypes.bfloat16
            y = np.load(folder / f"{name}{'.bf16' if bf16 else ''}.npy", allow_pickle=False)
            assert y.dtype == (np.uint16 if bf16 else x.dtype) and y.tobytes() == x.tobytes()


def test_json_hex(tmp_path):
    export(CORE, tmp_path, "json-hex", ("longhorn",), ("1",))
    for folder in cases(tmp_path, "case.hex.json"):
        said = json.loads((folder / "case.hex.json").read_text(encoding="utf-8"))["tensors"]
        for name, x in original(tmp_path, folder).items():
            values = [v if isinstance(v, int) else float.fromhex(v) for v in said[name]["values"]]
            assert said[name]["shape"] == list(x.shape) and values == x.astype(float).ravel().tolist()


def test_onnx_computes_what_the_golden_says(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    export(CORE, tmp_path, "onnx")
    folders = cases(tmp_path, "model.onnx")
    assert {p.relative_to(tmp_path).parts[0] for p in folders} == {
        *("linear_attn", "simple_gla", "gla", "delta_rule", "gated_delta_rule", "kda")
    }

    def tensors(folder, kind):
        files = sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
        return [numpy_helper.to_array(onnx.load_tensor(str(p))) for p in files]

    for folder in folders:
        model = onnx.load(str(folder / "model.onnx"))
        names = [value.name for value in model.graph.input]
        got = ReferenceEvaluator(model).run(None, dict(zip(names, tensors(folder, "input"), strict=True)))
        for x, y in zip(got, tensors(folder, "output"), strict=True):
            assert abs(x - y).max() <= (0 if "/E/" in str(folder) else 2e-5 * abs(y).max()), folder


def test_nothing_to_export_is_said(tmp_path):
    with pytest.raises(refengine.InputError, match="no case"):
        export(CORE, tmp_path, "onnx", ("longhorn",))
