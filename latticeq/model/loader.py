"""From a Hugging Face folder to a running model, without copying the weights.

Foreign names are mended in one place, `sanitize`; what a weight becomes is decided in one place,
`make_linear`. Every tensor's presence and shape is checked before the first one is read. Matrices
stay memory-mapped; normalisation weights and biases, a few kilobytes each, become float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError
from latticeq.errors import context as error_context
from latticeq.linear.base import Linear, Table
from latticeq.linear.coded import CodedLinear
from latticeq.linear.dense import DenseLinear
from latticeq.linear.packed import make_packed_linear, make_tiled_linear
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.coding import KVCoding
from latticeq.model.llama import BLOCK_LINEARS, BLOCK_NORMS, Block, Llama
from latticeq.model.run_coding import RunCoding
from latticeq.storage.checkpoint import quantization_config, read_packed, stored_shapes
from latticeq.storage.formats.base import Packed
from latticeq.storage.safetensors import TensorFolder

__all__ = [
    "Weights",
    "expected_tensors",
    "load",
    "load_block",
    "load_config",
    "load_embedding",
    "load_kv_coding",
    "make_linear",
    "sanitize",
]

_FLOATS = ("F32", "F16", "BF16")

_FOREIGN = {
    ".weight.quant_map": "bitsandbytes",
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors or another library of 8 bits",
    ".weight_scale_inv": "another library of 8 bits",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".scales": "MLX, GPTQ or AWQ",
}
"""Ends of tensor names that give away who quantized a model."""


def load(folder: str | Path, context: int | None = None, *, runtime: str = "packed") -> Llama:
    """Load a model folder.

    Parameters
    ----------
    folder : str or Path
        With ``config.json`` and safetensors weights, single or sharded.
    context : int, optional
        The default context of caches; at most the model's ``longest_context``, which is the
        default: its ``max_position_embeddings``, or its sliding window if that is shorter.
    runtime : "packed", "int8" or "float32"
        How packed matrices are multiplied, see `latticeq.linear.packed.RUNTIMES`.

    Raises
    ------
    FormatError
        If a file is missing or damaged, or a tensor is missing, left over or of the wrong shape.
    InputError
        If the configuration is one that this forward pass does not do.
    """
    config = load_config(folder)
    if context is not None:
        config.check_context(context)
    weights = Weights(folder, config)
    embedding = load_embedding(weights, runtime)
    blocks = [load_block(weights, index, runtime) for index in range(config.num_hidden_layers)]
    head = embedding if config.tie_word_embeddings else make_linear(weights, "lm_head", runtime)
    norm = weights.float32("model.norm.weight")
    linears = [linear for block in blocks for linear in block.linears.values()]
    is_float = all(isinstance(linear, DenseLinear) for linear in linears)
    return Llama(
        config,
        embedding,
        blocks,
        norm,
        head,
        kv=load_kv_coding(weights, range(config.num_hidden_layers)),
        # Beside quantized weights eleven bits cost nothing: perplexity moves by a part in 10**5.
        cache_dtype=np.float32 if is_float else np.float16,
        context=context,
        folder=Path(folder),
    )


def load_config(folder: str | Path) -> LlamaConfig:
    """Read ``config.json``.

    Raises
    ------
    FormatError
        If it is missing, is not JSON, or describes weights quantized by other software.
    InputError
        If a field is not one that the forward pass can follow.
    """
    path = Path(folder) / "config.json"
    if not path.exists() and (Path(folder) / "adapter_config.json").exists():
        raise FormatError(
            f"{folder} holds an adapter (adapter_config.json), not a model; merge it into its base "
            "model first, and give the folder of the result"
        )
    values = _read_json(path)
    with error_context(str(path)):
        for name in ("quantization_config", "quantization", "compression_config"):
            if name in values and values[name] is not None:
                _refuse_foreign(name, values[name])
        return LlamaConfig.from_dict(values)


def _refuse_foreign(name: str, quantized: Any) -> None:
    """Refuse what config.json says of weights that other software quantized."""
    method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
    if name != "quantization_config" or method != "latticeq":
        raise FormatError(
            f"has weights quantized by {method or name!r} ({name}); give the folder of the float "
            "model: float32, float16 or bfloat16"
        )


def _read_json(path: Path) -> dict[str, Any]:
    with error_context(str(path)):
        try:
            values: Any = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise FormatError("is missing; give a Hugging Face model folder") from error
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise FormatError("is not a JSON object")
    return values


class Weights:
    """The tensors of a folder under the names that this package uses, all checked.

    Parameters
    ----------
    folder : str or Path
    config : LlamaConfig
    quantized : mapping, optional
        A checked ``quantization_config``; that of the folder's config.json, if it has one, if
        omitted.
    prefix : str
        Of the names that the folder holds, where it holds a part of a model.

    Raises
    ------
    FormatError
        Naming a tensor that is missing, left over or of the wrong shape.
    """

    def __init__(
        self,
        folder: str | Path,
        config: LlamaConfig,
        quantized: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> None:
        self.config = config
        self.folder = TensorFolder(Path(folder))
        self._stored = sanitize(self.folder.names, config)
        if quantized is None:
            quantized = _quantization(Path(folder))
        if not quantized:
            _refuse_foreign_tensors(self.folder)
        with error_context(str(folder)):
            self.coding = RunCoding.from_config(quantized)
        shapes = expected_tensors(config) | self._expected_offsets()
        self._shapes = {name: size for name, size in shapes.items() if name.startswith(prefix)}
        self.entries: dict[str, dict[str, Any]] = quantized.get("tensors", {})
        _check_shapes(Path(folder), self.entries, self._shapes)
        for name, shape in self._shapes.items():
            if name in self.entries:  # its arrays are checked when they are mapped
                if name in self._stored:
                    raise FormatError(
                        f"{self.folder.folder}: tensor {name} is stored in floats, and config.json "
                        "says that it is quantized"
                    )
                for suffix in stored_shapes(self.entries[name]):
                    self._stored.pop(f"{name}.{suffix}", None)
                continue
            if name not in self._stored:
                hint = "; set tie_word_embeddings if there is none" if "lm_head" in name else ""
                raise FormatError(
                    f"{self.folder.folder}: tensor {name} of shape {shape} is missing{hint}"
                )
            info = self.folder.info(self._stored[name])
            if info.shape != shape:
                raise FormatError(
                    f"{info.path}: tensor {info.name} has shape {info.shape}; config.json makes it "
                    f"{shape}"
                )
        for name in sorted(set(self._stored) - set(self._shapes)):
            raise FormatError(
                f"{self.folder.folder}: tensor {self._stored[name]} has no place in a "
                f"{config.architecture}; config.json may belong to another model"
            )

    def _expected_offsets(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of the mean keys, where the cache's coding has them."""
        if not (self.coding.cache and self.coding.cache.key_offset):
            return {}
        size = (self.config.num_key_value_heads, self.config.head_dim)
        return {_offset(index): size for index in range(self.config.num_hidden_layers)}

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def packed(self, name: str) -> Packed:
        """Return a quantized matrix, mapped.

        Raises
        ------
        FormatError
            If its arrays are missing or not what config.json says.
        """
        return read_packed(self.folder, name, self.entries[name])

    def float32(self, name: str) -> NDArray[np.float32]:
        """Return a small tensor in float32, checked to be finite.

        Raises
        ------
        FormatError
            If it holds NaN or infinities.
        """
        stored = self._stored[name]
        values = np.array(self.folder.float32(stored))
        if not np.isfinite(values).all():
            raise FormatError(
                f"{self.folder.info(stored).path}: tensor {stored} holds NaN or infinite numbers"
            )
        return values

    def matrix(self, name: str) -> NDArray[Any]:
        """Return a matrix as stored (bfloat16 as uint16), mapped; other dtypes as float32."""
        stored = self._stored[name]
        if self.folder.info(stored).dtype in _FLOATS:
            return self.folder.raw(stored)
        return self.folder.float32(stored)

    def matrix_float32(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Return rows of a float matrix in float32: the map itself if it is stored so."""
        return self.folder.float32(self._stored[name], rows)


def _refuse_foreign_tensors(folder: TensorFolder) -> None:
    """Refuse tensors that only other quantizers write; some say nothing of it in config.json."""
    for name in folder.names:
        for suffix, software in _FOREIGN.items():
            if name.endswith(suffix):
                raise FormatError(
                    f"{folder.folder}: tensor {name} is of weights quantized by {software}; give "
                    "the folder of the float model: float32, float16 or bfloat16"
                )


def _quantization(folder: Path) -> dict[str, Any]:
    """Return the quantization_config of a folder, checked; empty for a float model."""
    config = _read_json(folder / "config.json")
    if "quantization_config" not in config:
        return {}
    with error_context(str(folder)):
        return quantization_config(config)


def _check_shapes(
    folder: Path, entries: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse entries of quantized matrices that do not fit the model."""
    for name, entry in entries.items():
        if shapes.get(name) != tuple(entry["shape"]):
            raise FormatError(
                f"{folder}: config.json quantizes {name} of shape {entry['shape']}; the model has "
                f"{list(shapes[name]) if name in shapes else 'no such tensor'}"
            )
        if name == "model.embed_tokens.weight" and entry["format"] != "int8":
            raise FormatError(
                f"{folder}: config.json stores {name} as {entry['format']}; rows need int8"
            )


def sanitize(names: Iterable[str], config: LlamaConfig) -> dict[str, str]:
    """Map our names to those in a file, leaving out what the model does not need.

    - rotary frequencies that old exports stored are dropped: `rope` computes them;
    - a stored head is dropped where the configuration ties it to the embedding;
    - exports of the bare model lack the prefix ``model.``.

    Parameters
    ----------
    names : iterable of str
        Of the tensors in the file.
    config : LlamaConfig

    Returns
    -------
    dict of str to str
    """
    mapped = {}
    for name in names:
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        has_prefix = name.startswith(("model.", "lm_head."))
        mapped[name if has_prefix else f"model.{name}"] = name
    return mapped


def expected_tensors(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a float model of this shape has."""
    d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    hk = config.num_attention_heads * config.head_dim
    gk = config.num_key_value_heads * config.head_dim
    matrices = dict(
        zip(
            BLOCK_LINEARS, [(hk, d), (gk, d), (gk, d), (d, hk), (f, d), (f, d), (d, f)], strict=True
        )
    )
    biased = [config.qkv_bias] * 3 + [config.o_bias] + [config.mlp_bias] * 3
    expected: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d)}
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}"
        for (name, shape), has_bias in zip(matrices.items(), biased, strict=True):
            expected[f"{prefix}.{name}.weight"] = shape
            if has_bias:
                expected[f"{prefix}.{name}.bias"] = shape[:1]
        for name in BLOCK_NORMS:
            expected[f"{prefix}.{name}.weight"] = (d,)
    expected["model.norm.weight"] = (d,)
    if not config.tie_word_embeddings:
        expected["lm_head.weight"] = (v, d)
    return expected


def make_linear(weights: Weights, name: str, runtime: str = "packed") -> Linear:
    """Return the linear that a weight becomes.

    Parameters
    ----------
    weights : Weights
    name : str
        Without ``.weight``, such as ``model.layers.0.mlp.up_proj``.
    runtime : str
        As in `load`.
    """
    bias = weights.float32(f"{name}.bias") if f"{name}.bias" in weights else None
    if f"{name}.weight" not in weights.entries:
        return DenseLinear(weights.matrix(f"{name}.weight"), bias)
    packed, coding = weights.packed(f"{name}.weight"), weights.coding.inputs
    if coding is None or not name.startswith("model.layers."):
        return make_packed_linear(packed, bias, runtime)
    # Coded inputs meet weights as they are stored: rounding either would blur what is measured.
    linear = make_tiled_linear(packed, bias, "float32" if runtime == "float32" else "packed")
    with error_context(f"{weights.folder.folder}: the coding of activations"):
        return CodedLinear(linear, coding.codec(linear.in_features))


def load_kv_coding(weights: Weights, layers: Iterable[int]) -> KVCoding | None:
    """Return how caches of some layers keep keys and values; None for floats."""
    cache = weights.coding.cache
    if cache is None:
        return None
    offset = None
    if cache.key_offset:
        offset = np.stack([weights.float32(_offset(index)) for index in layers])
    with error_context(f"{weights.folder.folder}: the coding of keys and values"):
        return cache.coding(weights.config.head_dim, offset)


def _offset(index: int) -> str:
    return f"model.layers.{index}.self_attn.key_offset"


def load_embedding(weights: Weights, runtime: str = "packed") -> Table:
    """Return the token embeddings, whose ``rows`` start the residual stream."""
    table = make_linear(weights, "model.embed_tokens", runtime)
    assert isinstance(table, Table)  # what may be stored there was checked with config.json
    return table


def load_block(weights: Weights, index: int, runtime: str = "packed") -> Block:
    """Return one block; calibration streams through a model by loading one after the other."""
    prefix = f"model.layers.{index}"
    return Block(
        weights.config,
        {name: make_linear(weights, f"{prefix}.{name}", runtime) for name in BLOCK_LINEARS},
        {name: weights.float32(f"{prefix}.{name}.weight") for name in BLOCK_NORMS},
    )
