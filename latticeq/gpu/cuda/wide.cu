// Products by many tokens, for devices of compute capability 9.0: weights are decoded to registers and
// go from there into the tensor cores, four warps of 16 rows together; tokens come from shared memory.
//
// A block has ROWS rows of the matrix and 128 tokens, and takes 64 columns at a time. While the tensor
// cores multiply one part, the warps decode the next one. Tokens are in the order of columns that
// decoding gives: `halves` with `is_wide` set, in prepare.cu. Macros: those of weights.cuh.

#include "halves.cuh"
#include "weights.cuh"

#define GROUPS 2                // of four warps
#define ROWS (64 * GROUPS)
#define TOKENS 128
#define STAGES 6                // parts of tokens in shared memory, TOKENS x 128 bytes each
#define STAGE_BYTES (TOKENS * 128)

// c (64 x 128) = a (64 x 16) b (16 x 128) + c, or without c if `add` is 0.
INLINE void multiply_group(float (&c)[64], const u32 (&a)[4], u64 b, int add) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %69, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0; }"
        :
          "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]),
          "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
          "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]),
          "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
          "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
          "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
          "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]),
          "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
          "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]),
          "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
          "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]),
          "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
          "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]),
          "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
          "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]),
          "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// Where an operand lies in shared memory: rows of 128 bytes, their parts of 16 bytes turned around by
// the row's number modulo 8, eight rows after eight.
INLINE u64 describe(u32 address) {
    return (u64)((address & 0x3FFFFu) >> 4) | (1ull << 16) | ((u64)(1024 >> 4) << 32) | (1ull << 62);
}

INLINE void copy_later(u32 target, const void* source) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(target), "l"(source) : "memory");
}

// Ask for 64 columns of the block's tokens.
INLINE void load_tokens(const unsigned short* const (&x)[4], int part, u32 stage) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int token = threadIdx.x / 8 + 32 * i, place = (threadIdx.x % 8) ^ (token % 8);
        copy_later(stage + token * 128 + place * 16, x[i] + part * 64);
    }
}

extern "C" __global__ void __launch_bounds__(128 * GROUPS, 1) multiply(
    const uint4* words, const unsigned short* pairs, const unsigned char* plane,
    const unsigned char* flips, const u32* scales_in, const float* row_scale, const float* bias,
    const unsigned short* x, const float* token_scale, float* y,
    int tokens, int rows, int tiles, int steps
) {
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ __align__(64) u32 scales[16];
    start_next_grid();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int tile = min((int)blockIdx.y * (ROWS / 16) + warp, tiles - 1);
    const size_t size = (size_t)tiles * steps, word = (size_t)tile * steps * 32, at = word + lane;
    Stream stream = {words + word * LOADS + lane, pairs + at, plane + at, flips + at};
    Step now, next;
    load_step(stream, size, 1, now);
    if (threadIdx.x < 16) scales[threadIdx.x] = scales_in ? scales_in[threadIdx.x] : 0;
    const u32 table = (u32)__cvta_generic_to_shared(scales);
    const u32 base = ((u32)__cvta_generic_to_shared(memory) + 1023u) & ~1023u;
    const int parts = 2 * steps, first_token = blockIdx.x * TOKENS;
    wait_for_grids();

    const unsigned short* mine[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int token = min(first_token + (int)threadIdx.x / 8 + 32 * i, tokens - 1);
        mine[i] = x + (size_t)token * steps * COLUMNS + (threadIdx.x % 8) * 8;
    }
#pragma unroll
    for (int s = 0; s < STAGES - 2; s++) {
        if (s < parts) load_tokens(mine, s, base + s * STAGE_BYTES);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    float c[64];
#pragma unroll
    for (int i = 0; i < 64; i++) c[i] = 0;
    u32 a[2][4][4];
    int stage = 0, target = STAGES - 2;
    __syncthreads();

    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) load_step(stream, size, 1, next);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int part = 2 * step + half;
#pragma unroll
            for (int quad = 0; quad < 2; quad++) {
                u32 v[4], w[4];
                weights_of(now, 2 * half + quad, 0, table, v);
                weights_of(now, 2 * half + quad, 1, table, w);
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    a[half][2 * quad + k][0] = v[2 * k];
                    a[half][2 * quad + k][1] = w[2 * k];
                    a[half][2 * quad + k][2] = v[2 * k + 1];
                    a[half][2 * quad + k][3] = w[2 * k + 1];
                }
            }
            // The part has come when all but the last STAGES - 3 parts asked for have.
            asm volatile("cp.async.wait_group %0;" :: "n"(STAGES - 3) : "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            __syncthreads();
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
            const u64 b = describe(base + stage * STAGE_BYTES);
#pragma unroll
            for (int k = 0; k < 4; k++) multiply_group(c, a[half][k], b + 2 * k, 1);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            // What was multiplied two parts ago is done in every warp: they all have been here since.
            if (part + STAGES - 2 < parts) {
                load_tokens(mine, part + STAGES - 2, base + target * STAGE_BYTES);
            }
            asm volatile("cp.async.commit_group;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            target = target + 1 == STAGES ? 0 : target + 1;
        }
        now = next;
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");

    // Thread (g, t) holds rows g and g + 8 of its warp's sixteen, tokens 8 j + 2 t and one more.
    const int row = (blockIdx.y * (ROWS / 16) + warp) * 16 + (lane >> 2);
#pragma unroll
    for (int which = 0; which < 2; which++) {
        const int here = row + 8 * which;
        if (here >= rows) continue;
        const float scale = row_scale[here], more = bias ? bias[here] : 0.0f;
#pragma unroll
        for (int j = 0; j < 16; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int token = first_token + 8 * j + 2 * (lane & 3) + e;
                if (token < tokens) {
                    y[(size_t)token * rows + here] =
                        c[4 * j + 2 * which + e] * scale * token_scale[token] + more;
                }
            }
        }
    }
}
