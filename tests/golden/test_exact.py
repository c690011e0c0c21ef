"""Tier E: the same bits in every form, chunk size and format from bfloat16 up; others for every structural mistake."""

from __future__ import annotations

import numpy as np
import pytest

import refengine
from refengine import ops
from refengine.engine.run import execute
from refengine.golden.cases import kind, suite
from refengine.golden.exposure import MISTAKES, moved
from refengine.golden.inputs import arguments
from refengine.golden.problems import problem
from refengine.kernels.emulate import SLIPS
from refengine.verify.emulate import Core, Run, emulate
from refengine.verify.policy import policy

CASES = [case for case in suite("core", tiers=("E",)) if kind(case.op) == "delta"]
STRUCTURAL = ("initial state ignored", "decay of the token before", "beta ignored", "segments ignored", "scale missing")
GRADES = ("f32", "bf16:io=f32", "bf16", "bf16-state16")
RUNS = [Run(), Run(permutation=3), *(Run("chunk", chunk=C, phase=p) for C in (1, 2, 7, 16, 32, 64) for p in (0, 3))]
# Chains of erasures in a chunk that are too short for these; verify's own exact inputs have longer ones.
SHORT = {
    "truncated_inverse": ("gated_delta_rule", "kda", "longhorn", "gated_delta_product", "rwkv7"),
    "one_newton_step": ("gated_delta_rule",),
}
# What cannot be seen without a decay, an erasure, or a decay by head; or at all, as it only rounds.
BLIND = {
    "tail_gate": lambda x: keeps_all(x),
    "exclusive_gate": lambda x: keeps_all(x) or x.micro > 1,
    "mask_without_decay": lambda x: keeps_all(x) or x.g.shape[3] > 1,
    "w_ungated": lambda x: keeps_all(x) or x.e is None,
    "u_doubly_gated": lambda x: keeps_all(x) or x.e is None or x.g.shape[3] > 1,
    "no_correction": lambda x: x.e is None,
    "truncated_inverse": lambda x: x.e is None,
    "one_newton_step": lambda x: x.e is None,
    "factored_decay": lambda x: keeps_all(x) or x.g.shape[3] > 1,
    "unmasked_decay": lambda x: keeps_all(x) or x.g.shape[3] > 1,
    "squares_in_half": lambda x: True,
    "blocks_in_bf16": lambda x: True,
    "turned_in_read": lambda x: x.k.shape[3] != x.v.shape[3],
    "turned_in_correction": lambda x: x.e is None or x.k.shape[3] != x.v.shape[3],
}


def keeps_all(x):
    return x.g is None or not x.g.any()


def given(case):
    a = arguments(case)
    return a, a.pop("do"), a.pop("dht")


def same(x, y):
    return np.array_equal(x + 0.0, y + 0.0)  # a zero's sign is ignored


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_form_and_format_gives_the_same_bits(case):
    p = problem(case.op.name, given(case)[0])
    truth, core = execute(p, 1), Core.of(p)
    for grade in GRADES:
        for run in RUNS:
            o, final = emulate(core, policy(grade), run, threads=1)
            assert same(o, truth.o) and same(final, truth.final_state), (grade, run)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradients_have_the_same_bits_in_float32(case):
    a, do, dht = given(case)
    plain = refengine.grad(case.op.name, **a, do=do, dht=dht)
    narrow = refengine.grad(case.op.name, **a, do=do, dht=dht, precision="float32")
    for name, x in plain.items():
        assert same(x, narrow[name].astype(np.float64)), name
        assert same(x, x.astype(np.float32).astype(np.float64)), name


@pytest.mark.parametrize("name", ops.NAMES)
def test_every_structural_mistake_has_other_bits(name):
    """Alterations of the chunk algebra and of the call, each caught by one of the op's cases without any tolerance."""
    cases = [case for case in CASES if case.op.name == name]
    if all(case.size["T"] < 16 for case in cases):
        pytest.skip("no case long enough to be cut into chunks")
    caught: dict[str, bool] = {}
    for case in cases:
        a, _, _ = given(case)
        p = problem(name, a)
        truth, core = execute(p, 1), Core.of(p)
        for slip in SLIPS:
            if name not in SHORT.get(slip, ()) and not BLIND.get(slip, lambda x: False)(core):
                for chunk in (8, 16, 64):
                    o, final = emulate(core, policy("f64"), Run("chunk", chunk=chunk, slips=(slip,)), threads=1)
                    differs = not (same(o, truth.o) and same(final, truth.final_state))
                    caught[slip] = caught.get(slip, False) or differs
        for mistake in STRUCTURAL:
            altered = MISTAKES[mistake](case.op, a)
            if altered is not None:
                other = execute(problem(name, altered), 1)
                caught[mistake] = caught.get(mistake, False) or moved(truth, other) > 0
    assert caught and all(caught.values()), [mistake for mistake, seen in caught.items() if not seen]
