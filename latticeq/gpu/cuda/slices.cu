// What ready.cu does, for rows so long that one block of threads would take its time, in two
// launches: Paley's factor column by column, then Sylvester's row by row, with what is in between
// in device memory. Compiled with SOURCE (0 or 2 of ready.cu), M, WIDTH and PADDED, with n = M WIDTH.
//
// A token is scaled by its Euclidean norm over 256, which no entry of the rotated token exceeds:
// the rotation keeps the norm, so that it is known before the rotation is done.

#include "floats.cuh"
#include "hadamard.cuh"
#include "halves.cuh"
#include "reduce.cuh"

constexpr int N = M * WIDTH, GROUPS = M / 4, THREADS = 256, ROW_WARPS = 4;
constexpr float LARGEST = 256.0f;
constexpr int COLUMNS = M * 16 <= 512 ? 16 : 8, SLICES = WIDTH / COLUMNS;
constexpr int LANES = WIDTH < 32 ? WIDTH : 32, COUNT = WIDTH / LANES;
static_assert(WIDTH >= 32 && WIDTH <= 1024, "a row is up to 32 numbers a thread");

// The token's numbers in pairs of neighbouring rows of one slice of columns. `mixed` is (T, N),
// energies (T, SLICES): sums of squares.
extern "C" __global__ void __launch_bounds__(THREADS)
mix_columns(const float *x, const unsigned char *codes, float scale, float *mixed,
            double *energies) {
    __shared__ float sums[M * COLUMNS];
    __shared__ double scratch[32];
    start_next_grid();
    wait_for_grids();
    const long long token = blockIdx.y;
    const int first = blockIdx.x * COLUMNS;
    double energy = 0.0;
    for (int item = threadIdx.x; item < M / 2 * COLUMNS; item += THREADS) {
        const int row = item / COLUMNS * 2, column = item % COLUMNS;
        float pair[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int at = (row + i) * WIDTH + first + column;
#if SOURCE == 2
            const float *both = x + token * 2 * N;
            const float gate = both[at];
            pair[i] = gate / (expf(-gate) + 1.0f) * both[N + at];
#else
            pair[i] = x[token * N + at];
#endif
            energy += (double)pair[i] * (double)pair[i];
        }
        sums[row * COLUMNS + column] = __fmul_rn(sum(pair[0], pair[1]), scale);
        sums[(row + 1) * COLUMNS + column] = __fmul_rn(difference(pair[0], pair[1]), scale);
    }
    energy = block_sum(energy, scratch);  // which waits for the sums too
    if (threadIdx.x == 0) energies[token * SLICES + blockIdx.x] = energy;
    for (int item = threadIdx.x; item < M * COLUMNS; item += THREADS) {
        const int row = item / COLUMNS, column = item % COLUMNS;
        mixed[token * N + row * WIDTH + first + column] =
            paley<GROUPS>(sums + column, COLUMNS, codes + row * GROUPS);
    }
}

// A warp a row.
extern "C" __global__ void __launch_bounds__(32 * ROW_WARPS)
mix_rows(const float *mixed, const double *energies, int is_wide, unsigned short *halves,
         float *token_scale) {
    start_next_grid();
    wait_for_grids();
    const long long token = blockIdx.y;
    const int row = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    double energy = 0.0;
    for (int s = lane; s < SLICES; s += 32) energy += energies[token * SLICES + s];
    const float size = (float)sqrt(warp_sum(energy));
    const bool is_finite = size < infinity();
    const float inverse = is_finite && size > 1e-30f ? LARGEST / size : 0.0f;
    if (row == 0 && lane == 0) token_scale[token] = is_finite ? size / LARGEST : not_a_number();
    if (row >= M) return;
    float v[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] = mixed[token * N + row * WIDTH + 32 * i + lane];
    stages<bits_of(COUNT)>(v);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const int at = row * WIDTH + 32 * i + lane;
        // What is not finite times zero is not zero.
        const float scaled = inverse > 0 ? lane_stages<32>(v[i]) * inverse : 0.0f;
        halves[is_wide ? wide_place(token, at, PADDED) : token * PADDED + at] = to_half(scaled);
    }
    for (int at = N + row * 32 + lane; at < PADDED; at += M * 32)
        halves[is_wide ? wide_place(token, at, PADDED) : token * PADDED + at] = 0;
}
