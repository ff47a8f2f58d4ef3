// Keys and values as rows of bytes: one head of one token, in the bytes of
// latticeq.quantizers.rows.NestRowCodec (a word of eight digits a block, scale indices, the root
// mean square in float16), padded to whole words.
//
// Compiled with WIDTH, CELL (both codes', of lattice.cuh; with digits of four bits) and, for KEY and
// VALUE each, _Q, _SCALES, _FIRST (whether the first scale that fits is taken) and _ROW (bytes of a
// row).

#include "reduce.cuh"
#include "scales.cuh"

constexpr int BLOCKS = WIDTH / 8;
constexpr int TEAM = 128;  // threads that code one row; two teams code a key and a value
constexpr int MOST_SCALES = 16;

__host__ __device__ constexpr int bits_for(int count) {
    int bits = 0;
    while (1 << bits < count) ++bits;
    return bits;
}

struct Code {
    int q, scales, first_fit, row, index_bits;
};

__host__ __device__ constexpr Code code_of(int kind) {
    return kind ? Code{VALUE_Q, VALUE_SCALES, VALUE_FIRST, VALUE_ROW, bits_for(VALUE_SCALES)}
                : Code{KEY_Q, KEY_SCALES, KEY_FIRST, KEY_ROW, bits_for(KEY_SCALES)};
}

constexpr bool ONE_CODE =
    KEY_Q == VALUE_Q && KEY_SCALES == VALUE_SCALES && KEY_FIRST == VALUE_FIRST;

// Threads of a team that search: one a scale of a block, whole warps.
__host__ __device__ constexpr int searchers_of(int kind) {
    const int tasks = (BLOCKS << code_of(kind).index_bits) + 31;
    return tasks / 32 * 32 < TEAM ? tasks / 32 * 32 : TEAM;
}

// A key and a value that are coded: moved and turned to their bases, then words, scale indices and
// norms in float16.
struct RowScratch {
    alignas(16) float moved[2][WIDTH];
    float turned[2][WIDTH];
    unsigned words[2][BLOCKS];
    int which[2][BLOCKS];
    unsigned norms[2];
};

// Set points to what a word stands for, in the unit of the cell: digit i lies in bits 4i to 4i + 3.
__device__ inline void decode_word(unsigned word, int q, int (&points)[8]) {
    int digits[8];
    EACH digits[i] = word >> (4 * i) & 15;
    points_of(digits, q, points);
}

// Read the word and the scale of one block of a row; `units` is each scale times that unit.
__device__ inline void read_block(const unsigned char *row, int b, int index_bits,
                                  const float *units, unsigned *word, float *scale) {
    const unsigned char *index = row + 4 * BLOCKS, *norm = index + (BLOCKS * index_bits + 7) / 8;
    const int bit = index_bits * b;
    int which = 0;
    if (index_bits > 0) which = (index[bit / 8] | index[bit / 8 + 1] << 8) >> bit % 8;
    *word = ((const unsigned *)row)[b];
    *scale = __fmul_rn(units[which & ((1 << index_bits) - 1)],
                       from_half((unsigned short)(norm[0] | norm[1] << 8)));
}

// Set out = R ((x + add) * times) as to_basis_row of latticeq/model/kv/basis.py does, for one
// number: moved is (x + add) * times, turn (WIDTH, WIDTH). The order of additions is that of the CPU.
__device__ inline float turned_number(const float *moved, const float *turn, int j) {
    float sum = 0.0f;
#pragma unroll 16
    for (int i = 0; i < WIDTH; ++i) sum = __fadd_rn(sum, __fmul_rn(moved[i], turn[i * WIDTH + j]));
    return sum;
}

// The same for what is not coded: four sums side by side.
__device__ inline float turned_quickly(const float *moved, const float *turn, int j) {
    float sums[4] = {};
#pragma unroll 32
    for (int i = 0; i < WIDTH; ++i) sums[i % 4] += moved[i] * turn[i * WIDTH + j];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

__device__ inline float moved_number(float x, const float *basis, int g, int kv_heads, int i) {
    const float add = basis[g * WIDTH + i], times = basis[(kv_heads + g) * WIDTH + i];
    return __fmul_rn(__fadd_rn(x, add), times);
}

// The column of a turn that a thread multiplies by, asked for before it is needed; of wide heads the
// first part.
constexpr int HELD = WIDTH < 64 ? WIDTH : 64;

__device__ inline void hold_column(float (&column)[HELD], const float *turn, int j) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) column[i] = turn[i * WIDTH + j];
}

__device__ inline float turned_by(const float *moved, const float (&column)[HELD],
                                  const float *turn, int j) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < HELD; ++i) sum = __fadd_rn(sum, __fmul_rn(moved[i], column[i]));
#pragma unroll 16
    for (int i = HELD; i < WIDTH; ++i)
        sum = __fadd_rn(sum, __fmul_rn(moved[i], turn[i * WIDTH + j]));
    return sum;
}

// The scale that a thread tries: one thread a scale of a block, those of a block neighbours. scales is
// (2, 2, MOST_SCALES): of keys and of values, betas and 1 / betas.
struct Scale {
    float beta, inverse;
};

__device__ inline Scale own_scale(const float *scales) {
    const int kind = threadIdx.x / TEAM, p = threadIdx.x & ((1 << code_of(kind).index_bits) - 1);
    const float *betas = scales + 2 * kind * MOST_SCALES;
    return {betas[p], betas[MOST_SCALES + p]};
}

// Code the row of a kind that lies in scratch.turned: whole warps call this, the first searchers_of a
// team. The norm is a sum in float64, added in another order than the CPU's: it differs only where the sums, about 1e-14
// apart, round to different float16.
template <int CODE>
__device__ inline void search_row(RowScratch &scratch, const Scale &scale, int kind, int rank) {
    constexpr Code code = code_of(CODE);
    const float *turned = scratch.turned[kind];
    double energy = 0.0;
    for (int i = rank % 32; i < WIDTH; i += 32)
        energy = fma((double)turned[i], (double)turned[i], energy);
    const float root = (float)sqrt(warp_sum(energy) / WIDTH);
    const unsigned short bits = root < 65520.0f ? to_half(root) : 0x7E00;
    const float norm = from_half(bits), inverse = norm > 0.0f ? __fdiv_rn(1.0f, norm) : 0.0f;
    if (rank == 0) scratch.norms[kind] = bits;

    constexpr int lanes = 1 << code.index_bits;
    constexpr int tasks = (BLOCKS * lanes + 31) / 32 * 32;
    for (int task = rank; task < tasks; task += searchers_of(CODE)) {
        const int b = min(task / lanes, BLOCKS - 1), p = task % lanes;
        float x[8], point[8], cost = infinity();
        EACH x[i] = norm > 0.0f ? times(turned[8 * b + i], inverse) : 0.0f;
        if (p < code.scales)
            cost = cost_at_scale(x, scale.beta, scale.inverse, code.q, p + 1 == code.scales,
                                 code.first_fit, point);
        const int best = cheapest(cost, p, lanes);
        if (p != best || task / lanes >= BLOCKS) continue;
        int digits[8];
        unsigned word = 0;
        if (cost < infinity()) digits_of(point, code.q, digits);
        if (cost < infinity()) EACH word |= (unsigned)digits[i] << (4 * i);
        scratch.words[kind][b] = word;
        scratch.which[kind][b] = best;
    }
}

// Threads of a block that have nothing to search.
[[maybe_unused]] constexpr int IDLE = 2 * TEAM - searchers_of(0) - searchers_of(1);

// Code both rows; those threads do `meanwhile`, given their number.
template <typename Meanwhile>
__device__ inline void search_rows(RowScratch &scratch, const Scale &scale,
                                   const Meanwhile &meanwhile) {
    const int kind = threadIdx.x / TEAM, rank = threadIdx.x % TEAM;
    if (rank < searchers_of(kind)) {
        if (ONE_CODE || !kind)
            search_row<0>(scratch, scale, kind, rank);
        else
            search_row<1>(scratch, scale, 1, rank);
    } else {
        meanwhile(rank - searchers_of(kind) + kind * (TEAM - searchers_of(0)));
    }
    __syncthreads();
}

// Write the bytes of both rows, by all threads of a block.
__device__ inline void write_rows(const RowScratch &scratch, unsigned char *key,
                                  unsigned char *value) {
    const int kind = threadIdx.x / TEAM, rank = threadIdx.x % TEAM;
    const Code code = code_of(kind);
    unsigned char *row = kind ? value : key;
    for (int b = rank; b < BLOCKS; b += TEAM) ((unsigned *)row)[b] = scratch.words[kind][b];
    const int index_bytes = (BLOCKS * code.index_bits + 7) / 8;
    for (int at = rank; at < code.row - 4 * BLOCKS; at += TEAM) {
        int byte = 0;
        for (int bit = 8 * at; bit < 8 * at + 8 && at < index_bytes; ++bit)
            if (bit < BLOCKS * code.index_bits)
                byte |= (scratch.which[kind][bit / code.index_bits] >> bit % code.index_bits & 1)
                        << bit % 8;
        if (at == index_bytes) byte = scratch.norms[kind] & 255;
        if (at == index_bytes + 1) byte = scratch.norms[kind] >> 8;
        row[4 * BLOCKS + at] = (unsigned char)byte;
    }
}
