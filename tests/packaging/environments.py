"""Try the wheel in fresh environments: ``python -m tests.packaging.environments [PYTHON ...]``.

For each interpreter, and with the lowest and the newest versions that pyproject.toml allows, a new
environment gets the wheel of this tree. Bare, without any extra, `latticeq env` must run there and
the extras must be missed by name. With the extras and pytest a part of the tests runs against the
installed package: the tree's own is not in sight. Needs a package index; minutes an environment.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path

TOP = Path(__file__).parents[2]

EXTRAS = ("chat", "gguf", "hub", "plot")

MISSED = ("chat", "gguf", "plot")
"""Extras that a bare environment lacks; huggingface_hub comes along with tokenizers."""

TESTS = (
    "tests/test_public_names.py",
    "tests/packaging",
    "tests/lattices",
    "tests/quantizers/test_feedback.py",
    "tests/storage/test_safetensors.py",
    "tests/storage/test_gguf.py",
    "tests/model/test_tokenizer.py",
    "tests/model/test_chat_template.py",
    "tests/model/test_pull_hub.py",
    "tests/cli/test_inspect_plot.py",
    "tests/cli/test_perplexity_and_generate.py",
)
"""A part of the tests that calls every dependency."""

TOOLS = ("pytest", "hypothesis")


def requirements(top: Path = TOP) -> dict[str, list[str]]:
    """Return the requirements of pyproject.toml, by extra; those of the package itself under ""."""
    project = tomllib.loads((top / "pyproject.toml").read_text("utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def floors(needed: Iterable[str], python: tuple[int, int]) -> dict[str, str]:
    """Return the lowest version that each of some requirements allows on a Python.

    Examples
    --------
    >>> floors(["a>=1.2", "a>=1.3; python_version >= '3.13'", "b[c]>=2"], (3, 12))
    {'a': '1.2', 'b': '2'}
    >>> floors(["a>=1.2", "a>=1.3; python_version >= '3.13'"], (3, 13))
    {'a': '1.3'}
    """
    found: dict[str, str] = {}
    for requirement in needed:
        words, _, marker = requirement.partition(";")
        name, _, version = (part.strip() for part in words.partition(">="))
        wanted = re.fullmatch(r"\s*python_version >= '3\.(\d+)'\s*", marker)
        if marker and wanted is None:
            raise ValueError(f"{requirement!r} has a marker that is not python_version >= '3.N'")
        if not re.fullmatch(r"[\d.]+", version):
            raise ValueError(f"{requirement!r} has no lowest version")
        if wanted is None or python >= (3, int(wanted[1])):
            found[re.sub(r"\[.*\]", "", name)] = version  # the later, the higher
    return found


def installed() -> list[str]:
    """Return the requirements of what an environment gets, tools for the tests included."""
    needed = requirements()
    named = [line for extra in ("", *EXTRAS) for line in needed[extra]]
    return named + [line for line in needed["dev"] if line.startswith(TOOLS)]


def constraints(python: tuple[int, int], lowest: bool) -> list[str]:
    """Return the lines of a constraints file: the lowest versions, or none."""
    if not lowest:
        return []
    return [f"{name}=={version}" for name, version in floors(installed(), python).items()]


def run(
    words: list[str | Path], folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with nothing of this environment's Python in sight."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=kept | variables,
        capture_output=True,
        text=True,
    )


def must(words: list[str | Path], folder: Path, **variables: str) -> str:
    """Run a command, and return what it printed; stop if it fails."""
    done = run(words, folder, **variables)
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()
        text = "\n".join(line for line in lines if not line.startswith("WARNING"))[-4000:]
        raise SystemExit(f"{' '.join(map(str, words))}\nfailed with {done.returncode}:\n{text}")
    return done.stdout + done.stderr


def attempt(interpreter: str, lowest: bool, wheel: Path, scratch: Path, tests: list[str]) -> None:
    """Install the wheel, look at it bare, then with extras, and run tests."""
    version = must([interpreter, "-c", "import sys; print(*sys.version_info[:2])"], scratch)
    major, minor = (int(part) for part in version.split())
    name = f"{major}.{minor}-{'lowest' if lowest else 'newest'}"
    folder = scratch / name
    must([interpreter, "-m", "venv", folder / "env"], scratch)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    limits = folder / "constraints.txt"
    limits.write_text("".join(f"{line}\n" for line in constraints((major, minor), lowest)))
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "-c", limits]
    start = time.monotonic()

    must([*install, wheel], folder)
    cache = {"LATTICEQ_CACHE_DIR": str(folder / "cache")}
    told = must([python, "-m", "latticeq", "env"], folder, **cache)
    for extra in MISSED:
        if f"{extra}: not installed: pip install 'latticeq[{extra}]'" not in told:
            raise SystemExit(f"{name}: env does not say that the extra {extra} is missing:\n{told}")
    bare = time.monotonic() - start

    must([*install, f"{wheel}[{','.join(EXTRAS)}]", *TOOLS], folder)
    for part in ("tests", "reference", "pyproject.toml", "README.md", "docs"):
        source = TOP / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / part)
    words = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if lowest:  # old libraries call what has a newer name in the libraries that they need
        words += ["-W", "ignore::DeprecationWarning"]
    done = run([*words, *tests], folder, **cache)
    versions = must([python, "-m", "pip", "list", "--format", "freeze"], folder)
    wanted = floors(installed(), (major, minor))
    shown = [line for line in versions.splitlines() if line.partition("==")[0].lower() in wanted]
    print(f"== {name}: bare in {bare:.0f} s; {', '.join(shown)}")
    print(done.stdout[-3000:] if done.returncode else done.stdout.splitlines()[-1], flush=True)
    if done.returncode:
        raise SystemExit(f"{name}: tests failed")
    shutil.rmtree(folder)


def main() -> None:
    """Build the wheel once, and try it everywhere."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", default=[sys.executable], metavar="PYTHON")
    parser.add_argument("--versions", choices=("lowest", "newest", "both"), default="both")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), metavar="PATH")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as given:
        scratch = Path(given)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", scratch, TOP]
        must([*build], scratch)
        (wheel,) = scratch.glob("*.whl")
        print(f"{wheel.name}, {wheel.stat().st_size / 1e3:.0f} kB", flush=True)
        for interpreter in args.pythons:
            for lowest in (True, False):
                if args.versions == "both" or lowest == (args.versions == "lowest"):
                    attempt(interpreter, lowest, wheel, scratch, args.tests)


if __name__ == "__main__":
    main()
