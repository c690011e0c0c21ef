"""Text files: what is read, and one sentence for what is none."""

import pytest

from refengine.errors import FileError
from refengine.io import text


def written(tmp_path, data):
    path = tmp_path / "file.txt"
    path.write_bytes(data)
    return path


def test_newlines_are_one_character_and_a_mark_is_none(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert text.read(path, 100) == "one\ntwo\nthree\n"


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
def test_no_character_is_cut_in_two(tmp_path, limit):
    content = "aß語😀é"
    assert text.read(written(tmp_path, content.encode()), limit) == content[:limit]


def test_no_more_is_read_than_wanted(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.write("語".encode() * 1000)
        file.truncate(10 * 2**30)  # sparse: ten gigabytes of NUL after the text
    assert text.read(path, 100) == "語" * 100


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"plain\0text", "byte 5 is NUL"),
        (b"\x89PNG\r\n\x1a\n", "byte 0 is 0x89"),
        (b"abc\xff", "byte 3 is 0xff"),
        ("語".encode()[:2], "byte 0 is 0xe8"),
        ("text".encode("utf-16"), "byte 3 is NUL"),
    ],
)
def test_what_is_no_text_is_said_to_be_none(tmp_path, data, says):
    path = written(tmp_path, data)
    with pytest.raises(FileError) as error:
        text.read(path, 100)
    assert str(path) in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["missing.txt", "", "a\0b"])
def test_what_cannot_be_read(tmp_path, name):
    with pytest.raises(FileError):
        text.read(tmp_path / name if name != "a\0b" else name, 100)
