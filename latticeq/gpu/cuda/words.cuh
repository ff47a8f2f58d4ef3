// A block's 32-bit word as it lies in device memory, decoded to eight float16.
//
// The word is not the stored one: `relay.cu` writes it when a matrix is uploaded. Coordinates 0 and
// 1 have the nibbles from bits 2 and 18 on, 2 and 3 from 6 and 22, 4 and 5 from 10 and 26, 6 and 7
// from 14 and 30 (around the end of the word), so that the word as it is and the word turned by eight
// bits show each pair of neighbours inside the mantissas of two float16. What comes out is a point in
// sixteenths of the cell's unit of length, times a scale:
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

#define LOWEST 0x44444444u  // bit 0 of all nibbles

// Coordinates 4 to 7 have the parities of coordinates 0 to 3, or all the contrary ones if those add
// up to an odd number: a word of the Hamming code. The bits of their parities hold the scale index,
// coordinates 4, 5 and 6, and whether the block is flipped, coordinate 7.
INLINE u32 index_of_d8(u32 word) {
    u32 spare = (word >> 10) & 0x00110011u;
    return (spare | (spare >> 15) | (spare >> 2)) & 7u;
}

INLINE bool flipped_of_d8(u32 word) { return (word >> 30) & 1u; }

INLINE u32 digits_of_d8(u32 word) {
    u32 parities = word & 0x00440044u;
    u32 rest = parities ^ ((__popc(parities) & 1u) * 0x00440044u);
    return (word & 0xBBFFBBFFu) | (rest << 8);
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
    u32 below = multiply_add_halves(flipped ? most : 0x7C007C00u, twice_half(-1), twice_half(1));
#pragma unroll
    for (int p = 0; p < 4; p++) {
        u32 is_most = add_halves_clamped(magnitude_halves(rank[p]), below);  // 1 or 0
        u32 side = (rank[p] & 0x80008000u) ^ is_most;
        v[p] = multiply_add_halves(side, far, r[p]);
    }
#endif
}
#endif

// Decode a word: v are pairs of coordinates times `scale`, a float16 in both halves.
INLINE void decode_word(u32 word, bool flipped, u32 scale, u32 (&v)[4]) {
    // 4096 with units of 4, and 256 with units of a quarter: sixteens from bit 2 and from bit 6 on.
    u32 low = 0x6C006C00u, high = 0x5C005C00u;
#if CELL == D8
    word = digits_of_d8(word);
#else
    u32 parity = __popc(word & LOWEST) & 1u;
    low += parity * 0x00020002u;
    high += parity * 0x00200020u;
#endif
#if CELL == VORONOI || CELL == FIXED
    word ^= ((Q & 1) ? parity ^ (u32)flipped : parity) << 2;
#endif
    u32 turned = __funnelshift_r(word, word, 8);
    const u32 low_mask = 0x003C003Cu, high_mask = 0x03C003C0u;
    u32 first = word & low_mask | low, second = word & high_mask | high;
    u32 third = turned & low_mask | low, fourth = turned & high_mask | high;
#if CELL == CUBIC
    first ^= 2u;
    constexpr int offset = 4 * (2 * Q - 1);
#else
    constexpr int offset = 128;
#endif
    constexpr u32 low_offset = quadruple_half(-(1024 + offset / 4));
    constexpr u32 high_offset = twice_half(-(256 + offset));
    u32 r[4] = {add_halves(first, low_offset), add_halves(second, high_offset),
                add_halves(third, low_offset), add_halves(fourth, high_offset)};
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
