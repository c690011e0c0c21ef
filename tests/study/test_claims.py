"""Every claim at a small scale, and what each says when the thing it measures is broken."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from refengine import study
from refengine.errors import InputError
from refengine.study.claim import FAILS, HOLDS, LIMITED, Figure, Findings, at_least, at_most, near
from refengine.study.lab import Lab
from refengine.study.text import load

LICENSE = Path(__file__).parents[2] / "LICENSE"
SMALL = {
    "identity": {"SAMPLES": 4},
    "collapse": {"SAMPLES": 32},
    "context": {"SAMPLES": 10},
    "overlap": {"SAMPLES": 10},
    "source": {"SAMPLES": 10},
    "ngram": {"D": 128},
}


def run(name, monkeypatch, tokens=2500, sabotage=None):
    claim = study.get(name)
    for constant, value in SMALL.get(name, {}).items():
        monkeypatch.setattr(import_module(f"refengine.study.{name}"), constant, value)
    if sabotage is not None:
        honest = Lab.solve
        monkeypatch.setattr(Lab, "solve", lambda self, *given, **more: sabotage(honest, self, *given, **more))
    return claim.run(Lab(load(LICENSE).upto(tokens)))


@pytest.mark.parametrize("name", study.NAMES)
def test_the_claims_hold(name, monkeypatch):
    found = run(name, monkeypatch)
    assert [f for f in found.figures if not f.within and not f.limit] == []
    assert found.verdict == (LIMITED if any(f.limit and f.within for f in found.figures) else HOLDS)
    assert bool(study.get(name).limit) == any(f.limit for f in found.figures)
    assert all(np.isfinite(f.measured) for f in found.figures)
    assert all(len(row) == len(table.columns) for table in found.tables for row in table.rows)
    assert len({f.what for f in found.figures}) == len(found.figures)


def unshifted(solve, lab, *given, key_shift=0, **more):
    return solve(lab, *given, **more)


def untied(solve, lab, learner, q, k, v, tie_values=False, **more):
    return solve(lab, learner, q, k, np.roll(k, 1, axis=1) if tie_values else v, **more)


def noisy(solve, lab, learner, q, k, v, **more):
    """Values that are not what they are taken for."""
    return solve(lab, learner, q, k, v + 0.3 * np.random.default_rng(0).standard_normal(v.shape), **more)


def louder(solve, lab, learner, q, k, v, **more):
    """Keys a twentieth too long."""
    return solve(lab, learner, q, 1.05 * k, v, **more)


def unconvolved(solve, lab, *given, conv_k=None, conv_q=None, **more):
    return solve(lab, *given, **more)


BROKEN = [
    ("identity", untied),
    ("collapse", untied),
    ("collapse", louder),
    ("context", unshifted),
    ("overlap", noisy),
    ("source", noisy),
    ("bigram", unshifted),
    ("bigram", louder),
    ("loss", unshifted),
    ("loss", louder),
    ("shifts", unshifted),
    ("tap", unconvolved),
    ("tap", louder),
    ("ngram", unconvolved),
    ("values", untied),
]


@pytest.mark.parametrize(("name", "sabotage"), BROKEN, ids=[f"{name}-{how.__name__}" for name, how in BROKEN])
def test_what_is_broken_fails(name, sabotage, monkeypatch):
    assert run(name, monkeypatch, sabotage=sabotage).verdict == FAILS


def test_a_verdict_follows_from_the_figures():
    good, bad = near("x", 1.0, 1.1, 0.2), near("x", 1.0, 1.1, 0.05)
    shows, hides = at_least("l", 1.0, 0.5, limit=True), at_least("l", 0.1, 0.5, limit=True)
    assert Findings([good, hides]).verdict == HOLDS
    assert Findings([good, shows, hides]).verdict == LIMITED
    assert Findings([good, bad, shows]).verdict == FAILS
    assert Findings([good, Figure("x", float("nan"), 0, 1)]).verdict == FAILS
    assert (at_most("m", 1.0, 1.0).within, at_most("m", 1.1, 1.0).within) == (True, False)


def test_claims_by_name_and_number():
    assert [claim.name for claim in study.chosen()] == list(study.NAMES)
    assert [claim.number for claim in study.chosen()] == list(range(1, 12))
    assert [claim.name for claim in study.chosen(["C6", "identity", "bigram"])] == ["identity", "bigram"]
    with pytest.raises(InputError, match="did you mean 'bigram'"):
        study.get("bigrams")


def test_figures_do_not_depend_on_what_else_runs(monkeypatch):
    monkeypatch.setattr(import_module("refengine.study.overlap"), "SAMPLES", 8)
    lab = Lab()
    first = study.get("overlap").run(lab).figures
    assert study.get("overlap").run(lab).figures == first
    assert Lab(scale=2).rng(4).standard_normal() == lab.rng(4).standard_normal() != lab.rng(5).standard_normal()
