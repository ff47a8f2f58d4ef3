"""What reads files from elsewhere: for each reader valid files, damage to them, and the reading.

`Reader.make` draws the files of a folder, most of them damaged, and `Reader.read` reads them as the
program would. Reading ends, or raises a `LatticeqError`; whatever else it does is a finding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.numpy

from latticeq.cli.layer_report import REPORT, read_layer_report
from latticeq.errors import LatticeqError, context
from latticeq.linear.packed import RUNTIMES, make_packed_linear
from latticeq.model.chat_template import ChatTemplate
from latticeq.model.gguf_import import gguf_config
from latticeq.model.gguf_tokenizer import build_tokenizer, tokenizer_config
from latticeq.model.loader import load
from latticeq.model.options import Options
from latticeq.model.quantize import _calibration, quantize
from latticeq.model.tokenizer import Tokenizer
from latticeq.quantizers.scalar import Int8
from latticeq.storage.checkpoint import describe, pack, read_packed, verify
from latticeq.storage.gguf import GGUFFile
from latticeq.storage.safetensors import INDEX, SINGLE, TensorFolder
from tests.chat_templates import REAL
from tests.hostile.mutations import damaged_bytes, damaged_json, random_bytes
from tests.hostile.unigram import unigram_tokenizer
from tests.storage.packed_models import random_grid, random_nest, random_pvq, write_checkpoint_of
from tests.tiny_gguf import metadata, tensors, write_gguf
from tests.tiny_llama import CONFIGS
from tests.tiny_model import byte_config, write_byte_model

__all__ = ["READERS", "Files", "Reader"]

Files = dict[str, bytes]
HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}] * 2
TEXT = "The quick brown fox, ünïcode and 日本語. "
SMALL: dict[str, Any] = {"calibration_tokens": 64, "calibration_context": 32}
OPTIONS = Options(feedback="ldlq", **SMALL)


@dataclass(frozen=True)
class Reader:
    """A reader's name, what draws the files that it is given, the reading, and valid files."""

    name: str
    make: Callable[[Random], Files]
    read: Callable[[Path], None]
    valid: list[Files]


def contents(folder: Path) -> Files:
    """Return the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _one_damaged(files: Files, name: str) -> Callable[[Random], Files]:
    """Return what damages the bytes of one file; now and then it is another one altogether."""

    def make(rng: Random) -> Files:
        data = random_bytes(rng) if rng.random() < 0.02 else damaged_bytes(rng, files[name])
        return files | {name: data}

    return make


def _json_damaged(files: Files, names: list[str]) -> Callable[[Random], Files]:
    """Return what damages the values in one of some JSON files."""
    values = {name: json.loads(files[name]) for name in names}

    def make(rng: Random) -> Files:
        name = rng.choice(names)
        return files | {name: damaged_json(rng, values[name])}

    return make


def _read_tensors(folder: Path) -> None:
    with TensorFolder(folder) as opened:
        for name in opened.names:
            try:
                opened.float32(name)
            except LatticeqError:
                assert opened.info(name).dtype not in ("F32", "F16", "BF16", "F64")


def _safetensors(folder: Path) -> Reader:
    folder.mkdir()
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.half": np.ones(5, np.float16),
        "c": np.zeros((2, 0, 3), np.float64),
        "d": np.arange(9, dtype=np.uint8),
        "e": np.array(3, np.int64),
    }
    safetensors.numpy.save_file(arrays, folder / SINGLE, {"format": "pt"})
    whole = (folder / SINGLE).read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:length])

    def make(rng: Random) -> Files:
        kind = rng.random()
        if kind < 0.4:
            return {SINGLE: damaged_bytes(rng, whole)}
        if kind < 0.42:
            return {SINGLE: random_bytes(rng)}
        text = damaged_json(rng, header)
        if rng.random() < 0.1:
            text = text[:-1] + b"," + text[1:]  # names twice
        size = rng.choice([len(text)] * 9 + [len(text) + 1, 2**32, 2**63])
        return {SINGLE: size.to_bytes(8, "little") + text + whole[length:]}

    return Reader("safetensors", make, _read_tensors, [{SINGLE: whole}])


def _index(folder: Path) -> Reader:
    folder.mkdir()
    map_of = {}
    for number in range(3):
        names = {f"w{number}.{i}": np.full(3, i, np.float32) for i in range(3)}
        safetensors.numpy.save_file(names, folder / f"s-{number}.safetensors")
        map_of |= dict.fromkeys(names, f"s-{number}.safetensors")
    index = {"metadata": {"total_size": 108}, "weight_map": map_of}
    (folder / INDEX).write_text(json.dumps(index))
    files = contents(folder)
    return Reader("index", _json_damaged(files, [INDEX]), _read_tensors, [files])


def _load(folder: Path) -> None:
    model = load(folder)
    ids = [1, 2, 3][: model.config.longest_context]
    # Scales and norms may be as large as floats go; what runs knows of no file.
    with np.errstate(all="ignore"), context(str(folder)):
        logits = model.logits(ids)
    assert logits.shape == (len(ids), model.config.vocab_size)


def _config(folder: Path) -> Reader:
    write_byte_model(folder, byte_config("tied", num_hidden_layers=1))
    files = contents(folder)
    same = {"vocab_size": 256, "eos_token_id": 0, "num_hidden_layers": 1}
    fitting = [
        CONFIGS[name] | same | {"tie_word_embeddings": True}
        for name in ("tied", "linear_rope", "llama3_rope", "mistral")
    ]
    others = [config | same for config in CONFIGS.values()]

    def make(rng: Random) -> Files:
        config = rng.choice(fitting if rng.random() < 0.8 else others)
        return files | {"config.json": damaged_json(rng, config)}

    valid = [files | {"config.json": json.dumps(config).encode()} for config in fitting]
    return Reader("config", make, _load, valid)


def _quantization(folder: Path) -> Reader:
    source = write_byte_model(folder / "source", byte_config("tied", num_hidden_layers=1))
    methods: list[dict[str, Any]] = [
        {"regime": "w+kv+a"},
        {"regime": "w+kv+a", "method": "pvq", "group": 8},
        {"shaping": "d8", "k": 8, "regime": "w+kv"},
        {"q": 14, "packing": "radix"},
        {"method": "int4", "group": 16},
        {"method": "nvfp4"},
    ]
    variants = []
    for number, options in enumerate(methods):
        out = folder / str(number)
        quantize(source, out, feedback="none", **SMALL, **options)
        files = contents(out)
        variants.append((files, json.loads(files["config.json"])))

    def make(rng: Random) -> Files:
        files, config = rng.choice(variants)
        changed = json.loads(
            damaged_json(rng, config["quantization_config"]).decode(**LOSSY) or "0"
        )
        return files | {
            "config.json": json.dumps(config | {"quantization_config": changed}).encode()
        }

    valid = [files for files, _ in variants]
    return Reader("quantization_config", _retried(make), _load, valid)


LOSSY: dict[str, Any] = {"errors": "replace"}


def _retried(make: Callable[[Random], Files]) -> Callable[[Random], Files]:
    """Draw again where the damage left no JSON to put into a larger file."""

    def again(rng: Random) -> Files:
        while True:
            try:
                return make(rng)
            except ValueError:
                continue

    return again


def _packed(folder: Path) -> Reader:
    matrices = {
        "nest": random_nest(20, 24, 14, 3),
        "radix": random_nest(20, 24, 14, 3, packing="radix"),
        "nestquantm": random_nest(20, 24, 16, 4, cell="nestquantm"),
        "cubic": random_nest(20, 24, 16, 8, cell="cubic"),
        "d8": random_nest(20, 24, 14, 5, cell="d8"),
        "int4": random_grid(20, 24, "int4", 8, symmetric=False),
        "nf4": random_grid(20, 24, "nf4", 8),
        "mxfp4": random_grid(20, 64, "mxfp4", 32),
        "nvfp4": random_grid(20, 64, "nvfp4", 16),
        "pvq": random_pvq(20, 48, 16, 8, 3),
        "pvq_wide": random_pvq(20, 64, 32, 40, 2),  # indices of more than 64 bits
        "pvq_plain": random_pvq(20, 48, 8, 5, 0),  # no levels to choose from
        "int8": Int8().quantize(np.random.default_rng(0).normal(size=(20, 24))),
    }
    entries = {name: describe(matrix) for name, matrix in matrices.items()}
    arrays = {name: pack(matrix) for name, matrix in matrices.items()}

    def make(rng: Random) -> Files:
        name = rng.choice(list(matrices))
        parts = _weights(arrays[name])
        for _ in range(rng.choice([1, 1, 2, 4])):
            raw = parts[rng.choice(list(parts))].reshape(-1).view(np.uint8)
            at = rng.randrange(raw.size)
            raw[at : at + rng.choice([1, 1, 2, 8, raw.size])] = rng.choice(
                [0, 255, rng.randrange(256)]
            )
        if rng.random() < 0.1:
            wrong = rng.choice(list(parts))
            parts[wrong] = rng.choice([parts[wrong][:-1], parts[wrong].view(np.uint8)])
        return {SINGLE: safetensors.numpy.save(parts), "entry": name.encode()}

    def read(folder: Path) -> None:
        entry = entries[(folder / "entry").read_text()]
        packed = read_packed(TensorFolder(folder), "w", entry)
        with np.errstate(all="ignore"):
            packed.unpack().dequantize()
            for runtime in RUNTIMES:
                for tokens in (1, 3):
                    x = np.ones((tokens, entry["shape"][1]), np.float32)
                    assert make_packed_linear(packed, None, runtime)(x).shape == (tokens, 20)

    valid = [
        {SINGLE: safetensors.numpy.save(_weights(arrays[name])), "entry": name.encode()}
        for name in arrays
    ]
    return Reader("packed", make, read, valid)


def _weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"w.{suffix}": array.copy() for suffix, array in arrays.items()}


def _gguf(folder: Path) -> Reader:
    folder.mkdir()
    path = write_gguf(folder / "m.gguf", metadata(), tensors(np.random.default_rng(1)))
    whole = path.read_bytes()
    header = whole.index(b"token_embd") + 4000

    def make(rng: Random) -> Files:
        if rng.random() < 0.02:
            return {"m.gguf": b"GGUF" + random_bytes(rng)}
        data = damaged_bytes(rng, whole[:header]) + whole[header:]
        return {"m.gguf": data if rng.random() < 0.9 else damaged_bytes(rng, whole)}

    def read(folder: Path) -> None:
        file = GGUFFile(folder / "m.gguf")
        with np.errstate(all="ignore"):
            for name in file.tensors:
                file.float32(name)
        gguf_config(folder / "m.gguf")
        with context(str(file.path)):  # as in import_gguf
            build_tokenizer(file.metadata)
            tokenizer_config(file.metadata, 128)

    return Reader("gguf", make, read, [{"m.gguf": whole}])


def _read_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.tokenize(TEXT)
    tokenizer.tokenize_prompt(TEXT)
    tokenizer.detokenize([*ids, 0, 5, 300, 2**31])
    stream = tokenizer.stream()
    for token in ids[:20]:
        stream.push(token)
    stream.finish()


def _tokenizer(folder: Path) -> Reader:
    write_byte_model(folder, byte_config("tied", num_hidden_layers=1))
    files = {"config.json": (folder / "config.json").read_bytes()}
    given = metadata()
    given["tokenizer.ggml.token_type"] = np.array(given["tokenizer.ggml.token_type"])
    wordy, unigram = json.loads(build_tokenizer(given).to_str()), unigram_tokenizer()

    def make(rng: Random) -> Files:
        return files | {"tokenizer.json": damaged_json(rng, rng.choice([wordy, wordy, unigram]))}

    valid = [files | {"tokenizer.json": json.dumps(one).encode()} for one in (wordy, unigram)]
    return Reader("tokenizer", make, _read_tokenizer, valid)


def _token_configs(folder: Path) -> Reader:
    write_byte_model(folder, byte_config("tied", num_hidden_layers=1))
    named: dict[str, Any] = {
        "tokenizer_config.json": {
            "eos_token": {"content": "!"},
            "bos_token": '"',
            "chat_template": [
                {"name": "default", "template": REAL["chatml"]},
                {"name": "tools", "template": "{{ messages }}"},
            ],
        },
        "generation_config.json": {"eos_token_id": [0, 5], "bos_token_id": 1, "pad_token_id": 2},
        "special_tokens_map.json": {"eos_token": "!", "unk_token": {"content": "?"}},
    }
    files = contents(folder) | {name: json.dumps(value).encode() for name, value in named.items()}
    del files[SINGLE]

    def read(folder: Path) -> None:
        failure: LatticeqError | None = None
        for read in (_read_tokenizer, _read_template):
            try:
                read(folder)
            except LatticeqError as error:
                failure = error
        if failure:
            raise failure

    return Reader("token_configs", _json_damaged(files, [*named, "config.json"]), read, [files])


def _read_template(folder: Path) -> None:
    assert isinstance(ChatTemplate.from_folder(folder).render(HELLO), str)


def _template(_: Path) -> Reader:
    pieces = ["{{", "}}", "{%", "%}", "{% for m in messages %}", "{% endfor %}", "{% if true %}"]
    pieces += [
        "{% endif %}",
        "messages",
        "[0]",
        "|",
        "join",
        "tojson",
        "*",
        "9999999",
        "'a'",
        "(",
        ")",
    ]
    pieces += ["range(99999)", "~", "loop", "{% set x = ", "namespace(a=1)", ".content", "['role']"]

    def make(rng: Random) -> Files:
        source = rng.choice(list(REAL.values()))
        for _ in range(rng.choice([1, 1, 2, 4])):
            at, cut = rng.randrange(len(source) + 1), rng.choice([0, 0, 1, 3, 12])
            piece = rng.choice([*pieces, chr(rng.choice([0, 10, 0x7F, 0x2028, 0x1F600]))])
            source = source[:at] + piece * rng.choice([1, 1, 1, 50]) + source[at + cut :]
        data = source.encode()
        return {"chat_template.jinja": damaged_bytes(rng, data) if rng.random() < 0.1 else data}

    valid = [{"chat_template.jinja": source.encode()} for source in REAL.values()]
    return Reader("template", make, _read_template, valid)


def _checksums(folder: Path) -> Reader:
    folder.mkdir()
    write_checkpoint_of(folder / "m", {"w": random_nest(20, 24, 14, 3)})
    files = contents(folder / "m")
    damage_sums = _json_damaged(files, ["checksums.json"])
    damage_rest = [_one_damaged(files, name) for name in files]

    def make(rng: Random) -> Files:
        return (damage_sums if rng.random() < 0.8 else rng.choice(damage_rest))(rng)

    def read(folder: Path) -> None:
        assert verify(folder)["tensors"] > 0

    return Reader("checksums", make, read, [files])


def _calibration_text(folder: Path) -> Reader:
    write_byte_model(folder, byte_config("tied", num_hidden_layers=1))
    text = (TEXT * 4).encode()

    def make(rng: Random) -> Files:
        kind = rng.random()
        if kind < 0.1:
            return {"text.txt": random_bytes(rng)}
        return {"text.txt": damaged_bytes(rng, text * rng.choice([1, 1, 20]))}

    def read(given: Path) -> None:
        windows, _ = _calibration(folder, given / "text.txt", OPTIONS)
        assert windows is not None
        assert windows.shape == (2, 32)
        assert windows.min() >= 0
        assert windows.max() < 256

    return Reader("calibration", make, read, [{"text.txt": text}])


def _report(folder: Path) -> Reader:
    folder.mkdir()
    rows = [
        {
            "name": "w",
            "bits_per_weight": 4.2,
            "relative_error": 0.007,
            **dict.fromkeys(LOSSES, 0.01),
        },
        {"name": "w", "bits_per_weight": 4.2, "relative_error": 0.006, **dict.fromkeys(LOSSES)},
    ]

    def make(rng: Random) -> Files:
        text = json.dumps(rows).encode()
        damaged = damaged_json(rng, rows) if rng.random() < 0.8 else damaged_bytes(rng, text)
        return {REPORT: damaged}

    def read(folder: Path) -> None:
        for row in read_layer_report(folder, {"w"}):
            assert row.name == "w"
            assert all(v is None or 0 <= v < np.inf for v in vars(row).values() if v != "w")

    return Reader("report", make, read, [{REPORT: json.dumps(rows).encode()}])


LOSSES = ("proxy_loss", "proxy_loss_plain", "proxy_loss_rtn")

READERS: dict[str, Callable[[Path], Reader]] = {
    "safetensors": _safetensors,
    "index": _index,
    "config": _config,
    "quantization_config": _quantization,
    "packed": _packed,
    "gguf": _gguf,
    "tokenizer": _tokenizer,
    "token_configs": _token_configs,
    "template": _template,
    "checksums": _checksums,
    "calibration": _calibration_text,
    "report": _report,
}
"""What makes each reader, given a folder that is not there yet, for the files it starts from."""
