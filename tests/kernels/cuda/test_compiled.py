"""The CUDA kernels without a GPU: they compile and link for two generations as they do where there is one (optimised at
link time), keep their state in registers, and fuse no product with a sum but where the definition does. What they
compute is tests/engine/test_delta_cuda.py."""

import re
from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from spanning import case, problem

from refengine import ops
from refengine.engine.delta import Operands
from refengine.engine.prepare import prepare
from refengine.spec import Delta

pytest.importorskip("numba_cuda", reason="refengine[cuda] is not installed")

from cuda.bindings import nvjitlink
from numba import cuda, float32, float64, int64, types
from numba.cuda import dispatcher

from refengine.kernels.cuda import conv
from refengine.kernels.cuda import delta as kernel
from refengine.kernels.cuda import delta_grad as backwards
from refengine.kernels.cuda import mesa as exact
from refengine.kernels.delta import ERASE, ERASE_IS_KEY, NO_ERASE

K = 128
ARCHITECTURES = {(8, 0): "sm_80", (9, 0): "sm_90"}
KINDS = {"float32": float32, "float64": float64}
MOST = {"float32": 96, "float64": 184}  # registers of a thread; what keeps 5 blocks, or 2, on one multiprocessor


def rules():
    """(micro, pre, erase, wide, wide_b) of every kernel that an op can ask for."""
    found = set()
    for name in ops.NAMES:
        for convention in ops.get(name).conventions:
            lowered, _ = prepare(problem(name, case(name, T=1, B=1) | {"convention": convention}))
            if isinstance(lowered, Delta):
                x = Operands.of(lowered)
                found.add((x.micro, x.pre, x.erase, x.arrays[3].shape[3] > 1, False))
    return [*sorted(found), (1, False, 1, False, True)]


RULES = rules()


def array(kind, rank):
    return types.Array(kind, rank, "C")


def recurrence(kind):
    """The recurrence's signature: vectors, gates and numbers in, tables, state, and what is written."""
    x, gate, table = array(kind, 1), array(float64, 1), [array(int64, 3), array(int64, 1), array(int64, 2)]
    return types.void(x, x, x, gate, x, gate, kind, int64, *table, array(kind, 4), x, x, x, array(kind, 3))


def bound(kind):
    x, gate, table = array(kind, 1), array(float64, 1), [array(int64, 3), array(int64, 1), array(int64, 2)]
    three = [array(kind, 3)] * 3
    return types.void(x, gate, x, x, int64, *table, x, x, x, *three, x)


def backward(kind):
    """The signature of the backward sweep."""
    x, gate, table = array(kind, 1), array(float64, 1), [array(int64, 3), array(int64, 1), array(int64, 2)]
    return types.void(x, x, x, gate, gate, x, kind, int64, *table, array(kind, 4), x, array(kind, 3))


def over_rows(kind):
    return types.void(array(int64, 2), *[array(kind, 1)] * 4)


def packing(kind):
    x, gate, table = array(kind, 1), array(float64, 1), [array(int64, 3), array(int64, 1), array(int64, 2)]
    return types.void(x, x, x, gate, gate, x, kind, *table, x, x, x)


def gathering(kind):
    return types.void(array(kind, 1), int64, array(int64, 2), array(int64, 1), int64, array(kind, 1))


def squaring(kind):
    return types.void(int64, array(kind, 4), array(kind, 3))


def adjoint(rule, kind, K, V):
    """(kernel, signature) of all that the gradients of one rule need."""
    micro, pre, erase, wide, wide_b = rule
    return [
        (backwards.back(K, kind, *rule), backward(kind)),
        (backwards.replay(K, V, kind, pre, erase != NO_ERASE, True), over_rows(kind)),
        (backwards.rewind(K, V, kind, pre, erase == ERASE_IS_KEY, True), over_rows(kind)),
        (backwards.pack(K, V, kind, micro, erase, wide, wide_b), packing(kind)),
        (backwards.gather(K, kind, micro, not wide, 1, 2), gathering(kind)),
        (backwards.squared(K, kind), squaring(kind)),
    ]


# With their own erase vector and decays by channel, in both orders; with the key and with nothing, one decay each.
HARDEST = [(1, False, ERASE, True, False), (2, True, ERASE, True, False)]
HARDEST += [(1, False, ERASE_IS_KEY, False, False), (1, False, NO_ERASE, False, False)]


@cache
def compiled(made, signature, capability):
    """What a linker that optimises takes."""
    bounds = made.targetoptions["launch_bounds"]
    options = {"cc": capability, "output": "ltoir", "device": False, "abi": "numba", "launch_bounds": bounds}
    with patch.object(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=capability)):
        return cuda.compile(made.py_func, signature, **options)[0]  # a part of a kernel asks the device that runs it


def linked(made, signature, capability, *options):
    """The linker's own words, and its handle, which has the result."""
    code = compiled(made, signature, capability)
    given = [f"-arch={ARCHITECTURES[capability]}", "-lto", "-verbose", *options]
    handle = nvjitlink.create(len(given), given)
    nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), "kernel")
    nvjitlink.complete(handle)
    log = bytearray(nvjitlink.get_info_log_size(handle))
    nvjitlink.get_info_log(handle, log)
    return log.decode(), handle


def ptx(made, signature, capability=(9, 0), *options):
    """The linked program in the assembler's language."""
    _, handle = linked(made, signature, capability, "-ptx", *options)
    text = bytearray(nvjitlink.get_linked_ptx_size(handle))
    nvjitlink.get_linked_ptx(handle, text)
    nvjitlink.destroy(handle)
    return text.decode()


def registers(made, signature, capability):
    """How many a thread has, where nothing is spilled and nothing lies in local memory."""
    said, handle = linked(made, signature, capability)
    nvjitlink.destroy(handle)
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert tuple(int(n) for n in stack.groups()) == (0, 0, 0)
    return int(re.search(r"Used (\d+) registers", said)[1])


def of_one_step():
    """(rule, kind) with one micro-step a token, which no register depends on."""
    return [(rule, kind) for rule in sorted({(1, *rule[1:]) for rule in RULES}) for kind in KINDS]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=ARCHITECTURES.get)
@pytest.mark.parametrize(("rule", "kind"), of_one_step(), ids=str)
def test_the_state_stays_in_registers(rule, kind, architecture):
    made = kernel.recur(K, KINDS[kind], *rule)
    assert registers(made, recurrence(KINDS[kind]), architecture) <= MOST[kind]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=ARCHITECTURES.get)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pre", [False, True])
def test_the_bound_stays_in_registers(pre, kind, architecture):
    made = kernel.follow(KINDS[kind], 1, pre, False)
    assert registers(made, bound(KINDS[kind]), architecture) <= MOST[kind]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=ARCHITECTURES.get)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", HARDEST, ids=str)
def test_the_adjoints_states_stay_in_registers(rule, kind, architecture):
    for made, signature in adjoint(rule, KINDS[kind], K, K)[: 3 if rule is not HARDEST[0] else None]:
        assert registers(made, signature, architecture) <= MOST[kind]


@pytest.mark.parametrize("K", [1, 6, 33, 256])
def test_every_size_compiles(K):
    made = kernel.recur(K, float64, *RULES[0])
    registers(made, recurrence(float64), (9, 0))
    rows, sweeps = kernel.segment(K), 3  # prediction, squares, update and read-out with two of them
    assert ptx(made, recurrence(float64)).count("fma.rn.f64") == rows * (sweeps + 1)


ARITHMETIC = re.compile(r"^\s*(fma|mul|add|sub|div|sqrt|mov|neg|abs)\.((?:\w+\.)*f(?:32|64))\s+([^;]*);", re.MULTILINE)


def operations(text):
    """[(operation, whether its rounding is spelled, registers)] of the floating-point instructions, in order."""
    return [(m[1], "rn" in m[2], re.findall(r"%fd?\d+", m[3])) for m in ARITHMETIC.finditer(text)]


def fusible(text):
    """Sums that the linker may still contract: neither they nor the product that feeds them spell their rounding."""
    products, found = set(), []
    for name, spelled, (to, *given) in (x for x in operations(text) if x[2]):
        if (name == "mul" and not spelled) or (name in ("mov", "neg") and given and given[0] in products):
            products.add(to)
        if name in ("add", "sub") and not spelled and products & set(given):
            found.append((name, to, *given))
    return found


def unfused(made, signature):
    """The kernel linked with no contraction at all."""
    return ptx(made, signature, (9, 0), "-fma=0")


def names(text):
    return [name for name, _, _ in operations(text) if name != "mov"]


@pytest.mark.parametrize(("rule", "kind"), [*((rule, "float64") for rule in RULES), (RULES[-1], "float32")], ids=str)
def test_nothing_is_fused_but_by_fma(rule, kind):
    """Allowing contraction changes no instruction, and leaves the assembler nothing to contract."""
    made, signature = kernel.recur(6, KINDS[kind], *rule), recurrence(KINDS[kind])
    text = ptx(made, signature)
    assert names(text) == names(unfused(made, signature))
    assert "fma" in names(text)
    assert fusible(text) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pre", [False, True])
def test_nothing_of_the_bound_is_fused_but_by_fma(pre, kind):
    made, signature = kernel.follow(KINDS[kind], 1, pre, False), bound(KINDS[kind])
    text = ptx(made, signature)
    assert names(text) == names(unfused(made, signature))
    assert fusible(text) == []


@pytest.mark.parametrize(("rule", "kind"), [*((rule, "float64") for rule in HARDEST), (HARDEST[1], "float32")], ids=str)
def test_nothing_of_the_adjoint_is_fused_but_by_fma(rule, kind):
    for made, signature in adjoint(rule, KINDS[kind], 6, 7):
        text = ptx(made, signature)
        assert names(text) == names(unfused(made, signature))
        assert fusible(text) == []


def learner(kind):
    """(kernel, signature) of what builds the exact learner's systems, and of what solves them."""
    one, two, three = (array(kind, rank) for rank in (1, 2, 3))
    return [
        (exact.advance(kind), types.void(two, one, one, one, two, three)),
        (exact.solve(K, kind), types.void(three, two, three, two)),
    ]


def convolutions():
    one, two = array(float64, 1), array(float64, 2)
    signature = types.void(two, two, one, float64, float64, two, two)
    return [(conv.short_conv(silu, not silu), signature) for silu in (True, False)]


@pytest.mark.parametrize("kind", [*KINDS, "convolution"])
def test_the_learners_systems_and_the_convolution(kind):
    for made, signature in convolutions() if kind == "convolution" else learner(KINDS[kind]):
        most = MOST["float64" if kind == "convolution" else kind]
        assert all(registers(made, signature, architecture) <= most for architecture in ARCHITECTURES)
        text = ptx(made, signature)
        assert names(text) == names(unfused(made, signature))
        assert fusible(text) == []


def test_a_product_that_feeds_a_sum_is_seen():
    """The two checks above fail where they should."""

    def careless(x):
        x[0] = x[1] * x[2] + x[3]

    made = cuda.jit(careless, launch_bounds=32)
    signature = types.void(array(float64, 1))
    text = ptx(made, signature)
    assert names(text) == ["fma"]
    assert names(unfused(made, signature)) == ["mul", "add"]
    assert fusible("mul.f64 %fd1, %fd2, %fd3;\nadd.f64 %fd4, %fd1, %fd5;\n") == [("add", "%fd4", "%fd1", "%fd5")]
    assert fusible("mul.rn.f64 %fd1, %fd2, %fd3;\nadd.f64 %fd4, %fd1, %fd5;\n") == []
    assert fusible(unfused(made, signature)) == []
