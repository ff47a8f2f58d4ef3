"""Models of random weights for llama.cpp: ``python -m tests.bench.random_gguf FILE [--help]``.

The shapes are those of `tests.bench.random_model`, beside whose models they are measured. Tensors
of one shape hold the same numbers, each in bytes of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.random_model import SHAPES, config_of
from tests.tiny_llama import tensor_shapes

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""llama.cpp's names by ours."""

KINDS = ("Q4_0", "F16")


def main() -> None:
    """Read the arguments, write, say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="the .gguf to write")
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="default %(default)s")
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0], help="default %(default)s")
    args = parser.parse_args()
    write_random_gguf(args.file, config_of(args.shape), args.kind)
    print(f"{args.file}: {args.file.stat().st_size / 1e6:.1f} MB")


def write_random_gguf(path: Path, config: Mapping[str, Any], kind: str) -> None:
    """Write a model, matrices in one type; in Q4_0 the head is Q6_K, as llama-quantize has it."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    words = [f"<{number}>" for number in range(config["vocab_size"])]
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3] + [1] * (len(words) - 3))
    made: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}
    for name, shape in tensor_shapes(config).items():
        stored = "F32" if len(shape) == 1 else kind
        if name == "lm_head.weight" and kind == "Q4_0":
            stored = "Q6_K"
        if (stored, shape) not in made:
            made[stored, shape] = _random_tensor(stored, shape)
        dtype = gguf.GGMLQuantizationType[stored]
        writer.add_tensor(peer_name(name), made[stored, shape], raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peer_name(name: str) -> str:
    """Return llama.cpp's name of a tensor."""
    if name in NAMES:
        return NAMES[name]
    layer, inner = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{NAMES[inner]}.weight"


def _random_tensor(stored: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return norms of ones, or rows of length one or so: numbers, or the bytes of their blocks."""
    rng = np.random.default_rng(0)
    if stored == "F32":
        return np.ones(shape, np.float32)
    if stored == "F16":
        return (rng.standard_normal(shape, np.float32) / np.sqrt(shape[1])).astype(np.float16)
    # A scale in float16 before 16 bytes of 32 numbers, or after 208 bytes of 256; and how large the
    # numbers of such random bytes are under a scale of one.
    numbers, size, at, spread = (32, 18, 0, 4.6) if stored == "Q4_0" else (256, 210, 208, 1400.0)
    blocks = np.frombuffer(rng.bytes(shape[0] * shape[1] // numbers * size), np.uint8)
    blocks = blocks.reshape(shape[0], -1, size).copy()
    blocks[..., at : at + 2] = np.array([1 / spread / np.sqrt(shape[1])], np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


if __name__ == "__main__":
    main()
