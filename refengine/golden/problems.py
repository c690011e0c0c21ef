"""The arguments of `refengine.solve` as a checked problem, and as what a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.problem import Asked, Problem, build
from ..frontend.gates import Gate
from ..frontend.norm import L2Norm
from ..frontend.pairing import Conv

ASKED = {f.name for f in fields(Asked)}


def problem(op: str, arguments: Mapping[str, Any], **more: Any) -> Problem:
    """What `refengine.solve(op, **arguments)` would build."""
    given = {**arguments, **more}
    tensors = {name: x for name, x in given.items() if name not in ASKED}
    return build(op, tensors, Asked(**{name: x for name, x in given.items() if name in ASKED}))


def as_file(op: str, arguments: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """(tensors, metadata) as `refengine solve` reads them."""
    tensors: dict[str, NDArray[Any]] = {}
    settings: dict[str, Any] = {"op": op}
    for name, x in arguments.items():
        if isinstance(x, Conv):
            tensors |= {f"{name}.weight": x.weight} | ({} if x.bias is None else {f"{name}.bias": x.bias})
            settings[f"{name}.activation"] = x.activation or "none"
        elif isinstance(x, Gate):
            parts = {"a": x.a, "A_log": x.A_log, "dt_bias": x.dt_bias}
            tensors |= {f"{name}.{part}": y for part, y in parts.items() if y is not None}
        elif isinstance(x, L2Norm):
            settings |= {"use_qk_l2norm": True, "l2norm_eps": x.eps, "l2norm_place": x.place}
        elif isinstance(x, Mapping):
            tensors |= {f"{name}.{part}": y for part, y in x.items()}
        elif isinstance(x, np.ndarray):
            tensors[name] = x
        elif x is not None:
            settings[name] = x
    return tensors, {name: str(x).lower() if isinstance(x, bool) else str(x) for name, x in settings.items()}
