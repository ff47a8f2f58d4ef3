// Keys and values of many tokens into a cache of rows of nest_rows.cuh, out of it, and what goes
// with them: queries to the basis in which keys are coded, outputs back. KV_HEADS and what
// nest_rows.cuh asks for are compiled in; bases, turns and scales are those of attend.cu.

#include "nest_rows.cuh"

constexpr int BASIS = 2 * KV_HEADS * WIDTH, TURN = WIDTH * WIDTH;

// k and v are (T, KV_HEADS, WIDTH), keys turned by their positions, which start at `start`; one
// block a token and kv head. From one token to the next are k_stride and v_stride numbers.
extern "C" __global__ void __launch_bounds__(2 * TEAM)
append_rows(const float *k, const float *v, long long k_stride, long long v_stride, int start,
            unsigned char *keys, unsigned char *values, long long capacity, const float *bases,
            const float *turns, const float *scales) {
    __shared__ RowScratch scratch;
    const int t = blockIdx.x, g = blockIdx.y;
    const long long at = g * capacity + start + t;
    for (int i = threadIdx.x; i < WIDTH; i += blockDim.x) {
        const float key = k[t * k_stride + g * WIDTH + i], value = v[t * v_stride + g * WIDTH + i];
        scratch.moved[0][i] = moved_number(key, bases, g, KV_HEADS, i);
        scratch.moved[1][i] = moved_number(value, bases + 2 * BASIS, g, KV_HEADS, i);
    }
    __syncthreads();
    const int kind = threadIdx.x / TEAM;
    for (int j = threadIdx.x % TEAM; j < WIDTH; j += TEAM)
        scratch.turned[kind][j] = turned_number(scratch.moved[kind], turns + kind * TURN, j);
    __syncthreads();
    search_rows(scratch, own_scale(scales), [](int) {});
    write_rows(scratch, keys + at * KEY_ROW, values + at * VALUE_ROW);
}

// Decode the first `seen` rows of every kv head, keys (kind 0) or values, to (KV_HEADS, seen,
// WIDTH); one thread a block of eight.
extern "C" __global__ void read_rows(const unsigned char *rows, int kind, long long capacity,
                                     int seen, const float *scales, float *out) {
    const long long task = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (task >= (long long)KV_HEADS * seen * BLOCKS) return;
    const Code code = code_of(kind);
    const int b = task % BLOCKS;
    const long long s = task / BLOCKS % seen, g = task / BLOCKS / seen;
    unsigned word;
    float scale;
    int points[8];
    read_block(rows + (g * capacity + s) * code.row, b, code.index_bits,
               scales + (4 + kind) * MOST_SCALES, &word, &scale);
    decode_word(word, code.q, points);
#pragma unroll
    for (int i = 0; i < 8; ++i) out[8 * task + i] = (float)points[i] * scale;
}

// Turn queries (T, KV_HEADS * shared, WIDTH), stride numbers from one token to the next, to the
// basis of keys, into (KV_HEADS, T * shared, WIDTH); one block a token and head.
extern "C" __global__ void turn_queries(const float *q, long long stride, int shared,
                                        const float *bases, const float *turns, float *out) {
    __shared__ float moved[WIDTH];
    const int t = blockIdx.x, h = blockIdx.y, g = h / shared;
    for (int i = threadIdx.x; i < WIDTH; i += blockDim.x)
        moved[i] = moved_number(q[t * stride + h * WIDTH + i], bases + BASIS, g, KV_HEADS, i);
    __syncthreads();
    float *row = out + (((long long)g * gridDim.x + t) * shared + h % shared) * WIDTH;
    for (int j = threadIdx.x; j < WIDTH; j += blockDim.x) row[j] = turned_quickly(moved, turns, j);
}

// Turn outputs (KV_HEADS, T * shared, WIDTH) back, into (T, KV_HEADS * shared, WIDTH).
extern "C" __global__ void turn_outputs(const float *mixed, int shared, const float *bases,
                                        const float *turns, float *out) {
    __shared__ float row[WIDTH];
    const int t = blockIdx.x, h = blockIdx.y, g = h / shared;
    const float *basis = bases + 3 * BASIS;
    const float *mine = mixed + (((long long)g * gridDim.x + t) * shared + h % shared) * WIDTH;
    for (int i = threadIdx.x; i < WIDTH; i += blockDim.x) row[i] = mine[i];
    __syncthreads();
    for (int j = threadIdx.x; j < WIDTH; j += blockDim.x)
        out[((long long)t * gridDim.y + h) * WIDTH + j] =
            turned_quickly(row, turns + 2 * TURN, j) * basis[(KV_HEADS + g) * WIDTH + j] +
            basis[g * WIDTH + j];
}
