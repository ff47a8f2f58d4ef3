"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["package_version"]


def package_version() -> str:
    """Return the version that pip installed, or ``0+not.installed`` in a bare source tree."""
    try:
        return version("latticeq")
    except PackageNotFoundError:
        return "0+not.installed"
