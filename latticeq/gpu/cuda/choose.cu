// Choose the next token from logits: `latticeq.model.sampling` says by which law.
//
// Tokens are in order of their ranks, the largest first. Where the sums of weights in that order pass
// a target is found digit by digit of the rank, of BITS bits, from the first bit in which the ranks
// that are left differ. Each thread of a block of THREADS has tokens of its own, and sums of its own
// for every value of a digit: all sums are made in a fixed order, and the same number always gives the
// same token.

#include "reduce.cuh"

#define VALUES (1 << BITS)
#define BATCH 8  // tokens that a thread has asked memory for before it looks at the first

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

// The tokens of a thread: every one whose id is its number modulo THREADS, or those of a list.
struct Share {
    const float *logits;
    const double *weights;
    int *list;
    int count;
    bool is_listed;
};

__device__ inline Share share_of(const float *logits, const double *weights, int *list, int count) {
    return {logits, weights, list, (count - (int)threadIdx.x + THREADS - 1) / THREADS, false};
}

// Call work(id, rank, weight) for each token of a share; the weight is 0 unless it is asked for.
template <bool WEIGHED, class Work> __device__ inline void each(const Share &mine, Work work) {
    const int count = mine.count;
    for (int n = 0; n < count; n += BATCH) {
        int ids[BATCH];
        float logits[BATCH];
        double weights[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            ids[i] = threadIdx.x + min(n + i, count - 1) * THREADS;
            if (mine.is_listed) ids[i] = mine.list[ids[i]];
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            logits[i] = mine.logits[ids[i]];
            weights[i] = WEIGHED ? mine.weights[ids[i]] : 0;
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i)
            if (n + i < count) work(ids[i], rank_of(logits[i], ids[i]), weights[i]);
    }
}

// Set token to that of the largest logit, the smallest of equals; to -1 if one is no number.
extern "C" __global__ void __launch_bounds__(THREADS)
    likeliest(const float *logits, int count, int *token) {
    __shared__ Rank firsts[32];
    Rank first = 0;
    each<false>(share_of(logits, nullptr, nullptr, count),
                [&](int, Rank rank, double) { first = max(first, rank); });
    for (int step = 16; step > 0; step /= 2) first = max(first, __shfl_xor_sync(~0u, first, step));
    if (threadIdx.x % 32 == 0) firsts[threadIdx.x / 32] = first;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < THREADS / 32; ++warp) first = max(first, firsts[warp]);
    *token = first == NO_NUMBER ? -1 : id_of(first);
}

// Set weights to what probabilities are in proportion to; nothing if `likeliest` found no number.
extern "C" __global__ void weigh(const float *logits, int count, double temperature,
                                 const int *likeliest, double *weights) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count || *likeliest < 0) return;
    weights[i] = exp(((double)logits[i] - (double)logits[*likeliest]) / temperature);
}

// The bits that all ranks of some tokens have, and those that any has: all of these for one token alone.
struct Span {
    Rank all, any;
};

// The place of the digit that begins with the first bit in which ranks differ.
__device__ inline int digit_of(Span span) { return max(64 - BITS - __clzll(span.all ^ span.any), 0); }

struct Shared {
    double sums[VALUES][THREADS];  // of weights, by digit and thread
    double tops[VALUES];           // the totals of the first digit of all tokens
    double totals[VALUES];
    Span spans[32];
};

// Leave only tokens whose rank has some known bits; return the span of what all threads have left.
__device__ inline Span narrow(Share &mine, Rank known, Rank mask, Shared &shared) {
    Span span = {~0ull, 0};
    int left = 0;
    each<false>(mine, [&](int id, Rank rank, double) {
        if ((rank & mask) != known) return;
        span.all &= rank;
        span.any |= rank;
        if (mask) mine.list[threadIdx.x + THREADS * left++] = id;
    });
    if (mask) {
        mine.count = left;
        mine.is_listed = true;
    }
    for (int step = 16; step > 0; step /= 2) {
        span.all &= __shfl_xor_sync(~0u, span.all, step);
        span.any |= __shfl_xor_sync(~0u, span.any, step);
    }
    if (threadIdx.x % 32 == 0) shared.spans[threadIdx.x / 32] = span;
    __syncthreads();
    for (int warp = 0; warp < THREADS / 32; ++warp) {
        span.all &= shared.spans[warp].all;
        span.any |= shared.spans[warp].any;
    }
    __syncthreads();
    return span;
}

// Set totals to the sums of weights by the digit at a place.
__device__ inline void add_up(const Share &mine, int place, double *totals, Shared &shared) {
    const int me = threadIdx.x;
    for (int value = 0; value < VALUES; ++value) shared.sums[value][me] = 0;
    each<true>(mine, [&](int, Rank rank, double weight) {
        shared.sums[rank >> place & (VALUES - 1)][me] += weight;
    });
    __syncthreads();
    for (int value = me / 32; value < VALUES; value += THREADS / 32) {
        double sum = 0;
        for (int thread = me % 32; thread < THREADS; thread += 32) sum += shared.sums[value][thread];
        sum = warp_sum(sum);
        if (me % 32 == 0) totals[value] = sum;
    }
    __syncthreads();
}

struct Found {
    Rank rank;
    double before, weight;  // the sum of all weights before it, and its own
};

// Find the first token where the sum of weights, its own included, reaches a target or (`beyond`)
// passes it; the last that weighs something if, by rounding, none does. All threads get it.
__device__ inline Found first_at(Share mine, Span span, double target, bool beyond,
                                 Shared &shared) {
    const double *totals = shared.tops;
    double before = 0, weight = 0;
    while (true) {
        const int place = digit_of(span);
        double sum = before;
        Rank digit = 0;
        for (int value = VALUES - 1; value >= 0; --value) {
            if (totals[value] <= 0) continue;
            digit = value;
            before = sum;
            weight = totals[value];
            sum += weight;
            if (beyond ? sum > target : sum >= target) break;
        }
        const Rank mask = ~0ull << place;
        span = narrow(mine, (span.all & mask << BITS) | digit << place, mask, shared);
        if (!(span.any & ~span.all)) return {span.all, before, weight};
        add_up(mine, digit_of(span), shared.totals, shared);
        totals = shared.totals;
    }
}

// Set token to the one that a number in [0, 1) stands for, in the nucleus of probability top_p; list
// has room for all ids.
extern "C" __global__ void __launch_bounds__(THREADS)
    draw(const float *logits, const double *weights, int count, double top_p, double number,
         int *list, int *token) {
    __shared__ Shared shared;
    if (*token < 0) return;
    Share mine = share_of(logits, weights, list, count);
    const Span span = narrow(mine, 0, 0, shared);
    add_up(mine, digit_of(span), shared.tops, shared);
    double mass = 0;
    for (int value = 0; value < VALUES; ++value) mass += shared.tops[value];
    Rank last = 0;
    if (top_p < 1) {
        const Found end = first_at(mine, span, top_p * mass, false, shared);
        last = end.rank;
        mass = end.before + end.weight;
    }
    const Rank found = first_at(mine, span, number * mass, true, shared).rank;
    if (threadIdx.x == 0) *token = id_of(max(found, last));  // not behind the nucleus, by rounding
}
