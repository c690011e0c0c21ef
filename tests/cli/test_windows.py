"""A long problem in windows of tokens: the bytes of the whole at once, after a kill too, in level memory."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from spanning import case

from refengine.io import tensorfile

COMMAND = [sys.executable, "-c", "from refengine.cli import main; main()"]


@pytest.mark.parametrize("name", ["gated_delta_rule", "gated_delta_product", "rwkv7", "gla"])
@pytest.mark.parametrize("settings", [[], ["--precision", "float32", "--states-at", "0,50,64,150"]])
def test_windows_give_the_bytes_of_the_whole(bench, name, settings):
    """Two rows, an initial state, a shift and a convolution; windows that are no multiple of anything."""
    given = case(name, B=2, T=150, K=9, V=70)
    metadata = {"op": name}
    if "num_householder" in given:
        metadata["num_householder"] = str(given.pop("num_householder"))
    if name == "gated_delta_rule":
        given["conv_k.weight"] = np.random.default_rng(0).standard_normal((18, 4))
        metadata |= {"key_shift": "2", "use_qk_l2norm": "true"}
    source = bench.folder / "in.safetensors"
    tensorfile.write(source, given, metadata)
    whole = bench.run("solve", source, "-o", bench.out, *settings)
    pieces = bench.run("solve", source, "-o", bench.folder / "pieces", "--window", 37, "--threads", 1, *settings)
    assert whole.exit_code == pieces.exit_code == 0, whole.output + pieces.output
    assert bench.out.read_bytes() == (bench.folder / "pieces").read_bytes()
    assert whole.stdout.splitlines()[1:3] == pieces.stdout.splitlines()[1:3]
    assert sorted(p.name for p in bench.folder.iterdir()) == ["in.safetensors", "out.safetensors", "pieces"]


def long_problem(bench, T):
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((1, T, 1, 16)).astype(np.float32) for _ in range(3))
    return bench.file("long.safetensors", q=q, k=k, v=v, g=-rng.random((1, T, 1)), beta=rng.random((1, T, 1)))


def test_a_killed_run_goes_on(bench):
    source = long_problem(bench, 200_000)
    ask = [*COMMAND, "solve", str(source), "-o", str(bench.out), "--window", "500", "--key-shift", "1"]
    process = subprocess.Popen(ask, stdout=subprocess.DEVNULL)
    memory = bench.folder / "out.safetensors.resume"
    until = time.monotonic() + 60
    while not memory.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert memory.exists()
    assert not bench.out.exists()
    tokens = tensorfile.read(memory)[0]["tokens"][0]
    assert 0 < tokens < 200_000
    other = bench.run("solve", source, "-o", bench.out, "--resume", "--key-shift", 2)
    assert other.exit_code == 2 and "key_shift was '1', now it is '2'" in other.stderr
    resumed = bench.run("solve", source, "-o", bench.out, "--resume", "--window", 70_000, "--key-shift", 1)
    assert resumed.exit_code == 0, resumed.output
    again = bench.folder / "again.safetensors"
    assert bench.run("solve", source, "-o", again, "--key-shift", 1, "--threads", 1).exit_code == 0
    assert bench.out.read_bytes() == again.read_bytes()
    assert not memory.exists() and not (bench.folder / "out.safetensors.partial").exists()


def test_interrupted_early_it_leaves_nothing(bench):
    source = long_problem(bench, 200_000)
    ask = [*COMMAND, "solve", str(source), "-o", str(bench.out), "--window", "500"]
    process = subprocess.Popen(ask, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    partial = bench.folder / "out.safetensors.partial"
    while not partial.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "Interrupted.\n"
    assert [p.name for p in bench.folder.iterdir()] == [source.name]


def test_nothing_to_resume(bench):
    bench.refused_file(bench.file(), "--resume", says=["nothing to resume", "out.safetensors.resume"])


def test_a_mistake_in_a_late_window_leaves_nothing(bench):
    v = bench.tensors["v"].copy()
    v[0, 5] = np.nan
    bench.refused_file(bench.file(v=v), "--window", 2, says=["In tokens 4 to 6", "v holds 8 values"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in KiB, and mapped pages given back")
def test_memory_does_not_grow_with_the_length(bench):
    peak = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    ask = "import sys\ntry: main()\nfinally: " + peak
    found = []
    for T in (20_000, 400_000):
        source = long_problem(bench, T)
        args = ["solve", str(source), "-o", str(bench.out), "--window", "5000"]
        run = [sys.executable, "-c", f"from refengine.cli import main\n{ask}", *args]
        said = subprocess.run(run, capture_output=True, text=True, check=True, env=os.environ)
        found.append(int(said.stdout.splitlines()[-1]))
    assert found[1] < found[0] + 30_000  # the longer one reads and writes 140 MB more
