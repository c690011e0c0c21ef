"""The bug zoo: every mistake is one, and the verifier's record on it is the README's."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from spanning import problem

from refengine import InputError, L2Norm, ops
from refengine.cli import group
from refengine.engine.run import execute
from refengine.verify.emulate import Core, Run, emulate
from refengine.verify.mistakes import CATALOGUE, find, mutated, of
from refengine.verify.mutate import tier_e
from refengine.verify.policy import policy
from refengine.verify.trials import trial
from refengine.verify.verdict import Judge

README = Path(__file__).parents[2] / "README.md"
OP = "gated_delta_rule"


def packed(name):
    """A trial whose tokens are three sequences."""
    given = trial(name, "front", T=150, K=16, V=16)
    given["conv_k"] = replace(given["conv_k"], state=np.repeat(given["conv_k"].state, 3, 0))
    given["conv_q"] = replace(given["conv_q"], state=None, activation=None)
    given["conv_v"] = replace(given["conv_v"], state=None, activation=None)
    given["initial_state"] = np.concatenate([given["initial_state"] * n for n in (1, 2, 3)])
    return {**given, "cu_seqlens": [0, 40, 41, 150]}


@cache
def cases():
    """Problems that together have what every mistake needs: (the truth, the core)."""
    size = dict(T=150, K=16, V=16)
    asked = [(OP, trial(OP, "mamba", B=2, **size)), (OP, trial(OP, "front", **size)), (OP, packed(OP))]
    asked += [(name, trial(name, "mamba", **size)) for name in ("kda", "rwkv7", "gated_delta_product")]
    asked += [(OP, trial(OP, "mamba", T=150, K=16, V=12))]
    outside = {**trial(OP, "front", **size), "use_qk_l2norm": L2Norm(1e-2, "outside")}
    asked += [(OP, outside), ("comba", trial("comba", "front", **size)), (OP, trial(OP, "strong", **size))]
    problems = [problem(name, given) for name, given in asked]
    return [(execute(p), Core.of(p)) for p in problems]


def fitting(mutant, chosen):
    """The first problem that a mistake applies to and, where it only overflows, shows in."""
    for truth, core in cases():
        got = mutated(mutant, core, chosen, Run("chunk", 64))
        overflows = mutant.acts == "chunk" and mutant.precision and not mutant.rounds
        if got is not None and not (overflows and np.isfinite(got["o"]).all()):
            return truth, core
    raise AssertionError(f"{mutant.name} applies to no problem")


@pytest.mark.parametrize("mutant", CATALOGUE, ids=lambda m: m.name)
def test_every_mistake_changes_the_answer_exactly_and_emulated(mutant):
    chosen = policy("bf16" if mutant.name == "truncated" else "f32")
    truth, core = fitting(mutant, chosen)
    emulated = mutated(mutant, core, chosen, Run("chunk", 64))
    honest = mutated(mutant, core, chosen, Run("chunk", 64)) if mutant.precision else None
    assert emulated is not None
    assert honest is None or np.array_equal(honest["o"], emulated["o"], equal_nan=True)
    if not mutant.precision:
        exact = mutated(mutant, core)
        wrong = max(
            np.abs(exact[name] - x).max() for name, x in {"o": truth.o, "final_state": truth.final_state}.items()
        )
        assert np.isnan(wrong) or wrong > 1e-6
        for name, x in exact.items():
            if np.abs(x).max() < 1e6:
                size = np.abs(x).max()
                assert np.abs(emulated[name] - x).max() <= 1e-4 * size + 1e-6


def test_a_mistake_that_cannot_be_made_is_none():
    core = Core.of(problem("linear_attn", trial("linear_attn", "fla", T=20, K=4, V=6, start=False)))
    made = {m.name: mutated(m, core, policy("bf16"), Run("chunk", 16)) for m in of(ops.get("linear_attn"))}
    assert {"gate_base_2", "delta_missing", "beta_half", "initial_state_ignored", "chunk_w_ungated"} <= {
        name for name, got in made.items() if got is None
    }
    assert made["scale_missing"] is not None


def test_two_mistakes_are_made_from_the_problem_on():
    _, core = cases()[1]
    before, after = find(ops.get(OP), "conv_missing"), find(ops.get(OP), "beta_half")
    both = after.alter(before.alter(core))
    assert np.array_equal(both.k, before.alter(core).k) and np.array_equal(both.b, 0.5 * core.b)
    assert before.alter(after.alter(core)) is None


def test_equality_on_halved_inputs_sees_what_decays_of_0_and_1_hide():
    found = tier_e(OP, (5, 6))
    assert found.unequal == 0 and found.missed == []
    assert found.mistakes > 50


def test_a_row_that_moves_shows_which_factor_is_which():
    """a and b of a removal swapped: the same where b = -a, so that exact inputs have others now and then."""
    judge = Judge(problem("rwkv7", trial("rwkv7", "e1", 7, T=100, K=16, V=16)), "bf16")
    for run in (Run(), Run("chunk", 16), Run("chunk", 64, splits=(1, 50))):
        o, final = emulate(judge.core, policy("bf16-state16"), run)
        assert judge.same("o", o) and judge.same("final_state", final)
    wrong = mutated(find(ops.get("rwkv7"), "factors_swapped"), judge.core)
    assert not judge.same("o", wrong["o"])


def test_an_unknown_mistake_is_refused():
    with pytest.raises(InputError, match="has no mutant 'scale_mising'; did you mean 'scale_missing'"):
        find(ops.get(OP), "scale_mising")


def test_the_readme_has_this_very_record():
    said = CliRunner().invoke(group, ["mutate", "--small"], prog_name="refengine").stdout
    assert said.count("\n") > 20
    assert said in README.read_text(encoding="utf-8"), "put the output of `refengine mutate --small` into README.md"


def test_a_wrong_option_is_one_sentence():
    run = CliRunner().invoke(group, ["mutate", "--seeds", "1,x"], prog_name="refengine")
    assert run.exit_code == 2 and "--seeds is '1,x'; it is whole numbers" in run.stderr
