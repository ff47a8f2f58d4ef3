"""The law of lengths, Lloyd's levels for it, and the split of bits between length and shape."""

import numpy as np
import pytest
from scipy.stats import beta, kstest

from latticeq.codes.pyramid import PyramidCode
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.quantizers.gains import MAX_GAIN_BITS, gain_levels, length_levels, splits
from latticeq.quantizers.pvq import PVQ, nearest_level


def lengths(rng: np.random.Generator, group: int, n: int, count: int) -> np.ndarray:
    """Return the lengths of groups in random rows of unit mean square."""
    rows = rng.normal(size=(count, n))
    rows /= np.sqrt(np.mean(rows**2, axis=1, keepdims=True))
    return np.asarray(np.linalg.norm(rows[:, :group], axis=1))


@pytest.mark.parametrize(("group", "n"), [(8, 64), (16, 576), (64, 256)])
def test_the_share_of_energy_follows_the_beta_law(
    group: int, n: int, rng: np.random.Generator
) -> None:
    share = lengths(rng, group, n, 3000) ** 2 / n
    assert kstest(share, beta(group / 2, (n - group) / 2).cdf).pvalue > 0.001


@pytest.mark.parametrize(("group", "n"), [(16, 64), (16, 4096), (64, 256)])
@pytest.mark.parametrize("bits", [0, 1, 3, 5])
def test_levels_are_the_means_of_their_cells(
    group: int, n: int, bits: int, rng: np.random.Generator
) -> None:
    levels, error = length_levels(group, n, bits)
    assert len(levels) == 2**bits
    assert (np.diff(levels) > 0).all()
    found = lengths(rng, group, n, 20000)
    index = nearest_level(found, levels.astype(np.float32))
    for level in range(2**bits):
        mine = found[index == level]
        assert abs(mine.mean() - levels[level]) < 5 * mine.std() / np.sqrt(len(mine)) + 1e-3
    measured = np.mean((found - levels[index]) ** 2)
    np.testing.assert_allclose(error, measured, rtol=0.06)


def test_no_other_levels_lose_less(rng: np.random.Generator) -> None:
    levels, error = length_levels(16, 576, 2)
    law = np.sqrt(576 * beta(8, 280).ppf((np.arange(200000) + 0.5) / 200000))
    for _ in range(20):
        moved = np.sort(levels + rng.normal(size=4) * 0.02)
        loss = np.mean(np.abs(law[:, None] - moved).min(axis=1) ** 2)
        assert loss > error


def test_a_group_that_is_the_row_has_one_length() -> None:
    levels, error = length_levels(16, 16, 3)
    assert levels.tolist() == [4.0] * 8
    assert error == 0


def test_levels_of_gains_are_lengths_times_the_mean_cosine() -> None:
    code = PyramidCode(16, 27)
    ratio = gain_levels(code, 576, 4) / length_levels(16, 576, 4)[0]
    assert np.ptp(ratio) < 1e-6
    assert 0.98 < ratio[0] < 1


@pytest.mark.parametrize(("group", "bits"), [(8, 3.5), (16, 4.25), (16, 2), (32, 3)])
def test_splits_spend_all_bits_and_know_what_they_lose(
    group: int, bits: float, rng: np.random.Generator
) -> None:
    ways = splits(group, bits, 512)
    assert [way.error for way in ways] == sorted(way.error for way in ways)
    for way in ways:
        assert bits * group - 3 < way.gain_bits + way.shape_bits <= bits * group  # pulses are few
    x = rng.normal(size=(256 if IS_JIT else 8, 512)).astype(np.float32)
    for way in ways[:3]:
        found = PVQ(group, bits, way.gain_bits, rotate="none").quantize(x)
        loss = np.mean((found.dequantize() - x) ** 2)
        np.testing.assert_allclose(loss, way.error, rtol=0.03 if IS_JIT else 0.2)


def test_too_few_bits_are_refused() -> None:
    with pytest.raises(InputError, match="3 bits a group; the direction alone needs at least 5"):
        splits(16, 0.2, 64)
    assert splits(16, 5 / 16, 64)[0].pulses == 1
    assert all(way.gain_bits <= MAX_GAIN_BITS for way in splits(256, 2, 4096))
