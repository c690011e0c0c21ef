"""Tests marked `gpu` run where there is a GPU, and are skipped elsewhere for the reason that `solve` would give."""

import pytest

from refengine.errors import UnavailableError


def without_gpu():
    """Why there is none to test on; None if there is."""
    try:
        from refengine.kernels.cuda import _device
    except UnavailableError as error:
        return str(error)
    return "device 'cuda' is simulated." if _device.SIMULATED else _device.refusal()


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = without_gpu() if marked else None
    if reason is not None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"gpu: {reason}"))
