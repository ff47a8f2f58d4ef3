"""``import latticeq`` is light, and every public name is where the table says."""

import subprocess
import sys
from pathlib import Path

import pytest

import latticeq
from latticeq.jit import IS_JIT

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


ALONE = """
import sys
before = set(sys.modules)
import latticeq
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new - set(sys.stdlib_module_names) == {"latticeq"}, sorted(new)
assert [name for name in sys.modules if name.startswith("latticeq.")] == []
for name in latticeq.__all__:
    getattr(latticeq, name)
assert "numba" in sys.modules
print("nothing compiled")
"""


def test_import_takes_the_standard_library_alone_and_no_name_compiles(cache_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.stdout == "nothing compiled\n", done.stderr
    assert list(cache_folder.rglob("*.nb[ic]")) == []


@pytest.mark.skipif(not IS_JIT, reason="there is nothing to compile")
def test_a_compiled_kernel_would_be_seen_in_the_cache(cache_folder: Path) -> None:
    code = "import numpy, latticeq; latticeq.lattices.e8.closest_point(numpy.zeros((1, 8)))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list(cache_folder.rglob("*.nb[ic]"))) > 1


@pytest.mark.parametrize("name", [*latticeq.__all__, "__version__"])
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(latticeq, name) is getattr(latticeq, name)
    assert name in dir(latticeq)


def test_the_table_is_the_list_of_names() -> None:
    assert sorted([*latticeq._HOMES, *latticeq._MODULES]) == sorted(latticeq.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        latticeq.nonsense  # noqa: B018
