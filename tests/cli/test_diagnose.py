"""`refengine diagnose`: words, JSON, and one sentence for a mistake of the person's."""

import json
import sys

import ml_dtypes
import numpy as np

import refengine
from refengine.diagnose import confusion
from refengine.io import tensorfile
from refengine.verify import gradient_mistakes, mistakes


def test_a_file_is_diagnosed_in_words_and_as_json(bench):
    bench.metadata = {"op": "gated_delta_rule"}
    bench.tensors = {name: x.astype(np.float32) for name, x in bench.tensors.items()}
    bench.tensors["initial_state"] = np.ones((1, 2, 3, 4), np.float32)
    source, got = bench.file(), bench.folder / "got.safetensors"
    wrong = refengine.solve("gated_delta_rule", **{**bench.tensors, "initial_state": None})
    tensorfile.write(got, {"o": wrong.o.astype(np.float32), "final_state": wrong.final_state.astype(np.float32)}, {})
    run = bench.run("diagnose", source, got, "--grade", "f32")
    assert run.exit_code == 1 and "initial_state_ignored" in run.stdout.splitlines()[0], run.output
    data = json.loads(bench.run("diagnose", source, got, "--grade", "f32", "--json", "-").stdout)
    assert data["best"] == "initial_state_ignored" and data["text"] in run.stdout
    assert json.loads(bench.run("diagnose", "--schema").stdout)["title"] == "refengine diagnose"
    bench.refused("diagnose", source, says=["One of GOT, --call and --exec is needed; none is given."])
    bench.refused("diagnose", source, got, "--shrink", "bug", says=["--shrink needs a candidate that can be run"])
    short = bench.folder / "short.safetensors"
    tensorfile.write(short, {"o": wrong.o[:, 1:].astype(np.float32)}, {})
    run = bench.run("diagnose", source, short, "--grade", "f32")
    assert run.exit_code == 2 and "cannot be compared" in run.stdout, run.output
    right = refengine.solve("gated_delta_rule", **bench.tensors)
    tensorfile.write(got, {"o": right.o.astype(np.float32), "final_state": right.final_state.astype(np.float32)}, {})
    run = bench.run("diagnose", source, got, "--grade", "f32")
    assert run.exit_code == 0 and "Nothing is wrong" in run.stdout, run.output
    lost = bench.folder / "no" / "x.json"
    bench.refused("diagnose", source, got, "--json", lost, says=["there is no folder"])


def test_a_program_is_shrunk_and_a_file_has_a_probe(bench, monkeypatch):
    bench.metadata = {"op": "gated_delta_rule"}
    bench.tensors = {name: x.astype(np.float32) for name, x in bench.tensors.items()}
    bench.tensors["beta"] = np.full_like(bench.tensors["beta"], 0.5)
    source = bench.file()
    (bench.folder / "squaring.py").write_text(
        "import numpy as np, refengine\n"
        "def run(q, k, v, g, beta, initial_state=None):\n"
        "    o, final = refengine.ops.gated_delta_rule(q, k, v, g, beta * beta, initial_state=initial_state)\n"
        "    return o.astype(np.float32), final.astype(np.float32)\n"
    )
    monkeypatch.chdir(bench.folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run = bench.run("diagnose", source, "--call", "squaring:run", "--grade", "f32", "--shrink", "bug")
    assert run.exit_code == 1 and "It is beta_squared" in run.stdout and "still fails at B=1, T=1" in run.stdout, (
        run.output
    )
    small = bench.folder / "bug"
    assert bench.run("verify", small / "inputs.safetensors", small / "got.safetensors", "--grade", "f32").exit_code == 1
    squared = refengine.solve("gated_delta_rule", **{**bench.tensors, "beta": bench.tensors["beta"] ** 2})
    got, probe = bench.folder / "got.safetensors", bench.folder / "probe.safetensors"
    tensorfile.write(
        got, {"o": squared.o.astype(np.float32), "final_state": squared.final_state.astype(np.float32)}, {}
    )
    run = bench.run("diagnose", source, got, "--grade", "f32", "--probe", probe)
    assert "beta_half" in run.stdout and "they differ" in run.stderr, run.output
    run = bench.run("diagnose", probe, "--call", "squaring:run", "--grade", "f32")
    assert "It is beta_squared: beta squared" in run.stdout, run.output


def test_a_probe_that_cannot_be_is_said_and_one_of_what_hides_is_written(bench):
    bench.metadata = {"op": "gated_delta_rule"}
    bench.tensors = {n: x.astype(ml_dtypes.bfloat16 if n in "qkv" else np.float32) for n, x in bench.tensors.items()}
    source, got, probe = bench.file(), bench.folder / "got.safetensors", bench.folder / "probe.safetensors"
    right = refengine.solve("gated_delta_rule", **bench.tensors)
    finals = {"final_state": right.final_state.astype(np.float32)}
    tensorfile.write(got, {"o": right.o.astype(ml_dtypes.bfloat16), **finals}, {})
    run = bench.run("diagnose", source, got, "--probe", probe)
    assert run.exit_code == 0 and "coarser gates or a coarser state than declared show" in run.stderr, run.output
    tensors, _ = tensorfile.read(probe)
    assert not tensors["k"].any() and tensors["initial_state"].any()
    probe.unlink()
    tensorfile.write(got, {"o": -right.o.astype(ml_dtypes.bfloat16), **finals}, {})
    run = bench.run("diagnose", source, got, "--probe", probe)
    assert run.exit_code == 2 and not probe.exists(), run.output
    assert "probe.safetensors is not written: one mistake is named" in run.stderr, run.output


def test_the_confusion_table(bench, monkeypatch):
    known = {m.name: m for m in (*mistakes.CATALOGUE, *gradient_mistakes.CATALOGUE)}
    for name, value in (
        ("REGIMES", ("mamba",)),
        ("BACKWARD", ("mamba",)),
        ("PAIRS", 1),
        ("HONEST", 2),
        ("of", lambda op: (known["scale_missing"], known["heads_tiled"])),
    ):
        monkeypatch.setattr(confusion, name, value)
    monkeypatch.setattr(gradient_mistakes, "CATALOGUE", (known["dq_without_scale"], known["d_carry_ungated"]))
    run = bench.run("diagnose", "--confusion", "--grade", "f32", "--json", bench.folder / "table.json")
    assert run.exit_code == 0, run.output
    said = run.stdout.splitlines()
    assert said[0] == "gated_delta_rule, f32: 2 of 2 mistakes named, 0 named wrongly; 0 never seen by verify"
    assert said[3] == "gradients: 2 of 2 mistakes named, 0 named wrongly; 0 never seen by verify"
    assert said[6] == ("1 pairs: 1 both named, 0 one named, 0 no single mistake, 0 named wrongly; the place right in 1")
    assert said[8:] == ["honest runs: 2 nothing wrong"]
    data = json.loads((bench.folder / "table.json").read_text())
    assert [(r["mutant"], r["called"]) for r in data["rows"]] == [(n, [n]) for n in ("scale_missing", "heads_tiled")]
    assert [r["mutant"] for r in data["gradients"]] == ["dq_without_scale", "d_carry_ungated"]
    assert data["pairs"][0]["kind"] == "both named" and data["honest"] == {"nothing wrong": 2}
    bench.refused("diagnose", says=["IN is missing"])
