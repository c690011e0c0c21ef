"""Other people's code: the torch functions of Hugging Face's Qwen3-Next pass at float32, each of eleven edits fails.

Run where torch and transformers are installed; neither is among the test dependencies.
"""

from functools import cache
from inspect import unwrap
from math import log

import pytest

from refengine.testing import cases

torch = pytest.importorskip("torch")
qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")

FUNCTIONS = {"recurrent": "torch_recurrent_gated_delta_rule", "chunk": "torch_chunk_gated_delta_rule"}


def kernel(name, change=None, options=None, after=None):
    """The function under our names; `change` edits its tensors, `options` its keywords, `after` what it returns."""
    function = unwrap(getattr(qwen, FUNCTIONS[name]))  # the torch code itself, where others' kernels would replace it

    def run(q, k, v, g, beta, initial_state=None):
        each = v.shape[2] // q.shape[2]
        x = {"q": q.repeat_interleave(each, 2), "k": k.repeat_interleave(each, 2), "v": v, "g": g, "beta": beta}
        how = {"initial_state": initial_state, "output_final_state": True, "use_qk_l2norm_in_kernel": False}
        x, how = (change or (lambda x: x))(x), (options or (lambda how: how))(how)
        o, final = function(x["q"], x["k"], x["v"], x["g"], x["beta"], **how)
        return (after or (lambda o, final: (o, final)))(o, final)

    return run


def with_tensor(name, edit):
    return {"change": lambda x: {**x, name: edit(x)}}


EDITS = {
    "g in base 2": with_tensor("g", lambda x: x["g"] * log(2)),
    "g one token late": with_tensor("g", lambda x: torch.roll(x["g"], 1, 1)),
    "g in bfloat16": with_tensor("g", lambda x: x["g"].bfloat16().float()),
    "beta doubled": with_tensor("beta", lambda x: 2 * x["beta"]),
    "keys of other heads": with_tensor("k", lambda x: x["k"][:, :, [0, 2, 1, 3]]),
    "q and k swapped": {"change": lambda x: {**x, "q": x["k"], "k": x["q"]}},
    "normalised twice": {"options": lambda how: {**how, "use_qk_l2norm_in_kernel": True}},
    "no initial state": {"options": lambda how: {**how, "initial_state": None}},
    "initial state transposed": {"options": lambda how: {**how, "initial_state": how["initial_state"].mT.contiguous()}},
    "final state transposed": {"after": lambda o, final: (o, final.mT.contiguous())},
    "last token zero": {"after": lambda o, final: (torch.cat([o[:, :-1], 0 * o[:, -1:]], 1), final)},
}


@cache
def problems():
    found = {case.regime: case for case in cases("gated_delta_rule", "f32", {"K": 64, "V": 64})}
    return [found[regime] for regime in ("fla", "mamba", "nodecay", "corr", "strong")]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("which", range(5))
def test_it_passes_as_it_is(name, which):
    problems()[which].check(kernel(name))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("edit", EDITS)
def test_each_edit_fails(name, edit):
    assert problems()[1].verdict(kernel(name, **EDITS[edit])).verdict == "FAIL"
