"""Tensors in files: safetensors (read by memory map, written canonically) and `.npz` (read only).

A safetensors file, all numbers little endian:

    8 bytes    n, the length of the header
    n bytes    the header: JSON in UTF-8, {NAME: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
               and, optionally, "__metadata__": {str: str}; spaces may follow
    the rest   the tensors in C order; offsets count from here; no hole, no overlap, nothing after the last

`read` trusts no field: each is checked before memory is taken in proportion to it. `write` gives equal bytes for equal
content: wide items first, then by name (so that every tensor is aligned), keys sorted, the data at a multiple of 64.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import mmap
import os
import reprlib
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from refengine.errors import FileError, InputError

from . import whole

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    **{f"{kind}{8 * n}": np.dtype(f"<{kind.lower()}{n}") for kind in "IU" for n in (8, 4, 2, 1)},
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_HEADER_LIMIT = 100_000_000  # bytes of JSON; the limit of the format's own library
_ZIP_MAGIC = (b"PK\3\4", b"PK\5\6")  # with members, and without
_NPY_MAGIC = b"\x93NUMPY"
_TEXT = frozenset(b"\t\n\r") | frozenset(range(32, 127))
_NPY_HEADER_LIMIT = 2048  # bytes; 64 axes need fewer
_DEFLATE_LIMIT = 1100  # deflate shrinks by 1032 at most
_say = reprlib.Repr()  # what a file says may be long: these cut it for a sentence
_say.maxstring, _say.maxlist = 80, 8


def read(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors of a safetensors or `.npz` file (its content decides), as read-only arrays, and its metadata.

    A safetensors file is mapped, not loaded; a tensor is copied only where it lies misaligned for its dtype.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileError("is a directory or a device, not a file")
        with open(path, "rb") as file:
            is_zip = file.read(4) in _ZIP_MAGIC
            try:
                arrays, metadata = _read_npz(file) if is_zip else _read_safetensors(file)
            except FileError as error:
                if is_zip or not os.fsdecode(path).endswith(".npz"):
                    raise
                raise FileError("is no .npz: it does not begin as a zip archive does") from error
        return {name: _seal(name, array) for name, array in arrays.items()}, _strings(metadata)
    except FileError as error:
        raise FileError(f"{os.fsdecode(path)}: {error}") from error.__cause__
    except (OSError, ValueError) as error:
        raise FileError(f"{os.fsdecode(path)}: cannot be read ({_reason(error)})") from error


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a canonical safetensors file, whole or not at all: until its last byte is on disk, `path` stays as it
    was."""
    arrays = _in_order(tensors)
    header = _header(arrays, metadata or {})
    try:
        target = os.path.realpath(path)
        if os.path.exists(target) and not os.path.isfile(target):
            raise OSError("it is a directory or a device, not a file")
        whole.write(target, chain([header], map(_bytes, arrays.values())))
    except (OSError, ValueError) as error:
        raise FileError(f"{os.fsdecode(path)}: cannot be written ({_reason(error)})") from error


class Draft:
    """The file that `write` would write, under way beside its place as PATH.partial: piece by piece, and resumable.

    `shapes` names each tensor's dtype and shape. With `resume` what an earlier draft of the same content holds stays.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shapes: Mapping[str, tuple[Any, tuple[int, ...]]],
        metadata: Mapping[str, str],
        resume: bool = False,
    ) -> None:
        self.target = os.path.realpath(path)
        self.place = f"{self.target}.partial"
        arrays = _in_order({n: np.broadcast_to(np.zeros((), dtype), shape) for n, (dtype, shape) in shapes.items()})
        header = _header(arrays, metadata)
        self.shapes = arrays
        ends = np.cumsum([len(header), *(array.nbytes for array in arrays.values())]).tolist()
        self.starts = dict(zip(arrays, ends[:-1], strict=True))
        with _writing(self.place):
            if not resume:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.place)
            self.file = os.open(self.place, os.O_RDWR | (0 if resume else os.O_CREAT | os.O_EXCL), 0o666)
        with _writing(self.place):
            if resume and (os.fstat(self.file).st_size != ends[-1] or os.pread(self.file, len(header), 0) != header):
                raise FileError(f"{self.place}: is no draft of this answer; solve it anew, without --resume")
            self._put(header, 0)
            os.ftruncate(self.file, ends[-1])

    def put(self, name: str, at: tuple[int, ...], array: NDArray[Any]) -> None:
        """Write consecutive entries of a tensor, from the one that the leading indices `at` point to."""
        whole = self.shapes[name]
        entry = 0
        for n, index in enumerate(at):
            entry += index * math.prod(whole.shape[n + 1 :])
        data = np.ascontiguousarray(array, _little(whole.dtype)).reshape(-1).view(np.uint8).data
        with _writing(self.place):
            self._put(data, self.starts[name] + entry * whole.itemsize)

    def _put(self, data: Any, at: int) -> None:
        data = memoryview(data)
        while len(data):
            wrote = os.pwrite(self.file, data, at)
            data, at = data[wrote:], at + wrote

    def sync(self) -> None:
        """What was put is on disk."""
        with _writing(self.place):
            os.fsync(self.file)

    def finish(self) -> None:
        """The draft takes its place."""
        self.sync()
        os.close(self.file)
        with _writing(self.target):
            os.replace(self.place, self.target)


def release(tensors: Iterable[NDArray[Any]]) -> None:
    """Give back the memory that reading mapped tensors took; what is read again is mapped again."""
    for tensor in tensors:
        base: Any = tensor
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, memoryview):
            base = base.obj
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({_reason(error)})") from error


# ---- safetensors, in ----


def _read_safetensors(file: BinaryIO) -> tuple[dict[str, NDArray[Any]], object]:
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise FileError("is empty (0 bytes)")
    if size < 8:
        raise FileError(f"has {size} bytes, but a safetensors file starts with 8 that give its header's length")
    data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    start = data[:8].tobytes()
    if start.startswith(_NPY_MAGIC):
        raise FileError("is one array without a name (.npy); tensors by name are a .safetensors or .npz file")
    length = int.from_bytes(start, "little")
    if length > (room := min(size - 8, _HEADER_LIMIT)):
        if all(byte in _TEXT for byte in start):
            raise FileError(f"is no safetensors or .npz file: it starts with {start.decode('ascii')!r}")
        raise FileError(f"claims a header of {length} bytes, but at most {room} are possible in a file of {size} bytes")
    header = _parse(data[8 : 8 + length].tobytes())
    metadata, body = header.pop(_METADATA, {}), data[8 + length :]
    places = {name: _place(name, fields, body.size) for name, fields in header.items()}
    _check_tiling(places, body.size)
    return {name: _view(name, header[name], body[begin:end]) for name, (begin, end) in places.items()}, metadata


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise FileError(f"has a header that is not UTF-8 at its byte {error.start} of {len(text)}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"has a header of {len(text)} bytes that is not valid JSON ({_reason(error)})") from error
    if not isinstance(header, dict):
        raise FileError(f"has a header that is {_say.repr(header)}, not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys, whose strings are all text (JSON can spell half a surrogate pair)."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise FileError(f"has a header with the key {_say.repr(key)} twice")
        (key + value if isinstance(value, str) else key).encode("utf-8")
        fields[key] = value
    return fields


def _strings(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(f"has the {_METADATA} {_say.repr(metadata)}, not an object of strings")
    return metadata


def _place(name: str, fields: Any, room: int) -> tuple[int, int]:
    """Where the tensor begins and ends in `room` bytes of data, after every field of its entry is checked."""
    who = f"tensor {_say.repr(name)}"
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise FileError(f"{who} is {_say.repr(fields)}, not an object of exactly dtype, shape and data_offsets")
    code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise FileError(f"{who} has the dtype {_say.repr(code)}; known are {', '.join(_DTYPES)}")
    if not _naturals(shape) or len(shape) > 64:
        raise FileError(f"{who} has the shape {_say.repr(shape)}, not a list of at most 64 integers from 0 to 2^63 - 1")
    if not _naturals(offsets) or len(offsets) != 2:
        raise FileError(f"{who} has the data_offsets {_say.repr(offsets)}, not two integers from 0 to 2^63 - 1")
    begin, end = offsets
    if begin > end or end > room:
        raise FileError(f"{who} lies at bytes {begin} to {end}, but the data runs from 0 to {room}")
    need = math.prod(shape) * _DTYPES[code].itemsize
    if need != end - begin:
        what = f"{code} of shape {_say.repr(shape)}"
        raise FileError(f"{who} needs {_say.repr(need)} bytes ({what}), but its data_offsets hold {end - begin}")
    return begin, end


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_tiling(places: Mapping[str, tuple[int, int]], room: int) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    at, before = 0, "the header"
    for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        who, fault = f"tensor {_say.repr(name)}", "overlaps" if begin < at else "leaves a hole after"
        if begin != at:
            raise FileError(f"{who} starts at byte {begin} and {fault} {before}, which ends at byte {at}")
        at, before = end, who
    if at != room:
        raise FileError(f"has {room - at} bytes that no tensor owns: {before} ends at byte {at} of the data's {room}")


def _view(name: str, fields: dict[str, Any], data: NDArray[np.uint8]) -> NDArray[Any]:
    try:
        return np.ndarray(fields["shape"], _DTYPES[fields["dtype"]], data)
    except ValueError as error:  # empty, but its other axes are more than NumPy can address
        raise FileError(f"tensor {_say.repr(name)} has the shape {fields['shape']}, too large for an array") from error


# ---- .npz, in ----


def _read_npz(file: BinaryIO) -> tuple[dict[str, NDArray[Any]], object]:
    arrays: dict[str, NDArray[Any]] = {}
    who = "the archive"
    try:
        with zipfile.ZipFile(file) as archive:
            members, size = archive.infolist(), os.fstat(file.fileno()).st_size
            if (claimed := sum(member.compress_size for member in members)) > size:
                raise FileError(f"claims {claimed} compressed bytes in its members, but the whole file has {size}")
            for member in members:
                name = member.filename.removesuffix(".npy")
                who = f"member {_say.repr(name)}"
                if name in arrays:
                    raise FileError(f"has the {who} twice")
                arrays[name] = _read_member(archive, member, who, is_text=name == _METADATA)
        text = arrays.pop(_METADATA, None)
        return arrays, {} if text is None else _parse(text.item().encode("utf-8"))
    except FileError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise a dozen kinds on a broken file
        raise FileError(f"is not a readable .npz: {who} is broken ({_reason(error)})") from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, who: str, *, is_text: bool) -> NDArray[Any]:
    """One `.npy` of the zip. Nothing is reserved because a header claims it: the bytes come in pieces and are
    counted."""
    method, size, packed = member.compress_type, member.file_size, member.compress_size
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FileError(f"{who} uses zip method {method}; known are 0 (stored) and 8 (deflated)")
    if size > packed * (_DEFLATE_LIMIT if method else 1):
        raise FileError(f"{who} claims {size} bytes, but its {packed} compressed bytes cannot hold as many")
    with archive.open(member) as stream:
        head = io.BytesIO(stream.read(_NPY_HEADER_LIMIT))
        version_1 = np.lib.format.read_magic(head) == (1, 0)
        parse = np.lib.format.read_array_header_1_0 if version_1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = parse(head)
        known = dtype.kind == "U" and shape == () if is_text else _little(dtype) in _CODES
        if not known:
            raise FileError(f"{who} has the dtype {dtype} and shape {shape}; an array of numbers is needed")
        need, have = math.prod(shape) * dtype.itemsize, size - head.tell()
        if need == have:
            data = bytearray(head.read())
            while piece := stream.read(1 << 20):
                data += piece
            have = len(data)
    if need != have:
        raise FileError(f"{who} needs {need} bytes ({dtype} of shape {_say.repr(list(shape))}), but holds {have}")
    return np.ndarray(shape, dtype, data, order="F" if fortran else "C")


# ---- both, in ----


def _seal(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array as a kernel may take it: little endian, aligned, read-only, its booleans 0 or 1."""
    if array.dtype == np.bool_ and (most := array.view(np.uint8).max(initial=0)) > 1:
        raise FileError(f"tensor {_say.repr(name)} is boolean, but holds the byte {most}; a boolean is 0 or 1")
    array = np.require(array, _little(array.dtype), "A")
    array.flags.writeable = False
    return array


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, without the system's number and path."""
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]


# ---- safetensors, out ----


def _storable(name: str, tensor: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(tensor)
    if not isinstance(name, str) or name == _METADATA:
        raise InputError(f"{name!r} cannot be a tensor's name in a file")
    if _little(array.dtype) not in _CODES:
        raise InputError(
            f"{name} is {array.dtype}, which a file cannot hold; it can hold {', '.join(map(str, _CODES))}"
        )
    return array


def _in_order(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Tensors as a file can hold them: wide items first, then by name."""
    arrays = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    return {name: arrays[name] for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))}


def _header(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The eight bytes and the JSON, for tensors in this order, padded so that the data starts at a multiple of 64."""
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(f"metadata {key!r} is {value!r}; keys and values must be strings")
    fields: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, array in arrays.items():
        offsets = [at, at := at + array.nbytes]
        fields[name] = {"dtype": _CODES[_little(array.dtype)], "shape": array.shape, "data_offsets": offsets}
    try:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object[error.start]!r} in a name or in the metadata is not text") from error
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array, _little(array.dtype)).reshape(-1).view(np.uint8).data
