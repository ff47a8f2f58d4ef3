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
// Macros: those of weights.cuh; TOKEN_TILES of eight tokens; TILES, WARPS, ROW_WARPS, AHEAD; BLOCKS
// that a multiprocessor is to hold.

#include "halves.cuh"

#include "weights.cuh"

#define K_WARPS (WARPS / ROW_WARPS)
#define ROWS (16 * TILES * ROW_WARPS)
#define TOKENS (8 * TOKEN_TILES)

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
