"""Rows under pyramid codes: bit by bit as they are defined, and back."""

import numpy as np
import pytest

from latticeq.codes.pyramid import PyramidCode
from latticeq.errors import InputError
from latticeq.quantizers.gains import gain_levels
from latticeq.quantizers.pvq import decoded_groups
from latticeq.quantizers.pvq_rows import PVQRowCodec
from latticeq.quantizers.rows import RowCodec
from reference import pvq, pyramid
from reference.bits import joined
from reference.rows import unit_row
from tests.quantizers.test_rows import some_rows


def codec_of(group: int, pulses: int, gain_bits: int, n: int) -> PVQRowCodec:
    """Return a codec with the best levels."""
    code = PyramidCode(group, pulses)
    return PVQRowCodec(code, tuple(gain_levels(code, n, gain_bits).tolist()), n)


CODECS = {
    "4.25 bits": codec_of(16, 58, 4, 64),
    "two limbs": codec_of(24, 60, 3, 72),
    "no gains": codec_of(8, 5, 0, 40),
    "one group": codec_of(12, 9, 0, 12),
}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


@every_codec
def test_bytes_are_their_definition(codec: PVQRowCodec, rng: np.random.Generator) -> None:
    assert isinstance(codec, RowCodec)
    x = some_rows(rng, codec.n)
    coded = codec.encode(x)
    assert coded.shape == (len(x), codec.row_nbytes)
    assert codec.bits_per_entry == 8 * codec.row_nbytes / codec.n
    decoded = codec.decode(coded)
    code = codec.code
    for row, raw, found in zip(x, coded, decoded, strict=True):
        unit, norm = unit_row(row)
        levels = np.array(codec.levels, np.float32)
        pairs = [pvq.encode(group, code.pulses, levels) for group in unit.reshape(-1, code.n)]
        parts = []
        for fields, bits in (
            ([pyramid.rank(word) for word, _ in pairs], code.index_bits),
            ([index for _, index in pairs], codec.gain_bits),
        ):
            parts.append(joined(fields, bits).to_bytes(-(-bits * len(pairs) // 8), "little"))
        assert raw.tobytes() == b"".join(parts) + norm.bits.to_bytes(2, "little")
        words = np.array([word for word, _ in pairs], np.int16)
        wanted = decoded_groups(words, norm.value * levels[[index for _, index in pairs]])
        assert np.array_equal(found, wanted.reshape(-1))
    assert not decoded[[1, 6]].any()


def test_rows_that_are_not_finite_come_back_as_nan(rng: np.random.Generator) -> None:
    codec = CODECS["4.25 bits"]
    x = some_rows(rng, codec.n)
    x[0, 3], x[2, 5], x[4] = np.nan, np.inf, 1e30
    decoded = codec.decode(codec.encode(x))
    assert np.isnan(decoded[[0, 2, 4]]).all()
    assert np.isfinite(decoded[[1, 3]]).all()


def test_no_rows_have_no_bytes() -> None:
    codec = CODECS["4.25 bits"]
    coded = codec.encode(np.zeros((0, 64), np.float32))
    assert coded.shape == (0, 36)
    assert codec.decode(coded).shape == (0, 64)


def test_bad_rows_are_refused() -> None:
    codec = CODECS["4.25 bits"]
    with pytest.raises(InputError, match="positive multiple of 16"):
        PVQRowCodec(codec.code, codec.levels, 72)
    with pytest.raises(InputError, match="they must rise, from 0 or more"):
        PVQRowCodec(codec.code, (2.0, 1.0), 64)
    with pytest.raises(InputError, match="3 levels were given; they must be a power of two"):
        PVQRowCodec(codec.code, (1.0, 2.0, 3.0), 64)
    with pytest.raises(InputError, match=r"takes \(R, 64\)"):
        codec.encode(np.zeros((2, 32), np.float32))
    with pytest.raises(InputError, match=r"takes uint8 \(R, 36\)"):
        codec.decode(np.zeros((2, 35), np.uint8))
    with pytest.raises(InputError, match="is not below"):
        codec.decode(np.full((2, 36), 255, np.uint8))
