"""GDN forward against this machine's own FMA peak, in one run: `python tests/bench_delta.py`. Rounds are interleaved;
ratios, not times.

The work counted is 6 K V flops a token and head (k.S, q.S and the update as three fused multiply-adds an element),
the floor of the recurrence; the decay, the bound, the packing and every copy in `refengine.solve` are overhead and
are in the time.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

import refengine
from refengine.cli.bench import ceiling as peak
from refengine.engine.plan import available_cores


def problem(heads, T, K, V, dtype):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, T, heads, n)) for n in (K, K, V))
    k /= np.sqrt((k**2).sum(-1, keepdims=True))
    g, beta = -rng.uniform(0, 0.1, (1, T, heads)), rng.uniform(0, 1, (1, T, heads))
    return {n: x.astype(dtype) for n, x in dict(q=q, k=k, v=v, g=g, beta=beta).items()}


def main(rounds=9, T=4096, K=128, V=128):
    cores = available_cores()
    print(f"GDN forward, T={T}, K=V={K}; share of as many cores' FMA peak, best of {rounds} rounds (median)")
    for dtype in (np.float64, np.float32):
        for heads in (1, 4, 16):
            x = problem(heads, T if heads < 16 else T // 4, K, V, dtype)
            tokens = x["q"].shape[1]
            rate: dict[int, list[float]] = {1: [], cores: []}
            top: dict[int, list[float]] = {1: [], cores: []}
            for round_ in range(-1, rounds):
                for threads in rate:
                    ceiling = peak(dtype, threads)
                    clock = time.perf_counter()
                    refengine.solve("gated_delta_rule", **x, threads=threads, precision=np.dtype(dtype).name)
                    took = time.perf_counter() - clock
                    if round_ >= 0:
                        rate[threads].append(6 * K * V * tokens * heads / took)
                        top[threads].append(ceiling)
            shares = {
                n: (max(rate[n]) / max(top[n]), statistics.median(rate[n]) / statistics.median(top[n])) for n in rate
            }
            said = "; ".join(
                f"{n} core{'s' * (n > 1)} {best:.2f} ({median:.2f})" for n, (best, median) in shares.items()
            )
            pair, alone = max(rate[cores]) / max(rate[1]), max(top[cores]) / max(top[1])
            print(
                f"{np.dtype(dtype).name} heads={heads:<2} {said}; {cores} against 1: {pair:.2f} (the peak: {alone:.2f})"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
