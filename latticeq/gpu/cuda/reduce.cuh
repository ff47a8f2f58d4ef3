// Sums and maxima over the threads of a block, whose number is a multiple of 32. All threads get
// the result; `scratch` has room for one number a warp. The order is fixed.

template <typename Number> __device__ inline Number warp_sum(Number value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return value;
}

__device__ inline float warp_max(float value) {
    for (int step = 16; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    return value;
}

template <typename Number> __device__ inline Number block_sum(Number value, Number *scratch) {
    const int warps = blockDim.x / 32;
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    Number total = warp_sum(threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : Number(0));
    __syncthreads();
    return total;
}

__device__ inline float block_max(float value, float *scratch) {
    const int warps = blockDim.x / 32;
    value = warp_max(value);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    float most = scratch[0];
    for (int warp = 1; warp < warps; ++warp) most = fmaxf(most, scratch[warp]);
    __syncthreads();
    return most;
}
