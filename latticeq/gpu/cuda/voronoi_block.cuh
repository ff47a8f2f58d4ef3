// One block of eight numbers in the nested Voronoi code E8/qE8, by one thread: what
// latticeq/codes/voronoi.py, union.py and latticeq/lattices/{dn,e8}.py do for sixteen blocks at a
// time, with the same roundings in the same order, so that digits agree bit for bit. Every product
// and sum of floats is written as an intrinsic: none of them may be fused.

#include "floats.cuh"

constexpr int FEW = 4;  // the largest q whose codes are searched to the end at every scale
constexpr int MOVES = 4;
constexpr int PATIENCE = 64;

// Sums over coordinates run from the first to the last.
__device__ inline float dot8(const float *a, const float *b) {
    float sum = __fmul_rn(a[0], b[0]);
#pragma unroll
    for (int i = 1; i < 8; ++i) sum = __fadd_rn(sum, __fmul_rn(a[i], b[i]));
    return sum;
}

// Set point to the closest point of D8 + shift: round, and where the sum is odd round the
// coordinate with the largest error the other way.
__device__ inline void closest_d8(const float *x, float shift, float *point) {
    float most = -1.0f, direction = 0.0f;
    int worst = 0, parity = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float moved = __fsub_rn(x[i], shift);
        point[i] = rintf(moved);
        const float error = __fsub_rn(moved, point[i]);
        parity ^= (int)point[i];
        if (fabsf(error) > most) {
            most = fabsf(error);
            worst = i;
            direction = copysignf(1.0f, error);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if ((parity & 1) && i == worst) point[i] = __fadd_rn(point[i], direction);
        point[i] = __fadd_rn(point[i], shift);
    }
}

// Set point to the closest point of E8; between the halves the integer point wins a tie.
__device__ inline void closest_e8(const float *x, float *point) {
    float half[8], to_integer[8], to_half[8];
    closest_d8(x, 0.0f, point);
    closest_d8(x, 0.5f, half);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        to_integer[i] = __fsub_rn(x[i], point[i]);
        to_half[i] = __fsub_rn(x[i], half[i]);
    }
    if (dot8(to_half, to_half) < dot8(to_integer, to_integer)) {
#pragma unroll
        for (int i = 0; i < 8; ++i) point[i] = half[i];
    }
}

// Replace a lattice point in doubled coordinates by the representative of its coset of qE8; the
// docstring of fold_lanes in latticeq/codes/voronoi.py says how, and how ties are decided.
__device__ inline void fold(int *v, int q) {
    const float inverse = (float)(1.0 / (2 * q));
    int odd_whole = 0, odd_half = 0, sum = 0, top = -1, bottom = 1 << 30, largest = 0, least = 64;
    int rank[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int z = (int)rintf(__fmul_rn(__fadd_rn((float)v[i], 0.5f), inverse));
        v[i] -= z * 2 * q;
        const int a = abs(v[i]);
        odd_whole ^= z & 1;
        odd_half ^= v[i] < 0;
        sum += a;
        largest = max(largest, a);
        least = min(least, a);
        rank[i] = (a << 4) + (v[i] < 0 ? i : 15 - i);
        top = max(top, rank[i]);
        bottom = min(bottom, rank[i]);
    }
    odd_half ^= odd_whole;
    const int difference = 4 * q - sum + 2 * odd_half * least - 2 * odd_whole * (q - largest);
    const int pull = (odd_whole && rank[0] == top) || (odd_half && rank[0] == bottom);
    const bool take_half = 2 * difference + (v[0] < 0 ? -1 : 1) * (2 * pull - 1) < 0;
    const int target = take_half ? (odd_half ? bottom : -1) : (odd_whole ? top : -1);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int sign = v[i] < 0 ? -1 : 1, flipped = rank[i] == target;
        v[i] += take_half ? (2 * flipped - 1) * sign * q : -2 * flipped * sign * q;
    }
}

// Set points to the doubled coordinates that a word of digits stands for: digit i lies in bits 4i
// to 4i + 3.
__device__ inline void decode_word(unsigned word, int q, int *points) {
    int c[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = word >> (4 * i) & 15;
    points[0] = 2 * (2 * c[0] - c[1]) + c[7];
#pragma unroll
    for (int i = 1; i < 6; ++i) points[i] = 2 * (c[i] - c[i + 1]) + c[7];
    points[6] = 2 * c[6] + c[7];
    points[7] = c[7];
    fold(points, q);
}

__device__ inline unsigned modulo(int n, int q) {
    const float lifted = __fsub_rn((float)n, (float)((q - 1) / 2.0));
    return n - (int)rintf(__fmul_rn(lifted, (float)(1.0 / q))) * q;
}

// Return the word of a lattice point, undoing decode_word.
__device__ inline unsigned encode_word(const float *point, int q) {
    int v[8], c[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = (int)__fadd_rn(point[i], point[i]);
    c[7] = v[7];
    c[6] = (v[6] - v[7]) >> 1;
#pragma unroll
    for (int i = 5; i > 0; --i) c[i] = ((v[i] - v[7]) >> 1) + c[i + 1];
    c[0] = (((v[0] - v[7]) >> 1) + c[1]) >> 1;
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) word |= modulo(c[i], q) << (4 * i);
    return word;
}

// Set point to a codeword near y, which is changed, and return whether it is overloaded still
// after so many moves; moves < 0 is as many as it takes.
__device__ inline bool nearest_codeword(float *y, int q, int moves, float *point) {
    for (int made = 0;; ++made) {
        int v[8];
        float away[8];
        closest_e8(y, point);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = (int)__fadd_rn(point[i], point[i]);
        fold(v, q);
        bool outside = false;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int twice = (int)__fadd_rn(point[i], point[i]);
            away[i] = __fmul_rn((float)(twice - v[i]), (float)(0.5 / q));
            outside |= twice != v[i];
        }
        if (!outside || made == moves) return outside;
        const float norm = dot8(away, away);
        const float beyond = __fsub_rn(__fdiv_rn(dot8(y, away), fmaxf(norm, 1.0f)), 0.5f * q);
        const float pull = __fmul_rn(beyond, 0.5f), step = pull > 0.125f ? pull : 0.125f;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            y[i] = __fsub_rn(y[i], __fmul_rn(step, away[i]));
            if (made >= PATIENCE) y[i] = __fmul_rn(y[i], 0.5f);
        }
    }
}

// Code a block at one of several scales. Return what it costs, infinity if nothing was found: the
// scale with the least cost, the first of equals, is the one to take, and word its digits.
__device__ inline float code_at_scale(const float *x, float beta, float inverse, int q, bool last,
                                      bool first_fit, unsigned *word) {
    float y[8], point[8], error[8];
    const bool endless = last || (q <= FEW && !first_fit);
#pragma unroll
    for (int i = 0; i < 8; ++i) y[i] = __fmul_rn(x[i], inverse);
    const bool outside = nearest_codeword(y, q, endless ? -1 : first_fit ? 0 : MOVES, point);
    *word = encode_word(point, q);
    if (outside) return infinity();
    if (first_fit) return last ? 0.5f : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) error[i] = __fsub_rn(x[i], __fmul_rn(point[i], beta));
    return dot8(error, error);
}
