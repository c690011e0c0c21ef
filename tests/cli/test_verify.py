"""`refengine verify`: exit codes, words, JSON and JUnit, and candidates that are programs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import refengine
from refengine.io import tensorfile
from refengine.verify import report


@pytest.fixture
def asked(bench):
    """A float32 problem without settings of its own, and a file of its right answer."""
    rng = np.random.default_rng(3)
    tensors = {name: x.astype(np.float32) for name, x in bench.tensors.items()}
    tensors["k"] = (tensors["k"] / np.sqrt((tensors["k"] ** 2).sum(-1, keepdims=True))).astype(np.float32)
    bench.metadata = {"op": "gated_delta_rule"}
    bench.tensors = tensors
    source = bench.file()
    truth = refengine.solve("gated_delta_rule", **tensors)
    answer = {"o": truth.o.astype(np.float32), "final_state": truth.final_state.astype(np.float32)}
    tensorfile.write(bench.folder / "good.safetensors", answer, {})
    answer["o"] = answer["o"] * (1 + 0.01 * rng.standard_normal(answer["o"].shape).astype(np.float32))
    tensorfile.write(bench.folder / "bad.safetensors", answer, {})
    return bench, source


def test_right_is_0_and_wrong_is_1(asked):
    bench, source = asked
    good = bench.run("verify", source, bench.folder / "good.safetensors", "--grade", "f32")
    assert good.exit_code == 0 and good.stdout.startswith("PASS  gated_delta_rule as f32"), good.output
    bad = bench.run("verify", source, bench.folder / "bad.safetensors", "--grade", "f32")
    assert bad.exit_code == 1 and bad.stdout.startswith("FAIL") and "first off at batch 0" in bad.stdout
    assert len(bad.stdout.splitlines()) <= report.MOST_LINES


def test_json_follows_its_schema_and_junit_counts(asked):
    bench, source = asked
    bad = bench.folder / "bad.safetensors"
    xml = bench.folder / "verdict.xml"
    run = bench.run("verify", source, bad, "--grade", "f32", "--json", "-", "--junit", xml)
    found = json.loads(run.stdout)
    schema = json.loads(bench.run("verify", "--schema").stdout)
    assert set(schema["required"]) <= set(found) <= set(schema["properties"])
    assert found["verdict"] in schema["properties"]["verdict"]["enum"]
    view = schema["properties"]["statistics"]["items"]
    assert all(set(view["required"]) == set(s) for s in found["statistics"])
    suite = ElementTree.parse(xml).getroot()
    assert suite.attrib["failures"] == "1" and suite.find("testcase/failure") is not None


def test_mistakes_are_one_sentence(asked):
    bench, source = asked
    good = bench.folder / "good.safetensors"
    for args, says in (
        ([source], "One of GOT, --call and --exec is needed; none is given."),
        ([source, good, "--call", "os:getcwd"], "GOT and --call is given"),
        ([source, good, "--grade", "bf17"], "no grade 'bf17'"),
        ([source, good, "--laws"], "--laws needs a candidate that can be run"),
        ([source, "--call", "nowhere:f"], "nowhere cannot be imported (ModuleNotFoundError"),
        ([source, "--call", "nowhere"], "'nowhere' has no function"),
        ([source, "--exec", "true {in}"], "--exec takes a command with {in} and {out}"),
        ([source, "--exec", "no-such-program {in} {out}"], "No such file"),
    ):
        bench.refused("verify", *args, says=[says])


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(asked):
    bench, source = asked
    for option in ("--json", "--junit"):
        where = bench.folder / "nowhere" / "f"
        bench.refused("verify", source, "--exec", "false {in} {out}", option, where, says=[f"{where}: there is no"])
        bench.refused("verify", source, "--exec", "false {in} {out}", option, source, says=[f"{option} takes another"])


def test_the_answer_of_solve_is_a_candidate(asked):
    bench, source = asked
    bench.solve(source)
    run = bench.run("verify", source, bench.out, "--grade", "f64")
    assert run.exit_code == 0 and run.stdout.startswith("PASS"), run.output


def test_a_file_that_owes_gradients_has_them_judged(asked):
    bench, _ = asked
    rng = np.random.default_rng(4)
    more = {"do": rng.standard_normal((1, 7, 2, 4)), "dht": rng.standard_normal((1, 2, 3, 4))}
    more = {n: x.astype(np.float32) for n, x in more.items()}
    source = bench.file("grad.safetensors", **more)
    tensors, _ = bench.solve(source, "--grad")
    got = bench.folder / "got.safetensors"
    tensorfile.write(got, {n: x.astype(np.float32) for n, x in tensors.items()}, {})
    run = bench.run("verify", source, got, "--grade", "f32")
    assert run.exit_code == 0 and "dbeta windows" in run.stdout, run.output
    without = bench.run("verify", source, bench.folder / "good.safetensors", "--grade", "f32")
    assert without.exit_code == 1 and "dq is missing." in without.stdout
    assert bench.run("verify", source, bench.folder / "good.safetensors", "--grade", "f32", "--no-grad").exit_code == 0
    bench.refused("verify", bench.folder / "in.safetensors", got, "--grad", says=["--grad needs do"])


def test_a_function_by_name(asked, monkeypatch):
    bench, source = asked
    (bench.folder / "mykernel.py").write_text(
        "import numpy as np, refengine\n"
        "def run(q, k, v, g, beta):\n"
        "    o, final = refengine.ops.gated_delta_rule(q, k, v, g, beta)\n"
        "    return o.astype(np.float32), final.astype(np.float32)\n"
    )
    monkeypatch.chdir(bench.folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run = bench.run("verify", source, "--call", "mykernel:run", "--grade", "f32", "--laws")
    assert run.exit_code == 0, run.output
    assert "law repeat    holds" in run.stdout and "law poison    skipped: the call failed" in run.stdout


def test_a_function_of_a_file_and_what_may_be_wrong_with_it(asked, monkeypatch):
    bench, source = asked
    place = bench.folder / "kernels" / "numbers.py"  # a module of that name is in the standard library
    place.parent.mkdir()
    place.write_text(
        "import numpy as np, refengine\n"
        "from beside import wide\n"
        "def run(q, k, v, g, beta):\n"
        "    return tuple(wide(x) for x in refengine.ops.gated_delta_rule(q, k, v, g, beta))\n"
        "def broken(q, k, v, g, beta):\n"
        "    return np.linalg.inv(q[0, 0, :1])\n"
    )
    (place.parent / "beside.py").write_text("import numpy as np\ndef wide(x):\n    return x.astype(np.float32)\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    run = bench.run("verify", source, "--call", f"{place}:run", "--grade", "f32")
    assert run.exit_code == 0, run.output
    for call, says in (
        (f"{place}:rum", f"{place} has no 'rum'; did you mean 'run'? (known: broken, run)"),
        (f"{place}:broken", "(numbers.py, line 6: return np.linalg.inv(q[0, 0, :1]))"),
        (f"{bench.folder}/none.py:run", "there is no such file"),
    ):
        bench.refused("verify", source, "--call", call, "--grade", "f32", says=[says])
    place.write_text("import math\nhalf = math.sqrt(-1)\n")
    bench.refused("verify", source, "--call", f"{place}:run", says=["(numbers.py, line 2: half = math.sqrt(-1))"])


def test_nothing_compared_is_5(asked):
    bench, _ = asked
    source = bench.file("empty.safetensors", **{n: x[:0] for n, x in bench.tensors.items()})
    got = bench.folder / "none.safetensors"
    shapes = {"o": (0, 7, 2, 4), "final_state": (0, 2, 3, 4)}
    tensorfile.write(got, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, {})
    assert bench.run("verify", source, got, "--grade", "f32").exit_code == 5


compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.mark.skipif(compiler is None, reason="there is no C compiler")
def test_a_c_program_passes_when_right_and_fails_when_wrong(asked):
    bench, source = asked
    code = Path(__file__).with_name("gated_delta_rule.c")
    for right, exit_code in ((1, 0), (0, 1)):
        program = bench.folder / f"impl{right}"
        build = [compiler, "-O2", f"-DDECAY_FIRST={right}", str(code), "-o", str(program), "-lm"]
        subprocess.run(build, check=True)
        run = bench.run("verify", source, "--exec", f"{program} {{in}} {{out}}", "--grade", "f32:recurrent")
        assert run.exit_code == exit_code, run.output
    lost = bench.file("no_beta.safetensors", beta=None, beta_logits=bench.tensors["beta"])
    bench.refused("verify", lost, "--exec", f"{program} {{in}} {{out}}", "--grade", "f32", says=["no tensor beta"])
