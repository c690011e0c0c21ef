"""Verdicts: what passes, what fails and with which words."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import refengine
from refengine.verify.emulate import Core, Run, emulate
from refengine.verify.policy import policy
from refengine.verify.report import MOST_LINES
from refengine.verify.trials import SLACK, trial
from refengine.verify.verdict import Judge, problem_of

OP = "gated_delta_rule"
SIZE = dict(T=100, K=16, V=24)


@pytest.fixture(scope="module")
def inputs():
    return trial(OP, "mamba", **SIZE)


@pytest.fixture(scope="module")
def judges(inputs):
    return {grade: Judge(problem_of(OP, inputs), grade) for grade in ("bf16", "f32")}


def made(inputs, grade, run=None):
    """Outputs of an honest kernel in their own dtypes."""
    chosen = policy(grade)
    o, final = emulate(Core.of(problem_of(OP, inputs)), chosen, run or Run("chunk", 64))
    return {"o": o.astype(chosen.format("io").dtype), "final_state": final.astype(chosen.format("state").dtype)}


@pytest.mark.parametrize("grade", ["bf16", "f32"])
def test_an_honest_kernel_passes_and_says_so(inputs, judges, grade):
    found = judges[grade].verdict(made(inputs, grade))
    assert found.verdict == "PASS" and found.passed and found.exit_code() == 0
    assert found.compared == 100 * 4 * 24 + 4 * 16 * 24
    assert found.text.startswith("PASS  gated_delta_rule as " + grade)


def test_the_function_is_the_package(inputs):
    found = refengine.verify(OP, inputs, made(inputs, "bf16"), grade="bf16")
    assert found.verdict == "PASS"
    code = "import refengine.verify.policy, refengine; assert callable(refengine.verify); print(refengine.verify)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_coarser_kernel_is_named(inputs, judges):
    got = {name: x.astype(np.float32) for name, x in made(inputs, "tf32").items()}
    found = judges["f32"].verdict(got)
    assert found.verdict == "FAIL" and found.exit_code() == 1
    assert 0.5 < found.behaves_as["tf32"] < 2 < 100 < found.behaves_as["f32"]
    assert "errs as tf32 does" in found.text


def test_the_first_divergence_is_found(inputs, judges):
    good = made(inputs, "f32")
    late = {**good, "o": good["o"].copy()}
    late["o"][0, 70:, 2] *= 1.01
    where = judges["f32"].verdict(late).first_divergence
    assert (where["t"], where["head"], where["heads"], where["persists"]) == (70, 2, [2], True)
    assert where["of_chunk"] == {"16": 6, "32": 6, "64": 6, "128": 70}
    once = {**good, "o": good["o"].copy()}
    once["o"][0, 41, 1] *= 1.01
    found = judges["f32"].verdict(once)
    assert (found.first_divergence["t"], found.first_divergence["persists"]) == (41, False)
    assert found.worst["index"][:3] == [0, 41, 1] and found.worst["view"] == "o"
    assert found.worst["truth"] == judges["f32"].values("o")[tuple(found.worst["index"])]


BROKEN = {
    "missing": (lambda g: {"o": g["o"]}, "final_state is missing."),
    "extra": (lambda g: {**g, "lse": g["o"]}, "lse is no output of gated_delta_rule (its outputs: o, final_state)."),
    "shape": (lambda g: {**g, "o": g["o"][:, 1:]}, "o has shape [1, 99, 4, 24]; it is [1, 100, 4, 24]."),
    "dtype": (lambda g: {**g, "o": g["o"].astype(np.float64)}, "o is float64; the grade f32 declares io float32."),
    "zeros": (lambda g: {**g, "o": np.zeros_like(g["o"])}, None),
    "transposed": (lambda g: {**g, "final_state": g["final_state"][..., ::-1].copy()}, None),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN)
def test_what_is_not_the_answer_fails(inputs, judges, change, says):
    found = judges["f32"].verdict(change(made(inputs, "f32")))
    assert found.verdict == "FAIL"
    assert says is None or says in found.faults


def test_nan_is_never_equal_to_anything(inputs, judges):
    got = made(inputs, "f32")
    got["o"][0, 5, 1, 3] = np.nan
    found = judges["f32"].verdict(got)
    assert found.verdict == "FAIL"
    assert found.faults == ("o differs in NaN at 1 places, first at [0, 5, 1, 3], where the candidate has it.",)
    assert len(found.text.splitlines()) <= MOST_LINES
    json.loads(found.to_json(), parse_constant=pytest.fail)


def test_exact_inputs_ask_for_equality():
    exact = trial(OP, "e1", **SIZE)
    judge = Judge(problem_of(OP, exact), "bf16")
    good = made(exact, "bf16")
    assert judge.exact and judge.verdict(good).verdict == "PASS"
    good["o"][0, 9, 0, 0] += 0.125
    found = judge.verdict(good)
    assert found.verdict == "FAIL" and "o must be equal to the bit here, but 1 elements are not" in found.faults[0]


def test_halved_inputs_ask_for_the_same_multiple():
    halved = trial(OP, "e3", **SIZE)
    judge = Judge(problem_of(OP, halved), "f32", slack=SLACK["e3"])
    good = made(halved, "f32")
    good["final_state"] *= np.float32(1 + 1e-6)  # an exponential of its own
    assert judge.verdict(good).verdict == "PASS"
    twice = {**halved, "g": 2 * halved["g"]}
    found = judge.verdict(made(twice, "f32"))
    assert found.verdict == "FAIL" and "o must be equal to 0.03125 here" in found.faults[0]


def test_what_lies_beside_the_outputs_in_a_file_is_no_output(inputs, judges):
    good = made(inputs, "f32")
    beside = {"o.bound": good["o"], "o.lo.bound": good["o"], "final_state.delta": good["o"], "states": good["o"]}
    assert judges["f32"].verdict({**good, **beside, "pairing_state.k": good["o"]}).verdict == "PASS"
    found = judges["f32"].verdict({**good, "p.bound": good["o"]})
    assert found.faults == ("p.bound is no output of gated_delta_rule (its outputs: o, final_state).",)


def test_float64_is_judged_by_a_truth_of_twice_its_precision(inputs):
    found = Judge(problem_of(OP, inputs), "f64").verdict(made(inputs, "f64"))
    assert found.verdict == "PASS" and {s.uncertain for s in found.statistics} == {0}


def test_a_truth_that_is_not_known_well_enough_is_inconclusive(inputs):
    judge = Judge(problem_of(OP, inputs), "f32")
    good = made(inputs, "f32")
    for name, scale in judge.scale.items():
        judge.scale[name] = replace(scale, certificate=scale.sigma)
    found = judge.verdict(good)
    assert found.verdict == "INCONCLUSIVE" and found.exit_code() == 6


def test_nothing_compared_is_not_green():
    nothing = trial(OP, "mamba", T=0, K=4, V=4, B=0)
    found = Judge(problem_of(OP, nothing), "f32").verdict(
        {"o": np.zeros((0, 0, 4, 4), np.float32), "final_state": np.zeros((0, 4, 4, 4), np.float32)}
    )
    assert found.verdict == "INCONCLUSIVE" and found.exit_code() == 5


def test_outputs_may_be_chosen(inputs, judges):
    got = {"o": made(inputs, "f32")["o"]}
    assert judges["f32"].verdict(got, ["o"]).verdict == "PASS"
    with pytest.raises(refengine.InputError, match="has no output 'ht'"):
        judges["f32"].verdict(got, ["ht"])
