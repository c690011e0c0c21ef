"""Linear attention, unnormalised: every value is added at its key, and nothing is forgotten."""

from __future__ import annotations

from ..spec import Delta, Op, Reading, Tensor


def step(S, *, q, k, v, scale):
    S = S + k[:, None] * v
    return S, scale * (q @ S)


def lower(x, **_):
    return Delta(q=x["q"], k=x["k"], v=x["v"])


OP = Op(
    name="linear_attn",
    title="Linear attention",
    paper="Katharopoulos, Vyas, Pappas, Fleuret: Transformers are RNNs (ICML 2020), section 3.4; arXiv:2006.16236",
    reading=Reading(
        model="S' k",
        loss="-<S' k, v>",
        optimiser="gradient descent, step 1",
        forgetting="none",
    ),
    equations="""
        S_t = S_{t-1} + k_t v_t'
        o_t = scale S_t' q_t
    """,
    inputs=(
        Tensor("q", ("B T H K",), "queries, after any feature map", role="query"),
        Tensor("k", ("B T H K",), "keys, after any feature map", role="key"),
        Tensor("v", ("B T HV V",), "values", role="value"),
    ),
    step=step,
    lower=lower,
    conventions={"default": "without the paper's division by q . sum k (FLA's normalize=False)"},
)
