"""Ask llama.cpp for the logits of tiny GGUF models and for token ids; freeze them.

Run by hand from the repository's root, in an environment with gguf and sentencepiece, with the
folder of llama.cpp's programs and the version that they are:

    PYTHONPATH=. python tests/golden/make_gguf_logits.py FOLDER "llama.cpp b1234"

The models are those of `tests.tiny_gguf.variants`. The tokenizer in the style of Llama 2 is trained
here on text that comes with CPython, and is stored: SentencePiece itself and llama.cpp say what it
makes of texts.
"""

import io
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_gguf import checksum, metadata, tensors, variants, write_gguf

TEXT = "I'm at 12345, the hello\n\n  x\u00dcber-3 hello hello, then 12 the hello the 3 hello ll"
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Hello world",
    " leading and trailing spaces  ",
    "tabs\tand\nlines\n\n\nand      runs of spaces",
    "def f(x):\n    return x ** 2  # squares\n",
    "12345 and 3.14159",
    "\u00dcber \u65e5\u672c\u8a9e \U0001f642 e\u0301",
    "a",
    " ",
    "\u2581 the mark itself",
    "aaaaaaaa ssss ssssss eeeeeee",
    "An exception is raised if the expression does not evaluate to an object that is iterable.",
)
SPECIAL = ("a</s> b", "<s>x</s>", "</s>", "one</s></s> two")
"""Texts that spell special tokens, which only llama.cpp reads as such."""

_TYPES = {"unknown": 2, "control": 3, "byte": 6}


def run(folder: Path, program: str, *words: object) -> str:
    done = subprocess.run([folder / program, *map(str, words)], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace")


def logits(folder: Path, model: Path) -> tuple[list[int], list[float]]:
    """Return the token ids of the text and the logits after the last."""
    options = ["-t", 1, "-tb", 1, "-c", 128, "-fa", "off", "-ctk", "f32", "-ctv", "f32"]
    options += ["--save-logits", "--logits-output-dir", model.parent]
    run(folder, "llama-debug", "-m", model, "-p", TEXT, *options)
    stem = model.parent / f"llamacpp-{model.stem}"
    ids = np.fromfile(f"{stem}-tokens.bin", np.int32).tolist()
    return ids, [float(f"{value:.6g}") for value in np.fromfile(f"{stem}.bin", np.float32)]


def trained() -> tuple[Any, dict[str, Any]]:
    """Return a SentencePiece model made as Llama's was, and what a GGUF file says of it."""
    from pydoc_data.topics import topics

    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(topics[name] for name in sorted(topics)).splitlines()),
        model_writer=made,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.9995,
        minloglevel=2,
    )
    processor = SentencePieceProcessor(model_proto=made.getvalue())
    ids = range(processor.vocab_size())

    def kind(i: int) -> int:
        found = {
            "unknown": processor.is_unknown(i),
            "control": processor.is_control(i),
            "byte": processor.is_byte(i),
        }
        return next((_TYPES[name] for name, is_it in found.items() if is_it), 1)

    return processor, {
        "tokens": [processor.id_to_piece(i) for i in ids],
        "scores": [processor.get_score(i) for i in ids],
        "token_type": [kind(i) for i in ids],
    }


def sentencepiece_ids(folder: Path, work: Path) -> dict[str, Any]:
    """Return a vocabulary, and what SentencePiece and llama.cpp make of texts with it."""
    processor, vocabulary = trained()
    roles = {"bos": 1, "eos": 2, "unknown": 0}
    pairs = {k: v for k, v in metadata().items() if not k.startswith("tokenizer.")}
    pairs |= {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    pairs |= {f"tokenizer.ggml.{role}_token_id": i for role, i in roles.items()}
    pairs |= {"tokenizer.ggml.model": "llama", "llama.vocab_size": len(vocabulary["tokens"])}
    arrays = tensors(np.random.default_rng(0))
    width = arrays["token_embd.weight"].shape[1]
    arrays["token_embd.weight"] = np.zeros((len(vocabulary["tokens"]), width), np.float32)
    model = write_gguf(work / "sentencepiece.gguf", pairs, arrays)
    texts = []
    for text in (*TEXTS, *SPECIAL):
        found = run(folder, "llama-tokenize", "-m", model, "-p", text, "--ids", "--no-bos")
        case = {"text": text, "llama_cpp": json.loads(found.strip().splitlines()[-1])}
        if text in TEXTS:
            case["sentencepiece"] = processor.encode(text)
        texts.append(case)
    return {"vocabulary": vocabulary, "texts": texts}


def main() -> None:
    folder = Path(sys.argv[1])
    models = {}
    with tempfile.TemporaryDirectory() as work:
        for name, (pairs, arrays) in variants().items():
            model = write_gguf(Path(work) / f"{name}.gguf", pairs, arrays)
            ids, values = logits(folder, model)
            found = {"weights_sha256": checksum(arrays), "ids": ids, "logits": values}
            models[name] = found
        texts = sentencepiece_ids(folder, Path(work))
    provenance = {
        "made_by": "tests/golden/make_gguf_logits.py",
        "llama.cpp": sys.argv[2],
        "gguf": version("gguf"),
        "sentencepiece": version("sentencepiece"),
        "python": platform.python_version(),
        "settings": "float32 weights and cache, no flash attention, one thread",
        "text": TEXT,
    }
    document = {"provenance": provenance, "models": models, "sentencepiece": texts}
    path = Path(__file__).parent / "gguf_logits.json"
    path.write_text(json.dumps(document, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
