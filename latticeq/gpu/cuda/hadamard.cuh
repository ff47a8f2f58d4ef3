// The steps of a Hadamard transform, in the order of additions of latticeq/transforms: Paley's
// factor from sums of four that are already scaled, one by one until a multiple of four groups is
// left, then four groups at a time; then the stages of Sylvester's, the highest bit first.

__device__ inline float sum(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float difference(float a, float b) { return __fadd_rn(a, -b); }

__host__ __device__ constexpr int bits_of(int power) {
    int bits = 0;
    while (1 << bits < power) ++bits;
    return bits;
}

// Stages over the bits of an index of an array, from the highest: partners are neighbours there.
template <int BITS_HERE> __device__ inline void stages(float *v) {
#pragma unroll
    for (int bit = (1 << BITS_HERE) / 2; bit > 0; bit /= 2)
#pragma unroll
        for (int i = 0; i < 1 << BITS_HERE; ++i) {
            if (i & bit) continue;
            const float a = v[i], b = v[i + bit];
            v[i] = sum(a, b);
            v[i + bit] = difference(a, b);
        }
}

// Stages over the lowest bits of the thread's number, so many threads together.
template <int LANES_HERE> __device__ inline float lane_stages(float v) {
#pragma unroll
    for (int bit = LANES_HERE / 2; bit > 0; bit /= 2) {
        const float other = __shfl_xor_sync(~0u, v, bit);
        v = threadIdx.x & bit ? difference(other, v) : sum(v, other);
    }
    return v;
}

// An entry of the table of sums of a group: rows `stride` apart are (a + b), (a - b), (c + d),
// (c - d), scaled.
__device__ inline float entry(const float *four, int stride, unsigned code) {
    const float ab = four[((code >> 2 ^ code >> 3) & 1) * stride];
    const float cd = four[(2 + ((code ^ code >> 1) & 1)) * stride];
    return sum(code & 8 ? -ab : ab, code & 2 ? -cd : cd);
}

// One number of P x from the sums of its column; codes are those of its row.
template <int GROUPS_HERE, typename Codes>
__device__ inline float paley(const float *sums, int stride, const Codes &codes) {
    constexpr int alone = GROUPS_HERE % 4;
    float total = 0.0f;
#pragma unroll
    for (int g = 0; g < alone; ++g)
        total = sum(total, entry(sums + 4 * g * stride, stride, codes[g]));
#pragma unroll 8
    for (int g = alone; g < GROUPS_HERE; g += 4) {
        const float a = entry(sums + 4 * g * stride, stride, codes[g]);
        const float b = entry(sums + 4 * (g + 1) * stride, stride, codes[g + 1]);
        const float c = entry(sums + 4 * (g + 2) * stride, stride, codes[g + 2]);
        const float d = entry(sums + 4 * (g + 3) * stride, stride, codes[g + 3]);
        total = sum(total, sum(sum(a, b), sum(c, d)));
    }
    return total;
}
