"""Gated KalmaNet as a point of MesaNet, and the kernels' own iteration against the exact solution."""

from __future__ import annotations

import numpy as np
import pytest
from spanning import REGIMES, case, problem

import refengine
from refengine.engine.definition import define

NAME = "gated_kalmanet"


def test_without_a_mixture_it_is_mesa_with_the_ridge_of_the_moment():
    """One token at a time, each with the ridge that the memory then has."""
    x = case(NAME, B=1, H=1, HV=1, T=6)
    del x["alpha"]
    s = refengine.solve(NAME, **x, scale=1.0)
    state = x["initial_state"]
    for t in range(6):
        now = {n: y[:, t : t + 1] for n, y in x.items() if n != "initial_state"}
        weight = (now["beta"] + 1e-6) ** 2
        H = np.exp(now["g"][0, 0, 0]) * state[0][0, 0] + weight[0, 0, 0] * np.outer(now["k"], now["k"])
        lamb = np.full((1, 5), 0.02 * np.linalg.norm(H))
        m = refengine.solve("mesa_net", **{**now, "beta": weight}, lamb=lamb, initial_state=state)
        state = m.final_state
        assert (abs(m.o - s.o[:, t : t + 1]) <= 1e-11 * abs(s.o).max()).all()


@pytest.mark.parametrize("regime", REGIMES)
def test_thirty_steps_of_chebyshev_come_near_and_a_hundred_nearer(regime):
    """The released kernels' iteration is 2e-4 away on ordinary inputs: no rounding, and the bound says so."""
    x = case(NAME, regime, B=1)
    exact = refengine.solve(NAME, **x)
    near, nearer = (refengine.solve(NAME, **x, solver="chebyshev", iterations=n) for n in (30, 100))
    away, less = (np.linalg.norm(s.o - exact.o) / np.linalg.norm(exact.o) for s in (near, nearer))
    assert 1e-6 < away < 5e-3
    assert less < 1e-3 * away
    assert (abs(near.o - exact.o) <= (near.bound["o"] + exact.bound["o"])[..., None]).all()
    assert "exact solution" in near.info["certificate"]


@pytest.mark.parametrize("iterations", [1, 3, 30])
def test_chebyshev_is_the_kernels_own(iterations):
    x = dict(case(NAME, B=1, T=9), solver="chebyshev", iterations=iterations)
    o, _ = define(problem(NAME, x))
    assert abs(refengine.solve(NAME, **x).o - o).max() <= 1e-11 * abs(o).max()


def test_an_empty_memory_reads_zero():
    x = case(NAME, B=1, T=3, start=False)
    x["beta"] = np.full_like(x["beta"], -1e-6)
    assert not refengine.solve(NAME, **x).o.any()


def test_a_ridge_of_zero_is_refused():
    with pytest.raises(refengine.InputError, match="ridge is 0"):
        refengine.solve(NAME, **case(NAME, T=3), ridge=0.0)
