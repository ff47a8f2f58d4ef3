// Rows coded by a nested code under their root mean square, as latticeq/quantizers/rows.py does:
// the same bytes. A block of threads has some blocks of eight of one row, a thread one of them.

#include "halves.cuh"
#include "lattice.cuh"

struct Code {
    const float* betas;    // (k,)
    const float* inverse;  // (k,): one over each, rounded
    int k, q, first_fit;
    int digit_bits, index_bits;  // index_bits is 0 where words hold the index
    float unit;
};

// The bits of a float16, NaN's for what is not finite there.
INLINE u32 half_bits(float x) {
    if (!(fabsf(x) < 65520.0f)) return 0x7E00u;
    return to_halves(x, 0) & 0xFFFFu;
}

// The root mean square of a row in float16, by all threads of a block: its sum is in float64.
INLINE u32 norm_of(const float* x, int n, double* shared) {
    double energy = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) energy += (double)x[i] * (double)x[i];
    for (int apart = 16; apart > 0; apart /= 2) {
        energy += __shfl_down_sync(0xFFFFFFFFu, energy, apart);
    }
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = energy;
    __syncthreads();
    energy = 0;
    for (int w = 0; w < blockDim.x / 32; w++) energy += shared[w];
    return half_bits((float)sqrt(energy / n));
}

INLINE void join_d8(int (&digits)[8], u32 index, int q) {
    u32 coset = digits[0] >= q;
    digits[0] -= coset * q;
    digits[4] = (digits[4] & ~1) | (index & 1);
    digits[5] = (digits[5] & ~1) | (index >> 1 & 1);
    digits[6] = (digits[6] & ~1) | (index >> 2 & 1);
    digits[7] = (digits[7] & ~1) | coset;
}

INLINE u32 split_d8(int (&digits)[8], int q) {
    u32 index = (digits[4] & 1) | (digits[5] & 1) << 1 | (digits[6] & 1) << 2;
    int coset = digits[7] & 1, parity = (digits[0] ^ digits[1] ^ digits[2] ^ digits[3]) & 1;
#pragma unroll
    for (int i = 4; i < 8; i++) digits[i] = (digits[i] & ~1) | ((digits[i - 4] & 1) ^ parity);
    digits[0] += coset * q;
    return index;
}

// x (R, n) float32. Outputs, each of which may be null: `coded` (R, row_bytes); `halves` (R, padded)
// of the same points, each times its scale over the largest, with `token_scale` (R,), in the order of
// wide.cu if `is_wide`.
// The grid is (R, parts of 128 blocks), the threads 128.
extern "C" __global__ void __launch_bounds__(128) encode_rows(
    const float* x, int n, const float* betas, const float* inverses, int k, int q, int first_fit,
    int digit_bits, int index_bits, float unit, int row_bytes, unsigned char* coded,
    int padded, int is_wide, unsigned short* halves, float* token_scale
) {
    __shared__ double energies[4];
    __shared__ unsigned char indices[128];
    const Code code = {betas, inverses, k, q, first_fit, digit_bits, index_bits, unit};
    const size_t row = blockIdx.x;
    const float* mine = x + row * n;
    const u32 norm_bits = norm_of(mine, n, energies);
    const float norm = half_to_float(norm_bits);
    const float inverse = norm > 0 ? __fdiv_rn(1.0f, norm) : 0.0f;
    const int blocks = n / 8, first = 128 * blockIdx.y, block = first + threadIdx.x;
    const float largest = code.betas[code.k - 1];
    u32 index = 0;
    if (block < blocks) {
        float block_x[8], point[8];
        int digits[8];
        EACH block_x[i] = norm > 0 ? times(mine[8 * block + i], inverse) : 0.0f;
        index = closest_codeword(
            block_x, code.betas, code.inverse, code.k, code.q, code.first_fit, point);
        digits_of(point, code.q, digits);
        if (halves) {
            float scale = code.betas[index] / largest;
            EACH {
                int at = 8 * block + i;
                halves[is_wide ? wide_place(row, at, padded) : row * padded + at] =
                    to_halves(point[i] * scale, 0);
            }
        }
        if (coded) {
#if CELL == D8
            join_d8(digits, index, code.q);
#endif
            u64 word = 0;
            EACH word |= (u64)digits[i] << (code.digit_bits * i);
            unsigned char* out = coded + row * row_bytes + code.digit_bits * block;
            for (int j = 0; j < code.digit_bits; j++) out[j] = word >> (8 * j);
        }
    } else if (halves && 8 * block < padded) {
        EACH {
            int at = 8 * block + i;
            halves[is_wide ? wide_place(row, at, padded) : row * padded + at] = 0;
        }
    }
    if (halves && block == 0) {
        bool is_number = norm == norm;
        token_scale[row] = is_number ? norm * largest : __uint_as_float(0x7FC00000u);
    }
    if (!coded) return;
    indices[threadIdx.x] = index;
    __syncthreads();
    // 128 blocks fill whole bytes with their indices, whatever their width.
    const int here = min(128, blocks - first), width = code.index_bits;
    const int start = code.digit_bits * blocks + 16 * width * blockIdx.y;
    if (threadIdx.x < (here * width + 7) / 8) {
        u32 byte = 0;
        for (int bit = 0; bit < 8; bit++) {
            int at = 8 * threadIdx.x + bit, owner = width ? at / width : here;
            if (owner < here) byte |= (u32)(indices[owner] >> (at % width) & 1) << bit;
        }
        coded[row * row_bytes + start + threadIdx.x] = byte;
    }
    if (blockIdx.y == 0 && threadIdx.x < 2) {
        coded[row * row_bytes + row_bytes - 2 + threadIdx.x] = norm_bits >> (8 * threadIdx.x);
    }
}

// What bytes stand for, (R, n): as float32 in `values`, or as float16 in `halves`; one may be null.
// The grid is (R, parts of 128 blocks), the threads 128.
extern "C" __global__ void __launch_bounds__(128) decode_rows(
    const unsigned char* coded, int row_bytes, int n, const float* betas, const float* inverses,
    int k, int q, int first_fit, int digit_bits, int index_bits, float unit,
    float* values, unsigned short* halves
) {
    const size_t row = blockIdx.x;
    const Code code = {betas, inverses, k, q, first_fit, digit_bits, index_bits, unit};
    const int blocks = n / 8, block = 128 * blockIdx.y + threadIdx.x;
    if (block >= blocks) return;
    const unsigned char* mine = coded + row * row_bytes;
    u64 word = 0;
    for (int j = 0; j < code.digit_bits; j++) word |= (u64)mine[code.digit_bits * block + j] << (8 * j);
    int digits[8], points[8];
    EACH digits[i] = (int)(word >> (code.digit_bits * i)) & ((1 << code.digit_bits) - 1);
#if CELL == D8
    u32 index = split_d8(digits, code.q);
#else
    int bit = code.index_bits * block;
    const unsigned char* pair = mine + code.digit_bits * blocks + (bit >> 3);
    u32 index = code.index_bits ? (pair[0] | (u32)pair[1] << 8) >> (bit & 7) : 0;
    index &= (1u << code.index_bits) - 1;
#endif
    points_of(digits, code.q, points);
    u32 bits = mine[row_bytes - 2] | (u32)mine[row_bytes - 1] << 8;
    float norm = half_to_float(bits);
    if ((bits & 0x7FFFu) >= 0x7C00u) norm = __uint_as_float(0x7FC00000u);
    float scale = times(code.betas[index], code.unit);
    EACH {
        float value = times(times((float)points[i], scale), norm);
        size_t at = row * n + 8 * block + i;
        if (values) values[at] = value;
        if (halves) halves[at] = to_halves(value, 0);
    }
}
