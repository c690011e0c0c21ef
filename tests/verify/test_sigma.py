"""Sigma as files: a candidate is judged by nothing but them and the golden, and as `verify` judges it."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

from refengine.cli import group
from refengine.data import goldens
from refengine.io.tensorfile import read
from refengine.verify.suite import load

OPS, TIER = "gated_delta_rule", "3"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("sigma")
    words = ["golden", "sigma", "-o", str(out), "--grade", "bf16", "--ops", OPS, "--tier", TIER, "--grad"]
    result = CliRunner().invoke(group, words)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("golden", load("core", "bf16", (OPS,), (TIER,))[0], ids=lambda g: g.name)
def test_one_loop_gives_the_statistics_of_verify(written, golden):
    truth, _ = read(goldens("core") / "cases" / golden.name / "truth.safetensors")
    sigma, said = read(written / golden.name / "sigma.bf16.safetensors")
    got = {"o": truth["o"].astype(np.float32) * np.float32(1 + 2.0**-9)}
    got = {"o": got["o"].astype(ml_dtypes.bfloat16), "final_state": (truth["final_state"] * 1.001).astype(np.float32)}
    statistics = {s.view: s for s in golden.judge.verdict(got).statistics}
    assert json.loads(said["limits"])["o"]["rho"] == [6.0, 8.0]
    for view, name in (("o", "o"), ("final_state", "final_state"), ("final_state columns", "final_state.columns")):
        x, y = (z[name.split(".")[0]].astype(np.float64) for z in (got, truth))
        x, y = (x.swapaxes(-1, -2), y.swapaxes(-1, -2)) if "columns" in name else (x, y)
        d, s, row = x - y, sigma[f"{name}.sigma"], sigma[f"{name}.row"]
        e, V, expected = (
            np.sqrt((d * d).sum(-1)),
            y.shape[-1],
            np.sqrt((y * y).sum() / (sigma[f"{name}.sigma"] ** 2).sum()),
        )
        gain = max(abs((d * y).sum() / (y * y).sum()), abs((d * np.sign(y)).sum() / abs(y).sum())) * expected
        mine = {
            "rho": (e / row).max(),
            "Q": np.quantile(e / row, 0.999),
            "z": (abs(d).max(-1) * np.sqrt(V) / row).max(),
        }
        mine["G"] = gain / json.loads(said["limits"])[name]["G"][0]
        for what, value in mine.items():
            assert value == pytest.approx(statistics[view].values[what], rel=1e-9), what
        assert np.sqrt((e**2).sum() / (s**2).sum()) == pytest.approx(statistics[view].groups["whole"], rel=1e-9)


def test_what_nobody_judges_yet_has_no_file(tmp_path):
    result = CliRunner().invoke(
        group, ["golden", "sigma", "-o", str(tmp_path), "--grade", "f32", "--ops", "titans", "--tier", "3"]
    )
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}: 0 cases\n")
    assert "titans" in result.stderr.lower()
