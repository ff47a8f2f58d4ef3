"""The verb ``latticeq warmup``: compile what running a model needs, before it is needed.

With a folder: that model's kernels, by running it on prompts of several lengths. Without: tiny
models of random codes, one for each format and each regime. Kernels are compiled for the types of
their arguments, not for their sizes, so a tiny model stands for all of its format.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli.console import say
from latticeq.cli.contents import read_config
from latticeq.cli.runtime import add_runtime_argument, chosen_runtime
from latticeq.cli.tables import duration

if TYPE_CHECKING:
    from latticeq.linear.base import Linear
    from latticeq.model.llama import Llama

__all__ = ["HELP", "add_arguments", "run", "tiny_models"]

HELP = "compile the kernels that models need, ahead of time"

PROMPTS = (16, 1, 2, 64, 512)
"""Tokens that are taken in at once: kernels for one token, for few and for many differ."""

_FIRST_PROMPT = PROMPTS[0]

WIDTH, INNER, HEAD = 96, 128, 64
"""Of tiny models: one rotation of a power of two, and one of twelve times one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        nargs="?",
        help="a model folder (default: tiny models of every format, which takes longer)",
    )
    add_runtime_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run models until every kernel is in the cache folder; say how long it took."""
    from latticeq.cli.progress import compile_notice

    start = time.perf_counter()
    if args.folder is not None:
        from latticeq.model.loader import load
    from latticeq.jit import IS_JIT, kernel_cache

    import_s = time.perf_counter() - start
    compile_notice()
    before = _kernels(kernel_cache())
    models = []
    if args.folder is None:
        for name, model in _with_bar(tiny_models()):
            models.append(_timed(name, model, 0.0))
    else:
        loading = time.perf_counter()
        runtime = chosen_runtime(args.folder, args.runtime, read_config(args.folder))
        model = load(args.folder, runtime=runtime)
        models.append(_timed(str(args.folder), model, time.perf_counter() - loading))
    seconds = time.perf_counter() - start
    compiled = _kernels(kernel_cache()) - before
    for found in models:
        if args.folder is not None:
            say(
                f"imports {import_s:.2f} s, load {found['load_s']:.2f} s, first token of a prompt "
                f"of {_FIRST_PROMPT} {found['first_token_s']:.2f} s"
            )
    if not IS_JIT:
        say("nothing to compile: NUMBA_DISABLE_JIT is set")
    elif compiled:
        say(f"compiled {compiled} kernels in {duration(seconds)}; kept in {kernel_cache()}")
    else:
        say(f"all kernels were compiled already; loaded and run in {duration(seconds)}")
    return {
        "seconds": round(seconds, 3),
        "compiled": compiled,
        "import_s": round(import_s, 3),
        "models": models,
        "cache_folder": kernel_cache(),
        "threads": args.threads,
    }


def _with_bar(models: Iterator[tuple[str, Llama]]) -> Iterator[tuple[str, Llama]]:
    """Yield the same, with a bar on stderr."""
    from tqdm import tqdm

    with tqdm(total=len(_tiny_settings()), unit="model", leave=False) as bar:
        for name, model in models:
            bar.set_description(name)
            yield name, model
            bar.update()


def _kernels(folder: Path) -> int:
    """Return how many compiled kernels a cache folder holds."""
    return sum(1 for _ in folder.glob("**/*.nbc"))


def _timed(name: str, model: Llama, load_s: float) -> dict[str, Any]:
    """Run a model; return what it took, and what the first token took."""
    start = time.perf_counter()
    vocabulary, context = model.config.vocab_size, model.context
    first_s = 0.0
    for count in PROMPTS:
        if count + 2 <= context:
            cache = model.new_cache(count + 2)
            model.prefill([token % vocabulary for token in range(count)], cache)
            first_s = first_s or time.perf_counter() - start
            for token in (0, 1):
                model.decode_step(token % vocabulary, cache)
    ids = [token % vocabulary for token in range(min(4, context))]
    model.nll(model.hidden(ids, model.new_cache(len(ids))), ids)
    return {
        "model": name,
        "load_s": round(load_s, 3),
        "first_token_s": round(first_s, 3),
        "seconds": round(load_s + time.perf_counter() - start, 3),
    }


def _tiny_settings() -> list[tuple[str, str, dict[str, Any]]]:
    """Return a name, the format of the linears, and the options that say what else is coded."""
    nest, grid = "voronoi q=16 k=4", "int4 groups of 32"
    return [
        ("float", "", {}),
        ("nestquant, weights", nest, {"regime": "w"}),
        ("nestquant, weights and cache", nest, {"regime": "w+kv"}),
        ("nestquant, all", nest, {"regime": "w+kv+a"}),
        ("cubic", "cubic q=16 k=8", {}),
        ("d8", "d8 q=16 k=8", {}),
        ("nestquantm", "nestquantm q=16 k=4", {}),
        ("pvq, weights", "pvq groups of 16", {"method": "pvq", "regime": "w"}),
        ("pvq, all", "pvq groups of 16", {"method": "pvq", "regime": "w+kv+a"}),
        ("int4, weights", grid, {"method": "int4", "regime": "w"}),
        ("int4, all", grid, {"method": "int4", "regime": "w+kv+a"}),
        ("nf4", "nf4 groups of 64", {"method": "nf4", "regime": "w"}),
        ("mxfp4", "mxfp4", {"method": "mxfp4", "regime": "w"}),
        ("nvfp4", "nvfp4", {"method": "nvfp4", "regime": "w"}),
    ]


def tiny_models() -> Iterator[tuple[str, Llama]]:
    """Yield a name and a model of one block for each format and regime."""
    for name, kind, options in _tiny_settings():
        yield name, _tiny_model(kind, options)


def _tiny_model(kind: str, options: dict[str, Any]) -> Llama:
    import numpy as np

    from latticeq.cli.random_matrices import random_packed
    from latticeq.linear.base import Table
    from latticeq.linear.coded import CodedLinear
    from latticeq.linear.dense import DenseLinear
    from latticeq.linear.packed import make_tiled_linear
    from latticeq.model.config import LlamaConfig
    from latticeq.model.llama import BLOCK_LINEARS, BLOCK_NORMS, Block, Llama
    from latticeq.model.options import Options

    config = LlamaConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": HEAD,
            "vocab_size": 64,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
        }
    )
    coding = Options(**({"regime": "w"} | options)).run_coding()

    def linear(rows: int, columns: int) -> Linear:
        if not kind:  # bfloat16, as most float models are stored
            return DenseLinear(np.full((rows, columns), 0x3C00, np.uint16))
        made = make_tiled_linear(random_packed(kind, rows, columns))
        return made if coding.inputs is None else CodedLinear(made, coding.inputs.codec(columns))

    heads, shared = config.num_attention_heads * HEAD, config.num_key_value_heads * HEAD
    shapes = [(heads, WIDTH), (shared, WIDTH), (shared, WIDTH), (WIDTH, heads)]
    shapes += [(INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
    linears = {name: linear(*shape) for name, shape in zip(BLOCK_LINEARS, shapes, strict=True)}
    norms = {name: np.ones(WIDTH, np.float32) for name in BLOCK_NORMS}
    table = linear(config.vocab_size, WIDTH)
    if kind:
        table = make_tiled_linear(random_packed("int8 per row", config.vocab_size, WIDTH))
    assert isinstance(table, Table)
    offset = None
    if coding.cache is not None and coding.cache.key_offset:
        offset = np.zeros((1, config.num_key_value_heads, HEAD), np.float32)
    kv = None if coding.cache is None else coding.cache.coding(HEAD, offset)
    block = Block(config, linears, norms)
    return Llama(config, table, [block], np.ones(WIDTH, np.float32), table, kv=kv)
