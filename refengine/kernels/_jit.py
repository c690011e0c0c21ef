"""The door to numba: one decorator, one cache.

Numba's own cache goes stale when a function in *another* file changes (numba #1833), so the cache lives in a folder
named by a digest of every kernel source: a stale entry cannot be found. `njit` here is the only jit of the package:
strict IEEE (no fast-math, no contraction), no GIL, errors as NumPy has them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import compiler, event
from numba.core.codegen import JITCodeLibrary


def cache_home() -> Path:
    """The folder above every refengine cache: NUMBA_CACHE_DIR, else the user's cache folder, else a private temporary
    one."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = base / "refengine"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            return home
    except OSError:
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        return Path(tempfile.gettempdir()) / f"refengine-{user}"


def digest() -> str:
    """Sixteen hex digits over the sources of all kernels: what the compiled code depends on besides numba and the
    CPU."""
    h = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        h.update(file.name.encode() + b"\0" + file.read_bytes())
    return h.hexdigest()[:16]


log = logging.getLogger("refengine.kernels")  # says at level INFO when a kernel is compiled: that takes a while


class _Compiling(event.Listener):  # type: ignore[misc]  # numba has no types
    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        if function.__module__.startswith("refengine."):
            log.info("compiling %s.%s", function.__module__, function.__name__)

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Compiling())
CACHE = cache_home() / f"kernels-{digest()}"


def njit(function: Callable[..., Any]) -> Any:
    """Compile by the house rules and cache under `CACHE`, leaving numba's own settings as they were."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(CACHE)
    try:
        return numba.njit(
            function, cache=True, nogil=True, error_model="numpy", fastmath=False, _nrt=False, no_cfunc_wrapper=True
        )
    finally:
        numba.config.CACHE_DIR = before


class _Linked(JITCodeLibrary):  # type: ignore[misc]
    """The code of a helper: its functions simplified one by one and no more, and no machine code."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _Ingredient(compiler.Compiler):  # type: ignore[misc]
    """Compiles a helper as far as its kernels need: they link it, and only then all is optimised and translated, once.

    Numba does both for every helper too, and at every level above it again, which was half of a kernel's time.
    """

    def compile_extra(self, function: Callable[..., Any]) -> Any:
        context = self.state.targetctx
        self.state.flags.no_compile = True
        self.state.library = _Linked(context.codegen(), function.__qualname__)
        made = super().compile_extra(function)
        # numba tells functions apart by a builtin of each, and calls it if a person does: this one then raises its text
        entry = f"{{only kernels call {function.__name__}}}".format
        context.insert_user_function(entry, made.fndesc, [made.library])
        return made._replace(entry_point=entry)


# A numba without these joints compiles helpers its own way: as right, and slower.
_JOINTS = (
    (JITCodeLibrary, "_optimize_final_module", "_finalize_final_module", "_finalize_dynamic_globals", "_finalized"),
    (compiler.Compiler, "compile_extra"),
    (compiler.Flags, "no_compile"),
)
_PIPELINE = _Ingredient if all(hasattr(k, n) for k, *names in _JOINTS for n in names) else compiler.Compiler


def _helper(force: bool) -> Callable[[Callable[..., Any]], Any]:
    return numba.njit(  # type: ignore[no-any-return]
        pipeline_class=_PIPELINE,
        nogil=True,
        error_model="numpy",
        fastmath=False,
        forceinline=force,
        _nrt=False,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )


def inline(function: Callable[..., Any]) -> Any:
    """A helper that lives inside its callers' code: compiled with them, never by itself."""
    return _helper(True)(function)


def part(function: Callable[..., Any]) -> Any:
    """A large helper of one kernel: compiled with it, and called rather than copied."""
    return _helper(False)(function)
