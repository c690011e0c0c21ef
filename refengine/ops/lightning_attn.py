"""Lightning Attention: linear attention with a fixed decay for each head, slower in later layers."""

from __future__ import annotations

import numpy as np

from ..spec import Delta, Op, Option, Reading, Tensor


def step(S, *, q, k, v, scale, head, heads, layer_idx, num_layers):
    one = k[0] * 0 + 1
    S = np.exp(-(one * 8 * head * (num_layers - layer_idx)) / (heads * num_layers)) * S
    S = S + k[:, None] * v
    return S, scale * (q @ S)


def lower(x, *, HV, layer_idx, num_layers, **_):
    slope = x["q"].per_head(-8.0 * np.arange(HV) * (num_layers - layer_idx))
    g = slope / slope.filled(HV * num_layers)
    return Delta(q=x["q"], k=x["k"], v=x["v"], a=g.decay())


OP = Op(
    name="lightning_attn",
    title="Lightning Attention",
    paper="Qin et al.: Lightning Attention-2 (2024), arXiv:2401.04658; its decay from TransNormerLLM, arXiv:2307.14995",
    reading=Reading(
        model="S' k",
        loss="-<S' k, v>",
        optimiser="gradient descent, step 1",
        forgetting="constant decay of value head h and the layer; head 0 forgets nothing",
    ),
    equations="""
        g   = -(8 / HV) (1 - layer_idx / num_layers) h        h = 0 .. HV - 1 the value head
        S_t = exp(g) S_{t-1} + k_t v_t'
        o_t = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries", role="query"),
        Tensor("k", ("B T H K",), "keys", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
    ),
    step=step,
    lower=lower,
    options={
        "layer_idx": Option(0, "which layer, from 0", least=0),
        "num_layers": Option(1, "how many layers the model has"),
    },
)
