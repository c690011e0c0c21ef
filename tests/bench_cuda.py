"""Everything that needs a GPU, in one run: `python tests/bench_cuda.py`.

The card, its copy bandwidth and its rate of fused multiply-adds; the time of the recurrence and of its bound on the
device, alone and within `refengine.solve`, against those ceilings and, where they are installed, against the kernels
of flash-linear-attention on the same card; the gradients' sweeps, the exact learner's systems and the short convolution
likewise; then the tests marked `gpu`, and compute-sanitizer where there is one. Times
are medians. `--tiny` goes the same way with next to no work, as in the simulator.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import numpy as np
from bench_delta import problem

import refengine
from refengine.engine import conv_cuda, delta_cuda, delta_grad_cuda, mesa_cuda
from refengine.kernels.cuda import _device
from refengine.kernels.cuda._jit import SIMULATED, cuda, fma, jit, kind_of

HERE = Path(__file__).parent
TINY = dict(heads=2, T=4, K=4, V=4)
SHAPES = [dict(heads=64, T=8192, K=128, V=128), dict(heads=16, T=8192, K=64, V=64)]


def seconds(work, rounds):
    """Median time of `work` on the device, after one call to compile it."""
    work()
    times = []
    for _ in range(rounds):
        start, end = cuda.event(), cuda.event()
        clock = time.perf_counter()
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(time.perf_counter() - clock if SIMULATED else start.elapsed_time(end) / 1000)
    return statistics.median(times)


def copy_bandwidth(size, rounds):
    """Bytes read and written a second by a copy on the device."""
    x, y = (cuda.device_array(size, np.uint8) for _ in range(2))
    return 2 * size / seconds(lambda: y.copy_to_device(x), rounds)


def fused(kind):
    """A chain of fused multiply-adds in every thread: with every multiprocessor full of them, some are always ready."""
    start = kind(0.5)

    @jit(256, 8)
    def kernel(n, y):
        a = start
        for _ in range(n):
            a = fma(a, start, start)
        y[cuda.grid(1)] = a

    return kernel


def peak(dtype, tiny, rounds):
    """Flops a second of fused multiply-adds."""
    blocks, threads, n = (1, 2, 2) if tiny else (8192, 256, 16384)
    kernel, y = fused(kind_of(np.dtype(dtype))), cuda.device_array(blocks * threads, dtype)
    return blocks * threads * n * 2 / seconds(lambda: kernel[blocks, threads](n, y), rounds)


class Watch:
    """Launches of a kernel, and how long the device took for each."""

    def __init__(self):
        self.events = []

    def ready(self, kernel, grid, threads, stream):
        launch = kernel[grid, threads, stream]

        def call(*args):
            start, end = cuda.event(), cuda.event()
            start.record(stream)
            launch(*args)
            end.record(stream)
            self.events.append((threads, start, end))

        return call

    def total(self, threads=None):
        """Seconds of all launches, or of those with so many threads a block."""
        cuda.synchronize()
        chosen = [(a, b) for n, a, b in self.events if threads in (None, n)]
        each = [(0.0 if SIMULATED else a.elapsed_time(b)) / 1000 for a, b in chosen]
        return sum(each) or float("nan")


def watched(home, work, rounds, *threads):
    """Median seconds of the launches with so many threads a block (None: of all), and of the whole call; the first call
    compiles. `home` is the module that launches."""
    times = []
    for _ in range(rounds + 1):
        watch = Watch()
        clock = time.perf_counter()
        with patch.object(home, "ready", watch.ready):
            work()
        whole = time.perf_counter() - clock
        times.append((*(watch.total(n) for n in threads), whole))
    return [statistics.median(x) for x in zip(*times[1:], strict=True)]


def solved(given, rounds):
    """(recurrence, bound, whole call) in seconds."""
    recurrence, bound = delta_cuda.LANES * delta_cuda.COLUMNS, delta_cuda.COLUMNS

    def work():
        refengine.solve("gated_delta_rule", **given, device="cuda")

    return watched(delta_cuda, work, rounds, recurrence, bound)


def gradients(given, rounds):
    """(sweeps, whole call) in seconds."""
    do = np.random.default_rng(1).standard_normal(given["v"].shape).astype(given["v"].dtype)

    def work():
        refengine.grad("gated_delta_rule", **given, do=do, device="cuda")

    return watched(delta_grad_cuda, work, rounds, None)


def convolved(given, rounds):
    """(short convolution of the keys, whole call) in seconds."""
    weight = np.random.default_rng(2).standard_normal((given["k"][0, 0].size, 4))

    def work():
        refengine.solve("gated_delta_rule", **given, conv_k=refengine.Conv(weight), device="cuda")

    return watched(conv_cuda, work, rounds, None)


def systems(given, rounds):
    """(systems of MesaNet, whole call) in seconds."""
    heads, K = given["q"].shape[2:]

    def work():
        refengine.solve("mesa_net", **given, lamb=np.full((heads, K), 0.25), device="cuda")

    return watched(mesa_cuda, work, rounds, None)


def theirs(given, rounds):
    """Seconds of flash-linear-attention's kernels on the same inputs in float32, by name."""
    import torch
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    x = {n: torch.from_numpy(y).float().cuda() for n, y in given.items() if isinstance(y, np.ndarray)}
    found = {}
    for name, kernel in (("fused_recurrent", fused_recurrent_gated_delta_rule), ("chunk", chunk_gated_delta_rule)):
        half = {n: y.bfloat16() for n, y in x.items()} if name == "chunk" else x  # chunk takes no float32
        times = []
        for _ in range(rounds + 1):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            kernel(**half)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        found[name] = statistics.median(times[1:])
    return found


def main(tiny):
    rounds = 1 if tiny else 7
    print(f"{_device.name()}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}")
    for package in ("numba-cuda", "nvidia-nvvm", "nvidia-nvjitlink"):
        print(f"  {package} {importlib.metadata.version(package)}")
    bandwidth = copy_bandwidth(64 if tiny else 1 << 30, rounds)
    peaks = {dtype: peak(dtype, tiny, rounds) for dtype in (np.float64, np.float32)}
    print(f"copy {bandwidth / 1e9:.0f} GB/s; fused multiply-adds ", end="")
    print(", ".join(f"{np.dtype(d)} {rate / 1e12:.2f} TFLOP/s" for d, rate in peaks.items()))
    for shape in [TINY] if tiny else SHAPES:
        print("GDN forward, " + ", ".join(f"{n}={x}" for n, x in shape.items()))
        mine = {}
        for dtype, rate in peaks.items():
            given = problem(shape["heads"], shape["T"], shape["K"], shape["V"], dtype)
            recurrence, bound, whole = solved(given | {"precision": np.dtype(dtype).name}, rounds)
            mine[np.dtype(dtype).name] = recurrence
            flops = 6 * shape["heads"] * shape["T"] * shape["K"] * shape["V"]
            share = flops / recurrence / rate
            print(f"  {np.dtype(dtype)}: recurrence {1e3 * recurrence:.2f} ms ({share:.0%} of the peak), ", end="")
            print(f"bound {1e3 * bound:.2f} ms, solve {1e3 * whole:.0f} ms")
            short = {n: x[:, : TINY["T"] if tiny else 1024] for n, x in given.items()}
            precise = {"precision": np.dtype(dtype).name}
            sweeps, whole = gradients(given | precise, rounds)
            print(f"    gradients: sweeps {1e3 * sweeps:.2f} ms ({sweeps / recurrence:.1f} recurrences), ", end="")
            print(f"grad {1e3 * whole:.0f} ms")
            conv, _ = convolved(given | precise, rounds)
            print(f"    short convolution of the keys: {1e3 * conv:.2f} ms")
            factors, whole = systems(short | precise, rounds)
            tokens = short["q"].shape[1] * shape["heads"]
            print(f"    MesaNet: {1e6 * factors / tokens:.3f} us a token and head for its system, ", end="")
            print(f"solve {1e3 * whole:.0f} ms")
        if not tiny and find_spec("fla") and find_spec("torch"):
            for name, took in theirs(given, rounds).items():
                ratios = ", ".join(f"ours in {n} takes {t / took:.2f} times as long" for n, t in mine.items())
                print(f"  flash-linear-attention {name}: {1e3 * took:.2f} ms; {ratios}")
        elif not tiny:
            print("  flash-linear-attention is not installed: no ratio to its kernels")
    if tiny:
        return 0
    failed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu"], cwd=HERE.parent, check=False
    ).returncode
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not here: memory accesses are not checked")
        return failed
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, str(HERE / "simulated.py")]
        found = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        print(f"compute-sanitizer {tool}: {'clean' if found == 0 else f'exit {found}'}")
        failed = failed or found
    return failed


if __name__ == "__main__":
    why = _device.refusal()
    sys.exit(f"{why}" if why else main("--tiny" in sys.argv))
