"""How each matrix came out, as ``quantization_report.json`` of a quantized folder keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latticeq.errors import FormatError, context

__all__ = ["REPORT", "MatrixReport", "read_layer_report"]

REPORT = "quantization_report.json"

_LOSSES = ("proxy_loss", "proxy_loss_plain", "proxy_loss_rtn")


@dataclass(frozen=True)
class MatrixReport:
    """What quantizing lost of one matrix, as `latticeq.model.quantize_block.LayerReport` has it.

    Parameters
    ----------
    name : str
    relative_error : float
        Of the weights: the mean square of their error over that of them.
    proxy_loss, proxy_loss_plain, proxy_loss_rtn : float or None
        The share of the output that is lost on the calibration text, the same without feedback, and
        by int4 rounded to nearest; None where there was no calibration.
    """

    name: str
    relative_error: float
    proxy_loss: float | None
    proxy_loss_plain: float | None
    proxy_loss_rtn: float | None


def read_layer_report(folder: Path, names: Collection[str]) -> list[MatrixReport]:
    """Return the report of a folder, in its order; nothing if there is no such file.

    Parameters
    ----------
    folder : Path
    names : collection of str
        Of the matrices that the folder holds.

    Raises
    ------
    FormatError
        If the file is damaged, or reports of a matrix that the folder does not hold.
    """
    path = folder / REPORT
    if not path.exists():
        return []
    with context(str(path)):
        try:
            rows: Any = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"cannot be read as JSON: {error}") from error
        if not isinstance(rows, list):
            raise FormatError("is not a JSON list; quantize the model again")
        return [_matrix(row, names) for row in rows]


def _matrix(row: Any, names: Collection[str]) -> MatrixReport:
    if not isinstance(row, dict):
        raise FormatError(
            f"holds {row!r:.80}, which is not a JSON object; quantize the model again"
        )
    name = row.get("name")
    if not isinstance(name, str) or name not in names:
        raise FormatError(f"reports of {name!r:.80}, which the folder does not hold")
    with context(f"matrix {name}"):
        error = _share("relative_error", row.get("relative_error"))
        if error is None:
            raise FormatError("relative_error is missing; quantize the model again")
        return MatrixReport(name, error, *(_share(field, row.get(field)) for field in _LOSSES))


def _share(field: str, value: Any) -> float | None:
    """Return a finite number that is not negative, or None."""
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:  # an integer of more than 308 digits
        number = math.inf
    if not (math.isfinite(number) and number >= 0):
        raise FormatError(f"{field} is {value!r:.80}; it must be a finite number from 0 up")
    return number
