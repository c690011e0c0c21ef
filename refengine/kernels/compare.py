"""How far rows are from the truth: sums in float64, in order, so that any language gets the same."""

from __future__ import annotations

from ._jit import njit

# Of every row, d = x - y, or x - y - low:
SQUARES, LARGEST, WITH_TRUTH, TRUTH_SQUARES, WITH_SIGN, TRUTH_SIZE = range(6)
MOMENTS = 6


@njit
def rows(x, y, low, out):
    """sum d^2, max |d|, sum d y, sum y^2, sum d sgn(y), sum |y| of each row of x and y [R, V]. `low` is
    what the truth has beyond y, or empty."""
    lower = low.size > 0
    for r in range(x.shape[0]):
        squares = largest = with_truth = truth_squares = with_sign = truth_size = 0.0
        for i in range(x.shape[1]):
            true = y[r, i]
            d = x[r, i] - true
            if lower:
                d -= low[r, i]
            squares += d * d
            largest = max(largest, abs(d))
            with_truth += d * true
            truth_squares += true * true
            truth_size += abs(true)
            with_sign += d if true > 0 else (-d if true < 0 else 0.0)  # a choice, not a jump: signs are not foreseen
        out[r, 0] = squares
        out[r, 1] = largest
        out[r, 2] = with_truth
        out[r, 3] = truth_squares
        out[r, 4] = with_sign
        out[r, 5] = truth_size
