// What CUDA text needs to run on a CPU, one thread after the other, or, with NEIGHBOURS defined, those
// of a block together: for tests of integer functions and of what is rounded operation by operation.
// Compile with -ffp-contract=off.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <cstdlib>
#include <algorithm>
using std::max;
using std::min;

typedef uint32_t u32;
typedef unsigned long long u64;
#define INLINE static inline
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static
struct uint4 { u32 x, y, z, w; };
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
struct Place { int x, y, z; };
static Place blockIdx, blockDim, threadIdx, gridDim;
using std::isfinite;

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return std::sqrt(a); }
static inline float __uint_as_float(u32 bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static inline u32 __float_as_uint(float x) { u32 bits; std::memcpy(&bits, &x, 4); return bits; }
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline float __int_as_float(int bits) { return __uint_as_float((u32)bits); }
#ifdef NEIGHBOURS
#include "neighbours.h"
#else  // one thread has no neighbours
static inline void __syncthreads() {}
static inline void __syncwarp() {}
static inline float __shfl_xor_sync(u32, float x, int) { return x; }
static inline int __shfl_xor_sync(u32, int x, int) { return x; }
static inline double __shfl_xor_sync(u32, double x, int) { return x; }
#endif
static inline float __shfl_sync(u32, float x, int, int) { return x; }
static inline int __clzll(u64 x) { return x ? __builtin_clzll(x) : 64; }
static inline int __popc(u32 x) { return __builtin_popcount(x); }
static inline u32 __byte_perm(u32 low, u32 high, u32 places) {
    u64 both = (u64)high << 32 | low;
    u32 found = 0;
    for (int i = 0; i < 4; i++) found |= (u32)(both >> 8 * (places >> 4 * i & 7) & 255) << 8 * i;
    return found;
}

// float16 by its bits, to nearest, ties to even: enough of it for numbers that are no subnormals.
static inline double from_half(u32 bits) {
    int exponent = bits >> 10 & 31;
    double size = exponent ? std::ldexp(1024 + (bits & 1023), exponent - 25)
                           : std::ldexp(bits & 1023, -24);
    if (exponent == 31) size = INFINITY;
    return bits & 0x8000 ? -size : size;
}
static inline u32 to_half(double x) {
    u32 sign = std::signbit(x) ? 0x8000 : 0;
    double size = std::fabs(x);
    if (size == 0) return sign;
    if (size > 65504) return sign | 0x7C00;
    int exponent = std::max(std::ilogb(size), -14);
    u32 units = (u32)std::nearbyint(std::ldexp(size, 10 - exponent));
    if (units < 1024) return sign | units;
    return sign | (((u32)(exponent + 15) << 10) + (units - 1024));
}
template <class F> static inline u32 by_halves(u32 a, u32 b, u32 c, F f) {
    u32 low = to_half(f(from_half(a & 65535), from_half(b & 65535), from_half(c & 65535)));
    u32 high = to_half(f(from_half(a >> 16), from_half(b >> 16), from_half(c >> 16)));
    return low | high << 16;
}
static inline u32 add_halves(u32 a, u32 b) {
    return by_halves(a, b, 0, [](double x, double y, double) { return x + y; });
}
static inline u32 add_halves_clamped(u32 a, u32 b) {
    return by_halves(a, b, 0, [](double x, double y, double) { return min(max(x + y, 0.0), 1.0); });
}
static inline u32 multiply_halves(u32 a, u32 b) {
    return by_halves(a, b, 0, [](double x, double y, double) { return x * y; });
}
static inline u32 multiply_add_halves(u32 a, u32 b, u32 c) {
    return by_halves(a, b, c, [](double x, double y, double z) { return x * y + z; });
}
static inline u32 larger_halves(u32 a, u32 b) {
    return by_halves(a, b, 0, [](double x, double y, double) { return max(x, y); });
}
static inline u32 magnitude_halves(u32 a) { return a & 0x7FFF7FFFu; }
static inline u32 to_halves(float low, float high) { return to_half(low) | to_half(high) << 16; }
static inline float half_to_float(u32 bits) {
    if ((bits & 0x7C00) == 0x7C00 && (bits & 1023)) return NAN;
    return (float)from_half(bits & 65535);
}
constexpr u32 twice_half(int value) {
    u32 size = value < 0 ? -value : value, exponent = 25, bits = size;
    if (size == 0) return 0;
    while (bits < 1024) { bits <<= 1; exponent--; }
    while (bits >= 2048) { bits >>= 1; exponent++; }
    u32 half = (value < 0 ? 0x8000u : 0u) | (exponent << 10) | (bits & 1023);
    return half | (half << 16);
}
constexpr u32 two_halves(int low, int high) {
    return (twice_half(low) & 0xFFFFu) | (twice_half(high) & 0xFFFF0000u);
}
constexpr u32 quadruple_half(int value) { return twice_half(value) + 0x08000800u; }
static inline u32 __funnelshift_r(u32 low, u32 high, int bits) {
    return (u32)(((u64)high << 32 | low) >> bits);
}
