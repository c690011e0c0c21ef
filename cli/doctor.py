"""`refengine doctor`: what this installation runs on, and whether it computes rightly."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np

import refengine
from refengine import data
from refengine.engine.plan import available_cores
from refengine.errors import UnavailableError
from refengine.io import tensorfile
from refengine.kernels import delta
from refengine.kernels._jit import CACHE

from . import question

NEEDED = ("numpy", "numba", "llvmlite", "ml_dtypes", "click")
OPTIONAL = ("python-flint", "torch", "numba-cuda")
FEATURES = ("avx2", "fma", "avx512f", "neon", "sve")  # as /proc/cpuinfo spells them; on ARM neon is asimd
TWO_ULP = 2.0**-52


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """What this installation runs on, and whether it computes rightly.

    Versions, CPU, cache, and a sample whose answer is known by hand; exit 2 if that comes out wrong.

    \b
    Example:
      refengine doctor
    """
    found = examine()
    if as_json:
        click.echo(json.dumps(found))
    else:
        for name, value in found.items():
            click.echo(f"{name:12} {text(value)}")
    if found["self-check"] != "passed":
        click.echo(f"Error: the self-check failed: {found['self-check']}.", err=True)
        ctx.exit(2)


def text(value: Any) -> str:
    """A finding as words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(x)}" for key, x in value.items())
    if isinstance(value, list):
        return " ".join(value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not installed" if value is None else str(value)


def examine() -> dict[str, Any]:
    """Everything the doctor looks at."""
    return {
        "refengine": refengine.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "needed": {name: installed(name) for name in NEEDED},
        "optional": {name: installed(name) for name in OPTIONAL},
        "cpu": processor(),
        "features": features(),
        "cores": available_cores(),
        "gpu": gpu(),
        "lanes": {kind: delta.lanes(np.dtype(kind)) for kind in ("float64", "float32")},
        "svml": uses_svml(),
        "cache": {"folder": str(CACHE), "writable": writable(CACHE)},
        "self-check": self_check(),
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpuinfo(*keys: str) -> str:
    """The first value of any of these keys in /proc/cpuinfo, where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() in keys), "")


def processor() -> str:
    return cpuinfo("model name") or platform.processor() or platform.machine()


def features() -> list[str]:
    flags = cpuinfo("flags", "Features").replace("asimd", "neon").split()
    return [name for name in FEATURES if name in flags]


def gpu() -> str:
    """What device="cuda" would run on, or why it would not."""
    try:
        from refengine.kernels.cuda import _device
    except UnavailableError as error:
        return str(error)
    return _device.refusal() or _device.name()


def uses_svml() -> bool:
    """Whether Numba calls Intel's vector functions; no kernel here has any call that it could replace."""
    return bool(getattr(sys.modules["numba"].config, "USING_SVML", False))


def writable(folder: Path) -> bool:
    """Whether compiled kernels can be kept: the folder, or the nearest above it that exists, takes files."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def self_check() -> str:
    """Solve the tiny sample and compare with the answer that its table gives by hand."""
    asked = question.ask(*tensorfile.read(data.path("tiny")), {})
    solution = refengine.solve(asked.op.name, **asked.arguments)
    for name, found, bound, known in (
        ("o", solution.o[0, :, 0], solution.bound["o"][0], data.TINY_O),
        ("final_state", solution.final_state[0, 0], solution.bound["final_state"][0], data.TINY_FINAL_STATE),
    ):
        wanted = np.array(known, dtype=np.float64)
        wrong = np.abs(found - wanted)
        if not (wrong <= bound + TWO_ULP * wanted).all():  # ln 2 is rounded in the file
            return f"{name} of the tiny sample is off by {wrong.max():.1e}, with a bound of {bound.max():.1e}"
    return "passed"


__all__ = ["command"]
