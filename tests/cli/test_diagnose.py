"""`refengine diagnose`: words, JSON, and one sentence for a mistake of the person's."""

import json
import sys

import numpy as np

import refengine
from refengine.diagnose import confusion
from refengine.io import tensorfile
from refengine.verify import mistakes


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


def test_the_confusion_table(bench, monkeypatch):
    known = {m.name: m for m in mistakes.CATALOGUE}
    monkeypatch.setattr(confusion, "REGIMES", ("mamba",))
    monkeypatch.setattr(confusion, "of", lambda op: (known["scale_missing"], known["heads_tiled"]))
    run = bench.run("diagnose", "--confusion", "--grade", "f32")
    assert run.exit_code == 0, run.output
    assert run.stdout.startswith(
        "gated_delta_rule, f32: 2 of 2 mistakes named, 0 named wrongly; 0 never seen by verify"
    )
    rows = json.loads(bench.run("diagnose", "--confusion", "--grade", "f32", "--json", "-").stdout)["rows"]
    assert [(r["mutant"], r["called"]) for r in rows] == [(n, [n]) for n in ("scale_missing", "heads_tiled")]
    bench.refused("diagnose", says=["IN is missing"])
