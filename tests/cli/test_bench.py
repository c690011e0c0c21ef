"""`refengine bench`: every contender is called in every round, and what is printed is what was measured."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

import refengine
from refengine import ops
from refengine.cli import bench as command
from refengine.cli import ceilings, contest, ggml, peers

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["gated_delta_rule", "gla"])
def test_a_small_run(bench, name):
    target = bench.folder / "times.json"
    asked = ["--tokens", 8, "--heads", 2, "--width", 4, "--rounds", 2, "--json", target]
    result = bench.run("bench", "--op", name, *asked)
    assert result.exit_code == 0, result.output
    title, machine, *lines = result.stdout.splitlines()
    assert title.startswith(f"{name}: T=8, 2 heads, K=V=4")
    assert "GF/s of float64 FMA" in machine
    rows = json.loads(target.read_text())
    assert len(rows) == len(lines)
    ours = {(row["way"], row["precision"]): row for row in rows if not row["peer"]}
    assert {(way, p) for way in ("forward", "backward", "both") for p in ("float64", "float32")} <= ours.keys()
    for row, line in zip(rows, lines, strict=True):
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["name"] in line
        assert f"{sum(row['seconds']) / 2 / 16 * 1e6:.3f}" in line
    for precision in ("float64", "float32"):
        alone, both = (ours[way, precision]["seconds"] for way in ("backward", "both"))
        assert all(a < b for a, b in zip(alone, both, strict=True))


def row(way="forward", precision="float32", seconds=1.0, whose="", name="ours", op="gated_delta_rule", ceiling=1e9):
    sizes = {"op": op, "tokens": 1, "heads": 1, "width": 4, "threads": 1}
    told = {"way": way, "precision": precision, "whose": whose, "peer": bool(whose), "name": name}
    return sizes | told | {"seconds": [seconds], "ceiling": [ceiling]}


def test_a_backward_is_set_against_our_forward_and_their_backward():
    rows = [
        row(),
        row(precision="float64", seconds=2.0),
        row("backward", seconds=3.0),
        row("backward", "float64", seconds=5.0),
        row("backward", seconds=12.0, whose="torch", name="slow"),
        row("backward", seconds=9.0, whose="torch", name="quick"),
        row(seconds=1.5, whose="torch", name="forth"),
        row(seconds=4.0, whose="ggml", name="their C"),
    ]
    said = [command.line(one, rows) for one in rows]
    assert "1.5 times as fast as forth (float32); 4.0 times as fast as their C (float32)" in said[0]
    assert "0.75 times as fast as forth (float32)" in said[1]
    assert "3.00 times our float32 forward; 3.0 times as fast as quick (float32)" in said[2]
    assert "2.50 times our float64 forward; 1.8 times as fast as quick (float32)" in said[3]


def test_no_share_above_the_whole_without_saying_why():
    work = 6 * 16
    assert command.of_the_peak(row(seconds=work / 0.75e9)) == "75 %"
    assert command.of_the_peak(row(seconds=work / 1.25e9)) == "125 % (the ceiling was disturbed)"
    assert command.of_the_peak(row(op="mesa_net")) == command.of_the_peak(row("backward")) == ""


def test_a_ceiling_is_the_sum_of_each_threads_best_burst(monkeypatch):
    def slower(call, burst, x):
        with lock:
            calls.append(burst)
            return 1.0 + len(calls) % 3

    calls, lock = [], threading.Lock()
    monkeypatch.setattr(ceilings, "seconds", slower)
    lanes = ceilings.BYTES // 8
    assert ceilings.ceiling(np.float64, 2) == 2 * 2 * ceilings.BURST * ceilings.machine.CHAINS * lanes
    assert len(calls) == 2 * ceilings.BURSTS


def test_a_peer_that_answers_another_question_is_not_timed(monkeypatch, capsys):
    op = ops.get("gated_delta_rule")
    x = contest.inputs(op, 16, 2, 8)
    right = refengine.solve(op.name, **x, precision="float32").o

    def fails():
        raise RuntimeError("no such instruction\nat all")

    def some(name, x, threads):
        call = lambda: {"forward": 1.0}  # noqa: E731
        yield peers.Peer("right", "torch", ("forward",), call, lambda: right)
        yield peers.Peer("scaled", "torch", ("forward",), call, lambda: right * 1.1)
        yield peers.Peer("nothing", "torch", ("forward",), call, lambda: right * np.nan)
        yield peers.Peer("broken", "torch", ("forward",), fails, lambda: right)
        yield peers.Peer("backward", "torch", ("backward", "both"), call)

    monkeypatch.setattr(peers, "of", some)
    assert [c.name for c in contest.theirs(op, x, 1, ("forward",))] == ["right"]
    said = capsys.readouterr().err
    assert "scaled is not timed: its answer is 0.1 of the largest away" in said
    assert "nothing is not timed" in said
    assert "broken is installed but does not run here (no such instruction)" in said


@pytest.mark.skipif(ggml.library() is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize(("name", "threads"), [("gated_delta_rule", 1), ("kda", 2)])
def test_ggml_gives_our_answer(name, threads):
    x = contest.inputs(ops.get(name), 33, 2, 64)
    net = ggml.GatedDeltaNet(ggml.library(), x, threads)
    net.compute()
    o = refengine.solve(name, **x).o
    np.testing.assert_allclose(net.o(), o, rtol=0, atol=1e-5 * np.abs(o).max())


def test_growth_ends_with_the_slowest_over_the_fastest(bench, monkeypatch):
    monkeypatch.setattr(command, "LENGTHS", (4, 8))
    monkeypatch.setattr(command, "WIDTHS", (2,))
    target = bench.folder / "times.json"
    asked = ["--tokens", 8, "--heads", 2, "--width", 4, "--rounds", 1, "--growth", "--json", target]
    result = bench.run("bench", *asked)
    assert result.exit_code == 0, result.output
    of_t = [r["seconds"][0] / r["tokens"] for r in json.loads(target.read_text()) if r.get("axis") == "T"]
    assert len(of_t) == 2
    last = result.stdout.splitlines()[-1]
    assert last == f"  over T the slowest token takes {max(of_t) / min(of_t):.2f} times the fastest"


def test_the_readmes_table_is_what_it_prints(bench, monkeypatch):
    monkeypatch.setattr(command, "SHOWN", {n: (op, t and 8, ways) for n, (op, t, ways) in command.SHOWN.items()})
    result = bench.run("bench", "--markdown", "--tokens", 8, "--heads", 2, "--width", 4, "--rounds", 1)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    cut = lines.index("")
    shown = README[README.index("refengine bench --markdown") :].splitlines()
    table = [line for line in shown if line.startswith("|")]
    assert lines[:2] == table[:2]
    assert [line.split("|")[1] for line in lines[:cut]] == [line.split("|")[1] for line in table]
    assert lines[cut + 1].endswith("T = 8, T = 8 (MesaNet); 2 heads, K = V = 4.")
    assert lines[cut + 2].startswith("The others, all in float32: ")


def test_the_table_chooses_what_it_measures(bench):
    bench.refused("bench", "--markdown", "--threads", 2, says=["--markdown", "--threads"])


def test_an_op_it_cannot_make_inputs_for(bench):
    bench.refused("bench", "--op", "gated_delta_rul", says=["gated_delta_rule"])
