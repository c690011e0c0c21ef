"""ggml's GATED_DELTA_NET, from the shared library inside llama-cpp-python, as llama.cpp calls it: a graph of one node
on the CPU backend, whose memory holds the inputs."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, Structure, c_bool, c_int, c_int64, c_size_t, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = 0  # ggml's number for it


class Parameters(Structure):
    """ggml_init_params"""

    _fields_ = (("bytes", c_size_t), ("room", c_void_p), ("no_data", c_bool))


SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_tensor_overhead": (c_size_t, ()),
    "ggml_graph_overhead": (c_size_t, ()),
    "ggml_init": (c_void_p, (Parameters,)),
    "ggml_new_tensor_4d": (c_void_p, (c_void_p, c_int, c_int64, c_int64, c_int64, c_int64)),
    "ggml_gated_delta_net": (c_void_p, (*[c_void_p] * 7, c_int64)),
    "ggml_new_graph": (c_void_p, (c_void_p,)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_backend_cpu_init": (c_void_p, ()),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
    "ggml_backend_alloc_ctx_tensors": (c_void_p, (c_void_p, c_void_p)),
    "ggml_backend_tensor_set": (None, (c_void_p, POINTER(ctypes.c_char), c_size_t, c_size_t)),
    "ggml_backend_tensor_get": (None, (c_void_p, POINTER(ctypes.c_char), c_size_t, c_size_t)),
    "ggml_backend_graph_compute": (c_int, (c_void_p, c_void_p)),
    "ggml_backend_buffer_free": (None, (c_void_p,)),
    "ggml_backend_free": (None, (c_void_p,)),
    "ggml_free": (None, (c_void_p,)),
}


def library() -> Any:
    """The functions above; None where there is no such library, or one too old to have them all."""
    package = find_spec("llama_cpp")
    if package is None or not package.submodule_search_locations:
        return None
    file = (
        Path(package.submodule_search_locations[0]) / "lib" / f"libggml.{'dylib' if sys.platform == 'darwin' else 'so'}"
    )
    try:
        found = ctypes.CDLL(str(file))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return found


class GatedDeltaNet:
    """One problem as ggml holds it: q, k, v [B, T, H, S], beta [B, T, H], g the same (or [B, T, H, S]), no state
    before the first token."""

    def __init__(self, ggml: Any, x: dict[str, NDArray[Any]], threads: int) -> None:
        self.ggml, self.shape = ggml, x["v"].shape
        B, _, H, S = self.shape
        bytes_ = 16 * ggml.ggml_tensor_overhead() + ggml.ggml_graph_overhead()
        self.context = ggml.ggml_init(Parameters(bytes_, None, True))
        given = [x["q"], x["k"], x["v"], *(y[..., None] if y.ndim == 3 else y for y in (x["g"], x["beta"]))]
        given.append(np.zeros((B, H, S, S), np.float32))
        tensors = [ggml.ggml_new_tensor_4d(self.context, F32, *reversed(y.shape)) for y in given]
        self.result = ggml.ggml_gated_delta_net(self.context, *tensors, 1)
        self.graph = ggml.ggml_new_graph(self.context)
        ggml.ggml_build_forward_expand(self.graph, self.result)
        self.backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self.backend, threads)
        self.buffer = ggml.ggml_backend_alloc_ctx_tensors(self.context, self.backend)
        for tensor, y in zip(tensors, given, strict=True):
            self.move(ggml.ggml_backend_tensor_set, tensor, np.ascontiguousarray(y, np.float32))

    def move(self, how: Callable[..., None], tensor: int, y: NDArray[Any]) -> None:
        how(tensor, y.ctypes.data_as(POINTER(ctypes.c_char)), 0, y.nbytes)

    def compute(self) -> None:
        if self.ggml.ggml_backend_graph_compute(self.backend, self.graph) != 0:
            raise RuntimeError("ggml cannot compute the graph")

    def o(self) -> NDArray[Any]:
        """[B, T, H, S], the first part of what it computes."""
        o = np.empty(self.shape, np.float32)
        self.move(self.ggml.ggml_backend_tensor_get, self.result, o)
        return o

    def __del__(self) -> None:
        self.ggml.ggml_backend_buffer_free(self.buffer)
        self.ggml.ggml_backend_free(self.backend)
        self.ggml.ggml_free(self.context)
