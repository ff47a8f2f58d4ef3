// Threads of a block that wait for one another, on a CPU: each has a stack of its own, and runs until
// it waits. `run_block` runs a kernel by as many as blockDim.x says, and tells whether all came to
// their end.
#include <functional>
#include <ucontext.h>
#include <vector>

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    int block_waits = 0, warp_waits = 0;
    bool ended = false;
};
static std::vector<Thread> threads;
static ucontext_t caller;
static std::function<void()> body;

// Wait until all in [first, first + count) that have not ended waited as often.
static inline void wait_for(int Thread::*waits, int first, int count) {
    Thread &mine = threads[threadIdx.x];
    const int often = ++(mine.*waits);
    const int last = min(first + count, (int)threads.size());
    for (int other = first; other < last; other++)
        while (!threads[other].ended && threads[other].*waits < often)
            swapcontext(&mine.context, &caller);
}
static inline void __syncthreads() { wait_for(&Thread::block_waits, 0, blockDim.x); }
static inline void __syncwarp() { wait_for(&Thread::warp_waits, threadIdx.x / 32 * 32, 32); }

template <class Number> static inline Number __shfl_xor_sync(u32, Number x, int step) {
    static Number shown[1024];
    shown[threadIdx.x] = x;
    __syncwarp();
    const Number found = shown[threadIdx.x ^ step];
    __syncwarp();
    return found;
}

static void enter() {
    body();
    threads[threadIdx.x].ended = true;
}

template <class Kernel> static bool run_block(Kernel kernel) {
    body = kernel;
    threads = std::vector<Thread>(blockDim.x);
    for (Thread &thread : threads) {
        thread.stack.resize(65536);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = &caller;
        makecontext(&thread.context, enter, 0);
    }
    for (long before = -1, steps = 0; before < steps;) {  // ends when a round leads nowhere
        before = steps, steps = 0;
        for (int i = 0; i < blockDim.x; i++) {
            threadIdx.x = i;
            if (!threads[i].ended) swapcontext(&caller, &threads[i].context);
        }
        for (Thread &t : threads) steps += t.block_waits + t.warp_waits + t.ended;
    }
    return std::all_of(threads.begin(), threads.end(), [](Thread &t) { return t.ended; });
}
