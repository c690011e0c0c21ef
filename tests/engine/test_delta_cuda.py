"""The GPU's answers are the CPU's, bit for bit: everywhere in the simulator, and on the device where there is one."""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import simulated
from spanning import case, every, of_families

import refengine
from refengine.spec import Delta

TESTS = Path(__file__).parents[1]
ON_DEVICE = (*of_families([Delta]), "mesa_net")
NUMBA_CUDA = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="refengine[cuda] is not installed")


@pytest.fixture(scope="module")
def found():
    """What the simulator finds of a case: a process that is asked, so that several workers share the cases."""
    there = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(TESTS / "simulated.py"), "-"]
    with subprocess.Popen(command, env=there, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        @cache
        def ask(name):
            print(name, file=process.stdin, flush=True)
            said = process.stdout.readline()
            assert said, f"the simulator ended with {process.wait()}"
            return json.loads(said)

        yield ask
        process.stdin.close()
    assert process.returncode == 0


@NUMBA_CUDA
@pytest.mark.parametrize("name", simulated.NAMES)
def test_the_same_bits_in_the_simulator(name, found):
    assert found(name)["device"] == "cuda"
    assert found(name)["differ"] == []


@NUMBA_CUDA
def test_little_memory_is_said(found):
    assert found("memory refused")["plan"][-1] == "windows of 2 tokens, as the device's memory allows"
    assert found("little memory")["plan"][1].startswith("4 tasks ")
    assert found("float32")["plan"][1:] == ["1 tasks (blocks of 4 columns, 4 threads a column) on a simulated device"]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(("name", "convention", "regime"), every("rich", "strong", names=ON_DEVICE))
@pytest.mark.gpu
def test_the_same_bits_on_the_device(name, convention, regime, precision):
    given = case(name, regime, T=300, K=40, V=70) | {"convention": convention, "precision": precision}
    assert simulated.compare(name, given)["differ"] == []


@pytest.mark.gpu
@pytest.mark.parametrize("K", [1, 2, 3, 17, 64, 128, 200, 256])
def test_every_size_on_the_device(K):
    given = case("kda", B=1, T=70, H=1, HV=2, K=K, V=130)
    assert simulated.compare("kda", given)["differ"] == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n in simulated.NAMES if n in simulated.CASES])
def test_the_simulators_cases_on_the_device(name):
    assert simulated.compare(*simulated.inputs(name))["differ"] == []


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(("name", "convention", "regime"), every("rich", names=of_families([Delta])))
@pytest.mark.gpu
def test_the_same_gradients_on_the_device(name, convention, regime, precision):
    given = case(name, regime, T=150, K=40, V=70) | {"convention": convention, "precision": precision}
    assert simulated.compare_gradients(name, given)["differ"] == []


def test_too_many_value_channels_for_gradients():
    pytest.importorskip("numba_cuda")
    q, v = np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 257))
    with pytest.raises(refengine.InputError, match="gradients of at most 256 value channels, and v has V = 257"):
        refengine.grad("linear_attn", q=q, k=q, v=v, do=v, device="cuda")
    with pytest.raises(refengine.InputError, match="no kernels for gradients of softmax_attention yet"):
        refengine.grad("softmax_attention", q=q, k=q, v=q, do=q, device="cuda")
    found = refengine.grad("linear_attn", q=q, k=q, v=v, do=v, device="auto").info
    assert found["device"] == "cpu" and found["plan"][0].startswith("device auto: the CPU, because 'cuda' takes")


@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("mesa_net", dict(solver="cg"), "no kernel for solver 'cg' yet; it has 'exact'"),
        ("gated_kalmanet", {}, "no kernel for a ridge that grows with the memory yet"),
        ("softmax_attention", {}, "no kernels for softmax_attention yet"),
        ("mesa_net", dict(K=257), "at most 256 key channels, and k has K = 257"),
    ],
)
def test_what_no_gpu_has_yet(name, more, why):
    pytest.importorskip("numba_cuda")
    given = case(name, T=1, B=1, H=1, HV=1, V=2, K=more.pop("K", 2), start=False) | more
    with pytest.raises(refengine.InputError, match=why):
        refengine.solve(name, **given, device="cuda")


def test_too_many_key_channels():
    q = np.ones((1, 1, 1, 257))
    pytest.importorskip("numba_cuda")
    with pytest.raises(refengine.InputError, match="at most 256 key channels, and k has K = 257"):
        refengine.solve("linear_attn", q=q, k=q, v=q, device="cuda")
    assert refengine.solve("linear_attn", q=q, k=q, v=q, device="auto").info["device"] == "cpu"


def test_no_double_double():
    q = np.ones((1, 1, 1, 2))
    with pytest.raises(refengine.InputError, match="no double-double kernels"):
        refengine.solve("linear_attn", q=q, k=q, v=q, device="cuda", precision="certified")


def test_without_numba_cuda():
    """In a process that cannot find it: one sentence, and the CPU where the choice was left open."""
    code = """
import importlib.util
usual = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba_cuda" else usual(name, *rest)
import numpy, refengine
q = numpy.ones((1, 1, 1, 2))
s = refengine.solve("linear_attn", q=q, k=q, v=q, device="auto")
print(s.info["device"], s.info["plan"][0])
try:
    refengine.solve("linear_attn", q=q, k=q, v=q, device="cuda")
except refengine.UnavailableError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    why = "'cuda' needs numba-cuda, which is not installed: pip install 'refengine[cuda]'."
    assert ran.stdout.splitlines() == [f"cpu device auto: the CPU, because {why}", f"device {why}"]
