"""Mistakes in kernels of the exact learner: those of the delta core that mean the same there, and its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..spec import Mutant
from .mesa import Learner
from .mistakes import CATALOGUE as CORE

SHARED = (
    "scale_off_1_percent",
    "gate_base_2",
    "gate_twice",
    "gate_late",
    "gate_early",
    "gate_of_head_0",
    "gate_of_all_tokens",
    "beta_half",
    "beta_twice",
    "beta_squared",
    "write_dropped",
    "zeros",
    "last_row_zero",
    "rows_swapped",
    "tile_reversed",
    "sign_flipped",
    "token_5_percent",
    "nan",
    "state_bf16",
    "operands_tf32",
    "truncated",
)


def one_ridge(core: Learner) -> Learner | None:
    """The mean ridge for all channels."""
    if core.lamb.shape[1] == 1:
        return None
    return replace(core, lamb=np.repeat(core.lamb.mean(axis=1, keepdims=True), core.lamb.shape[1], 1))


def started(part: int) -> Callable[[Learner], Learner | None]:
    """Without the keys' (0) or the values' (1) part of the initial memory."""

    def alter(core: Learner) -> Learner | None:
        if core.start is None:
            return None
        keys, values = (x * (i != part) for i, x in enumerate(core.start))
        return replace(core, start=(keys, values))

    return alter


def tiled(core: Learner) -> Learner | None:
    """Value head h with key head h % H."""
    H, HV = core.k.shape[2], core.v.shape[2]
    if H in (1, HV):
        return None
    order = np.arange(HV) % H
    return replace(core, q=np.ascontiguousarray(core.q[:, :, order]), k=np.ascontiguousarray(core.k[:, :, order]))


OWN: dict[str, tuple[str, Callable[[Learner], Learner | None]]] = {
    "ridge_twice": ("the ridge doubled [20]", lambda c: replace(c, lamb=2 * c.lamb)),
    "one_ridge_for_all": ("one ridge for all channels [20]", one_ridge),
    "stopped_early": (
        "three steps of conjugate gradients [20]",
        lambda c: replace(c, solver="cg", steps=3, eps=1e-5),
    ),
    "eps_in_the_steps": (
        "an eps of 1e-2 in the denominators of conjugate gradients [20]",
        lambda c: replace(c, solver="cg", eps=1e-2),
    ),
    "unsolved": ("linear attention: x = q [21]", lambda c: replace(c, mix=np.zeros((*c.v.shape[:3], 1)))),
    "weight_missing": ("every token's loss weighs 1 [7]", lambda c: replace(c, b=np.ones_like(c.b))),
    "gate_missing": ("nothing decays [5]", lambda c: replace(c, g=np.zeros_like(c.g))),
    "heads_tiled": ("value head h with key head h mod H [8]", tiled),
    "h_kk_ignored": ("the keys' part of the initial memory taken as zero [11]", started(0)),
    "h_kv_ignored": ("the values' part of the initial memory taken as zero [11]", started(1)),
}
CATALOGUE = (
    *(Mutant(name, doc, "core", alter) for name, (doc, alter) in OWN.items()),
    *(m for m in CORE if m.name in SHARED),
)
