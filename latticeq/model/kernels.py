"""The element-wise parts of the forward pass, each a loop that compiles to vectors.

They run on one thread: next to the linears they cost little, and a parallel region costs more than
one token's worth of any of them. Shapes are annotated with the letters of the model.

`exp` is ours because the one of the C library cannot be vectorised by the compiler: it would take
most of the time of a softmax.
"""

from __future__ import annotations

import numpy as np

from latticeq.jit import kernel, prange

__all__ = ["exp", "exponentiate_row", "nll_rows", "rms_norm", "rotate", "swiglu"]


@kernel(inline=True)
def exp(x):  # type: ignore[no-untyped-def]
    """Return e**x in float32, for a float32 x; below -87 and above 88 it saturates.

    e**x = 2**n e**r with n = round(x / ln 2), so that abs(r) <= ln(2) / 2. Adding and subtracting
    1.5 * 2**23 rounds, and leaves n in the low bits. ln 2 is taken off in two parts, the first of
    few enough bits that its product with n is exact. e**r is a polynomial of degree 7 (S. Moshier,
    Cephes, expf). The relative error is below 3e-7.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    shifted = np.float32(x * np.float32(1.4426950408889634) + np.float32(12582912.0))
    n = np.float32(shifted - np.float32(12582912.0))
    r = np.float32(x - n * np.float32(0.693359375))
    r = np.float32(r - n * np.float32(-2.12194440e-4))
    p = np.float32(1.9875691500e-4)
    p = np.float32(p * r + np.float32(1.3981999507e-3))
    p = np.float32(p * r + np.float32(8.3334519073e-3))
    p = np.float32(p * r + np.float32(4.1665795894e-2))
    p = np.float32(p * r + np.float32(1.6666665459e-1))
    p = np.float32(p * r + np.float32(5.0000001201e-1))
    p = np.float32(p * r * r + r + np.float32(1.0))
    # 0x4B400000 are the bits of 1.5 * 2**23; what is above them is n, and 127 is the exponent bias.
    exponent = np.int32(np.int32(shifted.view(np.int32) - np.int32(0x4B400000)) + np.int32(127))
    return np.float32(p * np.int32(exponent << np.int32(23)).view(np.float32))


@kernel
def rms_norm(x, weight, epsilon, out):  # type: ignore[no-untyped-def]
    """Set out[t] = weight * x[t] / sqrt(mean(x[t]**2) + epsilon): x, out (T, D), weight (D,)."""
    width = x.shape[1]
    for t in range(x.shape[0]):
        squares = 0.0  # float64: the squares of a few massive entries must not hide the others
        for d in range(width):
            squares += np.float64(x[t, d]) * np.float64(x[t, d])
        scale = np.float32(1.0 / np.sqrt(squares / width + epsilon))
        for d in range(width):
            out[t, d] = weight[d] * (x[t, d] * scale)


@kernel
def rotate(x, cosine, sine):  # type: ignore[no-untyped-def]
    """Turn each pair (i, i + K/2) of every head by its position's angle, in place.

    x is (T, H, K), cosine and sine are (T, K/2). The pairs are Hugging Face's: a half apart.
    """
    n_tokens, heads, width = x.shape
    half = width // 2
    for t in range(n_tokens):
        for h in range(heads):
            for i in range(half):
                a = x[t, h, i]
                b = x[t, h, half + i]
                x[t, h, i] = a * cosine[t, i] - b * sine[t, i]
                x[t, h, half + i] = b * cosine[t, i] + a * sine[t, i]


@kernel
def swiglu(gate, up):  # type: ignore[no-untyped-def]
    """Set gate = silu(gate) * up with silu(g) = g / (1 + exp(-g)): both (T, F)."""
    for t in range(gate.shape[0]):
        for f in range(gate.shape[1]):
            g = gate[t, f]
            gate[t, f] = g / (np.float32(1.0) + exp(-g)) * up[t, f]


@kernel(inline=True)
def exponentiate_row(row, scale, lanes):  # type: ignore[no-untyped-def]
    """Set row = exp(scale * (row - max(row))); return that maximum and the sum of the new row.

    Maximum and sum run in `lanes`, scratch of 64: the order of operations is written down, so that
    the compiler can use vectors without fast-math.
    """
    n = row.size
    whole = n - n % 64
    lanes[:] = row[0]
    for first in range(0, whole, 64):
        strip = row[first : first + 64]
        for i in range(64):
            lanes[i] = max(lanes[i], strip[i])
    largest = lanes[0]
    for i in range(1, 64):
        largest = max(largest, lanes[i])
    for s in range(whole, n):
        largest = max(largest, row[s])
    for s in range(n):
        row[s] = exp(scale * (row[s] - largest))
    lanes[:] = np.float32(0)
    for first in range(0, whole, 64):
        strip = row[first : first + 64]
        for i in range(64):
            lanes[i] += strip[i]
    total = np.float32(0)
    for i in range(64):
        total += lanes[i]
    for s in range(whole, n):
        total += row[s]
    return largest, total


@kernel(parallel=True)
def nll_rows(logits, targets, out):  # type: ignore[no-untyped-def]
    """Set out[t] = log(sum_v exp(logits[t, v])) - logits[t, targets[t]]; logits is overwritten.

    logits is (T, V) float32, targets (T,) int64, out (T,) float64.
    """
    for t in prange(logits.shape[0]):
        target = logits[t, targets[t]]
        lanes = np.empty(64, np.float32)
        largest, total = exponentiate_row(logits[t], np.float32(1), lanes)
        out[t] = np.log(np.float64(total)) - np.float64(target - largest)
