"""A solution as a file: checked beforehand that it can be written, and the same bytes on every run and machine."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refengine import Gradient, Solution, __version__
from refengine.errors import FileError
from refengine.io import tensorfile

from .question import CONVS, Question

SPELLED = ("gate", "beta", *CONVS)  # what info says in words
OTHER_FORMATS = (".npz", ".npy", ".pt", ".pth", ".json", ".csv", ".gguf")  # which it would not be, whatever its name
NOT_KEPT = ("device",)  # where it ran changes no bit


def check_target(target: Path, source: Path, option: str = "-o") -> None:
    """Refuse, before any work is done, what could not be written after it."""
    if str(target) == "-":
        raise FileError("-o - is no place: the answer is a safetensors file, not a stream.")
    if option == "-o" and target.suffix in OTHER_FORMATS:
        raise FileError(
            f"{target}: the answer is a safetensors file; call it {target.with_suffix('.safetensors').name}."
        )
    if target.is_dir():
        raise FileError(f"{target}: is a folder; {option} takes a file.")
    if target.exists():
        if source.exists() and target.samefile(source):
            raise FileError(f"{target}: the output is the input; {option} takes another file.")
        if not target.is_file():
            raise FileError(f"{target}: is a device, not a file.")
    folder = Path(os.path.realpath(target)).parent
    if not folder.is_dir():
        raise FileError(f"{target}: there is no folder {folder}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(f"{target}: the folder {folder} cannot be written to ({error.strerror}).") from error


def digest(source: Path) -> str:
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_of(value: Any) -> str:
    """A setting as `question.parsed` reads it again."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(str(x) for x in value)
    return repr(value) if isinstance(value, float) else str(value)


def metadata_of(question: Question, solution: Solution, source: Path) -> dict[str, str]:
    """All that the answer depends on, every convention spelled: no time, no thread count, no machine."""
    info, settings = solution.info, question.settings
    spelled: dict[str, Any] = {
        "op": question.op.name,
        "key_shift": 0,
        "query_shift": 0,
        "value_shift": 0,
        "tie_values": False,
        "allow_neg_eigval": False,
        "allow_nonfinite": False,
    }
    spelled |= {name: value for name, value in settings.items() if name not in NOT_KEPT}
    for name in ("convention", "scale", "precision", "form", "use_qk_l2norm", *question.op.options):
        spelled[name] = info[name]
    for name in ("l2norm_eps", "l2norm_place"):
        spelled.pop(name, None)
        if name in info:
            spelled[name] = info[name]
    for name in CONVS:
        conv = question.arguments[name]
        if conv is not None:
            spelled |= {f"{name}.activation": conv.activation or "none", f"{name}.residual": conv.residual}
    spelled |= {name: info[name] for name in SPELLED if name in info}
    spelled |= {"certificate": info["certificate"], "refengine": __version__}
    spelled |= {"input": source.name, "input_sha256": digest(source)}
    return {name: text_of(value) for name, value in spelled.items()}


def tensors_of(solution: Solution) -> dict[str, NDArray[Any]]:
    tensors = {"o": solution.o, **solution.finals}
    tensors |= {f"{name}.lo": low for name, low in solution.low.items()}
    tensors |= {f"{name}.bound": bound for name, bound in solution.bound.items()}
    if solution.states is not None:
        several = solution.states if isinstance(solution.states, tuple) else (solution.states,)
        names = (f"states{name.removeprefix('final_state')}" for name in solution.finals)
        tensors |= dict(zip(names, several, strict=True))
    return tensors | {f"pairing_state.{name}": state for name, state in solution.pairing_state.items()}


def gradients_of(gradient: Gradient) -> dict[str, NDArray[Any]]:
    """dq, dk, ...: a d before the name of the input."""
    parts = {"": gradient, ".bound": gradient.bound, ".condition": gradient.condition}
    return {f"d{name}{part}": x for part, several in parts.items() for name, x in several.items()}


def write(target: Path, question: Question, solution: Solution, gradient: Gradient | None, source: Path) -> None:
    tensors, metadata = tensors_of(solution), metadata_of(question, solution, source)
    if gradient is not None:
        tensors |= gradients_of(gradient)
        metadata["gradient_certificate"] = text_of(gradient.info["certificate"])
    tensorfile.write(target, tensors, metadata)


@dataclass
class Quality:
    """How wrong one output can be, over all its windows: also relative to its largest entry (of a state, column)."""

    largest: float = 0.0
    worst: float = 0.0
    rows: int = 0
    without: int = 0

    def add(self, solution: Solution, name: str) -> None:
        """Another window's output."""
        values: NDArray[Any] = {"o": solution.o, **solution.finals}[name]
        bound = solution.bound[name]
        with np.errstate(all="ignore"):
            columns = name != "o" and bound.ndim < values.ndim
            size = np.sqrt(np.square(values.astype(np.float64)).sum(axis=2)) if columns else np.abs(values)
            self.largest = float(np.maximum(self.largest, size.max(initial=0.0)))
            self.worst = float(np.maximum(self.worst, solution.worst(name)))
        self.rows += bound.size
        self.without += int(np.count_nonzero(~np.isfinite(bound)))

    def found(self, shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        """What is said of an output of that shape."""
        with np.errstate(all="ignore"):
            relative = float(np.float64(self.worst) / self.largest) if self.largest > 0.0 else math.inf
        relative = 0.0 if self.worst == 0.0 else relative
        return {
            "shape": list(shape),
            "dtype": str(dtype),
            "bound": self.worst if math.isfinite(self.worst) else None,
            "bound_relative": relative if math.isfinite(relative) else None,
            "rows": self.rows,
            "rows_without_bound": self.without,
        }


def qualities(solution: Solution) -> dict[str, dict[str, Any]]:
    """How wrong each output of a solution can be; of states on the way and of the pairing, their shapes alone."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in {"o": solution.o, **solution.finals}.items():
        quality = Quality()
        quality.add(solution, name)
        found[name] = quality.found(values.shape, values.dtype)
    return found | {
        name: {"shape": list(x.shape), "dtype": str(x.dtype)}
        for name, x in tensors_of(solution).items()
        if name.startswith(("states", "pairing_state"))
    }
