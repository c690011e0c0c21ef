"""The emulations: with nothing rounded they are the definition, whatever the chunks; on exact inputs every precision
is."""

import numpy as np
import pytest
import spanning
from spanning import problem

from refengine.engine.definition import define
from refengine.engine.run import execute
from refengine.kernels.emulate import SLIPS
from refengine.spec import Delta
from refengine.verify.emulate import Core, Run, emulate
from refengine.verify.policy import policy
from refengine.verify.trials import EXACT, SLACK, trial

WAYS = [Run(), Run("chunk", 16), Run("chunk", 8, 3, permutation=4, splits=(5, 20))]
NAMES = spanning.of_families({Delta})
INEXACT = ("retention", "lightning_attn", "longhorn")  # their own coefficients are no powers of two


@pytest.mark.parametrize(
    ("name", "convention", "regime"), spanning.every("rich", "unequal_gates", names=spanning.of_families({Delta}))
)
def test_unrounded_it_is_the_definition(name, convention, regime):
    p = problem(name, {**spanning.case(name, regime), "convention": convention})
    o, final = define(p)
    core = Core.of(p)
    for run in WAYS:
        got, left = emulate(core, policy("f64"), run, threads=1)
        np.testing.assert_allclose(got, o, rtol=0, atol=1e-11 * np.abs(o).max())
        np.testing.assert_allclose(left, final, rtol=0, atol=1e-11 * np.abs(final).max())


def test_packed_sequences_start_afresh():
    p = problem("gated_delta_rule", spanning.case("gated_delta_rule", cu_seqlens=[0, 0, 17, 18, 40]))
    o, final = define(p)
    got, left = emulate(Core.of(p), policy("f64"), Run("chunk", 16, 5))
    np.testing.assert_allclose(got, o, atol=1e-12)
    np.testing.assert_allclose(left, final, atol=1e-12)


@pytest.mark.parametrize("regime", EXACT)
@pytest.mark.parametrize("name", ["gated_delta_rule", "gla", "kda", "gdn2", "rwkv7", "gated_delta_product"])
def test_exact_inputs_have_one_answer_at_every_precision(name, regime):
    p = problem(name, trial(name, regime, T=150, K=16, V=16))
    truth, core = execute(p), Core.of(p)
    assert np.abs(truth.o).max() > 0
    for grade in ("f32", "f16", "bf16-state16"):
        for run in (Run(), Run("chunk", 16), Run("chunk", 64, 5, seed=3), Run("chunk", 48, splits=(1, 101))):
            if run.seed and regime in SLACK:  # noise stands for every rounding, be it of a number next to another
                continue
            o, final = emulate(core, policy(grade), run)
            np.testing.assert_allclose(o, truth.o, rtol=0, atol=SLACK.get(regime, 0))
            np.testing.assert_allclose(final, truth.final_state, rtol=0, atol=SLACK.get(regime, 0))


def test_rows_are_padded_alike_on_every_machine():
    """Noise is drawn for the padding too."""
    from refengine.kernels import _simd, emulate

    assert emulate.PAD == 256 and emulate.PAD % _simd.BYTES == 0


def test_threads_touch_no_bit():
    p = problem("gated_delta_rule", trial("gated_delta_rule", "mamba", T=70, K=16, V=16))
    core, run = Core.of(p), Run("chunk", 32, seed=9, permutation=2)
    for one, two in zip(emulate(core, policy("bf16"), run, 1), emulate(core, policy("bf16"), run, 2), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("grade", ["bf16", "tf32", "f16", "f32"])
def test_an_output_holds_numbers_of_its_format_and_errs_by_about_that(grade):
    from refengine.numbers.formats import settle

    p = problem("gated_delta_rule", trial("gated_delta_rule", "mamba", T=100, K=16, V=16))
    truth, core, chosen = execute(p), Core.of(p), policy(grade)
    for run in (Run(), Run("chunk", 32)):
        o, _ = emulate(core, chosen, run)
        np.testing.assert_array_equal(settle(o, chosen.format("io"), o.dtype), o)
        error = np.sqrt(((o - truth.o) ** 2).sum() / (truth.o**2).sum())
        assert 0.2 < error / chosen.format("operand").u < 8


OVERFLOW = ("factored_decay", "unmasked_decay")
ROUND = {"squares_in_half": 2.0**-11, "blocks_in_bf16": 2.0**-8}


@pytest.mark.parametrize("slip", SLIPS)
def test_every_slip_changes_the_answer(slip):
    overflows = slip in OVERFLOW
    p = problem("gated_delta_rule", trial("gated_delta_rule", "strong" if overflows else "mamba", T=100, K=16, V=16))
    f = policy("f32" if overflows else "f64")
    right, wrong = (emulate(Core.of(p), f, Run("chunk", 64, slips=s)) for s in ((), (slip,)))
    assert np.isfinite(right[0]).all() and np.isfinite(wrong[0]).all() != overflows
    away = max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(right, wrong, strict=True))
    assert overflows or (0.02 * ROUND[slip] < away < ROUND[slip] if slip in ROUND else away > 1e-3)


@pytest.mark.parametrize("slip", [name for name in SLIPS if name not in (*OVERFLOW, *ROUND)])
def test_a_slip_is_the_same_whatever_the_order_of_sums(slip):
    core = Core.of(problem("kda", trial("kda", "mamba", T=70, K=12, V=12)))
    one, other = (emulate(core, policy("f64"), Run("chunk", 32, permutation=order, slips=(slip,))) for order in (0, 5))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * np.abs(a).max())
