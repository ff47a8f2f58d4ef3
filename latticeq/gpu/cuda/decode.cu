// Weights decoded to float16 for a library's product, and what is left to do after it.

#include "halves.cuh"
#include "weights.cuh"

// Rows of tiles from `first_tile` on, (16 count, 128 steps) float16; one unit is worth a row's scale.
// A warp has a step of a tile.
extern "C" __global__ void __launch_bounds__(128) decode(
    const uint4* words, const unsigned short* pairs, const unsigned char* plane,
    const unsigned char* flips, const u32* scales_in, int tiles, int steps, int first_tile, int count,
    uint4* out
) {
    __shared__ __align__(64) u32 scales[16];
    if (threadIdx.x < 16) scales[threadIdx.x] = scales_in ? scales_in[threadIdx.x] : 0;
    const u32 table = (u32)__cvta_generic_to_shared(scales);
    __syncthreads();
    const int lane = threadIdx.x & 31;
    const size_t here = (size_t)blockIdx.x * 4 + (threadIdx.x >> 5);
    if (here >= (size_t)count * steps) return;
    const size_t word = ((size_t)first_tile * steps + here) * 32, at = word + lane;
    Stream stream = {words + word * LOADS + lane, pairs + at, plane + at, flips + at};
    Step step;
    load_step(stream, (size_t)tiles * steps, 1, step);
    const int row = here / steps * 16 + (lane >> 2), blocks = 16 * steps;
    const int first = here % steps * 16 + (lane & 3);
#pragma unroll
    for (int quad = 0; quad < 4; quad++) {
#pragma unroll
        for (int which = 0; which < 2; which++) {
            u32 v[4];
            weights_of(step, quad, which, table, v);
            out[(size_t)(row + 8 * which) * blocks + first + 4 * quad] =
                make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
}

// y (T, rows): products times the scales of row and token, and the bias.
extern "C" __global__ void finish(
    float* y, const float* row_scale, const float* token_scale, const float* bias, int rows
) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float* mine = y + (size_t)blockIdx.y * rows + row;
    float value = *mine * row_scale[row] * token_scale[blockIdx.y];
    *mine = bias ? value + bias[row] : value;
}
