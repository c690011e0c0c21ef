"""The field's criteria say what their projects define, also where an output is nothing or not a number."""

from __future__ import annotations

import numpy as np
import pytest

from refengine.verify.criteria import verdicts
from refengine.verify.policy import policy

TRUTH = np.random.default_rng(0).standard_normal((1, 8, 2, 4))


def said(output, truth=TRUTH):
    outputs = {"o": np.asarray(output, np.float64)}
    honest = {"o": truth.astype(np.float32).astype(np.float64)}
    return verdicts(outputs, {"o": truth}, honest, policy("f32"))


def test_the_truth_passes_all():
    assert all(said(TRUTH.astype(np.float32)).values())


def test_zeros_for_zeros_pass_all():
    assert all(said(np.zeros_like(TRUTH), np.zeros_like(TRUTH)).values())


@pytest.mark.parametrize("wrong", [0.0, np.nan])
def test_nothing_and_not_a_number_pass_none(wrong):
    output = TRUTH.copy()
    output[:] = wrong
    assert not any(said(output).values())


def test_one_nan_passes_none():
    output = TRUTH.copy()
    output[0, 3, 1, 2] = np.nan
    assert not any(said(output).values())
