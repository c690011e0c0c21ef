"""Wrong gradients: which, from where, and by which known mistake of backward passes."""

import json

import jsonschema
import numpy as np
import pytest

from refengine.diagnose import words
from refengine.diagnose.confusion import names
from refengine.diagnose.diagnosis import Case
from refengine.verify.emulate import Run, emulate
from refengine.verify.gradient_mistakes import CATALOGUE, mutated
from refengine.verify.gradients import emulate as backward
from refengine.verify.mutate import cotangents, stored
from refengine.verify.trials import trial
from refengine.verify.verdict import problem_of
from refengine.verify.yardstick import part_of

OP = "gated_delta_rule"
WAY = Run("chunk", 64)


@pytest.fixture(scope="module")
def case():
    given = trial(OP, "mamba", 21, B=2, T=70, K=8, V=8) | {"use_qk_l2norm": True}
    return Case(OP, {**given, **cotangents(problem_of(OP, given), 21)}, "bf16")


def given(case, gradients):
    """Right outputs and these gradients, in the dtypes of the grade."""
    policy = case.judge.policy
    made = stored(case.judge, *emulate(case.judge.core, policy, WAY))
    return made | {n: x.astype(policy.format(part_of(n, x.ndim)).dtype) for n, x in gradients.items()}


@pytest.mark.parametrize("mutant", CATALOGUE[::3], ids=lambda m: m.name)
def test_mistakes_of_backward_passes(case, mutant):
    made = mutated(mutant, case.judge.back, case.judge.policy, WAY)
    found = case.diagnosis(given(case, made), None)
    assert not names(found) or mutant.name in names(found), found.text
    assert set(found.where.outputs).isdisjoint({"o", "final_state"}) and (found.best or found.open), found.text


def test_right_gradients_are_called_nothing(case):
    found = case.diagnosis(given(case, backward(case.judge.back, case.judge.policy, Run("chunk", 32))), None)
    assert found.outcome == "nothing wrong"


def test_wrong_gradients_that_nobody_knows(case):
    right = backward(case.judge.back, case.judge.policy, WAY)
    right["dk"][1, 40:43, 1] *= 2.0
    found = case.diagnosis(given(case, right), None)
    assert (found.outcome, found.where.outputs) == ("unknown", ("dk",)), found.text
    assert (found.where.first["batch"], found.where.first["tokens"], found.where.first["head"]) == (1, [42, 42], 1)
    assert "only dk of the gradients" in found.text and "only head 1" in found.text
    jsonschema.validate(json.loads(found.to_json()), words.SCHEMA)


def test_wrong_outputs_come_first(case):
    got = given(case, backward(case.judge.back, case.judge.policy, WAY))
    got["o"] = (got["o"].astype(np.float32) * 8**0.5).astype(got["o"].dtype)
    assert names(case.diagnosis(got, None)) == ("scale_missing",)
