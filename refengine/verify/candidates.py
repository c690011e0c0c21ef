"""Candidates that can be run: a Python callable, or any program that reads a file and writes one."""

from __future__ import annotations

import inspect
import math
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import AdapterError, FileError, InputError, nearest
from ..frontend.gates import Gate
from ..frontend.norm import L2Norm
from ..frontend.pairing import Conv
from ..io import tensorfile
from ..io.interop import to_numpy
from .policy import Policy
from .yardstick import part_of

Array = NDArray[Any]
SILENT = {"convention", "precision", "device", "form", "states_at", "threads", "allow_nonfinite"}  # how we compute
LIMIT_S, LIMIT_GIB = 600.0, 16.0
SAID = 1500  # characters of a program's stderr that are repeated
OURS, STANDARD = Path(__file__).parents[1], Path(sysconfig.get_path("stdlib"))
INSTALLED = frozenset({"site-packages", "dist-packages"})  # folders of code that is not the candidate's own
# Becomes the program, its memory limited; where that cannot be, says why through a pipe that programs do not inherit.
START = """
import os, resource, sys
tell, limit = int(sys.argv[1]), int(sys.argv[2])
os.set_inheritable(tell, False)
try:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.execvp(sys.argv[3], sys.argv[3:])
except (OSError, ValueError) as error:
    os.write(tell, (getattr(error, "strerror", None) or str(error)).encode())
"""


class Live(Protocol):
    """A candidate that can be run on any problem."""

    def takes(self, name: str) -> bool:
        """Whether it can be given that argument."""

    def outputs(
        self, op: str, inputs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], policy: Policy
    ) -> dict[str, Any]:
        """What it makes of the problem `refengine.solve(op, **inputs)` solves; `shapes` are the outputs wanted."""


def given(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that say something."""
    return {name: x for name, x in inputs.items() if x is not None and x is not False and not _nothing(x)}


def _nothing(x: Any) -> bool:
    return (isinstance(x, int) and x == 0) or (isinstance(x, Mapping) and not x)


class Called:
    """A Python function taking the inputs by our names, those in its signature; torch tensors on `device` where
    framework is "torch" (or "auto" and its module has imported torch), else NumPy arrays of the inputs' own dtypes."""

    def __init__(self, function: Callable[..., Any], framework: str = "auto", device: str = "cpu") -> None:
        if framework not in ("auto", "numpy", "torch"):
            raise InputError(f"There is no framework {framework!r} (known: auto, numpy, torch).")
        self.function, self.device = function, device
        origin = inspect.unwrap(function)
        scope = getattr(getattr(origin, "func", origin), "__globals__", {})
        self.torch = framework == "torch" or (framework == "auto" and "torch" in scope)
        try:
            self.parameters = inspect.signature(function).parameters
        except (TypeError, ValueError) as error:
            raise AdapterError(f"The candidate's signature cannot be read ({error}).") from error
        self.everything = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    @classmethod
    def named(cls, where: str, framework: str = "auto", device: str = "cpu") -> Called:
        """The function that `module:function` or `file.py:function` names; modules of the current folder too."""
        module, colon, name = where.rpartition(":")
        if not colon or not name:
            raise InputError(f"--call takes module:function; {where!r} has no function.")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            function: Any = _file(Path(module)) if module.endswith(".py") else import_module(module)
        except Exception as error:
            said = f"{module} cannot be imported ({type(error).__name__}: {error}{_own_line(error)})"
            raise AdapterError(f"{said}.") from error
        for part in name.split("."):
            if not hasattr(function, part):
                raise AdapterError(f"{module} has no {part!r}{nearest(part, _functions(function))}.")
            function = getattr(function, part)
        if not callable(function):
            raise AdapterError(f"{where} is a {type(function).__name__}, which cannot be called.")
        return cls(function, framework, device)

    def takes(self, name: str) -> bool:
        return self.everything or name in self.parameters

    def needs(self, name: str) -> bool:
        """Whether it cannot be called without that argument."""
        return name in self.parameters and self.parameters[name].default is inspect.Parameter.empty

    def outputs(
        self, op: str, inputs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], policy: Policy
    ) -> dict[str, Any]:
        said = given(inputs)
        owed: dict[str, Any] = (
            {name: said.pop(name) for name in ("do", "dht") if name in said} if self.differentiates(said) else {}
        )
        for name in said:
            if not self.takes(name) and name not in SILENT:
                raise AdapterError(f"The problem has {name}, which {self.name} does not take.")
        arrays = {name: to_numpy(x, name) for name, x in said.items() if _is_array(x)}
        passed = {name: self.handed(x.copy()) for name, x in arrays.items()}
        call = {name: passed.get(name, x) for name, x in said.items() if self.takes(name)}
        if "op" in self.parameters:
            call["op"] = op
        buffers = {name: self.buffer(name, shape, policy) for name, shape in shapes.items() if name in self.parameters}
        if "output_final_state" in self.parameters:
            call.setdefault("output_final_state", True)
        wanted = {n: x for n, x in passed.items() if owed and f"d{n}" in shapes}
        try:
            for x in wanted.values():
                x.requires_grad_(True)
            result = self.function(**call, **buffers)
            found = {**buffers, **self.parts(result, tuple(shapes))}
            if owed:
                found |= self.autograd(found, owed, wanted)
        except AdapterError:
            raise
        except Exception as error:
            raise AdapterError(f"{self.name} raised {type(error).__name__}: {error}{_own_line(error)}") from error
        for name, x in arrays.items():
            if to_numpy(passed[name], name).tobytes() != x.tobytes():
                raise AdapterError(f"{self.name} changed its input {name}.")
        for name, x in found.items():
            self.check_alias(name, x, passed)
        return {name: None if x is None else to_numpy(x, name) for name, x in found.items()}

    def differentiates(self, said: Mapping[str, Any]) -> bool:
        """Whether gradients are asked of a torch function that gives none itself."""
        return self.torch and ("do" in said or "dht" in said) and not (self.takes("do") or self.takes("dht"))

    def autograd(self, found: Mapping[str, Any], owed: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
        """dNAME of every tensor that was given, for do and dht."""
        import torch

        loss: Any = 0.0
        for name, output in (("do", "o"), ("dht", "final_state")):
            if name in owed:
                if found.get(output) is None:
                    raise AdapterError(f"{self.name} gives no {output}, which {name} is the gradient of.")
                cotangent = self.handed(np.array(to_numpy(owed[name], name), np.float64))
                loss = loss + (found[output].to(torch.float64) * cotangent).sum()
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        return {
            f"d{n}": torch.zeros_like(x) if d is None else d
            for (n, x), d in zip(wanted.items(), gradients, strict=True)
        }

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def handed(self, x: Array) -> Any:
        if not self.torch:
            return x
        import torch

        if x.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(self.device)
        return torch.from_numpy(x).to(self.device)

    def buffer(self, name: str, shape: tuple[int, ...], policy: Policy) -> Any:
        """Room for an output, holding NaN."""
        dtype = policy.format(part_of(name, len(shape))).dtype
        return self.handed(np.full(shape, math.nan, dtype))

    def parts(self, result: Any, names: Sequence[str]) -> dict[str, Any]:
        if result is None:
            return {}
        if isinstance(result, Mapping):
            return dict(result)
        if isinstance(result, tuple | list):
            result = [y for x in result for y in (x if isinstance(x, tuple) else (x,))]  # several states are one
            if len(result) > len(names):
                raise AdapterError(f"{self.name} returned {len(result)} things; {', '.join(names)} were asked for.")
            return dict(zip(names, result, strict=False))
        return {names[0]: result}

    def check_alias(self, name: str, x: Any, passed: Mapping[str, Any]) -> None:
        """An output must not live in an input's memory: the next call would overwrite it."""
        for other, y in passed.items():
            if x is y or (isinstance(x, np.ndarray) and isinstance(y, np.ndarray) and np.shares_memory(x, y)):
                raise AdapterError(f"{self.name} returned {name} in the memory of its input {other}.")


def _file(path: Path) -> ModuleType:
    """A module from its file, whose folder it may import from."""
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    name = f"candidate_{path.stem}"  # which hides no other module, whatever the file is called
    spec = util.spec_from_file_location(name, path.absolute())
    assert spec is not None and spec.loader is not None
    sys.path.insert(0, str(path.absolute().parent))
    sys.modules[name] = module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _functions(scope: Any) -> list[str]:
    """What can be called there and is not imported."""
    home, own = getattr(scope, "__name__", ""), getattr(scope, "__dict__", {})
    return [n for n, x in own.items() if n[:1] != "_" and callable(x) and getattr(x, "__module__", home) == home]


def _own_line(error: BaseException) -> str:
    """Where in the candidate's own code that came from, for a sentence: the last line that is no library's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        library = path.is_relative_to(OURS) or path.is_relative_to(STANDARD) or not INSTALLED.isdisjoint(path.parts)
        if path.is_file() and not library:
            return f" ({path.name}, line {frame.lineno}: {frame.line})"
    return ""


def _is_array(x: Any) -> bool:
    return hasattr(x, "__array__") or hasattr(x, "__dlpack__") or isinstance(x, list)


@dataclass(frozen=True)
class Program:
    """A command with {in} and {out} in it: it reads the problem from the one file (safetensors: tensors by our names,
    settings as text in the metadata) and writes o and final_state to the other (safetensors or .npz)."""

    command: str
    seconds: float = LIMIT_S
    gib: float = LIMIT_GIB

    def takes(self, name: str) -> bool:
        return True

    def outputs(
        self, op: str, inputs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], policy: Policy
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="refengine-") as folder:
            source, target = Path(folder, "in.safetensors"), Path(folder, "out.safetensors")
            tensors, settings = as_file(op, inputs)
            tensorfile.write(source, tensors, settings)
            said = self.run(source, target)
            if not target.exists():
                raise AdapterError(f"{self.word} wrote no file {{out}}{_words(said)}")
            try:
                found, _ = tensorfile.read(target)
            except FileError as error:
                raise AdapterError(f"{self.word} wrote what cannot be read ({error}){_words(said)}") from error
            return {name: np.array(x) for name, x in found.items()}

    @property
    def word(self) -> str:
        return shlex.split(self.command)[0] if self.command.strip() else "The program"

    def run(self, source: Path, target: Path) -> str:
        """Its stderr; its memory limited and its whole process group ended when the time is up."""
        if "{in}" not in self.command or "{out}" not in self.command:
            raise InputError(f"--exec takes a command with {{in}} and {{out}}; {self.command!r} lacks one.")
        places = {"{in}": str(source), "{out}": str(target)}
        words = [_filled(word, places) for word in shlex.split(self.command)]
        told, tell = os.pipe()
        with os.fdopen(told) as why_not:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", START, str(tell), str(int(self.gib * 2**30)), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    pass_fds=(tell,),
                )
            finally:
                os.close(tell)
            try:
                _, stderr = process.communicate(timeout=self.seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                _, stderr = process.communicate()
                said = stderr.decode(errors="replace")
                raise AdapterError(f"{self.word} was still running after {self.seconds:g} s{_words(said)}") from None
            if reason := why_not.read():
                raise AdapterError(f"{self.word} cannot be started ({reason}).")
        said = stderr.decode(errors="replace")
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            raise AdapterError(f"{self.word} was ended by {name}{_words(said)}")
        if process.returncode:
            raise AdapterError(f"{self.word} ended with {process.returncode}{_words(said)}")
        return said


def _filled(word: str, places: Mapping[str, str]) -> str:
    for mark, place in places.items():
        word = word.replace(mark, place)
    return word


def _words(said: str) -> str:
    """A program's own words, for the end of a sentence."""
    text = said.strip()
    return f"; it said: {text[-SAID:]}" if text else " and said nothing"


def as_file(op: str, inputs: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, str]]:
    """A problem as tensors and settings, under the names that `refengine solve` reads."""
    tensors: dict[str, Array] = {}
    settings: dict[str, str] = {"op": op}

    def put(name: str, x: Any) -> None:
        if isinstance(x, Conv):
            for part in ("weight", "bias", "state"):
                put(f"{name}.{part}", getattr(x, part))
            settings[f"{name}.activation"] = x.activation or "none"
            settings[f"{name}.residual"] = str(x.residual).lower()
        elif isinstance(x, Gate):
            for part in ("a", "A_log", "dt_bias"):
                put(f"{name}.{part}", getattr(x, part))
            if x.lower_bound is not None:
                settings[f"{name}.lower_bound"] = repr(x.lower_bound)
        elif isinstance(x, L2Norm):
            settings.update({name: "true", "l2norm_eps": repr(x.eps), "l2norm_place": x.place})
        elif isinstance(x, Mapping):
            for key, value in x.items():
                put(f"{name}.{key}", value)
        elif isinstance(x, bool):
            settings[name] = str(x).lower()
        elif isinstance(x, tuple | list) and name == "states_at":
            settings[name] = ",".join(map(str, x))
        elif _is_array(x) and not np.isscalar(x):
            tensors[name] = np.ascontiguousarray(to_numpy(x, name))
        elif x is not None:
            settings[name] = repr(float(x)) if isinstance(x, float | np.floating) else str(x)

    for name, x in inputs.items():
        put(name, x)
    return tensors, settings
