"""The GPU under the kernels: whether there is one to use, what it is, and its memory."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from numpy.typing import NDArray

from ...errors import UnavailableError
from ._jit import SIMULATED, cuda

EXTRA = "pip install 'refengine[cuda]'"
NO_DRIVER = "cannot be found"  # in numba-cuda's words about libcuda
SIMULATED_MEMORY = 1 << 30


def refusal() -> str | None:
    """Why nothing can run here, in one sentence; None if something can."""
    if SIMULATED:
        return None
    from numba.cuda.cudadrv import driver, nvrtc, nvvm

    compiler = None
    try:
        nvvm.NVVM()
        nvrtc.get_supported_ccs()
        import_module("cuda.bindings.nvjitlink").version()
    except Exception as error:  # whatever the loaders raise
        compiler = _first_line(error)
    try:
        started = driver.driver.is_available
    except Exception:
        started = False
    trouble = None if started else str(driver.driver.initialization_error)
    found = driver.driver.cuDriverGetVersion() if started else 0
    return words(trouble, (found // 1000, found % 1000 // 10), _toolkit(), compiler)


def words(trouble: str | None, driver: tuple[int, int], toolkit: str | None, compiler: str | None) -> str | None:
    """What to say about a driver that does not start, a compiler that does not load, and versions that do not fit."""
    if trouble is not None and NO_DRIVER in trouble:
        return "device 'cuda' needs an NVIDIA driver, and there is none on this machine (libcuda is not found)."
    if trouble is not None and "NO_DEVICE" in trouble:
        return "device 'cuda' needs a GPU, and the NVIDIA driver sees none (CUDA_VISIBLE_DEVICES may hide it)."
    if trouble is not None:
        return f"device 'cuda': the NVIDIA driver does not start ({' '.join(trouble.split())})."
    if compiler is not None:
        return f"device 'cuda' needs the CUDA compiler, which does not load ({compiler}): {EXTRA}."
    if toolkit is not None and driver[0] < int(toolkit.split(".")[0]):
        return (
            f"device 'cuda': the NVIDIA driver knows CUDA {driver[0]}.{driver[1]}, but the compiler installed here is "
            f"of CUDA {toolkit}; update the driver, or install the compiler of CUDA {driver[0]} "
            f"(pip install 'numba-cuda[cu{driver[0]}]')."
        )
    return None


def _toolkit() -> str | None:
    """The version of the installed linker, whose major number a driver must know."""
    for package in ("nvidia-nvjitlink", "nvidia-nvjitlink-cu12"):
        try:
            return version(package)
        except PackageNotFoundError:
            pass
    return None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def free() -> int:
    """Bytes to be had on the device."""
    return SIMULATED_MEMORY if SIMULATED else int(cuda.current_context().get_memory_info().free)


def out_of_memory(error: Exception) -> bool:
    """Whether the driver refused memory."""
    return "OUT_OF_MEMORY" in str(error)


def to_host(x: Any) -> NDArray[Any]:
    """A copy of what lies where `__cuda_array_interface__` says."""
    why = refusal()
    if why is not None:
        raise UnavailableError(why)
    found: NDArray[Any] = cuda.as_cuda_array(x).copy_to_host()
    return found


def name() -> str:
    """The device's name."""
    if SIMULATED:
        return "a simulated device"
    found: Any = cuda.get_current_device().name
    return found.decode() if isinstance(found, bytes) else str(found)
