"""Candidates that can be run, and the laws tried on them."""

import sys
from dataclasses import replace

import numpy as np
import pytest

import refengine
from refengine.verify.candidates import Called, Program, as_file
from refengine.verify.policy import policy
from refengine.verify.trials import trial

OP = "gated_delta_rule"
F32 = policy("f32")
SHAPES = {"o": (2, 20, 4, 5), "final_state": (2, 4, 6, 5)}


def problem():
    small = trial(OP, "mamba", B=2, T=20, K=6, V=5)
    return {name: np.asarray(x, np.float32) for name, x in small.items()}


def right(q, k, v, g, beta, initial_state=None, cu_seqlens=None):
    o, final = refengine.ops.gated_delta_rule(
        q, k, v, g, beta, initial_state=initial_state, cu_seqlens=cu_seqlens, allow_nonfinite=True
    )
    return o.astype(np.float32), final.astype(np.float32)


def run(function, inputs=None, **how):
    return Called(function, **how).outputs(OP, inputs or problem(), SHAPES, F32)


def test_a_function_gets_what_its_signature_names():
    got = run(right)
    assert got["o"].shape == SHAPES["o"] and got["final_state"].shape == SHAPES["final_state"]
    only = run(lambda **everything: everything["v"] * 2)
    np.testing.assert_array_equal(only["o"], problem()["v"] * 2)


def test_buffers_are_full_of_nan_until_they_are_written():
    def writes(q, k, v, g, beta, initial_state, o, final_state):
        assert np.isnan(o).all() and np.isnan(final_state).all()
        o[:], final_state[:] = right(q, k, v, g, beta, initial_state)

    np.testing.assert_array_equal(run(writes)["o"], run(right)["o"])
    assert np.isnan(run(lambda q, k, v, g, beta, initial_state, o: None)["o"]).all()


def overwrites(q, k, v, g, beta, initial_state):
    v[:] = 0
    return right(q, k, v, g, beta, initial_state)


def returns_its_input(q, k, v, g, beta, initial_state):
    return v[:], initial_state + 1


def raises(q, k, v, g, beta, initial_state):
    raise ValueError("no tensor cores here")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (overwrites, "overwrites changed its input v"),
        (returns_its_input, "returns_its_input returned o in the memory of its input v"),
        (raises, "raises raised ValueError: no tensor cores here"),
        (lambda q, k, v: v, "The problem has g, which <lambda> does not take"),
        (lambda **_: (1, 2, 3), "returned 3 things; o, final_state were asked for"),
    ],
)
def test_a_function_that_misbehaves_is_told_so(function, says):
    with pytest.raises(refengine.AdapterError) as refusal:
        run(function)
    assert says in str(refusal.value)


def verified(function, **changes):
    return refengine.verify(OP, {**problem(), **changes}, function, grade="f32", laws=True)


def laws(found):
    return {law.name: law.holds for law in found.laws}


def test_the_right_function_obeys_every_law():
    found = verified(right)
    assert found.verdict == "PASS", found.text
    assert laws(found) == dict.fromkeys(("repeat", "split", "decode", "heads", "batch", "poison", "pack"), True)


def test_each_law_sees_what_breaks_it():
    calls = []

    def unsteady(q, k, v, g, beta, initial_state=None):
        calls.append(1)
        o, final = right(q, k, v, g, beta, initial_state)
        return o * np.float32(1 + 2.0**-23 * (len(calls) % 2)), final

    def forgets_short_calls(q, k, v, g, beta, initial_state=None):
        return right(q, k, v, g, beta, initial_state if q.shape[1] > 1 else None)

    def leaks(q, k, v, g, beta, initial_state=None):
        o, final = right(q, k, v, g, beta, initial_state)
        return o + 0 * v.sum(), final

    def packs_badly(q, k, v, g, beta, initial_state=None, cu_seqlens=None):
        if cu_seqlens is not None:
            initial_state = initial_state[:1].repeat(len(initial_state), 0)
        return right(q, k, v, g, beta, initial_state, cu_seqlens)

    def first_head_for_all(q, k, v, g, beta, initial_state=None):
        g = g if np.array_equal(q, problem()["q"]) else g[:, :, :1].repeat(g.shape[2], 2)
        return right(q, k, v, g, beta, initial_state)

    assert laws(verified(unsteady))["repeat"] is False
    broken = verified(forgets_short_calls)
    assert broken.verdict == "FAIL" and laws(broken)["split"] is False and laws(broken)["decode"] is False
    assert laws(verified(leaks))["poison"] is False
    assert laws(verified(packs_badly))["pack"] is False
    assert laws(verified(first_head_for_all))["heads"] is False
    assert laws(verified(first_head_for_all))["batch"] is False


def test_a_packed_call_that_returns_too_few_states_is_told_their_shape():
    def one_state(q, k, v, g, beta, initial_state=None, cu_seqlens=None):
        o, final = right(q, k, v, g, beta, initial_state, cu_seqlens)
        return o, final if cu_seqlens is None else final[:1]

    law = next(law for law in verified(one_state).laws if law.name == "pack")
    assert law.holds is False and law.detail == "final_state has shape [1, 4, 6, 5]; it is [4, 4, 6, 5]."


def front():
    """A problem with all that may come before the op, and a shift of values, which has no convolution to hold it."""
    given = trial(OP, "front", B=2, T=20, K=6, V=5)
    given |= {n: np.asarray(x, np.float32) for n, x in given.items() if isinstance(x, np.ndarray)}
    return {**given, "conv_v": None, "value_shift": 2}


def solved(**inputs):
    s = refengine.solve(OP, **inputs, allow_nonfinite=True)
    return s.o.astype(np.float32), s.final_state.astype(np.float32)


def test_laws_cut_permute_and_pack_what_comes_before_the_op():
    found = refengine.verify(OP, front(), solved, grade="f32", laws=True)
    assert found.verdict == "PASS", found.text
    assert laws(found) == dict.fromkeys(("repeat", "split", "decode", "heads", "batch", "poison", "pack"), True)

    def forgets_history(conv_k, **inputs):
        short = inputs["q"].shape[1] < 20
        return solved(**inputs, conv_k=replace(conv_k, state=None) if short else conv_k)

    def loses_the_shifted(pairing_state=None, **inputs):
        return solved(**inputs)

    def first_taps_for_all(conv_q, **inputs):
        swapped = not np.array_equal(inputs["q"], front()["q"])
        return solved(**inputs, conv_q=front()["conv_q"] if swapped and inputs["q"].shape[:2] == (2, 20) else conv_q)

    for wrong in (forgets_history, loses_the_shifted):
        broken = laws(refengine.verify(OP, front(), wrong, grade="f32", laws=True))
        assert broken["split"] is False and broken["decode"] is False and broken["repeat"] is True
    assert laws(refengine.verify(OP, front(), first_taps_for_all, grade="f32", laws=True))["heads"] is False


def test_the_first_cut_that_breaks_is_named():
    def loses_the_state_of_whole_chunks(q, k, v, g, beta, initial_state=None):
        o, final = right(q, k, v, g, beta, initial_state)
        return o, final * np.float32(q.shape[1] % 8 != 0)

    found = refengine.verify(OP, problem(), loses_the_state_of_whole_chunks, grade="f32:chunk=8", laws=True)
    split = next(law for law in found.laws if law.name == "split")
    assert split.holds is False and split.detail.startswith("cut after 8 of 20 tokens, o fails its grade")


def test_a_law_that_cannot_be_tried_says_why():
    found = refengine.verify(
        OP,
        {name: x for name, x in problem().items() if name != "initial_state"},
        lambda q, k, v, g, beta: right(q, k, v, g, beta),
        grade="f32",
        laws=True,
    )
    assert {law.name: law.detail for law in found.laws if law.holds is None} == {
        "split": "the candidate takes no initial_state",
        "decode": "the candidate takes no initial_state",
        "pack": "the candidate takes no cu_seqlens",
    }


def program(code):
    return Program(f'{sys.executable} -c "{code}" {{in}} {{out}}', seconds=5)


def test_a_program_that_cannot_be_started_is_one_sentence(tmp_path):
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "unknown").write_bytes(b"\x00\x01")
    (tmp_path / "unknown").chmod(0o755)
    for name, reason in (("missing", "No such file"), ("plain", "Permission denied"), ("unknown", "Exec format error")):
        with pytest.raises(refengine.AdapterError) as refusal:
            Program(f"{tmp_path / name} {{in}} {{out}}").outputs(OP, problem(), SHAPES, F32)
        assert str(refusal.value).startswith(f"{tmp_path / name} cannot be started ({reason}")
        assert "Traceback" not in str(refusal.value)


ENDS = {
    "hangs": (
        "import time,sys; print('loading', file=sys.stderr, flush=True); time.sleep(60)",
        "after 0.7 s; it said: loading",
    ),
    "crashes": ("import os,signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV and said nothing"),
    "fails": ("import sys; sys.exit('no device')", "ended with 1; it said: no device"),
    "garbage": ("import sys; open(sys.argv[2],'wb').write(b'hello')", "wrote what cannot be read"),
    "nothing": ("pass", "wrote no file {out} and said nothing"),
    "too much": ("x = bytearray(9 * 2**30)", "MemoryError"),
}


@pytest.mark.parametrize(("code", "says"), ENDS.values(), ids=ENDS)
def test_a_program_that_gives_no_answer_is_told_in_its_own_words(code, says):
    candidate = Program(program(code).command, seconds=0.7 if "sleep" in code else 30, gib=8)
    with pytest.raises(refengine.AdapterError) as refusal:
        candidate.outputs(OP, problem(), SHAPES, F32)
    assert says in str(refusal.value)


def test_a_problem_goes_into_a_file_and_comes_back():
    from refengine.cli import question

    inputs = {
        **problem(),
        "conv_k": refengine.Conv(np.ones((12, 3)), activation=None),
        "use_qk_l2norm": refengine.L2Norm(1e-5, "outside"),
        "scale": 0.3,
        "key_shift": 1,
    }
    tensors, settings = as_file(OP, inputs)
    asked = question.ask(tensors, settings, {})
    one, two = refengine.solve(OP, **inputs), refengine.solve(asked.op.name, **asked.arguments)
    np.testing.assert_array_equal(one.o, two.o)
