"""The bug zoo: every mistake is one, and the verifier's record on it is the README's."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from spanning import problem

from refengine import InputError, ops
from refengine.cli import group
from refengine.engine.run import execute
from refengine.verify.emulate import Core, Run
from refengine.verify.mistakes import CATALOGUE, find, mutated, of
from refengine.verify.policy import policy
from refengine.verify.trials import trial

README = Path(__file__).parents[2] / "README.md"
OP = "gated_delta_rule"


@pytest.fixture(scope="module")
def case():
    p = problem(OP, trial(OP, "mamba", B=2, T=150, K=16, V=16))
    return execute(p), Core.of(p)


@pytest.mark.parametrize("mutant", CATALOGUE, ids=lambda m: m.name)
def test_every_mistake_changes_the_answer_exactly_and_emulated(case, mutant):
    truth, core = case
    bf16 = policy("f32" if mutant.name == "operands_tf32" else "bf16")
    emulated = mutated(mutant, core, bf16, Run("chunk", 64))
    honest = mutated(mutant, core, bf16, Run("chunk", 64)) if mutant.precision else None
    assert emulated is not None and (honest is None or np.array_equal(honest["o"], emulated["o"]))
    if not mutant.precision:
        exact = mutated(mutant, core)
        wrong = max(
            np.abs(exact[name] - x).max() for name, x in {"o": truth.o, "final_state": truth.final_state}.items()
        )
        assert np.isnan(wrong) or wrong > 1e-6
        for name, x in exact.items():
            if not np.isnan(x).any():
                size = np.abs(x).max()
                assert np.abs(emulated[name] - x).max() <= 0.05 * size + 1e-6 or mutant.name.startswith("delta_")


def test_a_mistake_that_cannot_be_made_is_none():
    core = Core.of(problem("linear_attn", trial("linear_attn", "fla", T=20, K=4, V=6, start=False)))
    made = {m.name: mutated(m, core, policy("bf16"), Run("chunk", 16)) for m in of(ops.get("linear_attn"))}
    assert {"gate_base_2", "delta_missing", "beta_half", "initial_state_ignored", "chunk_w_ungated"} <= {
        name for name, got in made.items() if got is None
    }
    assert made["scale_missing"] is not None


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
