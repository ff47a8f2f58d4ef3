"""English text that every CPython brings along: for calibration, and for a first perplexity.

CPython's ``pydoc_data.topics`` holds 80 pages of the language reference, 0.45 MB of English prose
with code. Topics are taken in sorted order: the last fifth is held out, the rest calibrates. Pages
quote each other, so a paragraph that occurs in the held-out part is dropped from the calibration
part: no paragraph is in both. The pages differ a little between Python versions, so numbers on this
text compare only within one version.
"""

from __future__ import annotations

from latticeq.errors import LatticeqError

__all__ = ["calibration_text", "heldout_text"]

_HELD_OUT_PART = 5  # one in this many topics


def calibration_text() -> str:
    """Return the calibration part, about 0.3 MB (80 000 tokens of SmolLM2).

    Raises
    ------
    LatticeqError
        If this Python comes without ``pydoc_data``.
    """
    calibration, heldout = _split()
    quoted = set(heldout)
    return "\n\n".join(paragraph for paragraph in calibration if paragraph not in quoted)


def heldout_text() -> str:
    r"""Return the held-out part, which shares no paragraph with the calibration part.

    Raises
    ------
    LatticeqError
        If this Python comes without ``pydoc_data``.

    Examples
    --------
    >>> set(heldout_text().split("\n\n")) & set(calibration_text().split("\n\n"))
    set()
    """
    return "\n\n".join(_split()[1])


def _split() -> tuple[list[str], list[str]]:
    """Return the paragraphs of the calibration topics and of the held-out topics."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise LatticeqError(
            "this Python has no pydoc_data module, which holds the built-in text; give a text file "
            "instead (--calibration FILE, --text FILE), or use a complete CPython"
        ) from error
    names = sorted(topics)
    n_calibration = len(names) - len(names) // _HELD_OUT_PART
    return (
        [text for name in names[:n_calibration] for text in _paragraphs(topics[name])],
        [text for name in names[n_calibration:] for text in _paragraphs(topics[name])],
    )


def _paragraphs(page: str) -> list[str]:
    return page.strip("\n").split("\n\n")
