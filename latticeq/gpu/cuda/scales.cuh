// A block of eight at one of the scales of a code, by one thread: scales are tried side by side
// where there are threads to spare. CELL is set by who includes this.

#include "floats.cuh"
#include "halves.cuh"
#include "lattice.cuh"

// Set point to the codeword of a scale and return what it costs, infinity if there is none: the
// scale with the least cost, the first of equals, is the one to take, as `closest_codeword` does.
__device__ inline float cost_at_scale(const float (&x)[8], float beta, float inverse, int q,
                                      bool is_last, bool first_fit, float (&point)[8]) {
    float y[8], error[8];
    EACH y[i] = times(x[i], inverse);
    const int moves = is_last || (q <= FEW && !first_fit) ? ENDLESS : first_fit ? 0 : MOVES;
    if (nearest(y, q, moves, point)) return infinity();
    if (first_fit) return is_last ? 0.5f : 0.0f;
    EACH error[i] = minus(x[i], times(point[i], beta));
    const float cost = squares(error);
    return cost < infinity() ? cost : infinity();
}

// Return which of `lanes` neighbouring threads, a power of two, has the least cost, the first of
// equals; `cost` becomes that.
__device__ inline int cheapest(float &cost, int mine, int lanes) {
    int best = mine;
    for (int step = lanes / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(~0u, cost, step);
        const int theirs = __shfl_xor_sync(~0u, best, step);
        if (other < cost || (other == cost && theirs < best)) cost = other, best = theirs;
    }
    return best;
}
