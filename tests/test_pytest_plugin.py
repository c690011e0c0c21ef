"""The plugin, in a pytest of its own, and the assertion beside it."""

import subprocess
import sys

import numpy as np
import pytest

import refengine
from refengine.testing import assert_implements

SMALL = {"T": 70, "K": 16, "V": 24}
KERNEL = """
import numpy as np, refengine

def kernel(q, k, v, g, beta, initial_state=None, scale=None):
    o, final = refengine.ops.gated_delta_rule(q, k, v, g WRONG, beta, initial_state=initial_state, scale=scale)
    return o.astype(q.dtype), final.astype(np.float32)

def test_my_kernel(refengine_case):
    refengine_case.check(kernel)
"""


def pytest_of(folder, wrong, *options):
    (folder / "test_mine.py").write_text(KERNEL.replace("WRONG", wrong))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--refengine-shape", "T=70,K=16,V=24"]
    return subprocess.run([*words, *options], cwd=folder, capture_output=True, text=True, check=False)


def test_a_suite_in_five_lines(tmp_path):
    good = pytest_of(tmp_path, "")
    assert good.returncode == 0 and "8 passed" in good.stdout, good.stdout
    bad = pytest_of(tmp_path, "* 0.7", "--refengine-grade", "f32")
    assert "5 failed" not in good.stdout and bad.returncode == 1
    assert "FAIL  gated_delta_rule as f32" in bad.stdout and "first off at batch 0" in bad.stdout


def test_the_cases_of_a_suite(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import numpy as np, refengine\n"
        "def kernel(**inputs):\n"
        "    s = refengine.solve('gated_delta_rule', **inputs)\n"
        "    return s.o.astype(np.float32), s.final_state.astype(np.float32)\n"
        "def test_my_kernel(refengine_case):\n"
        "    refengine_case.check(kernel)\n"
    )
    words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--refengine-suite", "core"]
    words += ["--refengine-grade", "f32", "-k", "gated_delta_rule/E"]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout


def test_a_wrong_option_is_one_sentence(tmp_path):
    for option, says in (
        (("--refengine-grade", "bf17"), "There is no grade 'bf17'; did you mean 'bf16'"),
        (("--refengine-ops", "gdn"), "There is no op 'gdn'"),
        (("--refengine-shape", "D=3"), "--refengine-shape has D"),
        (("--refengine-suite", "nowhere"), "a golden suite is a folder"),
    ):
        run = pytest_of(tmp_path, "", *option)
        assert run.returncode != 0 and says in run.stdout + run.stderr
        assert run.stdout.count("\n") + run.stderr.count("\n") < 12, run.stdout + run.stderr


def test_it_costs_nothing_until_a_case_is_asked_for():
    code = "import sys, refengine.pytest_plugin; print(sorted({'numpy', 'numba', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def good(q, k, v, g, beta, initial_state=None, scale=None):
    o, final = refengine.ops.gated_delta_rule(q, k, v, g, beta, initial_state=initial_state, scale=scale)
    return o.astype(np.float32), final.astype(np.float32)


def forgets(q, k, v, g, beta, initial_state=None, scale=None):
    return good(q, k, v, g, beta, None, scale)


def test_assert_implements():
    assert_implements(good, "gated_delta_rule", grade="f32", shape=SMALL)
    with pytest.raises(AssertionError, match="gated_delta_rule on e1\nFAIL"):
        assert_implements(forgets, "gated_delta_rule", grade="f32", shape=SMALL)
