// Paley's factor of a large order, a kernel of its own: see prepare.cu, which goes on with what comes
// out. A block has one row of every token's blocks, and adds in the CPU's order.

#include "halves.cuh"

INLINE float sum(float a, float b) { return __fadd_rn(a, b); }

// x (T, n) float32 or float16; codes (m, m / 4) as hadamard_codes gives them; y (T, n) float32.
// The grid is (m, T), threads have columns.
extern "C" __global__ void paley(
    const void* x, int is_half, int n, const float* signs, const unsigned char* codes, int m,
    int width, float scale, float* y
) {
    start_next_grid();
    wait_for_grids();
    const int groups = m / 4, alone = groups % 4, row = blockIdx.x;
    const size_t token = (size_t)blockIdx.y * n;
    for (int column = threadIdx.x; column < n / m; column += blockDim.x) {
        const int first = column / width * (m * width) + column % width;
        float total = 0, four[4];
        for (int g = 0; g < groups; g++) {
            float v[4];
            for (int j = 0; j < 4; j++) {
                int at = first + (4 * g + j) * width;
                v[j] = is_half ? half_to_float(((const unsigned short*)x)[token + at])
                               : ((const float*)x)[token + at];
                if (signs) v[j] = __fmul_rn(v[j], signs[at]);
            }
            const u32 code = codes[row * groups + g];  // bits 3 to 0: minus for a to d
            float ab = __fmul_rn(sum(v[0], (code >> 2 ^ code >> 3) & 1 ? -v[1] : v[1]), scale);
            float cd = __fmul_rn(sum(v[2], (code ^ code >> 1) & 1 ? -v[3] : v[3]), scale);
            float entry = sum(code & 8 ? -ab : ab, code & 2 ? -cd : cd);
            if (g < alone) {
                total = sum(total, entry);
                continue;
            }
            four[(g - alone) % 4] = entry;
            if ((g - alone) % 4 == 3) {
                total = sum(total, sum(sum(four[0], four[1]), sum(four[2], four[3])));
            }
        }
        y[token + first + row * width] = total;
    }
}
