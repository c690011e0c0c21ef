"""GDN backward against its forward and against torch, in one run: `python tests/bench_grad.py`. Rounds are
interleaved; ratios, not times.

The forward is `refengine.solve` with its bound, the backward `refengine.grad` with its own, which computes what it
needs of the forward again; beside it, the backward without that sweep. Counted in multiplications and fused
multiply-adds an element of the state, the forward is 4, its sweep in the backward 3 and the rest 13.

Memory is what tracemalloc sees of a call's peak, without its arguments and its answer. Where transformers is
installed, also its chunk reference by torch's autograd: the backward alone, and with the forward it needs, in float32
(that is its only one, which is also set against our float64).
"""

from __future__ import annotations

import inspect
import statistics
import sys
import time
import tracemalloc
from collections import defaultdict
from unittest.mock import patch

import numpy as np
from bench_delta import problem

import refengine
from refengine.kernels import delta_grad


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
    """Seconds of torch's backward through transformers' chunk form, and with its forward; nothing where that is not
    installed."""
    try:
        import torch
        from transformers.models.qwen3_next import modeling_qwen3_next as theirs
    except ImportError:
        return ()
    chunk = inspect.unwrap(theirs.torch_chunk_gated_delta_rule)  # not the GPU kernel it may stand for
    torch.set_num_threads(threads)
    tensors = {n: torch.from_numpy(y.astype(np.float32)).requires_grad_() for n, y in x.items()}
    q, k, v, g, beta = (tensors[n] for n in ("q", "k", "v", "g", "beta"))
    clock = time.process_time()
    o, _ = chunk(q, k, v, g=g, beta=beta)
    forward = time.process_time() - clock
    backward = seconds(o.backward, torch.from_numpy(do.astype(np.float32)))
    return backward, forward + backward


class Sweep:
    """Seconds in the backward's own forward sweep, whatever the threads."""

    def __init__(self):
        self.kernel, self.seconds = delta_grad.forth, []

    def __call__(self, *arguments):
        clock = time.thread_time()
        self.kernel(*arguments)
        self.seconds.append(time.thread_time() - clock)


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
                with patch.object(delta_grad, "forth", Sweep()) as sweep:
                    backward = seconds(refengine.grad, *asked[0], **asked[1], do=do, threads=threads)
                other = autograd(x, do, threads)
                if round_ >= 0:
                    took["forward"].append(forward)
                    took["backward"].append(backward)
                    took["without its forward sweep"].append(backward - sum(sweep.seconds))
                    for name, spent in zip(("torch", "torch with its forward"), other, strict=False):
                        took[name].append(spent)
            said = [f"{n} / forward {ratio(took, n, 'forward')}" for n in ("backward", "without its forward sweep")]
            said += [f"{n} / backward {ratio(took, n, 'backward')}" for n in took if n.startswith("torch")]
            print(f"{np.dtype(dtype).name} threads={threads} {', '.join(said)}")
            sys.stdout.flush()
        room = peak(refengine.grad, *asked[0], **asked[1], do=do, threads=1)
        share = room / (T * (K + V) * heads * np.dtype(dtype).itemsize)
        print(f"{np.dtype(dtype).name} peak memory of a call: {share:.2f} T (K + V) numbers a head")


if __name__ == "__main__":
    main()
