"""Adversarial input families, as data: what hides bugs, what each exposes, and where a suite puts it.

`home` says where a family is met: a regime of cases.py by name, "law" for a relation between several calls that any
case can be put through (the suite file lists them), or "adapter" for what only the harness around a kernel can do.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    what: str
    exposes: str
    home: tuple[str, ...]


FAMILIES = {
    "F1": Family("g = 0 exactly", "terms that a decay damps; an inverse that is never stressed", ("still",)),
    "F2": Family(
        "g = -20, -8, -5, -1e-3, unequal from channel to channel and token to token",
        "factored exponentials, unmasked exponents, the side on which a gate by channel stands",
        ("strong", "unequal"),
    ),
    "F3": Family("raw gate parameters", "the gate's formula, its bias, its sign, its base", ("front",)),
    "F4": Family(
        "T at and beside multiples of the chunk", "tails, masks, carries", ("rich", "one_hot", "packed", "heads")
    ),
    "F5": Family(
        "an initial state that is not symmetric, K = V and K != V", "layout, carry, what is ignored", ("rich", "still")
    ),
    "F6": Family("one call cut in two or many", "hand-over of state and convolution", ("law: split",)),
    "F7": Family("value heads that share key heads, several rows", "head maps, strides", ("heads", "rich")),
    "F8": Family(
        "identical, nearly parallel and orthogonal keys", "inverses", ("same_keys", "parallel_keys", "permuted")
    ),
    "F9": Family(
        "beta = 0, 1/2, 1, 2 and raw logits", "where beta is applied, and how often", ("steps", "front", "one_hot")
    ),
    "F10": Family("key norms 1e-4, 1e-2, 1, 30 and zero rows", "the eps of a norm and its place", ("key_norms",)),
    "F11": Family("packed lengths, also 0 and 1", "segment offsets, resets", ("packed", "permuted")),
    "F12": Family("padding that holds plausible junk", "what is masked", ("padded",)),
    "F13": Family("dirty outputs, strided views, shared buffers", "ownership of memory", ("adapter",)),
    "F14": Family("channels 1, 3, 48, 96, K != V", "tiles and tails in K and V", ("odd", "heads", "wide")),
    "F15": Family("a long sequence", "drift, offsets", ("long",)),
    "F16": Family("one-hot probes", "what can be read by eye", ("one_hot", "permuted")),
    "F17": Family("statistics of a trained model", "what only real inputs reach", ("real",)),
}

LAWS = {
    "split": "cut after any token and carried on, the answer is the whole's",
    "permute_batch": "rows permuted, the answer's rows are",
    "pack": "sequences packed by cu_seqlens have the answers they have alone",
    "decode": "one token a call, the answer is the whole's",
    "repeat": "the same call gives the same bits",
}
