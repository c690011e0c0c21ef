"""The yardstick: honest runs are within its limits, the same bits every time, and its parts are what they say."""

from functools import cache

import numpy as np
import pytest
from spanning import problem

from refengine.engine.run import execute
from refengine.numbers.formats import KAPPA
from refengine.verify.emulate import Core, Run, emulate
from refengine.verify.policy import policy
from refengine.verify.statistics import FAIL, PASS, bias_limit, measure
from refengine.verify.trials import REGIMES, trial
from refengine.verify.yardstick import scales, truth_views, views, yardstick

HONEST = [Run(), Run("chunk", 16), Run("chunk", 64, splits=(1, 101)), Run("chunk", 128), Run("chunk", 48, 7)]


@cache
def case(name, regime, grade, seed=0):
    p = problem(name, trial(name, regime, seed, T=150, K=32, V=32))
    truth, core, chosen = execute(p), Core.of(p), policy(grade)
    return p, truth, core, chosen, yardstick(p, truth, chosen, core)


def judged(name, regime, grade, o, final, seed=0):
    p, truth, _, chosen, scale = case(name, regime, grade, seed)
    true = truth_views(truth)
    got = views({"o": o, "final_state": final})
    return [measure(v.values, true[v.name], scale[v.name], chosen, p.segments) for v in got]


@pytest.mark.parametrize("grade", ["f32", "bf16", "f16-state16"])
@pytest.mark.parametrize("regime", REGIMES)
def test_an_honest_run_passes(regime, grade):
    _, _, core, chosen, _ = case("gated_delta_rule", regime, grade)
    for run in HONEST:
        for found in judged("gated_delta_rule", regime, grade, *emulate(core, chosen, run)):
            assert found.level == PASS, (run, found.view, found.values)
            assert found.uncertain == 0


@pytest.mark.parametrize("name", ["kda", "comba", "rwkv7", "gated_delta_product", "gla", "longhorn"])
def test_it_serves_every_op_of_the_delta_core(name):
    _, _, core, chosen, _ = case(name, "strong", "bf16")
    for run in HONEST[:3]:
        assert {found.level for found in judged(name, "strong", "bf16", *emulate(core, chosen, run))} == {PASS}


def test_it_regenerates_to_the_bit():
    p, truth, core, chosen, scale = case("gated_delta_rule", "corr", "bf16")
    again = yardstick(p, truth, chosen, core)
    for name, found in scale.items():
        np.testing.assert_array_equal(found.sigma, again[name].sigma)


def test_sigma_is_at_least_the_output_rounding_and_the_ensemble():
    _, truth, _, _, scale = case("gated_delta_rule", "fla", "bf16")
    norm = np.sqrt((truth.o**2).sum(axis=-1))
    assert (scale["o"].sigma >= KAPPA * 2.0**-8 * norm).all()
    assert (scale["o"].sigma >= scale["o"].parts["ensemble"]).all()
    assert (scale["o"].certificate <= scale["o"].sigma / 16).all()


@pytest.mark.parametrize("grade", ["f32", "bf16"])
def test_a_row_that_is_wrong_a_little_is_seen(grade):
    _, _, core, chosen, scale = case("gated_delta_rule", "mamba", grade)
    o, final = emulate(core, chosen, Run("chunk", 64))
    o = o.astype(np.float64)
    o[0, 77, 1] += 50 * scale["o"].sigma[0, 77, 1] / np.sqrt(o.shape[-1])
    found = judged("gated_delta_rule", "mamba", grade, o, final)[0]
    assert found.level == FAIL and found.worst == (0, 77, 1) and "rho" in found.beyond()


def test_a_coherent_gain_is_seen_where_no_single_row_shows_it():
    _, _, core, chosen, _ = case("gated_delta_rule", "mamba", "bf16")
    o, final = emulate(core, chosen, Run("chunk", 64))
    found = judged("gated_delta_rule", "mamba", "bf16", o * 1.01, final)[0]
    assert found.beyond()[0] == "G"


def test_what_is_not_a_number_fails():
    _, _, core, chosen, _ = case("gated_delta_rule", "mamba", "bf16")
    o, final = emulate(core, chosen, Run("chunk", 64))
    o[0, 3, 1, 2] = np.nan
    assert judged("gated_delta_rule", "mamba", "bf16", o, final)[0].level == FAIL


def test_a_coherent_gain_is_not_measured_by_an_ensemble_whose_errors_cancel():
    """Of few rows the sums of eight members may all be small by luck; what single rows err says how large they are."""
    draw, y = np.random.default_rng(5), np.ones((1, 1, 16, 8))
    signs = np.tile([1.0, -1.0], 8)
    errors = [1e-2 * draw.permutation(signs)[:, None] * y for _ in range(8)]  # of whole rows: no member has any gain
    true = {view.name: view for view in views({"final_state": y})}
    scale = scales(
        true, {"final_state": np.zeros((1, 1, 8))}, policy("bf16"), [errors], lambda e: {"final_state": y + e}
    )
    for found in scale.values():
        assert bias_limit(found) == pytest.approx(3 * 1.73 / 4, rel=1e-3)
