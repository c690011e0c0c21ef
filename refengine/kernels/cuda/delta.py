"""The delta core on a GPU: kernels/delta.py's recurrence and bound, in its order, so with its bits.

A block is one sequence, one value head and COLUMNS value columns. Four threads share a column: each keeps one segment
of ceil(K / 4) rows of the state in registers and sums it by a chain of fused multiply-adds; two shuffles add the
segments as (0 + 1) + (2 + 3). Keys, queries and values are staged through shared memory, some micro-steps at a time.
What the bound needs besides is written out (v - p, d, and now and then the columns' squares), and a second kernel
follows it, one thread a column, with the slots that the CPU's own code filled.

A kernel is made for one K, one float type and one rule, because registers have no index. Operands are flat:

    where   [N, HV, 10] int64: where the first micro-step of a sequence's row and a head begins in each array
    step    [10] int64: entries of each array from one token or micro-step to the next
    span    [N, 4] int64: first and last micro-step of a sequence in this launch, counted in the arrays; how many of it
            came before; a refresh finds its row of `squares` by its number in the sequence and this
    state   [N, HV, V, rows], rows = 4 ceil(K / 4), zeros behind K: a thread's segment lies in one piece
"""

from __future__ import annotations

from functools import cache
from typing import Any

from .. import delta as cpu
from ._jit import (
    ALIGNMENT,
    COLUMNS,
    EVERY_LANE,
    LANES,
    cuda,
    fma,
    jit,
    maximum,
    minimum,
    product,
    shfl_xor_sync,
    small,
    sqrt,
)

SHARED = 48 * 1024  # bytes of shared memory that a block may take without asking
REGISTERS = 64 * 1024  # of one multiprocessor, 32 bits each
MAX_K = 256
Q, KEY, E, A, VALUE, B, O, D, C, W = range(10)  # columns of `where` and `step`
BEGIN, END, BEFORE, REFRESHED = range(4)  # and of `span`
REFRESH = cpu.REFRESH
SLOTS = cpu.SLOTS


def segment(K: int) -> int:
    """Rows of one thread."""
    return -(-K // LANES)


def pitch(K: int, size: int) -> int:
    """Entries from one thread's segment of a staged vector to the next: whole 16-byte pieces, one piece apart so that
    the four threads read from different banks."""
    piece = 16 // size
    return -(-segment(K) // piece) * piece + piece


def beside(rows: int, size: int) -> int:
    """Blocks to ask one multiprocessor to hold: several hide the latency of one chain, and asking for so many caps the
    registers of each thread, of which it needs those of its `rows` and some for the rest."""
    return max(1, REGISTERS // (LANES * 32) // (rows * size // 4 + (64 if size == 4 else 104)))


@cache
def recur(K: int, kind: Any, micro: int, pre: bool, erase: int, wide: bool, wide_b: bool) -> Any:
    """The recurrence of K rows in `kind`; `wide`: each row has its own decay, `wide_b`: each column its own step.

    S~ = diag(a) S,  p = e . S~ (or e . S),  d = b (v - p),  S' = S~ + k d,  o = scale q . S'

    Grid (ceil(V / COLUMNS), HV, N), blocks of LANES * COLUMNS threads. q [B, T, Hq, K]; k, e [B, M, H, K]; a [B, M,
    Ha, K or 1]; v [B, M, HV, V]; b [B, M, HV, V or 1] in; state carried on; o [B, T, HV, V]; miss (v - p) and d [B, M,
    HV, V]; squares [refreshes, HV, V] out.
    """
    size = kind.bitwidth // 8
    m = segment(K)
    full = max(0, K - (LANES - 1) * m)  # rows that every thread has
    gap = pitch(K, size)
    threads = LANES * COLUMNS
    own = erase == cpu.ERASE
    none = erase == cpu.NO_ERASE
    # One staged micro-step: k, q, perhaps e, the decays; of the block's columns v (then v - p), b (then d), o, squares.
    # One array, because a linked kernel keeps the address of each in registers.
    ks, qs = 0, LANES * gap
    es = ks if not own else 2 * LANES * gap
    gs = (2 + own) * LANES * gap
    vs = gs + (LANES * gap if wide else 16 // size)
    bs, os, norms, line = vs + COLUMNS, vs + 2 * COLUMNS, vs + 3 * COLUMNS, vs + 4 * COLUMNS
    depth = min(16, SHARED // (line * size))
    zero = kind(0)

    @jit(threads, beside(m, size))
    def kernel(q, k, e, a, v, b, scale, columns, where, step, span, state, o, miss, d_all, squares):
        x = cuda.shared.array((depth, line), kind, alignment=ALIGNMENT)
        S = cuda.local.array(m, kind)
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
            S[i] = state[n, h, min(first + column, V - 1), lane * m + i]
        went = small(0)
        while went < span[n, END] - span[n, BEGIN]:
            # Read afresh each time: kept, the many offsets would take the registers that the state needs.
            start = span[n, BEGIN] + went
            count = small(min(depth, span[n, END] - start))
            at_q = where[n, h, Q] + start // micro * step[Q]
            at_k = where[n, h, KEY] + start * step[KEY]
            at_e = where[n, h, E] + start * step[E]
            at_a = where[n, h, A] + start * step[A]
            for c in range(thread, count * K, threads):
                t = c // K
                i = c - t * K
                s = i // m
                to = s * gap + i - s * m
                x[t, ks + to] = k[at_k + t * step[KEY] + i]
                x[t, qs + to] = q[at_q + t // micro * step[Q] + i]
                if own:
                    x[t, es + to] = e[at_e + t * step[E] + i]
                if wide:
                    x[t, gs + to] = a[at_a + t * step[A] + i]
            at_v = where[n, h, VALUE] + start * step[VALUE]
            at_b = where[n, h, B] + start * step[B]
            for c in range(thread, count * COLUMNS, threads):
                t = c // COLUMNS
                i = c - t * COLUMNS
                j = min(first + i, V - 1)
                x[t, vs + i] = v[at_v + t * step[VALUE] + j]
                x[t, bs + i] = b[at_b + t * step[B] + (j if wide_b else 0)]
            if not wide:
                for t in range(thread, count, threads):
                    x[t, gs] = a[at_a + t * step[A]]
            cuda.syncthreads()
            refresh = small(-(span[n, BEFORE] + went) % REFRESH)
            for t in range(count):
                p = zero
                for i in range(m):
                    if i < full or i < rows:
                        if not pre:
                            S[i] = (x[t, gs + mine + i] if wide else x[t, gs]) * S[i]
                        p = fma(zero if none else x[t, es + mine + i], S[i], p)
                for i in range(m if pre else 0):
                    if i < full or i < rows:
                        S[i] = (x[t, gs + mine + i] if wide else x[t, gs]) * S[i]
                p = p + shfl_xor_sync(EVERY_LANE, p, 1)
                p = p + shfl_xor_sync(EVERY_LANE, p, 2)
                if t == refresh:
                    r = zero
                    for i in range(m):
                        if i < full or i < rows:
                            r = fma(S[i], S[i], r)
                    r = r + shfl_xor_sync(EVERY_LANE, r, 1)
                    r = r + shfl_xor_sync(EVERY_LANE, r, 2)
                    if lane == 0:
                        x[t, norms + column] = r
                u = x[t, vs + column] - p
                d = x[t, bs + column] * u
                r = zero
                for i in range(m):
                    if i < full or i < rows:
                        S[i] = fma(x[t, ks + mine + i], d, S[i])
                        r = fma(x[t, qs + mine + i], S[i], r)
                r = r + shfl_xor_sync(EVERY_LANE, r, 1)
                r = r + shfl_xor_sync(EVERY_LANE, r, 2)
                if lane == 0:
                    x[t, vs + column] = u
                    x[t, bs + column] = d
                    x[t, os + column] = scale * r
            cuda.syncthreads()
            start = span[n, BEGIN] + went
            since = span[n, BEFORE] + went
            at_v = where[n, h, D] + start * step[D]
            at_o = where[n, h, O] + start // micro * step[O]
            for c in range(thread, count * COLUMNS, threads):
                t = c // COLUMNS
                i = c - t * COLUMNS
                j = first + i
                if j < V:
                    miss[at_v + t * step[D] + j] = x[t, vs + i]
                    d_all[at_v + t * step[D] + j] = x[t, bs + i]
                    if (since + t + 1) % micro == 0:
                        o[at_o + t // micro * step[O] + j] = x[t, os + i]
                    if t == refresh:
                        squares[span[n, REFRESHED] + (since + REFRESH - 1) // REFRESH, h, j] = x[t, norms + i]
            cuda.syncthreads()
            went = small(went + count)
        if first + column < V:
            for i in range(m):
                if i < full or i < rows:
                    state[n, h, first + column, lane * m + i] = S[i]

    return kernel


@cache
def follow(kind: Any, micro: int, pre: bool, wide_b: bool) -> Any:
    """The bound beside the recurrence (`cpu.follow`), one thread a column.

    Grid (ceil(V / COLUMNS), HV, N), blocks of COLUMNS threads. v, b as above; slots [B, HV, M, SLOTS]; numbers [7]:
    `cpu.constants`; norms, errors [N, HV, V] carried on; worst [B, T, HV, blocks] out, the largest o-bound of a block.
    """
    zero = kind(0)

    @jit(COLUMNS, 1)
    def kernel(v, b, slots, numbers, columns, where, step, span, miss, d_all, o, squares, norms, errors, worst):
        column = cuda.threadIdx.x
        h = cuda.blockIdx.y
        n = cuda.blockIdx.z
        V = columns
        j = cuda.blockIdx.x * COLUMNS + column
        live = j < V
        j = min(j, V - 1)
        at_c = where[n, h, C]
        at_v = where[n, h, VALUE] + j
        at_b = where[n, h, B] + (j if wide_b else 0)
        at_d = where[n, h, D] + j
        at_o = where[n, h, O] + j
        begin = span[n, BEGIN]
        before = span[n, BEFORE]
        refreshed = span[n, REFRESHED]
        scale = numbers[0]
        scale_error = numbers[1]
        u = numbers[2]
        tiny = numbers[3]
        norm_up = numbers[4]
        half = numbers[5]
        floor = numbers[6]
        size_s = abs(scale)
        read_error = scale_error + u + u
        norm = norms[n, h, j]
        error = errors[n, h, j]
        off = zero
        for t in range(begin, span[n, END]):
            c = at_c + t * step[C]
            since = before + t - begin
            bj = kind(b[at_b + t * step[B]])
            abs_b = abs(bj)
            abs_miss = abs(miss[at_d + t * step[D]])
            abs_d = abs(d_all[at_d + t * step[D]])
            decayed = fma(slots[c + cpu.SIZE_A], norm, tiny)
            if since % REFRESH == 0:
                decayed = minimum(decayed, fma(sqrt(squares[refreshed + since // REFRESH, h, j]), norm_up, floor))
            y = fma(bj, slots[c + cpu.MINUS_K_E], slots[c + cpu.TWO_A0])
            side = bj * slots[c + cpu.SIDE]
            gap = sqrt(fma(y, y, product(side, side)))
            operator = fma(gap, half, fma(abs_b, slots[c + cpu.PER_B], slots[c + cpu.REST]))
            wrong_b = fma(abs_b, slots[c + cpu.CAST_B], slots[c + cpu.DB])
            given = fma(decayed, slots[c + cpu.MU], fma(norm + error, tiny, tiny))
            if pre:
                seen = norm
                carried = fma(operator, error, given)
            else:
                seen = decayed
                carried = product(operator, fma(slots[c + cpu.SIZE_A], error, given))
            inner = fma(abs(kind(v[at_v + t * step[VALUE]])), slots[c + cpu.CAST_V], slots[c + cpu.DV]) + fma(
                seen, slots[c + cpu.PREDICT], fma(abs_miss, u, tiny)
            )
            rest = fma(abs_b + wrong_b, inner, fma(wrong_b, abs_miss, fma(abs_d, u, tiny)))
            norm = fma(abs_d, slots[c + cpu.K_NORM], decayed + tiny)
            error = carried + fma(rest, slots[c + cpu.K_NORM], fma(abs_d, slots[c + cpu.DK], fma(norm, u + u, tiny)))
            if (since + 1) % micro == 0:
                off = fma(norm, slots[c + cpu.READ], fma(error, slots[c + cpu.Q_NORM], tiny))
                off = fma(off, size_s, fma(abs(o[at_o + t // micro * step[O]]), read_error, tiny))
                mask = 1
                while mask < COLUMNS:
                    off = maximum(off, shfl_xor_sync(EVERY_LANE, off, mask))
                    mask *= 2
                if column == 0:
                    worst[where[n, h, W] + t // micro * step[W] + cuda.blockIdx.x] = off
        if live:
            norms[n, h, j] = norm
            errors[n, h, j] = error

    return kernel


__all__ = ["MAX_K", "REFRESH", "SLOTS", "follow", "recur", "segment"]
