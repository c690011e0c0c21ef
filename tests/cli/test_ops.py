"""`refengine ops`: the declarations as they are read by people and programs."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from refengine import ops
from refengine.io import tensorfile

README = Path(__file__).parents[2] / "README.md"
SIZES = {"B": 1, "N": 1, "T": 4, "T*n": 4, "H": 1, "HV": 2, "K": 2, "V": 2, "R": 3}


def declared(bench):
    return json.loads(bench.run("ops", "--json").stdout)


def test_every_op_is_listed_with_its_reading(bench):
    text = bench.run("ops").stdout
    found = declared(bench)
    assert list(found) == list(ops.names())
    for name, op in found.items():
        block = next(b for b in text.split("\n\n") if b.split()[0] == name)
        assert op["title"] in block
        for part in ("model", "loss", "optimiser", "forgetting"):
            assert op["reading"][part] in block


def test_the_readme_has_this_very_table(bench):
    table = bench.run("ops", "--markdown").stdout
    assert table.count("\n") == len(ops.names()) + 2
    assert table in README.read_text(encoding="utf-8"), "put the output of `refengine ops --markdown` into README.md"


@pytest.mark.parametrize("name", ops.NAMES)
def test_a_page_says_all_that_is_declared(bench, name):
    op = json.loads(bench.run("ops", name, "--json").stdout)
    page = bench.run("ops", name).stdout
    assert op == declared(bench)[name]
    lines = page.splitlines()
    assert lines[:2] == [f"{name}: {op['title']}", op["paper"]]
    assert all(any(equation in line for line in lines) for equation in op["equations"])
    for tensor in op["inputs"]:
        line = next(x for x in lines if x.startswith(f"  {tensor['name']} "))
        assert f"[{', '.join(tensor['axes'][0])}]" in line
        assert tensor["doc"] in line
        assert line.endswith("(optional)") != tensor["required"]
    for convention, what in op["conventions"].items():
        line = next(x for x in lines if x.startswith(f"  {convention} ") and what["doc"] in x)
        assert line.endswith(f"scale, if not given, is {what['scale']}")
    assert all(any(x.startswith(f"  {option} ") for x in lines) for option in op["options"])
    assert all(any(x.startswith(f"  {slip} ") and doc in x for x in lines) for slip, doc in op["mistakes"].items())
    assert lines[-1].strip() == op["example"]


@pytest.mark.parametrize("name", ops.NAMES)
def test_the_example_of_every_op_runs(bench, name, monkeypatch):
    monkeypatch.chdir(bench.folder)
    op = declared(bench)[name]
    rng = np.random.default_rng(1)
    tensors = {
        t["name"]: rng.uniform(0.1, 0.5, [SIZES[axis] for axis in t["axes"][0]]) for t in op["inputs"] if t["required"]
    }
    tensors |= {t.name: -tensors[t.name] for t in ops.get(name).role("decay") if t.name in tensors}
    tensors |= {
        f"initial_state.{t.name}": rng.uniform(0.1, 0.5, [SIZES[axis] for axis in t.axes[0].split()])
        for t in ops.get(name).states
        if t.required
    }
    tensorfile.write("inputs.safetensors", tensors)
    program, *words = shlex.split(op["example"])
    assert program == "refengine"
    result = bench.run(*words)
    assert result.exit_code == 0, result.output
    answer, metadata = tensorfile.read("answer.safetensors")
    assert answer["o"].shape == (1, 4, answer["o"].shape[2], 2)
    assert np.isfinite(answer["o.bound"]).all()
    assert metadata["op"] == name


def test_an_unknown_op(bench):
    bench.refused("ops", "gated_delta", says=["There is no op 'gated_delta'", "did you mean 'gated_delta_rule'?"])
