"""Where a candidate departs from the truth: which outputs, the first token, head, sequence and column, and the pattern
of all the rows that are wrong. Where it went wrong is already half the name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..verify.statistics import FAIL, Statistics
from ..verify.verdict import Judge
from ..verify.yardstick import COLUMNS, WINDOW

Array = NDArray[Any]
CHUNKS = (16, 32, 64, 128)
EARLY = 16  # tokens that are the beginning of a sequence
NEAR = 8  # rows around a row that are wrong with it where none is wrong enough alone
MOSTLY = 0.8
GREW = 4.0  # how many times more the last quarter of the wrong tokens is off than the first
ALIKE = 0.1  # of the error that a constant gain may leave

TAIL = "only the partial last chunk"
HINTS = {
    "o": "the scale, the norm of q, which row or head is read, the mask inside a chunk, or the layout of the output",
    "state": "the last gate of a partial chunk, the layout of the state as it leaves, or a state not stored",
    "start": "the gate, beta, a norm, the initial state, or which head goes with which",
    "boundary": "what is carried from chunk to chunk: the state, W, the sums of gates, or the read between chunks",
    "gradient": "a term of the backward pass left out or counted twice, or what is owed to the state between chunks",
    "unwritten": "rows that nothing was written to: a loop or a grid that ends too early, or a store masked away",
    "columns": "a tile of value columns: its bounds, its mask, or where it is stored",
    "later": "what a later sequence or batch row begins with: a state not reset or not its own, or an offset",
    "tail": "what bounds or masks the last, partial chunk",
    "middle": "one token: a state lost or not handed on, a cut between calls, or an index",
}


@dataclass(frozen=True)
class Where:
    """outputs: those that are wrong; right: those that are not. first: batch, sequence, t, head, column, rho, t modulo
    16 to 128, whether it is the last token. rows, of: how many rows of o are wrong. heads, sequences: those with wrong
    rows (of o, else of the state), where not all are; columns likewise. patterns: what the wrong rows have in common,
    each a phrase. gain: the factor by which all of o is off, where there is one. hint: what usually looks like this."""

    outputs: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    first: Mapping[str, Any] | None = None
    rows: int = 0
    of: int = 0
    heads: tuple[int, ...] = ()
    sequences: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    patterns: tuple[str, ...] = ()
    gain: float | None = None
    hint: str = ""


def localise(judge: Judge, found: Sequence[Statistics], got: Mapping[str, Array]) -> Where:
    """Where outputs that can be compared are wrong."""
    bad = {judge.true[s.view].base for s in found if s.level == FAIL}
    wrong = tuple(name for name in got if name in bad)
    right = tuple(name for name in got if name not in bad)
    by_view = {s.view: s for s in found}
    if not wrong:
        return Where(right=right)
    if "o" in wrong:
        return in_tokens(judge, by_view["o"], got["o"], wrong, right)
    if wrong[0] not in judge.forward:
        return in_gradients(judge, found, wrong, right)
    return in_state(judge, by_view, wrong, right)


def in_gradients(judge: Judge, found: Sequence[Statistics], wrong: tuple[str, ...], right: tuple[str, ...]) -> Where:
    """Gradients are wrong, and no output: the last wrong token of the first of them, where the way back begins."""
    s = next(s for s in found if judge.true[s.view].base == wrong[0] and s.level == FAIL)
    view = judge.true[s.view]
    patterns = (
        [f"only {' and '.join(wrong)} of the gradients"] if any(name not in judge.forward for name in right) else []
    )
    if view.kind == "flat":
        return Where(wrong, right, None, patterns=tuple(patterns), hint=HINTS["gradient"])
    mask = marked(s, view.along)
    span = WINDOW if view.kind == "windows" else 1
    state = view.kind == "state"
    heads = few(mask.any(axis=(0, 2) if state else (0, 1)))
    patterns += among(heads, "head")
    first: dict[str, Any] = {"output": wrong[0]}
    if not state:
        late: Any = mask.any(axis=2)
        b = int(np.argmax(late.any(axis=1)))
        t = int(np.flatnonzero(late[b])[-1])
        first |= {"batch": b, "tokens": [t * span, t * span + span - 1], "head": int(np.argmax(mask[b, t]))}
        if late.sum(axis=1).max() == 1:
            patterns.append("one token alone" if span == 1 else f"one window of {span} tokens alone")
        elif late.all():
            patterns.append("every token")
    counts = int(mask.sum()), int(mask.size)
    return Where(wrong, right, first, *counts, heads, patterns=tuple(patterns), hint=HINTS["gradient"])


def in_state(judge: Judge, by_view: Mapping[str, Statistics], wrong: tuple[str, ...], right: tuple[str, ...]) -> Where:
    """The state alone is wrong."""
    name = wrong[0]
    mask, across = marked(by_view[name], 2), marked(by_view[f"{name}{COLUMNS}"], 2)
    each: Any = mask.any(axis=2) if mask.any() else across.any(axis=2)
    n, h = (int(i) for i in np.argwhere(each)[0]) if each.any() else (0, 0)
    columns = few(across.any(axis=(0, 1)))
    patterns = ["only the state, not o"]
    tails = [C for C in CHUNKS if all((t1 - t0) % C for m, (_, t0, t1) in enumerate(judge.segments) if each[m].any())]
    first = {"sequence": n, "head": h, "column": columns[0] if columns else None}
    sequences, heads = few(each.any(axis=1)), few(each.any(axis=0))
    patterns += among(sequences, "sequence") + among(heads, "head") + among(columns, "column")
    if tails and len(judge.segments) > 1 and sequences:
        patterns.append(f"only sequences that no chunk of {tails[0]} ends with")
    return Where(wrong, right, first, 0, 0, heads, sequences, columns, tuple(patterns), None, HINTS["state"])


def in_tokens(judge: Judge, s: Statistics, x: Array, wrong: tuple[str, ...], right: tuple[str, ...]) -> Where:
    """o is wrong."""
    truth = judge.values("o")
    mask = marked(s, 1)
    segments = judge.segments
    per = [mask[b, t0:t1] for b, t0, t1 in segments]
    n = next((n for n, m in enumerate(per) if m.any()), 0)
    b, t0, t1 = segments[n]
    t = int(np.argmax(per[n].any(axis=1))) if t1 > t0 else 0
    h = int(np.argmax(per[n][t])) if t1 > t0 else 0
    off = np.abs(x - truth)
    with np.errstate(invalid="ignore"):
        beyond = ~(off * np.sqrt(truth.shape[-1]) <= s.limits["z"][1] * judge.scale["o"].sigma[..., None])
    columns = few(beyond.any(axis=(0, 1, 2))) if beyond.any() else ()
    row = np.where(np.isnan(off[b, t0 + t, h]), np.inf, off[b, t0 + t, h])
    first = {
        "batch": b,
        "sequence": n,
        "t": t,
        "head": h,
        "column": int(np.argmax(row)),
        "rho": float(s.rho[b, t0 + t, h]),
        "of_chunk": {str(C): t % C for C in CHUNKS},
        "last": t == t1 - t0 - 1,
    }
    heads, sequences = few(mask.any(axis=(0, 1))), few(np.array([m.any() for m in per]))
    gain = gain_of(x, truth)
    patterns = gains(gain) + among(sequences, "sequence") + shared(judge, heads) + among(columns, "column")
    patterns += times([m.any(axis=1) for m in per], s, segments) + shapes(x, truth, mask)
    at_boundary = t > 0 and t % CHUNKS[0] == 0
    hints = {
        "unwritten": mask.any() and not x[mask].any(),
        "columns": bool(columns),
        "later": bool(sequences) and sequences[0] > 0,
        "tail": any(said.startswith(TAIL) for said in patterns),
        "o": len(wrong) == 1 and right,
        "start": t < 2,
        "boundary": at_boundary,
        "middle": True,
    }
    hint = HINTS[next(name for name, fits in hints.items() if fits)]
    counts = int(mask.sum()), int(mask.size)
    return Where(wrong, right, first, *counts, heads, sequences, columns, tuple(patterns), gain, hint)


def marked(s: Statistics, along: int) -> NDArray[np.bool_]:
    """The rows that are wrong: alone, or, where none is, together with those around them."""
    alone = ~(s.rho <= s.limits["rho"][1])
    if alone.any() or not s.rho.size:
        return alone
    squares = np.moveaxis(s.rho, along, -1) ** 2
    near = min(NEAR, squares.shape[-1])
    window = np.lib.stride_tricks.sliding_window_view(squares, near, axis=-1).mean(axis=-1)
    late = window > s.limits["R"][1] ** 2
    spread = np.zeros(squares.shape, bool)
    for i in range(near):
        spread[..., i : i + late.shape[-1]] |= late
    spread = np.moveaxis(spread, -1, along)
    return spread if spread.any() else np.ones(s.rho.shape, bool)


def few(present: Any) -> tuple[int, ...]:
    """Which ones, unless it is all of them."""
    return () if present.all() else tuple(int(i) for i in np.flatnonzero(present))


def among(which: Sequence[int], word: str) -> list[str]:
    """'only head 3', 'only heads 4 to 7', ..."""
    if not which:
        return []
    if len(which) == 1:
        return [f"only {word} {which[0]}"]
    if which[-1] - which[0] == len(which) - 1:
        return [f"only {word}s {which[0]} to {which[-1]}"]
    return [f"only {word}s {', '.join(map(str, which[:8]))}{', ...' if len(which) > 8 else ''}"]


def shared(judge: Judge, heads: Sequence[int]) -> list[str]:
    """Which heads, and whether they are those that share a key head."""
    said = among(heads, "head")
    H, HV = judge.problem.sizes["H"], judge.problem.sizes["HV"]
    if said and HV > H:
        groups = sorted({h // (HV // H) for h in heads})
        if len(heads) == len(groups) * (HV // H):
            said.append(f"all value heads of key head{'s' * (len(groups) > 1)} {', '.join(map(str, groups))}")
    return said


def gain_of(x: Array, truth: Array) -> float | None:
    """The factor c for which x is c times the truth, if there is one but 1."""
    flat, y = x.reshape(-1), truth.reshape(-1)
    size = float(y @ y)
    if not size or not np.isfinite(flat).all():
        return None
    c = float(flat @ y) / size
    before, after = float(((flat - y) ** 2).sum()), float(((flat - c * y) ** 2).sum())
    return c if after < ALIKE**2 * before else None


def gains(c: float | None) -> list[str]:
    if c is None:
        return []
    return (
        ["all zero"] if c == 0 else [f"{c:.4g} times the truth" if c > 0 else f"{c:.4g} times the truth, sign and all"]
    )


def times(wrong: Sequence[Any], s: Statistics, segments: Sequence[tuple[int, int, int]]) -> list[str]:
    """What the wrong tokens of each sequence have in common."""
    hit = [(m, n) for n, m in enumerate(wrong) if m.any()]
    if not hit:
        return []
    total = sum(int(m.sum()) for m, _ in hit)
    if total == 1:
        return ["one token alone"]
    if all(m.all() for m, _ in hit):
        return ["every token", *growth(hit, s, segments)]
    lengths = [len(m) for m, _ in hit]
    starts = [int(np.argmax(m)) for m, _ in hit]
    tails = [C for C in CHUNKS if all(L % C and f >= L // C * C > 0 for L, f in zip(lengths, starts, strict=True))]
    exact = [C for C in tails if all(f == L // C * C for L, f in zip(lengths, starts, strict=True))]
    tails = exact or tails
    if tails:
        return [f"{TAIL} of {' or '.join(map(str, tails))} tokens"]
    if all(f == L - 1 for L, f in zip(lengths, starts, strict=True)):
        return ["only the last token"]
    if all(int(np.flatnonzero(m)[-1]) < EARLY < L for (m, _), L in zip(hit, lengths, strict=True)):
        last = max(int(np.flatnonzero(m)[-1]) for m, _ in hit)
        return [f"only the first {last + 1} tokens of a sequence"]
    repeats = periodic([m for m, _ in hit])
    if repeats:
        return [repeats]
    said = []
    if all(m[f:].mean() >= MOSTLY for (m, _), f in zip(hit, starts, strict=True)):
        multiple = [C for C in CHUNKS if min(starts) and all(f % C == 0 for f in starts)]
        at = f", a multiple of {multiple[-1]}," if multiple else ""
        said.append(f"from token {min(starts)}{at} on" if min(starts) else "every token or nearly")
        said += growth(hit, s, segments)
    elif total <= EARLY:
        said.append(f"{total} tokens alone")
    return said


def periodic(wrong: Iterable[Any]) -> str:
    """'at token 0 of every chunk of 64', where the wrong tokens are those."""
    for C in CHUNKS:
        counts, seen = np.zeros(C), np.zeros(C)
        for m in wrong:
            at = np.arange(len(m)) % C
            counts += np.bincount(at, m, C)
            seen += np.bincount(at, minlength=C)
        late = np.flatnonzero(counts)
        if 0 < len(late) <= C // 4 and seen[late].min() >= 2 and counts[late].sum() >= 0.6 * seen[late].sum() >= 1.5:
            span = f"token {late[0]}" if len(late) == 1 else f"tokens {late[0]} to {late[-1]}"
            return f"at {span} of every chunk of {C}"
    return ""


def growth(hit: Sequence[tuple[Any, int]], s: Statistics, segments: Sequence[tuple[int, int, int]]) -> list[str]:
    """Whether the error grows with t."""
    ratios = []
    for m, n in hit:
        b, t0, t1 = segments[n]
        rho = s.rho[b, t0:t1][m].max(axis=-1)
        quarter = len(rho) // 4
        if quarter >= 4 and np.isfinite(rho).all():
            ratios.append(float(np.median(rho[-quarter:]) / max(np.median(rho[:quarter]), 1e-30)))
    return (
        [f"growing with t, {np.median(ratios):.2g} times from first to last"]
        if ratios and np.median(ratios) > GREW
        else []
    )


def shapes(x: Array, truth: Array, mask: NDArray[np.bool_]) -> list[str]:
    """What the wrong rows hold."""
    rows, true = x[mask], truth[mask]
    said = []
    if np.isnan(rows).any():
        said.append(f"{int(np.isnan(rows).sum())} elements NaN")
    if np.isinf(rows).any():
        said.append(f"{int(np.isinf(rows).sum())} elements infinite")
    zero = ~rows.any(axis=-1) & true.any(axis=-1)
    if zero.any():
        said.append(f"{int(zero.sum())} of the wrong rows are zero")
    return said
