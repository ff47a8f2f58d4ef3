// A block's 32-bit word as it lies in device memory, decoded to eight float16.
//
// The word is not the stored one: `relay.cu` writes it when a matrix is uploaded. Nibble p is
// coordinate 2 p for p < 4, and 2 (p - 4) + 1 above, so that (w >> 4 i) & 0x000F000F is a pair of
// neighbours. What comes out is a point in sixteenths of the cell's unit of length, times a scale:
//
//   CUBIC     16 n + 8 b_i - 4 (2 Q - 1), with n the digits and b_i the parity of their sum, but
//             its contrary for coordinate 0;
//   VORONOI,  16 m + 8 b, and 16 Q off one coordinate, against its sign, if the block is `flipped`:
//   FIXED     that of the largest magnitude for VORONOI, coordinate 0 for FIXED (NestQuantM). The
//             nibbles are m + 8; b is their parity (bit 0 of coordinate 0 is changed to make it so);
//   D8        as VORONOI with b = 0; the scale index, and `flipped`, are in the word.
//
// Of equal magnitudes a positive coordinate counts as larger than a negative one, an earlier
// positive one than a later, a later negative one than an earlier: the magnitudes of
// 16 m + 8 b + 7 - i are in that order.

#define CUBIC 0
#define VORONOI 1
#define FIXED 2
#define D8 3

#define MAGIC 0x64006400u  // 1024 in both halves: bits 4 to 7 below it count sixteens

// Coordinates 4 to 7, nibbles 2, 6, 3 and 7, have the parities of coordinates 0 to 3, nibbles 0, 4, 1
// and 5, or all the contrary ones if those add up to an odd number: a word of the Hamming code. Their
// bits hold the scale index, nibbles 2, 3 and 6, and whether the block is flipped, nibble 7.
INLINE u32 index_of_d8(u32 word) {
    u32 spare = (word >> 8) & 0x00110011u;
    return (spare | (spare >> 3) | (spare >> 14)) & 7u;
}

INLINE bool flipped_of_d8(u32 word) { return (word >> 28) & 1u; }

INLINE u32 digits_of_d8(u32 word) {
    u32 parities = word & 0x00110011u;
    u32 rest = parities ^ ((__popc(parities) & 1u) * 0x00110011u);
    return (word & 0xEEFFEEFFu) | (rest << 8);
}

#if CELL != CUBIC
// Move the coordinate that is to move by 16 Q, against its sign. `r` are the points before.
INLINE void flip(const u32 (&r)[4], bool flipped, u32 (&v)[4]) {
    constexpr u32 far = twice_half(-16 * Q);
#if CELL == FIXED
    u32 moved = add_halves(r[0], (r[0] & 0x8000u) ^ (far & 0xFFFFu));
    v[0] = flipped ? moved : r[0];
    v[1] = r[1]; v[2] = r[2]; v[3] = r[3];
#else
    constexpr u32 places[4] = {two_halves(7, 6), two_halves(5, 4), two_halves(3, 2), two_halves(1, 0)};
    u32 rank[4];
#pragma unroll
    for (int p = 0; p < 4; p++) rank[p] = add_halves(r[p], places[p]);
    u32 most = larger_halves(
        larger_halves(magnitude_halves(rank[0]), magnitude_halves(rank[1])),
        larger_halves(magnitude_halves(rank[2]), magnitude_halves(rank[3])));
    most = larger_halves(most, __byte_perm(most, most, 0x1032));
    // 1 - most, or minus infinity where nothing is flipped: then no rank reaches it.
    u32 below = flipped ? add_halves(twice_half(1), most ^ 0x80008000u) : 0xFC00FC00u;
#pragma unroll
    for (int p = 0; p < 4; p++) {
        u32 is_most = add_halves_clamped(magnitude_halves(rank[p]), below);
        v[p] = multiply_add_halves(is_most, (rank[p] & 0x80008000u) ^ far, r[p]);
    }
#endif
}
#endif

// Decode a word: v are pairs of coordinates times `scale`, a float16 in both halves.
INLINE void decode_word(u32 word, bool flipped, u32 scale, u32 (&v)[4]) {
#if CELL == D8
    u32 magic = MAGIC;
    word = digits_of_d8(word);
#else
    u32 parity = __popc(word & 0x11111111u) & 1u;
    u32 magic = MAGIC + parity * 0x00080008u;
#endif
#if CELL == VORONOI || CELL == FIXED
    word ^= (Q & 1) ? parity ^ (u32)flipped : parity;
#endif
    const u32 mask = 0x00F000F0u;
    u32 pairs[4] = {(word << 4) & mask | magic, word & mask | magic, (word >> 4) & mask | magic,
                    (word >> 8) & mask | magic};
#if CELL == CUBIC
    pairs[0] ^= 8u;
    constexpr u32 offset = twice_half(-(1024 + 4 * (2 * Q - 1)));
#else
    constexpr u32 offset = twice_half(-(1024 + 128));
#endif
    u32 r[4];
#pragma unroll
    for (int p = 0; p < 4; p++) r[p] = add_halves(pairs[p], offset);
#if CELL == CUBIC
#pragma unroll
    for (int p = 0; p < 4; p++) v[p] = multiply_halves(r[p], scale);
#else
    u32 point[4];
    flip(r, flipped, point);
#pragma unroll
    for (int p = 0; p < 4; p++) v[p] = multiply_halves(point[p], scale);
#endif
}
