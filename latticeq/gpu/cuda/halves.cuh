// Pairs of float16 in 32 bits, as instructions: no header of CUDA is needed to compile these files.

typedef unsigned int u32;
typedef unsigned long long u64;

#define INLINE __device__ __forceinline__

INLINE u32 add_halves(u32 a, u32 b) {
    u32 sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}

// 0 where a + b is below it, 1 where it is above that.
INLINE u32 add_halves_clamped(u32 a, u32 b) {
    u32 sum;
    asm("add.rn.sat.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}

INLINE u32 multiply_halves(u32 a, u32 b) {
    u32 product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

INLINE u32 multiply_add_halves(u32 a, u32 b, u32 c) {
    u32 sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

INLINE u32 larger_halves(u32 a, u32 b) {
    u32 most;
    asm("max.f16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
    return most;
}

INLINE u32 magnitude_halves(u32 a) {
    u32 size;
    asm("abs.f16x2 %0, %1;" : "=r"(size) : "r"(a));
    return size;
}

// Two floats rounded to nearest, the first in the low half.
INLINE u32 to_halves(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

INLINE float half_to_float(u32 bits) {
    float value;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low; }"
        : "=f"(value) : "r"(bits));
    return value;
}

// The bits of an integer from -2048 to 2048 as float16 in both halves: a constant, folded.
__device__ constexpr u32 twice_half(int value) {
    u32 size = value < 0 ? -value : value, exponent = 25, bits = size;
    if (size == 0) return 0;
    while (bits < 1024) { bits <<= 1; exponent--; }
    while (bits >= 2048) { bits >>= 1; exponent++; }
    u32 half = (value < 0 ? 0x8000u : 0u) | (exponent << 10) | (bits & 1023);
    return half | (half << 16);
}

// Two different such integers, the first in the low half.
__device__ constexpr u32 two_halves(int low, int high) {
    return (twice_half(low) & 0xFFFFu) | (twice_half(high) & 0xFFFF0000u);
}

// Four times such an integer.
__device__ constexpr u32 quadruple_half(int value) { return twice_half(value) + 0x08000800u; }

// What a grid that was started before the one ahead of it has ended waits for, and what lets the next
// one be started: without effect unless it is launched so.
INLINE void wait_for_grids() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

INLINE void start_next_grid() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Where column i of a token goes in the order that wide.cu takes, which has (blocks of 128 tokens,
// parts of 64 columns, tokens of 128 bytes). Of each 32 columns, four blocks of eight, neighbours stay
// together: pair p of block t is the pair of number 4 p + t. Eight halves move as one, to the place
// that the token's number modulo 8 turns them to.
INLINE size_t wide_place(size_t token, int i, int columns) {
    int place = (i & 32) | (i >> 1 & 3) << 3 | (i >> 3 & 3) << 1 | (i & 1);
    int eight = (place >> 3) ^ (int)(token & 7);
    return (token / 128 * (columns / 64) + i / 64) * 8192 + token % 128 * 64 + eight * 8 + (place & 7);
}
