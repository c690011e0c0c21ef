"""The rule of a memory that learns by mini-batches, as numbers that a kernel can branch on."""

from __future__ import annotations

LINEAR, MLP, SWIGLU = range(3)
GELU, SILU = range(2)
SQUARED, DOT, HUBER, POWER = range(4)
DURING, BEFORE, AFTER = range(3)  # the queries see the weights of their own token, of the start, of the end
PLAIN, RESIDUAL_QUERY, RESIDUAL_OUTPUT = range(3)  # o = Z;  q + LN(Z);  Z + LN(Z)
NO_NORM, POST_NORM, PRE_NORM = range(3)
RULE = (
    "model", "act", "loss", "read", "output", "inner", "bias", "decays", "momentum", "before",
    "muon", "grouped", "overwrite", "weight_norm", "norm_inside", "by_channel", "backwards",
)  # fmt: skip
