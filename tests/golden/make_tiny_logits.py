"""Ask Hugging Face transformers for the logits of tiny random models; freeze them.

Run by hand from the repository's root, in an environment with torch and transformers:

    PYTHONPATH=. python tests/golden/make_tiny_logits.py

writes ``tiny_logits.json``, of the models in `tests.tiny_llama`, and ``family_logits.json``, of
those in `tests.model_families`. The weights are not stored: `tests.tiny_llama` draws them again
from their seed, and a checksum in the file tells whether it drew the same ones.
"""

import json
import platform
import tempfile
from pathlib import Path

import numpy as np

from tests.model_families import FAMILIES, WINDOWED
from tests.tiny_llama import CONFIGS, checksum, random_ids, random_weights, write_folder

NAMES = ("llama", "tied", "biased", "linear_rope", "llama3_rope", "wide_heads", "mistral", "qwen2")
TOKENS = 100  # beyond the 64 positions before which llama3 scaling would not show
ROWS = (0, 1, 31, TOKENS - 1)
"""Of the logits that are kept: where a mistake shows first, and last."""


def frozen(config, rows=ROWS, saves_config=False):
    """Return what transformers says of a model, as the files keep it."""
    import torch
    import transformers

    weights = random_weights(config)
    ids = random_ids(config, TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), config, weights)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        model.config.save_pretrained(folder)
        saved = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None]).logits[0].numpy()  # (T, V)
    found = {
        "weights_sha256": checksum(weights),
        "rows": list(rows),
        # 6 digits are float32's own error.
        "logits": [[float(f"{value:.6g}") for value in logits[row]] for row in rows],
        "mean_abs": float(np.abs(logits).mean()),
    }
    return found | {"saved_config": saved} if saves_config else found


def write(name, models):
    """Write a file of such models beside this script, with where they are from."""
    import torch
    import transformers

    provenance = {
        "made_by": "tests/golden/make_tiny_logits.py",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "settings": "float32, eager attention, CPU",
        "tokens": TOKENS,
    }
    path = Path(__file__).parent / name
    path.write_text(json.dumps({"provenance": provenance, "models": models}) + "\n", "utf-8")


def main() -> None:
    write("tiny_logits.json", {name: frozen(CONFIGS[name]) for name in NAMES})
    families = {name: frozen(config, saves_config=True) for name, config in FAMILIES.items()}
    # The last row of a window, and the first one that no longer sees the text's beginning.
    window = WINDOWED["sliding_window"]
    families["windowed"] = frozen(WINDOWED, (0, window - 1, window), saves_config=True)
    write("family_logits.json", families)


if __name__ == "__main__":
    main()
