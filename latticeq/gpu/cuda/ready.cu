// What a product takes, in one launch: the step before it (SOURCE), the rotation of `prepare.cu`,
// and rounding to float16 under one scale a token. A block of threads has one token; coded tokens
// may have several blocks each, all of which rotate the whole and code a part.
//
// Compiled with SOURCE (0: a token as it is, 1: the residual stream, added to and normalised, 2:
// silu(gate) * up), M and WIDTH (the orders of Paley's and of Sylvester's factor: n = M WIDTH),
// PADDED (columns of a row of float16), WARPS, and CODED: whether tokens are coded, as rows.cu does,
// by CELL, Q, SCALES, FIRST_FIT. The order of additions is that of `prepare.cu`.
//
// A row of WIDTH numbers belongs to one warp, whose lanes are the lowest five bits of the column;
// the bits above are numbers of one thread, up to four bits at a time. Where WIDTH is below 32 a
// warp has several rows; where one pass leaves bits over (M = 1 only) numbers change hands between.

#include "floats.cuh"
#include "hadamard.cuh"
#include "halves.cuh"
#include "reduce.cuh"
#if CODED
#include "scales.cuh"
#endif

constexpr int N = M * WIDTH, THREADS = 32 * WARPS, GROUPS = M / 4;
constexpr float LARGEST = 256.0f;
constexpr bool EARLY = M > 1 && GROUPS <= 16;

constexpr int BITS = bits_of(WIDTH), HIGH = BITS > 5 ? BITS - 5 : 0;
constexpr int LAST = HIGH > 4 ? (HIGH + 1) / 2 : HIGH, FIRST = HIGH - LAST;  // bits of either pass
static_assert(M == 1 || FIRST == 0, "Paley's factor goes before rows of at most 512 numbers");
static_assert(FIRST <= 4, "rows of at most 8192 numbers");
constexpr int COUNT = 1 << LAST, LANES = WIDTH < 32 ? WIDTH : 32, ROWS = 32 / LANES;
constexpr int RUNS = N / (LANES * COUNT);  // sets of numbers that are transformed together

struct Input {
    const float *x;        // (T, N); SOURCE 2: (T, 2, N)
    float *stream;         // (T, N), SOURCE 1: where the sum goes; x itself where blocks do not share
    const float *added;    // (T, N), or null
    const float *weight;   // (N,)
    double epsilon;
};

// Read number `at` of the token; of the residual stream, with what is added to it.
__device__ inline float read(const Input &input, int at) {
    const long long token = blockIdx.x;
#if SOURCE == 2
    const float *both = input.x + token * 2 * N;
    const float gate = both[at];
    return gate / (expf(-gate) + 1.0f) * both[N + at];
#else
    const float value = input.x[token * N + at];
#if SOURCE == 1
    if (input.added) {
        const float sum = value + input.added[token * N + at];
        if (blockIdx.y == 0) input.stream[token * N + at] = sum;
        return sum;
    }
#endif
    return value;
#endif
}

// The place of a thread's number before the first pass: of a pair of neighbouring rows, or of one
// column of what the first pass transforms.
__device__ inline int at_of(int item, int i) {
    return M > 1 ? (item / WIDTH * 2 + i) * WIDTH + item % WIDTH : i * (N >> FIRST) + item;
}

// The place of number i of this thread in a set of the last pass.
__device__ inline int place(int run, int i) {
    const int lane = threadIdx.x % LANES;
    const int row = run * COUNT * LANES;  // sets lie one after the other, rows of one pass each
    return row + i * LANES + lane;
}

#if CODED
constexpr int CHOICES = 1 << bits_of(SCALES);  // neighbouring threads that share a block

// The scale that a thread tries, asked for before there is a token: `scales` is (3, SCALES), betas,
// 1 / betas and betas over the largest.
struct Scale {
    float beta, inverse, share, largest;
};

__device__ inline Scale own_scale(const float *scales) {
    const int p = min((int)threadIdx.x % CHOICES, SCALES - 1);
    return {scales[p], scales[SCALES + p], scales[2 * SCALES + p], scales[SCALES - 1]};
}

// Code this block's part of a rotated token: the points of its blocks of eight times their scales
// over the largest, in float16.
__device__ inline void code_token(const float *y, const Scale &scale, int is_wide,
                                  unsigned short *halves, float *token_scale) {
    __shared__ double energies[32];
    const long long token = blockIdx.x;
    double energy = 0.0;
    for (int i = threadIdx.x; i < N; i += THREADS) energy += (double)y[i] * (double)y[i];
    const float root = (float)sqrt(block_sum(energy, energies) / N);
    const float norm = from_half(root < 65520.0f ? to_half(root) : 0x7E00);
    const float inverse = norm > 0.0f ? __fdiv_rn(1.0f, norm) : 0.0f;
    if (threadIdx.x == 0 && blockIdx.y == 0) token_scale[token] = norm * scale.largest;
    const int first = N / 8 * blockIdx.y / gridDim.y, end = N / 8 * (blockIdx.y + 1) / gridDim.y;
    const int tasks = (end - first) * CHOICES, rounded = (tasks + 31) / 32 * 32;
#pragma unroll 1
    for (int task = threadIdx.x; task < rounded; task += THREADS) {
        const int b = first + min(task, tasks - 1) / CHOICES, p = task % CHOICES;
        float x[8], point[8], cost = infinity();
        EACH x[i] = norm > 0.0f ? times(y[8 * b + i], inverse) : 0.0f;
        if (p < SCALES)
            cost = cost_at_scale(x, scale.beta, scale.inverse, Q, p + 1 == SCALES, FIRST_FIT,
                                 point);
        if (cheapest(cost, p, CHOICES) != p || task >= tasks) continue;
        const bool is_coded = cost < infinity();
        u32 pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            pairs[i] = is_coded ? to_halves(point[2 * i] * scale.share,
                                            point[2 * i + 1] * scale.share) : 0u;
        if (!is_wide) {
            *(uint4 *)(halves + token * PADDED + 8 * b) =
                make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            continue;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            *(u32 *)(halves + wide_place(token, 8 * b + 2 * i, PADDED)) = pairs[i];
    }
    if (blockIdx.y > 0) return;
    for (int i = N + threadIdx.x; i < PADDED; i += THREADS)
        halves[is_wide ? wide_place(token, i, PADDED) : token * PADDED + i] = 0;
}
#endif

// Outputs are `halves`, (T, PADDED), in the order of wide.cu if `is_wide`, and `token_scale`, (T,).
// `codes` is what latticeq.transforms.hadamard.hadamard_codes says of M, `scale` 1 / sqrt(N).
extern "C" __global__ void __launch_bounds__(THREADS)
ready(const float *x, float *stream, const float *added, const float *weight, double epsilon,
      const unsigned char *codes, float scale, const float *scales, int is_wide,
      unsigned short *halves, float *token_scale) {
    extern __shared__ float memory[];
    [[maybe_unused]] __shared__ unsigned most_of[32];
    const Input input = {x, stream, added, weight, epsilon};
    const long long token = blockIdx.x;
    const int thread = threadIdx.x;
    float *y = memory, *sums = memory + N;
    start_next_grid();

    // Numbers of a thread: pairs of neighbouring rows, or what the first pass has.
    constexpr int HELD = M > 1 ? (N / 2 + THREADS - 1) / THREADS : 1;
    constexpr int HELD_ONE = M > 1 ? 1 : (N / (1 << FIRST) + THREADS - 1) / THREADS;
    constexpr int NUMBERS = M > 1 ? 2 * HELD : HELD_ONE << FIRST;
    float held[NUMBERS];
    // Codes, and weights, are on their way while the token is looked at.
    unsigned char first_codes[EARLY ? GROUPS : 1];
    if (EARLY)
#pragma unroll
        for (int g = 0; g < GROUPS; ++g)
            first_codes[g] = codes[min(thread / LANES, M - 1) * GROUPS + g];
#if SOURCE == 1
    float weights[NUMBERS];
    double squares = 0.0;
#pragma unroll
    for (int h = 0; h < (M > 1 ? HELD : HELD_ONE); ++h)
#pragma unroll
        for (int i = 0; i < (M > 1 ? 2 : 1 << FIRST); ++i) {
            const int item = h * THREADS + thread, slot = M > 1 ? 2 * h + i : (h << FIRST) + i;
            const bool there = item < (M > 1 ? N / 2 : N >> FIRST);
            weights[slot] = there ? weight[at_of(item, i)] : 0.0f;
        }
#endif
#if CODED
    const Scale own = own_scale(scales);
#endif
    wait_for_grids();
#pragma unroll
    for (int h = 0; h < (M > 1 ? HELD : HELD_ONE); ++h)
#pragma unroll
        for (int i = 0; i < (M > 1 ? 2 : 1 << FIRST); ++i) {
            const int item = h * THREADS + thread, slot = M > 1 ? 2 * h + i : (h << FIRST) + i;
            const bool there = item < (M > 1 ? N / 2 : N >> FIRST);
            held[slot] = there ? read(input, at_of(item, i)) : 0.0f;
#if SOURCE == 1
            squares += (double)held[slot] * (double)held[slot];
#endif
        }
#if SOURCE == 1
    __shared__ double squares_of[32];
    squares = block_sum(squares, squares_of);
    const float factor = (float)rsqrt(squares * (1.0 / N) + epsilon);
#endif
#pragma unroll
    for (int h = 0; h < (M > 1 ? HELD : HELD_ONE); ++h) {
        const int item = h * THREADS + thread;
        if (item >= (M > 1 ? N / 2 : N >> FIRST)) continue;
#if SOURCE == 1
#pragma unroll
        for (int i = 0; i < (M > 1 ? 2 : 1 << FIRST); ++i) {
            const int slot = M > 1 ? 2 * h + i : (h << FIRST) + i;
            held[slot] = __fmul_rn(weights[slot], __fmul_rn(held[slot], factor));
        }
#endif
        if (M > 1) {
            const int at = item / WIDTH * 2 * WIDTH + item % WIDTH;
            sums[at] = __fmul_rn(sum(held[2 * h], held[2 * h + 1]), scale);
            sums[at + WIDTH] = __fmul_rn(difference(held[2 * h], held[2 * h + 1]), scale);
        } else {
            float *mine = held + (h << FIRST);
#pragma unroll
            for (int i = 0; i < 1 << FIRST; ++i) mine[i] = __fmul_rn(mine[i], scale);
            stages<FIRST>(mine);
#pragma unroll
            for (int i = 0; i < 1 << FIRST; ++i) y[i * (N >> FIRST) + item] = mine[i];
        }
    }
    __syncthreads();

    [[maybe_unused]] unsigned most = 0;  // magnitudes are in the order of their bits, NaN the largest
    for (int run = thread / LANES; run < (RUNS + ROWS - 1) / ROWS * ROWS; run += THREADS / LANES) {
        float v[COUNT];
        const bool there = run < RUNS;
        const unsigned char *mine = codes + (there ? run : 0) * GROUPS;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const int column = i * LANES + thread % LANES;
            if (M == 1)
                v[i] = y[place(there ? run : 0, i)];
            else if (EARLY && run == thread / LANES)
                v[i] = paley<GROUPS>(sums + column, WIDTH, first_codes);
            else
                v[i] = paley<GROUPS>(sums + column, WIDTH, mine);
        }
        stages<LAST>(v);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            v[i] = lane_stages<LANES>(v[i]);
            if (there) {
                y[place(run, i)] = v[i];
                most = max(most, __float_as_uint(fabsf(v[i])));
            }
        }
    }
#if CODED
    __syncthreads();
    code_token(y, own, is_wide, halves, token_scale);
#else
    most = __reduce_max_sync(~0u, most);
    if (thread % 32 == 0) most_of[thread / 32] = most;
    __syncthreads();
    most = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) most = max(most, most_of[warp]);
    const float size = __uint_as_float(most);
    const bool is_finite = size < infinity();
    const float inverse = is_finite && size > 1e-30f ? LARGEST / size : 0.0f;
    if (thread == 0) token_scale[token] = is_finite ? size / LARGEST : not_a_number();
    for (int i = 2 * thread; i < PADDED; i += 2 * THREADS) {
        const float a = i < N ? y[i] : 0.0f, b = i + 1 < N ? y[i + 1] : 0.0f;
        // What is not finite times zero is not zero.
        const u32 both = inverse > 0 ? to_halves(a * inverse, b * inverse) : 0u;
        *(u32 *)(halves + (is_wide ? wide_place(token, i, PADDED) : token * PADDED + i)) = both;
    }
#endif
}
