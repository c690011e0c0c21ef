"""The formulas beside the figures, against what they are formulas for, computed another way."""

import itertools

import numpy as np
import pytest

from refengine.study import counts, moments, resolvent, source, tap
from refengine.study.lab import directions, hits, sensitivity

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("alpha", [1.0, np.array([0.7, 0.9, 1.0])], ids=["kept", "channels"])
def test_moments_are_the_average_over_a_design_of_keys(order, alpha):
    """Icosahedral directions have the sphere's moments up to the fourth: the average over all sequences is exact."""
    phi = (1 + 5**0.5) / 2
    keys = np.array([[0, 1, phi], [0, 1, -phi], [1, phi, 0], [1, -phi, 0], [phi, 0, 1], [-phi, 0, 1]]) / np.hypot(
        1, phi
    )
    T, beta, A = 3, 0.6, np.broadcast_to(alpha, 3)
    states = []
    for sequence in itertools.product(keys, repeat=T):
        S = np.zeros((3, 3))
        for k in sequence:
            seen = S if order == "pre" else A[:, None] * S
            S = A[:, None] * S + beta * np.outer(k, k - k @ seen)
        states.append(S)
    S = np.array(states)
    theory = moments.of_delta(T, 3, beta, alpha, order)
    assert np.allclose(np.diagonal(S, axis1=1, axis2=2).mean(0), theory.m[T], rtol=0, atol=1e-13)
    assert np.allclose((S**2).sum(-1).mean(0), theory.p[T], rtol=0, atol=1e-13)
    assert np.isclose(((S - np.eye(3)) ** 2).sum((-1, -2)).mean() / 3, theory.distance()[T], rtol=1e-12)


def test_adding_is_the_same_recursion_without_a_prediction():
    keys = np.array([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])  # a design in the plane
    states = [sum(np.outer(k, k) for k in s) for s in itertools.product(keys, repeat=3)]
    theory = moments.of_linear(3, 2)
    assert np.isclose(np.mean([np.trace(S) for S in states]) / 2, theory.trace()[3])
    assert np.isclose(np.mean([(S**2).sum() for S in states]), theory.p[3].sum())


@pytest.mark.parametrize("kept", [1.0, 0.8])
def test_moments_with_momentum(kept):
    keys = np.array([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5], [0.5**0.5, -(0.5**0.5)]])  # a 4-design's axes
    T, theta, eta, states = 4, 0.4, 0.6, []
    for sequence in itertools.product(keys, repeat=T):
        S, P = np.zeros((2, 2)), np.zeros((2, 2))
        for k in sequence:
            P = eta * P + theta * np.outer(k, k - k @ S)
            S = kept * S + P
        states.append(S)
    theory = moments.of_momentum(T, 2, theta, eta, kept)
    assert np.isclose(np.mean([np.trace(S) for S in states]) / 2, theory.trace()[T], rtol=1e-12)
    assert np.isclose(np.mean([(S**2).sum() for S in states]), theory.p[T].sum(), rtol=1e-12)


def test_deltanet_without_decay_has_its_closed_form():
    beta, d = 0.5, 32
    closed = (1 - beta * (2 - beta) / d) ** np.arange(101)
    assert np.allclose(moments.of_delta(100, d, beta).distance(), closed, rtol=1e-12)


@pytest.mark.parametrize("lamb", [1e-3, 1.0])
def test_the_resolvent_of_large_gram_matrices(lamb):
    d, weights = 200, 0.99 ** np.arange(800)
    k = directions(RNG, 800, d)
    Q = np.linalg.inv((k * weights[:, None]).T @ k + lamb * np.eye(d))
    found = resolvent.of_weights(weights, d, lamb)
    assert np.trace(Q) / d == pytest.approx(found.m, rel=0.02)
    assert (Q * Q).sum() / d == pytest.approx(found.square, rel=0.05)
    assert found.distance == pytest.approx(lamb**2 * found.square)


def test_sensitivity_knows_its_ends():
    o = RNG.standard_normal((2, 4000, 8))
    value, error = sensitivity(o)
    assert value == pytest.approx(2**0.5, abs=4 * error)
    assert 0 < error < 0.02
    assert sensitivity(np.stack([o[0], o[0]]))[0] == 0
    spread = np.std([sensitivity(RNG.standard_normal((2, 100, 8)))[0] for _ in range(400)])
    assert sensitivity(o[:, :100])[1] == pytest.approx(spread, rel=0.3)


def test_backoff_by_hand():
    ids = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    assert counts.backoff(ids, 3).tolist() == [0, 0, 0, 1, 2, 0, 1, 2]
    assert counts.backoff(np.array([0, 1, 0, 2, 0, 2, 0]), 2).tolist() == [0, 0, 1, 0, 1, 0, 2]


def test_hits_look_ahead_and_back():
    ids = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    assert hits(ids, ids, 0) == 1
    assert hits(np.roll(ids, -1), ids, 1) == 1
    assert hits(np.roll(ids, 2), ids, -2) == 1
    assert hits(ids, ids, 1) == 0


def test_a_source_narrower_than_the_head_determines_its_values():
    assert source.raw(16) == 0 < source.raw(64) < source.raw(512) < 2**0.5
    assert source.raw(10**9) == pytest.approx(2**0.5)
    assert 0 < source.normalised(16) < source.normalised(64)


def test_the_tap_at_its_ends_is_what_is_counted():
    ids = np.array([0, 1, 2, 0, 2, 1, 0, 1])
    n, C = np.bincount(ids), counts.bigrams(ids, 3)
    assert np.allclose(tap.by_counts(ids, 3, 0), np.diag(n / (n + tap.LAMB)))
    assert np.allclose(tap.by_counts(ids, 3, 90), C / (C.sum(1) + tap.LAMB)[:, None])
