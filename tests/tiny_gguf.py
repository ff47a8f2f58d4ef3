"""Tiny llama-architecture GGUF files, written with the gguf package's own writer."""

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np

D, F, LAYERS, H, G, K = 32, 64, 2, 4, 2, 8
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "\u0120 t", "\u0120t he", "l l", "l o", "he ll", "hell o", "1 2"]


def byte_alphabet() -> list[str]:
    """Return GPT-2's printable stand-in of each byte: Latin-1 where printable, else from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = (byte for byte in range(256) if byte not in printable)
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + index) for index, byte in enumerate(rest)}
    return [table[byte] for byte in range(256)]


def vocabulary() -> list[str]:
    return SPECIALS + byte_alphabet() + [merge.replace(" ", "") for merge in MERGES]


def layer_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "attn_norm": (D,),
        "attn_q": (H * K, D),
        "attn_k": (G * K, D),
        "attn_v": (G * K, D),
        "attn_output": (D, H * K),
        "ffn_norm": (D,),
        "ffn_gate": (F, D),
        "ffn_up": (F, D),
        "ffn_down": (D, F),
    }


def tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return float32 tensors of a model with tied embeddings, under llama.cpp's names."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(vocabulary()), D), "output_norm": (D,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in layer_shapes().items()}
    return {
        f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }


def biases(rng: np.random.Generator, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return float32 biases of linears of every layer, such as ``attn_q``."""
    return {
        f"blk.{layer}.{name}.bias": rng.standard_normal(layer_shapes()[name][:1], np.float32)
        for layer in range(LAYERS)
        for name in names
    }


def llama3_divisors(factor: float, theta: float, original: int) -> np.ndarray:
    """Follow the steps that llama.cpp's converter takes, one frequency after another."""
    divisors = []
    for i in range(0, K, 2):
        wavelength = 2 * np.pi * theta ** (i / K)
        if wavelength < original / 4:
            divisors.append(1.0)
        elif wavelength > original / 1:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def metadata(architecture: str = "llama") -> dict[str, Any]:
    n_tokens = len(vocabulary())
    shapes = {
        "block_count": LAYERS,
        "context_length": 128,
        "embedding_length": D,
        "feed_forward_length": F,
        "attention.head_count": H,
        "attention.head_count_kv": G,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 100000.0,
        "rope.dimension_count": K,
        "vocab_size": n_tokens,
    }
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in shapes.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary(),
        "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (n_tokens - len(SPECIALS)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }


ATTENTION = ("attn_q", "attn_k", "attn_v")


def variants() -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Return metadata and tensors of files of several kinds; weights keep numbers of order one."""
    rng = np.random.default_rng(7)

    def drawn(*biased: str) -> dict[str, np.ndarray]:
        found = tensors(rng) | biases(rng, biased)
        return {name: scaled(array, name.endswith(".bias")) for name, array in found.items()}

    def scaled(array: np.ndarray, is_bias: bool) -> np.ndarray:
        if array.ndim == 2:
            return array * np.float32(1.5 / np.sqrt(array.shape[1]))
        return np.float32(0.2) * array + np.float32(not is_bias)

    llama, far = metadata(), {"llama.rope.freq_base": 500000.0}
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    bos = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": True}
    qwen2 = metadata("qwen2") | {"tokenizer.ggml.pre": "qwen2"}
    divisors = llama3_divisors(8.0, 500000.0, 8192)
    return {
        "llama": (llama, drawn()),
        "linear": (llama | linear, drawn()),
        "llama-3.1": (llama | far | bos, drawn() | {"rope_freqs.weight": divisors}),
        "biased": (llama, drawn(*ATTENTION, "attn_output", "ffn_gate", "ffn_up", "ffn_down")),
        "qwen2": (qwen2, drawn(*ATTENTION)),
    }


def checksum(arrays: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of all arrays in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def write_gguf(
    path: Path,
    pairs: dict[str, Any],
    arrays: dict[str, np.ndarray],
    types: dict[str, str] | None = None,
) -> Path:
    """Write a GGUF file; an array whose type is named holds that type's raw bytes, row by row."""
    pairs = dict(pairs)
    writer = gguf.GGUFWriter(path, pairs.pop("general.architecture", "llama"))
    for key, value in pairs.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, array in arrays.items():
        kind = (types or {}).get(name)
        raw = None if kind is None else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, array, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny_model(path: Path, rng: np.random.Generator, **changes: Any) -> Path:
    """Write a whole tiny model; changed metadata by key (dots as two underscores), None removes."""
    pairs = metadata() | {key.replace("__", "."): value for key, value in changes.items()}
    pairs = {key: value for key, value in pairs.items() if value is not None}
    return write_gguf(path, pairs, tensors(rng))
