"""The sweeps of kernels/delta_grad.py on a GPU, in their order, so with their bits. The forward one is the recurrence
of kernels/cuda/delta.py, whose v - p is u; here are the backward one, the one over rows, and a state's squares.

A launch is one window of every sequence, and the states lie in the device's memory between two. Operands are flat, with
`where` [N, HV, *] and `step` [*] as in kernels/cuda/delta.py, here with columns of their own; `span` [N, 3] is the
window's first and last micro-step, counted in the arrays, and how many of its sequence came before.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ..delta import ERASE, NO_ERASE
from ..delta_grad import WINDOW
from ._jit import (
    ALIGNMENT,
    COLUMNS,
    EVERY_LANE,
    LANES,
    cuda,
    fence,
    fma,
    jit,
    natural,
    part,
    product,
    shfl_xor_sync,
    small,
)
from .delta import BEFORE, BEGIN, END, SHARED, beside, pitch, segment

Q, KEY, E, A, VALUE, B, H, OF_U = range(8)  # columns of `where` and `step`: the operands, do, and u and w
OF_QUERY, OF_ERASE, OF_KEY, OF_DECAY, OF_SIZE = range(5)  # what the sweep over rows finds of a value head's row
FOUND = 5
THREADS = LANES * COLUMNS


@cache
def squared(K: int, kind: Any) -> Any:
    """The sum of squares of every column of a state [N, HV, V, rows], as `column_squares` on the CPU, into [N, HV, V].

    Grid (ceil(V / COLUMNS), HV, N), blocks of COLUMNS threads.
    """
    m = segment(K)
    zero = kind(0)

    @jit(COLUMNS, 1)
    def kernel(columns, state, out):
        h = cuda.blockIdx.y
        n = cuda.blockIdx.z
        j = cuda.blockIdx.x * COLUMNS + cuda.threadIdx.x
        if j < columns:
            total = zero
            pair = zero
            for lane in range(LANES):
                s = zero
                for i in range(lane * m, min(lane * m + m, K)):
                    s = fma(state[n, h, j, i], state[n, h, j, i], s)
                if lane % 2 == 0:
                    pair = s
                else:
                    pair = pair + s
                    total = pair if lane == 1 else total + pair
            out[n, h, j] = total

    return kernel


@cache
def back(K: int, kind: Any, micro: int, pre: bool, erase: int, wide: bool, wide_b: bool) -> Any:
    """One window of the backward sweep: `homeward` of kernels/delta_grad.py.

    G += q h',  w = k . G,  n = -(b w),  G <- diag(a) (G + e n')  or  diag(a) G + e n'

    Grid and blocks as the recurrence's. state: G [N, HV, V, rows], carried on; w [N, HV, M, V] by OF_U; squares [N, HV,
    V] of G at the window's first micro-step, out.
    """
    size = kind.bitwidth // 8
    m = segment(K)
    full = max(0, K - (LANES - 1) * m)
    gap = pitch(K, size)
    own = erase == ERASE
    none = erase == NO_ERASE
    ks, qs = 0, LANES * gap
    es = ks if not own else 2 * LANES * gap
    gs = (2 + own) * LANES * gap
    bs = gs + (LANES * gap if wide else 16 // size)
    hs, line = bs + COLUMNS, bs + 2 * COLUMNS
    depth = min(16, SHARED // (line * size))
    zero = kind(0)

    @jit(THREADS, beside(m, size))
    def kernel(q, k, e, a, b, do, scale, columns, where, step, span, state, w, squares):
        x = cuda.shared.array((depth, line), kind, alignment=ALIGNMENT)
        G = cuda.local.array(m, kind)
        thread = cuda.threadIdx.x
        lane = small(thread & 3)
        column = small(thread >> 2)
        mine = small(lane * gap)
        rows = min(m, K - lane * m)
        first = small(cuda.blockIdx.x * COLUMNS)
        h = cuda.blockIdx.y
        n = cuda.blockIdx.z
        V = columns
        for i in range(m):
            G[i] = state[n, h, min(first + column, V - 1), lane * m + i]
        left = small(span[n, END] - span[n, BEGIN])
        while left > 0:
            count = small(min(depth, left))
            start = span[n, BEGIN] + left - count
            since = span[n, BEFORE] + left - count
            at_q = where[n, h, Q]
            at_k = where[n, h, KEY] + start * step[KEY]
            at_e = where[n, h, E] + start * step[E]
            at_a = where[n, h, A] + start * step[A]
            for c in range(thread, count * K, THREADS):
                t = c // K
                i = c - t * K
                s = i // m
                to = s * gap + i - s * m
                x[t, ks + to] = k[at_k + t * step[KEY] + i]
                x[t, qs + to] = zero
                if (since + t + 1) % micro == 0:
                    x[t, qs + to] = q[at_q + (start + t) // micro * step[Q] + i]
                if own:
                    x[t, es + to] = e[at_e + t * step[E] + i]
                if wide:
                    x[t, gs + to] = a[at_a + t * step[A] + i]
            at_b = where[n, h, B] + start * step[B]
            at_h = where[n, h, H]
            for c in range(thread, count * COLUMNS, THREADS):
                t = c // COLUMNS
                i = c - t * COLUMNS
                j = min(first + i, V - 1)
                x[t, bs + i] = b[at_b + t * step[B] + (j if wide_b else 0)]
                x[t, hs + i] = zero
                if (since + t + 1) % micro == 0:
                    x[t, hs + i] = do[at_h + (start + t) // micro * step[H] + j]
            if not wide:
                for t in range(thread, count, THREADS):
                    x[t, gs] = a[at_a + t * step[A]]
            cuda.syncthreads()
            t = count
            while t > 0:
                t = small(t - 1)
                r = scale * x[t, hs + column]
                s = zero
                for i in range(m):
                    if i < full or i < rows:
                        G[i] = fma(x[t, qs + mine + i], r, G[i])
                        s = fma(x[t, ks + mine + i], G[i], s)
                s = s + shfl_xor_sync(EVERY_LANE, s, 1)
                s = s + shfl_xor_sync(EVERY_LANE, s, 2)
                nudge = -(x[t, bs + column] * s)
                if lane == 0:
                    x[t, hs + column] = s
                if t == 0:
                    r = zero
                    for i in range(m):
                        if i < full or i < rows:
                            r = fma(G[i], G[i], r)
                    r = r + shfl_xor_sync(EVERY_LANE, r, 1)
                    r = r + shfl_xor_sync(EVERY_LANE, r, 2)
                    if lane == 0:
                        x[t, bs + column] = r
                for i in range(m):
                    if i < full or i < rows:
                        g = G[i]
                        if pre:
                            g = (x[t, gs + mine + i] if wide else x[t, gs]) * g
                        g = fma(zero if none else x[t, es + mine + i], nudge, g)
                        if not pre:
                            g = (x[t, gs + mine + i] if wide else x[t, gs]) * g
                        G[i] = g
            cuda.syncthreads()
            at_w = where[n, h, OF_U] + (span[n, BEGIN] + left - count) * step[OF_U]
            for c in range(thread, count * COLUMNS, THREADS):
                t = c // COLUMNS
                i = c - t * COLUMNS
                if first + i < V:
                    w[at_w + t * step[OF_U] + first + i] = x[t, hs + i]
                    if t == 0 and left == count:
                        squares[n, h, first + i] = x[t, bs + i]
            cuda.syncthreads()
            left = small(left - count)
        if first + column < V and span[n, END] > span[n, BEGIN]:
            for i in range(m):
                if i < full or i < rows:
                    state[n, h, first + column, lane * m + i] = fma(zero, zero, G[i])  # no -0, as on the CPU

    return kernel


def line_of(K: int, V: int, size: int) -> tuple[int, int]:
    """Entries of one packed micro-step: d, n and h of every column, then k, q, a and e of every row; and where the rows
    begin."""
    rows = 3 * LANES * pitch(V, size)
    return rows + 4 * padded(K), rows


def padded(K: int) -> int:
    """Rows of whole blocks."""
    return -(-K // COLUMNS) * COLUMNS


@cache
def pack(K: int, V: int, kind: Any, micro: int, erase: int, wide: bool, wide_b: bool) -> Any:
    """One window for the sweep over rows: d = b u, n = -(b w), h = s o' and the vectors, into lines [N, HV, WINDOW,
    line], flat. Grid (micro-steps, HV, N), blocks of THREADS threads."""
    m = segment(V)
    gap = pitch(V, kind.bitwidth // 8)
    line, ks = line_of(K, V, kind.bitwidth // 8)
    P = padded(K)
    zero = kind(0)

    @jit(THREADS, 1)
    def kernel(q, k, e, a, b, do, scale, where, step, span, u, w, lines):
        thread = cuda.threadIdx.x
        h = cuda.blockIdx.y
        n = cuda.blockIdx.z
        start = span[n, BEGIN] + cuda.blockIdx.x
        ends = (span[n, BEFORE] + cuda.blockIdx.x + 1) % micro == 0
        to = ((n * cuda.gridDim.y + h) * WINDOW + cuda.blockIdx.x) * line
        if start < span[n, END]:
            at_u = where[n, h, OF_U] + start * step[OF_U]
            at_b = where[n, h, B] + start * step[B]
            at_h = where[n, h, H] + start // micro * step[H]
            for c in range(thread, V, THREADS):
                i = c // m * gap + c % m
                by = kind(b[at_b + (c if wide_b else 0)])
                lines[to + i] = by * u[at_u + c]
                lines[to + LANES * gap + i] = -(by * w[at_u + c])
                lines[to + 2 * LANES * gap + i] = scale * do[at_h + c] if ends else zero
            at_k = where[n, h, KEY] + start * step[KEY]
            at_q = where[n, h, Q] + start // micro * step[Q]
            at_a = where[n, h, A] + start * step[A]
            at_e = where[n, h, E] + start * step[E]
            for i in range(thread, P, THREADS):
                lines[to + ks + i] = k[at_k + i] if i < K else zero
                lines[to + ks + P + i] = q[at_q + i] if ends and i < K else zero
                lines[to + ks + 2 * P + i] = a[at_a + (i if wide else 0)] if i < K else zero
                lines[to + ks + 3 * P + i] = e[at_e + i] if erase != NO_ERASE and i < K else zero

    return kernel


def stage(K: int, V: int, kind: Any) -> Any:
    """What brings `count` packed micro-steps, from flat `at` on, into shared memory: of the rows the block's."""
    line, rows = line_of(K, V, kind.bitwidth // 8)
    P = padded(K)

    @part
    def fill(x, lines, at, count):
        thread = cuda.threadIdx.x
        cuda.syncthreads()
        for c in range(thread, count * rows, THREADS):
            t = c // rows
            x[t, c - t * rows] = lines[natural(at + c + t * (line - rows))]
        at += rows + cuda.blockIdx.x * COLUMNS
        for c in range(thread, count * THREADS, THREADS):  # four vectors
            t = c // THREADS
            i = c - t * THREADS
            x[t, rows + i] = lines[natural(at + t * line + i // COLUMNS * P + i % COLUMNS)]
        cuda.syncthreads()

    return fill


def depth_of(V: int, size: int) -> tuple[int, int]:
    """Micro-steps staged at a time, and the entries of one."""
    entries = 3 * LANES * pitch(V, size) + LANES * COLUMNS
    return min(16, SHARED // (entries * size)), entries


@cache
def replay(K: int, V: int, kind: Any, pre: bool, erases: bool, decays: bool) -> Any:
    """One window of the sweep over rows, forth: `replay` of kernels/delta_grad.py.

    de = sum n X,  S <- diag(a) S + k d',  dq = S h

    A block is COLUMNS rows of one head, four threads a row: each keeps the row's ceil(V / 4) columns of one segment in
    registers; it lies in memory while others are staged. Grid (ceil(K / COLUMNS), HV, N). mark: S [N, HV, V, rows],
    flat, before the window, carried on; `past` [blocks, WINDOW, ceil(V / 4), THREADS], flat: S before every micro-step,
    where the decay is owed anything; found [N, HV, WINDOW, FOUND, padded K], flat: what every value head owes.
    """
    size = kind.bitwidth // 8
    m = segment(V)
    full = max(0, V - (LANES - 1) * m)
    gap = pitch(V, size)
    line, ks = line_of(K, V, size)
    gs = ks + 2 * COLUMNS
    P, R = padded(K), LANES * segment(K)
    depth, entries = depth_of(V, size)
    zero = kind(0)
    fill = stage(K, V, kind)

    @jit(THREADS, beside(m, size))
    def kernel(span, lines, mark, past, found):
        x = cuda.shared.array((depth, entries), kind, alignment=ALIGNMENT)
        S = cuda.local.array(m, kind)
        thread = cuda.threadIdx.x
        lane = small(thread & 3)
        row = small(thread >> 2)
        mine = small(lane * gap)
        columns = min(m, V - lane * m)
        n = cuda.blockIdx.z
        head = n * cuda.gridDim.y + cuda.blockIdx.y
        at_state = (head * V + lane * m) * R + min(cuda.blockIdx.x * COLUMNS + row, K - 1)
        live = cuda.blockIdx.x * COLUMNS + row < K
        home = (head * cuda.gridDim.x + cuda.blockIdx.x) * WINDOW * m * THREADS + thread
        went = small(0)
        while went < span[n, END] - span[n, BEGIN]:
            count = small(min(depth, span[n, END] - span[n, BEGIN] - went))
            fill(x, lines, (head * WINDOW + went) * line, count)
            for c in range(m):
                if c < full or c < columns:
                    S[c] = mark[natural(at_state + c * R)]
            for t in range(count):
                y = zero
                z = zero
                for c in range(m):
                    if c < full or c < columns:
                        if decays:
                            past[natural(home + c * THREADS)] = S[c]
                        if erases and pre:
                            z = fma(x[t, LANES * gap + mine + c], S[c], z)
                        S[c] = x[t, gs + row] * S[c]
                        if erases and not pre:
                            z = fma(x[t, LANES * gap + mine + c], S[c], z)
                        S[c] = fma(x[t, ks + row], x[t, mine + c], S[c])
                        y = fma(x[t, 2 * LANES * gap + mine + c], S[c], y)
                home += m * THREADS
                y = y + shfl_xor_sync(EVERY_LANE, y, 1)
                y = y + shfl_xor_sync(EVERY_LANE, y, 2)
                z = z + shfl_xor_sync(EVERY_LANE, z, 1)
                z = z + shfl_xor_sync(EVERY_LANE, z, 2)
                if lane == 0:
                    to = ((head * WINDOW + went + t) * FOUND + OF_QUERY) * P + cuda.blockIdx.x * COLUMNS + row
                    found[natural(to)] = y
                    found[natural(to + (OF_ERASE - OF_QUERY) * P)] = z
            for c in range(m):
                if live and (c < full or c < columns):
                    mark[natural(at_state + c * R)] = S[c]
            went = small(went + count)

    return kernel


@cache
def rewind(K: int, V: int, kind: Any, pre: bool, erases_by_key: bool, decays: bool) -> Any:
    """The same window, back: `rewind` of kernels/delta_grad.py.

    G <- G + q h',  dk = G d,  da = sum G~ * S,  G <- diag(a) G~,  G~ = G + e n'   (or without e n', which comes last)

    As `replay`; state: G [N, HV, V, rows], flat, carried on.
    """
    size = kind.bitwidth // 8
    m = segment(V)
    full = max(0, V - (LANES - 1) * m)
    gap = pitch(V, size)
    line, ks = line_of(K, V, size)
    qs, gs, es = ks + COLUMNS, ks + 2 * COLUMNS, ks if erases_by_key else ks + 3 * COLUMNS
    P, R = padded(K), LANES * segment(K)
    depth, entries = depth_of(V, size)
    zero = kind(0)
    fill = stage(K, V, kind)

    @jit(THREADS, beside(m, size))
    def kernel(span, lines, state, past, found):
        x = cuda.shared.array((depth, entries), kind, alignment=ALIGNMENT)
        G = cuda.local.array(m, kind)
        thread = cuda.threadIdx.x
        lane = small(thread & 3)
        row = small(thread >> 2)
        mine = small(lane * gap)
        columns = min(m, V - lane * m)
        n = cuda.blockIdx.z
        head = n * cuda.gridDim.y + cuda.blockIdx.y
        at_state = (head * V + lane * m) * R + min(cuda.blockIdx.x * COLUMNS + row, K - 1)
        live = cuda.blockIdx.x * COLUMNS + row < K
        left = small(span[n, END] - span[n, BEGIN])
        home = ((head * cuda.gridDim.x + cuda.blockIdx.x) * WINDOW + left) * m * THREADS + thread
        while left > 0:
            count = small(min(depth, left))
            left = small(left - count)
            fill(x, lines, (head * WINDOW + left) * line, count)
            for c in range(m):
                if c < full or c < columns:
                    G[c] = state[natural(at_state + c * R)]
            t = count
            while t > 0:
                t = small(t - 1)
                home -= m * THREADS
                y = zero
                z = zero
                size_z = zero
                for c in range(m):
                    if c < full or c < columns:
                        G[c] = fma(x[t, qs + row], x[t, 2 * LANES * gap + mine + c], G[c])
                        y = fma(x[t, mine + c], G[c], y)
                        if not pre:
                            G[c] = fma(x[t, es + row], x[t, LANES * gap + mine + c], G[c])
                y = y + shfl_xor_sync(EVERY_LANE, y, 1)
                y = y + shfl_xor_sync(EVERY_LANE, y, 2)
                for c in range(m):
                    if c % (2 * size) == 0 and decays:
                        fence()  # all loads at once would take more registers than there are
                    if c < full or c < columns:
                        if decays:
                            term = product(G[c], past[natural(home + c * THREADS)])
                            z = z + term
                            size_z = size_z + abs(term)
                        G[c] = x[t, gs + row] * G[c]
                        if pre:
                            G[c] = fma(x[t, es + row], x[t, LANES * gap + mine + c], G[c])
                z = z + shfl_xor_sync(EVERY_LANE, z, 1)
                z = z + shfl_xor_sync(EVERY_LANE, z, 2)
                size_z = size_z + shfl_xor_sync(EVERY_LANE, size_z, 1)
                size_z = size_z + shfl_xor_sync(EVERY_LANE, size_z, 2)
                if lane == 0:
                    to = ((head * WINDOW + left + t) * FOUND + OF_KEY) * P + cuda.blockIdx.x * COLUMNS + row
                    found[natural(to)] = y
                    found[natural(to + (OF_DECAY - OF_KEY) * P)] = z
                    found[natural(to + (OF_SIZE - OF_KEY) * P)] = size_z
            for c in range(m):
                if live and (c < full or c < columns):
                    state[natural(at_state + c * R)] = G[c]

    return kernel


@cache
def gather(K: int, kind: Any, micro: int, fours: bool, before: int, slot: int) -> Any:
    """What the value heads of a window owe together to the heads of one operand, in their order: y [rows, tokens,
    heads, K], or of each four rows a number. `before`: what of each value head comes first, or `slot` if nothing does.

    Grid (micro-steps, heads of y, N), blocks of THREADS threads; row [N]: which row of y a sequence is in; `micro` 1
    but where y has tokens and not micro-steps.
    """
    P = padded(K)
    width = 4 if fours else 1

    @jit(THREADS, 1)
    def kernel(found, ratio, span, row, tokens, y):
        n = cuda.blockIdx.z
        t = cuda.blockIdx.x
        if span[n, BEGIN] + t < span[n, END] and (span[n, BEFORE] + t + 1) % micro == 0:
            here = ((n * cuda.gridDim.y * ratio + cuda.blockIdx.y * ratio) * WINDOW + t) * FOUND * P
            to = (row[n] * tokens + (span[n, BEGIN] + t) // micro) * cuda.gridDim.y + cuda.blockIdx.y
            entries = -(-K // width)
            for i in range(cuda.threadIdx.x, entries, THREADS):
                total = kind(0)
                for member in range(ratio):
                    at = here + member * WINDOW * FOUND * P + i * width
                    if before != slot:
                        s = found[at + before * P]
                        total = s if member == 0 else total + s
                    s = found[at + slot * P]
                    for r in range(1, min(width, K - i * width)):
                        s = s + found[at + slot * P + r]
                    total = s if member == 0 and before == slot else total + s
                y[to * entries + i] = total

    return kernel


__all__ = ["back", "gather", "pack", "replay", "rewind", "squared"]
