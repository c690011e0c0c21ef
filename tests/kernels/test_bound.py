"""Every input error the bound knows of: an operand is moved as far as that says, and the answer must stay within."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from spanning import case, problem

from refengine.engine import certified, delta
from refengine.engine.prepare import prepare
from refengine.engine.run import run_all
from refengine.spec import ERASE_KEY

SIZE = 1e-6  # far above float64 rounding, far below second order
CASES = {
    "gated_delta_rule": "qkvba",  # the write key erases, after a scalar decay
    "kda": "qkvba",  # a decay of each channel
    "gdn2": "qkeva",  # an erase vector of its own
    "comba": "qkevba",  # that predicts before the decay
    "rwkv7": "qkeva",  # two micro-steps, decays of each channel, before them
    "delta_rule": "qkvb",  # nothing decays
    "gla": "qkva",  # nothing is erased
}


def moved(x, rng, operand):
    """x pushed by SIZE in every row (a: by SIZE of each entry), and an error bound that says so."""
    push = rng.standard_normal(x.value.shape)
    if operand == "a":
        push = SIZE * np.sign(push) * x.value
    else:
        push *= SIZE / np.sqrt((push**2).sum(-1, keepdims=True))
    return replace(x, value=x.value + push, error=np.full(x.value.shape[:-1], SIZE * (1 + 1e-9)))


def solved(p, x):
    job = (certified if p.precision == "certified" else delta).Job(p, x, 1)
    run_all(job, None)
    bound = job.bound[0].transpose(0, 2, 1)
    return job.o, bound, job.final, job.final_bound


@pytest.mark.parametrize("precision", ["float64", "certified"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "operand"), [(n, operand) for n, operands in CASES.items() for operand in operands])
def test_an_inexact_operand_is_covered(name, operand, seed, precision):
    rng = np.random.default_rng([seed, *name.encode()])
    p = problem(name, case(name, T=6, B=1, seed=seed) | {"precision": precision})
    x, _ = prepare(p)
    o, o_bound, final, final_bound = solved(p, x)
    y = replace(x, **{operand: moved(getattr(x, operand), rng, operand)})
    if y.e is not ERASE_KEY and operand == "k" and x.e is x.k:
        y = replace(y, e=y.k)
    o2, o2_bound, final2, final2_bound = solved(p, y)
    apart = abs(o2 - o).max(axis=-1)
    assert apart.max() > 0.01 * SIZE
    assert (apart <= o_bound + o2_bound).all()
    assert o2_bound.max() < 1e4 * apart.max()
    if operand != "q":
        state_apart = np.sqrt(((final2 - final) ** 2).sum(axis=2))
        assert (state_apart <= final_bound + final2_bound).all()


def test_a_long_contraction_forgets_its_errors():
    """With a decay the bound stays level, as the error does."""
    p = problem("gated_delta_rule", case("gated_delta_rule", T=400, B=1))
    x, _ = prepare(p)
    _, bound, _, _ = solved(p, x)
    assert bound[:, 200:].max() < 4 * bound[:, 100:200].max()
