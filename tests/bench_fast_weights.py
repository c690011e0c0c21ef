"""Fast weights against the time of their own matrix products through NumPy's BLAS, in one run and on one thread:
`OPENBLAS_NUM_THREADS=1 python tests/bench_fast_weights.py`. Rounds are interleaved; ratios, not times,
of processor time, which another process on the same core does not stretch.

The products counted are those of the mini-batch's dual form at the same sizes, each one call of `numpy.matmul` into a
ready array. Everything else is overhead: activations, LayerNorm, packing; and for `solve` its front end and the second
run behind the compared bound.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
from spanning import problem

import refengine
from refengine.engine import fast_weights as running
from refengine.engine.prepare import prepare
from refengine.engine.run import run_all

rng = np.random.default_rng(0)


def products(shapes, chunks):
    """A call that makes all of those products [M, D] x [D, N], `chunks` times."""
    ready = [(rng.standard_normal((M, D)), rng.standard_normal((D, N)), np.empty((M, N))) for M, D, N in shapes]

    def call():
        for _ in range(chunks):
            for a, b, out in ready:
                np.matmul(a, b, out=out)

    return call


def ttt_linear(T, C, K):
    x = {n: rng.standard_normal((1, T, 1, K)) / 8 for n in "qkv"}
    x |= {"w": np.ones((1, K)), "b": np.zeros((1, K)), "eta": rng.uniform(0, 0.1, (1, T, 1)), "chunk_size": C}
    shapes = [(C, K, K)] * 2 + [(C, K, C), (C, C, K), (K, C, K)]
    return x, products(shapes, T // C)


def ttt_mlp(T, C, K):
    R = 4 * K
    x, _ = ttt_linear(T, C, K)
    x["initial_state"] = {"w1": rng.standard_normal((1, K, R)) / 9, "w2": rng.standard_normal((1, R, K)) / 17}
    shapes = [(C, K, R), (C, R, K)] * 2 + [(C, K, R), (C, K, C), (C, C, R), (K, C, R), (C, R, C), (C, C, K), (R, C, K)]
    return x, products(shapes, T // C)


def lact(T, C, K, use_muon=True):
    x = {n: rng.standard_normal((1, T, 1, K)) / 8 for n in "qkv"}
    x |= {n: rng.standard_normal((1, K, K)) / K**0.5 for n in ("w0", "w1", "w2")}
    x |= {n: rng.uniform(0, 0.1, (1, T, 1)) for n in ("lr0", "lr1", "lr2")}
    x |= {"chunk_size": C, "use_muon": use_muon}
    steps = [(K, K, K)] * 3 * 5 * 3 if use_muon else []
    return x, products([(C, K, K)] * 6 + [(K, C, K)] * 3 + steps, T // C)


CASES = {
    "ttt_linear, C=16, K=64": ("ttt_linear", lambda T: ttt_linear(T, 16, 64), 8192),
    "ttt_linear, C=16, K=128": ("ttt_linear", lambda T: ttt_linear(T, 16, 128), 4096),
    "ttt_mlp, C=16, K=64, R=256": ("ttt_mlp", lambda T: ttt_mlp(T, 16, 64), 2048),
    "lact, C=512, K=R=128, no Muon": ("lact", lambda T: lact(T, 512, 128, False), 4096),
    "lact, C=512, K=R=128": ("lact", lambda T: lact(T, 512, 128), 4096),
    "lact, C=2048, K=R=256": ("lact", lambda T: lact(T, 2048, 256), 4096),
}


def timed(call):
    clock = time.process_time()
    call()
    return time.process_time() - clock


def kernel(name, x):
    p = problem(name, x)
    lowered, _ = prepare(p)
    return lambda: run_all(running.Job(p, lowered, 1), None)


def main(rounds=9):
    print(f"time over that of the same products through NumPy's BLAS; best of {rounds} rounds (median)")
    for title, (name, build, T) in CASES.items():
        x, blas = build(T)
        half = {n: y[:, : T // 2] if getattr(y, "ndim", 0) > 2 and y.shape[1] == T else y for n, y in x.items()}
        calls = {
            "blas": blas,
            "kernel": kernel(name, x),
            "half": kernel(name, half),
            "solve": lambda name=name, x=x: refengine.solve(name, **x, threads=1),
        }
        took = {what: [] for what in calls}
        for round_ in range(-1, rounds):
            for what, call in calls.items():
                seconds = timed(call)
                if round_ >= 0:
                    took[what].append(seconds)
        best = {what: min(t) for what, t in took.items()}
        middle = {what: statistics.median(t) for what, t in took.items()}
        said = ", ".join(
            f"{w} {best[w] / best['blas']:.2f} ({middle[w] / middle['blas']:.2f})" for w in ("kernel", "solve")
        )
        print(f"{title}: {said}; twice the tokens: {best['kernel'] / best['half']:.2f} times the time")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
