"""The error that second moments foretell is the one that recurrent emulations make, within 15 %."""

import numpy as np
import pytest
from spanning import problem

from refengine import UnavailableError
from refengine.engine.run import execute
from refengine.verify.emulate import Core, Run, emulate
from refengine.verify.policy import policy
from refengine.verify.predict import predicted, shares
from refengine.verify.trials import REGIMES, trial

WITHIN = 1.15
SEEDS = (0, 1, 2)


def measured(p, core, chosen):
    """Root mean squares over emulations: rounded to nearest, and with noise."""
    truth, squares = execute(p), []
    for seed in SEEDS:
        o, final = emulate(core, chosen, Run("recurrent", seed=seed, permutation=seed))
        squares.append([((o - truth.o) ** 2).sum(axis=-1), ((final - truth.final_state) ** 2).sum(axis=-1)])
    return [np.sqrt(np.mean([s[i] for s in squares], axis=0)) for i in (0, 1)]


def ratio(x, y):
    return float(np.sqrt((x**2).sum() / (y**2).sum()))


@pytest.mark.parametrize("grade", ["bf16", "f16", "tf32", "bf16-state16", "f32"])
@pytest.mark.parametrize("regime", REGIMES)
def test_it_foretells_what_a_recurrence_errs(regime, grade):
    p = problem("gated_delta_rule", trial("gated_delta_rule", regime, 3, T=150, K=32, V=32))
    core, chosen = Core.of(p), policy(f"{grade}:recurrent")
    for got, told in zip(measured(p, core, chosen), vars(predicted(core, chosen)).values(), strict=True):
        assert 1 / WITHIN < ratio(got, told) < WITHIN
        rows = got[told > 0] / told[told > 0]
        assert np.quantile(rows, 0.99) < 2.5


@pytest.mark.parametrize("grade", ["bf16", "f32"])
@pytest.mark.parametrize("name", ["kda", "comba", "gated_delta_product", "rwkv7", "gla"])
def test_it_knows_every_rule_of_the_core(name, grade):
    p = problem(name, trial(name, "mamba", 4, T=60, K=16, V=16, B=2))
    core, chosen = Core.of(p), policy(f"{grade}:recurrent")
    for got, told in zip(measured(p, core, chosen), vars(predicted(core, chosen)).values(), strict=True):
        assert 1 / WITHIN < ratio(got, told) < WITHIN


def test_shares_say_which_rounding_matters():
    core = Core.of(problem("gated_delta_rule", trial("gated_delta_rule", "nodecay", 3, T=60, K=16, V=16)))
    plain, stored = (shares(core, policy(grade)) for grade in ("bf16", "bf16-state16"))
    assert sum(plain.values()) == pytest.approx(1) and plain["state"] == 0 and plain["operand"] > plain["io"]
    assert stored["state"] > 0.3 and plain["accum"] < 1e-6


def test_steps_of_each_value_channel_are_refused():
    given = trial("gated_delta_rule", "mamba", T=8, K=4, V=4)
    core = Core.of(problem("gated_delta_rule", {**given, "beta": np.ones((1, 8, 4, 4), np.float32)}))
    with pytest.raises(UnavailableError, match="each value channel"):
        predicted(core, policy("bf16"))
