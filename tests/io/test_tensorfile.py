"""The file format: what is written is canonical, what is read is checked, and a failure leaves nothing behind."""

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refengine.errors import FileError, InputError
from refengine.io import tensorfile

NATIVE = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
DTYPES = [np.dtype(d) for d in NATIVE] + [
    np.dtype(d) for d in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
]
SHAPES = [(), (1,), (0,), (3, 0, 2), (7,), (2, 3, 5)]


def bits(array):
    return array.dtype.newbyteorder("=").name, array.shape, np.ascontiguousarray(array).tobytes()


def filled(shape, dtype, seed=0):
    """Every byte pattern, NaNs too; booleans only 0 and 1."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.default_rng(seed).integers(0, 2 if dtype.kind == "b" else 256, count, dtype=np.uint8)
    return raw.view(dtype).reshape(shape)


def container(header, data=b""):
    """A safetensors file spelled by hand; `header` is bytes, or what json can dump."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), data_offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets, **more}


def refusal(path, content):
    """The one sentence with which `read` refuses this content."""
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        tensorfile.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 600
    return text


# ---- round trips ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_written_is_read(tmp_path, dtype):
    tensors = {f"t{i}": filled(shape, dtype, i) for i, shape in enumerate(SHAPES)}
    tensorfile.write(tmp_path / "a", tensors, {"op": "é\n\"'", "": "empty"})
    got, metadata = tensorfile.read(tmp_path / "a")
    assert metadata == {"op": "é\n\"'", "": "empty"}
    assert {name: bits(x) for name, x in got.items()} == {name: bits(x) for name, x in tensors.items()}
    for x in got.values():
        assert x.dtype == dtype and x.flags.aligned and x.flags.c_contiguous and not x.flags.writeable


def test_reading_maps_the_file_and_copies_nothing(tmp_path):
    tensorfile.write(tmp_path / "a", {"x": np.ones((1 << 20,))})
    tracemalloc.start()
    x = tensorfile.read(tmp_path / "a")[0]["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x.nbytes == 1 << 23 and peak < 1 << 18
    tensorfile.write(tmp_path / "a", {"x": x + 1})  # over the file that is mapped
    assert x[-1] == 1 and tensorfile.read(tmp_path / "a")[0]["x"][-1] == 2


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    tensors = {f"x{i}": np.ones((256, 512)).T for i in range(8)}  # 1 MiB each, each to be copied into C order
    tracemalloc.start()
    tensorfile.write(tmp_path / "a", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20


LAYOUTS = {
    "fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1],
    "big endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "read only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "misaligned": lambda x: np.frombuffer(b"-" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "broadcast": lambda x: np.broadcast_to(x, x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f8", "i2", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2], ids=str)
def test_the_layout_of_the_input_does_not_show(tmp_path, layout, dtype):
    x = filled((4, 3, 5), dtype)
    given = LAYOUTS[layout](x)
    assert bits(given)[:2] == bits(x)[:2]
    tensorfile.write(tmp_path / "a", {"x": x})
    tensorfile.write(tmp_path / "b", {"x": given})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_expanded_array_is_written_out(tmp_path):
    tensorfile.write(tmp_path / "a", {"x": np.broadcast_to(np.float32(2), (3, 4))})
    assert (tensorfile.read(tmp_path / "a")[0]["x"] == np.full((3, 4), 2, np.float32)).all()


def test_misaligned_data_is_read(tmp_path):
    for pad in range(1, 9):  # with the spaces, the data starts at every remainder of 8
        text = json.dumps({"b": entry("U8", [1], [0, 1]), "x": entry("F64", [2], [1, 17])}).encode() + b" " * pad
        (tmp_path / "a").write_bytes(container(text, b"\7" + np.array([1.5, -2]).tobytes()))
        x = tensorfile.read(tmp_path / "a")[0]["x"]
        assert x.tolist() == [1.5, -2] and x.flags.aligned and not x.flags.writeable


# ---- canonical bytes ----

EXAMPLE = {
    "b": np.array([1, 2], np.uint8),
    "a": np.array([[1, 2, 3]], ml_dtypes.bfloat16),
    "z": np.array(1.0),
    "c": np.array(3, np.uint8),
}


def test_the_bytes_are_these(tmp_path):
    tensorfile.write(tmp_path / "a", EXAMPLE, {"op": "x", "a": "é"})
    text = (
        '{"__metadata__":{"a":"é","op":"x"},"z":{"dtype":"F64","shape":[],"data_offsets":[0,8]},'
        '"a":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]},"b":{"dtype":"U8","shape":[2],"data_offsets":[14,16]},'
        '"c":{"dtype":"U8","shape":[],"data_offsets":[16,17]}}'
    ).encode()
    start = -(-(8 + len(text)) // 64) * 64
    data = bytes.fromhex("000000000000f03f803f00404040010203")
    want = struct.pack("<Q", start - 8) + text.ljust(start - 8) + data
    assert (tmp_path / "a").read_bytes() == want
    got, metadata = tensorfile.read(tmp_path / "a")
    assert {n: bits(x) for n, x in got.items()} == {n: bits(x) for n, x in EXAMPLE.items()}
    assert metadata == {"op": "x", "a": "é"}


def test_order_of_the_arguments_does_not_show(tmp_path):
    tensorfile.write(tmp_path / "a", EXAMPLE, {"x": "1", "y": "2"})
    tensorfile.write(tmp_path / "b", dict(reversed(EXAMPLE.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_equal_bytes_in_every_process(tmp_path):
    program = (
        "import sys, hashlib, numpy as np; from refengine.io import tensorfile\n"
        "names = {f'n{i}' for i in range(40)}\n"  # a set: its order depends on the hash seed
        "for _ in range(5):\n"
        "    tensorfile.write(sys.argv[1], {n: np.full(3, int(n[1:])) for n in names}, {n: n for n in names})\n"
        "    print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())\n"
    )
    seen = set()
    root = str(Path(tensorfile.__file__).parents[2])
    for seed in "0", "1", "2", "3":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        command = [sys.executable, "-c", program, str(tmp_path / seed)]
        seen.update(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split())
    assert len(seen) == 1 and len(seen.pop()) == 64


def test_metadata_empty_or_absent_is_the_same(tmp_path):
    tensorfile.write(tmp_path / "a", {})
    tensorfile.write(tmp_path / "b", {}, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == struct.pack("<Q", 56) + b"{}" + b" " * 54
    assert tensorfile.read(tmp_path / "a") == ({}, {})


# ---- with the format's own library ----


@pytest.mark.parametrize("dtype", [d for d in DTYPES if "float8" not in d.name], ids=str)  # it dies on float8
def test_the_library_reads_ours_and_we_read_the_librarys(tmp_path, dtype):
    library = pytest.importorskip("safetensors.numpy")
    tensors = {f"t{i}": filled(shape, dtype, i) for i, shape in enumerate(SHAPES)}
    want = {name: bits(x) for name, x in tensors.items()}
    tensorfile.write(tmp_path / "a", tensors, {"k": "v", "a": "b"})
    assert {name: bits(x) for name, x in library.load_file(tmp_path / "a").items()} == want
    library.save_file(tensors, tmp_path / "b", {"k": "v", "a": "b"})
    got, metadata = tensorfile.read(tmp_path / "b")
    assert {name: bits(x) for name, x in got.items()} == want and metadata == {"k": "v", "a": "b"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_library_sees_our_bytes_and_metadata(tmp_path, dtype):
    library = pytest.importorskip("safetensors")
    tensors = {f"t{i}": filled(shape, dtype, i) for i, shape in enumerate(SHAPES)}
    tensorfile.write(tmp_path / "a", tensors, {"k": "v", "a": "b"})
    seen = dict(library.deserialize((tmp_path / "a").read_bytes()))
    assert {n: (tuple(t["shape"]), bytes(t["data"])) for n, t in seen.items()} == {
        n: bits(x)[1:] for n, x in tensors.items()
    }
    with library.safe_open(tmp_path / "a", framework="np") as file:
        assert file.metadata() == {"k": "v", "a": "b"}


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_the_librarys_float8(tmp_path, dtype):
    library = pytest.importorskip("safetensors")
    x = np.arange(256, dtype=np.uint8).view(dtype)
    spec = library.TensorSpec(dtype=x.dtype.name, shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes)
    (tmp_path / "a").write_bytes(library.serialize({"x": spec}))
    assert bits(tensorfile.read(tmp_path / "a")[0]["x"]) == bits(x)


# ---- hostile headers ----

GOOD = container({"x": entry()}, bytes(8))
HOSTILE = {
    "empty file": (b"", ["is empty", "0 bytes"]),
    "seven bytes": (bytes(7), ["7 bytes"]),
    "header longer than the file": (struct.pack("<Q", 3) + b"{}", ["3 bytes", "at most 2", "10 bytes"]),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", [str(2**64 - 1), "at most 2"]),
    "cut header": (GOOD[:20], ["at most 12"]),
    "cut data": (GOOD[:-1], ["'x'", "0 to 8", "0 to 7"]),
    "not UTF-8": (container(b'{"\xff": 1}'), ["not UTF-8", "byte 2"]),
    "not JSON": (container(b"{nonsense"), ["not valid JSON"]),
    "no header": (container(b""), ["not valid JSON"]),
    "UTF-16": (container("{}".encode("utf-16")), ["not UTF-8"]),
    "two documents": (container(b"{}{}"), ["not valid JSON"]),
    "half a surrogate": (container(b'{"__metadata__":{"a":"\\ud800"}}'), ["not valid JSON"]),
    "half a surrogate in a name": (container(b'{"\\ud800":1}'), ["not valid JSON"]),
    "number of 5000 digits": (container(b'{"x":' + b"9" * 5000 + b"}"), ["not valid JSON"]),
    "nesting bomb": (container(b"[" * 200_000), ["not valid JSON"]),
    "nesting bomb of objects": (container(b'{"a":' * 200_000), ["not valid JSON"]),
    "list": (container([]), ["[]", "not a JSON object"]),
    "null": (container(None), ["None", "not a JSON object"]),
    "duplicate tensor": (container(b'{"x":{},"x":{}}'), ["'x' twice"]),
    "duplicate field": (
        container(b'{"x":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        ["'dtype' twice"],
    ),
    "duplicate metadata": (container(b'{"__metadata__":{"a":"1","a":"2"}}'), ["'a' twice"]),
    "metadata list": (container({"__metadata__": []}), ["__metadata__", "[]"]),
    "metadata null": (container({"__metadata__": None}), ["__metadata__", "None"]),
    "metadata number": (container({"__metadata__": {"a": 1}}), ["__metadata__", "'a': 1"]),
    "entry list": (container({"x": []}), ["'x'", "exactly dtype, shape and data_offsets"]),
    "entry empty": (container({"x": {}}), ["'x'", "exactly dtype, shape and data_offsets"]),
    "entry with more": (container({"x": entry(more=1)}, bytes(8)), ["'x'", "exactly dtype"]),
    "unknown dtype": (container({"x": entry("F4")}, bytes(8)), ["'x'", "'F4'", "BF16"]),
    "dtype list": (container({"x": entry(["F32"])}, bytes(8)), ["'x'", "['F32']"]),
    "dtype null": (container({"x": entry(None)}, bytes(8)), ["'x'", "None"]),
    "shape number": (container({"x": entry(shape=2)}, bytes(8)), ["'x'", "shape 2"]),
    "shape null": (container({"x": entry(shape=None)}, bytes(8)), ["'x'", "shape None"]),
    "negative axis": (container({"x": entry(shape=[-2, -1])}, bytes(8)), ["'x'", "[-2, -1]"]),
    "boolean axis": (container({"x": entry(shape=[2, True])}, bytes(8)), ["'x'", "[2, True]"]),
    "float axis": (container({"x": entry(shape=[2.0])}, bytes(8)), ["'x'", "[2.0]"]),
    "text axis": (container({"x": entry(shape=["2"])}, bytes(8)), ["'x'", "['2']"]),
    "65 axes": (container({"x": entry(shape=[1] * 64 + [2])}, bytes(8)), ["'x'", "64"]),
    "axis of 2^63": (container({"x": entry(shape=[2**63])}, bytes(8)), ["'x'", str(2**63)]),
    "product wraps to 2": (container({"x": entry(shape=[2**62 + 1, 4, 2])}, bytes(8)), ["'x'", "hold 8"]),
    "product wraps to 0": (container({"x": entry(shape=[2**32, 2**32], data_offsets=[0, 0])}), ["'x'", "hold 0"]),
    "64 huge axes": (container({"x": entry(shape=[2**63 - 1] * 64)}, bytes(8)), ["'x'", "hold 8"]),
    "empty but unaddressable": (
        container({"x": entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0])}),
        ["'x'", str(2**62), "too large"],
    ),
    "three offsets": (container({"x": entry(data_offsets=[0, 8, 8])}, bytes(8)), ["'x'", "[0, 8, 8]"]),
    "offsets null": (container({"x": entry(data_offsets=None)}, bytes(8)), ["'x'", "None"]),
    "float offsets": (container({"x": entry(data_offsets=[0, 8.0])}, bytes(8)), ["'x'", "[0, 8.0]"]),
    "boolean offsets": (container({"x": entry("U8", [1], [False, True])}, b"1"), ["'x'", "[False, True]"]),
    "negative offsets": (container({"x": entry(data_offsets=[-8, 0])}, bytes(8)), ["'x'", "[-8, 0]"]),
    "end before begin": (container({"x": entry(data_offsets=[8, 0])}, bytes(8)), ["'x'", "8 to 0"]),
    "end outside": (container({"x": entry(shape=[4], data_offsets=[0, 16])}, bytes(8)), ["'x'", "0 to 16", "0 to 8"]),
    "end far outside": (container({"x": entry(data_offsets=[0, 2**62])}, bytes(8)), ["'x'", str(2**62), "0 to 8"]),
    "too few bytes": (container({"x": entry(shape=[3])}, bytes(8)), ["'x'", "12 bytes", "hold 8"]),
    "too many bytes": (container({"x": entry(shape=[])}, bytes(8)), ["'x'", "4 bytes", "hold 8"]),
    "overlap": (
        container({"x": entry(), "y": entry(data_offsets=[4, 12])}, bytes(12)),
        ["'y'", "byte 4", "overlaps tensor 'x'", "byte 8"],
    ),
    "the same place twice": (
        container({"x": entry(), "y": entry()}, bytes(8)),
        ["'y'", "byte 0", "overlaps", "byte 8"],
    ),
    "empty tensor inside another": (
        container({"x": entry(), "y": entry(shape=[0], data_offsets=[4, 4])}, bytes(8)),
        ["'y'", "byte 4", "overlaps", "byte 8"],
    ),
    "hole": (
        container({"x": entry(), "y": entry(data_offsets=[9, 17])}, bytes(17)),
        ["'y'", "byte 9", "hole after tensor 'x'", "byte 8"],
    ),
    "hole at the start": (container({"x": entry(data_offsets=[1, 9])}, bytes(9)), ["'x'", "byte 1", "hole", "byte 0"]),
    "trailing bytes": (container({"x": entry()}, bytes(11)), ["3 bytes", "tensor 'x'", "byte 8", "11"]),
    "bytes without a tensor": (container({}, b"!"), ["1 bytes", "the header", "byte 0"]),
    "a boolean 2": (container({"x": entry("BOOL", [2], [0, 2])}, b"\1\2"), ["'x'", "byte 2"]),
    "endless name": (container({"x" * 10_000: {}}), ["xxx", "exactly dtype"]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_in_one_sentence(tmp_path, case):
    content, words = HOSTILE[case]
    text = refusal(tmp_path / "a", content)
    assert [word for word in words if word not in text] == [], text


def test_the_good_neighbour_of_the_hostile_is_read(tmp_path):
    (tmp_path / "a").write_bytes(GOOD)
    assert tensorfile.read(str(tmp_path / "a"))[0]["x"].tolist() == [0, 0]


def test_a_header_over_the_limit_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "_HEADER_LIMIT", 16)
    assert "at most 16" in refusal(tmp_path / "a", container(b"{}" + b" " * 15))
    (tmp_path / "a").write_bytes(container(b"{}" + b" " * 14))
    assert tensorfile.read(tmp_path / "a") == ({}, {})


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path / "absent", tmp_path, tmp_path / "pipe", "nul\0name":
        with pytest.raises(FileError) as caught:
            tensorfile.read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(tmp_path):
    tensorfile.write(tmp_path / "a", EXAMPLE)
    (tmp_path / "a").chmod(0)
    with pytest.raises(FileError, match="Permission denied"):
        tensorfile.read(tmp_path / "a")
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="Permission denied"):
        tensorfile.write(tmp_path / "b", EXAMPLE)
    tmp_path.chmod(0o700)


# ---- npz ----


def npz(*members, method=zipfile.ZIP_STORED):
    """A zip of (name, bytes)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array, **changes):
    """The bytes of a .npy; `changes` rewrite its header afterwards."""
    buffer = io.BytesIO()
    if not changes:
        np.lib.format.write_array(buffer, array)
        return buffer.getvalue()
    np.lib.format.write_array_header_1_0(buffer, {**np.lib.format.header_data_from_array_1_0(array), **changes})
    return buffer.getvalue() + array.tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [*NATIVE, ">f4", ">i8"])
def test_npz_is_read(tmp_path, save, dtype):
    x = filled((300, 7, 5), np.dtype(dtype).newbyteorder("=")).astype(dtype)
    tensors = {"c": x, "f": np.asfortranarray(x), "strided": x[:, ::2], "scalar": x[0, 0, 0], "empty": x[:0]}
    save(tmp_path / "a.npz", __metadata__=np.array(json.dumps({"op": "é", "n": "1"})), **tensors)
    os.rename(tmp_path / "a.npz", tmp_path / "a.safetensors")  # the content decides, not the name
    got, metadata = tensorfile.read(tmp_path / "a.safetensors")
    assert metadata == {"op": "é", "n": "1"} and got.keys() == tensors.keys()
    for name, want in tensors.items():
        want = np.asarray(want, np.dtype(dtype).newbyteorder("="))
        assert bits(got[name]) == bits(want) and got[name].dtype == want.dtype and not got[name].flags.writeable
    tensorfile.write(tmp_path / "b", got)
    assert {n: bits(a) for n, a in tensorfile.read(tmp_path / "b")[0].items()} == {n: bits(a) for n, a in got.items()}


def test_npz_without_metadata_or_members(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    assert tensorfile.read(tmp_path / "a.npz")[1] == {}
    (tmp_path / "b.npz").write_bytes(npz())
    assert tensorfile.read(tmp_path / "b.npz") == ({}, {})


X = np.arange(6, dtype=np.float32).reshape(2, 3)
BOMB = npy(np.zeros(1 << 21), shape=(1 << 22,))  # 16 MiB of zeros under a header that needs 32
HOSTILE_NPZ = {
    "not a zip": (b"PK\3\4" + bytes(40), ["not a readable .npz"]),
    "pickled": (npz(("x.npy", npy(np.array([{}, None], object)))), ["'x'", "dtype object"]),
    "text": (npz(("x.npy", npy(np.array("word")))), ["'x'", "dtype <U4"]),
    "complex": (npz(("x.npy", npy(np.ones(2, complex)))), ["'x'", "complex128"]),
    "bfloat16, which NumPy saves as void": (npz(("x.npy", npy(np.ones(2, ml_dtypes.bfloat16)))), ["'x'", "|V2"]),
    "structure": (npz(("x.npy", npy(np.zeros(2, [("a", "f4"), ("b", "i4")])))), ["'x'", "'a'"]),
    "not an array": (npz(("note.txt", b"hello")), ["'note.txt'", "broken"]),
    "empty member": (npz(("x.npy", b"")), ["'x'", "broken"]),
    "shape larger than the bytes": (npz(("x.npy", npy(X, shape=(2, 1 << 40)))), ["'x'", str(8 << 40), "holds 24"]),
    "shape smaller than the bytes": (npz(("x.npy", npy(X, shape=(2, 2)))), ["'x'", "16 bytes", "holds 24"]),
    "negative shape": (npz(("x.npy", npy(X, shape=(-2, -3)))), ["'x'", "broken"]),
    "endless header": (npz(("x.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31))), ["'x'", "broken"]),
    "nested header": (npz(("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", 2000) + b"(" * 2000)), ["'x'", "broken"]),
    "minus header": (npz(("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", 2000) + b"-" * 2000)), ["'x'", "broken"]),
    "version 9": (npz(("x.npy", b"\x93NUMPY\x09\0" + npy(X)[8:])), ["'x'", "broken"]),
    "two of a name": (npz(("x.npy", npy(X)), ("x", npy(X))), ["'x' twice"]),
    "bzip2": (npz(("x.npy", npy(X)), method=zipfile.ZIP_BZIP2), ["'x'", "method 12"]),
    "metadata not text": (npz(("__metadata__.npy", npy(X))), ["__metadata__", "float32"]),
    "metadata not one text": (npz(("__metadata__.npy", npy(np.array(["{}"])))), ["__metadata__", "(1,)"]),
    "metadata not JSON": (npz(("__metadata__.npy", npy(np.array("{")))), ["not valid JSON"]),
    "metadata not an object": (npz(("__metadata__.npy", npy(np.array("[]")))), ["not a JSON object"]),
    "metadata not strings": (npz(("__metadata__.npy", npy(np.array('{"a":1}')))), ["__metadata__", "'a': 1"]),
    "a boolean 7": (npz(("x.npy", npy(np.zeros(2, bool))[:-1] + b"\7")), ["'x'", "byte 7"]),
}


def rewritten(content, member_size, packed=None):
    """A zip of one member whose directory (and local header) claims another size."""
    at, local = content.rindex(b"PK\1\2"), content.index(b"PK\3\4")
    out = bytearray(content)
    for start in at + 20, local + 18:
        sizes = struct.unpack_from("<II", content, start)
        struct.pack_into("<II", out, start, sizes[0] if packed is None else packed, member_size)
    return bytes(out)


def test_a_file_called_npz_that_is_none(tmp_path):
    (tmp_path / "a.npz").write_bytes(bytes(range(7, 99)))
    with pytest.raises(FileError, match=r"a.npz: is no .npz: it does not begin as a zip archive does"):
        tensorfile.read(tmp_path / "a.npz")
    tensorfile.write(tmp_path / "b.npz", {"x": X})
    assert np.array_equal(tensorfile.read(tmp_path / "b.npz")[0]["x"], X)  # the content decides, not the name


STORED, DEFLATED = npz(("x.npy", npy(X))), npz(("x.npy", npy(X)), method=zipfile.ZIP_DEFLATED)
BIG = npy(X, shape=(2, 1 << 28))
HOSTILE_NPZ |= {
    "size beyond deflate": (rewritten(DEFLATED, 1 << 31), ["'x'", str(1 << 31), "cannot hold"]),
    "stored size beyond the bytes": (rewritten(STORED, len(npy(X)) + 1), ["'x'", str(len(npy(X)) + 1), "cannot hold"]),
    "packed size beyond the file": (
        rewritten(STORED, 1 << 30, 1 << 30),
        [str(1 << 30), "whole file", str(len(STORED))],
    ),
    "size larger than the stream": (
        rewritten(npz(("x.npy", npy(X, shape=(2, 300))), method=zipfile.ZIP_DEFLATED), len(BIG) - 24 + 2400),
        ["'x'", "2400 bytes", "holds 24"],
    ),
    "bomb": (npz(("x.npy", BOMB), method=zipfile.ZIP_DEFLATED), ["'x'", f"{1 << 25} bytes", f"holds {1 << 24}"]),
    "damaged": (STORED.replace(X.tobytes(), X.tobytes()[::-1]), ["'x'", "broken"]),
}


@pytest.mark.parametrize("case", HOSTILE_NPZ)
def test_a_hostile_npz_is_refused_in_one_sentence(tmp_path, case):
    content, words = HOSTILE_NPZ[case]
    tracemalloc.start()
    try:
        text = refusal(tmp_path / "a", content)
        assert tracemalloc.get_traced_memory()[1] < len(content) + (1 << 20)
    finally:
        tracemalloc.stop()
    assert [word for word in words if word not in text] == [], text


def test_an_honest_npz_of_zeros_is_no_bomb(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1 << 20))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    assert not tensorfile.read(tmp_path / "a.npz")[0]["x"].any()


# ---- fuzz ----

SEEDS = {
    "safetensors": lambda path: tensorfile.write(path, EXAMPLE, {"op": "x", "n": "1"}),
    "npz": lambda path: path.write_bytes(npz(*[(f"{n}.npy", npy(x)) for n, x in EXAMPLE.items() if n != "a"])),
    "deflated": lambda path: path.write_bytes(
        npz(*[(f"{n}.npy", npy(x)) for n, x in EXAMPLE.items() if n != "a"], method=zipfile.ZIP_DEFLATED)
    ),
}
TOKENS = [b"0", b"9", b"-", b"[", b"]", b"{", b"}", b'"', b",", b".", b"e9", b"\0", b"\xff", b"true", b"null", b"F64"]
EDIT = st.tuples(
    st.floats(0, 1),
    st.sampled_from(["set", "insert", "delete", "cut"]),
    st.sampled_from(TOKENS) | st.binary(max_size=8),
)


def mutate(content, edits):
    for where, kind, piece in edits:
        at = int(where * len(content))
        if kind == "cut":
            content = content[:at]
        else:
            rest = content[at:] if kind == "insert" else content[at + max(1, len(piece)) :]
            content = content[:at] + (b"" if kind == "delete" else piece) + rest
    return content


@pytest.mark.parametrize("kind", SEEDS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(EDIT, min_size=1, max_size=4), fix_length=st.booleans())
def test_a_mutated_file_is_read_or_refused(tmp_path, kind, edits, fix_length):
    path = tmp_path / "a"
    SEEDS[kind](path)
    content = path.read_bytes()
    if fix_length and kind == "safetensors":  # mutate inside the header and keep its length true
        start = 8 + int.from_bytes(content[:8], "little")
        text = mutate(content[8:start], edits)
        content = container(text, content[start:])
    else:
        content = mutate(content, edits)
    path.write_bytes(content)
    said = None
    tracemalloc.start()
    try:
        arrays, metadata = tensorfile.read(path)
        assert sum(x.nbytes for x in arrays.values()) <= len(content) * (1100 if kind == "deflated" else 1)
        assert all(isinstance(value, str) for value in metadata.values())
    except FileError as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert said is None or (said.startswith(f"{path}: ") and "\n" not in said)
    assert peak < len(content) + (1 << 20)


@pytest.mark.parametrize("kind", SEEDS)
def test_every_truncation_is_refused(tmp_path, kind):
    path = tmp_path / "a"
    SEEDS[kind](path)
    content = path.read_bytes()
    for size in range(len(content)):
        refusal(path, content[:size])


# ---- a write that fails ----


def snapshot(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("fault", [OSError("No space left\non device"), KeyboardInterrupt(), MemoryError()], ids=repr)
@pytest.mark.parametrize("place", ["os.fsync", "os.replace", "numpy.ascontiguousarray"])
@pytest.mark.parametrize("before", [True, False])
def test_a_failing_write_leaves_the_folder_as_it_was(tmp_path, monkeypatch, fault, place, before):
    if before:
        tensorfile.write(tmp_path / "a", {"old": np.ones(3)})
    was, calls = snapshot(tmp_path), []

    def fail(*args):
        calls.append(args)
        assert len(list(tmp_path.iterdir())) == len(was) + 1  # the draft is in the same folder
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        expected = FileError if isinstance(fault, OSError) else type(fault)
        with pytest.raises(
            expected, match=r"a: cannot be written \(No space left\)$" if expected is FileError else None
        ):
            tensorfile.write(tmp_path / "a", EXAMPLE)
    assert calls and snapshot(tmp_path) == was


def test_the_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    for name in "fsync", "replace":
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (order.append(name), real(*a))[1])
    tensorfile.write(tmp_path / "a", EXAMPLE)
    assert order == ["fsync", "replace"] and [p.name for p in tmp_path.iterdir()] == ["a"]


class Raising:
    def __array__(self, dtype=None, copy=None):
        raise ZeroDivisionError


def test_an_array_that_raises_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        tensorfile.write(tmp_path / "a", {"a": np.ones(3), "x": Raising()})
    assert snapshot(tmp_path) == {}


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path, tmp_path / "absent" / "a", tmp_path / "file" / "a", tmp_path / "pipe", "nul\0name":
        with pytest.raises(FileError) as caught:
            tensorfile.write(path, EXAMPLE)
        assert str(caught.value).startswith(f"{path}: cannot be written (") and "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe"]
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    tensorfile.write(tmp_path / "link", EXAMPLE)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a").is_file()


UNWRITABLE = {
    "object": ({"x": np.array([None])}, None, "x is object"),
    "complex": ({"x": np.ones(1, complex)}, None, "x is complex128"),
    "text": ({"x": np.array("word")}, None, "x is <U4"),
    "extended": ({"x": np.ones(1, np.longdouble)}, None, "x is float128|x is longdouble"),
    "void": ({"x": np.zeros(1, "V2")}, None, "x is .V2"),
    "structure": ({"x": np.zeros(1, [("a", "f4")])}, None, r"x is \[\('a'"),
    "reserved name": ({"__metadata__": np.ones(1)}, None, "'__metadata__' cannot"),
    "name not text": ({"\ud800": np.ones(1)}, None, "not text"),
    "number in metadata": ({}, {"n": 1}, "metadata 'n' is 1"),
    "metadata not text": ({}, {"n": "\udfff"}, "not text"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_a_file_cannot_hold(tmp_path, case):
    tensors, metadata, match = UNWRITABLE[case]
    with pytest.raises(InputError, match=match):
        tensorfile.write(tmp_path / "a", tensors, metadata)
    assert snapshot(tmp_path) == {}
