// Tokens made ready for a product: rotated as latticeq/transforms does it, and rounded to float16
// under one scale each. A block has one token.
//
// The order of additions is the CPU's, float for float: Paley's factor first, from sums of four
// that are already scaled, one by one until a multiple of four groups is left, then four groups at a
// time; then the stages of Sylvester's, the highest bit of the column first.

#include "halves.cuh"

#define LARGEST 256.0f  // of a token in float16

INLINE float sum(float a, float b) { return __fadd_rn(a, b); }
INLINE float difference(float a, float b) { return __fadd_rn(a, -b); }

INLINE float read(const void* x, bool is_half, size_t at) {
    if (is_half) return half_to_float(((const unsigned short*)x)[at]);
    return ((const float*)x)[at];
}

// Where number i is in shared memory: strides of powers of two meet all banks.
INLINE int slot(int i) { return i + (i >> 5); }

#if M > 1
// Bit j of number i is set where row i of Paley's matrix has a minus in column j.
__device__ constexpr u64 MINUS[M] = {ROWS};

// y = scale P x for one column of one block, whose M rows are `width` numbers apart.
INLINE void apply_paley(
    const void* x, bool is_half, size_t at, const float* signs, int width, float scale,
    float* y, int place
) {
    constexpr int groups = M / 4, alone = groups % 4;
    float pair[groups][4];  // a + b, a - b, c + d, c - d of a group of four rows, scaled
#pragma unroll
    for (int g = 0; g < groups; g++) {
        float v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int row = (4 * g + j) * width;
            v[j] = read(x, is_half, at + row);
            if (signs) v[j] = __fmul_rn(v[j], signs[place + row]);
        }
        pair[g][0] = __fmul_rn(sum(v[0], v[1]), scale);
        pair[g][1] = __fmul_rn(difference(v[0], v[1]), scale);
        pair[g][2] = __fmul_rn(sum(v[2], v[3]), scale);
        pair[g][3] = __fmul_rn(difference(v[2], v[3]), scale);
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        float entry[groups];
#pragma unroll
        for (int g = 0; g < groups; g++) {
            const u32 minus = (u32)(MINUS[i] >> (4 * g)) & 15u;  // bits of a, b, c, d
            float ab = pair[g][(minus ^ minus >> 1) & 1], cd = pair[g][2 + ((minus >> 2 ^ minus >> 3) & 1)];
            entry[g] = sum(minus & 1 ? -ab : ab, minus & 4 ? -cd : cd);
        }
        float total = 0;
#pragma unroll
        for (int g = 0; g < alone; g++) total = sum(total, entry[g]);
#pragma unroll
        for (int g = alone; g < groups; g += 4) {
            total = sum(total, sum(sum(entry[g], entry[g + 1]), sum(entry[g + 2], entry[g + 3])));
        }
        y[slot(place + i * width)] = total;
    }
}
#endif

// Some stages at once, from the one with `half` between partners downwards.
template <int STAGES>
INLINE void apply_stages(float* y, int n, int half, int thread, int threads) {
    const int count = 1 << STAGES, apart = half >> (STAGES - 1);
    for (int item = thread; item < n >> STAGES; item += threads) {
        const int at = item / apart * (2 * half) + item % apart;
        float v[count];
#pragma unroll
        for (int i = 0; i < count; i++) v[i] = y[slot(at + i * apart)];
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
        for (int i = 0; i < count; i++) y[slot(at + i * apart)] = v[i];
    }
    __syncthreads();
}

INLINE float largest_of_block(float value, float* shared) {
    u32 bits = __float_as_uint(value);  // magnitudes are in the order of their bits, NaN the largest
    bits = __reduce_max_sync(0xFFFFFFFFu, bits);
    int thread = threadIdx.x, warps = blockDim.x / 32;
    if (thread % 32 == 0) shared[thread / 32] = __uint_as_float(bits);
    __syncthreads();
    u32 most = thread % 32 < warps ? __float_as_uint(shared[thread % 32]) : 0u;
    return __uint_as_float(__reduce_max_sync(0xFFFFFFFFu, most));
}

// x (T, n) in float32 or float16; blocks of M * width numbers are mixed. `rotated` (T, n) float32
// and `halves` (T, padded) with `token_scale` (T,) are outputs; either may be null. Halves are in the
// order of wide.cu if `is_wide`. `scratch` (T, slot(n)) is used where that does not fit shared memory,
// and null elsewhere.
extern "C" __global__ void __launch_bounds__(THREADS) prepare(
    const void* x, int is_half, int n, const float* signs, int width, float scale, int padded,
    int is_wide, float* rotated, unsigned short* halves, float* token_scale, float* scratch
) {
    extern __shared__ float memory[];
    __shared__ float found[32];
    start_next_grid();
    wait_for_grids();
    const int thread = threadIdx.x, threads = blockDim.x;
    const size_t token = blockIdx.x;
    float* y = scratch ? scratch + token * slot(n) : memory;
#if M > 1
    for (int column = thread; column < n / M; column += threads) {
        int place = column / width * (M * width) + column % width;
        apply_paley(x, is_half, token * n + place, signs, width, scale, y, place);
    }
#else
    for (int i = thread; i < n; i += threads) {
        float value = read(x, is_half, token * n + i);
        if (signs) value = __fmul_rn(value, signs[i]);
        y[slot(i)] = __fmul_rn(value, scale);
    }
#endif
    __syncthreads();
    int half = width / 2;
    int stages = 31 - __clz(width);
    if (stages % 3 == 1) { apply_stages<1>(y, n, half, thread, threads); half /= 2; }
    if (stages % 3 == 2) { apply_stages<2>(y, n, half, thread, threads); half /= 4; }
    for (; half > 0; half /= 8) apply_stages<3>(y, n, half, thread, threads);

    if (rotated) {
        for (int i = thread; i < n; i += threads) rotated[token * n + i] = y[slot(i)];
    }
    if (!halves) return;
    float size = 0;
    for (int i = thread; i < n; i += threads) {
        float a = fabsf(y[slot(i)]);
        size = __float_as_uint(a) > __float_as_uint(size) ? a : size;
    }
    size = largest_of_block(size, found);
    bool is_finite = size < __uint_as_float(0x7F800000u);
    float inverse = is_finite && size > 1e-30f ? LARGEST / size : 0.0f;
    if (thread == 0) {
        token_scale[token] = is_finite ? size / LARGEST : __uint_as_float(0x7FC00000u);
    }
    for (int i = 2 * thread; i < padded; i += 2 * threads) {
        float a = i < n ? y[slot(i)] : 0.0f, b = i + 1 < n ? y[slot(i + 1)] : 0.0f;
        // What is not finite times zero is not zero.
        u32 both = inverse > 0 ? to_halves(a * inverse, b * inverse) : 0u;
        *(u32*)(halves + (is_wide ? wide_place(token, i, padded) : token * padded + i)) = both;
    }
}
