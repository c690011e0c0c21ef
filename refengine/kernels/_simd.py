"""Wide vectors for Numba: a value type lowered to LLVM's `<n x T>` with plain IEEE operations and an explicit fused
multiply-add.

A kernel written over these reads like its equation; LLVM splits a wide vector over the registers the machine has.
Every operation works lane by lane, so the bits do not depend on the number of lanes, on the tile, or on the
instruction set. The number of lanes is a matter of speed alone and follows the target's widest registers.
"""

from __future__ import annotations

import operator
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model


def _vector_bytes() -> int:
    """Bytes in one tile row: several of the target's registers, so that independent sums hide the latency of an add.

    Half as many on a Zen 4, which takes such a register in two steps: as fast, and K = 128 rows of float64 fill half
    of its first-level cache, not all of it.
    """
    features = numba.config.CPU_FEATURES
    name = numba.config.CPU_NAME or ""
    if features is None:
        features = "" if name else llvm.get_host_cpu_features().flatten()
    if "+avx512f" in features or name in ("x86-64-v4", "skylake-avx512", "znver4"):
        return 128 if (name or llvm.get_host_cpu_name()) == "znver4" else 256
    return 64


BYTES = _vector_bytes()
HALF = BYTES // 2  # for kernels with twice the live values
BLOCK = 64


class Vec(types.Type):  # type: ignore[misc]
    """Lanes of one float type, `size` bytes in all."""

    def __init__(self, dtype: types.Float, size: int = BYTES) -> None:
        self.dtype = dtype
        self.lanes = size * 8 // dtype.bitwidth
        super().__init__(name=f"Vec({dtype}, {self.lanes})")

    @property
    def ir(self) -> ir.VectorType:
        return ir.VectorType(ir.DoubleType() if self.dtype == types.float64 else ir.FloatType(), self.lanes)

    @property
    def suffix(self) -> str:
        return f"v{self.lanes}f{self.dtype.bitwidth}"


@register_model(Vec)
class _VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, fe_type.ir)


def _address(context: Any, builder: Any, arrays: Any, array: Any, index: Any, vec: Vec) -> Any:
    data = context.make_array(arrays)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vec.ir.as_pointer())


def _load(vec: Vec, array: Any) -> Any:
    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = builder.load(_address(context, builder, sig.args[0], args[0], args[1], vec))
        value.align = vec.dtype.bitwidth // 8
        return value

    return vec(array, types.intp), code


def _put(array: Any, x: Any) -> Any:
    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        value = context.cast(builder, args[2], sig.args[2], sig.args[0].dtype)
        builder.store(value, builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp, x), code


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The lanes of a contiguous array from flat `index` on."""
    return _load(Vec(array.dtype), array)


@intrinsic
def load_half(typing: Any, array: Any, index: Any) -> Any:
    """Half as many lanes as `load`."""
    return _load(Vec(array.dtype, HALF), array)


@intrinsic
def block(typing: Any, array: Any, index: Any) -> Any:
    """BLOCK bytes of a contiguous array from flat `index` on: the same lanes on every machine, for sums across
    lanes."""
    return _load(Vec(array.dtype, BLOCK), array)


@intrinsic
def take(typing: Any, array: Any, index: Any, like: Any) -> Any:
    """As many numbers of a contiguous array from flat `index` on as make a block of `like`'s type, in that type; or the
    one there, where `like` is a number."""
    if isinstance(like, types.Float):

        def number(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            return context.cast(builder, builder.load(builder.gep(data, [args[1]])), array.dtype, like)

        return like(array, types.intp, like), number
    vec = Vec(like.dtype, BLOCK)
    given = Vec(array.dtype, vec.lanes * array.dtype.bitwidth // 8)
    load_given = _load(given, array)[1]

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = load_given(context, builder, given(*sig.args[:2]), args[:2])
        if given.dtype.bitwidth > vec.dtype.bitwidth:
            return builder.fptrunc(value, vec.ir)
        return builder.fpext(value, vec.ir) if given.dtype.bitwidth < vec.dtype.bitwidth else value

    return vec(array, types.intp, like), code


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Put the lanes into a contiguous array from flat `index` on, rounded to its type where that is narrower; or a
    number, as `put` does."""
    if not isinstance(value, Vec):
        return _put(array, value)
    kept = Vec(array.dtype, value.lanes * array.dtype.bitwidth // 8)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = args[2] if kept.ir == value.ir else builder.fptrunc(args[2], kept.ir)
        put = builder.store(lanes, _address(context, builder, sig.args[0], args[0], args[1], kept))
        put.align = kept.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, value), code


@intrinsic
def at(typing: Any, array: Any, index: Any) -> Any:
    """The number at flat `index` of a contiguous array of any rank."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), code


@intrinsic
def put(typing: Any, array: Any, index: Any, x: Any) -> Any:
    """Write the number at flat `index` of a contiguous array of any rank, rounded to its type."""
    return _put(array, x)


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Have the cache line at flat `index` of a contiguous array brought near. Any index will do: it reads nothing."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.bitcast(
            builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]]), cgutils.voidptr_t
        )
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [pointer, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic
def called(typing: Any) -> Any:
    """Keep the function this stands in a function: called, never copied into its callers, which would each be
    compiled with it."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), code


def _spread(builder: Any, vec: Vec, x: Any) -> Any:
    blank = ir.Constant(vec.ir, ir.Undefined)
    one = builder.insert_element(blank, x, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vec.lanes), [0] * vec.lanes)
    return builder.shuffle_vector(one, blank, zeros)


@intrinsic
def splat(typing: Any, x: Any) -> Any:
    """One number in every lane."""
    vec = Vec(x)

    return vec(x), lambda context, builder, sig, args: _spread(builder, vec, args[0])


@intrinsic
def splat_half(typing: Any, x: Any) -> Any:
    """One number in every lane of half as many."""
    return Vec(x, HALF)(x), lambda context, builder, sig, args: _spread(builder, sig.return_type, args[0])


@intrinsic
def spread(typing: Any, x: Any) -> Any:
    """One number in every lane of a block of BLOCK bytes."""
    vec = Vec(x, BLOCK)

    return vec(x), lambda context, builder, sig, args: _spread(builder, vec, args[0])


@intrinsic
def turn(typing: Any, x: Any, to: Any, base: Any, step: Any) -> Any:
    """The rows of a square of blocks become its columns: entry c of block s of x goes to lane s of the block that
    lies at flat `base + c step` of `to`. Pairs of rows change places in halves, quarters, ... of a block."""
    vec = Vec(x.dtype, BLOCK)
    n = vec.lanes

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word, size = context.get_value_type(types.intp), vec.dtype.bitwidth // 8
        rows = [builder.load(_address(context, builder, sig.args[0], args[0], word(s * n), vec)) for s in range(n)]
        for row in rows:
            row.align = size
        width = 1
        while width < n:
            low = [i + n - width if i & width else i for i in range(n)]
            high = [i + n if i & width else i + width for i in range(n)]
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), n), m) for m in (low, high)]
            for s in (s for s in range(n) if not s & width):
                pair = rows[s], rows[s + width]
                rows[s], rows[s + width] = (builder.shuffle_vector(*pair, m) for m in masks)
            width *= 2
        where = args[2]
        for row in rows:
            builder.store(row, _address(context, builder, sig.args[1], args[1], where, vec)).align = size
            where = builder.add(where, args[3])
        return context.get_dummy_value()

    return types.void(x, to, types.intp, types.intp), code


def _reduce(name: str, start: bool) -> Any:
    """Code that folds the lanes by `llvm.vector.reduce.NAME`; without fast-math flags a sum goes lane by lane in
    order."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vec = sig.args[0]
        one = vec.ir.element
        given = [one, vec.ir] if start else [vec.ir]
        fold = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(one, given), f"llvm.vector.reduce.{name}.{vec.suffix}"
        )
        return builder.call(fold, [ir.Constant(one, -0.0), *args] if start else args)

    return intrinsic(lambda typing, x: (x.dtype(x), code))


largest = _reduce("fmaximum", start=False)  # NaN if any lane is NaN
smallest = _reduce("fminimum", start=False)
total = _reduce("fadd", start=True)


def _lower(emit: Any) -> Any:
    """Intrinsic code from `emit(builder, llvm_type, suffix, args)`, the same for a number and for a vector."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = sig.return_type
        if isinstance(kind, Vec):
            return emit(builder, kind.ir, kind.suffix, args)
        return emit(builder, context.get_value_type(kind), f"f{kind.bitwidth}", args)

    return code


def _call(name: str) -> Any:
    """`emit` for a call of the LLVM intrinsic `name`."""

    def emit(builder: Any, kind: Any, suffix: str, args: Any) -> Any:
        signature = ir.FunctionType(kind, [kind] * len(args))
        return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}"), args)

    return _lower(emit)


def _unary(code: Any) -> Any:
    return intrinsic(lambda typing, x: (x(x), code))


def _binary(code: Any) -> Any:
    return intrinsic(lambda typing, x, y: (x(x, x), code))


@intrinsic
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once; a number stands for a vector of it beside one."""
    kind = next((k for k in (x, y, z) if isinstance(k, Vec)), x)
    fused = _call("fma")

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = [a if k == kind else _spread(builder, kind, a) for k, a in zip(sig.args, args, strict=True)]
        return fused(context, builder, sig, wide)

    return kind(x, y, z), code


negative = _unary(_lower(lambda builder, kind, suffix, args: builder.fneg(args[0])))
sqrt = _unary(_call("sqrt"))
absolute = _unary(_call("fabs"))
maximum = _binary(_call("maximum"))  # NaN if either is NaN
minimum = _binary(_call("minimum"))


@intrinsic
def power_of_two(typing: Any, shifted: Any) -> Any:
    """2^n, |n| <= 1022, from n + 1.5 * 2^52: the low bits of that sum are n, and become the exponent."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        word = _bits(kind)
        bits = builder.shl(builder.bitcast(args[0], word), _every(word, 52))
        return builder.bitcast(builder.add(bits, _every(word, 1023 << 52)), kind)

    return shifted(shifted), code


@intrinsic
def choose(typing: Any, x: Any, this: Any, that: Any) -> Any:
    """`this` where x >= 0, `that` where it is below or NaN; a number stands for a vector of it."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given, *ways = _beside(context, builder, sig, args)
        return builder.select(builder.fcmp_ordered(">=", given, given.type(None)), *ways)

    return x(x, *(k if isinstance(k, Vec) else x.dtype if isinstance(x, Vec) else x for k in (this, that))), code


@intrinsic
def split_exponent(typing: Any, x: Any) -> Any:
    """(m, n) with x = m 2^n and m in [1, 2), for a positive normal x; n as a float64."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(64)
        bits = builder.bitcast(args[0], word)
        mantissa = builder.or_(builder.and_(bits, word((1 << 52) - 1)), word(1023 << 52))
        exponent = builder.sub(builder.lshr(bits, word(52)), word(1023))
        pair = [builder.bitcast(mantissa, ir.DoubleType()), builder.sitofp(exponent, ir.DoubleType())]
        return context.make_tuple(builder, sig.return_type, pair)

    return types.UniTuple(types.float64, 2)(types.float64), code


def _bits(kind: Any) -> Any:
    """The words behind a number's or a vector's type."""
    if isinstance(kind, ir.VectorType):
        return ir.VectorType(_bits(kind.element), kind.count)
    return ir.IntType(64 if isinstance(kind, ir.DoubleType) else 32)


def _every(kind: Any, value: Any) -> Any:
    """One constant, in every lane of a vector."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _magnitude(builder: Any, kind: Any, suffix: str, args: Any) -> Any:
    word = _bits(kind)
    exponent = 0x7FF << 52 if suffix.endswith("64") else 0xFF << 23
    return builder.bitcast(builder.and_(builder.bitcast(args[0], word), _every(word, exponent)), kind)


magnitude = _unary(_lower(_magnitude))
"""The power of two at or below |x| for a normal number; 0 for a subnormal one."""


def _beside(context: Any, builder: Any, sig: Any, args: Any) -> list[Any]:
    """Arguments of which the first is a number or a vector, and numbers stand for vectors of them beside it."""
    kind = sig.args[0]
    return [_spread(builder, kind, a) if k != kind else a for k, a in zip(sig.args, args, strict=True)]


@intrinsic
def between(typing: Any, x: Any, least: Any, most: Any) -> Any:
    """x, but no less than `least` and no more than `most`."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given, low, high = _beside(context, builder, sig, args)
        raised = builder.select(builder.fcmp_ordered(">", given, low), given, low)
        return builder.select(builder.fcmp_ordered("<", raised, high), raised, high)

    return x(x, least, most), code


@intrinsic
def beyond(typing: Any, x: Any, top: Any, instead: Any) -> Any:
    """x, but `instead` above `top`, and -`instead` below -`top`."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given, high, other = _beside(context, builder, sig, args)
        below = builder.select(builder.fcmp_ordered(">", given, high), other, given)
        return builder.select(builder.fcmp_ordered("<", given, builder.fneg(high)), builder.fneg(other), below)

    return x(x, top, instead), code


@intrinsic
def where_unequal(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """z where x and y differ, else y."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_unordered("!=", args[0], args[1]), args[2], args[1])

    return x(x, x, x), code


def _operator(symbol: Any, instruction: str) -> None:
    """Let `symbol` stand between two vectors, or between a vector and a number of its type."""

    @infer_global(symbol)
    class _Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            vec = next((x for x in args if isinstance(x, Vec)), None)
            if vec is not None and all(x in (vec, vec.dtype) for x in args):
                return signature(vec, *args)
            return None

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vec = sig.return_type
        wide = [x if kind == vec else _spread(builder, vec, x) for kind, x in zip(sig.args, args, strict=True)]
        return getattr(builder, instruction)(*wide)

    for left, right in ((Vec, Vec), (Vec, types.Float), (types.Float, Vec)):
        lower_builtin(symbol, left, right)(code)


for _symbol, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, _name)


@infer_global(operator.neg)
class _Negation(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(args[0], args[0]) if isinstance(args[0], Vec) else None


@lower_builtin(operator.neg, Vec)
def _negate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])
