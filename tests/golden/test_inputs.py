"""Golden inputs: integer draws with known values, and what the cases are made of."""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import pytest

from refengine import ops
from refengine.golden.cases import CORE, FULL, SUITES, TIERS, suite
from refengine.golden.draw import Stream, key_of, rounded, unit
from refengine.golden.families import FAMILIES
from refengine.golden.inputs import arguments
from refengine.golden.problems import problem
from refengine.numbers.philox import words


def test_draws_are_what_their_formulas_say():
    key = key_of("anything")
    assert key == tuple(int.from_bytes(hashlib.sha256(b"anything").digest()[i : i + 4], "big") for i in (0, 4))
    raw = [int(w) for w in words(8, key, 3)]
    assert Stream(key, 3).uniform((8,)).tolist() == [((w >> 8) + 0.5) / 2**24 for w in raw]
    assert Stream(key, 3).integers((8,), -2, 5).tolist() == [(w * 8 >> 32) - 2 for w in raw]
    halves = [(w & 0xFFFF) + (w >> 16) for w in raw]
    assert Stream(key, 3).normal((4,)).tolist() == [
        (a + b - 131070) * 1.75 / 65536 for a, b in zip(*[iter(halves)] * 2, strict=True)
    ]
    s = Stream(key, 3)
    assert np.concatenate([s.take(3), s.take(5)]).tolist() == raw
    assert np.sort(Stream(key, 1).permutations(7, 9), axis=1).tolist() == [list(range(9))] * 7


def test_draws_are_spread_as_they_should_be():
    s = Stream(key_of("spread"), 0)
    x, u, n = s.normal((20000,)), s.uniform((20000,)), s.integers((20000,), 0, 3)
    assert abs(x.mean()) < 0.03 and abs(x.std() - 1.01) < 0.02
    assert abs(u.mean() - 0.5) < 0.01 and u.min() > 0 and u.max() < 1
    assert (abs(np.bincount(n) / 20000 - 0.25) < 0.02).all()


def test_rounding_is_to_nearest_even():
    x = np.random.default_rng(0).standard_normal(1000)
    assert (rounded(x, "float32") == x.astype(np.float32)).all()
    narrow = x.astype(np.float32)  # ml_dtypes rounds float64 twice
    assert (
        rounded(narrow.astype(np.float64), "bfloat16") == narrow.astype(ml_dtypes.bfloat16).astype(np.float64)
    ).all()
    ties = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -(1 + 2.0**-8), 0.0])
    assert rounded(ties, "bfloat16").tolist() == [1.0, 1 + 2.0**-6, -1.0, 0.0]
    assert abs((unit(x.reshape(10, 100)) ** 2).sum(axis=1) - 1).max() < 1e-14
    assert unit(np.zeros((1, 3))).tolist() == [[0.0] * 3]


@pytest.mark.parametrize("name", SUITES)
def test_every_case_has_a_name_of_its_own(name):
    cases = suite(name)
    assert len({case.id for case in cases}) == len(cases)
    assert {case.regime.tier for case in cases} == set(TIERS)
    assert {case.op.name for case in cases} <= set(ops.names())


def test_every_family_has_a_home():
    regimes = {regime.name for regime in FULL}
    for name, family in FAMILIES.items():
        for home in family.home:
            assert home in regimes or home == "adapter" or home.startswith("law"), f"{name}: {home}"
    assert len(FAMILIES) == 17


def test_the_six_spanning_inputs_are_in_the_core_suite():
    """A rich case, no decay with K = V, a strong decay, tiny keys, identical keys with steps near 1, unequal gates."""
    names = {regime.name for regime in CORE}
    assert {"rich", "still", "strong", "key_norms", "same_keys", "unequal"} <= names
    of = {case.regime.name: arguments(case) for case in suite("core", ("kda",))}
    assert of["rich"]["q"].shape[1] == 2 * 64 + 5 and of["rich"]["initial_state"].any()
    assert not of["still"]["g"].any() and of["still"]["q"].shape[3] == of["still"]["v"].shape[3]
    assert of["strong"]["g"].min() == -20
    sizes = np.sqrt((of["key_norms"]["k"].astype(float) ** 2).sum(-1))
    assert sizes.min() == 0 and sizes.max() > 29 and ((sizes > 0) & (sizes < 2e-4)).any()
    assert (of["same_keys"]["k"] == of["same_keys"]["k"][:, :1]).all() and of["same_keys"]["beta"].min() > 0.98
    assert len(np.unique(of["unequal"]["g"][0, 0, 0])) > 2 and of["unequal"]["g"].min() == -8


@pytest.mark.parametrize("case", suite("core"), ids=lambda case: case.id)
def test_a_case_is_a_problem(case):
    given = arguments(case)
    again = arguments(case)
    given.pop("do", None), given.pop("dht", None)
    p = problem(case.op.name, given)
    assert all(p.sizes[a] == n for a, n in case.size.items())
    for name, x in given.items():
        if isinstance(x, np.ndarray):
            assert x.tobytes() == again[name].tobytes()
            if x.dtype == ml_dtypes.bfloat16 and case.regime.tier == "E" and "R" not in case.size:
                assert abs(x.astype(float)).max() <= 256


@pytest.mark.parametrize("case", [c for c in suite("full") if c.regime.tier == "real"], ids=lambda case: case.id)
def test_the_sample_is_long_enough(case):
    assert problem(case.op.name, arguments(case)).sizes["T"] == case.size["T"]
