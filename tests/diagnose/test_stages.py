"""With its stages given, a kernel that was fed a wrong gate is told from one whose recurrence is wrong."""

import json

import jsonschema
import numpy as np
import pytest

import refengine
from refengine import Gate, InputError
from refengine.diagnose import words
from refengine.diagnose.confusion import WAYS, made
from refengine.diagnose.diagnosis import Case
from refengine.engine.definition import inputs as definition
from refengine.verify.emulate import Core, emulate
from refengine.verify.mistakes import find
from refengine.verify.mutate import stored
from refengine.verify.trials import FRONT, trial

OP = "gated_delta_rule"


@pytest.fixture(scope="module")
def case():
    return Case(OP, trial(OP, FRONT, 61, B=2, T=70, K=8, V=8), "bf16")


def fed(case):
    """What a kernel feeds its recurrence, in the dtypes of the grade."""
    own = definition(case.judge.problem, lambda x: np.asarray(x, np.float64))
    dtype = case.judge.policy.format("operand").dtype
    return {f"stage.{n}": x.astype(np.float32 if n in ("g", "beta") else dtype) for n, x in own.items()}


def test_right_stages_of_a_right_kernel_are_right(case):
    got = stored(case.judge, *emulate(case.judge.core, case.judge.policy, WAYS[1]))
    found = case.diagnosis({**got, **fed(case)}, None)
    assert (found.outcome, found.recurrence) == ("nothing wrong", True)
    assert {s.name: s.holds for s in found.stages} == dict.fromkeys(("q", "k", "v", "g", "beta"), True)


def test_a_wrong_gate_is_not_blamed_on_the_recurrence(case):
    mutant = find(case.judge.problem.op, "dt_bias_missing")
    got = made(mutant, case, WAYS[1])
    g = mutant.alter(case.judge.core).g[..., 0].astype(np.float32)
    found = case.diagnosis({**got, **fed(case), "stage.g": g}, None)
    assert (found.outcome, found.recurrence, found.best) == ("fed wrong", True, None)
    assert [(s.name, s.like) for s in found.stages if not s.holds] == [("g", ("dt_bias_missing",))]
    assert "The recurrence is fine" in found.text and "g differs." in found.text
    jsonschema.validate(json.loads(found.to_json()), words.SCHEMA)


def test_a_wrong_gate_that_nobody_knows(case):
    raw = case.inputs["gate"]
    other = {**case.inputs, "gate": Gate(raw.a + 0.3, raw.A_log, raw.dt_bias)}
    wrong = Case(OP, other, "bf16")
    got = stored(wrong.judge, *emulate(wrong.judge.core, wrong.judge.policy, WAYS[0]))
    found = case.diagnosis({**got, **fed(wrong)}, None)
    assert found.outcome == "fed wrong"
    assert [(s.name, s.like, s.first) for s in found.stages if not s.holds] == [("g", (), (0, 0, 0))]


def test_a_wrong_recurrence_with_right_stages(case):
    got = made(find(case.judge.problem.op, "beta_squared"), case, WAYS[1])
    found = case.diagnosis({**got, **fed(case)}, None)
    assert (found.outcome, found.best.name, found.recurrence) == ("named", "beta_squared", False)
    assert "The recurrence is wrong also for the stages that it was fed." in found.text


def chunk_stages(case, C):
    """w, u and the states before each chunk, token by token from their definitions."""
    core, p = case.judge.core, case.judge.problem
    B, T, HV, V = core.v.shape
    K = core.k.shape[3]
    w, u = np.zeros((B, T, HV, K)), np.zeros((B, T, HV, V))
    for b in range(B):
        for h in range(HV):
            key = h // (HV // core.k.shape[2])
            for t in range(T):
                start = t // C * C
                k, beta, G = (
                    core.k[b, start : t + 1, key],
                    core.b[b, t, h, 0],
                    np.cumsum(core.g[b, start : t + 1, h, 0]),
                )
                decay = np.exp(G[-1] - G[:-1]) * (k[:-1] @ k[-1])
                w[b, t, h] = beta * (np.exp(G[-1]) * k[-1] - decay @ w[b, start:t, h])
                u[b, t, h] = beta * (core.v[b, t, h] - decay @ u[b, start:t, h])
    given = {n: x for n, x in case.inputs.items() if x is not None}
    states = refengine.solve(p.op.name, **given, states_at=list(range(0, T, C))).states
    return {"stage.w": w, "stage.u": u, "stage.h": np.moveaxis(states, 0, 1)}


@pytest.mark.parametrize(("wrong", "change"), [(None, None), ("w", 1.5), ("u", 1.5), ("h", 1.5)])
def test_the_stages_of_chunks(case, wrong, change):
    got = stored(case.judge, *emulate(case.judge.core, case.judge.policy, WAYS[1]))
    stages = {name: x.astype(np.float32) for name, x in chunk_stages(case, 32).items()}
    if wrong:
        stages[f"stage.{wrong}"][1, 1, 2] *= change
    found = case.diagnosis({**got, **stages}, None)
    assert {s.name: s.holds for s in found.stages} == {n: n != wrong for n in ("w", "u", "h")}
    assert all("chunks of 32" in s.detail for s in found.stages if s.name != wrong)
    if wrong:
        stage = next(s for s in found.stages if s.name == wrong)
        assert stage.first[:3] == (1, 1, 2) and stage.first[0] == 1


def test_w_without_its_decay_is_right_too(case):
    w = chunk_stages(case, 16)["stage.w"]
    core = Core.of(case.judge.problem)
    G = np.concatenate([np.cumsum(core.g[:, t : t + 16], axis=1) for t in range(0, 70, 16)], axis=1)
    got = stored(case.judge, *emulate(core, case.judge.policy, WAYS[1]))
    found = case.diagnosis({**got, "stage.w": (w * np.exp(-G)).astype(np.float32)}, None)
    assert [(s.holds, s.detail) for s in found.stages] == [(True, "w, not decayed, chunks of 16")]


def test_unknown_stages_are_refused(case):
    got = stored(case.judge, *emulate(case.judge.core, case.judge.policy, WAYS[1]))
    with pytest.raises(InputError, match="gated_delta_rule has no stage 'gama'"):
        case.diagnosis({**got, "stage.gama": np.zeros(3)}, None)
    with pytest.raises(InputError, match=r"stage.g has shape \[3\]; it is \[2, 70, 4\]"):
        case.diagnosis({**got, "stage.g": np.zeros(3)}, None)
