"""GDN forward in double-double against float64, in one run: `python tests/bench_certified.py`. Rounds are interleaved;
the ratio of whole calls of `refengine.solve`, front end and bound included, in time of the processor."""

from __future__ import annotations

import statistics
import time

import numpy as np

import refengine


def problem(heads, T, K, V):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, T, heads, n)) for n in (K, K, V))
    k /= np.sqrt((k**2).sum(-1, keepdims=True))
    g, beta = -rng.uniform(0, 0.1, (1, T, heads)), rng.uniform(0, 1, (1, T, heads))
    return dict(q=q, k=k, v=v, g=g, beta=beta)


def main(rounds=9, T=1024):
    print(f"gated_delta_rule, T={T}, 1 thread, best of {rounds} rounds (median)")
    for D in (64, 128):
        x = problem(2, T, D, D)
        took: dict[str, list[float]] = {"float64": [], "certified": []}
        for round_ in range(-1, rounds):
            for precision in took:
                clock = time.process_time()
                refengine.solve("gated_delta_rule", **x, precision=precision, threads=1)
                if round_ >= 0:
                    took[precision].append((time.process_time() - clock) / (2 * T) * 1e6)
        (plain, plain_middle), (double, double_middle) = ((min(t), statistics.median(t)) for t in took.values())
        print(
            f"K = V = {D:<3}: float64 {plain:.2f}, certified {double:.2f} us a token and head; "
            f"{double / plain:.1f} times ({double_middle / plain_middle:.1f})"
        )


if __name__ == "__main__":
    main()
