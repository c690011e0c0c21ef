"""Philox against the vectors that its authors publish (Random123, kat_vectors)."""

import numpy as np
import pytest

from refengine.numbers.philox import philox, words

KNOWN = {
    "zeros": ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN.values(), ids=KNOWN)
def test_published_vectors(counter, key, block):
    got = philox(np.array(counter, np.uint64), key)
    assert " ".join(f"{int(word):08x}" for word in got) == block


def test_a_stream_is_its_blocks_in_order_and_streams_differ():
    stream = words(10, (1, 2), stream=(5 << 32) + 7)
    blocks = [philox(np.array([i, 0, 7, 5], np.uint64), (1, 2)) for i in range(3)]
    np.testing.assert_array_equal(stream, np.concatenate(blocks)[:10])
    assert not np.intersect1d(stream, words(10, (1, 2), stream=8)).size
