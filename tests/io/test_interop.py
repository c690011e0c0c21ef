"""Arrays of other libraries come over bit for bit, keep their dtype, and are refused in words when they cannot."""

import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from refengine.errors import InputError
from refengine.io import interop
from refengine.io.interop import exact_widen, to_numpy

ALL_BITS = {
    "float16": np.arange(1 << 16, dtype=np.uint16).view(np.float16),
    "bfloat16": np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2),
}


def small_float(code, exponent_bits, mantissa_bits, has_infinity):
    """The value of an IEEE-like code, spelled from the definition."""
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = code & ((1 << mantissa_bits) - 1)
    top, bias = (1 << exponent_bits) - 1, (1 << (exponent_bits - 1)) - 1
    if exponent == top and has_infinity:
        return float("nan") if mantissa else sign * float("inf")
    if exponent == top and mantissa == (1 << mantissa_bits) - 1:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * ((1 << mantissa_bits) + mantissa) * 2.0 ** (exponent - bias - mantissa_bits)


FORMATS = {
    "float16": (5, 10, True),
    "bfloat16": (8, 7, True),
    "float8_e4m3fn": (4, 3, False),
    "float8_e5m2": (5, 2, True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_widening_is_exact_for_every_code(name):
    x = ALL_BITS[name]
    wide = exact_widen(x, "q")
    want = np.array([small_float(code, *FORMATS[name]) for code in range(x.size)])
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(want.astype(np.float32).astype(np.float64), want)  # float32 holds them all
    np.testing.assert_array_equal(wide, want.astype(np.float32))
    finite = ~np.isnan(want)
    assert (np.signbit(wide) == np.signbit(want))[finite].all()  # -0 stays -0


def test_wide_floats_pass_without_a_copy():
    for dtype in np.float32, np.float64:
        x = np.arange(12, dtype=dtype).reshape(3, 4).T
        assert exact_widen(x, "q") is x and to_numpy(x, "q") is x
    for dtype in ">f4", ">f8":
        x = np.array([1.5, -2], dtype)
        assert exact_widen(x, "q").dtype == x.dtype.newbyteorder("=") and exact_widen(x, "q").tolist() == [1.5, -2]
    assert exact_widen([1.0, 2.0], "q").dtype == np.float64


@pytest.mark.parametrize("dtype", ["i8", "u1", "?", "c8", "c16", "g", ml_dtypes.int4], ids=str)
def test_only_floats_widen(dtype):
    x = np.ones(2, dtype)
    with pytest.raises(InputError) as caught:
        exact_widen(x, "q")
    words = "it must be a floating dtype (bfloat16, float16, float8, float32, float64)."
    assert str(caught.value) == f"q is {x.dtype}; {words}"
    assert to_numpy(x, "q") is x


@pytest.mark.parametrize("x", ALL_BITS.values(), ids=list(ALL_BITS))
def test_numpy_is_passed_through(x):
    assert to_numpy(x, "q") is x
    assert to_numpy(x[::2], "q").strides == (2 * x.itemsize,)
    assert to_numpy(x[3], "q").dtype == x.dtype and to_numpy(x[3], "q").shape == ()


@pytest.mark.parametrize(
    ("x", "dtype", "shape"),
    [
        (1, "i8", ()),
        (1.5, "f8", ()),
        (True, "?", ()),
        ([[1.0, 2], [3, 4]], "f8", (2, 2)),
        ((1, 2), "i8", (2,)),
        ([], "f8", (0,)),
    ],
)
def test_python_numbers(x, dtype, shape):
    got = to_numpy(x, "q")
    assert (
        got.dtype == np.dtype(dtype) and got.shape == shape and got.tolist() == (list(x) if isinstance(x, tuple) else x)
    )


class OnlyArray:
    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


class OnlyDLPack:
    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


class ElsewhereUntilAsked(OnlyDLPack):
    """Like cupy: the implicit road is refused, DLPack to the CPU is not."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion is not allowed")

    def __dlpack__(self, *, dl_device, **options):
        assert dl_device == (1, 0)  # the CPU
        return self.x.__dlpack__(**options)


@pytest.mark.parametrize("kind", [OnlyArray, OnlyDLPack, ElsewhereUntilAsked])
def test_the_protocols_share_memory(kind):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    got = to_numpy(kind(x), "q")
    assert np.shares_memory(got, x) and got.dtype == x.dtype and (got == x).all()


def test_bits_survive_the_array_protocol():
    got = to_numpy(OnlyArray(ALL_BITS["bfloat16"]), "q")
    assert got.dtype == ml_dtypes.bfloat16 and got.tobytes() == ALL_BITS["bfloat16"].tobytes()


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("first line\nsecond line")


REFUSED = {
    "None": (None, ["q is a NoneType", "dtype object"]),
    "text": ("word", ["q is a str", "dtype <U4"]),
    "dict": ({"a": 1}, ["q is a dict", "dtype object"]),
    "ragged": ([[1.0], [1.0, 2.0]], ["q is a list", "inhomogeneous"]),
    "list of text": (["a"], ["q is a list", "dtype <U1"]),
    "list with None": ([1.0, None], ["q is a list", "dtype object"]),
    "beyond 64 bits": ([2**70], ["q is a list", "dtype object"]),
    "rounded by a float": ([2**53 + 1, 0.5], ["q is a list", str(2**53 + 1)]),
    "rounded by a negative": ([[-1, 2**63 + 1]], ["q is a list", str(2**63 + 1)]),
    "objects": (np.array([None]), ["q is a numpy.ndarray", "dtype object"]),
    "structure": (np.zeros(2, [("a", "f4")]), ["q is a numpy.ndarray", "'a'"]),
    "dates": (np.zeros(2, "M8[s]"), ["q is a numpy.ndarray", "datetime64"]),
    "masked": (np.ma.masked_array([1.0, 2.0], [True, False]), ["q is a numpy.ma", "mask"]),
    "broken": (Broken(), ["Broken", "first line"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_convert_is_refused_in_one_sentence(case):
    x, words = REFUSED[case]
    for function in to_numpy, exact_widen:
        with pytest.raises(InputError) as caught:
            function(x, "q")
        text = str(caught.value)
        assert [word for word in words if word not in text] == [] and "\n" not in text, text


def test_torch_and_jax_are_not_imported():
    program = (
        "import sys; from refengine.io import interop; interop.to_numpy([1.0], 'q')\n"
        "print(sorted({'torch', 'jax'} & set(sys.modules)))"
    )
    root = str(Path(interop.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- torch ----

TORCH = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float16",
    "float32",
    "float64",
]
TORCH += ["int64", "int32", "uint8", "bool", "complex64"]


@pytest.mark.parametrize("name", TORCH)
def test_torch_bit_for_bit(name):
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    size = torch.empty((), dtype=dtype).element_size()
    raw = np.random.default_rng(1).integers(0, 2 if name == "bool" else 256, (6, 8, size), dtype=np.uint8)
    x = torch.from_numpy(raw).view(dtype)[..., 0]
    want = raw.view(getattr(ml_dtypes, name, name))[..., 0]
    for view in (lambda a: a, lambda a: a.T, lambda a: a[::2, 1:], lambda a: a[2, 3], lambda a: a[:0]):
        got = to_numpy(view(x), "q")
        assert got.dtype == want.dtype and got.shape == view(want).shape and got.tobytes() == view(want).tobytes()
        assert got.size == 0 or np.shares_memory(got, raw)


@pytest.mark.parametrize("name", ["bfloat16", "float32", "float64"])
def test_torch_with_gradient_parameter_and_subclass(name):
    torch = pytest.importorskip("torch")

    class Mine(torch.Tensor):
        pass

    x = torch.tensor([1.5, -2.0], dtype=getattr(torch, name))
    for kind in x.clone().requires_grad_(), torch.nn.Parameter(x), x.clone().requires_grad_() * 1, x.as_subclass(Mine):
        assert to_numpy(kind, "q").tolist() == [1.5, -2.0]
        assert exact_widen(kind, "q").dtype == (np.float64 if name == "float64" else np.float32)


def test_torch_lazy_sign_and_lists():
    torch = pytest.importorskip("torch")
    imaginary = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert imaginary.is_neg() and to_numpy(imaginary, "q").tolist() == [-2, 4]
    assert to_numpy(torch.tensor([1 + 2j]).conj(), "q").tolist() == [1 - 2j]
    assert to_numpy([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])], "q").tolist() == [[1, 2], [3, 4]]


def test_torch_that_has_no_values_is_refused():
    torch = pytest.importorskip("torch")
    for x in torch.ones(2, device="meta"), torch.ones(2, device="meta", dtype=torch.bfloat16), torch.eye(2).to_sparse():
        with pytest.raises(InputError, match=r"^q is a torch\.Tensor that does not convert"):
            to_numpy(x, "q")


def test_torch_on_a_device():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for dtype in torch.bfloat16, torch.float8_e4m3fn, torch.float32:
        x = torch.tensor([1.5, -2.0]).to(dtype)
        assert to_numpy(x.cuda(), "q").tobytes() == to_numpy(x, "q").tobytes()


# ---- jax ----


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "float32", "int32", "bool"])
def test_jax_bit_for_bit(name):
    jnp = pytest.importorskip("jax.numpy")
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    x = np.arange(12).reshape(3, 4).astype(dtype)
    got = to_numpy(jnp.asarray(x).T, "q")
    assert got.dtype == dtype and got.tobytes() == x.T.tobytes()


def test_a_jax_tracer_is_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(InputError, match=r"^q is a jax"):
        jax.jit(lambda x: to_numpy(x, "q"))(1.0)


def test_the_reference_of_these_tests_is_itself_right():
    assert [small_float(code, 5, 10, True) for code in (0x3C00, 0x8001, 0x7BFF)] == [
        struct.unpack("<e", struct.pack("<H", code))[0] for code in (0x3C00, 0x8001, 0x7BFF)
    ]


@pytest.mark.parametrize("T", [0, 1])
def test_small_broadcast_arrays_are_copied(T):
    """Of no size, or of one entry, they pass for contiguous; whoever asks whether they may be written to is warned."""
    x, y, _ = np.broadcast_arrays(-0.1, 0.5, np.zeros((1, T, 1)))
    for given in (x, y):
        assert to_numpy(given, "g").flags.writeable
