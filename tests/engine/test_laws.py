"""Laws that hold to the last bit: how a problem is cut, packed, ordered or spread over threads is no part of its
answer."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from spanning import case, family

import refengine
from refengine import ops
from refengine.engine import delta as running
from refengine.engine import softmax
from refengine.engine.run import CERTIFIED
from refengine.kernels import fast_grad, fast_rule
from refengine.kernels._products import panel_shape

TOKENS = 11
BATCHED = tuple(name for name in ops.NAMES if "chunk_size" in ops.get(name).options)
WHOLE_HEADS = ("mesa_net", "gated_kalmanet", *BATCHED)  # whose value columns share too much work to be cut


def same(x, y):
    if isinstance(x, tuple):
        assert len(x) == len(y)
        for one, other in zip(x, y, strict=True):
            same(one, other)
        return
    assert x.shape == y.shape
    assert x.tobytes() == y.tobytes()


def each(f, state, *more):
    """f(state, ...) of every state of an op, however many."""
    return tuple(f(x, *more) for x in state) if isinstance(state, tuple) else f(state, *more)


def paired(name, arguments, seed=5):
    """The same case with its key shifted by one and short convolutions on q, k and v."""
    rng = np.random.default_rng(seed)
    op = ops.get(name)
    out = dict(arguments, key_shift=1, use_qk_l2norm=True)
    for letter, role in (("q", "query"), ("k", "key"), ("v", "value")):
        x = arguments[op.role(role)[0].name]
        channels = x.shape[2] * x.shape[3] * (arguments.get("num_householder", 1) if letter != "q" else 1)
        out[f"conv_{letter}"] = refengine.Conv(rng.standard_normal((channels, 3)), rng.standard_normal(channels))
    return out


def tokens(name, arguments, t0, t1):
    """The case from token t0 to t1, without what it starts from."""
    part = {}
    for n, x in arguments.items():
        layout = (
            next((t.layout(x.ndim) for t in ops.get(name).inputs if t.name == n), None) if n in arrays(name) else None
        )
        if layout is None or "B" not in layout:
            part[n] = x
        else:
            per = arguments.get("num_householder", 1) if "T*n" in layout else 1
            part[n] = x[:, t0 * per : t1 * per]
    return part


def arrays(name):
    return {t.name for t in ops.get(name).inputs}


@pytest.mark.parametrize("name", [n for n in ops.NAMES if ops.get(n).states])
@pytest.mark.parametrize("pair", [False, True], ids=["plain", "paired"])
def test_split_anywhere_and_carry_the_state(name, pair):
    whole = case(name, T=TOKENS)
    whole = paired(name, whole) if pair else whole
    s = refengine.solve(name, **whole)
    for cut in range(0, TOKENS + 1, whole.get("chunk_size", 1)):
        a = refengine.solve(name, **tokens(name, whole, 0, cut))
        rest = dict(
            tokens(name, whole, cut, TOKENS), initial_state=a.final_state, pairing_state=a.pairing_state or None
        )
        b = refengine.solve(name, **rest)
        same(np.concatenate([a.o, b.o], axis=1), s.o)
        same(b.final_state, s.final_state)
        for key in s.pairing_state:
            same(b.pairing_state[key], s.pairing_state[key])


@pytest.mark.parametrize("name", ops.NAMES)
def test_states_at_are_the_final_states_of_prefixes(name):
    whole = case(name, T=TOKENS)
    s = refengine.solve(name, **whole, states_at=[4, 0, TOKENS, 4])
    for i, t in enumerate((4, 0, TOKENS, 4)):
        same(each(np.take, s.states, i, 0), refengine.solve(name, **tokens(name, whole, 0, t)).final_state)


@pytest.mark.parametrize("name", ops.NAMES)
@pytest.mark.parametrize("pair", [False, True], ids=["plain", "paired"])
def test_packed_equals_separate(name, pair):
    cu = [0, 3, 3, 4, 11]
    whole = case(name, cu_seqlens=cu)
    whole = paired(name, whole) if pair else whole
    s = refengine.solve(name, **whole)
    for n, (t0, t1) in enumerate(pairwise(cu)):
        one = {k: x for k, x in tokens(name, whole, t0, t1).items() if k != "cu_seqlens"}
        if "initial_state" in whole:
            one["initial_state"] = each(np.take, whole["initial_state"], [n], 0)
        alone = refengine.solve(name, **one)
        same(s.o[:, t0:t1], alone.o)
        same(each(np.take, s.final_state, [n], 0), alone.final_state)
        same(s.bound["o"][:, t0:t1], alone.bound["o"])


def permuted(name, arguments, axis_letters, order):
    out = {}
    for n, x in arguments.items():
        layout = (
            next((t.layout(x.ndim) for t in ops.get(name).inputs if t.name == n), None) if n in arrays(name) else None
        )
        layout = ("N", "HV") if n == "initial_state" else layout
        axis = next((i for i, a in enumerate(layout or ()) if a in axis_letters), None)
        out[n] = x if axis is None else each(np.take, x, order, axis)
    return out


@pytest.mark.parametrize("name", [n for n in ops.NAMES if n not in ("retention", "lightning_attn")])
def test_permuting_heads_permutes_outputs(name):
    whole = case(name, H=3, HV=3, T=TOKENS)
    order = [2, 0, 1]
    s, t = refengine.solve(name, **whole), refengine.solve(name, **permuted(name, whole, ("H", "HV"), order))
    same(np.take(s.o, order, axis=2), t.o)
    same(each(np.take, s.final_state, order, 1), t.final_state)
    same(np.take(s.bound["o"], order, axis=2), t.bound["o"])


@pytest.mark.parametrize("name", ops.NAMES)
def test_permuting_rows_permutes_outputs(name):
    whole = case(name, B=3, T=TOKENS)
    order = [1, 2, 0]
    s, t = refengine.solve(name, **whole), refengine.solve(name, **permuted(name, whole, ("B", "N"), order))
    same(np.take(s.o, order, axis=0), t.o)
    same(each(np.take, s.final_state, order, 0), t.final_state)


@pytest.mark.parametrize("name", ops.NAMES)
def test_shared_key_heads_are_repeated_key_heads(name):
    whole = case(name, H=2, HV=4, T=TOKENS)
    many = {}
    for n, x in whole.items():
        layout = (
            next((t.layout(x.ndim) for t in ops.get(name).inputs if t.name == n), None) if n in arrays(name) else None
        )
        many[n] = np.repeat(x, 2, axis=layout.index("H")) if layout and "H" in layout else x
    same(refengine.solve(name, **whole).o, refengine.solve(name, **many).o)


@pytest.mark.parametrize("name", ops.NAMES)
@pytest.mark.parametrize("shape", [dict(B=2, H=2, HV=4), dict(B=1, H=1, HV=1, V=45)], ids=["heads", "columns"])
def test_threads_do_not_touch_the_bits(name, shape, monkeypatch):
    monkeypatch.setattr(running, "SPAN", 4)  # so that tasks meet at their span ends
    monkeypatch.setattr(softmax, "BLOCK", 4)
    whole = case(name, T=TOKENS, **shape)
    s, t = (refengine.solve(name, **whole, threads=n) for n in (1, 2))
    if shape["HV"] == 1 and name in WHOLE_HEADS:
        assert t.info["threads"] == 1
        return
    assert (s.info["threads"], t.info["threads"]) == (1, 2)
    same(s.o, t.o)
    same(s.final_state, t.final_state)
    same(tuple(s.bound.values()), tuple(t.bound.values()))


def test_a_kernel_is_compiled_where_ctrl_c_is_heard(monkeypatch):
    """By the caller's thread, before any task: once for each job's own kernel and types."""
    asked = []

    def noted(self):
        before = len(running.COMPILED)
        compile_(self)
        asked.append((self.plan.threads, len(running.COMPILED) - before))

    compile_ = running.Job.compile
    monkeypatch.setattr(running, "COMPILED", set())
    monkeypatch.setattr(running.Job, "compile", noted)
    x = case("delta_rule", T=5, H=2)
    for precision in ("float64", "certified", "float64", "float32", "certified"):
        refengine.solve("delta_rule", **x, precision=precision, threads=2)
    assert asked == [(2, 1), (2, 1), (2, 0), (2, 1), (2, 0)]


@pytest.mark.parametrize("name", ops.NAMES)
def test_layout_and_dtype_of_the_input_do_not_matter(name):
    """Transposed memory, and bfloat16 against the same numbers widened by hand."""
    import ml_dtypes

    whole = case(name, T=TOKENS)

    def turned(given, change):
        kinds = np.ndarray, tuple
        return {n: each(change, x) if isinstance(x, kinds) and n != "cu_seqlens" else x for n, x in given.items()}

    small = turned(whole, lambda x: x.astype(ml_dtypes.bfloat16))
    wide = turned(small, lambda x: x.astype(np.float64))
    strided = turned(wide, np.asfortranarray)
    s = refengine.solve(name, **small)
    for other in (refengine.solve(name, **wide), refengine.solve(name, **strided)):
        same(s.o, other.o)
        same(s.bound["o"], other.bound["o"])


def test_window_and_span_do_not_touch_the_bits(monkeypatch):
    """A sequence longer than several windows and spans, in one piece and in spans of odd lengths."""
    whole = case("kda", T=150, K=9, V=20, H=1, HV=1, B=1)
    s = refengine.solve("kda", **whole)
    monkeypatch.setattr(running, "SPAN", 37)
    t = refengine.solve("kda", **whole)
    same(s.o, t.o)
    same(s.bound["o"], t.bound["o"])
    same(s.bound["final_state"], t.bound["final_state"])


def digest():
    """One hash over outputs and bounds of every op, in every precision; and over what those sizes are too narrow for:
    activations and products by whole vectors."""
    h = hashlib.sha256()
    rng = np.random.default_rng(0)
    for act in (fast_rule.GELU, fast_rule.SILU):
        X, D = np.zeros((3, 19)), np.zeros((3, 38))
        fast_grad.activate(rng.standard_normal((3, 38)), X, D, fast_rule.SWIGLU, act)
        h.update(X.tobytes() + D.tobytes())
    C, panel = np.zeros((9, 75)), np.zeros(panel_shape(8))
    fast_grad.product(C, rng.standard_normal((600, 9)), 1, rng.standard_normal((75, 600)), 1, panel)
    h.update(C.tobytes())
    for name in ops.NAMES:
        several = ("float64", "float32", "certified") if family(name) in CERTIFIED else ("float64", "float32")
        for precision in several[:1] if name in BATCHED else several:  # their kernel compiles for long, thrice here
            s = refengine.solve(name, **paired(name, case(name, T=5, K=6, V=11, B=1)), precision=precision, threads=1)
            for x in (s.o, *s.finals.values(), *s.bound.values(), *s.low.values()):
                h.update(x.tobytes())
    return h.hexdigest()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the targets named are x86-64's")
def test_every_instruction_set_gives_the_same_bits(tmp_path):
    found = {}
    for cpu in ("generic", "x86-64-v3", None):
        env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | {"NUMBA_CACHE_DIR": str(tmp_path)}
        env["PYTHONPATH"] = os.pathsep.join(
            [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__)), *sys.path]
        )
        if cpu is not None:
            env["NUMBA_CPU_NAME"] = cpu
        code = "import test_laws; print(test_laws.digest())"
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        found[cpu] = run.stdout.strip()
    assert len(set(found.values())) == 1, found
