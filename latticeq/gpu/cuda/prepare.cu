// Tokens made ready for a product: rotated as latticeq/transforms does it, and rounded to float16
// under one scale each. A block has one token.
//
// The order of additions is the CPU's, float for float: Paley's factor first, from sums of four
// that are already scaled, one by one until a multiple of four groups is left, then four groups at a
// time; then the stages of Sylvester's, the highest bit of the column first.

#include "halves.cuh"

#define LARGEST 256.0f  // of a token in float16

struct Rotation {
    const float* signs;          // (n,), or null
    const unsigned char* codes;  // (m, m / 4): see latticeq.transforms.hadamard.hadamard_codes
    int block, m, width;         // block = m width
    float scale;                 // 1 / sqrt(block)
};

INLINE float sum(float a, float b) { return __fadd_rn(a, b); }
INLINE float difference(float a, float b) { return __fadd_rn(a, -b); }

// An entry of the table of sums of a group: `four` are (a + b), (a - b), (c + d), (c - d), scaled.
INLINE float entry(const float* four, int width, u32 code) {
    float ab = four[((code >> 2 ^ code >> 3) & 1) * width];
    float cd = four[(2 + ((code ^ code >> 1) & 1)) * width];
    return sum(code & 8 ? -ab : ab, code & 2 ? -cd : cd);
}

// y = scale P x for one column of one block; x and y have m rows of `width` numbers.
INLINE void apply_paley(const Rotation& rotation, const float* x, float* y) {
    const int m = rotation.m, width = rotation.width, groups = m / 4, alone = groups % 4;
    for (int i = threadIdx.y; i < m; i += blockDim.y) {
        const unsigned char* codes = rotation.codes + i * groups;
        float total = 0;
        for (int g = 0; g < alone; g++) total = sum(total, entry(x + 4 * g * width, width, codes[g]));
        for (int g = alone; g < groups; g += 4) {
            float a = entry(x + 4 * g * width, width, codes[g]);
            float b = entry(x + 4 * (g + 1) * width, width, codes[g + 1]);
            float c = entry(x + 4 * (g + 2) * width, width, codes[g + 2]);
            float d = entry(x + 4 * (g + 3) * width, width, codes[g + 3]);
            total = sum(total, sum(sum(a, b), sum(c, d)));
        }
        y[i * width] = total;
    }
}

// Some stages at once, from the one with `half` between partners downwards.
template <int STAGES>
INLINE void apply_stages(float* y, int n, int half, int thread, int threads) {
    const int count = 1 << STAGES, apart = half >> (STAGES - 1);
    for (int item = thread; item < n >> STAGES; item += threads) {
        float* at = y + item / apart * (2 * half) + item % apart;
        float v[count];
#pragma unroll
        for (int i = 0; i < count; i++) v[i] = at[i * apart];
#pragma unroll
        for (int bit = count / 2; bit > 0; bit /= 2) {
#pragma unroll
            for (int i = 0; i < count; i++) {
                if (i & bit) continue;
                float a = v[i], b = v[i + bit];
                v[i] = sum(a, b);
                v[i + bit] = difference(a, b);
            }
        }
#pragma unroll
        for (int i = 0; i < count; i++) at[i * apart] = v[i];
    }
    __syncthreads();
}

INLINE float read(const void* x, bool is_half, size_t at) {
    if (is_half) return half_to_float(((const unsigned short*)x)[at]);
    return ((const float*)x)[at];
}

INLINE float largest_of_block(float value, float* shared) {
    u32 bits = __float_as_uint(value);  // magnitudes are in the order of their bits, NaN the largest
    bits = __reduce_max_sync(0xFFFFFFFFu, bits);
    int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / 32;
    if (thread % 32 == 0) shared[thread / 32] = __uint_as_float(bits);
    __syncthreads();
    u32 most = thread % 32 < warps ? __float_as_uint(shared[thread % 32]) : 0u;
    return __uint_as_float(__reduce_max_sync(0xFFFFFFFFu, most));
}

// x (T, n) in float32 or float16. `rotated` (T, n) float32 and `halves` (T, padded) with
// `token_scale` (T,) are outputs; either may be null. Threads are (32 columns, 32 rows).
// `scratch` (T, 2 n) is used where that does not fit shared memory, and null elsewhere.
extern "C" __global__ void __launch_bounds__(1024) prepare(
    const void* x, int is_half, int n, const float* signs, const unsigned char* codes, int m,
    int width_in, float scale, int padded,
    float* rotated, unsigned short* halves, float* token_scale, float* scratch
) {
    extern __shared__ float memory[];
    start_next_grid();
    wait_for_grids();
    const Rotation rotation = {signs, codes, m * width_in, m, width_in, scale};
    __shared__ float found[32];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    const size_t token = blockIdx.x;
    float* from = scratch ? scratch + token * 2 * n : memory;
    const int width = rotation.width;
    float* y = m > 1 ? from + n : from;

    if (m == 1) {
        for (int i = thread; i < n; i += threads) {
            float value = read(x, is_half, token * n + i);
            if (rotation.signs) value = __fmul_rn(value, rotation.signs[i]);
            y[i] = __fmul_rn(value, rotation.scale);
        }
        __syncthreads();
    } else {
        // Sums of pairs of rows, scaled: rows 4 g .. 4 g + 3 become a + b, a - b, c + d, c - d.
        for (int e = thread; e < n / 2; e += threads) {
            int row = e / width * 2, column = e % width, at = row * width + column;
            float a = read(x, is_half, token * n + at), b = read(x, is_half, token * n + at + width);
            if (rotation.signs) {
                a = __fmul_rn(a, rotation.signs[at]);
                b = __fmul_rn(b, rotation.signs[at + width]);
            }
            from[at] = __fmul_rn(sum(a, b), rotation.scale);
            from[at + width] = __fmul_rn(difference(a, b), rotation.scale);
        }
        __syncthreads();
        for (int column = threadIdx.x; column < n / m; column += blockDim.x) {
            int at = column / width * rotation.block + column % width;
            apply_paley(rotation, from + at, y + at);
        }
        __syncthreads();
    }
    int half = width / 2;
    int stages = 31 - __clz(width);
    if (stages % 3 == 1) { apply_stages<1>(y, n, half, thread, threads); half /= 2; }
    if (stages % 3 == 2) { apply_stages<2>(y, n, half, thread, threads); half /= 4; }
    for (; half > 0; half /= 8) apply_stages<3>(y, n, half, thread, threads);

    if (rotated) {
        for (int i = thread; i < n; i += threads) rotated[token * n + i] = y[i];
    }
    if (!halves) return;
    float size = 0;
    for (int i = thread; i < n; i += threads) {
        float a = fabsf(y[i]);
        size = __float_as_uint(a) > __float_as_uint(size) ? a : size;
    }
    size = largest_of_block(size, found);
    bool is_finite = size < __uint_as_float(0x7F800000u);
    float inverse = is_finite && size > 1e-30f ? LARGEST / size : 0.0f;
    if (thread == 0) {
        token_scale[token] = is_finite ? size / LARGEST : __uint_as_float(0x7FC00000u);
    }
    for (int i = 2 * thread; i < padded; i += 2 * threads) {
        float a = i < n ? y[i] : 0.0f, b = i + 1 < n ? y[i + 1] : 0.0f;
        // What is not finite times zero is not zero.
        u32 both = inverse > 0 ? to_halves(a * inverse, b * inverse) : 0u;
        *(u32*)(halves + token * padded + i) = both;
    }
}
