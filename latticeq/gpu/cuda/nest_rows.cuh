// Keys and values as rows of bytes: one head of one token, in the bytes of
// latticeq.quantizers.rows.NestRowCodec (a word of eight digits a block, scale indices, the root
// mean square in float16), padded to whole words.
//
// Compiled with WIDTH and, for KEY and VALUE each, _Q, _SCALES, _FIRST (whether the first scale that
// fits is taken) and _ROW (bytes of a row).

#define CELL VORONOI
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

__device__ inline Code code_of(int kind) {
    return kind ? Code{VALUE_Q, VALUE_SCALES, VALUE_FIRST, VALUE_ROW, bits_for(VALUE_SCALES)}
                : Code{KEY_Q, KEY_SCALES, KEY_FIRST, KEY_ROW, bits_for(KEY_SCALES)};
}

struct RowScratch {
    float moved[2][WIDTH], turned[2][WIDTH];
    int which[2][BLOCKS];
};

// Set points to the doubled coordinates that a word stands for: digit i lies in bits 4i to 4i + 3.
__device__ inline void decode_word(unsigned word, int q, int (&points)[8]) {
    int digits[8];
    EACH digits[i] = word >> (4 * i) & 15;
    points_of(digits, q, points);
}

// Read the word and the scale of one block of a row; `units` is half of each scale.
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
// number: moved is (x + add) * times, turn (WIDTH, WIDTH).
__device__ inline float turned_number(const float *moved, const float *turn, int j) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < WIDTH; ++i) sum = __fadd_rn(sum, __fmul_rn(moved[i], turn[i * WIDTH + j]));
    return sum;
}

__device__ inline float moved_number(float x, const float *basis, int g, int kv_heads, int i) {
    const float add = basis[g * WIDTH + i], times = basis[(kv_heads + g) * WIDTH + i];
    return __fmul_rn(__fadd_rn(x, add), times);
}

// Code a key and a value that lie in scratch.moved; all 2 * TEAM threads of a block call this.
// scales is (2, 2, MOST_SCALES): of keys and of values, betas and 1 / betas.
__device__ inline void code_rows(RowScratch &scratch, const float *key_turn,
                                 const float *value_turn, const float *scales, unsigned char *key,
                                 unsigned char *value) {
    const int kind = threadIdx.x / TEAM, rank = threadIdx.x % TEAM;
    const Code code = code_of(kind);
    const float *turn = kind ? value_turn : key_turn;
    unsigned char *row = kind ? value : key;
    __syncthreads();
    for (int j = rank; j < WIDTH; j += TEAM)
        scratch.turned[kind][j] = turned_number(scratch.moved[kind], turn, j);
    __syncthreads();
    const float *turned = scratch.turned[kind];
    double energy = 0.0;
#pragma unroll 8
    for (int i = 0; i < WIDTH; ++i)  // the product is exact in float64, so it may be fused
        energy = fma((double)turned[i], (double)turned[i], energy);
    const float root = (float)sqrt(energy / WIDTH);
    const unsigned short bits = root < 65520.0f ? to_half(root) : 0x7E00;
    const float norm = from_half(bits), inverse = norm > 0.0f ? __fdiv_rn(1.0f, norm) : 0.0f;

    const float *betas = scales + 2 * kind * MOST_SCALES, *inverses = betas + MOST_SCALES;
    const int lanes = 1 << code.index_bits;  // one thread a scale, those of a block neighbours
    const int tasks = (BLOCKS * lanes + 31) / 32 * 32;
    for (int task = rank; task < tasks; task += TEAM) {
        const int b = min(task / lanes, BLOCKS - 1), p = task % lanes;
        float x[8], point[8], cost = infinity();
        EACH x[i] = norm > 0.0f ? times(turned[8 * b + i], inverse) : 0.0f;
        if (p < code.scales)
            cost = cost_at_scale(x, betas[p], inverses[p], code.q, p + 1 == code.scales,
                                 code.first_fit, point);
        const int best = cheapest(cost, p, lanes);
        if (p != best || task / lanes >= BLOCKS) continue;
        int digits[8];
        unsigned word = 0;
        if (cost < infinity()) digits_of(point, code.q, digits);
        if (cost < infinity()) EACH word |= (unsigned)digits[i] << (4 * i);
        ((unsigned *)row)[b] = word;
        scratch.which[kind][b] = best;
    }
    __syncthreads();
    const int index_bytes = (BLOCKS * code.index_bits + 7) / 8;
    for (int at = rank; at < code.row - 4 * BLOCKS; at += TEAM) {
        int byte = 0;
        for (int bit = 8 * at; bit < 8 * at + 8 && at < index_bytes; ++bit)
            if (bit < BLOCKS * code.index_bits)
                byte |= (scratch.which[kind][bit / code.index_bits] >> bit % code.index_bits & 1)
                        << bit % 8;
        if (at == index_bytes) byte = bits & 255;
        if (at == index_bytes + 1) byte = bits >> 8;
        row[4 * BLOCKS + at] = (unsigned char)byte;
    }
    __syncthreads();
}
