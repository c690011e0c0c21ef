"""Gradients: the emulated backward pass is the exact one where nothing is rounded, honest ones pass and wrong ones
fail, whoever computes them."""

import numpy as np
import pytest
import spanning
from spanning import problem

import refengine
from refengine import AdapterError
from refengine.verify import gradient_mistakes
from refengine.verify.candidates import Called
from refengine.verify.emulate import Core, Run
from refengine.verify.gradients import Backward, emulate
from refengine.verify.mutate import cotangents
from refengine.verify.policy import policy
from refengine.verify.trials import trial
from refengine.verify.verdict import Judge, problem_of

OP = "gated_delta_rule"
SIZE = dict(T=70, K=12, V=12)
F64 = policy("f64")


def asked(name, given, seed=0):
    p = problem(name, given)
    return Backward.of(p, Core.of(p), *cotangents(p, seed).values())


@pytest.mark.parametrize(
    ("name", "regime"),
    [
        (OP, "front"),
        *((name, "mamba") for name in ("linear_attn", "kda", "gated_delta_product", "rwkv7", "comba", "gdn2")),
    ],
)
def test_unrounded_it_is_the_exact_gradient(name, regime):
    back = asked(name, trial(name, regime, B=2, **SIZE))
    for run in (Run("chunk", 64), Run("chunk", 16, 5, permutation=3, splits=(9,)), Run()):
        found = emulate(back, F64, run)
        assert set(found) == {f"d{n}" for n in back.truth}
        for n, true in back.truth.items():
            assert np.abs(found[f"d{n}"] - true).max() <= 1e-11 * np.abs(true).max(), n


def test_packed_sequences_and_empty_ones():
    back = asked("kda", spanning.case("kda", cu_seqlens=[0, 0, 17, 18, 40]))
    found = emulate(back, F64, Run("chunk", 16))
    for n, true in back.truth.items():
        assert np.abs(found[f"d{n}"] - true).max() <= 1e-11 * np.abs(true).max(), n


@pytest.mark.parametrize("regime", ["e1", "e2"])
def test_exact_inputs_have_exact_gradients(regime):
    p = problem(OP, trial(OP, regime, T=100, K=16, V=16))
    whole = {n: np.sign(np.round(x)) for n, x in cotangents(p, 1).items()}
    back = Backward.of(p, Core.of(p), whole["do"], whole["dht"])
    for grade in ("f32", "bf16"):
        for run in (Run("chunk", 16), Run("chunk", 64, splits=(1, 50))):
            found = emulate(back, policy(grade), run)
            for n in ("q", "v", "beta"):
                np.testing.assert_array_equal(found[f"d{n}"], back.truth[n])


@pytest.fixture(scope="module")
def judges():
    found = {}
    for grade in ("bf16", "f32"):
        given = trial(OP, "mamba", 3, B=1, T=100, K=32, V=32)
        p = problem_of(OP, given)
        found[grade] = Judge(p, grade, cotangents=cotangents(p, 3))
    return found


def stored(judge, got):
    return {n: x.astype(judge.policy.format("io" if n in ("dq", "dk", "dv") else "gate").dtype) for n, x in got.items()}


@pytest.mark.parametrize("grade", ["bf16", "f32"])
def test_honest_gradients_pass_and_wrong_ones_fail(judges, grade):
    judge = judges[grade]
    names = [n for n in judge.names if n.startswith("d")]
    for run in (Run("chunk", 64), Run("chunk", 16, splits=(1, 37))):
        found = judge.verdict(stored(judge, emulate(judge.back, judge.policy, run)), names)
        assert found.verdict == "PASS", found.text
    for mutant in gradient_mistakes.CATALOGUE:
        got = gradient_mistakes.mutated(mutant, judge.back, judge.policy, Run("chunk", 64))
        if got is not None:
            assert judge.verdict(stored(judge, got), names).verdict == "FAIL", mutant.name


@pytest.mark.parametrize(
    ("regime", "seed", "calls"),
    [("corr", 31, [((1,), 128), ((50, 100), 128)]), ("strong", 65, [((1,), 64), ((63, 65), 16)])],
)
def test_rows_at_the_borders_of_chunks_may_err_more(regime, seed, calls):
    """dk where a chunk begins and keys are nearly parallel, dv where one ends and it is small: several sigma."""
    p = problem_of(OP, trial(OP, regime, seed, B=2, T=150))
    judge = Judge(p, "bf16", cotangents=cotangents(p, 60 if seed > 60 else 30))
    beyond = []
    for splits, chunk in calls:
        got = emulate(judge.back, judge.policy, Run("chunk", chunk, splits=splits))
        assert judge.verdict(stored(judge, got), [*got]).verdict == "PASS"
        for name in ("dk", "dv"):
            off = np.sqrt(((got[name] - judge.values(name)) ** 2).sum(axis=-1))
            beyond.append((off / judge.scale[name].sigma).max())
    assert max(beyond) > 4.4


def test_a_gradient_that_is_missing_or_misshapen_is_told(judges):
    judge = judges["f32"]
    got = stored(judge, emulate(judge.back, judge.policy, Run("chunk", 64)))
    del got["dg"]
    found = judge.verdict({**got, "dq": got["dq"].sum(axis=2, keepdims=True)}, [*got, "dg"])
    assert "dg is missing." in found.faults and "dq has shape [1, 100, 1, 32]; it is [1, 100, 2, 32]." in found.faults


def test_what_is_owed_to_a_start_from_nothing_need_not_be_given():
    given = trial(OP, "mamba", 3, B=1, T=20, K=4, V=4)
    for start, faults in (("there", ("dinitial_state is missing.",)), (None, ())):
        inputs = given if start else {n: x for n, x in given.items() if n != "initial_state"}
        p = problem_of(OP, inputs)
        judge = Judge(p, "f32", cotangents=cotangents(p, 3))
        got = {n: judge.values(n).astype(judge.policy.format("gate").dtype) for n in judge.names}
        wrong = {**got, "dinitial_state": np.ones_like(got["dinitial_state"])}
        assert judge.verdict(wrong).verdict == "FAIL"
        del got["dinitial_state"]
        assert judge.verdict(got).faults == faults
        assert judge.verdict(got, judge.names).faults == ("dinitial_state is missing.",)


def f32(given):
    return {n: np.asarray(x, np.float32) for n, x in given.items()}


def both(q, k, v, g, beta, initial_state, do, dht):
    given = dict(q=q, k=k, v=v, g=g, beta=beta, initial_state=initial_state)
    s, d = refengine.solve(OP, **given), refengine.grad(OP, **given, do=do, dht=dht)
    found = {"o": s.o, "final_state": s.final_state, **{f"d{n}": x for n, x in d.items()}}
    return {n: x.astype(np.float32) for n, x in found.items()}


def test_a_function_gives_its_own():
    given = f32(trial(OP, "mamba", T=40, K=8, V=8))
    more = cotangents(problem_of(OP, given), 5)
    found = refengine.verify(OP, {**given, **more}, both, grade="f32")
    assert found.verdict == "PASS" and found.compared > 3 * 40 * 2 * 8
    halved = refengine.verify(OP, {**given, **more}, lambda **x: {**both(**x), "dg": both(**x)["dg"] / 2}, grade="f32")
    assert halved.verdict == "FAIL" and "dg windows" in halved.text
    laws = refengine.verify(OP, {**given, **more}, both, grade="f32", laws=True).laws
    assert [law.detail for law in laws] == ["the candidate cannot be called without do"]


def test_a_torch_function_is_differentiated():
    torch = pytest.importorskip("torch")

    def kernel(q, k, v, g, beta, initial_state):
        S = initial_state
        q, k = (x.repeat_interleave(2, 2) for x in (q, k))
        o = []
        for t in range(q.shape[1]):
            S = S * g[:, t, :, None, None].exp()
            u = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t]))
            S = S + k[:, t, :, :, None] * u[:, :, None]
            o.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]) * q.shape[-1] ** -0.5)
        return torch.stack(o, 1), S

    given = f32(trial(OP, "mamba", T=40, K=8, V=8))
    more = cotangents(problem_of(OP, given), 5)
    found = refengine.verify(OP, {**given, **more}, kernel, grade="f32", framework="torch")
    assert found.verdict == "PASS", found.text
    with pytest.raises(AdapterError, match="gives no final_state, which dht is the gradient of"):
        Called(kernel, "torch").autograd({"o": torch.zeros(1)}, {"dht": more["dht"]}, {})
