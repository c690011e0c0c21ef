"""Free parameters fitted, two mistakes at once, mistakes that nobody declared, and inputs that tell suspects apart."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import refengine
from refengine import ops
from refengine.diagnose.confusion import BOTH, WRONGLY, cases, compounds, names, placed
from refengine.diagnose.diagnosis import Case
from refengine.diagnose.probes import FAINT, REGIMES, drawn, probes, settling, stilled
from refengine.diagnose.suspects import Suspect
from refengine.diagnose.where import HINTS
from refengine.diagnose.words import FAR, SHOWN
from refengine.verify.candidates import Called
from refengine.verify.emulate import Run, emulate
from refengine.verify.mistakes import find, joined, read_late, tail_ignored, tail_unwritten
from refengine.verify.mutate import stored
from refengine.verify.trials import trial
from refengine.verify.verdict import problem_of

OP = "gated_delta_rule"
WAY = Run("chunk", 64)
SMALL = {"B": 2, "T": 70, "H": 2, "HV": 4, "K": 8, "V": 8}


@pytest.fixture(scope="module")
def case():
    return next(cases(OP, "bf16", 81, SMALL))[1]


def kernel(case, alter=lambda core: core, run=WAY):
    """What a kernel gives that computes another lowered problem."""
    return stored(case.judge, *emulate(alter(case.judge.core), case.judge.policy, run))


def times(core, field, factor):
    return replace(core, **{field: factor * getattr(core, field)})


def heads_moved(core, field, order):
    return replace(core, **{field: np.ascontiguousarray(getattr(core, field)[:, :, order])})


def lost(core, t):
    g = core.g.copy()
    g[1, t] = -1000.0
    return replace(core, g=g)


@pytest.mark.parametrize(
    ("alter", "name", "parameter", "value"),
    [
        (partial(times, field="g", factor=0.4), "gate_factor", "factor", 0.4),
        (partial(times, field="b", factor=0.8), "beta_factor", "factor", 0.8),
        (partial(times, field="v", factor=1.5), "value_factor", "factor", 1.5),
        (lambda core: replace(core, scale=core.scale * 0.75), "scale", "gain", 0.75),
        (partial(lost, t=41), "state_lost", "token", 41),
        (partial(heads_moved, field="g", order=[0, 2, 1, 3]), "gate_heads", "heads", [0, 2, 1, 3]),
        (partial(heads_moved, field="b", order=[0, 1, 3, 2]), "beta_heads", "heads", [0, 1, 3, 2]),
    ],
)
def test_a_parameter_is_fitted(case, alter, name, parameter, value):
    found = case.diagnosis(kernel(case, alter), None)
    assert (found.outcome, names(found)) == ("named", (name,)), found.text
    assert found.best.suspect.parameters[parameter] == pytest.approx(value, rel=2e-2)


def test_how_old_the_state_is(case):
    core = case.judge.core
    early = replace(core, segments=tuple((b, t0, t1 - 3) for b, t0, t1 in core.segments))
    got = {**kernel(case), "final_state": kernel(case, lambda _: early)["final_state"]}
    found = case.diagnosis(got, None)
    assert (names(found), found.best.suspect.parameters) == (("state_stale",), {"tokens": 3})


def test_what_is_read_a_token_late_and_what_the_next_batch_row_begins_with(case):
    got = {**kernel(case), "o": kernel(case, read_late)["o"]}
    assert names(case.diagnosis(got, None)) == ("read_last_state",)
    found = case.diagnosis(kernel(case, joined), None)
    assert names(found) == ("rows_joined",) and found.where.hint == HINTS["later"], found.text
    o, final = emulate(case.judge.core, case.judge.policy, WAY)
    o[..., 4:] = np.where(np.arange(70)[:, None, None] % 3 == 0, 99 * o[..., 4:], o[..., 4:])
    found = case.diagnosis(stored(case.judge, o, final), None)
    assert (found.outcome, found.where.hint) == ("unknown", HINTS["columns"]), found.text
    shown = sum(f.score < FAR for f in found.ranking[:SHOWN])
    assert found.text.count("\n") == shown and ("Nothing comes near." in found.text) == (found.ranking[0].score >= FAR)


@pytest.mark.parametrize(("alter", "name"), [(tail_unwritten, "tail_unwritten"), (tail_ignored, "tail_ignored")])
@pytest.mark.parametrize("chunk", [64, 16])
def test_a_partial_last_chunk_left_out(alter, name, chunk):
    other = Case(OP, trial(OP, "mamba", 82, T=120, H=1, HV=1, K=8, V=8), "bf16")
    o, final = emulate(other.judge.core, other.judge.policy, WAY)
    got = alter({"o": o, "final_state": final}, other.judge.core, chunk=chunk)
    found = other.diagnosis(stored(other.judge, got["o"], got["final_state"]), None)
    assert names(found) == (name,) and f"chunk of {chunk}" in found.best.suspect.doc, found.text


def test_a_gain_is_called_by_its_power(case):
    found = case.diagnosis(kernel(case, lambda core: replace(core, scale=core.scale * 8.0)), None)
    assert "times as large (K or V: K = V here" in found.text, found.text


def channels_rolled(core, field):
    return replace(core, **{field: np.roll(getattr(core, field), 1, axis=-1)})


def every_second_gate(core):
    g = core.g.copy()
    g[:, 1::2] = 0.0
    return replace(core, g=g)


def half_the_heads(core):
    b = core.b.copy()
    b[:, :, 2:] *= 0.5
    return replace(core, b=b)


def key_read_late(core):
    """The prediction with the key of the token before."""
    e = core.k.copy()
    e[:, 1:] = core.k[:, :-1]
    return replace(core, e=e)


INVENTED = {
    "a saturated exponent": lambda core: replace(core, g=np.maximum(core.g, -0.02)),
    "beta with an eps": lambda core: replace(core, b=core.b + 0.05),
    "query channels off by one": partial(channels_rolled, field="q"),
    "value channels off by one": partial(channels_rolled, field="v"),
    "the prediction's key of the token before": key_read_late,
    "every second gate": every_second_gate,
    "beta halved in half of the heads": half_the_heads,
    "keys clamped": lambda core: replace(core, k=(k := np.clip(core.k, -0.2, 0.2)), e=k),
}


@pytest.mark.parametrize("what", INVENTED)
def test_what_is_in_no_catalogue_is_called_nothing(case, what):
    found = case.diagnosis(kernel(case, INVENTED[what]), None)
    assert (found.outcome, found.best) == ("unknown", None), found.text
    right = kernel(case)["o"].astype(np.float64)
    wrong = np.abs(kernel(case, INVENTED[what])["o"].astype(np.float64) - right).max(axis=-1) > 0.1 * np.abs(right).max(
        -1
    )
    assert found.where.outputs == (("o",) if what.startswith("query") else ("o", "final_state"))
    b, t, h = found.where.first["batch"], found.where.first["t"], found.where.first["head"]
    assert t <= np.argmax(wrong[b].any(axis=-1)) and (
        not found.where.heads or wrong[:, :, list(found.where.heads)].any()
    )
    if what == "beta halved in half of the heads":
        assert found.where.heads == (2, 3) and h == 2


def two(case, pair):
    """(what a kernel with two mistakes gives, the same unrounded)."""
    suspect = Suspect(tuple(find(ops.get(OP), name) for name in pair), WAY)
    got = suspect.outputs(case.judge.core, case.judge.policy, WAY)
    return stored(case.judge, got["o"], got["final_state"]), suspect.exact(case.judge.core, case.judge.policy)


@pytest.mark.parametrize(
    "pair",
    [
        ("delta_twice", "zeros"),
        ("scale_twice", "chunk_exclusive_gate"),
        ("gate_early", "delta_missing"),
        ("chunk_mask_without_decay", "final_state_transposed"),  # whose chunk o alone can tell
        ("stale_key", "chunk_no_diagonal"),  # the one in the last sequence alone, the other worst in the first
    ],
)
def test_two_at_once(case, pair):
    got, exact = two(case, pair)
    found = case.diagnosis(got, None)
    assert set(names(found)) == set(pair), found.text
    assert placed(case.judge, exact, found.where)


def test_of_two_the_one_that_is_sure_is_named_and_the_other_said_to_remain(case):
    got, exact = two(case, ("gate_missing", "token_5_percent"))
    found = case.diagnosis(got, None)
    assert (found.outcome, found.part, found.best) == ("partly named", ("gate_missing",), None), found.text
    assert "It is gate_missing (nothing decays [5]) and another, most like" in found.text
    assert placed(case.judge, exact, found.where)


def test_two_mistakes_drawn_at_random_are_named_or_their_place_is_right():
    found = list(compounds(OP, "f32", 85, 3, SMALL))
    assert all(x.kind != WRONGLY and x.place for x in found), found
    assert sum(x.kind == BOTH for x in found) >= 2, found


def test_a_wrong_place_is_none(case):
    got, exact = two(case, ("gate_missing", "beta_half"))
    where = case.diagnosis(got, None).where
    assert placed(case.judge, exact, where)
    lost = {"o": exact["o"], "final_state": np.full_like(exact["final_state"], np.nan)}
    assert placed(case.judge, lost, where)  # what is no number is far off
    late = replace(where, first={**where.first, "sequence": 1, "t": 30})
    assert not placed(case.judge, exact, late)
    assert not placed(case.judge, exact, replace(where, outputs=("o",)))
    assert not placed(case.judge, {n: case.judge.values(n) for n in exact}, where)


def squaring(q, k, v, g, beta, initial_state=None):
    s = refengine.solve(OP, q=q, k=k, v=v, g=g, beta=beta * beta, initial_state=initial_state)
    return s.o.astype(q.dtype), s.final_state.astype(np.float32)


def test_twins_are_told_apart_on_another_input(case):
    given = {**case.inputs, "beta": np.full_like(case.inputs["beta"], 0.5)}
    twins = Case(OP, given, "bf16")
    found = twins.diagnosis(dict(zip(("o", "final_state"), squaring(**given), strict=True)), None)
    assert (found.outcome, set(names(found))) == ("twins", {"beta_half", "beta_squared"}), found.text
    assert "cannot tell them apart" in found.text and "--probe FILE" in found.text
    live = twins.live(Called(squaring), None)
    assert names(live) == ("beta_squared",) and live.probed, live.text


def test_a_file_has_an_input_that_settles_it(case):
    found = case.diagnosis(kernel(case, lambda core: replace(core, scale=1.01 * core.scale)), None)
    name, made, far = settling(case.judge.problem, case.inputs, case.judge.policy, found.ranking[:2])
    assert name and far > 1 and made["q"].dtype == case.inputs["q"].dtype


@pytest.mark.parametrize(
    "op", ["linear_attn", "kda", "gdn2", "comba", "longhorn", "gated_delta_product", "rwkv7", "dplr"]
)
def test_every_op_has_inputs_that_tell_apart_whatever_its_tensors_are_called(op):
    given = trial(op, "mamba", 83, T=6, H=1, HV=2, K=4, V=4)
    p = problem_of(op, given)
    assert {name for name, _ in probes(p, given, True)} == set(REGIMES) - {FAINT}
    k = [t.name for t in p.op.role("key") if t.name in given]
    assert not any(stilled(p, given)[name].any() for name in k) and "initial_state" in stilled(p, given)
    faint = drawn(op, FAINT, 84, B=1, T=6, H=1, HV=2, K=4, V=4)
    assert all(np.abs(faint[t.name].astype(float)).max() < 0.2 for t in p.op.role("query"))
