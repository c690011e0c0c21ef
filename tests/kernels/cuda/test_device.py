"""What is said where there is no GPU to use: one sentence for each reason."""

import pytest

pytest.importorskip("numba_cuda", reason="refengine[cuda] is not installed")

import numpy as np

import refengine
from refengine.io.interop import to_numpy
from refengine.kernels.cuda import _device
from refengine.kernels.cuda._device import refusal, words

MISSING = "\nCUDA driver library cannot be found.\nEnsure that a compatible NVIDIA driver is installed"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ((MISSING, (0, 0), "13.0.88", None), "needs an NVIDIA driver, and there is none"),
        (("CUDA_ERROR_NO_DEVICE (100)", (0, 0), "13.0.88", None), "needs a GPU, and the NVIDIA driver sees none"),
        (("CUDA_ERROR_UNKNOWN\n (999)", (0, 0), "13.0.88", None), "does not start (CUDA_ERROR_UNKNOWN (999))"),
        ((None, (13, 0), None, "libnvvm.so not found"), "does not load (libnvvm.so not found): pip install"),
        ((None, (12, 8), "13.0.88", None), "knows CUDA 12.8, but the compiler installed here is of CUDA 13.0.88"),
    ],
)
def test_one_sentence_each(state, says):
    found = words(*state)
    assert says in found
    assert "\n" not in found and found.startswith("device 'cuda'") and found.endswith(".")


@pytest.mark.parametrize("driver", [(13, 0), (13, 5), (14, 0)])
def test_nothing_to_say(driver):
    assert words(None, driver, "13.0.88", None) is None


def test_this_machine_is_told_apart():
    """Whatever it is, it is said without raising."""
    assert refusal() is None or refusal().startswith("device 'cuda'")


class Placed:
    """An array that says only where on a GPU it lies."""

    def __init__(self, interface):
        self.__cuda_array_interface__ = interface


class Older(Placed):
    """An array on a GPU that gives DLPack's capsule, but no copy of itself for another device."""

    def __dlpack__(self, **how):
        if how:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'dl_device'")
        raise AssertionError("its capsule is of no use here")

    def __dlpack_device__(self):
        return 2, 0


@pytest.mark.parametrize("kind", [Placed, Older])
def test_where_an_array_lies_is_enough(kind, monkeypatch):
    there = np.arange(6.0)
    monkeypatch.setattr(_device, "to_host", lambda x: there if x.__cuda_array_interface__["version"] == 3 else None)
    assert to_numpy(kind({"shape": (6,), "typestr": "<f8", "data": (8, True), "version": 3}), "q") is there


@pytest.mark.gpu
def test_an_array_on_the_device():
    from numba import cuda

    x = np.arange(6.0).reshape(2, 3)
    there = cuda.to_device(x)
    assert (to_numpy(Placed(there.__cuda_array_interface__), "x") == x).all()
    assert (to_numpy(there, "x") == x).all()


def test_an_array_on_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(_device, "refusal", lambda: "device 'cuda' is asleep.")
    with pytest.raises(refengine.InputError, match=r"q is a .*Placed that does not .*\(device 'cuda' is asleep\.\)"):
        to_numpy(Placed({"shape": (1,), "typestr": "<f8", "data": (0, True), "version": 3}), "q")
