// Of matrices in float64: the sums of squares of their rows, and the last step of a block factor.

#include "reduce.cuh"

// The sum of squares of each row of x (rows, n), of float32 or float64, in float64.
extern "C" __global__ void __launch_bounds__(256) row_energy(
    const void* x, int is_single, int n, double* energy
) {
    __shared__ double scratch[32];
    const size_t first = (size_t)blockIdx.x * n;
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const double value =
            is_single ? (double)((const float*)x)[first + i] : ((const double*)x)[first + i];
        sum = fma(value, value, sum);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) energy[blockIdx.x] = sum;
}

// L[:, c] = C[:, c] C_cc^-1 below the diagonal blocks of a Cholesky factor C (n, n), in place. The
// diagonal blocks stay: nothing reads them. A thread has one row of one block of columns.
extern "C" __global__ void __launch_bounds__(128) unit_lower(double* c, int n) {
    const int at = 8 * blockIdx.y, row = at + 8 + blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    double* mine = c + (size_t)row * n + at;
    double x[8];
#pragma unroll
    for (int j = 7; j >= 0; j--) {
        double rest = mine[j];
#pragma unroll
        for (int i = j + 1; i < 8; i++) rest -= x[i] * c[(size_t)(at + i) * n + at + j];
        x[j] = rest / c[(size_t)(at + j) * n + at + j];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) mine[i] = x[i];
}
