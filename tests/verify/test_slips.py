"""Mistakes in the learners that no core hosts: every one lies outside the bound of the right answer."""

import numpy as np
import pytest
from spanning import case, problem

from refengine import ops
from refengine.engine.run import execute
from refengine.verify.mistakes import defined, find, of

SLIPS = [(name, m.name) for name in ops.NAMES for m in ops.get(name).mutants if m.acts == "step"]


def test_every_such_family_declares_some():
    assert {name for name, _ in SLIPS} == {"mesa_net", "ttt_linear", "ttt_mlp", "lact", "titans", "titans_mlp"}
    assert len(SLIPS) >= 20


@pytest.mark.parametrize(("name", "mistake"), SLIPS, ids=lambda x: x)
def test_a_mistake_is_far_outside_the_bound(name, mistake):
    """Of outputs or of a final state, a thousand times over; and what the mistake leaves alone is the right answer."""
    p = problem(name, case(name, "unequal_gates", B=1, T=12))
    s = execute(p)
    mutant = find(p.op, mistake)
    assert mutant in of(p.op)
    wrong = defined(mutant, p)
    assert list(wrong) == ["o", *s.finals]
    beyond = [(np.abs(wrong["o"] - s.o).max(axis=-1) > 1e3 * s.bound["o"] + 1e-9).any()]
    for state, x in s.finals.items():
        beyond.append((np.abs(wrong[state] - x).max(axis=2) > 1e3 * s.bound[state] + 1e-9).any())
    assert any(beyond)


@pytest.mark.parametrize("name", sorted({name for name, _ in SLIPS}))
def test_a_mistake_is_run_through_the_same_definition(name):
    """A step that is altered into itself gives the right answer."""
    p = problem(name, case(name, B=1, T=5))
    mutant = ops.get(name).mutants[0]
    same = defined(type(mutant)("none", "", "step", lambda step: step), p)
    s = execute(p)
    assert np.abs(same["o"] - s.o).max() <= 1e-11 * np.abs(s.o).max()
