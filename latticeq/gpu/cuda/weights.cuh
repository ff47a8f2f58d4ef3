// How weights lie in device memory, and what a warp reads of them: sixteen rows, 128 columns a step.
//
// A thread of row g = lane / 4 has whole blocks of eight columns, of number 4 quad + lane % 4 in a
// step, of the rows g and g + 8.
//
// Macros: FORMAT 0 words of CELL and Q (words.cuh), 1 int8 raised by 128, 2 float16;
// PAIRS and PLANES, how the scale index is stored; FLIPS, whether there is a plane of flips.

#define COLUMNS 128

#if FORMAT == 0
#include "words.cuh"
#define LOADS 2
#elif FORMAT == 1
#define LOADS 4
#else
#define LOADS 8
#endif

// Where a lane reads its part of a tile: it goes from step to step.
struct Stream {
    const uint4* words;            // [tile][step][LOADS][32]
    const unsigned short* pairs;   // [PAIRS][tile][step][32]: two bits of the scale index a word
    const unsigned char* plane;    // [tile][step][32]: one more bit
    const unsigned char* flips;    // [tile][step][32]
};

struct Step {
    uint4 words[LOADS];
    u32 pairs[2];
    u32 plane;
    u32 flips;
};

INLINE uint4 load_once(const uint4* at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}

// Load a step, of the arrays with `size` steps in all, and move `parts` steps on.
INLINE void load_step(Stream& from, size_t size, int parts, Step& step) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) step.words[i] = load_once(from.words + i * 32);
    from.words += parts * (LOADS * 32);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) step.pairs[i] = __ldg(from.pairs + i * size * 32);
    if (PAIRS) from.pairs += parts * 32;
    if (PLANES) { step.plane = __ldg(from.plane); from.plane += parts * 32; }
    if (FLIPS) { step.flips = __ldg(from.flips); from.flips += parts * 32; }
}

// The word number 0 to 7 of a thread in a step: rows g and g + 8 by turns, quad = number / 2.
INLINE u32 word_of(const Step& step, int number) {
    const uint4& four = step.words[number / 4];
    return number % 4 == 0 ? four.x : number % 4 == 1 ? four.y : number % 4 == 2 ? four.z : four.w;
}

#if FORMAT == 0
// The scale of a word, from a table of sixteen at a shared address that is a multiple of 64.
INLINE u32 scale_of(const Step& step, int number, u32 table) {
    u32 place = 0;  // four times the index
#if CELL == D8
    place = index_of_d8(word_of(step, number)) << 2;
#else
    if (PAIRS > 0) {
        place = (number ? step.pairs[0] >> (2 * number - 2) : step.pairs[0] << 2) & 12u;
    }
    if (PAIRS > 1) {
        place |= (number > 1 ? step.pairs[1] >> (2 * number - 4) : step.pairs[1] << (4 - 2 * number))
                 & 48u;
    }
    if (PLANES) place |= ((step.plane >> number) & 1u) << (2 + 2 * PAIRS);
#endif
    u32 scale;
    asm("ld.shared.u32 %0, [%1];" : "=r"(scale) : "r"(place | table));
    return scale;
}

INLINE bool flipped_of(const Step& step, int number) {
#if CELL == D8
    return flipped_of_d8(word_of(step, number));
#else
    return FLIPS && ((step.flips >> number) & 1u);
#endif
}
#endif

// Four pairs of neighbouring columns of row g (which = 0) or g + 8 (which = 1) of a quad.
INLINE void weights_of(const Step& step, int quad, int which, u32 table, u32 (&v)[4]) {
#if FORMAT == 0
    int number = 2 * quad + which;
    decode_word(word_of(step, number), flipped_of(step, number), scale_of(step, number, table), v);
#elif FORMAT == 1
    const uint4& four = step.words[quad];
    const u32 low = which ? four.y : four.x, high = which ? four.w : four.z;
    constexpr u32 offset = twice_half(-(1024 + 128));
    v[0] = add_halves(__byte_perm(low, 0x64646464u, 0x4140), offset);
    v[1] = add_halves(__byte_perm(low, 0x64646464u, 0x4342), offset);
    v[2] = add_halves(__byte_perm(high, 0x64646464u, 0x4140), offset);
    v[3] = add_halves(__byte_perm(high, 0x64646464u, 0x4342), offset);
#else
    const uint4& four = step.words[2 * quad + which];
    v[0] = four.x; v[1] = four.y; v[2] = four.z; v[3] = four.w;
#endif
}
