"""An outside opinion: ONNX's reference evaluator of LinearAttention, in float32, for its four rules."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import case

import refengine

onnx = pytest.importorskip("onnx")
RULES = {
    "linear": ("linear_attn", None),
    "gated": ("simple_gla", "g"),
    "gated by channel": ("gla", "g"),
    "delta": ("delta_rule", None),
    "gated_delta": ("gated_delta_rule", "g"),
    "gated_delta by channel": ("kda", "g"),
}


@pytest.mark.parametrize("rule", RULES)
def test_onnx_linear_attention_agrees(rule):
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    name, gate = RULES[rule]
    B, T, H, K, V = 2, 37, 3, 8, 6
    x = {n: a.astype(np.float32) for n, a in case(name, B=B, T=T, H=H, HV=H, K=K, V=V).items()}
    s = refengine.solve(name, **x)
    flat = {n: x[n].reshape(B, T, -1) for n in ("q", "k", "v")}
    feed = {"query": flat["q"], "key": flat["k"], "value": flat["v"], "past_state": x["initial_state"]}
    if gate:
        feed["decay"] = x[gate].reshape(B, T, -1)
    if "beta" in x:
        feed["beta"] = x["beta"]
    names = ["query", "key", "value", "past_state", "decay", "beta"]
    node = helper.make_node(
        "LinearAttention",
        [n if n in feed else "" for n in names],
        ["output", "present_state"],
        update_rule=rule.split()[0],
        q_num_heads=H,
        kv_num_heads=H,
    )
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feed.items()]
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("output", "present_state")]
    model = helper.make_model(helper.make_graph([node], "g", values, outs), opset_imports=[helper.make_opsetid("", 27)])
    o, state = ReferenceEvaluator(model).run(None, feed)
    assert abs(o.reshape(B, T, H, V) - s.o).max() <= 1e-5 * abs(s.o).max()
    assert abs(state - s.final_state).max() <= 1e-5 * abs(s.final_state).max()
