"""The core's XXH3-128 against the reference implementation, over every class of length that the specification has."""

import pytest

from serverless_triton.loader import _core

pytest.importorskip("hypothesis")
pytest.importorskip("xxhash")
import xxhash
from hypothesis import given
from hypothesis import strategies as st

BLOCK_BYTES = 1024


def sample(length: int) -> bytes:
    return bytes((i * 31 + i // 256 * 7) % 251 for i in range(length))


@pytest.mark.parametrize(
    "lengths",
    [range(4), range(4, 9), range(9, 17), range(17, 129), range(129, 241), range(241, 2 * BLOCK_BYTES + 70)],
    ids=lambda lengths: f"{lengths.start}-{lengths.stop - 1}",
)
def test_every_length_hashes_as_the_reference_does(lengths: range) -> None:
    content = sample(lengths.stop)
    for length in lengths:
        assert _core.xxh3_128(content[:length]) == xxhash.xxh3_128_hexdigest(content[:length]), length


@pytest.mark.parametrize("blocks", [3, 8, 64, 8192])
@pytest.mark.parametrize("offset", [-65, -64, -1, 0, 1, 63, 64, 65])
def test_block_boundaries_hash_as_the_reference_does(blocks: int, offset: int) -> None:
    content = (sample(4096) * (blocks // 4 + 2))[: blocks * BLOCK_BYTES + offset]

    assert _core.xxh3_128(content) == xxhash.xxh3_128_hexdigest(content)


@given(st.binary(max_size=4096))
def test_any_bytes_hash_as_the_reference_does(content: bytes) -> None:
    assert _core.xxh3_128(content) == xxhash.xxh3_128_hexdigest(content)
