"""The choice of a token where the logits are: one number goes to the host, its id.

The token is the one that `latticeq.model.sampling.choose` takes for the same random number.
Probabilities are in float64 on both, and their sums are rounded in another order: sums of V numbers
differ by (V + 100) 2^-52 of themselves at most, 1.1e-11 for V = 49152. A token is another only
where a sum that decides (see the notes of `choose`) is as near to what it is compared with. The
CUDA text is ``cuda/choose.cu``; the order of its sums is fixed, so that the same number always
gives the same token.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.gpu.device import cupy, function
from latticeq.gpu.memory import buffer
from latticeq.model.sampling import Sampling, not_numbers

__all__ = ["CONSTANTS", "Chooser"]

CONSTANTS = {"BITS": 3, "THREADS": 512}
"""Of ``choose.cu``: twice its sums would not fit the 48 KB of shared memory that any device has."""

WEIGH_THREADS = 256


class Chooser:
    """Chooses tokens on the device and stream that are current, always the same.

    One block of threads has all logits: they are few beside the weights that a token is multiplied
    by, and lie in the last cache. Greedy choice is one launch, sampling two more.
    """

    def __init__(self) -> None:
        cp = cupy()
        self._token = cp.empty(1, cp.int32)
        self._host = np.frombuffer(cp.cuda.alloc_pinned_memory(4), np.int32, 1)

    def __call__(self, logits: Any, sampling: Sampling) -> int:
        """Choose the next token, when the logits are ready.

        Parameters
        ----------
        logits : (V,) float32
        sampling : Sampling
            One number is drawn, unless it is greedy.

        Raises
        ------
        LatticeqError
            If the logits hold NaN or infinities.
        """
        count = np.int32(len(logits))
        _kernel("likeliest")((1,), (CONSTANTS["THREADS"],), (logits, count, self._token))
        if not sampling.is_greedy:
            self._draw(logits, count, sampling)
        stream = cupy().cuda.get_current_stream()
        self._token.get(stream=stream, out=self._host)
        stream.synchronize()
        token = int(self._host[0])
        if token < 0:
            raise not_numbers()
        return token

    def _draw(self, logits: Any, count: np.int32, sampling: Sampling) -> None:
        """Put another token in the place of the likeliest."""
        weights = buffer("weights of tokens", logits.shape, "float64")
        ids = buffer("tokens that are left", logits.shape, "int32")
        temperature, top_p = np.float64(sampling.temperature), np.float64(sampling.top_p)
        blocks = -(-len(logits) // WEIGH_THREADS)
        weighed = (logits, count, temperature, self._token, weights)
        _kernel("weigh")((blocks,), (WEIGH_THREADS,), weighed)
        drawn = (logits, weights, count, top_p, np.float64(sampling.number()), ids, self._token)
        _kernel("draw")((1,), (CONSTANTS["THREADS"],), drawn)


def _kernel(name: str) -> Any:
    return function("choose", name, **CONSTANTS)
