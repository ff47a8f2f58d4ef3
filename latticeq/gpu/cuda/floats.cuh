// Numbers that NVRTC has no headers for: infinities, and float16 as its bits.

__device__ inline float infinity() { return __int_as_float(0x7F800000); }

__device__ inline float not_a_number() { return __int_as_float(0x7FC00000); }

__device__ inline float from_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// Round to nearest, ties to even; beyond the largest number, infinity.
__device__ inline unsigned short to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
