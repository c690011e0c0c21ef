"""`refengine golden`: what it prints, and the exit codes a build depends on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from refengine.cli import group
from refengine.data import goldens
from refengine.golden.cases import suite

CORE = goldens("core")


def invoke(*words):
    return CliRunner().invoke(group, ["golden", *map(str, words)])


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(CORE, tmp_path / "goldens")


def test_list():
    result = invoke("list", "core", "--ops", "kda", "--tier", "E")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [case.id for case in suite("core", ("kda",), ("E",))]
    said = json.loads(invoke("list", "--json").stdout)
    assert said["cases"] == [case.id for case in suite("core")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("list", "cores"), "did you mean 'core'"),
        (("list", "core", "--ops", "kd"), "did you mean 'kda'"),
        (("list", "core", "--tier", "9"), "There is no tier '9'"),
        (("make", "core"), "-o"),
    ],
)
def test_mistakes(words, sentence):
    result = invoke(*words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_whole_suite_passes():
    result = invoke("check", CORE, "--quick")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("PASS: ")


def test_corrupt_is_4(copy):
    path = copy / "cases" / suite("core")[0].id / "truth.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    result = invoke("check", copy, "--quick", "--json")
    assert result.exit_code == 4
    said = json.loads(result.stdout)
    assert said["verdict"] == "CORRUPT OR STALE"
    assert any(str(path) in finding["text"] for finding in said["findings"])


def test_a_suite_without_its_list_is_4(copy):
    (copy / "suite.json").unlink()
    result = invoke("check", copy, "--quick")
    assert result.exit_code == 4
    assert "suite.json" in result.stderr


@pytest.mark.parametrize(
    ("where", "sentence"),
    [("nowhere", "nowhere is not there;"), ("notes.txt", "notes.txt is no folder;"), (".", "holds no golden suite")],
)
@pytest.mark.parametrize("command", [("check", "--quick"), ("check",), ("export", "--npy", "-o", "out")])
def test_a_wrong_path_is_2(tmp_path, command, where, sentence):
    (tmp_path / "notes.txt").write_text("mine")
    result = invoke(*command, tmp_path / where)
    assert result.exit_code == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""


def test_too_little_is_5(copy):
    from refengine.golden import integrity

    gone = suite("core")[0].id
    shutil.rmtree(copy / "cases" / gone)
    (copy / integrity.SUMS).write_bytes(integrity.sums(copy))
    result = invoke("check", copy, "--quick")
    assert result.exit_code == 5
    assert gone in result.stderr


def test_make_and_check(tmp_path):
    pytest.importorskip("flint")
    out = tmp_path / "out"
    made = invoke("make", "core", "-o", out, "--ops", "linear_attn", "--tier", "real", "--json")
    assert made.exit_code == 0, made.stderr
    said = json.loads(made.stdout)
    assert said["cases"] == 1
    assert sum(said["correctly_rounded"]["real"].values()) == said["elements"]
    assert said["correctly_rounded"]["real"]["running_bound"] > 0 == said["correctly_rounded"]["real"]["unsettled"]
    checked = invoke("check", out)
    assert (checked.exit_code, checked.stdout) == (0, "PASS: 1 cases\n")


def test_the_bounds_hold_on_ten_million_numbers_as_the_readme_says():
    pytest.importorskip("flint")
    result = invoke("audit")
    assert result.exit_code == 0
    assert int(result.stdout.split(":")[1].split()[0]) >= 10_000_000
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"```\n{result.stdout}```" in readme


def test_a_bound_that_does_not_hold_is_counted(monkeypatch):
    """float64's bound set to a twentieth of what it is: the audit says so, and fails."""
    pytest.importorskip("flint")
    from refengine.golden import audit

    right = audit.execute

    def bolder(p, *more):
        s = right(p, *more)
        return s if s.low else replace(s, bound={name: 0.05 * x for name, x in s.bound.items()})

    monkeypatch.setattr(audit, "execute", bolder)
    result = invoke("audit", "--numbers", "100000", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["float64"]["outside"] > 0 and said["double_double"]["outside"] == 0


def test_of_tiers_1_and_2_no_shipped_number_is_left_unproved():
    proved = json.loads((CORE / "suite.json").read_text(encoding="utf-8"))["correctly_rounded"]
    assert all(proved[tier]["unsettled"] == 0 < proved[tier]["running_bound"] for tier in ("1", "2"))
