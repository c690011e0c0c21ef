"""How long the first answer takes: `python tests/bench_start.py`. Whole processes of the command line, by the clock on
the wall, best of three: its help, a problem whose kernels are compiled, and the same with an empty cache of kernels; so
also the first gradients and the first verdict, once. Beside them the processor's time, which other processes stretch
less.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_delta import problem

HERE = Path(sys.executable).parent / "refengine"
SAMPLE = ("solve", "--sample")


def spent():
    """Processor seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def took(folder, *arguments, cache=None):
    """(seconds on the wall, seconds of the processor) of one command, by default with an empty cache."""
    with tempfile.TemporaryDirectory() as empty:
        cpu, clock = spent(), time.perf_counter()
        env = os.environ | {"NUMBA_CACHE_DIR": cache or empty}
        run = subprocess.run([HERE, *arguments], env=env, cwd=folder, capture_output=True)
        wall = time.perf_counter() - clock
    assert run.returncode == 0, run.stderr.decode()
    return wall, spent() - cpu


def said(name, *times):
    wall, cpu = min(times)
    print(f"{name:32} {wall:6.2f} s ({cpu:.2f} s of the processor)", flush=True)


def main(rounds=3):
    with tempfile.TemporaryDirectory() as folder:
        x = problem(2, 128, 64, 64, np.float64)
        np.savez(f"{folder}/x.npz", **x, do=x["v"])
        asked = ("x.npz", "--op", "gated_delta_rule")
        took(folder, "solve", *asked, "-o", "o.safetensors", cache=folder)
        took(folder, *SAMPLE, cache=folder)
        said("refengine --help", *(took(folder, "--help", cache=folder) for _ in range(rounds)))
        said("solve --sample, compiled", *(took(folder, *SAMPLE, cache=folder) for _ in range(rounds)))
        said("solve --sample, first", *(took(folder, *SAMPLE) for _ in range(rounds)))
        said("solve --grad, first", took(folder, "solve", *asked, "--grad", "-o", "d.safetensors"))
        said("verify, first", took(folder, "verify", *asked, "o.safetensors", "--grade", "f64", "--no-grad"))


if __name__ == "__main__":
    main()
