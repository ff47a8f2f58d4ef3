"""The rotation: orthonormal, invertible, honest about blocks, and the same on every machine."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from latticeq.errors import InputError
from latticeq.transforms.rotation import Rotation, random_signs

ROTATIONS = [
    Rotation(64),
    Rotation(72, seed=5),
    Rotation(92, seed=2),
    Rotation(15),
    Rotation(12, kind="none"),
    Rotation(96, seed=3, block=32),
    Rotation(72, block=1),
]
every_rotation = pytest.mark.parametrize("rotation", ROTATIONS, ids=Rotation.describe)


@every_rotation
def test_matrix_is_orthonormal_and_is_what_is_applied(
    rotation: Rotation, rng: np.random.Generator
) -> None:
    n = rotation.n
    dense = rotation.matrix()
    assert np.allclose(dense @ dense.T, np.eye(n), atol=1e-14)
    x = rng.standard_normal((2, 3, n))
    assert np.allclose(rotation.apply(x), x @ dense.T, atol=1e-13)
    assert np.allclose(rotation.apply_transpose(x), x @ dense, atol=1e-13)
    h = rng.standard_normal((n, n))
    assert np.allclose(rotation.apply_both_sides(h), dense @ h @ dense.T, atol=1e-12)
    assert rotation.blocks * rotation.block_size == n


@every_rotation
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_type_is_kept_and_the_input_too(
    rotation: Rotation, dtype: type, rng: np.random.Generator
) -> None:
    x = rng.standard_normal(rotation.n).astype(dtype)
    kept = x.copy()
    back = rotation.apply_transpose(rotation.apply(x))
    assert back.dtype == dtype
    assert np.array_equal(x, kept)
    assert np.allclose(back, x, atol=1e-5 if dtype == np.float32 else 1e-13)


def test_a_linear_layer_survives(rng: np.random.Generator) -> None:
    rotation = Rotation(576, seed=7)
    weight, x = rng.standard_normal((8, 576)), rng.standard_normal((5, 576))
    assert np.allclose(rotation.apply(x) @ rotation.apply(weight).T, x @ weight.T)


@pytest.mark.parametrize(
    ("rotation", "text"),
    [
        (Rotation(4096), "Hadamard 4096"),
        (Rotation(576), "Hadamard 576 = 36 x 16"),
        (Rotation(576, seed=3), "Hadamard 576 = 36 x 16, random signs of seed 3"),
        (
            Rotation(184),
            "block-diagonal Hadamard: 23 blocks of 8 "
            "(there is no Hadamard matrix of size 184 here)",
        ),
        (Rotation(576, block=32), "block-diagonal Hadamard: 18 blocks of 32"),
        (
            Rotation(96, seed=3, block=16),
            "block-diagonal Hadamard: 6 blocks of 16, random signs of seed 3",
        ),
        (Rotation(184, kind="none"), "no rotation"),
    ],
)
def test_describe_says_what_is_applied(rotation: Rotation, text: str) -> None:
    assert rotation.describe() == text


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator as published, in Python integers."""
    mask, outputs, state = 2**64 - 1, [], seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def test_splitmix64_is_the_published_one() -> None:
    # The first outputs for seed 1234567 that Vigna's C program prints.
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]


@pytest.mark.parametrize("seed", [0, 1, 1234567, 2**64 - 1])
def test_signs_are_the_top_bits_of_splitmix64(seed: int) -> None:
    expected = [-1 if value >> 63 else 1 for value in splitmix64(seed, 100)]
    assert random_signs(100, seed).tolist() == expected


def test_rotations_are_values() -> None:
    assert Rotation(64, seed=1) == Rotation(64, seed=1) != Rotation(64, seed=2)
    assert len({Rotation(64), Rotation(64)}) == 1
    assert Rotation(**dataclasses.asdict(Rotation(64, seed=1))) == Rotation(64, seed=1)


def test_a_chosen_block_is_part_of_the_value_and_the_largest_one_needs_no_choice() -> None:
    assert Rotation(64, block=16) != Rotation(64)
    assert hash(Rotation(64, block=64)) == hash(Rotation(64))
    assert Rotation(64, block=64) == Rotation(64)
    assert Rotation(92, block=4) == Rotation(92)  # 4 is all that 92 allows
    for rotation in ROTATIONS:
        assert Rotation(**dataclasses.asdict(rotation)) == rotation


def test_blocks_do_not_mix(rng: np.random.Generator) -> None:
    x = np.zeros((1, 96))
    x[:, 32:64] = rng.standard_normal(32)
    rotated = Rotation(96, seed=3, block=32).apply(x)
    assert not rotated[:, :32].any()
    assert not rotated[:, 64:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": 4, "kind": "fourier"}, "'fourier' is unknown: use 'hadamard' or 'none'"),
        ({"n": 4, "seed": -1}, "between 0 and 2\\^64 - 1"),
        ({"n": 4, "seed": 1, "kind": "none"}, "takes no seed"),
        ({"n": 4, "kind": "none", "block": 2}, "takes no block"),
        ({"n": 92, "block": 3}, r"block 3: for 92 coordinates it must be one of \[1, 2, 4\]"),
        ({"n": 92, "block": 23}, "block 23"),
        ({"n": 8, "block": 0}, "block 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Rotation(**arguments)


def test_wrong_shapes() -> None:
    with pytest.raises(InputError, match=r"\(3, 5\).*needs 4 in the last axis"):
        Rotation(4).apply(np.zeros((3, 5)))
    with pytest.raises(InputError, match=r"\(4,\).*needs \(4, 4\)"):
        Rotation(4).apply_both_sides(np.zeros(4))
