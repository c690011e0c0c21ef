"""The bound of the delta core's adjoint by itself, where its sweeps ran on another device and left u, w and the squares
of the states' columns: the functions of kernels/delta_grad.py in its order, so its bits."""

from __future__ import annotations

from ._jit import njit
from ._simd import load
from .delta import columns_in, gains, heads_in
from .delta_grad import WINDOW, reads_in, tiles_back
from .delta_grad_bound import eights, follow_back, follow_forth, slots_of


@njit
def forth(place, heads, q, k, e, a, v, b, errors, N, E, u, squares, slots, kept, scratch, rule, numbers):
    """What the bound keeps of the forward sweep, of one head and one block of columns.

    place    (batch, begin, low, high, column), heads, arrays, errors, rule and numbers as in kernels/delta_grad.py
    given    u [M, V]; squares [windows, tiles, L] before every window
    state    N and E [tiles, L], carried on
    written  slots [M, ALL_SLOTS]; kept [tiles, M + 1, 3, L]
    scratch  lines [4, padded K]; v, u, w [tiles, WINDOW, L]; b and its two gains [WINDOW, L]
    """
    batch, begin, first, last, column = place
    _, pre, _ = rule
    lines, vs, us, _, bs, operators, wrong_bs = scratch
    tiles, L = N.shape
    zero = numbers[2] - numbers[2]
    for start in range(first, last, WINDOW):
        W = min(WINDOW, last - start)
        since = start - begin
        now = slots[since : since + W]
        slots_of((batch, begin), heads, q, k, e, a, errors, lines, now, start, W, rule, numbers)
        heads_in(v, batch, start, heads[4], column, W, vs[:tiles], zero)
        tiles_back(u, since, column, W, us[:tiles], zero)
        for n in range(tiles):
            if n == 0 or b.shape[3] > 1:
                columns_in(b, batch, start, heads[4], column + n * L if b.shape[3] > 1 else 0, W, bs, zero)
                gains(bs, now, operators[:W], wrong_bs, numbers[5])
            square = load(squares[since // WINDOW, n], 0)
            at_kept = (n * kept.shape[1] + since) * 3 * L
            carried = (operators, wrong_bs, now, N[n], E[n], square, kept, at_kept)
            follow_forth(vs[n, :W], bs, us[n], *carried, pre, numbers)


@njit
def back(place, head, b, do, N, E, u, w, squares, slots, kept, sums, wrong, scratch, rule, gammas, numbers):
    """The bound of the backward sweep, and its sums over each eight columns, wrong [V / 8, SUMS, M]. `head` is the
    value head; squares of G at every window's first micro-step; sums [SUMS, WINDOW, L]: scratch; the rest as in
    `forth`."""
    batch, begin, first, last, column = place
    micro, pre, _ = rule
    _, hs, us, ws, bs, operators, wrong_bs = scratch
    tiles, L = N.shape
    zero = numbers[2] - numbers[2]
    for windows_after in range((last - first + WINDOW - 1) // WINDOW):
        start = first + ((last - first - 1) // WINDOW - windows_after) * WINDOW
        W = min(WINDOW, last - start)
        since = start - begin
        now = slots[since : since + W]
        reads_in(do, batch, start, begin, head, column, W, micro, hs[:tiles], zero)
        tiles_back(u, since, column, W, us[:tiles], zero)
        tiles_back(w, since, column, W, ws[:tiles], zero)
        for n in range(tiles):
            left = column + n * L
            if n == 0 or b.shape[3] > 1:
                columns_in(b, batch, start, head, left if b.shape[3] > 1 else 0, W, bs, zero)
                gains(bs, now, operators[:W], wrong_bs, numbers[5])
            square = load(squares[since // WINDOW, n], 0)
            at_kept = (n * kept.shape[1] + since) * 3 * L
            carried = (operators, wrong_bs, now, N[n], E[n], square, kept, at_kept, sums)
            follow_back(bs[:W], hs[n], us[n], ws[n], *carried, (pre, b.shape[3] > 1), gammas, numbers)
            eights(sums, W, wrong, left // 8, since)
