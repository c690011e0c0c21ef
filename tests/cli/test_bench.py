"""`refengine bench`: every contender is called in every round, and what is printed is what was measured."""

import json

import pytest

from refengine.cli import bench as command


@pytest.mark.parametrize("name", ["gated_delta_rule", "gla"])
def test_a_small_run(bench, name):
    target = bench.folder / "times.json"
    asked = ["--tokens", 8, "--heads", 2, "--width", 4, "--rounds", 2, "--json", target]
    result = bench.run("bench", "--op", name, *asked)
    assert result.exit_code == 0, result.output
    title, ceilings, *lines = result.stdout.splitlines()
    assert title.startswith(f"{name}: T=8, 2 heads, K=V=4")
    assert "GF/s of float64 FMA" in ceilings
    rows = json.loads(target.read_text())
    assert len(rows) == len(lines)
    ours = {(row["way"], row["name"]) for row in rows if not row["peer"]}
    assert {("forward", "refengine float64"), ("forward", "refengine float32")} <= ours
    for row, line in zip(rows, lines, strict=True):
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["name"] in line
        assert f"{sum(row['seconds']) / 2 / 16 * 1e6:.3f}" in line


def test_the_best_peer_is_what_a_ratio_is_against():
    row = dict(
        way="forward", name="refengine float32", peer=False, op="gated_delta_rule", seconds=[2e-6], ceiling=[1e9]
    )
    assert "5.0 times the best peer" in command.line(row, 1, 4, 1e-5)


def test_an_op_it_cannot_make_inputs_for(bench):
    bench.refused("bench", "--op", "gated_delta_rul", says=["gated_delta_rule"])
