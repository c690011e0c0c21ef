"""`refengine verify --suite`: what a kernel does on every case of a suite, and the exit codes."""

import json
import shutil
import sys
from dataclasses import replace
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

import refengine
from refengine.data import goldens
from refengine.golden import cases
from refengine.io import tensorfile
from refengine.verify import report, suite

OP = "gated_delta_rule"
KERNEL = """
import numpy as np, refengine

def good(**inputs):
    s = refengine.solve("gated_delta_rule", **{n: x for n, x in inputs.items() if n != "op"})
    return s.o.astype(np.float32), s.final_state.astype(np.float32)

def no_beta(beta, **inputs):
    return good(**inputs, beta=np.ones_like(beta))

def no_conv(q, k, v, g, beta, initial_state=None, scale=None, cu_seqlens=None, use_qk_l2norm=False):
    return good(q=q, k=k, v=v, g=g, beta=beta, initial_state=initial_state, scale=scale, cu_seqlens=cu_seqlens,
                use_qk_l2norm=use_qk_l2norm)
"""


@pytest.fixture
def kernel(bench, monkeypatch):
    (bench.folder / "suite_kernel.py").write_text(KERNEL)
    monkeypatch.chdir(bench.folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield bench
    sys.modules.pop("suite_kernel", None)


def run(bench, name, *more):
    words = ("verify", "--suite", "core", "--ops", OP, "--grade", "f32", "--call", f"suite_kernel:{name}")
    return bench.run(*words, *more)


def test_the_right_kernel_passes_every_case_the_exact_ones_first(kernel):
    xml = kernel.folder / "r.xml"
    found = run(kernel, "good", "--json", "-", "--junit", xml)
    assert found.exit_code == 0, found.output
    data = json.loads(found.stdout)
    tiers = [case["id"].split("/")[1] for case in data["cases"]]
    assert len(tiers) == len(cases.suite("core", (OP,))) and tiers == sorted(tiers, key=cases.TIERS.index)
    for case in data["cases"]:
        jsonschema.validate(case["result"], report.SCHEMA)
        assert case["result"]["exact"] == (case["id"].split("/")[1] == "E")
    assert ElementTree.parse(xml).getroot().attrib["tests"] == str(len(tiers))


def test_a_wrong_kernel_fails_and_the_first_failure_is_shown(kernel):
    found = run(kernel, "no_beta", "--tier", "E")
    assert found.exit_code == 1, found.output
    assert "must be equal to the bit here" in found.stdout and "2 cases: 2 FAIL" in found.stdout


def test_a_warning_says_which_statistic_is_high():
    golden = suite.load("core", "f32", (OP,), ("1",))[0][0]
    truth = refengine.solve(OP, **golden.inputs)
    got = {"o": truth.o.astype(np.float32), "final_state": truth.final_state.astype(np.float32)}
    found = golden.judge.verdict(got)
    assert found.verdict == "PASS" and suite.Row("x", found).why == ""
    one = found.statistics[0]
    tight = replace(one, limits={**one.limits, "R": (one.values["R"] / 2, 9.0)})
    row = suite.Row("x", replace(found, verdict="WARN", statistics=(tight, *found.statistics[1:])))
    assert row.why == f"{one.view} has R {one.values['R']:.3g}, over {one.values['R'] / 2:.3g}"


def test_what_a_kernel_does_not_take_is_2_and_left_out_with_a_reason_0(kernel):
    found = run(kernel, "no_conv", "--tier", "2")
    assert found.exit_code == 2 and "refused" in found.stdout and "which no_conv does not take" in found.stdout
    found = run(kernel, "no_conv", "--tier", "2", "--skip", "*/front/*=it has no convolution")
    assert found.exit_code == 0 and "skipped" in found.stdout and "it has no convolution" in found.stdout
    assert run(kernel, "no_conv", "--tier", "2", "--skip", "*=all of it").exit_code == 5
    for words, says in (
        (("--skip", "*/front/*"), "has no reason"),
        (("--skip", "*/frnt/*=x"), "No case of core is called '*/frnt/*'"),
        (("--op", OP), "--op has no meaning with --suite"),
    ):
        kernel.refused("verify", "--suite", "core", "--call", "suite_kernel:no_conv", "--ops", OP, *words, says=[says])
    kernel.refused("verify", "--suite", "core", "--call", "suite_kernel:no_conv", says=["A function is of one op"])


def test_a_folder_of_outputs_must_hold_every_case(bench):
    words = ("verify", "--suite", "core", bench.folder / "out", "--ops", OP, "--tier", "E", "--grade", "f32")
    bench.refused(*words, says=["is no folder"])
    for golden in suite.load("core", "f32", (OP,), ("E",))[0]:
        truth = refengine.solve(OP, **golden.inputs)
        file = bench.folder / "out" / f"{golden.name}.safetensors"
        file.parent.mkdir(parents=True)
        got = {"o": truth.o.astype(np.float32), "final_state": truth.final_state.astype(np.float32)}
        tensorfile.write(file, got, {})
    assert bench.run(*words).exit_code == 0
    file.unlink()
    found = bench.run(*words)
    assert found.exit_code == 5 and "missing" in found.stdout


def test_goldens_that_are_damaged_or_others_are_4(kernel):
    root = kernel.folder / "goldens"
    shutil.copytree(goldens("core"), root)
    words = ("--suite", root, "--ops", OP, "--tier", "E", "--call", "suite_kernel:good", "--grade", "f32")
    assert kernel.run("verify", *words).exit_code == 0
    truth = next(root.rglob(f"cases/{OP}/E/*/*/truth.safetensors"))
    truth.write_bytes(truth.read_bytes()[:-8] + b"\0" * 8)
    found = kernel.run("verify", *words)
    assert found.exit_code == 4 and "corrupt" in found.stdout


def test_a_golden_whose_answer_is_another_is_stale():
    golden = suite.load("core", "f32", (OP,), ("E",))[0][0]
    read = tensorfile.read

    def other(path):
        tensors, metadata = read(path)
        return {**tensors, "o": tensors["o"] + 1} if path.name == "truth.safetensors" else tensors, metadata

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorfile, "read", other)
        row = suite.judged(lambda: None, golden, False, {})
    assert row.word == "stale" and "o is not the answer in this version" in row.said


def test_an_op_that_nobody_can_judge_yet_is_said(kernel):
    words = ("verify", "--suite", "core", "--ops", "titans", "--tier", "E", "--grade", "f32")
    found = kernel.run(*words, "--call", "suite_kernel:good")
    assert found.exit_code == 5
    assert "2 cases: 2 unjudged" in found.stdout and found.stdout.count("not of the delta core") == 1
