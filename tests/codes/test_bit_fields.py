"""Fields of any number of bits, against Python's integers."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from latticeq.codes.bit_fields import join_fields, split_fields


@given(st.integers(1, 200), st.integers(1, 20), st.data())
def test_fields_are_bits_of_one_integer(bits: int, count: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    limbs = -(-bits // 64)
    raw = b"".join(value.to_bytes(8 * limbs, "little") for value in values)
    integers = np.frombuffer(raw, "<u8").reshape(1, count, limbs)
    joined = join_fields(integers, bits)
    whole = sum(value << bits * i for i, value in enumerate(values))
    assert joined.tobytes() == whole.to_bytes(-(-count * bits // 8), "little")
    assert np.array_equal(split_fields(joined, count, bits), integers)
