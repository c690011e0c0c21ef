"""What is said where there is no GPU to use: one sentence for each reason."""

import pytest

pytest.importorskip("numba_cuda", reason="refengine[cuda] is not installed")

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
