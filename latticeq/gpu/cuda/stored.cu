// Codewords as the file has them, decoded to float32: what the CPU's runtime "float32" multiplies.
// Cells whose scale indices lie apart; CELL is compiled in. A thread has one block of one row.

#include "halves.cuh"
#include "lattice.cuh"

// `digits` is [group][block][16][width], `index` [group][block][2 * index_width]; units are what a
// unit of a point is worth at each scale; out (rows, 8 * blocks).
extern "C" __global__ void decode_stored(
    const unsigned char* digits, const unsigned char* index, int width, int index_width, int blocks,
    int q, const float* units, const float* row_scale, int rows, float* out
) {
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const int block = thread % blocks, row = thread / blocks, lane = row % 16;
    if (row >= rows) return;
    const long long at = (long long)(row / 16) * blocks + block;
    const unsigned char* bytes = digits + (at * 16 + lane) * width;
    u64 word = 0;
    for (int j = 0; j < width; j++) word |= (u64)bytes[j] << (8 * j);
    int which = 0;
    for (int i = 0; i < index_width; i++) {
        const int bit = lane * index_width + i;
        which |= (index[at * 2 * index_width + bit / 8] >> bit % 8 & 1) << i;
    }
    int found[8], points[8];
    EACH found[i] = (int)(word >> (width * i)) & ((1 << width) - 1);
    points_of(found, q, points);
    const float scale = times(row_scale[row], units[which]);
    EACH out[8 * thread + i] = times((float)points[i], scale);
}
