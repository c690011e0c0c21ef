"""Rounding to a narrower format, in the arithmetic of a wider one: the one place where precision is lost on purpose.

With P the power of two at or below |x| (never below the format's smallest normal number), one unit in the last place
is P 2^(1 - p). To nearest, ties to even: (x + M) - M with M = 1.5 P 2^(w - p), w the bits of the arithmetic, whose last
place is that unit. With noise: x + (unit) r, r uniform in (-1/2, 1/2), wherever x is not a number of the format: the
variance of rounding to nearest without its luck. Zero comes out as +0.
"""

from __future__ import annotations

from ._jit import inline, njit, part
from ._simd import BYTES, between, beyond, load, magnitude, store, where_unequal

PIECE = 1 << 14  # noise drawn at a time
POOL = 1 << 16  # numbers in a pool of noise


@inline
def rounded(x, r, form, noisy):
    """x (a number, or lanes of them) in the format `form` = (M / P, unit / P, least P, largest P, largest number, what
    is beyond it)."""
    shift, unit, least, most, top, infinite = form
    p = between(magnitude(x), least, most)
    m = p * shift
    y = (x + m) - m
    if noisy:
        y = where_unequal(x, y, x + p * unit * r)
    return beyond(y, top, infinite)


@inline
def drawn(cursor, count):
    """Where in the pool `count` numbers start; a new lap starts elsewhere than the one before."""
    return cursor if cursor + count <= POOL else (cursor + count) % 127


@part
def settle(x, a, y, b, count, form, noise, noisy, cursor):
    """Round `count` numbers from flat x[a:] into flat y[b:]; returns the cursor behind the noise that was used."""
    lanes = BYTES // x.itemsize
    for first in range(0, count, PIECE):
        n = min(PIECE, count - first)
        start = drawn(cursor, n)
        whole = n // lanes * lanes
        for i in range(0, whole, lanes):
            store(y, b + first + i, rounded(load(x, a + first + i), load(noise, start + i), form, noisy))
        for i in range(whole, n):
            y[b + first + i] = rounded(x[a + first + i], noise[start + i], form, noisy)
        cursor = start + n
    return cursor


@njit
def settle_all(x, y, form, noise, noisy, cursor):
    """Round all of flat x into flat y."""
    return settle(x, 0, y, 0, x.size, form, noise, noisy, cursor)
