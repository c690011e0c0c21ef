"""A mistake is named if it is known, and none is where there is none or where it is not."""

import json

import jsonschema
import numpy as np
import pytest
from spanning import problem

import refengine
from refengine import InputError, UnavailableError, ops
from refengine.diagnose import words
from refengine.diagnose.confusion import REGIMES, WAYS, cases, confusion, honest, made
from refengine.diagnose.suspects import part
from refengine.verify.emulate import Core, Run, emulate
from refengine.verify.mistakes import EXACT, find
from refengine.verify.mutate import stored
from refengine.verify.policy import policy
from refengine.verify.trials import trial

OP = "gated_delta_rule"
SOME = (
    "scale_off_1_percent",
    "prediction_before_decay",
    "heads_tiled",
    "write_dropped",
    "chunk_w_ungated",
    "stale_column",
)


@pytest.fixture(scope="module")
def mamba():
    return next(cases(OP, "bf16", 71))[1]


@pytest.mark.parametrize(("grade", "seed", "only"), [("bf16", 72, SOME), ("f32", 73, ("gates_bf16", "state_bf16"))])
def test_known_mistakes_are_named_and_none_wrongly(grade, seed, only):
    rows = confusion(OP, grade, seed, only)
    assert {(r.mutant.name, r.right, r.wrong) for r in rows} == {(name, True, 0) for name in only}


def test_correct_emulations_are_never_called_anything():
    assert honest(OP, "bf16", 74, 7) == {"nothing wrong": 7 * len(REGIMES)}  # 56


@pytest.mark.parametrize("op", ["kda", "gdn2", "gated_delta_product", "rwkv7"])
def test_one_head_alone_is_that_head_of_all(op):
    core = Core.of(problem(op, trial(op, "mamba", 3, B=2, T=40, K=8, V=6)))
    o, final = emulate(core, EXACT, Run("recurrent"))
    for n, h in ((0, 3), (1, 1)):
        alone, left = emulate(part(core, n, h), EXACT, Run("recurrent"))
        assert np.array_equal(alone[0, :, 0], o[n, :, h]) and np.array_equal(left[0, 0], final[n, h])


def wrong(case, change):
    """The right outputs with something done to them, in the dtypes of the grade."""
    o, final = emulate(case.judge.core, case.judge.policy, Run("chunk", 64))
    return change(stored(case.judge, o, final))


def test_json_follows_its_schema(mamba):
    named = mamba.diagnosis(made(find(ops.get(OP), "scale_missing"), mamba, WAYS[0]), None)
    fine = mamba.diagnosis(wrong(mamba, lambda got: got), None)
    unusable = mamba.diagnosis({"o": np.zeros(3)}, None)
    assert (named.best.name, fine.outcome, unusable.outcome) == ("scale_missing", "nothing wrong", "unusable")
    for found in (named, fine, unusable):
        data = json.loads(found.to_json())
        jsonschema.validate(data, words.SCHEMA)
        assert data["text"] == found.text
    assert "It is scale_missing: o without its scale" in named.text


def test_a_function_is_called_and_named():
    given = trial(OP, "mamba", 75, T=40, K=8, V=8)

    def kernel(q, k, v, g, beta, initial_state):
        s = refengine.solve(OP, q=q, k=k, v=v, g=g, beta=beta * beta, initial_state=initial_state)
        return s.o.astype(q.dtype), s.final_state.astype(np.float32)

    found = refengine.diagnose(OP, given, kernel)
    assert (found.outcome, found.best.name) == ("named", "beta_squared")


def test_what_the_rounding_of_products_hides_shows_where_nothing_is_written():
    given = trial(OP, "mamba", 76, T=80, K=8, V=8)

    def kernel(run, grade, **inputs):
        o, final = emulate(Core.of(problem(OP, inputs)), policy(grade), run)
        return o.astype(inputs["q"].dtype), final.astype(np.float32)

    for grade, name in (("bf16:state=bf16", "state_bf16"), ("bf16:gate=bf16", "gates_bf16")):
        found = refengine.diagnose(OP, given, lambda grade=grade, **inputs: kernel(WAYS[1], grade, **inputs))
        assert (found.outcome, found.best and found.best.name, found.still) == ("named", name, True), found.text
        assert found.text.startswith("On the inputs given nothing is wrong. On one where no key writes"), found.text
        jsonschema.validate(json.loads(found.to_json()), words.SCHEMA)
    for run in (*WAYS, Run("chunk", 16)):
        found = refengine.diagnose(OP, given, lambda run=run, **inputs: kernel(run, "bf16", **inputs))
        assert (found.outcome, found.still) == ("nothing wrong", False), found.text
    assert "A state or gates kept in bf16 would not show here; `--probe FILE`" in found.text


def test_what_cannot_be_asked_is_refused():
    given = trial(OP, "mamba", T=3, K=4, V=4)
    with pytest.raises(InputError, match="candidate is a int; it is a mapping of outputs, or a callable"):
        refengine.diagnose(OP, given, 3)
    x = np.ones((1, 3, 1, 2))
    with pytest.raises(UnavailableError, match="is not of the delta core"):
        refengine.diagnose("softmax_attention", {"q": x, "k": x, "v": x}, {"o": x})
    given = {"q": x, "k": x, "v": x, "theta": np.ones((1, 3, 1)), "loss": "huber", "chunk_size": 1}
    with pytest.raises(UnavailableError, match="ttt with loss huber is not of the delta core"):
        refengine.diagnose("ttt", given, {"o": x})
