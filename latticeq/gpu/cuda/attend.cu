// Attention of one token: its queries and key turned by its position, its key and value kept, and
// every position up to its own attended to. What position that is, and where the cache lies, the
// kernel reads from memory, so that one launch, captured, serves every token of every sequence.
//
// Compiled with KIND (how keys and values are kept: 0 float32, 1 float16, 2 rows of nest_rows.cuh),
// WIDTH, SHARED (query heads of a kv head), GROUP (how many of them go together; divides SHARED),
// KV_HEADS and RUNS (the most blocks that share the positions of a kv head). A layer of a cache is (KV_HEADS, capacity, WIDTH) or, of rows, (KV_HEADS, capacity,
// bytes).
//
// A block takes a run of positions of one kv head, CHUNK at a time; the last to finish joins the
// runs, in their order, scaled to one largest score, so that results do not depend on which one that
// was.

#include "floats.cuh"
#include "halves.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32, CHUNK = 64;
constexpr int VECTOR = WIDTH % 8 == 0 ? 8 : WIDTH % 4 == 0 ? 4 : 2;
constexpr int PARTS = WIDTH / VECTOR;

__host__ __device__ constexpr int power_of_two(int least) {
    int power = 1;
    while (power < least) power *= 2;
    return power;
}

constexpr int LANES = power_of_two(PARTS);  // threads that read one position
constexpr int ROWS = THREADS / LANES;       // positions read at a time
constexpr int PASSES = (CHUNK + ROWS - 1) / ROWS;
constexpr int HALF = WIDTH / 2;
constexpr int TOGETHER = WIDTH > 128 ? 1 : 2;  // blocks that a multiprocessor is to hold
constexpr int ROUNDS = (GROUP * WIDTH + THREADS - 1) / THREADS;  // numbers of queries of a thread
static_assert(2 * RUNS <= CHUNK, "runs are joined where scores were");

#if KIND == 2
#include "nest_rows.cuh"
static_assert(THREADS == 2 * TEAM, "two teams code a key and a value");
typedef unsigned char Number;
constexpr int KEY_STEP = KEY_ROW, VALUE_STEP = VALUE_ROW;

struct Raw {
    unsigned word;
    float scale;
};

__device__ inline Raw fetch(const Number *row, int lane, int kind, const float *units) {
    Raw raw;
    const int bits = kind ? bits_for(VALUE_SCALES) : bits_for(KEY_SCALES);
    read_block(row, lane, bits, units + kind * MOST_SCALES, &raw.word, &raw.scale);
    return raw;
}

struct Numbers {
    float of[8];
};

// One copy of it: a kernel that runs once a layer waits for its instructions, too.
template <int Q> __device__ __noinline__ Numbers expanded(unsigned word, float scale) {
    int points[8];
    Numbers numbers;
    decode_word(word, Q, points);
    EACH numbers.of[i] = (float)points[i] * scale;
    return numbers;
}

__device__ inline void expand(const Raw &raw, int kind, float *numbers) {
    const Numbers found = kind ? expanded<VALUE_Q>(raw.word, raw.scale)
                               : expanded<KEY_Q>(raw.word, raw.scale);
    EACH numbers[i] = found.of[i];
}
#else
constexpr int KEY_STEP = WIDTH, VALUE_STEP = WIDTH;
#if KIND == 1
typedef unsigned short Number;
__device__ inline float value_of(Number bits) { return from_half(bits); }
__device__ inline Number kept(float value) { return to_half(value); }
#else
typedef float Number;
__device__ inline float value_of(Number value) { return value; }
__device__ inline Number kept(float value) { return value; }
#endif

struct alignas(VECTOR * sizeof(Number) >= 16 ? 16 : VECTOR * sizeof(Number)) Raw {
    Number numbers[VECTOR];
};

__device__ inline Raw fetch(const Number *row, int lane, int, const float *) {
    return ((const Raw *)row)[lane];
}

__device__ inline void expand(const Raw &raw, int, float *numbers) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) numbers[i] = value_of(raw.numbers[i]);
}
#endif

// Return number i of a head turned by the angles of a position.
__device__ inline float rotated(const float *head, const float *cosine, const float *sine, int i) {
    const int pair = i % HALF;
    const float a = head[pair], b = head[HALF + pair], c = cosine[pair], s = sine[pair];
    return i < HALF ? __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s))
                    : __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s));
}

struct Shared {
    float queries[GROUP][WIDTH];
    float scores[GROUP][CHUNK];  // at last what runs are joined by
    float mixed[WARPS][GROUP][WIDTH];
    float peak[GROUP], total[GROUP], joined[GROUP][WIDTH];  // of the chunks so far
    float older[GROUP], newer[GROUP];                       // what these and the next chunk count
    bool is_last;
#if KIND == 2
    RowScratch rows;
#else
    alignas(16) Number kept[2][WIDTH];  // the new key and value
#endif
};

// What turns keys, queries, values and outputs to the basis in which rows are coded, and back:
// bases (4, 2, KV_HEADS, WIDTH), what is added and what is multiplied; turns (3, WIDTH, WIDTH), of
// keys and queries, of values, and back; scales (3, 2, MOST_SCALES): of keys and of values betas and
// 1 / betas, and the units of both.
struct Coding {
    const float *bases, *turns, *scales;
};

#if KIND == 2
constexpr int BASIS = 2 * KV_HEADS * WIDTH, TURN = WIDTH * WIDTH;

__device__ inline const float *units_of(const Coding &coding) {
    return coding.scales + 4 * MOST_SCALES;
}

// What a thread asks for before it needs it: its scale, its column of a turn, and how its numbers of
// the key, the value and the queries, or of outputs, are moved.
struct Ahead {
    Scale scale;
    float column[HELD], add[2], times[2], query_add[ROUNDS], query_times[ROUNDS];
};

__device__ inline void ask_moves(Ahead &ahead, const float *basis, int g) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int i = (round * THREADS + threadIdx.x) % WIDTH;
        ahead.query_add[round] = basis[g * WIDTH + i];
        ahead.query_times[round] = basis[(KV_HEADS + g) * WIDTH + i];
    }
}

__device__ inline void look_ahead(Ahead &ahead, const Coding &coding, int g, bool keeps) {
    ask_moves(ahead, coding.bases + BASIS, g);
    if (!keeps) return;
    const float *turn = coding.turns + threadIdx.x / TEAM * TURN;
    const int i = min((int)threadIdx.x, WIDTH - 1);
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
        const float *basis = coding.bases + 2 * kind * BASIS;
        ahead.add[kind] = basis[g * WIDTH + i];
        ahead.times[kind] = basis[(KV_HEADS + g) * WIDTH + i];
    }
    ahead.scale = own_scale(coding.scales);
    hold_column(ahead.column, turn, min((int)threadIdx.x % TEAM, WIDTH - 1));
}

// Outputs are turned back by threads that keep to one column each, where those come out even.
constexpr bool BY_COLUMN = THREADS % WIDTH == 0 && HELD == WIDTH;

__device__ inline void look_back(Ahead &ahead, const Coding &coding, int g) {
    ask_moves(ahead, coding.bases + 3 * BASIS, g);
    if (BY_COLUMN) hold_column(ahead.column, coding.turns + 2 * TURN, threadIdx.x % WIDTH);
}

__device__ inline void place_query(Shared &shared, const Ahead &ahead, int round, int j, int i,
                                   float value) {
    shared.mixed[0][j][i] =
        __fmul_rn(__fadd_rn(value, ahead.query_add[round]), ahead.query_times[round]);
}

__device__ __noinline__ void turn_queries(Shared &shared, const float *turn, int rank, int threads) {
#pragma unroll 1
    for (int at = rank; at < GROUP * WIDTH; at += threads)
        shared.queries[at / WIDTH][at % WIDTH] =
            turned_quickly(shared.mixed[0][at / WIDTH], turn, at % WIDTH);
}

__device__ inline void settle_queries(Shared &shared, const Coding &coding) {
    __syncthreads();
    turn_queries(shared, coding.turns, threadIdx.x, THREADS);
    __syncthreads();
}

// Keep a key and a value, and settle queries: threads that do not code turn those.
__device__ inline void keep(Shared &shared, const Coding &coding, const Ahead &ahead,
                            const float *k, const float *v, const float *cosine,
                            const float *sine, Number *key, Number *value) {
    constexpr bool MEANWHILE = IDLE >= 64;
    RowScratch &rows = shared.rows;
    if (threadIdx.x < WIDTH) {
        const int i = threadIdx.x;
        const float turned = rotated(k, cosine, sine, i);
        rows.moved[0][i] = __fmul_rn(__fadd_rn(turned, ahead.add[0]), ahead.times[0]);
        rows.moved[1][i] = __fmul_rn(__fadd_rn(v[i], ahead.add[1]), ahead.times[1]);
    }
    __syncthreads();
    const int kind = threadIdx.x / TEAM, rank = threadIdx.x % TEAM;
    const float *turn = coding.turns + kind * TURN, *moved = rows.moved[kind];
    if (rank < WIDTH) rows.turned[kind][rank] = turned_by(moved, ahead.column, turn, rank);
#pragma unroll 1
    for (int j = rank + TEAM; j < WIDTH; j += TEAM)
        rows.turned[kind][j] = turned_number(moved, turn, j);
    __syncthreads();
    search_rows(rows, ahead.scale, [&](int idle) {
        if (MEANWHILE) turn_queries(shared, coding.turns, idle, IDLE);
    });
    write_rows(rows, key, value);
    if (!MEANWHILE) settle_queries(shared, coding);
}

// What `fetch` finds in the row that was kept.
__device__ inline Raw own_row(const Shared &shared, int lane, int kind, const float *units) {
    const RowScratch &rows = shared.rows;
    const float norm = from_half((unsigned short)rows.norms[kind]);
    return {rows.words[kind][lane],
            __fmul_rn(units[kind * MOST_SCALES + rows.which[kind][lane]], norm)};
}

__device__ inline float turned_back(const float *row, const Coding &coding, const Ahead &ahead,
                                    int round, int i) {
    const float add = ahead.query_add[round], times_by = ahead.query_times[round];
    if (!BY_COLUMN) return turned_quickly(row, coding.turns + 2 * TURN, i) * times_by + add;
    float sums[4] = {};
#pragma unroll
    for (int n = 0; n < HELD; ++n) sums[n % 4] += row[n] * ahead.column[n];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) * times_by + add;
}
#else
__device__ inline const float *units_of(const Coding &) { return nullptr; }

struct Ahead {};

__device__ inline void look_ahead(Ahead &, const Coding &, int, bool) {}

__device__ inline void look_back(Ahead &, const Coding &, int) {}

__device__ inline void place_query(Shared &shared, const Ahead &, int, int j, int i, float value) {
    shared.queries[j][i] = value;
}

__device__ inline void settle_queries(Shared &, const Coding &) { __syncthreads(); }

__device__ inline void keep(Shared &shared, const Coding &, const Ahead &, const float *k,
                            const float *v, const float *cosine, const float *sine, Number *key,
                            Number *value) {
    if (threadIdx.x < WIDTH) {
        const int i = threadIdx.x;
        shared.kept[0][i] = key[i] = kept(rotated(k, cosine, sine, i));
        shared.kept[1][i] = value[i] = kept(v[i]);
    }
    __syncthreads();
}

__device__ inline Raw own_row(const Shared &shared, int lane, int kind, const float *) {
    return ((const Raw *)shared.kept[kind])[lane];
}
#endif

// What `attend_one` finds in memory; latticeq/gpu/slot.py writes it.
struct Slot {
    Number *keys, *values;
    long long capacity;
    const float *cosine, *sine;
    long long position, token;
};

// What a thread holds of a chunk of keys and values.
struct Chunk {
    Raw keys[PASSES], values[PASSES];
};

// Fetch rows from `from` to before `to`.
__device__ inline void fetch_chunk(Chunk &chunk, const Number *keys, const Number *values, int from,
                                   int to, const float *units) {
    const int lane = threadIdx.x % LANES, first = threadIdx.x / LANES;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        const int row = pass * ROWS + first;
        if (row >= from && row < to && lane < PARTS) {
            chunk.keys[pass] = fetch(keys + (long long)row * KEY_STEP, lane, 0, units);
            chunk.values[pass] = fetch(values + (long long)row * VALUE_STEP, lane, 1, units);
        }
    }
}

// Take the row that was just kept, number `own` of the chunk, from where it was made.
__device__ inline void take_own(const Shared &shared, Chunk &chunk, int own, const float *units) {
    const int lane = threadIdx.x % LANES, first = threadIdx.x / LANES;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        if (pass * ROWS + first == own && lane < PARTS) {
            chunk.keys[pass] = own_row(shared, lane, 0, units);
            chunk.values[pass] = own_row(shared, lane, 1, units);
        }
    }
}

// Let a group of queries attend to `count` more positions: each its largest scaled score, the sum of
// its exponentials, and by them its mix of values, joined to those of the positions before.
__device__ inline void attend_chunk(Shared &shared, const Chunk &chunk, int count) {
    const int lane = threadIdx.x % LANES, first = threadIdx.x / LANES;
    const int warp = threadIdx.x / 32, in_warp = threadIdx.x % 32;
    const float scale = rsqrtf((float)WIDTH);
    float numbers[VECTOR];
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        const int row = pass * ROWS + first;
        const bool is_mine = row < count && lane < PARTS;
        if (is_mine) expand(chunk.keys[pass], 0, numbers);
#pragma unroll
        for (int j = 0; j < GROUP; ++j) {
            float score = 0.0f;
            if (is_mine)
#pragma unroll
                for (int i = 0; i < VECTOR; ++i)
                    score += shared.queries[j][lane * VECTOR + i] * numbers[i];
#pragma unroll
            for (int step = LANES / 2; step > 0; step /= 2)
                score += __shfl_xor_sync(~0u, score, step);
            if (lane == 0 && row < count) shared.scores[j][row] = score * scale;
        }
    }
    __syncthreads();
    for (int j = warp; j < GROUP; j += WARPS) {
        float peak = -infinity(), total = 0.0f;
#pragma unroll 1
        for (int s = in_warp; s < count; s += 32) peak = fmaxf(peak, shared.scores[j][s]);
        peak = warp_max(peak);
#pragma unroll 1
        for (int s = in_warp; s < count; s += 32) {
            const float weight = expf(shared.scores[j][s] - peak);
            shared.scores[j][s] = weight;
            total += weight;
        }
        total = warp_sum(total);
        if (in_warp == 0) {
            const float before = shared.peak[j], most = fmaxf(before, peak);
            shared.older[j] = expf(before - most);
            shared.newer[j] = expf(peak - most);
            shared.total[j] = shared.total[j] * shared.older[j] + total * shared.newer[j];
            shared.peak[j] = most;
        }
    }
    __syncthreads();
    float mine[GROUP][VECTOR] = {};
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        const int row = pass * ROWS + first;
        if (row < count && lane < PARTS) {
            expand(chunk.values[pass], 1, numbers);
#pragma unroll
            for (int j = 0; j < GROUP; ++j)
#pragma unroll
                for (int i = 0; i < VECTOR; ++i)
                    mine[j][i] += shared.scores[j][row] * numbers[i];
        }
    }
#pragma unroll
    for (int j = 0; j < GROUP; ++j)
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
#pragma unroll
            for (int step = LANES; step < 32; step *= 2)
                mine[j][i] += __shfl_xor_sync(~0u, mine[j][i], step);
            if (in_warp < LANES && lane < PARTS)
                shared.mixed[warp][j][lane * VECTOR + i] = mine[j][i];
        }
    __syncthreads();
    for (int at = threadIdx.x; at < GROUP * WIDTH; at += THREADS) {
        const int j = at / WIDTH, i = at % WIDTH;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += shared.mixed[w][j][i];
        shared.joined[j][i] = shared.joined[j][i] * shared.older[j] + sum * shared.newer[j];
    }
    __syncthreads();
}

// Join the runs of a group of queries, sums (runs, SHARED, 2) and mixed (runs, SHARED, WIDTH), into
// out (GROUP, WIDTH). What others wrote is asked for all at once, some runs of a number together.
__device__ inline void join(Shared &shared, const Coding &coding, const Ahead &ahead, int runs,
                            const float *sums, const float *mixed, float *out) {
    constexpr int BATCH = 8;
    float parts[BATCH];
    const auto ask = [&](int at, int c) {
#pragma unroll
        for (int n = 0; n < BATCH; ++n) {
            const int from = min(c + n, runs - 1) * SHARED + at / WIDTH;
            parts[n] = __ldcg(mixed + WIDTH * from + at % WIDTH);
        }
    };
    if (threadIdx.x < GROUP * WIDTH) ask(threadIdx.x, 0);
#pragma unroll 1
    for (int at = threadIdx.x; at < runs * GROUP; at += THREADS) {
        const int c = at / GROUP, j = at % GROUP;
        shared.scores[j][c] = __ldcg(sums + 2 * (c * SHARED + j));
        shared.scores[j][RUNS + c] = __ldcg(sums + 2 * (c * SHARED + j) + 1);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < GROUP * WIDTH; at += THREADS) {
        const int j = at / WIDTH;
        const float *peaks = shared.scores[j], *totals = peaks + RUNS;
        float peak = -infinity(), total = 0.0f, sum = 0.0f;
#pragma unroll 4
        for (int c = 0; c < runs; ++c) peak = fmaxf(peak, peaks[c]);
#pragma unroll 1
        for (int c = 0; c < runs; c += BATCH) {
            if (at >= THREADS || c > 0) ask(at, c);
#pragma unroll
            for (int n = 0; n < BATCH; ++n) {
                if (c + n >= runs) break;
                const float share = expf(peaks[c + n] - peak);
                total += share * totals[c + n];
                sum += share * parts[n];
            }
        }
#if KIND == 2
        shared.mixed[0][j][at % WIDTH] = sum / total;
#else
        out[at] = sum / total;
#endif
    }
    __syncthreads();
#if KIND == 2
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int at = round * THREADS + threadIdx.x;
        if (at < GROUP * WIDTH)
            out[at] =
                turned_back(shared.mixed[0][at / WIDTH], coding, ahead, round, at % WIDTH);
    }
    __syncthreads();
#endif
}

// qkv is the token's row of queries, keys and values, none turned yet; out (KV_HEADS * SHARED,
// WIDTH). The grid is (the most runs of a kv head, KV_HEADS); mixed and sums have room for a run
// each, and `done`, (KV_HEADS,), is zero before and after.
extern "C" __global__ void __launch_bounds__(THREADS, TOGETHER)
attend_one(const float *qkv, const Slot *slot, int layer, const float *bases, const float *turns,
           const float *scales, float *mixed, float *sums, unsigned *done, float *out) {
    __shared__ Shared shared;
    start_next_grid();
    const Coding coding = {bases, turns, scales};
    const int g = blockIdx.y, own = (int)slot->position;
    const int chunks = own / CHUNK + 1, each = (chunks + gridDim.x - 1) / gridDim.x;
    const int runs = (chunks + each - 1) / each, run = blockIdx.x;
    if (run >= runs) return;
    const float *cosine = slot->cosine + (long long)own * HALF;
    const float *sine = slot->sine + (long long)own * HALF;
    const long long row = ((long long)layer * KV_HEADS + g) * slot->capacity;
    Number *keys = slot->keys + row * KEY_STEP, *values = slot->values + row * VALUE_STEP;
    const int begin = run * each, end = min(chunks, begin + each);
    const auto bring = [&](Chunk &chunk, int c, int from, int to) {
        fetch_chunk(chunk, keys + (long long)c * CHUNK * KEY_STEP,
                    values + (long long)c * CHUNK * VALUE_STEP, from,
                    min(CHUNK, to - c * CHUNK), units_of(coding));
    };
    // What is older than this token does not depend on what runs before.
    Chunk chunk;
    Ahead ahead;
    bring(chunk, begin, 0, own);
    look_ahead(ahead, coding, g, run == runs - 1);
    wait_for_grids();
    sums += 2LL * g * gridDim.x * SHARED;
    mixed += (long long)g * gridDim.x * SHARED * WIDTH;
    for (int first = 0; first < SHARED; first += GROUP) {
        const float *mine = qkv + (g * SHARED + first) * WIDTH;
        if (first > 0) bring(chunk, begin, 0, own + 1);
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const int at = round * THREADS + threadIdx.x, j = at / WIDTH, i = at % WIDTH;
            if (at >= GROUP * WIDTH) break;
            place_query(shared, ahead, round, j, i, rotated(mine + j * WIDTH, cosine, sine, i));
            shared.joined[j][i] = 0.0f;
            if (i == 0) shared.peak[j] = -infinity(), shared.total[j] = 0.0f;
        }
        if (first == 0 && run == runs - 1) {
            const float *k = qkv + (KV_HEADS * SHARED + g) * WIDTH, *v = k + KV_HEADS * WIDTH;
            keep(shared, coding, ahead, k, v, cosine, sine, keys + (long long)own * KEY_STEP,
                 values + (long long)own * VALUE_STEP);
            if (begin == chunks - 1) take_own(shared, chunk, own % CHUNK, units_of(coding));
        } else {
            settle_queries(shared, coding);
        }
        for (int c = begin; c < end; ++c) {
            if (c > begin) bring(chunk, c, 0, own + 1);
            attend_chunk(shared, chunk, min(CHUNK, own + 1 - c * CHUNK));
        }
        const int place = run * SHARED + first;
        for (int at = threadIdx.x; at < GROUP * WIDTH; at += THREADS) {
            const int j = at / WIDTH, i = at % WIDTH;
            mixed[(place + j) * WIDTH + i] = shared.joined[j][i];
            if (i == 0) sums[2 * (place + j)] = shared.peak[j];
            if (i == 0) sums[2 * (place + j) + 1] = shared.total[j];
        }
        __syncthreads();
    }
    look_back(ahead, coding, g);
    if (threadIdx.x == 0) {
        __threadfence();
        shared.is_last = atomicAdd(&done[g], 1u) == runs - 1;
        if (shared.is_last) done[g] = 0;  // for the next token
        __threadfence();
    }
    __syncthreads();
    if (!shared.is_last) return;
    for (int first = 0; first < SHARED; first += GROUP)
        join(shared, coding, ahead, runs, sums + 2 * first, mixed + WIDTH * first,
             out + (g * SHARED + first) * WIDTH);
}
