"""The smallest problem that still fails is small, fails, and is a file that says how to see it again."""

import ml_dtypes
import numpy as np
import pytest

import refengine
from refengine import InputError, ops
from refengine.diagnose.shrink import GOT, INPUTS, TRUTH, shrink
from refengine.io import tensorfile
from refengine.verify.candidates import Called
from refengine.verify.emulate import Core, Run
from refengine.verify.mistakes import find, mutated
from refengine.verify.policy import policy
from refengine.verify.trials import FRONT, trial
from refengine.verify.verdict import problem_of, verify

OP = "gated_delta_rule"


def kernel(name, run):
    """A bfloat16 kernel with that mistake."""

    def call(**inputs):
        core = Core.of(problem_of(OP, inputs))
        made = mutated(find(ops.get(OP), name), core, policy("bf16"), run)
        if made is None:
            raise ValueError("this mistake cannot be made here")
        return {"o": made["o"].astype(ml_dtypes.bfloat16), "final_state": made["final_state"].astype(np.float32)}

    return Called(call)


def test_a_chunk_tail_bug_shrinks_to_a_chunk_and_a_token(tmp_path):
    found = shrink(
        OP, trial(OP, "mamba", 3, B=2, T=300, H=2, HV=4, K=16, V=16), kernel("chunk_tail_gate", Run("chunk", 64))
    )
    assert {**found.sizes} == {"B": 1, "T": 65, "H": 1, "HV": 1, "K": 1, "V": 1}, found.text
    assert "no initial_state" in found.simplified and "q zero" in found.simplified
    command = found.write(tmp_path / "bug")
    files = [tmp_path / "bug" / name for name in (INPUTS, TRUTH, GOT)]
    assert sum(path.stat().st_size for path in files) < 8000
    tensors, metadata = tensorfile.read(files[0])
    assert str(files[0]) in command and metadata["reproduce"] == f"refengine verify {INPUTS} {GOT} --grade bf16"
    again = verify(OP, dict(tensors), tensorfile.read(files[2])[0])
    assert again.verdict == "FAIL"
    truth = tensorfile.read(files[1])[0]
    assert np.array_equal(truth["final_state"], refengine.solve(OP, **tensors, precision="certified").final_state)


def test_a_bug_late_in_a_sequence_keeps_its_last_tokens():
    def lost(**inputs):
        core = Core.of(problem_of(OP, inputs))
        made = mutated(find(ops.get(OP), "zeros"), core, policy("bf16"), Run("recurrent"))
        right = mutated(find(ops.get(OP), "stale_column"), core, policy("bf16"), Run("recurrent"))
        wrong = (np.abs(inputs["v"].astype(np.float32)) > 30).any(axis=(2, 3))[:, :, None, None]
        return {"o": np.where(wrong, made["o"], right["o"]).astype(ml_dtypes.bfloat16)}

    given = trial(OP, "mamba", 4, T=90, H=2, HV=4, K=8, V=8)
    given["v"][0, 77, 3, 5] = 40.0
    found = shrink(OP, given, Called(lost), outputs=["o"])
    assert (found.sizes["T"], found.sizes["HV"], found.sizes["H"]) == (1, 1, 1), found.text


def test_what_comes_before_the_op_is_taken_away_if_it_is_not_needed():
    found = shrink(OP, trial(OP, FRONT, 5, T=40, K=8, V=8), kernel("beta_half", Run("recurrent")))
    assert found.inputs.get("gate") is None and found.inputs.get("conv_k") is None
    assert found.sizes["T"] == 1 and found.sizes["K"] == found.sizes["V"] == 1


def test_a_mistake_before_the_op_keeps_it():
    found = shrink(OP, trial(OP, FRONT, 5, B=2, T=40, K=8, V=8), kernel("dt_bias_missing", Run("recurrent")))
    assert found.inputs["gate"].dt_bias is not None and found.sizes["T"] <= 2 and found.sizes["B"] == 1


def test_a_packed_problem_is_unpacked():
    given = trial(OP, "mamba", 6, T=60, K=8, V=8, start=False) | {"cu_seqlens": [0, 20, 45, 60]}
    found = shrink(OP, given, kernel("beta_squared", Run("recurrent")))
    assert "cu_seqlens" not in found.inputs and found.sizes["T"] == 1


def test_what_does_not_fail_is_refused():
    given = trial(OP, "mamba", 7, T=10, K=4, V=4, start=False)

    def right(**inputs):
        core = Core.of(problem_of(OP, inputs))
        made = mutated(find(ops.get(OP), "state_bf16"), core, policy("f32"), Run("recurrent"))
        return {"o": made["o"].astype(ml_dtypes.bfloat16), "final_state": made["final_state"].astype(np.float32)}

    with pytest.raises(InputError, match="There is nothing to shrink"):
        shrink(OP, given, Called(right))
