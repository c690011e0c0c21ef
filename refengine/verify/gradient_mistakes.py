"""Mistakes of backward passes, each an exact alteration of what is owed, of the chunk algebra, or of the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.prepare import prepare
from ..kernels.emulate_grad import SLIPS
from ..numbers.traced import Traced, leaf
from ..spec import Mutant
from .emulate import Run
from .gradients import Backward, emulate
from .policy import Policy

Array = NDArray[Any]
Gradients = dict[str, Array]


# On what is asked


def end_scaled(factor: float) -> Callable[[Backward], Backward | None]:
    return lambda back: None if back.dht is None else replace(back, dht=back.dht * factor)


def without_norm(back: Backward) -> Backward | None:
    """The norm's own derivative left out."""
    if back.problem.norm is None:
        return None
    leaves: dict[str, Traced] = {}
    plain = replace(back.problem, norm=None)
    lowered, _ = prepare(plain, lambda name, array: leaves.setdefault(name, leaf(array)))
    return replace(back, lowered=lowered, leaves=leaves)


# On the answer


def named(back: Backward, role: str) -> str:
    return f"d{back.problem.op.role(role)[0].name}"


def unscaled(got: Gradients, back: Backward) -> Gradients:
    name = named(back, "query")
    return {**got, name: got[name] / back.core.scale}


def swapped(got: Gradients, back: Backward) -> Gradients | None:
    q, k = named(back, "query"), named(back, "key")
    return {**got, q: got[k], k: got[q]} if got[q].shape == got[k].shape else None


def start_zero(got: Gradients, _: Backward) -> Gradients:
    return {**got, "dinitial_state": np.zeros_like(got["dinitial_state"])}


def start_transposed(got: Gradients, _: Backward) -> Gradients | None:
    x = got["dinitial_state"]
    return {**got, "dinitial_state": x.swapaxes(2, 3).copy()} if x.shape[2] == x.shape[3] else None


def last_unwritten(got: Gradients, back: Backward) -> Gradients:
    """The last token's dv never written."""
    name = named(back, "value")
    x = got[name].copy()
    x[:, -1] = 0.0
    return {**got, name: x}


def late_gate(got: Gradients, back: Backward) -> Gradients | None:
    """The decay's gradient one token late."""
    role = back.problem.op.role("decay")
    name = f"d{role[0].name}" if role else ""
    if name not in got:
        return None
    x = np.roll(got[name], 1, axis=1)
    x[:, 0] = 0.0
    return {**got, name: x}


DOCS = {
    "last_gate": "dg without what the last decay of a chunk owes for what is kept [17]",
    "state_gate": "dg without what the decays owe for the carried state [17]",
    "db_of_w": "dbeta without its part through W [17]",
    "db_of_a": "dbeta without its part through the correction [17]",
    "exclusive_sum": "dg summed from the next token on [17]",
    "dk_of_a": "dk without its part through the correction [17]",
    "dk_of_state": "dk without what is written to the state [17]",
    "de": "dk without its part through what is erased [17]",
    "state_lost": "what is owed to the state lost between chunks [17]",
    "carry_ungated": "what is owed to the state carried back without its decay [17]",
    "dq_of_state": "dq without what is read from the state [17]",
}
CATALOGUE = (
    *(Mutant(f"d_{name}", DOCS[name], "backward", slips=(name,)) for name in SLIPS),
    Mutant("dht_ignored", "dht taken as zero [17]", "asked", end_scaled(0.0)),
    Mutant("dht_twice", "dht counted twice [17]", "asked", end_scaled(2.0)),
    Mutant("norm_not_differentiated", "the norm's own derivative left out [17]", "asked", without_norm),
    Mutant("dq_without_scale", "dq without the scale [17]", "gradients", unscaled),
    Mutant("dq_dk_swapped", "dq and dk swapped [17]", "gradients", swapped),
    Mutant("dh0_zero", "the initial state's gradient zero [17]", "gradients", start_zero),
    Mutant("dh0_transposed", "the initial state's gradient as [V, K] [17]", "gradients", start_transposed),
    Mutant("dv_tail_unwritten", "dv of the last token never written [17]", "gradients", last_unwritten),
    Mutant("dg_late", "the gradient of the gate one token late [17]", "gradients", late_gate),
)


def mutated(mutant: Mutant, back: Backward, policy: Policy, run: Run) -> Gradients | None:
    """The gradients that an implementation with that mistake computes; None where it cannot be made."""
    if mutant.acts == "backward":
        needs_decay = mutant.slips[0] in ("last_gate", "state_gate", "exclusive_sum", "carry_ungated")
        if (back.core.g if needs_decay else back.core.b if mutant.slips[0].startswith("db") else back.core.q) is None:
            return None
        return emulate(back, policy, run, mutant.slips)
    assert mutant.alter is not None
    if mutant.acts == "asked":
        other = mutant.alter(back)
        return None if other is None else emulate(other, policy, run)
    found: Gradients | None = mutant.alter(emulate(back, policy, run), back)
    return found
