"""The registry. `refengine.ops.NAME` is the op, which is also callable with flash-linear-attention's arguments.

A third party adds ops by the entry-point group `refengine.ops`: each entry names an `Op`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ..errors import InputError, nearest
from ..spec import Op

NAMES = (
    "linear_attn",
    "retention",
    "lightning_attn",
    "simple_gla",
    "gla",
    "delta_rule",
    "gated_delta_rule",
    "kda",
    "gdn2",
    "comba",
    "longhorn",
    "gated_delta_product",
    "rwkv7",
    "dplr",
    "iplr",
    "mesa_net",
    "gated_kalmanet",
    "softmax_attention",
    "ttt_linear",
    "ttt_mlp",
    "lact",
    "titans",
    "titans_mlp",
    "ttt",
)


@cache
def _foreign() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group="refengine.ops")}


def names() -> tuple[str, ...]:
    """Every op that can be solved, ours first."""
    return NAMES + tuple(sorted(set(_foreign()) - set(NAMES)))


def get(name: str) -> Op:
    """The op of that name."""
    if name in NAMES:
        op = import_module(f".{name}", __name__).OP
    elif name in _foreign():
        op = _foreign()[name].load()
    else:
        raise InputError(f"There is no op {name!r}{nearest(str(name), names())}.")
    globals()[name] = op  # over the submodule of the same name, which the import has put there
    if not isinstance(op, Op):
        raise InputError(f"The entry point refengine.ops:{name} is {type(op).__name__}, not an Op.")
    return op


def __getattr__(name: str) -> Op:
    if name in NAMES or (not name.startswith("_") and name in _foreign()):
        return get(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["NAMES", "get", "names", *names()]
