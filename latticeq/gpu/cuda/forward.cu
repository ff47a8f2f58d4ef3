// The element-wise parts of the forward pass. Activations are float32, rows of one token each.
//
// Sums of squares run in float64, as on the CPU: those of a few massive entries must not hide the
// others. Products and sums of rotary positions are rounded one by one, so that the floats that a
// cache codes are the same on both.

#include "floats.cuh"
#include "halves.cuh"
#include "reduce.cuh"

// Look up rows of an int8 table, sixteen rows interleaved: byte 4 of column c of row r lies at
// ((r / 16 * N / 4 + c / 4) * 16 + r % 16) * 4 + c % 4, raised by 128.
extern "C" __global__ void embed_int8(const int *tokens, const unsigned char *bytes,
                                      const float *row_scale, int columns, float *out) {
    start_next_grid();
    wait_for_grids();
    const int row = tokens[blockIdx.x], lane = row % 16;
    const unsigned char *group = bytes + (long long)(row / 16) * columns * 16;
    const float scale = row_scale[row];
    float *mine = out + (long long)blockIdx.x * columns;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
        const int raised = group[((c / 4) * 16 + lane) * 4 + c % 4];
        mine[c] = (float)(raised - 128) * scale;
    }
}

extern "C" __global__ void embed_float32(const int *tokens, const float *table, int columns,
                                         float *out) {
    start_next_grid();
    wait_for_grids();
    const float *row = table + (long long)tokens[blockIdx.x] * columns;
    float *mine = out + (long long)blockIdx.x * columns;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) mine[c] = row[c];
}

// Multiply one token by a matrix of floats, (rows, columns): a warp a row.
extern "C" __global__ void multiply_floats(const float *matrix, const float *x, const float *bias,
                                           int rows, int columns, float *out) {
    start_next_grid();
    wait_for_grids();
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    const float *mine = matrix + (long long)row * columns;
    float sum = 0.0f;
    for (int c = threadIdx.x % 32; c < columns; c += 32) sum += mine[c] * x[c];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) out[row] = bias ? sum + bias[row] : sum;
}

// Set stream = x + added (where there is one; it may be x) and out = weight * stream /
// sqrt(mean(stream * stream) + epsilon).
extern "C" __global__ void add_norm(const float *x, const float *added, const float *weight,
                                    double epsilon, int columns, float *stream, float *out) {
    __shared__ double sums[32];
    start_next_grid();
    wait_for_grids();
    const float *row = x + (long long)blockIdx.x * columns;
    float *kept = stream + (long long)blockIdx.x * columns;
    const float *more = added + (long long)blockIdx.x * columns;
    float *normed = out + (long long)blockIdx.x * columns;
    double squares = 0;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
        float value = row[c];
        if (added) kept[c] = value = value + more[c];
        squares += (double)value * (double)value;
    }
    squares = block_sum(squares, sums);
    const float scale = (float)rsqrt(squares / columns + epsilon);
    if (added) row = kept;
    for (int c = threadIdx.x; c < columns; c += blockDim.x)
        normed[c] = __fmul_rn(weight[c], __fmul_rn(row[c], scale));
}

// Turn each pair (i, i + K/2) of every head by its position's angle: x is (T, heads, K) with so
// many numbers from one token to the next; cosine and sine are (positions, K/2).
extern "C" __global__ void rotate(float *x, long long stride, int width, const float *cosine,
                                  const float *sine, int start) {
    const int t = blockIdx.x, half = width / 2;
    float *head = x + t * stride + (long long)blockIdx.y * width;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        const long long at = (long long)(start + t) * half + i;
        const float c = cosine[at], s = sine[at], a = head[i], b = head[half + i];
        head[i] = __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s));
        head[half + i] = __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s));
    }
}

// Set out = silu(gate) * up: `both` is (T, 2, width), gate before up; out (T, width).
extern "C" __global__ void swiglu(const float *both, int width, float *out) {
    const int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const float *row = both + 2LL * blockIdx.x * width;
    const float gate = row[i];
    out[(long long)blockIdx.x * width + i] = gate / (expf(-gate) + 1.0f) * row[width + i];
}

// Make rows of scores weights: softmax(row) over what is seen, zero behind it. Row r is of the query
// at position start + r / shared.
extern "C" __global__ void softmax_rows(float *scores, int columns, int start, int shared) {
    __shared__ float most[32], sums[32];
    const long long row = blockIdx.x + (long long)blockIdx.y * gridDim.x;
    float *mine = scores + row * columns;
    const int seen = min(columns, start + (int)blockIdx.x / shared + 1);
    float peak = -infinity();
    for (int s = threadIdx.x; s < seen; s += blockDim.x) peak = fmaxf(peak, mine[s]);
    peak = block_max(peak, most);
    float sum = 0;
    for (int s = threadIdx.x; s < seen; s += blockDim.x) {
        const float weight = expf(mine[s] - peak);
        mine[s] = weight;
        sum += weight;
    }
    sum = block_sum(sum, sums);
    for (int s = threadIdx.x; s < columns; s += blockDim.x) mine[s] = s < seen ? mine[s] / sum : 0.0f;
}

// Set out[t] = log(sum(exp(logits[t]))) - logits[t, targets[t]].
extern "C" __global__ void nll_rows(const float *logits, const int *targets, int columns,
                                    double *out) {
    __shared__ float most[32];
    __shared__ double sums[32];
    const float *mine = logits + (long long)blockIdx.x * columns;
    float peak = -infinity();
    bool finite = true;
    for (int v = threadIdx.x; v < columns; v += blockDim.x) {
        peak = fmaxf(peak, mine[v]);
        finite &= isfinite(mine[v]);
    }
    peak = block_max(peak, most);
    double sum = finite ? 0.0 : (double)not_a_number();  // a maximum alone would lose what is not a number
    for (int v = threadIdx.x; v < columns; v += blockDim.x) sum += (double)expf(mine[v] - peak);
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) out[blockIdx.x] = log(sum) - (double)(mine[targets[blockIdx.x]] - peak);
}
