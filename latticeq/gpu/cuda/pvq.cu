// Words of a pyramid code from their indices: latticeq/codes/pyramid_index.py, a group a thread.

#include "halves.cuh"

// LIMBS words of 64 bits, the lowest first; N numbers a group.

INLINE void read_field(const unsigned char* raw, size_t at, int bits, u64* limbs, int count) {
    for (int w = 0; w < count; w++) {
        size_t first = at + 64 * (size_t)w;
        int skipped = first & 7, wanted = min(64, bits - 64 * w);
        u64 value = 0;
        for (int j = 0; j < (skipped + wanted + 7) >> 3; j++) {
            u64 part = raw[(first >> 3) + j];
            int shift = 8 * j - skipped;
            value |= shift >= 0 ? part << shift : part >> -shift;
        }
        if (wanted < 64) value &= (1ull << wanted) - 1;
        limbs[w] = value;
    }
}

INLINE void add(u64 (&total)[LIMBS], const u64* term) {
    u64 carry = 0;
#pragma unroll
    for (int w = 0; w < LIMBS; w++) {
        u64 part = total[w] + term[w], whole = part + carry;
        carry = (part < term[w]) | (whole < part);
        total[w] = whole;
    }
}

INLINE void subtract(u64 (&total)[LIMBS], const u64* term) {
    u64 borrow = 0;
#pragma unroll
    for (int w = 0; w < LIMBS; w++) {
        u64 part = total[w] - term[w], whole = part - borrow;
        borrow = (total[w] < term[w]) | (part < borrow);
        total[w] = whole;
    }
}

INLINE bool exceeds(const u64 (&left)[LIMBS], const u64* right) {
#pragma unroll
    for (int w = LIMBS - 1; w >= 0; w--) {
        if (left[w] != right[w]) return left[w] > right[w];
    }
    return false;
}

INLINE bool exceeds_twice(const u64 (&left)[LIMBS], const u64* right) {
#pragma unroll
    for (int w = LIMBS - 1; w >= 0; w--) {
        u64 twice = right[w] << 1 | (w > 0 ? right[w > 0 ? w - 1 : 0] >> 63 : 0);
        if (left[w] != twice) return left[w] > twice;
    }
    return false;
}

// index (groups of 16 rows, blocks, 2 bits) and gain_index as stored; table (N, columns, LIMBS) has
// `front` columns of zeros first. Decodes row groups from `first_group` on into out (rows, N blocks),
// float32. Numbers of pulses to come are found from the magnitude of what is left, as on the CPU.
extern "C" __global__ void decode_groups(
    const unsigned char* index, int bits, const u64* size, const u64* table, int columns, int front,
    const unsigned char* gain_index, int gain_bits, const float* levels, const float* row_scale,
    int blocks, int first_group, int groups, float* out
) {
    size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (size_t)groups * 16 * blocks) return;
    int block = thread % blocks, row = thread / blocks;
    size_t at = (size_t)(first_group + row / 16) * blocks + block;
    u64 left[LIMBS], found[LIMBS], gain = 0;
    read_field(index + at * 2 * bits, (size_t)bits * (row % 16), bits, found, LIMBS);
#pragma unroll
    for (int w = 0; w < LIMBS; w++) left[w] = size[w];
    subtract(left, found);
    int word[N], have = columns - 2, norm = 0;
    for (int i = 0; i < N; i++) {
        const u64* mine = table + (size_t)(N - 1 - i) * columns * LIMBS;
        int rest = have;
        while (rest > front && !exceeds_twice(left, mine + rest * LIMBS)) rest--;
        subtract(left, mine + rest * LIMBS);
        subtract(left, mine + rest * LIMBS);
        int magnitude = have - rest;
        if (magnitude > 0) {
            add(left, mine + rest * LIMBS);
            if (exceeds(left, mine + (rest + 1) * LIMBS)) {
                subtract(left, mine + (rest + 1) * LIMBS);
            } else {
                subtract(left, mine + rest * LIMBS);
                magnitude = -magnitude;
            }
        }
        word[i] = magnitude;
        norm += magnitude * magnitude;
        have = rest;
    }
    if (gain_bits) read_field(gain_index + at * 2 * gain_bits, gain_bits * (row % 16), gain_bits, &gain, 1);
    float length = __fmul_rn(row_scale[16 * first_group + row], levels[gain]);
    float scale = __fdiv_rn(length, __fsqrt_rn((float)norm));
    float* mine = out + (size_t)row * N * blocks + (size_t)N * block;
    for (int i = 0; i < N; i++) mine[i] = __fmul_rn((float)word[i], scale);
}
