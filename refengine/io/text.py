"""A text file, as characters."""

from __future__ import annotations

import codecs
import os
import stat

from refengine.errors import FileError


def read(path: str | os.PathLike[str], limit: int) -> str:
    """At most the first `limit` characters of a UTF-8 file, newlines as `\\n`. No more of it is read than they need."""
    who = os.fsdecode(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileError(f"{who}: is a directory or a device, not a file.")
        with open(path, "rb") as file:
            data = file.read(4 * limit)  # a character has at most 4 bytes
            whole = not file.read(1)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{who}: cannot be read ({error.strerror}).") from error
    except ValueError as error:  # a NUL in the name
        raise FileError(f"{who!r}: cannot be read ({error}).") from error
    if (at := data.find(0)) >= 0:
        raise FileError(f"{who}: is not a text: byte {at} is NUL.")
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        raise FileError(f"{who}: is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")[:limit]
