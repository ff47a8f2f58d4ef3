// Packed matrices as stored, laid out anew for `small.cu`: the same codewords in as many bits, and
// for VORONOI and FIXED one bit a block more, which spares their search to every product.

#include "halves.cuh"
#include "lattice.cuh"

#define CENTRE(v, period) residue(v, period, z)

// Digits of w bits, and the scale index, of one row of a group and one block.
struct Stored {
    const unsigned char* digits;  // [group][block][16][width]
    const unsigned char* index;   // [group][block][2 * index_width]
    int width, index_width, blocks;
};

INLINE void read_block(const Stored& stored, size_t at, int row, int (&digits)[8], u32& index) {
    const unsigned char* bytes = stored.digits + (at * 16 + row) * stored.width;
    u64 joined = 0;
    for (int j = 0; j < stored.width; j++) joined |= (u64)bytes[j] << (8 * j);
    EACH digits[i] = (int)(joined >> (stored.width * i)) & ((1 << stored.width) - 1);
    index = 0;
    if (stored.index_width > 0) {
        const unsigned char* row_index = stored.index + at * 2 * stored.index_width;
        int bit = row * stored.index_width;
        u32 pair = row_index[bit >> 3];
        if ((bit & 7) + stored.index_width > 8) pair |= (u32)row_index[(bit >> 3) + 1] << 8;
        index = (pair >> (bit & 7)) & ((1u << stored.index_width) - 1);
    }
}

// A nibble where coordinate i has it: see words.cuh.
INLINE u32 placed(int nibble, int i) {
    u32 word = (u32)nibble << (4 * (i / 2) + 16 * (i % 2));
    return word << 2 | word >> 30;
}

// The word of digits; `flipped` says whether one coordinate is to move.
INLINE u32 word_of(int (&digits)[8], int q, u32& index, u32& flipped) {
    u32 word = 0;
    flipped = 0;
#if CELL == CUBIC
    EACH word |= placed(digits[i], i);
#elif CELL == D8
    u32 parity = (digits[0] ^ digits[1] ^ digits[2] ^ digits[3]) & 1;
    index = (digits[4] & 1) | (digits[5] & 1) << 1 | (digits[6] & 1) << 2;
    u32 coset = digits[7] & 1;
#pragma unroll
    for (int i = 4; i < 8; i++) digits[i] = (digits[i] & ~1) | ((digits[i - 4] & 1) ^ parity);
    digits[0] += coset * q;
    int v[8];
    points_of(digits, q, v);
    EACH {
        int z, r = CENTRE(v[i], q);
        flipped |= r != v[i];
        word |= placed(r + 8, i);
    }
    word &= 0xBBFFBBFFu;
    word |= (index & 1) << 10 | (index >> 1 & 1) << 26 | (index >> 2) << 14 | flipped << 30;
#else
    int v[8];
    points_of(digits, q, v);
    u32 halves = v[0] & 1;
    EACH {
        int z, r = CENTRE(v[i], 2 * q), m = (r - (int)halves) >> 1;
        flipped |= r != v[i];
        word |= placed(m + 8, i);
    }
    word ^= (q & 1 ? halves ^ flipped : halves) << 2;
#endif
    return word;
}

extern "C" __global__ void relay(
    const unsigned char* digits_in, const unsigned char* index_in, int width, int index_width,
    int blocks, int q, int pair_count, int has_plane, int tiles, int steps,
    uint4* words, unsigned short* pairs, unsigned char* plane, unsigned char* flips
) {
    const Stored stored = {digits_in, index_in, width, index_width, blocks};
    size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (size_t)tiles * steps * 32) return;
    int lane = thread & 31;
    size_t at = thread >> 5;
    int step = at % steps, tile = at / steps;
    u32 word[8], low = 0, high = 0, extra = 0, flipped = 0;
    for (int number = 0; number < 8; number++) {
        int row = (lane >> 2) + 8 * (number & 1), block = 16 * step + 4 * (number >> 1) + (lane & 3);
        word[number] = 0;
        if (block >= stored.blocks) continue;
        int digits[8];
        u32 index, is_flipped;
        read_block(stored, (size_t)tile * stored.blocks + block, row, digits, index);
        word[number] = word_of(digits, q, index, is_flipped);
        low |= (index & 3) << (2 * number);
        high |= (index >> 2 & 3) << (2 * number);
        extra |= (index >> (2 * pair_count) & 1) << number;
        flipped |= is_flipped << number;
    }
    words[(at * 2) * 32 + lane] = make_uint4(word[0], word[1], word[2], word[3]);
    words[(at * 2 + 1) * 32 + lane] = make_uint4(word[4], word[5], word[6], word[7]);
    if (pair_count > 0) pairs[thread] = low;
    if (pair_count > 1) pairs[(size_t)tiles * steps * 32 + thread] = high;
    if (has_plane) plane[thread] = extra;
    if (flips) flips[thread] = flipped;
}
