"""A file and the command line as the arguments of `refengine.solve`. Everything in either is understood or refused."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from refengine import Conv, Gate, L2Norm, ops
from refengine.engine.checks import chosen, unused
from refengine.errors import ELSEWHERE, NOT_HERE, InputError, nearest
from refengine.spec import Op, Option

CONVS = ("conv_q", "conv_k", "conv_v")
PAIRED = ("query", "key", "value")  # the roles whose convolutions these are
CONV_PARTS = ("weight", "bias", "state")
GATE_PARTS = ("a", "A_log", "dt_bias")
SCALE_IS_DEFAULT = "K^-1/2"  # how a solution spells the scale that most ops have by default
NOTES = ("format",)  # near to a setting, but the usual note of who wrote the file
NO_CHANGE = {"head_first": "false", "output_final_state": "true"}  # what of another project's arguments holds here
TYPO = 0.8  # how alike two words are that are taken for one, misspelled


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.strip("[]() ").split(",") if part.strip()]


def _scale(text: str) -> float | str:
    return text if text == SCALE_IS_DEFAULT else float(text)


FLAG = (_flag, "true or false")
WHOLE = (int, "a whole number")
NUMBER = (float, "a number")
WORD = (str, "a word")
KINDS: dict[type, tuple[Callable[[str], Any], str]] = {bool: FLAG, int: WHOLE, float: NUMBER, str: WORD}
SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "op": WORD,
    "convention": WORD,
    "scale": (_scale, f"a number, or {SCALE_IS_DEFAULT}"),
    "use_qk_l2norm": FLAG,
    "l2norm_eps": NUMBER,
    "l2norm_place": WORD,
    "key_shift": WHOLE,
    "query_shift": WHOLE,
    "value_shift": WHOLE,
    "tie_values": FLAG,
    "allow_neg_eigval": FLAG,
    "allow_nonfinite": FLAG,
    "states_at": (_whole_numbers, "whole numbers with commas between them"),
    "precision": WORD,
    "device": WORD,
    "form": WORD,
    "gate.lower_bound": NUMBER,
    **{f"{conv}.activation": WORD for conv in CONVS},
    **{f"{conv}.residual": FLAG for conv in CONVS},
}
DIRECT = {  # arguments of `solve` under the same name
    *("convention", "key_shift", "query_shift", "value_shift", "tie_values", "allow_neg_eigval", "allow_nonfinite"),
    *("states_at", "precision", "device", "form"),
}


@dataclass(frozen=True)
class Question:
    """What is asked: an op, its arguments for `refengine.solve`, the settings they were made from, and the do and dht
    of a question for gradients."""

    op: Op
    settings: dict[str, Any]
    arguments: dict[str, Any]
    cotangents: dict[str, Any]


def settings_known() -> list[str]:
    """Every setting of any op."""
    return [*SETTINGS, *sorted(own_options())]


def own_options() -> dict[str, Option]:
    """Every option that some op has of its own."""
    return {name: rule for op in ops.NAMES for name, rule in ops.get(op).options.items()}


def parsed(name: str, text: str) -> Any:
    """A setting's value; the ops' own options are of their defaults' types."""
    parse, what = SETTINGS[name] if name in SETTINGS else KINDS[type(own_options()[name].default)]
    try:
        return parse(text.strip())
    except (ValueError, KeyError):
        raise InputError(f"{name} is {text!r}; it is {what}.") from None


def from_metadata(metadata: Mapping[str, str], op: Op) -> dict[str, Any]:
    """The settings in a file's metadata. Other keys are the author's own notes, unless one looks like a setting; so is
    what only another op has as an option."""
    known = [*SETTINGS, *op.options]
    for key in metadata:
        if key in known or key in NOTES or metadata[key].strip().lower() == NO_CHANGE.get(key):
            continue
        if key in NOT_HERE or ELSEWHERE.get(key) in SETTINGS:
            raise InputError(f"The metadata has {key!r}, which is no setting{nearest(key, SETTINGS)}.")
        if close := difflib.get_close_matches(key, known, n=1, cutoff=TYPO):
            raise InputError(f"The metadata has {key!r}, which is no setting; did you mean {close[0]!r}?")
    return {key: parsed(key, text) for key, text in metadata.items() if key in known}


def from_assignments(assignments: Iterable[str], op: str | None = None) -> dict[str, Any]:
    """The settings in NAME=VALUE words; op: which one they are for, as far as that is known."""
    settings: dict[str, Any] = {}
    for word in assignments:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--set takes NAME=VALUE; {word!r} has no =.")
        if name not in settings_known():
            known = [*SETTINGS, *ops.get(op.strip()).options] if op else settings_known()
            raise InputError(f"There is no setting {name!r}{nearest(name, known)}.")
        if name in settings:
            raise InputError(f"{name} is set twice.")
        settings[name] = parsed(name, text)
    return settings


def tensor_names(op: Op) -> list[str]:
    """Every tensor a file may hold for this op."""
    names = [t.name for t in op.inputs] + [*state_names(op), "cu_seqlens"]
    names += ["beta_logits"] * ("beta" in names)
    names += [f"gate.{part}" for part in GATE_PARTS] * (len(op.role("decay")) == 1)
    names += [
        f"{conv}.{part}" for role, conv in zip(PAIRED, CONVS, strict=True) if op.role(role) for part in CONV_PARTS
    ]
    return names + [f"pairing_state.{t.name}" for role in PAIRED for t in op.role(role)]


def state_names(op: Op) -> list[str]:
    """What the initial states are called in a file: initial_state, or initial_state.NAME of several."""
    return [name.replace("final", "initial") for name in op.final_names()]


def cotangents_of(op: Op, tensors: Mapping[str, NDArray[Any]], gradients: bool) -> dict[str, Any]:
    """The do and dht of a file, dht.NAME of several states."""
    if not gradients:
        return {}
    several = {f"dht.{t.name}": t.name for t in op.states} if len(op.states) > 1 else {}
    given = {name: tensors[name] for name in ("do", *(several or ("dht",))) if name in tensors}
    if not given:
        raise InputError("--grad needs do [B, T, HV, V] or dht in the file; neither is there.")
    parts = {name: x for name, x in given.items() if name in several}
    return {name: x for name, x in given.items() if name not in parts} | (
        {"dht": {several[name]: x for name, x in parts.items()}} if parts else {}
    )


def check_tensors(op: Op, options: Mapping[str, Any], names: Iterable[str]) -> None:
    """Every tensor of the file has a meaning for this op."""
    known = [*tensor_names(op), "do", *(("dht",) if len(op.states) == 1 else (f"dht.{t.name}" for t in op.states))]
    for name in names:
        if name in settings_known():
            raise InputError(f"{name} is a tensor here, but it is a setting: give it in the metadata, or by --set.")
        if name not in known:
            raise InputError(f"{op.name} takes no tensor {name!r}{unused(op, options, name) or nearest(name, known)}.")


def doubts(asked: Question, tensors: Mapping[str, NDArray[Any]], gradients: bool) -> Iterator[str]:
    """What is legal in a file, and may not be what was meant."""
    owed = [name for name in tensors if name.split(".")[0] in ("do", "dht")]
    if owed and not gradients:
        yield f"Note: {owed[0]} is for gradients, which --grad asks for."
    for name in [t.name for t in asked.op.role("query")[:1] if t.name in tensors]:
        _, T, heads, *_ = (*tensors[name].shape, 0, 0, 0)
        if 1 < T < heads:
            yield f"Warning: {name} has {T} tokens and {heads} heads; the layout is [B, T, heads, channels]."


def conv_of(name: str, tensors: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Conv | None:
    """The short convolution of one tensor, if there is one."""
    parts = {part: tensors.get(f"{name}.{part}") for part in CONV_PARTS}
    rest = [key for key in (*tensors, *settings) if key.startswith(f"{name}.")]
    if parts["weight"] is None:
        if rest:
            raise InputError(f"{rest[0]} is given without {name}.weight [channels, width].")
        return None
    activation = settings.get(f"{name}.activation", "silu")
    return Conv(
        parts["weight"],
        parts["bias"],
        activation=None if activation == "none" else activation,
        state=parts["state"],
        residual=settings.get(f"{name}.residual", False),
    )


def gate_of(tensors: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Gate | None:
    """The raw gate, if there is one."""
    rest = [key for key in (*tensors, *settings) if key.startswith("gate.")]
    if "gate.a" not in tensors:
        if rest:
            raise InputError(f"{rest[0]} is given without gate.a [B, T, HV].")
        return None
    parts = {part: tensors.get(f"gate.{part}") for part in GATE_PARTS}
    return Gate(**parts, lower_bound=settings.get("gate.lower_bound"))


def norm_of(settings: Mapping[str, Any]) -> bool | L2Norm:
    """Whether q and k are normalised, and how."""
    rest = {key.removeprefix("l2norm_"): settings[key] for key in ("l2norm_eps", "l2norm_place") if key in settings}
    if rest and "use_qk_l2norm" not in settings:
        raise InputError(f"l2norm_{next(iter(rest))} is given without use_qk_l2norm.")
    return L2Norm(**rest) if settings.get("use_qk_l2norm", False) else False


def scale_of(op: Op, settings: Mapping[str, Any]) -> float | None:
    """The scale as `solve` takes it."""
    scale: float | str | None = settings.get("scale")
    if scale != SCALE_IS_DEFAULT:
        return float(scale) if scale is not None else None
    convention = op.convention(settings.get("convention"))
    default = op.scale_of.get(convention, op.scale)
    if default != SCALE_IS_DEFAULT:
        by_default = f"{op.name} ({convention}) has {default} by default"
        raise InputError(f"scale is {SCALE_IS_DEFAULT}, but {by_default}; give the number itself.")
    return None


def ask(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], said: Mapping[str, Any], gradients: bool = False
) -> Question:
    """A file's problem, with what the command line said in place of what the file says."""
    if "op" not in said and "op" not in metadata:
        raise InputError(f"The file names no op; give --op NAME (known: {', '.join(ops.names())}).")
    known = ops.get(said.get("op") or metadata["op"].strip())
    settings = {**from_metadata(metadata, known), **said}
    op, options = chosen(known, settings)
    check_tensors(op, options, tensors)
    plain = {t.name for t in op.inputs} | {"initial_state", "cu_seqlens", "beta_logits"}
    arguments: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name in plain}
    several = {t.name: tensors.get(name) for t, name in zip(op.states, state_names(op), strict=True)}
    if len(several) > 1 and any(x is not None for x in several.values()):
        arguments["initial_state"] = several
    arguments |= {name: settings[name] for name in settings if name in DIRECT}
    arguments |= {name: value for name, value in settings.items() if name not in SETTINGS}
    arguments |= {conv: conv_of(conv, tensors, settings) for conv in CONVS}
    prefix = "pairing_state."
    arguments |= {
        "use_qk_l2norm": norm_of(settings),
        "gate": gate_of(tensors, settings),
        "scale": scale_of(op, settings),
        "pairing_state": {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)},
    }
    return Question(op, settings, arguments, cotangents_of(op, tensors, gradients))
