"""The element-wise parts of the forward pass, sixteen numbers at a time.

A token by itself is a plain loop, as a parallel region costs more than its work does; many tokens
are shared out over threads, each token whole, so that results do not depend on how many there are.
Shapes are annotated with the letters of the model.

`exp` is ours because the one of the C library cannot be vectorised by the compiler: it would take
most of the time of a softmax.
"""

from __future__ import annotations

import numpy as np

from latticeq.jit import kernel, prange
from latticeq.simd import (
    bits_float,
    filled,
    filled_rows,
    float_bits,
    fused_multiply_add,
    largest,
    load,
    load_rows,
    max_lanes,
    maximum,
    minimum,
    store,
    store_strided,
    sum_lanes,
    to_double,
    total,
)

__all__ = ["exp", "exp_lanes", "exponentiate_row", "nll_rows", "rms_norm", "rotate", "swiglu"]


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


@kernel(inline=True)
def exp_lanes(x):  # type: ignore[no-untyped-def]
    """Return e**x of float32 lanes as `exp` does; what is not a number stays so.

    Products and sums are fused, so that the last bits may differ.
    """
    # The bound comes first: of a number and none, these words return the second.
    x = minimum(filled(np.float32(88.0), x), maximum(filled(np.float32(-87.0), x), x))
    shifted = fused_multiply_add(x, np.float32(1.4426950408889634), np.float32(12582912.0))
    n = shifted - np.float32(12582912.0)
    r = fused_multiply_add(n, np.float32(-0.693359375), x)
    r = fused_multiply_add(n, np.float32(2.12194440e-4), r)
    p = fused_multiply_add(r, np.float32(1.9875691500e-4), np.float32(1.3981999507e-3))
    p = fused_multiply_add(p, r, np.float32(8.3334519073e-3))
    p = fused_multiply_add(p, r, np.float32(4.1665795894e-2))
    p = fused_multiply_add(p, r, np.float32(1.6666665459e-1))
    p = fused_multiply_add(p, r, np.float32(5.0000001201e-1))
    p = fused_multiply_add(p * r, r, r) + np.float32(1.0)
    return p * bits_float((float_bits(shifted) - 0x4B400000 + 127) << 23)


@kernel(parallel=True)
def rms_norm(x, weight, epsilon, out):  # type: ignore[no-untyped-def]
    """Set out[t] = weight * x[t] / sqrt(mean(x[t]**2) + epsilon): x, out (T, D), weight (D,)."""
    if len(x) == 1:
        _norm_row(x[0], weight, epsilon, out[0])
    else:
        for t in prange(len(x)):
            _norm_row(x[t], weight, epsilon, out[t])


@kernel
def _norm_row(x, weight, epsilon, out):  # type: ignore[no-untyped-def]
    width = x.size
    whole = width - width % 16
    # float64: the squares of a few massive entries must not hide the others.
    lanes = to_double(filled_rows(np.float32(0), 1))
    for d in range(0, whole, 16):
        wide = to_double(load(x, d))
        lanes = lanes + wide * wide
    squares = sum_lanes(lanes)
    for d in range(whole, width):
        squares += np.float64(x[d]) * np.float64(x[d])
    scale = np.float32(1.0 / np.sqrt(squares / width + epsilon))
    for d in range(0, whole, 16):
        store(out, d, load(weight, d) * (load(x, d) * scale))
    for d in range(whole, width):
        out[d] = weight[d] * (x[d] * scale)


@kernel(parallel=True)
def rotate(x, cosine, sine):  # type: ignore[no-untyped-def]
    """Turn each pair (i, i + K/2) of every head by its position's angle, in place.

    x is (T, H, K), cosine and sine are (T, K/2). The pairs are Hugging Face's: a half apart.
    """
    if len(x) == 1:
        _rotate_token(x[0], cosine[0], sine[0])
    else:
        for t in prange(len(x)):
            _rotate_token(x[t], cosine[t], sine[t])


@kernel
def _rotate_token(x, cosine, sine):  # type: ignore[no-untyped-def]
    heads, width = x.shape
    half = width // 2
    whole = half - half % 16
    for h in range(heads):
        row = x[h]
        for i in range(0, whole, 16):
            a, b = load(row, i), load(row, half + i)
            c, s = load(cosine, i), load(sine, i)
            store(row, i, a * c - b * s)
            store(row, half + i, b * c + a * s)
        for i in range(whole, half):
            first, second = row[i], row[half + i]
            row[i] = first * cosine[i] - second * sine[i]
            row[half + i] = second * cosine[i] + first * sine[i]


@kernel(parallel=True)
def swiglu(gate, up):  # type: ignore[no-untyped-def]
    """Set gate = silu(gate) * up with silu(g) = g / (1 + exp(-g)): both (T, F)."""
    if len(gate) == 1:
        _swiglu_row(gate[0], up[0])
    else:
        for t in prange(len(gate)):
            _swiglu_row(gate[t], up[t])


@kernel
def _swiglu_row(gate, up):  # type: ignore[no-untyped-def]
    whole = gate.size - gate.size % 16
    for f in range(0, whole, 16):
        g = load(gate, f)
        store(gate, f, g / (exp_lanes(0 - g) + np.float32(1.0)) * load(up, f))
    for f in range(whole, gate.size):
        gate[f] = gate[f] / (np.float32(1.0) + exp(-gate[f])) * up[f]


@kernel
def exponentiate_row(row, scale):  # type: ignore[no-untyped-def]
    """Set row = exp(scale * (row - max(row))); return that maximum and the sum of the new row.

    Maximum and sum run in four chains of sixteen lanes, as one would wait for its own last step.
    """
    n = row.size
    strips, whole = n - n % 64, n - n % 16
    most = filled_rows(np.float32(-np.inf), 4)
    for s in range(0, strips, 64):
        most = maximum(most, load_rows(row, s, 16, most))
    peak = max_lanes(largest(most))
    for s in range(strips, n):
        peak = max(peak, row[s])
    sums = filled_rows(np.float32(0), 4)
    for s in range(0, strips, 64):
        many = exp_lanes((load_rows(row, s, 16, sums) - peak) * scale)
        store_strided(row, s, 16, many)
        sums = sums + many
    rest = filled_rows(np.float32(0), 1)
    for s in range(strips, whole, 16):
        few = exp_lanes((load(row, s) - peak) * scale)
        store(row, s, few)
        rest = rest + few
    whole_sum = sum_lanes(total(sums) + rest)
    for s in range(whole, n):
        row[s] = exp(scale * (row[s] - peak))
        whole_sum += row[s]
    return peak, whole_sum


@kernel(parallel=True)
def nll_rows(logits, targets, out):  # type: ignore[no-untyped-def]
    """Set out[t] = log(sum_v exp(logits[t, v])) - logits[t, targets[t]]; logits is overwritten.

    logits is (T, V) float32, targets (T,) int64, out (T,) float64.
    """
    for t in prange(logits.shape[0]):
        target = logits[t, targets[t]]
        peak, whole = exponentiate_row(logits[t], np.float32(1))
        out[t] = np.log(np.float64(whole)) - np.float64(target - peak)
