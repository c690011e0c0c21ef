"""`refengine diagnose`: words, JSON, and one sentence for a mistake of the person's."""

import json

import numpy as np

import refengine
from refengine.io import tensorfile


def test_a_file_is_diagnosed_in_words_and_as_json(bench):
    bench.metadata = {"op": "gated_delta_rule"}
    bench.tensors = {name: x.astype(np.float32) for name, x in bench.tensors.items()}
    bench.tensors["initial_state"] = np.ones((1, 2, 3, 4), np.float32)
    source, got = bench.file(), bench.folder / "got.safetensors"
    wrong = refengine.solve("gated_delta_rule", **{**bench.tensors, "initial_state": None})
    tensorfile.write(got, {"o": wrong.o.astype(np.float32), "final_state": wrong.final_state.astype(np.float32)}, {})
    run = bench.run("diagnose", source, got, "--grade", "f32")
    assert run.exit_code == 0 and "initial_state_ignored" in run.stdout.splitlines()[0], run.output
    data = json.loads(bench.run("diagnose", source, got, "--grade", "f32", "--json", "-").stdout)
    assert data["best"] == "initial_state_ignored" and data["text"] in run.stdout
    assert json.loads(bench.run("diagnose", "--schema").stdout)["title"] == "refengine diagnose"
    bench.refused("diagnose", source, says=["One of GOT, --call and --exec is needed; none is given."])
    lost = bench.folder / "no" / "x.json"
    bench.refused("diagnose", source, got, "--json", lost, says=["there is no folder"])
