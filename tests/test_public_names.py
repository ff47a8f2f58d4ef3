"""``import latticeq`` is light, and every public name is where the table says."""

import subprocess
import sys

import pytest

import latticeq

LIGHT = """
import sys
import latticeq
assert not {"numpy", "numba", "scipy", "tokenizers"} & set(sys.modules), sorted(sys.modules)
assert latticeq.InputError is latticeq.errors.InputError
latticeq.__version__
assert "numba" not in sys.modules
print("light")
"""


def test_import_loads_neither_numpy_nor_numba() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.stdout == "light\n", done.stderr


@pytest.mark.parametrize("name", [*latticeq.__all__, "__version__"])
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(latticeq, name) is getattr(latticeq, name)
    assert name in dir(latticeq)


def test_the_table_is_the_list_of_names() -> None:
    assert sorted([*latticeq._HOMES, *latticeq._MODULES]) == sorted(latticeq.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        latticeq.nonsense  # noqa: B018
