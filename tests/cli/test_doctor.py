"""`refengine doctor`: it says what is there, and notices a wrong answer."""

import json
from importlib.metadata import version

import numpy as np
import pytest

import refengine
from refengine import data
from refengine.cli import doctor


def test_all_is_well(bench):
    result = bench.run("doctor")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert said["refengine"] == refengine.__version__
    assert f"numba {version('numba')}" in said["needed"]
    assert said["self-check"] == "passed"


def test_json_says_the_same(bench):
    found = json.loads(bench.run("doctor", "--json").stdout)
    assert found["needed"]["numpy"] == np.__version__
    assert found["cores"] >= 1
    assert found["lanes"]["float32"] == 2 * found["lanes"]["float64"]
    assert found["cache"]["writable"] is True
    assert set(found["features"]) <= set(doctor.FEATURES)
    assert found["gpu"]
    assert found["self-check"] == "passed"


@pytest.mark.parametrize(("name", "word"), [("TINY_O", "o of"), ("TINY_FINAL_STATE", "final_state of")])
def test_a_wrong_answer_is_noticed(bench, monkeypatch, name, word):
    wrong = np.array(getattr(data, name), dtype=float)
    wrong[-1, -1] *= 1 + 1e-12
    monkeypatch.setattr(data, name, wrong)
    result = bench.run("doctor")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: the self-check failed: {word} the tiny sample is off by ")


def test_what_is_not_installed_is_said():
    assert doctor.installed("no-such-package-anywhere") is None
    assert doctor.text(doctor.installed("no-such-package-anywhere")) == "not installed"
