"""GDN backward against its forward and against torch, in one run: `python tests/bench_grad.py`. Rounds are
interleaved; ratios, not times.

The forward is `refengine.solve` with its bound, the backward `refengine.grad`, which computes what it needs of the
forward again. Memory is what tracemalloc sees of a call's peak, without its arguments and its answer. Where
transformers is installed, also the backward of its chunk reference by torch's autograd (float32, that is its only
one), the forward it needs not counted.
"""

from __future__ import annotations

import inspect
import statistics
import sys
import time
import tracemalloc
from collections import defaultdict

import numpy as np
from bench_delta import problem

import refengine


def seconds(call, *args, **named):
    """CPU seconds on all threads."""
    clock = time.process_time()
    call(*args, **named)
    return time.process_time() - clock


def peak(call, *args, **named):
    """Bytes at the peak of a call that are neither there before it nor part of its answer."""
    tracemalloc.start()
    answer = call(*args, **named)
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return top - sum(x.nbytes for x in answer.values())


def autograd(x, do, threads):
    """Seconds of torch's backward through transformers' chunk form, or None where that is not installed."""
    try:
        import torch
        from transformers.models.qwen3_next import modeling_qwen3_next as theirs
    except ImportError:
        return None
    chunk = inspect.unwrap(theirs.torch_chunk_gated_delta_rule)  # not the GPU kernel it may stand for
    torch.set_num_threads(threads)
    tensors = {n: torch.from_numpy(y).requires_grad_() for n, y in x.items()}
    q, k, v, g, beta = (tensors[n] for n in ("q", "k", "v", "g", "beta"))
    o, _ = chunk(q, k, v, g=g, beta=beta)
    return seconds(o.backward, torch.from_numpy(do))


def ratio(took, above, below):
    """Best against best, and median against median."""
    best, median = (f(took[above]) / f(took[below]) for f in (min, statistics.median))
    return f"{best:.2f} ({median:.2f})"


def main(rounds=7, T=2048, K=128, V=128, heads=2):
    print(f"GDN backward, T={T}, K=V={K}, {heads} heads; best of {rounds} rounds (median)")
    for dtype in (np.float64, np.float32):
        x = problem(heads, T, K, V, dtype)
        do = np.random.default_rng(1).standard_normal(x["v"].shape).astype(dtype)
        asked = ("gated_delta_rule",), dict(x, precision=np.dtype(dtype).name)
        for threads in (1, 2):
            took = defaultdict(list)
            for round_ in range(-1, rounds):
                forward = seconds(refengine.solve, *asked[0], **asked[1], threads=threads)
                backward = seconds(refengine.grad, *asked[0], **asked[1], do=do, threads=threads)
                other = autograd(x, do, threads) if dtype is np.float32 else None
                if round_ >= 0:
                    took["forward"].append(forward)
                    took["backward"].append(backward)
                    took["torch"] += [other] if other is not None else []
            said = f"{np.dtype(dtype).name} threads={threads} backward / forward {ratio(took, 'backward', 'forward')}"
            print(said + (f", torch / backward {ratio(took, 'torch', 'backward')}" if took["torch"] else ""))
            sys.stdout.flush()
        room = peak(refengine.grad, *asked[0], **asked[1], do=do, threads=1)
        share = room / (T * (K + V) * heads * np.dtype(dtype).itemsize)
        print(f"{np.dtype(dtype).name} peak memory of a call: {share:.2f} T (K + V) numbers a head")


if __name__ == "__main__":
    main()
