"""Samples and golden suites that are shipped. `path("tiny")` and `goldens("core")` are where they are.

minilm_layer3   512 tokens of real q, k, v (12 heads of 32); its metadata says where they come from.
tiny            made to be read by eye: Gated DeltaNet, one head, K = V = 2, one-hot keys, scale 1, no norm.

    t   k       v             g      beta   q       o
    0   (1, 0)  (8, 16)       0      1      (1, 0)  (8, 16)   written under the first key, and found there
    1   (0, 1)  (32, 64)      0      1      (1, 0)  (8, 16)   another key disturbs nothing
    2   (1, 0)  (2, 4)        0      1      (1, 0)  (2, 4)    the delta rule replaces; a plain sum would give (10, 20)
    3   (0, 1)  (1024, 2048)  -ln 2  0      (0, 1)  (16, 32)  all memory is halved; a step of 0 writes nothing
    4   (0, 1)  (0, 0)        0      1/2    (0, 1)  (8, 16)   a step of 1/2 goes half way, here to zero
    5   (1, 0)  (1, 2)        0      1      (1, 1)  (9, 18)   two keys at once read the sum of what they hold

    final state: (1, 2) under the first key, (8, 16) under the second.

tiny.safetensors: this table by `refengine.io.tensorfile.write`: q, k, v [1, 6, 1, 2] and g, beta [1, 6, 1] in float64,
and the metadata op = gated_delta_rule, scale = 1.0. Nothing is rounded but ln 2.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

NAMES = ("minilm_layer3", "tiny")
TINY_O = ((8, 16), (8, 16), (2, 4), (16, 32), (8, 16), (9, 18))
TINY_FINAL_STATE = ((1, 2), (8, 16))


def path(name: str) -> Path:
    """The file of a sample."""
    if name not in NAMES:
        raise ValueError(f"There is no sample {name!r}; there are {', '.join(NAMES)}.")
    return Path(str(files(__name__).joinpath(f"{name}.safetensors")))


def goldens(suite: str = "core") -> Path:
    """The folder of a golden suite (`refengine golden check DIR`)."""
    return Path(str(files(__name__).joinpath("goldens", suite)))
