// Products by few tokens: packed weights meet float16 activations on the tensor cores as they come.
//
//   y[n][m] = token_scale[n] row_scale[m] sum_k w[m][k] x[n][k]  + bias[m]
//
// A warp has sixteen rows (or TILES times as many) and strides over steps of 128 columns. One
// instruction multiplies 16 rows x 16 columns by 8 tokens. Which sixteen columns is free: a thread
// of row g = lane / 4 has whole blocks of eight columns, of number 4 quad + lane % 4 in a step, so
// that the word of a block is decoded by one thread and goes into two instructions. WARPS warps of
// a block are ROW_WARPS sets of rows times the rest, which share the columns; gridDim.y splits the
// columns further. Sums are added in a fixed order: results do not depend on timing.
//
// Macros: FORMAT 0 words of CELL and Q (words.cuh), 1 int8 raised by 128, 2 float16;
// PAIRS and PLANES, how the scale index is stored; FLIPS, whether there is a plane of flips;
// TOKEN_TILES of eight tokens; TILES, WARPS, ROW_WARPS, AHEAD.

#include "halves.cuh"

#define COLUMNS 128

#if FORMAT == 0
#include "words.cuh"
#define LOADS 2
#elif FORMAT == 1
#define LOADS 4
#else
#define LOADS 8
#endif

#define K_WARPS (WARPS / ROW_WARPS)
#define ROWS (16 * TILES * ROW_WARPS)
#define TOKENS (8 * TOKEN_TILES)

// Where a lane reads its part of a tile: it goes from step to step.
struct Stream {
    const uint4* words;            // [tile][step][LOADS][32]
    const unsigned short* pairs;   // [PAIRS][tile][step][32]: two bits of the scale index a word
    const unsigned char* plane;    // [tile][step][32]: one more bit
    const unsigned char* flips;    // [tile][step][32]
};

struct Step {
    uint4 words[LOADS];
    u32 pairs[2];
    u32 plane;
    u32 flips;
};

INLINE uint4 load_once(const uint4* at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}

// Load a step, of the arrays with `size` steps in all, and move `parts` steps on.
INLINE void load_step(Stream& from, size_t size, int parts, Step& step) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) step.words[i] = load_once(from.words + i * 32);
    from.words += parts * (LOADS * 32);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) step.pairs[i] = __ldg(from.pairs + i * size * 32);
    if (PAIRS) from.pairs += parts * 32;
    if (PLANES) { step.plane = __ldg(from.plane); from.plane += parts * 32; }
    if (FLIPS) { step.flips = __ldg(from.flips); from.flips += parts * 32; }
}

// The word number 0 to 7 of a thread in a step: rows g and g + 8 by turns, quad = number / 2.
INLINE u32 word_of(const Step& step, int number) {
    const uint4& four = step.words[number / 4];
    return number % 4 == 0 ? four.x : number % 4 == 1 ? four.y : number % 4 == 2 ? four.z : four.w;
}

#if FORMAT == 0
// The scale of a word, from a table of sixteen at a shared address that is a multiple of 64.
INLINE u32 scale_of(const Step& step, int number, u32 table) {
    u32 place = 0;  // four times the index
#if CELL == D8
    place = index_of_d8(word_of(step, number)) << 2;
#else
    if (PAIRS > 0) {
        place = (number ? step.pairs[0] >> (2 * number - 2) : step.pairs[0] << 2) & 12u;
    }
    if (PAIRS > 1) {
        place |= (number > 1 ? step.pairs[1] >> (2 * number - 4) : step.pairs[1] << (4 - 2 * number))
                 & 48u;
    }
    if (PLANES) place |= ((step.plane >> number) & 1u) << (2 + 2 * PAIRS);
#endif
    u32 scale;
    asm("ld.shared.u32 %0, [%1];" : "=r"(scale) : "r"(place | table));
    return scale;
}

INLINE bool flipped_of(const Step& step, int number) {
#if CELL == D8
    return flipped_of_d8(word_of(step, number));
#else
    return FLIPS && ((step.flips >> number) & 1u);
#endif
}
#endif

// Four pairs of neighbouring columns of row g (which = 0) or g + 8 (which = 1) of a quad.
INLINE void weights_of(const Step& step, int quad, int which, u32 table, u32 (&v)[4]) {
#if FORMAT == 0
    int number = 2 * quad + which;
    decode_word(word_of(step, number), flipped_of(step, number), scale_of(step, number, table), v);
#elif FORMAT == 1
    const uint4& four = step.words[quad];
    const u32 low = which ? four.y : four.x, high = which ? four.w : four.z;
    constexpr u32 offset = twice_half(-(1024 + 128));
    v[0] = add_halves(__byte_perm(low, 0x64646464u, 0x4140), offset);
    v[1] = add_halves(__byte_perm(low, 0x64646464u, 0x4342), offset);
    v[2] = add_halves(__byte_perm(high, 0x64646464u, 0x4140), offset);
    v[3] = add_halves(__byte_perm(high, 0x64646464u, 0x4342), offset);
#else
    const uint4& four = step.words[2 * quad + which];
    v[0] = four.x; v[1] = four.y; v[2] = four.z; v[3] = four.w;
#endif
}

INLINE void multiply_tile(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Lanes of tokens beyond the last read the last one's numbers: what comes of it is not looked at.
INLINE void multiply_step(
    const Step (&steps)[TILES], u32 table, const uint4* const (&x)[TOKEN_TILES],
    float (&c)[TILES][TOKEN_TILES][4]
) {
#pragma unroll
    for (int quad = 0; quad < 4; quad++) {
        uint4 b[TOKEN_TILES];
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++) b[n] = x[n][4 * quad];
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            u32 v[4], w[4];
            weights_of(steps[i], quad, 0, table, v);
            weights_of(steps[i], quad, 1, table, w);
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++) {
                multiply_tile(c[i][n], v[0], w[0], v[1], w[1], b[n].x, b[n].y);
                multiply_tile(c[i][n], v[2], w[2], v[3], w[3], b[n].z, b[n].w);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) multiply(
    const uint4* words, const unsigned short* pairs, const unsigned char* plane,
    const unsigned char* flips, const u32* scales_in, const float* row_scale, const float* bias,
    const uint4* x, const float* token_scale, float* y,
    int tokens, int rows, int tiles, int steps, float* partial, u32* arrived
) {
    __shared__ float sums[WARPS][TILES][TOKENS][16];
    __shared__ __align__(64) u32 scales[16];
    __shared__ bool is_last;
    start_next_grid();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int first_tile = (blockIdx.x * ROW_WARPS + warp % ROW_WARPS) * TILES;
    const int part = blockIdx.y * K_WARPS + warp / ROW_WARPS, parts = gridDim.y * K_WARPS;
    const size_t size = (size_t)tiles * steps;

    // Weights do not depend on what runs before: they are asked for while that comes to its end.
    Stream streams[TILES];
    Step ring[AHEAD][TILES];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        size_t at = ((size_t)min(first_tile + i, tiles - 1) * steps + part) * 32 + lane;
        size_t word = at - lane;
        streams[i] = {words + word * LOADS + lane, pairs + at, plane + at, flips + at};
    }
#pragma unroll
    for (int d = 0; d < AHEAD; d++) {
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            if (part + d * parts < steps) load_step(streams[i], size, parts, ring[d][i]);
        }
    }
    if (threadIdx.x < 16) scales[threadIdx.x] = scales_in ? scales_in[threadIdx.x] : 0;
    const u32 table = (u32)__cvta_generic_to_shared(scales);
    __syncthreads();
    wait_for_grids();

    float c[TILES][TOKEN_TILES][4] = {};
    const uint4* mine[TOKEN_TILES];
#pragma unroll
    for (int n = 0; n < TOKEN_TILES; n++) {
        int token = min(8 * n + (lane >> 2), tokens - 1);
        mine[n] = x + ((size_t)token * steps + part) * (COLUMNS / 8) + (lane & 3);
    }
    for (int begin = part; begin < steps; begin += AHEAD * parts) {
#pragma unroll
        for (int d = 0; d < AHEAD; d++) {
            int at = begin + d * parts;
            if (at >= steps) break;
            multiply_step(ring[d], table, mine, c);
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++) mine[n] += parts * (COLUMNS / 8);
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                if (at + AHEAD * parts < steps) load_step(streams[i], size, parts, ring[d][i]);
            }
        }
    }

    // Thread (g, t) holds rows g and g + 8 of tokens 2 t and 2 t + 1.
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sums[warp][i][8 * n + 2 * (lane & 3) + (j & 1)][(lane >> 2) + 8 * (j >> 1)] =
                    c[i][n][j];
            }
        }
    }
    __syncthreads();

    const int first_row = blockIdx.x * ROWS;
    const int padded = 16 * tiles;
    for (int e = threadIdx.x; e < ROWS * TOKENS; e += 32 * WARPS) {
        int row = e % ROWS, token = e / ROWS;
        if (token >= tokens || first_row + row >= padded) continue;
        int tile = row / 16, set = tile / TILES;
        float sum = 0;
#pragma unroll
        for (int k = 0; k < K_WARPS; k++) {
            sum += sums[k * ROW_WARPS + set][tile % TILES][token][row % 16];
        }
        if (gridDim.y > 1) {
            partial[((size_t)blockIdx.y * tokens + token) * padded + first_row + row] = sum;
        } else if (first_row + row < rows) {
            float value = sum * row_scale[first_row + row] * token_scale[token];
            if (bias) value += bias[first_row + row];
            y[(size_t)token * rows + first_row + row] = value;
        }
    }
    if (gridDim.y == 1) return;

    // The last block to arrive adds up what all wrote, in their order, and leaves the count at zero.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(&arrived[blockIdx.x], 1) == gridDim.y - 1;
        if (is_last) arrived[blockIdx.x] = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (int e = threadIdx.x; e < ROWS * tokens; e += 32 * WARPS) {
        int row = first_row + e % ROWS, token = e / ROWS;
        if (row >= rows) continue;
        float sum = 0;
        for (int s = 0; s < gridDim.y; s++) {
            sum += __ldcg(partial + ((size_t)s * tokens + token) * padded + row);
        }
        float value = sum * row_scale[row] * token_scale[token];
        if (bias) value += bias[row];
        y[(size_t)token * rows + row] = value;
    }
}
