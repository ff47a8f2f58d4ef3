"""Ask Hugging Face transformers for the logits of tiny random models; freeze them.

Run by hand from the repository's root, in an environment with torch and transformers:

    PYTHONPATH=. python tests/golden/make_tiny_logits.py

The weights are not stored: `tests.tiny_llama` draws them again from their seed, and a checksum in
the file tells whether it drew the same ones.
"""

import json
import platform
import tempfile
from pathlib import Path

import numpy as np

from tests.tiny_llama import CONFIGS, checksum, random_ids, random_weights, write_folder

NAMES = ("llama", "tied", "biased", "linear_rope", "llama3_rope", "wide_heads", "mistral", "qwen2")
TOKENS = 100  # beyond the 64 positions before which llama3 scaling would not show


def main() -> None:
    import torch
    import transformers

    models = {}
    for name in NAMES:
        config = CONFIGS[name]
        weights = random_weights(config)
        ids = random_ids(config, TOKENS)
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), config, weights)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            )
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)[None]).logits[0].numpy()  # (T, V)
        # The rows where a mistake shows first, and last; 6 digits are float32's own error.
        rows = [0, 1, 31, TOKENS - 1]
        models[name] = {
            "weights_sha256": checksum(weights),
            "rows": rows,
            "logits": [[float(f"{value:.6g}") for value in logits[row]] for row in rows],
            "mean_abs": float(np.abs(logits).mean()),
        }
    provenance = {
        "made_by": "tests/golden/make_tiny_logits.py",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "settings": "float32, eager attention, CPU",
        "tokens": TOKENS,
    }
    path = Path(__file__).parent / "tiny_logits.json"
    path.write_text(json.dumps({"provenance": provenance, "models": models}) + "\n", "utf-8")


if __name__ == "__main__":
    main()
