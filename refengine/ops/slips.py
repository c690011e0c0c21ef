"""Mistakes in learners that no core hosts: each an op's `step` called with what a mistaken implementation would have
taken. `refengine.verify.mistakes.defined` runs them."""

from __future__ import annotations

from functools import partial, wraps

import numpy as np

from ..spec import Mutant


def taking(change):
    """The mistake of a step that was given something else: change(its arguments) -> other arguments."""

    def alter(step):
        @wraps(step)
        def mistaken(S, **given):
            return step(S, **given | change(given))

        return mistaken

    return alter


def keeping(*slots):
    """The mistake of states that are never written back."""

    def alter(step):
        @wraps(step)
        def mistaken(S, **given):
            after, o = step(S, **given)
            return tuple(S[i] if i in slots else x for i, x in enumerate(after)), o

        return mistaken

    return alter


def whole_mini_batch(step):
    """Every query sees what all tokens of its mini-batch have taught."""

    @wraps(step)
    def mistaken(S, *, q, **given):
        after, _ = step(S, q=q, **given)
        return after, np.stack(
            [step(S, q=np.repeat(q[i : i + 1], len(q), axis=0), **given)[1][-1] for i in range(len(q))]
        )

    return mistaken


def at_the_end(x):
    """Every token's decay at once, at the last of its mini-batch."""
    alpha = 0 * x["alpha"]
    alpha[-1] = 1 - np.prod(1 - x["alpha"])
    return {"alpha": alpha}


def alike(name):
    """One number for all of them."""
    return partial(_alike, name)


def _alike(name, x):
    return {name: 0 * x[name] + x[name].sum() / len(x[name])}


def unbiased(x):
    """A variance over D - 1: as a LayerNorm whose weight is shorter."""
    D = x["w"].shape[-1]
    return {"w": x["w"] * np.sqrt((D - 1) / D)}


def slip(name, doc, alter):
    return Mutant(name, doc, "step", alter)


TTT = (
    slip("mask_missing", "a token sees the whole mini-batch, not what came before it [20]", whole_mini_batch),
    slip("unbiased_variance", "the LayerNorm divides by D - 1 [20]", taking(unbiased)),
    slip("target_is_v", "the target is v, not v - k [20]", taking(lambda x: {"v": x["v"] + x["k"]})),
)
TITANS = (
    slip("decay_at_the_end", "the whole mini-batch's decay at its last token [20]", taking(at_the_end)),
    slip("momentum_missing", "every step by itself [20]", taking(lambda x: {"eta": 0 * x["eta"]})),
    slip("one_step_for_all", "the mini-batch's mean step for every token [20]", taking(alike("theta"))),
)
MESA = (
    slip("one_ridge_for_all", "one ridge for all channels [20]", taking(alike("lamb"))),
    slip("stopped_early", "three steps of conjugate gradients [20]", taking(
        lambda x: {"solver": "cg", "iterations": 3, "eps": 1e-5, "x0": "zero"})),
    slip("weight_missing", "every token's loss weighs 1 [7]", taking(lambda x: {"beta": 0 * x["beta"] + 1})),
)  # fmt: skip
LACT = (
    slip("order_swapped", "a chunk's queries see the other side of its update [3]", taking(
        lambda x: {"order": "update_first" if x["order"] == "apply_first" else "apply_first"})),
    slip("rows_not_rescaled", "no row brought back to its length [20]", taking(lambda x: {"weight_norm": "none"})),
    slip("one_rate_for_all", "the chunk's mean step for every token [20]", taking(alike("lr1"))),
    slip("eps_of_the_other", "the rescaling's eps under the root, Newton-Schulz of both at once [20]", taking(
        lambda x: {"convention": "fused" if x["convention"] != "fused" else "reference"})),
)  # fmt: skip
