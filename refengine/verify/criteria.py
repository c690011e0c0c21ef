"""What the field's own criteria say of the same outputs, as their projects define them. They are reported, never
counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..numbers.formats import to_nearest
from .policy import Policy
from .yardstick import part_of

Array = NDArray[Any]
Outputs = Mapping[str, Array]

# torch.testing.assert_close: rtol, atol
TORCH = {"f64": (1e-7, 1e-7), "f32": (1.3e-6, 1e-5), "f16": (1e-3, 1e-5), "bf16": (1.6e-2, 1e-5)}


def fla(x: Array, y: Array, ratio: float) -> bool:
    """flash-linear-attention's assert_close: the root mean square of the error over that of the truth."""
    d = np.abs(x - y)
    if d.max(initial=0.0) <= 1e-6:
        return True
    return bool(np.sqrt((d**2).mean()) / (np.sqrt((y**2).mean()) + 1e-8) < ratio)


def flash_attention(x: Array, y: Array, honest: Array) -> bool:
    """FlashAttention's: no further at worst than twice what the same precision errs in the reference."""
    return bool(np.abs(x - y).max(initial=0.0) <= 2 * np.abs(honest - y).max(initial=0.0))


def torch_table(x: Array, y: Array, tolerance: tuple[float, float]) -> bool:
    rtol, atol = tolerance
    return bool((np.abs(x - y) <= atol + rtol * np.abs(y)).all())


def cosine(x: Array, y: Array) -> float:
    """1 where both are nothing, 0 where one of them is, NaN where anything is."""
    size = np.sqrt((x**2).sum()) * np.sqrt((y**2).sum())
    if size == 0:
        return float(not x.any() and not y.any())
    return float((x * y).sum() / size)


def verdicts(got: Outputs, truth: Outputs, honest: Outputs, policy: Policy) -> dict[str, bool]:
    """What each criterion says of all outputs together. `honest` is an emulation of the same policy, rounded to
    nearest."""
    io = policy.io if policy.io in TORCH else "bf16"
    stored = {name: policy.format(part_of(name, x.ndim)) for name, x in got.items()}

    exact = {name: np.asarray(truth[name], np.float64) for name in got}
    held = {name: to_nearest(y, stored[name]) for name, y in exact.items()}

    def every(check: Callable[[Array, Array, Array], bool], as_stored: bool = False) -> bool:
        true = held if as_stored else exact
        with np.errstate(all="ignore"):
            return all(check(got[name], true[name], honest[name]) for name in got)

    return {
        "FLA ratio 0.005": every(lambda x, y, _: fla(x, y, 0.005)),
        "FlashAttention 2x": every(flash_attention, as_stored=True),
        f"torch.testing ({io})": every(lambda x, y, _: torch_table(x, y, TORCH[io]), as_stored=True),
        "cosine > 0.999": every(lambda x, y, _: cosine(x, y) > 0.999),
    }
