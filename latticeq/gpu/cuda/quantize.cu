// Rows of weights coded block by block, with error feedback and without: what
// latticeq/quantizers/nestquant.py and feedback.py do, in their order. The targets of feedback are
// in float64, blocks are coded in float32.
//
// Compiled in are CELL and, of feedback: ROWS that a block of threads has, LANES that each row has,
// which try the scales of a block side by side, and PANEL, columns whose errors are gathered before
// all columns before them are fed.

#include "scales.cuh"

struct Code {
    const float* betas;    // (k,)
    const float* inverse;  // (k,): one over each, rounded
    int k, q, first_fit;
    float limit;  // the largest magnitude that is coded
};

// Set digits and index of block `at`.
INLINE void store(const float (&point)[8], int which, int q, size_t at, unsigned char* digits,
                  unsigned char* index) {
    int found[8];
    u64 word = 0;
    digits_of(point, q, found);
    EACH word |= (u64)(found[i] & 255) << (8 * i);
    ((u64*)digits)[at] = word;
    index[at] = which;
}

// Code blocks of eight, x (count, 8): one a thread. `bad` becomes 1 where a number cannot be coded.
extern "C" __global__ void __launch_bounds__(128) encode_blocks(
    const float* x, long long count, const float* betas, const float* inverse, int k, int q,
    int first_fit, float limit, unsigned char* digits, unsigned char* index, int* bad
) {
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    float block[8], point[8];
    bool is_good = true;
    EACH {
        block[i] = x[8 * at + i];
        is_good = is_good && fabsf(block[i]) <= limit;
    }
    if (!is_good) { *bad = 1; return; }
    const int which = closest_codeword(block, betas, inverse, k, q, first_fit, point);
    store(point, which, q, at, digits, index);
}

// What digits stand for, (rows, 8 blocks): `units` is what a unit of a point is worth at each scale.
extern "C" __global__ void __launch_bounds__(128) decode_blocks(
    const unsigned char* digits, const unsigned char* index, long long count, int blocks, int q,
    const float* units, const float* row_scale, float* out
) {
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    int found[8], points[8];
    EACH found[i] = digits[8 * at + i];
    points_of(found, q, points);
    const float scale = times(row_scale[at / blocks], units[index[at]]);
    EACH out[8 * at + i] = times((float)points[i], scale);
}

// Try a row's share of the scales on a block: the best point and its cost, infinity if there is none.
INLINE float cheapest_of_lane(const float (&x)[8], const Code& code, int lane, int& which,
                              float (&point)[8]) {
    float least = infinity();
    which = code.k;
    EACH point[i] = 0;
    for (int p = lane; p < code.k; p += LANES) {
        float found[8];
        const float cost = cost_at_scale(
            x, code.betas[p], code.inverse[p], code.q, p + 1 == code.k, code.first_fit, found);
        if (cost >= least) continue;
        least = cost;
        which = p;
        EACH point[i] = found[i];
    }
    return least;
}

// LDLQ within `columns` columns from `start` on, last block first: the error of each block is fed to
// the blocks before it. target and weights are (rows, n); lower is (n, n); error (rows, PANEL) gets
// what the weights lose, for the columns before `start`.
extern "C" __global__ void __launch_bounds__(ROWS * LANES) feed_panel(
    const double* weights, const double* target, const double* lower, int rows, int n, int start,
    int columns, const float* betas, const float* inverse, int k, int q, int first_fit, float limit,
    unsigned char* digits, unsigned char* index, double* error, int* bad
) {
    constexpr int share = 8 / LANES;  // columns of a block that a lane has: lane + LANES j
    __shared__ double errors[ROWS][PANEL + 1];  // rows start in different banks
    const Code code = {betas, inverse, k, q, first_fit, limit};
    const int lane = threadIdx.x % LANES, place = threadIdx.x / LANES;
    const bool is_spare = blockIdx.x * ROWS + place >= rows;  // threads past the end repeat a row
    const size_t row = is_spare ? rows - 1 : blockIdx.x * ROWS + place;
    double* mine = errors[place];
    for (int at = columns - 8; at >= 0; at -= 8) {
        float fed[share], x[8], point[8];
#pragma unroll
        for (int j = 0; j < share; j++) {
            const int column = start + at + lane + LANES * j;
            double sum = 0;
#pragma unroll 8
            for (int later = at + 8; later < columns; later++)
                sum = fma(mine[later], lower[(size_t)(start + later) * n + column], sum);
            fed[j] = (float)(target[row * n + column] + sum);
        }
        bool is_good = true;
        EACH {
            x[i] = __shfl_sync(~0u, fed[i / LANES], i % LANES, LANES);
            is_good = is_good && fabsf(x[i]) <= code.limit;
        }
        if (!is_good) {
            if (!is_spare) *bad = 1;
            EACH x[i] = 0;  // the lanes of a row go on together; the caller raises
        }
        int which;
        float cost = cheapest_of_lane(x, code, lane, which, point);
        const int best = min(cheapest(cost, which, LANES), code.k - 1), owner = best % LANES;
        EACH {
            point[i] = __shfl_sync(~0u, point[i], owner, LANES);
            if (i % LANES != lane) continue;
            const size_t column = start + at + i;
            const double lost =
                weights[row * n + column] - (double)times(point[i], code.betas[best]);
            mine[at + i] = lost;
            if (!is_spare) error[row * PANEL + at + i] = lost;
        }
        if (lane == owner && !is_spare)
            store(point, best, code.q, (row * n + start + at) / 8, digits, index);
        __syncwarp();
    }
}
