"""Refusals from Python: one sentence that names the tensor, the axis and both numbers (tests/cli has the command's)."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import case

import refengine
from refengine.engine.checks import chosen

GDN = "gated_delta_rule"


def refusal(name=GDN, **arguments):
    with pytest.raises(refengine.InputError) as caught:
        refengine.solve(name, **arguments)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith((".", ")"))
    return said


def changed(**changes):
    return {n: x for n, x in {**case(GDN, T=5), **changes}.items() if x is not None}


BAD = {
    "swapped layout": (lambda x: dict(k=x["k"].transpose(0, 2, 1, 3)), "k", "2", "5"),
    "one head too many": (lambda x: dict(v=np.repeat(x["v"], 3, axis=2)[:, :, :5]), "5", "4"),
    "no multiple": (lambda x: dict(q=x["q"][:, :, [0, 0, 0]], k=x["k"][:, :, [0, 0, 0]]), "4", "3"),
    "rank": (lambda x: dict(q=x["q"][0]), "q", "3 axes", "[B, T, H, K]"),
    "missing": (lambda x: dict(beta=None), "beta", "[B, T, HV]"),
    "integers": (lambda x: dict(v=x["v"].astype(np.int64)), "v", "int64"),
    "complex": (lambda x: dict(v=x["v"] + 0j), "v", "complex128"),
    "NaN": (lambda x: dict(v=np.where(x["v"] > 9, x["v"], np.nan)), "v", "NaN", "[0, 0, 0, 0]"),
    "transposed state": (lambda x: dict(initial_state=x["initial_state"].swapaxes(2, 3)), "initial_state", "7", "5"),
    "state of one row": (lambda x: dict(initial_state=x["initial_state"][:1]), "initial_state", "1", "2"),
    "gate and g": (lambda x: dict(gate=refengine.Gate(x["g"], np.zeros(4))), "g", "gate"),
    "beta and logits": (lambda x: dict(beta_logits=x["beta"]), "beta", "beta_logits"),
    "conv": (lambda x: dict(conv_k=refengine.Conv(np.ones((9, 4)))), "conv_k.weight", "9", "10"),
    "conv state": (
        lambda x: dict(conv_k=refengine.Conv(np.ones((10, 4)), state=np.ones((2, 10, 5)))),
        "conv_k.state",
        "[2, 10, 5]",
        "3",
    ),
    "unknown input": (lambda x: dict(bta=x["beta"]), "bta", "beta"),
    "a setting misspelled": (lambda x: dict(key_shft=1), "key_shft", "did you mean 'key_shift'?"),
    "gate of too few heads": (
        lambda x: dict(g=None, gate=refengine.Gate(x["g"], np.zeros(3))),
        "gate.A_log",
        "3 on axis 0 where 4 belong",
    ),
    "unknown precision": (lambda x: dict(precision="float16"), "float16", "float64"),
    "unknown convention": (lambda x: dict(convention="fla"), "fla", "default"),
    "state beyond the end": (lambda x: dict(states_at=[6]), "states_at", "6", "5"),
    "an endless shift": (lambda x: dict(key_shift=10**9), "k", "1000000000"),
    "packed rows": (lambda x: dict(cu_seqlens=np.array([0, 5])), "cu_seqlens", "2 rows"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_named(mistake):
    alter, *words = BAD[mistake]
    said = refusal(**changed(**alter(case(GDN, T=5))))
    for word in words:
        assert word in said


def other_value(rule):
    """One that is not the default, of the same kind."""
    if rule.choices:
        return next(choice for choice in rule.choices if choice != rule.default)
    return not rule.default if isinstance(rule.default, bool) else 2 * rule.default


def conditional():
    """(op, option, the option that must have another value for it to be of use)."""
    for name in refengine.ops.NAMES:
        for option, rule in refengine.ops.get(name).options.items():
            if rule.goes_with:
                yield name, option, rule.goes_with[0]


@pytest.mark.parametrize(("name", "option", "other"), list(conditional()))
def test_an_option_that_nothing_uses_is_refused(name, option, other):
    rules = refengine.ops.get(name).options
    users = rules[option].goes_with[1]
    values = rules[other].choices or (True, False)
    given, idle = other_value(rules[option]), next(value for value in values if value not in users)
    said = refusal(name, **{option: given, other: idle})
    assert f"{option} {given} does not go with {other} {idle}: it is of {other} {users[0]}" in said
    chosen(refengine.ops.get(name), {option: rules[option].default, other: idle})  # what an answer writes down


def test_an_op_that_is_not_there():
    assert "gated_delta_rule" in refusal("gated_delta_rul")


def test_empty_tensors_cannot_claim_any_state():
    """A few bytes that ask for terabytes."""
    q = np.zeros((1, 0, 2_000_000, 512), np.float32)
    said = refusal(q=q, k=q, v=q, g=np.zeros((1, 0, 2_000_000)), beta=np.zeros((1, 0, 2_000_000)))
    assert "0 bytes" in said


def test_a_growing_gate_is_told():
    x = case(GDN, T=5)
    x["g"][1, 3, 2] = 0.25
    with pytest.warns(refengine.GrowingGateWarning, match=r"g is positive, 0.25 at \[1, 3, 2\]"):
        refengine.solve(GDN, **x)


@pytest.mark.parametrize("beta", [-0.5, 2.25])
def test_a_step_out_of_range_is_told(beta):
    x = case(GDN, T=5)
    x["beta"][1, 3, 2] = beta
    with pytest.warns(refengine.StepSizeWarning, match=rf"beta is {beta} at \[1, 3, 2\]"):
        refengine.solve(GDN, **x)


def test_a_solution_prints_as_one_line():
    said = repr(refengine.solve(GDN, **case(GDN, T=5)))
    assert "\n" not in said and said.startswith("<Solution of gated_delta_rule: o [2, 5, 4, 7] float64 off by at most ")


def test_what_is_not_finite_has_no_bound_and_stays_where_it_is():
    """A NaN in one head's token poisons that head from there on, and nothing else."""
    x = case(GDN, T=6, H=2, HV=2)
    clean = refengine.solve(GDN, **x)
    x["v"][0, 3, 1, 2] = np.nan
    s = refengine.solve(GDN, **x, allow_nonfinite=True)
    poisoned = np.zeros(s.bound["o"].shape, bool)
    poisoned[0, 3:, 1] = True
    assert np.array_equal(np.isinf(s.bound["o"]), poisoned)
    assert np.array_equal(np.isnan(s.o).any(-1), poisoned)
    assert s.o[~poisoned].tobytes() == clean.o[~poisoned].tobytes()


@pytest.mark.parametrize("value", ["false", "yes", 1])
def test_a_norm_is_yes_no_or_a_norm(value):
    with pytest.raises(refengine.InputError, match=r"use_qk_l2norm is .*; it is True, False or"):
        refengine.solve(GDN, **case(GDN, T=5), use_qk_l2norm=value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gdn", "did you mean 'gated_delta_rule'"),
        ("mamba2", "did you mean 'simple_gla'"),
        ("chunk_gated_delta_rule", "did you mean 'gated_delta_rule'"),
        ("fused_recurrent_kda", "did you mean 'kda'"),
    ],
)
def test_the_names_of_other_projects(name, says):
    with pytest.raises(refengine.InputError, match=says):
        refengine.solve(name, **case(GDN, T=5))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("use_qk_l2norm_in_kernel", "did you mean 'use_qk_l2norm'"),
        ("gk", "did you mean 'g'"),
        ("head_first", r"the layout is \[B, T, heads, channels\]"),
        ("output_final_state", "the final state is always given"),
    ],
)
def test_the_arguments_of_other_projects(name, says):
    with pytest.raises(refengine.InputError, match=f"{name}.*{says}"):
        refengine.solve(GDN, **case(GDN, T=5), **{name: True})


def test_an_op_takes_the_norm_by_the_name_of_flash_linear_attention():
    x = case(GDN, T=5)
    o, _ = getattr(refengine.ops, GDN)(**x, use_qk_l2norm_in_kernel=True)
    assert np.array_equal(o, refengine.solve(GDN, **x, use_qk_l2norm=True).o)
