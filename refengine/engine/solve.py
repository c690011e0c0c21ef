"""`refengine.solve`: the main road in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..frontend.gates import Gate
from ..frontend.norm import L2Norm
from ..frontend.pairing import Conv
from .problem import Asked, build
from .run import Progress, execute
from .solution import Solution


def solve(
    op: str,
    *,
    scale: float | None = None,
    initial_state: Any = None,
    cu_seqlens: Any = None,
    use_qk_l2norm: bool | L2Norm = False,
    key_shift: int = 0,
    query_shift: int = 0,
    value_shift: int = 0,
    tie_values: bool = False,
    conv_q: Conv | None = None,
    conv_k: Conv | None = None,
    conv_v: Conv | None = None,
    pairing_state: Mapping[str, Any] | None = None,
    gate: Gate | None = None,
    beta_logits: Any = None,
    allow_neg_eigval: bool = False,
    precision: str = "float64",
    device: str = "cpu",
    form: str = "auto",
    convention: str | None = None,
    states_at: Sequence[int] | None = None,
    allow_nonfinite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    **tensors: Any,
) -> Solution:
    """The exact outputs of an op, with a rigorous bound on how wrong they are.

    Parameters
    ----------
    op
        A name of `refengine ops`, such as "gated_delta_rule".
    **tensors
        The op's inputs by name (`refengine ops NAME` lists them), [B, T, heads, channels]: NumPy, torch, jax, or
        anything with `__array__` or `__dlpack__`; bfloat16, float16, float8, float32 or float64, widened exactly.
        Also the op's own options.
    scale
        Of the read-out. None: what the op's paper says (`refengine ops NAME`), K^-1/2 for most.
    initial_state
        [N, HV, K, V]; None for zeros. N is B, or the number of packed sequences.
    cu_seqlens
        [N + 1] integer offsets of the sequences packed into one row, from 0 to T; empty sequences are allowed. B must
        be 1.
    use_qk_l2norm
        Normalise queries and keys, after any convolution: True for x / sqrt(|x|^2 + 1e-6), or an `L2Norm(eps, place)`.
    key_shift, query_shift, value_shift
        Replace k_t by k_{t - n} and so on, within each sequence; zeros, or the carried tokens, come before its start.
    tie_values
        Set v to k as it was before shift and convolution; any v given is not used.
    conv_q, conv_k, conv_v
        Short causal convolutions, each a `Conv(weight, bias, activation, state)`.
    pairing_state
        {"k": [N, channels, width - 1 + shift], ...}: tokens before each sequence, as `Solution.pairing_state` returns
        them.
    gate, beta_logits, allow_neg_eigval
        Instead of g: `Gate(a, A_log, dt_bias, lower_bound)`. Instead of beta: its logits; beta = sigmoid, doubled
        with allow_neg_eigval.
    precision
        "float64"; "float32": the same recurrence in float32 from inputs rounded once, with its own bound; "certified":
        in double-double, about a hundred bits, and rounded to float64 at the end (`Solution.low` has the rest).
    device
        "cpu"; "cuda": an NVIDIA GPU, with the same bits (float64 or float32, K up to 256; needs `refengine[cuda]`);
        "auto": the GPU if it can, the CPU if not, and `info["plan"]` says why.
    convention
        Where official codes disagree: one of the op's named presets. None: its first.
    states_at
        [t, ...]: also return the state after t tokens of each sequence.
    allow_nonfinite
        Take NaN and infinities as they come.
    threads
        How many; None for every core this process may use. The answer has the same bits for any number.
    progress
        Called as progress(done, total) from the working threads.

    Returns
    -------
    Solution

    Raises
    ------
    refengine.InputError
        A tensor or option does not fit; one sentence that names it, the axis and both numbers.
    refengine.UnavailableError
        There is no GPU here that could run device="cuda"; one sentence that says what is missing.

    Warns
    -----
    refengine.GrowingGateWarning
        A log gate is positive.
    refengine.StepSizeWarning
        A step (beta of a delta rule) is below 0 or above 2.
    """
    asked = Asked(
        scale=scale,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
        use_qk_l2norm=use_qk_l2norm,
        key_shift=key_shift,
        query_shift=query_shift,
        value_shift=value_shift,
        tie_values=tie_values,
        conv_q=conv_q,
        conv_k=conv_k,
        conv_v=conv_v,
        pairing_state=pairing_state,
        gate=gate,
        beta_logits=beta_logits,
        allow_neg_eigval=allow_neg_eigval,
        precision=precision,
        device=device,
        form=form,
        convention=convention,
        states_at=states_at,
        allow_nonfinite=allow_nonfinite,
    )
    return execute(build(op, tensors, asked), threads, progress)
