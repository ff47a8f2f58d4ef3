// Choose the next token from logits: `latticeq.model.sampling` says by which law.
//
// Tokens are in order of their ranks, the largest first. Where the sums of weights in that order pass
// a target is found digit by digit of the rank, BITS at a time: each thread has sums of its own for
// every value of the digit, so that all sums are made in a fixed order, and the same number gives the
// same token. Constants: BITS, and THREADS of a block of `draw`.

#include "reduce.cuh"

#define VALUES (1 << BITS)

typedef unsigned long long Rank;

// What is no number ranks before all numbers.
#define NO_NUMBER (~0ull)

// A larger rank: more likely, or as likely and of a smaller id.
__device__ inline Rank rank_of(float logit, int id) {
    if (!isfinite(logit)) return NO_NUMBER;
    const unsigned bits = __float_as_uint(logit + 0.0f);  // -0 is as likely as 0
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Rank)ordered << 32 | (0xFFFFFFFFu - (unsigned)id);
}

__device__ inline int id_of(Rank rank) { return (int)(0xFFFFFFFFu - (unsigned)rank); }

__device__ inline Rank warp_first(Rank rank) {
    for (int step = 16; step > 0; step /= 2) rank = max(rank, __shfl_xor_sync(~0u, rank, step));
    return rank;
}

// Set token to that of the largest logit, the smallest of equals; to -1 if one is no number.
extern "C" __global__ void likeliest(const float *logits, int count, int *token) {
    __shared__ Rank firsts[32];
    Rank first = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) first = max(first, rank_of(logits[i], i));
    first = warp_first(first);
    if (threadIdx.x % 32 == 0) firsts[threadIdx.x / 32] = first;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < blockDim.x / 32; ++warp) first = max(first, firsts[warp]);
    *token = first == NO_NUMBER ? -1 : id_of(first);
}

// Set weights to what probabilities are in proportion to; nothing if `likeliest` found no number.
extern "C" __global__ void weigh(const float *logits, int count, double temperature,
                                 const int *likeliest, double *weights) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count || *likeliest < 0) return;
    weights[i] = exp(((double)logits[i] - (double)logits[*likeliest]) / temperature);
}

struct Found {
    Rank rank;
    double before, weight;  // the sum of all weights before it, and its own
};

struct Shared {
    double sums[VALUES][THREADS];  // of weights, by digit and thread
    double totals[VALUES];
    int counts[32];
    Found found;
};

// Add up the weights of those whose rank begins with `known`, by the digit that follows. Returns how
// many there are; if it is one, shared.found has its rank and its weight.
__device__ inline int add_up(const float *logits, const double *weights, int count, Rank known,
                             int shift, Shared &shared) {
    const int me = threadIdx.x;
    int mine = 0;
    Found last = {};
    for (int value = 0; value < VALUES; ++value) shared.sums[value][me] = 0;
    for (int i = me; i < count; i += THREADS) {
        const Rank rank = rank_of(logits[i], i);
        if (rank >> shift >> BITS != known) continue;
        ++mine;
        last = {rank, 0, weights[i]};
        shared.sums[rank >> shift & (VALUES - 1)][me] += last.weight;
    }
    const int all = block_sum(mine, shared.counts);
    if (all == 1 && mine == 1) shared.found = last;
    for (int value = me / 32; value < VALUES; value += THREADS / 32) {
        double sum = 0;
        for (int thread = me % 32; thread < THREADS; thread += 32) sum += shared.sums[value][thread];
        sum = warp_sum(sum);
        if (me % 32 == 0) shared.totals[value] = sum;
    }
    __syncthreads();
    return all;
}

// Find the first token where the sum of weights, its own included, reaches a target or (`beyond`)
// passes it; the last that weighs something if, by rounding, none does. All threads get it.
__device__ inline Found first_at(const float *logits, const double *weights, int count,
                                 double target, bool beyond, Shared &shared) {
    Rank known = 0;
    double before = 0, weight = 0;
    for (int shift = 63 / BITS * BITS; shift >= 0; shift -= BITS) {
        const int candidates = add_up(logits, weights, count, known, shift, shared);
        if (candidates == 1) return {shared.found.rank, before, shared.found.weight};
        double sum = before;
        int digit = 0;
        for (int value = VALUES - 1; value >= 0; --value) {
            if (shared.totals[value] <= 0) continue;
            digit = value;
            before = sum;
            weight = shared.totals[value];
            sum += weight;
            if (beyond ? sum > target : sum >= target) break;
        }
        known = known << BITS | digit;
    }
    return {known, before, weight};
}

// Set token to the one that a number in [0, 1) stands for, in the nucleus of probability top_p.
extern "C" __global__ void __launch_bounds__(THREADS)
    draw(const float *logits, const double *weights, int count, double top_p, double number,
         int *token) {
    __shared__ Shared shared;
    __shared__ double sums[32];
    if (*token < 0) return;
    double mass = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) mass += weights[i];
    mass = block_sum(mass, sums);
    Rank last = 0;
    if (top_p < 1) {
        const Found end = first_at(logits, weights, count, top_p * mass, false, shared);
        last = end.rank;
        mass = end.before + end.weight;
    }
    const Rank found = first_at(logits, weights, count, number * mass, true, shared).rank;
    if (threadIdx.x == 0) *token = id_of(max(found, last));  // not behind the nucleus, by rounding
}
