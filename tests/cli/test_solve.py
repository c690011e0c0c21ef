"""`refengine solve`: what it writes, what it refuses, and that it writes the same thing every time."""

import hashlib
import json
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import refengine
from refengine import data
from refengine.cli import group
from refengine.io import tensorfile

# ---- the samples ----


def test_the_sample_needs_no_other_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(group, ["solve", "--sample"])
    assert result.exit_code == 0, result.output
    first, o, final, ran = result.stdout.splitlines()
    assert first == "minilm_layer3.solved.safetensors"
    assert o.split()[:5] == ["o", "[1,", "512,", "12,", "32]"]
    assert "off by at most" in o
    assert "off by at most" in final
    assert " s on " in ran
    tensors, metadata = tensorfile.read(tmp_path / first)
    given, _ = tensorfile.read(data.path("minilm_layer3"))
    direct = refengine.solve("gated_delta_rule", **given, use_qk_l2norm=True)
    assert tensors["o"].tobytes() == direct.o.tobytes()
    assert tensors["final_state"].tobytes() == direct.final_state.tobytes()
    assert tensors["o.bound"].tobytes() == direct.bound["o"].tobytes()
    assert metadata["input"] == "minilm_layer3.safetensors"


def test_the_tiny_sample_gives_what_its_table_says(bench):
    tensors, _ = bench.solve(data.path("tiny"))
    by_hand = [[8, 16], [8, 16], [2, 4], [16, 32], [8, 16], [9, 18]]
    assert np.abs(tensors["o"][0, :, 0] - by_hand).max() <= 2.0**-48
    assert np.abs(tensors["final_state"][0, 0] - [[1, 2], [8, 16]]).max() <= 2.0**-48
    assert np.array_equal(tensors["o"][0, :3, 0], by_hand[:3])  # before ln 2 comes in, nothing is rounded
    assert (tensors["o.bound"] < 1e-9).all()


def test_the_table_in_the_docstring_is_the_file(bench):
    tensors, _ = tensorfile.read(data.path("tiny"))
    rows = [line for line in data.__doc__.splitlines() if line[4:5].isdigit()]
    assert len(rows) == 6
    for t, line in enumerate(rows):
        k, v = tensors["k"][0, t, 0].astype(int), tensors["v"][0, t, 0].astype(int)
        assert f"{t}   {tuple(k.tolist())}  {tuple(v.tolist())}" in line
        assert str(data.TINY_O[t]) in line


# ---- what is written ----


def test_gradients_are_those_of_python(bench):
    rng = np.random.default_rng(2)
    do, dht = rng.standard_normal((1, 7, 2, 4)), rng.standard_normal((1, 2, 3, 4))
    weight = rng.standard_normal((6, 3))
    plain, _ = bench.solve(bench.file(**{"conv_k.weight": weight}))
    source = bench.file(do=do, dht=dht, **{"conv_k.weight": weight})
    tensors, metadata = bench.solve(source, "--grad", "--states-at", "3")
    conv = refengine.Conv(weight)
    g = refengine.grad("gated_delta_rule", **bench.tensors, conv_k=conv, use_qk_l2norm=True, do=do, dht=dht)
    assert {"dq", "dk", "dv", "dg", "dbeta", "dinitial_state", "dconv_k.weight", "dg.condition"} <= set(tensors)
    for name, x in g.items():
        assert tensors[f"d{name}"].tobytes() == x.tobytes()
    for name, x in g.bound.items():
        assert tensors[f"d{name}.bound"].tobytes() == x.tobytes()
    for name, x in g.condition.items():
        assert tensors[f"d{name}.condition"].tobytes() == x.tobytes()
    assert tensors["o"].tobytes() == plain["o"].tobytes()
    assert metadata["gradient_certificate"] == g.info["certificate"]
    result = bench.run("solve", source, "-o", bench.out, "--grad", "--json")
    assert json.loads(result.stdout)["gradients"]["dq"] == {"shape": [1, 7, 2, 3], "dtype": "float64"}
    told = bench.run("solve", source, "-o", bench.out, "--grad").stdout
    assert re.search(r"^  dq  +\[1, 7, 2, 3\] float64$", told, re.MULTILINE)


def test_everything_needed_to_repeat_it_is_in_the_metadata(bench):
    source = bench.file(metadata={"comment": "mine"})
    _, metadata = bench.solve(source, "--key-shift", "1", "--scale", "0.1", "--states-at", "1,5")
    assert metadata == {
        "op": "gated_delta_rule",
        "convention": "default",
        "scale": "0.1",
        "use_qk_l2norm": "true",
        "l2norm_eps": "1e-06",
        "l2norm_place": "inside",
        "key_shift": "1",
        "query_shift": "0",
        "value_shift": "0",
        "tie_values": "false",
        "allow_neg_eigval": "false",
        "allow_nonfinite": "false",
        "states_at": "1,5",
        "precision": "float64",
        "form": "recurrent",
        "certificate": "rigorous (running bound)",
        "refengine": refengine.__version__,
        "input": "in.safetensors",
        "input_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }


ALL = {
    "v": None,
    "g": None,
    "beta": None,
    "initial_state": np.full((2, 2, 3, 3), 0.25),
    "cu_seqlens": np.array([0, 3, 7]),
    "conv_k.weight": np.linspace(-1, 1, 24).reshape(6, 4),
    "conv_k.bias": np.linspace(0, 1, 6),
    "conv_k.state": np.linspace(-2, 2, 2 * 6 * 4).reshape(2, 6, 4),
    "conv_q.weight": np.linspace(1, 2, 12).reshape(6, 2),
    "gate.a": np.linspace(-1, 1, 14).reshape(1, 7, 2),
    "gate.A_log": np.array([0.5, -0.5]),
    "gate.dt_bias": np.array([0.1, -0.1]),
    "beta_logits": np.linspace(-3, 3, 14).reshape(1, 7, 2),
    "pairing_state.v": np.ones((2, 6, 2)),
}
ALL_SAID = {
    "scale": "0.125",
    "l2norm_eps": "1e-5",
    "l2norm_place": "outside",
    "key_shift": "1",
    "value_shift": "2",
    "tie_values": "true",
    "allow_neg_eigval": "true",
    "states_at": "0, 2",
    "conv_k.activation": "none",
    "conv_k.residual": "true",
    "gate.lower_bound": "-5",
}


def test_a_file_may_say_all_that_a_call_can(bench):
    tensors, metadata = bench.solve(bench.file(metadata=ALL_SAID, **ALL))
    conv_k = refengine.Conv(ALL["conv_k.weight"], ALL["conv_k.bias"], None, ALL["conv_k.state"], residual=True)
    direct = refengine.solve(
        "gated_delta_rule",
        q=bench.tensors["q"],
        k=bench.tensors["k"],
        tie_values=True,
        initial_state=ALL["initial_state"],
        cu_seqlens=ALL["cu_seqlens"],
        conv_k=conv_k,
        conv_q=refengine.Conv(ALL["conv_q.weight"]),
        gate=refengine.Gate(ALL["gate.a"], ALL["gate.A_log"], ALL["gate.dt_bias"], lower_bound=-5.0),
        beta_logits=ALL["beta_logits"],
        allow_neg_eigval=True,
        pairing_state={"v": ALL["pairing_state.v"]},
        key_shift=1,
        value_shift=2,
        scale=0.125,
        use_qk_l2norm=refengine.L2Norm(1e-5, "outside"),
        states_at=[0, 2],
    )
    expected = {"o": direct.o, "final_state": direct.final_state, "states": direct.states}
    expected |= {f"{name}.bound": x for name, x in direct.bound.items()}
    expected |= {f"pairing_state.{name}": x for name, x in direct.pairing_state.items()}
    assert set(expected) == set(tensors)
    assert set(direct.pairing_state) == {"q", "k", "v"}
    for name, array in expected.items():
        assert tensors[name].tobytes() == array.tobytes(), name
    assert metadata["conv_q.activation"] == "silu"


def test_an_answers_metadata_asks_the_same_question_again(bench):
    tensors, metadata = bench.solve(bench.file(metadata=ALL_SAID, **ALL))
    again, same = bench.solve(bench.file("again.safetensors", metadata=metadata, **ALL), out=bench.folder / "out2")
    assert all(again[name].tobytes() == tensors[name].tobytes() for name in tensors)
    names = {"input", "input_sha256"}
    assert {k: v for k, v in same.items() if k not in names} == {k: v for k, v in metadata.items() if k not in names}


def test_the_default_scale_is_spelled_and_read_again(bench):
    first, metadata = bench.solve(bench.file())
    assert metadata["scale"] == "K^-1/2"
    again, _ = bench.solve(bench.file(metadata=metadata), out=bench.folder / "out2")
    assert again["o"].tobytes() == first["o"].tobytes()


@pytest.mark.parametrize("heads", [1, 2])
def test_the_same_question_gives_the_same_bytes(bench, heads):
    rng = np.random.default_rng(0)
    wide = {name: bench.tensors[name][:, :, :heads] for name in ("q", "k", "g", "beta")}
    source = bench.file(v=rng.standard_normal((1, 7, heads, 200)), **wide)  # one head is cut into blocks of columns
    written = set()
    for i, threads in enumerate(("1", "2", "2", "1")):
        bench.solve(source, "--threads", threads, out=bench.folder / f"out{i}")
        written.add((bench.folder / f"out{i}").read_bytes())
    assert len(written) == 1


def test_npz_is_as_good_as_safetensors(bench):
    np.savez(bench.folder / "in.npz", **bench.tensors)
    from_npz, _ = bench.solve(
        bench.folder / "in.npz", "--op", "gated_delta_rule", "--l2norm", out=bench.folder / "out2"
    )
    direct, _ = bench.solve(bench.file())
    assert direct.keys() == from_npz.keys()
    assert all(direct[name].tobytes() == from_npz[name].tobytes() for name in direct)


def test_the_command_line_wins(bench):
    source = bench.file(metadata={"key_shift": "3", "scale": "7.0", "precision": "float32", "tie_values": "true"})
    said = ["--key-shift", "1", "--scale", "2", "--precision", "float64", "--no-tie-values", "--no-l2norm"]
    tensors, metadata = bench.solve(source, *said)
    direct = refengine.solve("gated_delta_rule", **bench.tensors, key_shift=1, scale=2.0)
    assert tensors["o"].tobytes() == direct.o.tobytes()
    told = {name: metadata[name] for name in ("key_shift", "scale", "precision", "tie_values", "use_qk_l2norm")}
    assert told == dict(key_shift="1", scale="2.0", precision="float64", tie_values="false", use_qk_l2norm="false")


def test_any_setting_can_be_set(bench):
    weight = {"conv_k.weight": np.linspace(-1, 1, 24).reshape(6, 4)}
    tensors, metadata = bench.solve(bench.file(**weight), "--set", "conv_k.activation=none", "--set", "query_shift=1")
    direct = refengine.solve(
        "gated_delta_rule",
        **bench.tensors,
        use_qk_l2norm=True,
        conv_k=refengine.Conv(weight["conv_k.weight"], activation=None),
        query_shift=1,
    )
    assert tensors["o"].tobytes() == direct.o.tobytes()
    assert metadata["conv_k.activation"] == "none"


def test_an_ops_own_option(bench):
    double = {name: np.repeat(bench.tensors[name], 2, axis=1) for name in ("k", "v", "beta")}
    source = bench.file(metadata={"op": "gated_delta_product", "num_householder": "2"}, **double)
    tensors, metadata = bench.solve(source)
    given = {**bench.tensors, **double}
    direct = refengine.solve("gated_delta_product", **given, num_householder=2, use_qk_l2norm=True)
    assert tensors["o"].tobytes() == direct.o.tobytes()
    assert metadata["num_householder"] == "2"


def test_bfloat16_and_float32_precision(bench):
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in bench.tensors.items()}
    tensors, _ = bench.solve(bench.file(**half), "--precision", "float32")
    assert tensors["o"].dtype == np.float32
    direct = refengine.solve("gated_delta_rule", **half, use_qk_l2norm=True, precision="float32")
    assert tensors["o"].tobytes() == direct.o.tobytes()


def test_json_says_what_the_text_says(bench):
    result = bench.run("solve", bench.file(), "-o", bench.out, "--json")
    found = json.loads(result.stdout)
    tensors, _ = tensorfile.read(bench.out)
    assert found["output"] == str(bench.out)
    assert found["o"]["shape"] == list(tensors["o"].shape)
    assert found["o"]["bound"] == tensors["o.bound"].max()
    assert found["o"]["bound_relative"] == tensors["o.bound"].max() / np.abs(tensors["o"]).max()
    longest = np.sqrt((tensors["final_state"] ** 2).sum(axis=-2)).max()
    assert found["final_state"]["bound_relative"] == tensors["final_state.bound"].max() / longest
    assert found["info"]["op"] == "gated_delta_rule"


def test_explain_speaks_on_stderr(bench):
    source = bench.file()
    silent = bench.run("solve", source, "-o", bench.out)
    loud = bench.run("solve", source, "-o", bench.out, "--explain")
    assert silent.stderr == ""
    assert loud.stderr.startswith("form recurrent: ")
    assert len(loud.stdout.splitlines()) == len(silent.stdout.splitlines())


def test_explain_says_nothing_twice(bench):
    bench.tensors["do"] = np.ones_like(bench.tensors["v"])
    said = bench.run("solve", bench.file(), "-o", bench.out, "--grad", "--explain").stderr.splitlines()
    assert len(said) == len(set(said))
    assert [line for line in said if line.startswith("form recurrent: ")] == said[:1]
    assert any(line.startswith("gradients: ") and "tasks" in line for line in said)


def test_an_older_answer_is_replaced(bench):
    bench.out.write_bytes(b"old")
    tensors, _ = bench.solve(bench.file())
    assert "o" in tensors
    assert sorted(p.name for p in bench.folder.iterdir()) == ["in.safetensors", "out.safetensors"]


def test_no_tokens_are_no_trouble(bench):
    empty = {name: x[:, :0] for name, x in bench.tensors.items()}
    result = bench.run("solve", bench.file(**empty), "-o", bench.out)
    assert result.exit_code == 0, result.output
    assert "o            [1, 0, 2, 4] float64, off by at most 0.0e+00" in result.stdout


# ---- what is refused ----


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta"])
def test_a_missing_tensor(bench, name):
    bench.refused_file(bench.file(**{name: None}), says=[f"gated_delta_rule needs {name} [B, T, H", "missing"])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("betta", "'beta'"),
        ("initial_sate", "'initial_state'"),
        ("conv_k.weigth", "'conv_k.weight'"),
        ("gate.A", "'gate.a'"),
    ],
)
def test_an_extra_tensor(bench, name, near):
    says = [f"gated_delta_rule takes no tensor {name!r}", f"did you mean {near}?"]
    bench.refused_file(bench.file(**{name: np.zeros(3)}), says=says)


def test_only_what_the_op_takes_is_said_to_be_known(bench):
    source = bench.file(g=None, beta=None, gate=np.zeros(3))
    said = bench.run("solve", source, "-o", bench.out, "--op", "linear_attn").stderr
    assert "linear_attn takes no tensor 'gate'" in said
    assert "conv_k.weight" in said and "gate.a" not in said and "beta_logits" not in said


@pytest.mark.parametrize("name", ["do", "dht"])
def test_a_cotangent_without_grad(bench, name):
    """A golden's question may hold it, and is solved."""
    plain, _ = bench.solve(bench.file())
    owing, _ = bench.solve(bench.file(**{name: np.zeros(3)}))
    assert owing["o"].tobytes() == plain["o"].tobytes()
    said = bench.run("solve", bench.file(**{name: np.zeros(3)}), "-o", bench.out).stderr
    assert f"Note: {name} is for gradients, which --grad asks for." in said


def test_grad_without_a_cotangent(bench):
    bench.refused_file(bench.file(), "--grad", says=["--grad needs do", "neither is there"])
    bench.refused_file(bench.file(do=np.zeros((1, 7, 2, 3))), "--grad", says=["do has shape [1, 7, 2, 3]"])


def test_a_setting_as_a_tensor(bench):
    bench.refused_file(bench.file(scale=np.array(0.5)), says=["scale is a tensor here"])


def test_a_wrong_rank(bench):
    says = ["v has 3 axes [1, 7, 8]", "[B, T, HV, V]"]
    bench.refused_file(bench.file(v=np.zeros((1, 7, 8))), says=says)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("k", (1, 6, 2, 3), ["k has 6 tokens (axis 1, T)", "q (axis 1) has 7"]),
        ("k", (1, 7, 2, 5), ["k has 5 key channels (axis 3, K)", "q (axis 3) has 3"]),
        ("v", (2, 7, 2, 4), ["v has 2 rows (axis 0, B)", "q (axis 0) has 1"]),
        ("beta", (1, 7, 4), ["beta has 4 value heads (axis 2, HV)", "v (axis 2) has 2"]),
    ],
)
def test_axes_that_disagree(bench, name, shape, says):
    bench.refused_file(bench.file(**{name: -np.ones(shape)}), says=says)


def test_heads_that_do_not_divide(bench):
    odd = {"v": np.zeros((1, 7, 3, 4)), "g": np.zeros((1, 7, 3)), "beta": np.zeros((1, 7, 3))}
    bench.refused_file(bench.file(**odd), says=["3 value heads", "2 key heads"])


def test_a_wrong_initial_state(bench):
    turned = np.zeros((1, 2, 4, 3))
    says = ["initial_state has 4 on axis 2 (K)", "3", "transposed"]
    bench.refused_file(bench.file(initial_state=turned), says=says)


def test_an_unknown_op(bench):
    source = bench.file(metadata={"op": "gated_delta_net"})
    bench.refused_file(source, says=["There is no op 'gated_delta_net'", "did you mean 'gated_delta_rule'?"])
    bench.refused_file(source, "--op", "dleta_rule", says=["There is no op 'dleta_rule'", "did you mean 'delta_rule'?"])


def test_no_op(bench):
    bench.metadata = {}
    bench.refused_file(bench.file(), says=["names no op", "--op", "gated_delta_rule"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--key-shfit", "1"], ["--key-shfit", "--key-shift"]),
        (["--convention", "defualt"], ["no convention 'defualt'", "did you mean 'default'?"]),
        (["--precision", "float46"], ["no precision 'float46'", "float64"]),
        (["--device", "cdua"], ["no device 'cdua'", "did you mean 'cuda'?"]),
        (["--device", "cuda", "--precision", "certified"], ["device 'cuda'", "double-double"]),
        (["--form", "chunk"], ["no form 'chunk'", "recurrent"]),
        (["--l2norm-place", "inisde"], ["'inisde'", "did you mean 'inside'?"]),
        (["--l2norm-eps", "0"], ["eps", "0.0"]),
        (["--key-shift", "one"], ["key_shift is 'one'"]),
        (["--key-shift", "-1"], ["-1", "at least 0"]),
        (["--scale", "big"], ["scale is 'big'"]),
        (["--scale", "nan"], ["scale is nan"]),
        (["--states-at", "1;2"], ["states_at is '1;2'"]),
        (["--states-at", "8"], ["state after 8 tokens", "has 7"]),
        (["--threads", "0"], ["--threads", "0"]),
        (["--set", "key_shfit=1"], ["no setting 'key_shfit'", "did you mean 'key_shift'?"]),
        (["--set", "model=mlp", "--set", "hubris=1"], ["no setting 'hubris' (known: allow_neg_eigval", "value_shift)"]),
        (["--set", "key_shift"], ["NAME=VALUE", "'key_shift'"]),
        (["--set", "key_shift=1", "--key-shift", "1"], ["key_shift is set twice"]),
        (["--set", "scale=1", "--set", "scale=2"], ["scale is set twice"]),
        (["--set", "num_householder=2"], ["gated_delta_rule takes no 'num_householder'"]),
        (["--set", "conv_k.activation=none"], ["conv_k.activation is given without conv_k.weight"]),
        (["--set", "gate.lower_bound=-5"], ["gate.lower_bound is given without gate.a"]),
        (["--allow-neg-eigval"], ["allow_neg_eigval"]),
        (["--sample"], ["--sample"]),
        (["second"], ["second"]),
    ],
)
def test_a_wrong_option(bench, args, says):
    bench.refused_file(bench.file(), *args, says=says)


def test_an_eps_without_a_norm(bench):
    bench.metadata = {"op": "gated_delta_rule"}
    bench.refused_file(bench.file(), "--l2norm-eps", "1e-5", says=["l2norm_eps is given without use_qk_l2norm"])


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("key_shfit", "1", ["'key_shfit'", "did you mean 'key_shift'?"]),
        ("use_qk_l2_norm", "1", ["'use_qk_l2_norm'", "did you mean 'use_qk_l2norm'?"]),
        ("conv_k.activatoin", "none", ["'conv_k.activatoin'", "did you mean 'conv_k.activation'?"]),
        ("key_shift", "1.5", ["key_shift is '1.5'", "whole number"]),
        ("tie_values", "maybe", ["tie_values is 'maybe'", "true or false"]),
        ("scale", "K^-1", ["scale is 'K^-1'"]),
        ("states_at", "1,,x", ["states_at is '1,,x'"]),
        ("use_qk_l2norm_in_kernel", "true", ["'use_qk_l2norm_in_kernel'", "did you mean 'use_qk_l2norm'?"]),
        ("head_first", "true", ["'head_first'", "the layout is [B, T, heads, channels]"]),
        ("output_final_state", "False", ["'output_final_state'", "the final state is always given"]),
    ],
)
def test_wrong_metadata(bench, key, value, says):
    bench.refused_file(bench.file(metadata={key: value}), says=says)


def test_metadata_of_ones_own_is_welcome(bench):
    bench.solve(bench.file(metadata={"format": "pt", "license": "MIT", "origin": "layer 3", "author": "me"}))
    bench.solve(bench.file(metadata={"head_first": "False", "output_final_state": "true"}))


def test_heads_before_tokens(bench):
    """As many heads as tokens were meant: legal, and said."""
    swapped = {name: np.swapaxes(x, 1, 2) for name, x in bench.tensors.items()}
    said = bench.run("solve", bench.file(**swapped), "-o", bench.out).stderr
    assert said == "Warning: q has 2 tokens and 7 heads; the layout is [B, T, heads, channels].\n"


def test_an_answer_of_which_nothing_is_known(bench):
    """Long keys under a delta rule: the state grows until its rounding is larger than all that is read."""
    bench.metadata = {"op": "delta_rule"}
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 60, 1, 8))
    source = bench.file(g=None, q=q, k=4 * k, v=v, beta=np.full((1, 60, 1), 0.5))
    result = bench.run("solve", source, "-o", bench.out)
    assert "Warning: nothing is known of o" in result.stderr and "--l2norm" in result.stderr
    assert bench.run("solve", source, "-o", bench.out, "--l2norm").stderr == ""


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_where_floats_belong(bench, dtype):
    bench.refused_file(bench.file(v=np.ones((1, 7, 2, 4), dtype)), says=["v is ", np.dtype(dtype).name, "float64"])


def test_complex_numbers(bench):
    np.savez(bench.folder / "in.npz", **{**bench.tensors, "v": np.ones((1, 7, 2, 4), complex)})
    bench.refused_file(bench.folder / "in.npz", "--op", "gated_delta_rule", says=["'v'", "complex128"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["q", "beta"])
def test_nan_and_infinity(bench, name, bad):
    x = bench.tensors[name].copy()
    x[0, 4, 1] = bad
    source = bench.file(**{name: x})
    bench.refused_file(source, says=[f"{name} holds ", "the first at [0, 4, 1", "--set allow_nonfinite=true"])


def test_nan_when_allowed(bench):
    x = bench.tensors["v"].copy()
    x[0, 4, 1, 2] = np.nan
    source = bench.file(v=x)
    result = bench.run("solve", source, "-o", bench.out, "--allow-nonfinite")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "no finite bound in 3 of 14 rows" in result.stdout
    tensors, metadata = tensorfile.read(bench.out)
    assert np.isnan(tensors["o"][0, 4:, 1, 2]).all()
    assert metadata["allow_nonfinite"] == "true"
    as_json = bench.run("solve", source, "-o", bench.out, "--allow-nonfinite", "--json")
    assert json.loads(as_json.stdout)["o"]["bound"] is None


def test_a_growing_gate_is_legal_and_said(bench):
    g = bench.tensors["g"].copy()
    g[0, 2, 1] = 0.5
    result = bench.run("solve", bench.file(g=g), "-o", bench.out)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Warning: g is positive, 0.5 at [0, 2, 1]")
    assert result.stderr.count("\n") == 1 and "logarithm" not in result.stderr
    assert bench.out.exists()
    assert "given by its logarithm" in bench.run("solve", bench.file(g=np.exp(-abs(g))), "-o", bench.out).stderr


@pytest.mark.parametrize(
    ("offsets", "says"),
    [
        ([0, 5, 3, 7], ["cu_seqlens falls from 5 to 3", "entry 2"]),
        ([1, 7], ["cu_seqlens starts at 1"]),
        ([0, 6], ["cu_seqlens ends at 6", "q (axis 1) has 7"]),
        ([0, 9], ["cu_seqlens ends at 9", "q (axis 1) has 7"]),
        ([0.0, 7.0], ["cu_seqlens is float64", "integer"]),
        ([[0, 7]], ["cu_seqlens has shape [1, 2]"]),
        ([7], ["cu_seqlens has shape [1]"]),
    ],
)
def test_wrong_offsets(bench, offsets, says):
    bench.refused_file(bench.file(cu_seqlens=np.array(offsets)), says=says)


def test_offsets_with_several_rows(bench):
    twice = {name: np.repeat(x, 2, axis=0) for name, x in bench.tensors.items()}
    says = ["cu_seqlens", "q (axis 0) has 2 rows", "must have 1"]
    bench.refused_file(bench.file(**twice, cu_seqlens=np.array([0, 7])), says=says)


def container(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def field(begin, end, shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ["is empty"]),
        (b"one two three", ["starts with 'one two '"]),
        (b"\x93NUMPY\1\0", ["one array without a name"]),
        (b"\x10\0\0", ["3 bytes"]),
        (struct.pack("<Q", 100) + b"{}", ["header of 100 bytes", "10 bytes"]),
        (struct.pack("<Q", 2**63) + b"{}", [str(2**63)]),
        (container(b"no json"), ["not valid JSON"]),
        (container({"q": field(0, 8, [2])}, bytes(4)), ["'q'", "0 to 8", "0 to 4"]),
        (container({"q": field(0, 8, [3])}, bytes(8)), ["'q'", "12 bytes", "hold 8"]),
        (container({"q": field(0, 8, [2]), "k": field(4, 12, [2])}, bytes(12)), ["'k'", "overlaps", "'q'"]),
        (container({"q": field(0, 8, [2])}, bytes(9)), ["1 bytes that no tensor owns"]),
        (container({"q": field(0, 0, [2**40, 2**40])}), ["'q'"]),
    ],
)
def test_a_broken_file(bench, content, says):
    source = bench.folder / "broken.safetensors"
    source.write_bytes(content)
    bench.refused_file(source, says=[str(source), *says])


def test_a_pickled_npz(bench):
    np.savez(bench.folder / "in.npz", **{**bench.tensors, "v": np.array([{}, []], dtype=object)})
    bench.refused_file(bench.folder / "in.npz", "--op", "gated_delta_rule", says=["'v'", "object"])


def test_an_input_that_is_not_there(bench):
    bench.refused_file(bench.folder / "nothing", says=["nothing", "No such file"])
    bench.refused_file(bench.folder, says=["directory"])


def test_no_input_and_no_output(bench):
    bench.refused("solve", says=["IN is missing"])
    bench.refused("solve", bench.file(), says=["-o OUT is missing"])


def test_an_output_that_cannot_be_written(bench, monkeypatch):
    def never(*_, **__):
        raise AssertionError("solved before the output was checked")

    monkeypatch.setattr(refengine, "solve", never)
    source = bench.file()
    (bench.folder / "folder").mkdir()
    bench.refused("solve", source, "-o", source, says=["the output is the input"])
    bench.refused("solve", source, "-o", "-", says=["not a stream"])
    bench.refused("solve", source, "-o", bench.folder / "x.npz", says=["x.npz", "call it x.safetensors"])
    (bench.folder / "link").symlink_to(source)
    bench.refused("solve", source, "-o", bench.folder / "link", says=["the output is the input"])
    bench.refused("solve", bench.folder / "link", "-o", source, says=["the output is the input"])
    bench.refused("solve", source, "-o", bench.folder / "folder", says=["is a folder"])
    bench.refused("solve", source, "-o", bench.folder / "gone" / "out", says=["there is no folder", "gone"])
    bench.refused("solve", source, "-o", source / "out", says=["there is no folder"])
    bench.refused("solve", source, "-o", "/dev/null", says=["is a device"])
    bench.refused("solve", source, "-o", "/proc/out", says=["/proc", "cannot be written"])


# ---- how it ends early ----

SLOW = """
import sys, time
import refengine.cli.solve as command
from refengine.cli import main

class Slow(command.Bar):
    def __call__(self, done, total):
        print("going", flush=True)
        time.sleep(0.1)

command.Bar = Slow
sys.argv = ["refengine", "solve", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_an_interrupted_run_leaves_no_file(bench, threads):
    spans = 200  # of 2048 tokens: the bar would go on for 20 s
    T = 2048 * spans
    shape = {"q": (1, T, 1, 1), "k": (1, T, 1, 1), "v": (1, T, 1, 1), "g": (1, T, 1), "beta": (1, T, 1)}
    source = bench.file(**{name: np.zeros(s, np.float32) for name, s in shape.items()})
    command = [sys.executable, "-c", SLOW, source, "-o", bench.out, "--threads", threads]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "going\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate()
    assert child.returncode == 130
    assert err == "Interrupted.\n"
    assert out.count("going") < spans // 2
    assert [p.name for p in bench.folder.iterdir()] == ["in.safetensors"]


def test_a_closed_pipe_is_no_trouble(bench):
    code = "from refengine.cli import main; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "solve", bench.file(), "-o", bench.out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child.stdout.close()  # before a word is printed
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 0
    assert bench.out.exists()


def test_memory_that_is_not_there(bench, monkeypatch):
    def much(*_, **__):
        raise MemoryError("Unable to allocate 9 PiB")

    monkeypatch.setattr(refengine, "solve", much)
    bench.refused_file(bench.file(), says=["not enough memory", "9 PiB"])


# ---- the command itself ----


def test_help_is_light():
    code = (
        "import sys, contextlib\n"
        "from refengine.cli import main\n"
        "sys.argv = ['refengine', '--help']\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "heavy = {'numpy', 'numba', 'llvmlite', 'scipy', 'ml_dtypes', 'refengine.engine'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "solve" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("name", ["solve", "ops", "doctor"])
def test_every_help_has_an_example(bench, name):
    assert f"  {name} " in bench.run("--help").stdout
    result = bench.run(name, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    refengine {name}" in result.stdout


def test_version_and_unknown_commands(bench):
    assert bench.run("--version").stdout == f"refengine, version {refengine.__version__}\n"
    bench.refused("slove", says=["There is no command 'slove'", "did you mean 'solve'?"])
    bench.refused("--verison", says=["--verison", "--version"])


def test_colour_is_only_for_terminals_that_want_it(bench, monkeypatch):
    def colourful():
        return "\x1b[" in CliRunner().invoke(group, ["ops", "kda"], color=True).stdout

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colourful()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colourful()


def test_the_bar_counts_from_any_thread(monkeypatch):
    from refengine.cli import bar

    class Terminal:
        def __init__(self):
            self.text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(bar.sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(bar, "PATIENCE", 0.0)
    monkeypatch.setattr(bar, "PAUSE", 0.0)
    with bar.Bar("op") as shown:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda done: shown(done, 500), range(1, 501)))
    assert "op" in terminal.text
    assert "100%" in terminal.text
    assert terminal.text.endswith("\n")


def test_no_bar_without_a_terminal(bench, monkeypatch):
    from refengine.cli import bar

    monkeypatch.setattr(bar, "PATIENCE", 0.0)
    assert bench.run("solve", bench.file(), "-o", bench.out).stderr == ""


def test_the_samples_have_names():
    assert all(Path(data.path(name)).is_file() for name in data.NAMES)
    with pytest.raises(ValueError, match="There is no sample 'huge'; there are minilm_layer3, tiny"):
        data.path("huge")
