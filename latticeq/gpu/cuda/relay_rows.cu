// Matrices of bytes and of float16, laid out for `small.cu`.

#include "halves.cuh"

// Bytes raised by 128, [group][column / 4][16][4], to [tile][step][quad][32 lanes][16]: of each
// block of eight columns the first four of rows g and g + 8, then the last four.
extern "C" __global__ void relay_bytes(
    const u32* stored, int fours, int tiles, int steps, uint4* words
) {
    size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (size_t)tiles * steps * 128) return;
    int lane = thread & 31, quad = (thread >> 5) & 3, row = lane >> 2;
    size_t at = thread >> 7;
    int step = at % steps, four = 2 * (16 * step + 4 * quad + (lane & 3));
    const u32* group = stored + at / steps * (size_t)fours * 16;
    u32 v[4];
    for (int j = 0; j < 4; j++) {
        int column = four + j / 2;
        v[j] = column < fours ? group[(size_t)column * 16 + row + 8 * (j & 1)] : 0x80808080u;
    }
    words[thread] = make_uint4(v[0], v[1], v[2], v[3]);
}

// Rows of float32 to float16, under what makes the largest of a row 256; [tile][step][8][32][8].
extern "C" __global__ void relay_floats(
    const float* matrix, const float* row_scale, int rows, int columns, int first_tile, int steps,
    unsigned short* words
) {
    int tile = first_tile + blockIdx.x, step = blockIdx.y;
    for (int e = threadIdx.x; e < 16 * 128; e += blockDim.x) {
        int row = e / 128, column = e % 128, at = 128 * step + column;
        int block = column / 8, quad = block / 4, lane = (row % 8) * 4 + block % 4;
        size_t load = ((size_t)tile * steps + step) * 8 + 2 * quad + row / 8;
        float value = 0;
        if (16 * tile + row < rows && at < columns) {
            float scale = row_scale[16 * tile + row];
            value = matrix[(size_t)(16 * blockIdx.x + row) * columns + at];
            value = scale > 0 ? value / scale : 0.0f;
        }
        words[(load * 32 + lane) * 8 + column % 8] = to_halves(value, 0);
    }
}
