// Products by many tokens, for devices of compute capability 9.0: weights are decoded to registers and
// go from there into the tensor cores, four warps of 16 rows together; tokens come from shared memory.
//
// A block has ROWS rows of the matrix and TOKENS tokens, and takes a part of 64 columns at a time. One
// thread asks for tokens, parts ahead, as `halves` has them with `is_wide` set (prepare.cu). While the
// tensor cores multiply one part, the warps decode the next. Where there are too few blocks for all
// multiprocessors two share the columns, a cluster: each adds up the sums of half of their tokens, which
// the other sends to where its tokens were.
// Macros: those of weights.cuh; SPLIT, how many share columns, 1 or 2.

#include "halves.cuh"
#include "weights.cuh"

#define ROWS 128
#define TOKENS 256
#define WARPS 8
#define COPY_BYTES 16384  // a part of 128 tokens
#define STAGES 5
#define STAGE_BYTES (2 * COPY_BYTES)

// c (64 x TOKENS) += a (64 x 16) b (16 x TOKENS): the threads of four warps together.
INLINE void multiply_group(float (&c)[TOKENS / 2], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, "
        "%72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, "
        "%88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, "
        "%104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, "
        "%120, %121, %122, %123, %124, %125, %126, %127}, "
        "{%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
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
          "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]),
          "+f"(c[64]), "+f"(c[65]), "+f"(c[66]), "+f"(c[67]),
          "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), "+f"(c[71]),
          "+f"(c[72]), "+f"(c[73]), "+f"(c[74]), "+f"(c[75]),
          "+f"(c[76]), "+f"(c[77]), "+f"(c[78]), "+f"(c[79]),
          "+f"(c[80]), "+f"(c[81]), "+f"(c[82]), "+f"(c[83]),
          "+f"(c[84]), "+f"(c[85]), "+f"(c[86]), "+f"(c[87]),
          "+f"(c[88]), "+f"(c[89]), "+f"(c[90]), "+f"(c[91]),
          "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]),
          "+f"(c[96]), "+f"(c[97]), "+f"(c[98]), "+f"(c[99]),
          "+f"(c[100]), "+f"(c[101]), "+f"(c[102]), "+f"(c[103]),
          "+f"(c[104]), "+f"(c[105]), "+f"(c[106]), "+f"(c[107]),
          "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]),
          "+f"(c[112]), "+f"(c[113]), "+f"(c[114]), "+f"(c[115]),
          "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]),
          "+f"(c[120]), "+f"(c[121]), "+f"(c[122]), "+f"(c[123]),
          "+f"(c[124]), "+f"(c[125]), "+f"(c[126]), "+f"(c[127])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Sums are as they stand here: else the compiler moves what makes or takes them in among the products,
// and then has each of those waited for.
INLINE void settle(float (&c)[TOKENS / 2]) {
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) asm volatile("" : "+f"(c[i]) :: "memory");
}

// Where an operand lies in shared memory: rows of 128 bytes, their parts of 16 bytes turned around by
// the row's number modulo 8, eight rows after eight.
INLINE u64 describe(u32 address) {
    return (u64)((address & 0x3FFFFu) >> 4) | (1ull << 16) | ((u64)(1024 >> 4) << 32) | (1ull << 62);
}

// Barriers in shared memory: phases end when as many have arrived, and bytes come, as are awaited.
INLINE void make_barrier(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(count));
}

INLINE void arrive(u32 barrier) {
    asm volatile("{ .reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0]; }" :: "r"(barrier) : "memory");
}

INLINE void expect(u32 barrier, u32 bytes) {
    asm volatile("{ .reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1; }"
                 :: "r"(barrier), "r"(bytes) : "memory");
}

INLINE void await(u32 barrier, u32 phase) {
    asm volatile(
        "{ .reg .pred p;\n"
        "WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@!p bra WAIT; }" :: "r"(barrier), "r"(phase) : "memory");
}

INLINE void copy(u32 target, const unsigned short* source, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        :: "r"(target), "l"(source), "r"(COPY_BYTES), "r"(barrier) : "memory");
}

// Ask for part number `count` of this block, `part` of `parts`: whole blocks of 128 tokens, as the last
// one is filled up.
INLINE void copy_part(
    const unsigned short* x, int tokens, int count, int part, int parts, u32 base, u32 full
) {
    const int stage = count % STAGES, first = 2 * blockIdx.x, last = (tokens - 1) / 128;
    expect(full + 8 * stage, STAGE_BYTES);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const size_t from = (size_t)min(first + i, last) * parts + part;
        copy(base + stage * STAGE_BYTES + i * COPY_BYTES, x + from * (COPY_BYTES / 2),
             full + 8 * stage);
    }
}

// What sums are multiplied by, and what is added: in shared memory, before they are needed.
struct Factors {
    float tokens[TOKENS], rows[ROWS], bias[ROWS];
};

// Write sums FIRST to FIRST + COUNT of a thread. Thread (g, t) of a warp holds rows g and g + 8 of its
// sixteen, tokens 8 j + 2 t and one more, from `token` of the block on for sum FIRST. `y` is where the
// first token and row of the block go; so many tokens and rows of it are there.
template <int FIRST, int COUNT>
INLINE void store(
    const Factors& factors, const float (&c)[TOKENS / 2], float* y, int stride, int token, int row,
    int tokens, int rows
) {
    const float scale[2] = {factors.rows[row], factors.rows[row + 8]};
    const float more[2] = {factors.bias[row], factors.bias[row + 8]};
    const bool is_there[2] = {row < rows, row + 8 < rows};
    float* mine = y + (size_t)token * stride + row;
#pragma unroll
    for (int j = 0; j < COUNT / 4; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int here = token + 8 * j + e;
            const float token_scale = factors.tokens[here];
            float* at = mine + (size_t)(8 * j + e) * stride;
#pragma unroll
            for (int which = 0; which < 2; which++) {
                const float value = c[FIRST + 4 * j + 2 * which + e] * scale[which] * token_scale;
                if (here < tokens && is_there[which]) at[8 * which] = value + more[which];
            }
        }
    }
}

#if SPLIT > 1
#define SENT_BYTES (64 * 4 * 32 * WARPS)

// Send sums FIRST to FIRST + 64 to the other block of the cluster, and add what it sends to the others.
// What arrives is counted by a barrier there, which saves fences.
template <int FIRST>
INLINE void exchange(float (&c)[TOKENS / 2], u32 base, u32 received, u32 other) {
    u32 there, counted;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(base), "r"(other));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(received), "r"(other));
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
        asm volatile(
            "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
            "[%0], {%1, %2, %3, %4}, [%5];"
            :: "r"(there + (i * 32 * WARPS + threadIdx.x * 4) * 4), "f"(c[FIRST + i]),
               "f"(c[FIRST + i + 1]), "f"(c[FIRST + i + 2]), "f"(c[FIRST + i + 3]), "r"(counted)
            : "memory");
    }
    asm volatile(
        "{ .reg .pred p;\n"
        "WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], 0;\n"
        "@!p bra WAIT; }" :: "r"(received) : "memory");
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
        float sent[4];
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(sent[0]), "=f"(sent[1]), "=f"(sent[2]), "=f"(sent[3])
                     : "r"(base + (i * 32 * WARPS + threadIdx.x * 4) * 4) : "memory");
#pragma unroll
        for (int n = 0; n < 4; n++) c[64 - FIRST + i + n] += sent[n];
    }
}
#endif

#if SPLIT > 1
extern "C" __global__ void __cluster_dims__(1, 1, SPLIT) __launch_bounds__(32 * WARPS, 1) multiply(
#else
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) multiply(
#endif
    const uint4* words, const unsigned short* pairs, const unsigned char* plane,
    const unsigned char* flips, const u32* scales_in, const float* row_scale, const float* bias,
    const unsigned short* x, const float* token_scale, float* y,
    int tokens, int rows, int tiles, int steps
) {
    extern __shared__ unsigned char memory[];
    __shared__ __align__(64) u32 scales[16];
    __shared__ __align__(8) u64 barriers[2 * STAGES + 1];
    __shared__ Factors factors;
    start_next_grid();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, first_token = blockIdx.x * TOKENS;
    const u32 base = ((u32)__cvta_generic_to_shared(memory) + 1023u) & ~1023u;
    const u32 full = (u32)__cvta_generic_to_shared(barriers), empty = full + 8 * STAGES;
    [[maybe_unused]] const u32 received = empty + 8 * STAGES;
    const int first_step = steps * blockIdx.z / SPLIT;
    const int own_steps = steps * (blockIdx.z + 1) / SPLIT - first_step;

    const int tile = min((int)blockIdx.y * (ROWS / 16) + warp, tiles - 1);
    const size_t size = (size_t)tiles * steps, word = ((size_t)tile * steps + first_step) * 32;
    const size_t at = word + lane;
    Stream stream = {words + word * LOADS + lane, pairs + at, plane + at, flips + at};
    Step now, next;
    load_step(stream, size, 1, now);
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            make_barrier(full + 8 * s, 1);
            make_barrier(empty + 8 * s, WARPS);
        }
        make_barrier(received, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#if SPLIT > 1
        expect(received, SENT_BYTES);
#endif
    }
    if (threadIdx.x < 16) scales[threadIdx.x] = scales_in ? scales_in[threadIdx.x] : 0;
    const u32 table = (u32)__cvta_generic_to_shared(scales);
    __syncthreads();
    if (threadIdx.x == 0) {
        wait_for_grids();  // others decode meanwhile
        for (int part = 0; part < min(STAGES - 2, 2 * own_steps); part++) {
            copy_part(x, tokens, part, 2 * first_step + part, 2 * steps, base, full);
        }
    }
    float c[TOKENS / 2];
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) c[i] = 0;
    settle(c);
    u32 a[2][4][4];
    int stage = 0, phase = 0, used = STAGES - 1;

    for (int step = 0; step < own_steps; step++) {
        if (step + 1 < own_steps) load_step(stream, size, 1, next);
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int quad = 0; quad < 2; quad++) {
                u32 v[4], w[4];
                weights_of(now, 2 * half + quad, 0, table, v);
                weights_of(now, 2 * half + quad, 1, table, w);
#if FORMAT == 2
                // What is multiplied from must not be the registers that the next step comes to:
                // a sum with the null pointer makes others, which the compiler cannot know.
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    v[i] += (u32)(u64)scales_in;
                    w[i] += (u32)(u64)scales_in;
                }
#endif
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    a[half][2 * quad + k][0] = v[2 * k];
                    a[half][2 * quad + k][1] = w[2 * k];
                    a[half][2 * quad + k][2] = v[2 * k + 1];
                    a[half][2 * quad + k][3] = w[2 * k + 1];
                }
            }
            await(full + 8 * stage, phase);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
            const u64 b = describe(base + stage * STAGE_BYTES);
#pragma unroll
            for (int k = 0; k < 4; k++) multiply_group(c, a[half][k], b + 2 * k);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            // The part before this one is multiplied: its place is free. That of the one before is
            // so in every warp, or soon will be.
            const int part = 2 * step + half, next_part = part + STAGES - 2;
            if (lane == 0 && part > 0) arrive(empty + 8 * used);
            if (threadIdx.x == 0 && next_part < 2 * own_steps) {
                await(empty + 8 * (next_part % STAGES), (next_part / STAGES + 1) & 1);
                copy_part(x, tokens, next_part, 2 * first_step + next_part, 2 * steps, base, full);
            }
            __syncwarp();
            used = stage;
            stage++;
            if (stage == STAGES) { stage = 0; phase ^= 1; }
        }
        now = next;
    }
    // Factors are asked for while the last part is multiplied.
    const int block_row = blockIdx.y * ROWS, my_row = min(block_row + (int)threadIdx.x % ROWS, rows - 1);
    wait_for_grids();
    const float token_factor = token_scale[min(first_token + (int)threadIdx.x, tokens - 1)];
    const float row_factor = row_scale[my_row], more = bias ? bias[my_row] : 0.0f;
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    settle(c);
#if SPLIT > 1
    // Nobody multiplies from that memory any more; the order of nothing else is at stake.
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
    factors.tokens[threadIdx.x] = token_factor;
    if (threadIdx.x < ROWS) {
        factors.rows[threadIdx.x] = row_factor;
        factors.bias[threadIdx.x] = more;
    }
    __syncthreads();
    float* out = y + (size_t)first_token * rows + block_row;
    const int row = 16 * warp + (lane >> 2), token = 2 * (lane & 3);
    const int tokens_here = tokens - first_token, rows_here = rows - block_row;
#if SPLIT > 1
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    if (blockIdx.z == 0) {
        exchange<64>(c, base, received, 1);
        store<0, 64>(factors, c, out, rows, token, row, tokens_here, rows_here);
    } else {
        exchange<0>(c, base, received, 0);
        store<64, 64>(factors, c, out, rows, token + 128, row, tokens_here, rows_here);
    }
#else
    store<0, TOKENS / 2>(factors, c, out, rows, token, row, tokens_here, rows_here);
#endif
}
