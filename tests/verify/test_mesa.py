"""The exact learner, judged: its emulation is the definition where nothing is rounded, honest kernels pass, mistakes
do not."""

import numpy as np
import pytest
from spanning import case, problem

import refengine
from refengine import UnavailableError
from refengine.engine.run import execute
from refengine.verify import mesa_mistakes
from refengine.verify.emulate import Run
from refengine.verify.mesa import core_of
from refengine.verify.mistakes import EXACT, mutated
from refengine.verify.policy import policy
from refengine.verify.trials import trial
from refengine.verify.verdict import Judge, problem_of

OP = "mesa_net"
SIZE = dict(T=60, K=12, V=10)
WAYS = (Run(), Run("chunk"), Run("chunk", seed=0, permutation=3))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (OP, {}),
        (OP, {"solver": "cg", "iterations": 4}),
        (OP, {"solver": "cg", "iterations": 3, "x0": "diagonal"}),
        (OP, {"cu_seqlens": [0, 0, 17, 18, 40]}),
        ("gated_kalmanet", {"solver": "exact"}),
    ],
)
def test_unrounded_it_is_the_definition(name, more):
    lengths = more.get("cu_seqlens")
    p = problem(name, {**case(name, cu_seqlens=lengths), **more})
    s = execute(p)
    for run in WAYS:
        got = core_of(p).outputs(policy("f64"), run)
        assert set(got) == {"o", *s.finals}
        for output, true in {"o": s.o, **s.finals}.items():
            assert np.abs(got[output] - true).max() <= 1e-9 * np.abs(true).max()


def test_chebyshev_is_beyond_it():
    with pytest.raises(UnavailableError, match="Chebyshev"):
        core_of(problem("gated_kalmanet", case("gated_kalmanet") | {"solver": "chebyshev"}))


@pytest.fixture(scope="module")
def judges():
    return {grade: Judge(problem_of(OP, trial(OP, "mamba", 5, **SIZE)), grade) for grade in ("bf16", "f32")}


def stored(judge, got):
    return {n: x.astype(judge.policy.format("io" if n == "o" else "state").dtype) for n, x in got.items()}


@pytest.mark.parametrize("grade", ["bf16", "f32"])
def test_honest_kernels_pass(judges, grade):
    judge = judges[grade]
    for run in WAYS:
        found = judge.verdict(stored(judge, judge.core.outputs(judge.policy, run)))
        assert found.verdict == "PASS", found.text
        assert found.exit_code() == 0 and "final_state.h_kv columns" in found.text


@pytest.mark.parametrize("mutant", mesa_mistakes.CATALOGUE, ids=lambda m: m.name)
def test_every_mistake_is_one_and_fails(judges, mutant):
    judge = judges["bf16" if mutant.name == "truncated" else "f32"]
    for run in WAYS[:2]:
        got = mutated(mutant, judge.core, judge.policy, run)
        if got is not None:
            wrong = mutated(mutant, judge.core, EXACT, run)
            assert mutant.precision or any(not np.allclose(x, judge.values(n), 1e-6) for n, x in wrong.items())
            assert mutant.name == "truncated" or judge.verdict(stored(judge, got)).verdict == "FAIL"
            return
    raise AssertionError(f"{mutant.name} cannot be made")


def right(q, k, v, g, beta, lamb, initial_state=None, cu_seqlens=None):
    o, states = refengine.ops.mesa_net(q, k, v, g, beta, lamb, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return o.astype(np.float32), tuple(x.astype(np.float32) for x in states)


def test_a_function_of_several_states_and_its_laws():
    given = {
        n: x if n == "initial_state" else np.asarray(x, np.float32) for n, x in trial(OP, "mamba", B=2, **SIZE).items()
    }
    found = refengine.verify(OP, given, right, grade="f32", laws=True)
    assert found.verdict == "PASS", found.text
    laws = {law.name: law.holds for law in found.laws}
    assert laws == {"split": None, "decode": None, "poison": None} | dict.fromkeys(
        ("repeat", "heads", "batch", "pack"), True
    )
    stopped = refengine.verify(OP, given, lambda q, k, v, **rest: right(q * 1.001, k, v, **rest), grade="f32")
    assert stopped.verdict == "FAIL"
