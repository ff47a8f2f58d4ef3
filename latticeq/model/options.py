"""What a quantization is told: all that decides the bytes, besides the model and the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latticeq.errors import InputError
from latticeq.model.llama import BLOCK_LINEARS
from latticeq.model.run_coding import CacheCoding, RunCoding
from latticeq.quantizers.betas import published_betas
from latticeq.quantizers.coding import Coding, NestCoding, PVQCoding, ScalarCoding
from latticeq.quantizers.feedback import DAMPING
from latticeq.quantizers.nestquant import NestQuant
from latticeq.quantizers.pvq import PVQ
from latticeq.quantizers.scalar import Scalar

__all__ = ["FITTED", "METHODS", "REGIMES", "SMOOTHING", "STRENGTH", "Options"]

METHODS = ("nestquant", "pvq", "int4", "nf4", "mxfp4", "nvfp4")
REGIMES = ("w", "w+kv", "w+kv+a")
FEEDBACKS = ("none", "ldlq", "qa-ldlq")
QA_FORMS = ("general", "isotropic", "diagonal", "full")

FITTED = "fitted"
"""The betas that `latticeq.model.fitting` finds."""

STRENGTH = 0.5
"""Of the step from the weights to the target of QA-LDLQ's general form: see `Objective`."""

SMOOTHING = 0.5
"""The exponent of `latticeq.model.smoothing` where activations are coded."""

_SPHERICAL = ("nestquant", "pvq")
"""The methods that code directions well and outliers badly: smoothing and centring help them."""

_LONG_ROW = 64
"""Groups of the row whose law of gains says how PVQ's bits are split where rows are coded."""

_ACTIVATION_CLIP = 0.9
_CACHE_CLIP = 0.95
"""Shares of the largest magnitude that int4 reaches to, as QuaRot has them (arXiv 2404.00456)."""


@dataclass(frozen=True)
class Options:
    """Everything that decides the bytes, besides the model and the calibration text.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    regime : "w", "w+kv" or "w+kv+a"
        What is coded: weights, keys and values, activations.
    q, k, shaping, betas, selection, packing
        Of `NestQuant`. Keys, values and activations take the same q, k and cell, "published" betas
        those published for their kind. Betas may also be "fitted", to what is really coded (see
        `latticeq.model.fitting`), or a mapping with a set for each name of `scale_kinds`.
    group : int, optional
        Of `Scalar`: entries of a weight's row that share a scale. Of `PVQ`: those that share a word
        and a gain, 16 if omitted.
    bits : float
    gain_bits : int, optional
        Of `PVQ`.
    rotate, seed
        Of either.
    feedback : "none", "ldlq" or "qa-ldlq"
        "ldlq" minds the inputs of the float model; "qa-ldlq" those that the quantized model has.
    qa_form : "general", "isotropic", "diagonal" or "full"
        How QA-LDLQ knows its moments, see `latticeq.quantizers.objective`: both measured, or the
        covariance of the activations' code as a number, a diagonal or a matrix.
    qa_strength : float, optional
        Of the step to its target; 0.5 for "general" and 1 for the others if omitted.
    damping : float
        Relative damping of the Hessians.
    smoothing : float, optional
        The exponent of `latticeq.model.smoothing`, 0 for none; 0.5 where NestQuant or PVQ codes
        activations and 0 elsewhere if omitted.
    key_offset : bool, optional
        Whether the mean key of each head is taken out of keys; NestQuant's default, and PVQ's.
    rotate_values : bool
        Whether the cache codes values rotated over the head, as it does keys.
    embedding : "int8" or "keep"
        How token embeddings and the output head are stored.
    calibration_tokens : int
        How many tokens of the calibration text are used; rounded down to whole windows.
    calibration_context : int
        Length of those windows.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    method: str = "nestquant"
    regime: str = "w"
    q: int = 16
    k: int = 4
    shaping: str = "voronoi"
    betas: str | tuple[float, ...] | Mapping[str, tuple[float, ...]] = "tuned"
    selection: str = "opt"
    packing: str = "digits"
    group: int | None = None
    bits: float = 4.25
    gain_bits: int | None = None
    rotate: str = "hadamard"
    seed: int | None = None
    feedback: str = "qa-ldlq"
    qa_form: str = "general"
    qa_strength: float | None = None
    damping: float = DAMPING
    smoothing: float | None = None
    key_offset: bool | None = None
    rotate_values: bool = True
    embedding: str = "int8"
    calibration_tokens: int = 32768
    calibration_context: int = 2048

    def __post_init__(self) -> None:
        allowed = {
            "method": METHODS,
            "regime": REGIMES,
            "feedback": FEEDBACKS,
            "qa_form": QA_FORMS,
            "embedding": ("int8", "keep"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                given = getattr(self, name)
                raise InputError(f"{name} is {given!r}; it must be one of {', '.join(values)}")
        if self.calibration_context < 2 or self.calibration_tokens < self.calibration_context:
            raise InputError(
                f"{self.calibration_tokens} calibration tokens in windows of "
                f"{self.calibration_context}: give at least one window of at least 2 tokens"
            )
        if not 0 <= self.damping < float("inf"):
            raise InputError(f"damping is {self.damping}; it must be a number of at least 0")
        for name in ("qa_strength", "smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; it must be from 0 to 1")
        if self.qa_form != "general" and self.regime != "w+kv+a":
            raise InputError(
                f"qa_form {self.qa_form!r} describes the error of coded activations; regime "
                f"{self.regime!r} codes none: use 'general'"
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether calibration text runs through the model at all."""
        is_measured = self.fits_scales and self.regime != "w"
        return self.feedback != "none" or self.smooths > 0 or self.centres_keys or is_measured

    @property
    def fits_scales(self) -> bool:
        """Whether scales are yet to be fitted to the model."""
        return self.method == "nestquant" and self.betas == FITTED

    @property
    def scale_kinds(self) -> tuple[str, ...]:
        """What has scales of its own where they are fitted: each linear of a block, and so on."""
        cache = ("keys", "values") if self.regime != "w" else ()
        return (*BLOCK_LINEARS, *cache, *(("activations",) if self.regime == "w+kv+a" else ()))

    @property
    def smooths(self) -> float:
        """The exponent of smoothing, 0 for none."""
        if self.smoothing is not None:
            return self.smoothing
        return SMOOTHING if self.method in _SPHERICAL and self.regime == "w+kv+a" else 0.0

    @property
    def centres_keys(self) -> bool:
        """Whether keys are coded less their mean."""
        if self.regime == "w":
            return False
        return self.method in _SPHERICAL if self.key_offset is None else self.key_offset

    @property
    def strength(self) -> float:
        """Of the step to QA-LDLQ's target."""
        if self.qa_strength is not None:
            return self.qa_strength
        return STRENGTH if self.qa_form == "general" else 1.0

    def quantizer(self, name: str = BLOCK_LINEARS[0]) -> NestQuant | PVQ | Scalar:
        """Return the quantizer of a linear of `BLOCK_LINEARS`; they differ in their scales only."""
        if self.method == "pvq":
            group = 16 if self.group is None else self.group
            return PVQ(group, self.bits, self.gain_bits, rotate=self.rotate, seed=self.seed)
        if self.method != "nestquant":
            return Scalar(self.method, self.group, self.rotate, seed=self.seed)  # type: ignore[arg-type]
        return NestQuant(
            self.q,
            self.k,
            self.shaping,
            betas=self._betas(name),
            selection=self.selection,
            packing=self.packing,
            rotate=self.rotate,
            seed=self.seed,
        )

    def input_coding(self) -> Coding | None:
        """Return how activations are coded, if they are."""
        if self.regime != "w+kv+a":
            return None
        if self.method == "int4":
            return ScalarCoding("int4", self.group, clip=_ACTIVATION_CLIP)
        return self._coding("activations")

    def run_coding(self) -> RunCoding:
        """Return what is coded while the quantized model runs."""
        return RunCoding(self.input_coding(), self._cache_coding())

    def _cache_coding(self) -> CacheCoding | None:
        if self.regime == "w":
            return None
        if self.method == "int4":  # asymmetric, as the literature has it
            keys: Coding = ScalarCoding("int4", symmetric=False, clip=_CACHE_CLIP)
            values = keys
        else:
            keys, values = self._coding("keys"), self._coding("values")
        return CacheCoding(
            keys, values, rotate_values=self.rotate_values, key_offset=self.centres_keys
        )

    def _coding(self, kind: str) -> Coding:
        quantizer = self.quantizer()
        if isinstance(quantizer, Scalar):
            return ScalarCoding(self.method, self.group)
        if isinstance(quantizer, PVQ):
            words, levels = quantizer.code_and_levels(_LONG_ROW * quantizer.group)
            return PVQCoding(words.n, words.pulses, tuple(levels.tolist()))
        code, betas = quantizer.code, self._betas(kind)
        if isinstance(betas, str):
            betas = published_betas(kind, self.q) if betas == "published" else code.betas
        return NestCoding(code.q, betas, code.cell)

    def _betas(self, kind: str) -> str | tuple[float, ...]:
        """Return the scales of one of `scale_kinds`; until they are fitted, the tuned ones."""
        if not isinstance(self.betas, Mapping):
            return "tuned" if self.betas == FITTED else self.betas
        if kind not in self.betas:
            raise InputError(
                f"betas has no set for {kind!r}; this regime needs {', '.join(self.scale_kinds)}"
            )
        return self.betas[kind]
