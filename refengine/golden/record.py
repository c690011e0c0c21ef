"""One case written down: what case.json says, and the two files of tensors beside it.

inputs.safetensors is a question as `refengine solve` reads it; truth.safetensors the certified answer. Both in C order,
little endian; bfloat16 as BF16. JSON is canonical: sorted keys, no spaces, UTF-8, one newline at the end.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import textwrap
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.prepare import scale_of
from ..spec import Op
from .cases import Case, kind
from .certify import certify
from .draw import key_of
from .exposure import SEEN, exposure
from .families import FAMILIES
from .inputs import arguments
from .problems import as_file, problem
from .schema import VERSION

Array = NDArray[Any]
LICENSE = "CC0-1.0"
LEVELS = {"E": "exact", "1": "lower", "2": "average", "3": "higher", "real": "real"}
CODES = {"bfloat16": "BF16", "float32": "F32", "float64": "F64", "int32": "I32"}
INPUTS, TRUTH = "inputs.safetensors", "truth.safetensors"
HEADS = ("value head h reads key head floor(h H / HV)", "query head h reads key and value head floor(h H / HV)")
READS = ("read after the update with the same token", "by mini-batches, as the equations say")


def canonical(value: Any) -> bytes:
    return (
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(x: Array) -> str:
    """Of a tensor's bytes as the file holds them."""
    return sha256(np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<")).tobytes())


def content(tensors: Mapping[str, Mapping[str, Any]]) -> str:
    """The golden's identity: the SHA-256 of one line for each tensor, in the order of their names:
    NAME DTYPE [SHAPE] SHA256."""
    lines = (
        f"{name} {t['dtype']} [{','.join(map(str, t['shape']))}] {t['sha256']}\n" for name, t in sorted(tensors.items())
    )
    return sha256("".join(lines).encode())


def equations(op: Op) -> list[str]:
    return [line.strip() for line in textwrap.dedent(op.equations).strip("\n").splitlines()]


def definition(op: Op) -> str:
    """What a golden's truth rests on: the op's `step` (a composed one's module), its equations, axes, scale and
    conventions."""
    step = sys.modules[op.step.func.__module__] if isinstance(op.step, partial) else op.step
    said = [inspect.getsource(step), *equations(op), op.scale, *op.conventions, *map(str, op.scale_of.items())]
    said += [f"{t.name}: {t.axes} {t.role}" for t in (*op.inputs, *op.states)]
    return sha256("\n".join(said).encode())


def upward(x: Array) -> NDArray[np.float32]:
    """To float32, never down."""
    y = x.astype(np.float32)
    return np.where(y.astype(np.float64) < x, np.nextafter(y, np.float32(np.inf)), y)


def narrow(x: Array) -> Array:
    return x.astype(x.dtype.newbyteorder("<"))


def entry(x: Array, role: str, file: str, **more: str) -> dict[str, Any]:
    return {
        "role": role,
        "dtype": CODES[x.dtype.name],
        "shape": list(x.shape),
        "file": file,
        "sha256": digest(x),
        **more,
    }


def flags_of(case: Case, a: Mapping[str, Any]) -> list[str]:
    size = case.size
    said = {
        "varlen": bool(case.lengths),
        "initial_state": "initial_state" in a,
        "grouped_heads": size["HV"] != size["H"],
        "k_ne_v": size["K"] != size["V"],
        "gradients": "do" in a,
        "front_end": case.regime.name == "front",
        "l2norm": bool(a.get("use_qk_l2norm")),
    }
    return sorted(name for name, yes in said.items() if yes)


def conventions_of(case: Case, a: Mapping[str, Any]) -> dict[str, Any]:
    """Every convention, spelled."""
    p = problem(case.op.name, a)
    said, (scale, _) = p.conventions(), scale_of(p)
    axes = {t.name: t.layout(a[t.name].ndim) for t in case.op.inputs if t.name in a}
    letters = {n: " ".join(layout or ()) for n, layout in axes.items()}
    out = {"o": "B T HV V"}
    for t, final in zip(case.op.states, case.op.final_names(), strict=True):
        out |= {final: t.axes[0], final.replace("final", "initial", 1): t.axes[0]}
    norm = f"x / sqrt(|x|^2 + {p.norm.eps}), after shift and convolution" if p.norm else "none"
    convs = [n for n in ("conv_q", "conv_k", "conv_v") if n in a]
    taps = "causal, depthwise, [channels, width], the current token's tap last, then bias, then SiLU; after the shift"
    gate = (
        "g = -exp(A_log) softplus(a + dt_bias), then exp(g)" if "gate" in a else "natural logarithm: the decay is exp"
    )
    beta = "sigmoid(beta_logits)" if "beta_logits" in a else "as given" if "beta" in a else "none"
    return {
        "axes": letters | out,
        "convention": said["convention"],
        "scale": scale,
        "scale_hex": scale.hex(),
        "gates": gate if case.op.role("decay") else "none",
        "heads": HEADS[kind(case.op) == "attention"],
        "output": READS[kind(case.op) == "training"],
        "cu_seqlens": "offsets of packed sequences in one row, from 0 to T" if case.lengths else "none",
        "key_shift": int(a.get("key_shift", 0)),
        "l2norm": norm,
        "convolution": f"{', '.join(convs)}: {taps}" if convs else "none",
        "beta": beta,
        "options": dict(p.options),
    }


def asked(case: Case) -> tuple[dict[str, Any], dict[str, Any], tuple[dict[str, Array], dict[str, str]]]:
    """A case's arguments, its do and dht, and the file of both: (tensors, metadata)."""
    a = arguments(case)
    cotangents: dict[str, Any] = {n: a.pop(n) for n in ("do", "dht") if n in a}
    question, metadata = as_file(case.op.name, a)
    more, _ = as_file(case.op.name, cotangents)
    return a, cotangents, ({n: narrow(x) for n, x in (question | more).items()}, metadata)


def written(case: Case, low: bool = False) -> dict[str, Any]:
    """(the case as files hold it): {"case": case.json, "inputs": (tensors, metadata), "truth": tensors}."""
    a, cotangents, (inputs, metadata) = asked(case)
    owing, _ = as_file(case.op.name, cotangents)
    found = certify(case)
    truth = {n: narrow(x) for n, x in found.truth.items()}
    deltas = {f"{n}.delta": upward(x) for n, x in found.delta.items()}
    lows = {f"{n}.lo": x for n, x in found.low.items()} if low else {}
    tensors = {n: entry(x, "cotangent" if n in owing else "input", INPUTS) for n, x in inputs.items()}
    tensors |= {n: entry(x, "truth" if n in found.delta else "gradient", TRUTH) for n, x in truth.items()}
    tensors |= {n: entry(x, "truth_lo", TRUTH, of=n.removesuffix(".lo")) for n, x in lows.items()}
    tensors |= {n: entry(x, "certificate", TRUTH, of=n.removesuffix(".delta")) for n, x in deltas.items()}
    sensitivity, seen, unseen = exposure(case.op, a)
    key = key_of(case.id)
    record = {
        "schema": "refengine.case",
        "schema_version": VERSION,
        "id": case.id,
        "op": {
            "name": case.op.name,
            "title": case.op.title,
            "paper": case.op.paper,
            "equations": equations(case.op),
            "definition_sha256": definition(case.op),
        },
        "tier": case.regime.tier,
        "level": LEVELS[case.regime.tier],
        "regime": case.regime.name,
        "families": sorted(name for name, f in FAMILIES.items() if case.regime.name in f.home),
        "flags": flags_of(case, a | cotangents),
        "conventions": conventions_of(case, a),
        "tensors": tensors,
        "certificate": {"roads": found.roads, "correctly_rounded": found.counts, "unsettled": found.unsettled[:100]},
        "sensitivity": {name: float(f"{x:.3g}") for name, x in sensitivity.items()},
        "exposes": seen,
        "does_not_expose": unseen,
        "does_not_test": sorted(name for name, x in sensitivity.items() if x < SEEN),
        "generator": {
            "key": [f"0x{word:08x}" for word in key],
            "streams": {name: i for i, name in enumerate(case.names)},
        },
        "content_sha256": content(tensors),
        "license": LICENSE,
    }
    return {"case": record, "inputs": (inputs, metadata), "truth": {**truth, **lows, **deltas}}
