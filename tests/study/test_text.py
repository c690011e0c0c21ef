"""Tokens: their numbers, what is refused."""

import numpy as np
import pytest

from refengine.errors import FileError, InputError
from refengine.study import text


def written(tmp_path, content):
    path = tmp_path / "file.txt"
    path.write_text(content, encoding="utf-8")
    return path


def test_numbers_are_ranks_in_the_first_half(tmp_path):
    found = text.load(written(tmp_path, "abbccc" * 100 + "dddd" * 200))
    assert found.size == 4
    assert found.ids[:6].tolist() == [2, 1, 1, 0, 0, 0]
    assert found.ids[-1] == 3  # the most frequent of all, but not before half of the text was seen
    assert found.rest == 0
    assert (found.one_hot()[0, :, 0].argmax(-1) == found.ids).all()


def test_white_space_is_a_space(tmp_path):
    spaced = text.load(written(tmp_path, "  ab \n\n\t c" * 300))
    plain = text.load(written(tmp_path, ("ab c " * 300).strip().replace("ca", "c a")))
    assert (spaced.ids == plain.ids).all()


@pytest.mark.parametrize("unit", text.UNITS)
def test_what_is_rare_shares_the_last_number(tmp_path, unit):
    kinds = [chr(0x4E00 + i) for i in range(400)]
    content = " ".join(kinds * 4) if unit == "words" else "".join(kinds * 4)
    found = text.load(written(tmp_path, content), unit)
    assert found.size == text.VOCABULARY
    assert found.ids.max() == text.VOCABULARY - 1
    assert found.rest == pytest.approx(1 - (text.VOCABULARY - 1) / 400)


def test_words_and_marks(tmp_path):
    found = text.load(written(tmp_path, "The cat, the dog. " * 200), "words")
    assert len(found.ids) == 1200
    assert found.size == 6


def test_as_many_tokens_as_asked(tmp_path):
    path = written(tmp_path, "lorem ipsum " * 20_000)
    assert len(text.load(path).ids) == text.LENGTH
    assert len(text.load(path, scale=2).ids) == 2 * text.LENGTH
    assert len(text.load(path, "words").ids) == text.LENGTH


def test_the_shipped_prose():
    found = text.load()
    assert found.source == "pydoc_data.topics"
    assert len(found.ids) == text.LENGTH
    assert found.size > 50
    assert np.bincount(found.ids)[0] > 1000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has 0 of the 1000 characters"),
        ("x", "has 1 of the 1000 characters"),
        (" \n" * 1000, "has 0 of the 1000 characters"),
        ("x" * 1500, "has 1500 characters, all of them 'x'"),
    ],
)
def test_too_little_is_refused(tmp_path, content, says):
    with pytest.raises(InputError) as error:
        text.load(written(tmp_path, content))
    assert says in str(error.value)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(FileError):
        text.load(tmp_path / "none.txt")
