// Runs CUDA C++ kernels on a CPU: defines what NVRTC provides without headers, and runs a block's threads as fibers.
//
// A block runs in one thread of the operating system. Each CUDA thread is a fiber with its own stack. A fiber yields
// only where CUDA makes a thread wait: at a barrier, or at an exchange within its warp. Between two barriers the warps
// run one after another in a random order; so do the lanes of a warp between two exchanges. A kernel that relies on an
// order CUDA does not guarantee therefore gives wrong results for some seeds. The following are errors that name the
// index of the thread: a barrier that some thread never reaches, a lane that waits for a lane that never arrives, and
// access to memory outside the kernel's arrays.

#pragma once
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <type_traits>
#include <utility>

// ---------------------------------------------------------------- Keywords

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __shared__ static __attribute__((used))  // the compiler must not assume an initial value
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define alignas(n) __attribute__((aligned(n)))  // CUDA also allows it after __shared__
#define __builtin_assume(x) ((void)0)
#define __CUDACC__ 1
#define __CUDA_ARCH__ 800
#define CUDA_ON_CPU 1  // the kernels then leave functions of inline PTX to this file

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define VECTOR_TYPES(T, name)                                                                        \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                               \
    struct name##3 { T x, y, z; };                                                                   \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };               \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                       \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                               \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR_TYPES(signed char, char)
VECTOR_TYPES(unsigned char, uchar)
VECTOR_TYPES(short, short)
VECTOR_TYPES(unsigned short, ushort)
VECTOR_TYPES(int, int)
VECTOR_TYPES(unsigned, uint)
VECTOR_TYPES(long long, longlong)
VECTOR_TYPES(unsigned long long, ulonglong)
VECTOR_TYPES(float, float)
VECTOR_TYPES(double, double)
#undef VECTOR_TYPES

constexpr int warpSize = 32;

// ---------------------------------------------------------------- Launches and threads

namespace cuda_on_cpu {

enum Status { FINE, STUCK, FAULT };

struct Range { char* start; long long bytes; };

struct Launch {  // mirrored in library.py
    unsigned grid[3], block[3];
    unsigned long long seed;
    double seconds;       // time limit
    void** arguments;
    Range dynamic;        // dynamic shared memory
    Range* shared;        // the kernel's arrays in shared memory
    long long n_shared;
    char* stacks;         // MOST_THREADS stacks
    unsigned at_block[3], at_thread[3];  // this and the following describe an error
    int signal, is_write;
    void* address;        // of the invalid access
    void* instruction;
    char text[512];       // the error message if STUCK
};

enum State : char { READY, EXCHANGING, AT_BARRIER, DONE };
enum Kind : char { SHUFFLE, VOTE, SYNC, MMA_BF16, MMA_TF32, LDMATRIX };

constexpr int MOST_THREADS = 1024;
constexpr long STACK = 256 << 10, STACK_GUARD = 4 << 10;  // bytes; the guard is at the lower end
constexpr unsigned short UNINITIALIZED = 0x7fff;  // a nan as bfloat16, half, float and double, and a large integer

struct Thread {
    void* stack_pointer;
    State state;
    Kind kind;                 // of the exchange the thread waits at
    bool predicate;            // passed to the barrier
    int line;                  // of the barrier or exchange
    unsigned mask;             // lanes of the exchange
    int source;                // lane to read the value from
    unsigned long long value;  // in: the thread's own value; out: the result
    uint3 index;
};

static Thread threads[MOST_THREADS] = {};
static int n_threads = 0, running = -1, barrier_count = 0;
static unsigned long long random_state = 1;
static Launch* launch = nullptr;
static void (*kernel)(void**) = nullptr;
static void* scheduler_stack_pointer = nullptr;
static sigjmp_buf escape;

inline unsigned random_below(unsigned n) {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (unsigned)(((random_state * 0x2545f4914f6cdd1dull) >> 32) * n >> 32);
}

}  // namespace cuda_on_cpu

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

namespace cuda_on_cpu {

// --- Switching between stacks

void body();

#if defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(
    .text
    .hidden cuda_on_cpu_switch
    .globl cuda_on_cpu_switch
cuda_on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

inline void prepare(Thread& thread, char* stack) {
    void** top = (void**)(stack + STACK);
    *--top = nullptr;       // no return address
    *--top = (void*)&body;
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the saved registers
    thread.stack_pointer = top;
}
inline void enter(Thread& thread) { cuda_on_cpu_switch(&scheduler_stack_pointer, thread.stack_pointer); }
inline void leave(Thread& thread) { cuda_on_cpu_switch(&thread.stack_pointer, scheduler_stack_pointer); }
#else
static ucontext_t scheduler_context, contexts[MOST_THREADS];

inline void prepare(Thread& thread, char* stack) {
    ucontext_t& context = contexts[&thread - threads];
    getcontext(&context);
    context.uc_stack.ss_sp = stack + STACK_GUARD;
    context.uc_stack.ss_size = STACK - STACK_GUARD;
    makecontext(&context, &body, 0);
}
inline void enter(Thread& thread) { swapcontext(&scheduler_context, &contexts[&thread - threads]); }
inline void leave(Thread& thread) { swapcontext(&contexts[&thread - threads], &scheduler_context); }
#endif

__attribute__((noinline)) void yield_thread(State state) {
    Thread& thread = threads[running];
    thread.state = state;
    leave(thread);
    asm volatile("" ::: "memory");  // other threads may have written to memory
}

__attribute__((noinline)) void body() {
    kernel(launch->arguments);
    yield_thread(DONE);
    abort();
}

inline void resume(int t) {
    running = t;
    threadIdx = threads[t].index;
    enter(threads[t]);
}

// --- Barriers and exchanges

inline bool barrier(bool predicate, int line) {
    threads[running].line = line;
    threads[running].predicate = predicate;
    yield_thread(AT_BARRIER);
    return predicate;
}

inline unsigned long long exchange(Kind kind, unsigned mask, unsigned long long value, int source, int line) {
    Thread& thread = threads[running];
    thread.kind = kind;
    thread.mask = mask;
    thread.value = value;
    thread.source = source;
    thread.line = line;
    yield_thread(EXCHANGING);
    return threads[running].value;
}

// --- The scheduler

inline Status stuck(int t) {
    const uint3& index = threads[t].index;
    launch->at_thread[0] = index.x, launch->at_thread[1] = index.y, launch->at_thread[2] = index.z;
    return STUCK;
}

inline const char* describe_thread(int t) {
    static char text[2][64];
    static int turn = 0;
    char* out = text[turn ^= 1];
    if (t >= n_threads) return "which the block does not have";
    switch (threads[t].state) {
        case DONE: return "which has returned";
        case AT_BARRIER: snprintf(out, 64, "which waits at the __syncthreads of line %d", threads[t].line); return out;
        default: snprintf(out, 64, "which waits at line %d, mask 0x%08x", threads[t].line, threads[t].mask); return out;
    }
}

inline bool same_exchange(const Thread& a, const Thread& b) {
    return b.state == EXCHANGING && a.mask == b.mask && a.kind == b.kind && a.line == b.line;
}

// --- Instructions of tensor cores. All lanes of a warp compute a product together; each has a fragment of its matrices.
// The indices are those of the PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type", "Matrix fragments
// for mma.m16n8k8" and "ldmatrix".

struct Fragments { const unsigned *a, *b; float* c; };  // of one lane
struct MatrixRow { unsigned short row[8]; unsigned* to; bool transposed; };  // the row of the lane's address, and result

inline float bf16_in(const unsigned* registers, int i) {  // number i of two in each register
    unsigned bits = (registers[i / 2] >> 16 * (i % 2)) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// TF32 has no infinities or nans of its own: it is a float whose last 13 bits the hardware ignores.
inline bool is_tf32(unsigned bits) { return (bits & 0x1fff) == 0 || (bits & 0x7fffffff) > 0x7f800000; }

inline float tf32_in(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

template <int K>  // 16 factors in bf16, or 8 in TF32
inline void multiply(const unsigned long long* given) {  // the lanes' Fragments
    float a[16][K], b[K][8], c[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Fragments& of = *(Fragments*)given[lane];
        int group = lane >> 2, in_group = lane % 4;
        if (K == 16) {
            for (int i = 0; i < 8; ++i) {
                bool first_rows = i < 2 || (4 <= i && i < 6);
                a[first_rows ? group : group + 8][in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)] = bf16_in(of.a, i);
            }
            for (int i = 0; i < 4; ++i) b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = bf16_in(of.b, i);
        } else {
            for (int i = 0; i < 4; ++i) {
                bool first_rows = i == 0 || i == 2;
                a[first_rows ? group : group + 8][in_group + (i >= 2 ? 4 : 0)] = tf32_in(of.a[i]);
            }
            for (int i = 0; i < 2; ++i) b[in_group + 4 * i][group] = tf32_in(of.b[i]);
        }
        for (int i = 0; i < 4; ++i) c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = of.c[i];
    }
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < K; ++k)
            for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < 32; ++lane) {
        const Fragments& of = *(Fragments*)given[lane];
        int group = lane >> 2, in_group = lane % 4;
        for (int i = 0; i < 4; ++i) of.c[i] = c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)];
    }
}

inline void load_matrices(const unsigned long long* given) {  // the lanes' MatrixRow
    for (int lane = 0; lane < 32; ++lane) {
        const MatrixRow& of = *(MatrixRow*)given[lane];
        for (int i = 0; i < 4; ++i) {
            unsigned pair[2];
            for (int j = 0; j < 2; ++j) {
                int row = lane / 4, column = lane % 4 * 2 + j;
                if (of.transposed) std::swap(row, column);
                pair[j] = ((MatrixRow*)given[8 * i + row])->row[column];
            }
            of.to[i] = pair[0] | pair[1] << 16;
        }
    }
}

// Completes an exchange between the lanes of `group`. A shuffle from a lane outside the group is an error.
inline Status complete(int first, unsigned group) {
    unsigned long long given[32] = {};
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
        if (!(group >> lane & 1)) continue;
        given[lane] = threads[first + lane].value;
        votes |= (unsigned)(given[lane] != 0) << lane;
    }
    Kind kind = threads[first + __builtin_ctz(group)].kind;
    if (kind == MMA_BF16 || kind == MMA_TF32 || kind == LDMATRIX) {
        if (group != 0xffffffff) {
            int absent = __builtin_ctz(~group);
            snprintf(launch->text, sizeof launch->text, "line %d: an instruction of a whole warp, without lane %d, %s",
                     threads[first + __builtin_ctz(group)].line, absent, describe_thread(first + absent));
            return stuck(first + __builtin_ctz(group));
        }
        if (kind == MMA_TF32) {
            for (int lane = 0; lane < 32; ++lane) {
                const Fragments& of = *(Fragments*)given[lane];
                bool rounded = is_tf32(of.b[0]) && is_tf32(of.b[1]);
                for (int i = 0; i < 4; ++i) rounded = rounded && is_tf32(of.a[i]);
                if (rounded) continue;
                snprintf(launch->text, sizeof launch->text,
                         "line %d: a factor of mma_tf32 is not rounded to TF32: a device would truncate it",
                         threads[first + lane].line);
                return stuck(first + lane);
            }
        }
        (kind == MMA_BF16 ? multiply<16> : kind == MMA_TF32 ? multiply<8> : load_matrices)(given);
    }
    for (int lane = 0; lane < 32; ++lane) {
        if (!(group >> lane & 1)) continue;
        Thread& thread = threads[first + lane];
        if (thread.kind == SHUFFLE && !(group >> thread.source & 1)) {
            snprintf(launch->text, sizeof launch->text, "line %d: shuffles from lane %d, %s", thread.line,
                     thread.source, describe_thread(first + thread.source));
            return stuck(first + lane);
        }
        thread.value = thread.kind == SHUFFLE ? given[thread.source] : votes;
        thread.state = READY;
    }
    return FINE;
}

// Runs one warp until each of its lanes is at a barrier or has returned.
inline Status run_warp(int first) {
    int n_lanes = n_threads - first < 32 ? n_threads - first : 32;
    for (;;) {
        int start = random_below(32), stride = 2 * random_below(16) + 1;  // an odd stride visits every lane
        for (int i = 0; i < 32; ++i) {
            int lane = (start + i * stride) & 31;
            if (lane < n_lanes && threads[first + lane].state == READY) resume(first + lane);
        }
        unsigned waiting = 0, present = 0;
        for (int lane = 0; lane < n_lanes; ++lane) {
            waiting |= (unsigned)(threads[first + lane].state == EXCHANGING) << lane;
            present |= (unsigned)(threads[first + lane].state != DONE) << lane;
        }
        if (!waiting) return FINE;
        bool progress = false;
        for (unsigned left = waiting; left; left &= left - 1) {
            int lane = __builtin_ctz(left);
            const Thread& thread = threads[first + lane];
            if (thread.state != EXCHANGING) continue;  // its exchange is already complete
            unsigned group = thread.mask & present;
            if (!(group >> lane & 1)) {
                snprintf(launch->text, sizeof launch->text, "line %d: mask 0x%08x lacks the lane itself, %d",
                         thread.line, thread.mask, lane);
                return stuck(first + lane);
            }
            bool all_here = true;
            for (unsigned g = group; g; g &= g - 1) all_here &= same_exchange(thread, threads[first + __builtin_ctz(g)]);
            if (!all_here) continue;
            if (complete(first, group) != FINE) return STUCK;
            progress = true;
        }
        if (progress) continue;
        int lane = __builtin_ctz(waiting), other = 0;
        const Thread& thread = threads[first + lane];
        for (unsigned g = thread.mask & present; g; g &= g - 1)
            if (!same_exchange(thread, threads[first + __builtin_ctz(g)])) other = __builtin_ctz(g);
        snprintf(launch->text, sizeof launch->text, "line %d: waits with mask 0x%08x for lane %d, %s", thread.line,
                 thread.mask, other, describe_thread(first + other));
        return stuck(first + lane);
    }
}

// Called when every thread is at a barrier or has returned. Opens the barrier if all threads are at the same one.
inline Status open_barrier(bool* done) {
    int waits = -1, returned = -1;
    barrier_count = 0;
    for (int t = 0; t < n_threads; ++t) (threads[t].state == DONE ? returned : waits) = t;
    *done = waits < 0;
    if (*done) return FINE;
    for (int t = 0; t < n_threads; ++t) {
        if (returned < 0 && threads[t].line == threads[waits].line) continue;
        int other = returned < 0 ? t : returned;
        const uint3& o = threads[other].index;
        snprintf(launch->text, sizeof launch->text, "line %d: waits at __syncthreads for thread (%u, %u, %u), %s",
                 threads[waits].line, o.x, o.y, o.z, describe_thread(other));
        return stuck(waits);
    }
    for (int t = 0; t < n_threads; ++t) {
        barrier_count += threads[t].predicate;
        threads[t].state = READY;
    }
    return FINE;
}

inline void fill_uninitialized(const Range& range) {
    for (long long i = 0; i + 1 < range.bytes; i += 2) memcpy(range.start + i, &UNINITIALIZED, 2);
}

inline void shuffle_order(int* order, int n) {
    for (int i = 0; i < n; ++i) {
        int j = random_below(i + 1);
        order[i] = order[j];
        order[j] = i;
    }
}

inline Status run_block() {
    for (int i = 0; i < launch->n_shared; ++i) fill_uninitialized(launch->shared[i]);
    fill_uninitialized(launch->dynamic);
    for (int t = 0; t < n_threads; ++t) {
        unsigned x = t % blockDim.x, y = t / blockDim.x % blockDim.y, z = t / blockDim.x / blockDim.y;
        threads[t].index = {x, y, z};
        threads[t].state = READY;
        prepare(threads[t], launch->stacks + t * STACK);
    }
    int order[MOST_THREADS / 32], n_warps = (n_threads + 31) / 32;
    for (bool done = false; !done;) {
        shuffle_order(order, n_warps);
        for (int w = 0; w < n_warps; ++w)
            if (run_warp(order[w] * 32) != FINE) return STUCK;
        if (open_barrier(&done) != FINE) return STUCK;
    }
    return FINE;
}

inline Status run_grid() {
    long long n_blocks = (long long)gridDim.x * gridDim.y * gridDim.z;
    long long start = random_below((unsigned)n_blocks), step = random_below(2) ? 1 : n_blocks - 1;
    for (long long i = 0, b = start; i < n_blocks; ++i, b = (b + step) % n_blocks) {
        blockIdx = {(unsigned)(b % gridDim.x), (unsigned)(b / gridDim.x % gridDim.y),
                    (unsigned)(b / gridDim.x / gridDim.y)};
        launch->at_block[0] = blockIdx.x, launch->at_block[1] = blockIdx.y, launch->at_block[2] = blockIdx.z;
        if (run_block() != FINE) return STUCK;
    }
    return FINE;
}

// --- Faults

inline void on_fault(int signal, siginfo_t* info, void* context) {
    const mcontext_t& machine = ((ucontext_t*)context)->uc_mcontext;
    launch->signal = signal;
    launch->address = info->si_addr;
#if defined(__x86_64__)
    launch->is_write = (machine.gregs[REG_ERR] & 2) != 0;
    launch->instruction = (void*)machine.gregs[REG_RIP];
#elif defined(__aarch64__)
    launch->is_write = -1;
    launch->instruction = (void*)machine.pc;
#endif
    siglongjmp(escape, 1);
}

constexpr int FAULTS[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGVTALRM};  // SIGVTALRM: time limit
constexpr int N_FAULTS = sizeof FAULTS / sizeof *FAULTS;

struct CatchFaults {
    struct sigaction before[N_FAULTS];
    stack_t stack_before;
    CatchFaults() {
        static char* stack = (char*)malloc(64 << 10);
        stack_t ours = {};
        ours.ss_sp = stack;
        ours.ss_size = 64 << 10;
        sigaltstack(&ours, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int i = 0; i < N_FAULTS; ++i) sigaction(FAULTS[i], &action, &before[i]);
    }
    ~CatchFaults() {
        for (int i = 0; i < N_FAULTS; ++i) sigaction(FAULTS[i], &before[i], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};

// Sends SIGVTALRM to this thread after so many seconds of CPU time.
struct TimeLimit {
    timer_t timer;
    TimeLimit(double seconds) {
        sigevent event = {};
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = SIGVTALRM;
        event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
        timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
        itimerspec limit = {};
        limit.it_value.tv_sec = (time_t)seconds;
        limit.it_value.tv_nsec = (long)((seconds - (double)limit.it_value.tv_sec) * 1e9);
        timer_settime(timer, 0, &limit, nullptr);
    }
    ~TimeLimit() { timer_delete(timer); }
};

// CuPy compiles with -ftz=true: subnormal inputs and results are flushed to zero.
struct FlushSubnormals {
#if defined(__x86_64__)
    unsigned before = __builtin_ia32_stmxcsr();
    FlushSubnormals() { __builtin_ia32_ldmxcsr(before | 0x8040); }
    ~FlushSubnormals() { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
    unsigned long before = __builtin_aarch64_get_fpcr();
    FlushSubnormals() { __builtin_aarch64_set_fpcr(before | 1ul << 24); }
    ~FlushSubnormals() { __builtin_aarch64_set_fpcr(before); }
#else
#error "standin: subnormal numbers cannot be flushed on this processor"
#endif
};

inline Status run(Launch* asked, void (*function)(void**)) {
    launch = asked;
    kernel = function;
    random_state = (asked->seed + 1) * 0x9e3779b97f4a7c15ull | 1;
    gridDim = dim3(asked->grid[0], asked->grid[1], asked->grid[2]);
    blockDim = dim3(asked->block[0], asked->block[1], asked->block[2]);
    n_threads = blockDim.x * blockDim.y * blockDim.z;
    CatchFaults catch_faults;
    TimeLimit time_limit(launch->seconds);
    FlushSubnormals flush;
    if (sigsetjmp(escape, 1)) {
        stuck(running);
        return FAULT;
    }
    return run_grid();
}

// --- Table of kernels by name

template <class T>
constexpr const char* pretty() { return __PRETTY_FUNCTION__; }  // "... [with T = const float*]"

template <class... P>
struct Signature {
    static const char* const* names() {
        static const char* const list[] = {pretty<P>()..., nullptr};
        return list;
    }
};

template <auto F>
struct Kernel;
template <class... P, void (*F)(P...)>
struct Kernel<F> {
    template <int... I>
    static void call_with(void** a, std::integer_sequence<int, I...>) { F(*(P*)a[I]...); }
    static void call(void** a) { call_with(a, std::make_integer_sequence<int, (int)sizeof...(P)>()); }
    static const char* const* parameters() { return Signature<P...>::names(); }
};

struct Entry {
    const char* name;
    void* address;
    void (*call)(void**);
    const char* const* (*parameters)();
};
#define CUDA_ON_CPU_KERNEL(name, ...) \
    { name, (void*)&__VA_ARGS__, &cuda_on_cpu::Kernel<&__VA_ARGS__>::call, &cuda_on_cpu::Kernel<&__VA_ARGS__>::parameters }

// `extern __shared__ T name[];` is rewritten to `T* name = cuda_on_cpu::dynamic_shared();`
struct DynamicShared {
    template <class T>
    operator T*() const { return (T*)launch->dynamic.start; }
};
inline DynamicShared dynamic_shared() { return {}; }

template <class T>
unsigned long long to_bits(T value) {
    static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles take 4 or 8 bytes");
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T>
T from_bits(unsigned long long bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class To, class From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline int lane_id() { return running & 31; }

}  // namespace cuda_on_cpu

// ---------------------------------------------------------------- Synchronization and warp functions

inline void __syncthreads(int line = __builtin_LINE()) { cuda_on_cpu::barrier(false, line); }
inline int __syncthreads_count(int p, int line = __builtin_LINE()) {
    cuda_on_cpu::barrier(p, line);
    return cuda_on_cpu::barrier_count;
}
inline int __syncthreads_or(int p, int line = __builtin_LINE()) { return __syncthreads_count(p, line) > 0; }
inline int __syncthreads_and(int p, int line = __builtin_LINE()) {
    return __syncthreads_count(p, line) == cuda_on_cpu::n_threads;
}
inline void __syncwarp(unsigned mask = 0xffffffff, int line = __builtin_LINE()) {
    cuda_on_cpu::exchange(cuda_on_cpu::SYNC, mask, 0, 0, line);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

inline unsigned __ballot_sync(unsigned mask, int p, int line = __builtin_LINE()) {
    return (unsigned)cuda_on_cpu::exchange(cuda_on_cpu::VOTE, mask, p != 0, 0, line);
}
inline int __any_sync(unsigned mask, int p, int line = __builtin_LINE()) { return __ballot_sync(mask, p, line) != 0; }
inline int __all_sync(unsigned mask, int p, int line = __builtin_LINE()) { return __ballot_sync(mask, !p, line) == 0; }

namespace cuda_on_cpu {
template <class T>
T shuffle(unsigned mask, T value, int source, int line) {
    return from_bits<T>(exchange(SHUFFLE, mask, to_bits(value), source, line));
}
}  // namespace cuda_on_cpu

// `width` splits a warp into groups. A lane whose source is outside its group gets its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    int lane = cuda_on_cpu::lane_id();
    return cuda_on_cpu::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, int line = __builtin_LINE()) {
    int lane = cuda_on_cpu::lane_id(), source = lane ^ lane_mask;
    return cuda_on_cpu::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    int lane = cuda_on_cpu::lane_id();
    bool beyond = (lane & (width - 1)) + (int)delta >= width;
    return cuda_on_cpu::shuffle(mask, value, beyond ? lane : lane + (int)delta, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    int lane = cuda_on_cpu::lane_id();
    bool beyond = (lane & (width - 1)) < (int)delta;
    return cuda_on_cpu::shuffle(mask, value, beyond ? lane : lane - (int)delta, line);
}

// ---------------------------------------------------------------- Tensor cores

inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int line = __builtin_LINE()) {
    unsigned b[2] = {b0, b1};
    cuda_on_cpu::Fragments of = {a, b, c};
    cuda_on_cpu::exchange(cuda_on_cpu::MMA_BF16, 0xffffffff, (unsigned long long)&of, 0, line);
}
inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int line = __builtin_LINE()) {
    unsigned b[2] = {b0, b1};
    cuda_on_cpu::Fragments of = {a, b, c};
    cuda_on_cpu::exchange(cuda_on_cpu::MMA_TF32, 0xffffffff, (unsigned long long)&of, 0, line);
}

namespace cuda_on_cpu {
struct alignas(16) SixteenBytes { unsigned short at[8]; };

inline void load_matrix_row(unsigned (&to)[4], const void* row, bool transposed, int line) {
    SixteenBytes loaded = *(const SixteenBytes*)row;  // checks the alignment
    MatrixRow of = {};
    memcpy(of.row, &loaded, 16);
    of.to = to, of.transposed = transposed;
    exchange(LDMATRIX, 0xffffffff, (unsigned long long)&of, 0, line);
}
}  // namespace cuda_on_cpu

inline void ldmatrix(unsigned (&to)[4], const void* row, int line = __builtin_LINE()) {
    cuda_on_cpu::load_matrix_row(to, row, false, line);
}
inline void ldmatrix_trans(unsigned (&to)[4], const void* row, int line = __builtin_LINE()) {
    cuda_on_cpu::load_matrix_row(to, row, true, line);
}

inline unsigned cvt_bf16x2(float x, float y) {  // to nearest, ties to even; a nan becomes 0x7fff
    unsigned pair = 0;
    for (int i = 0; i < 2; ++i) {
        float value = i ? y : x;
        unsigned bits = cuda_on_cpu::bit_cast<unsigned>(value);
        bits = value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        pair |= bits << 16 * i;
    }
    return pair;
}

inline unsigned cvt_tf32(float x) {  // to nearest, ties away from zero
    return x != x ? 0x7fffffff : (cuda_on_cpu::bit_cast<unsigned>(x) + 0x1000) & ~0x1fffu;
}

// ---------------------------------------------------------------- Memory

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcg(T* p, T value) { *p = value; }
template <class T> void __stcs(T* p, T value) { *p = value; }
template <class T> void __stwt(T* p, T value) { *p = value; }

// Atomic, since no other thread runs at the same time. The order of additions is random, as is the order of threads.
#define ATOMIC(name, T, ...)                  \
    inline T name(T* address, T value) {      \
        T old = *address;                     \
        *address = (__VA_ARGS__);             \
        return old;                           \
    }
#define ATOMIC_INTEGERS(name, ...)            \
    ATOMIC(name, int, __VA_ARGS__)            \
    ATOMIC(name, unsigned, __VA_ARGS__)       \
    ATOMIC(name, unsigned long long, __VA_ARGS__)
ATOMIC_INTEGERS(atomicAdd, old + value)
ATOMIC(atomicAdd, float, old + value)
ATOMIC(atomicAdd, double, old + value)
ATOMIC(atomicSub, int, old - value)
ATOMIC(atomicSub, unsigned, old - value)
ATOMIC_INTEGERS(atomicMax, old > value ? old : value)
ATOMIC_INTEGERS(atomicMin, old < value ? old : value)
ATOMIC_INTEGERS(atomicAnd, old & value)
ATOMIC_INTEGERS(atomicOr, old | value)
ATOMIC_INTEGERS(atomicXor, old ^ value)
ATOMIC_INTEGERS(atomicExch, value)
ATOMIC(atomicExch, float, value)
ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
#undef ATOMIC_INTEGERS
#undef ATOMIC
#define COMPARE_AND_SWAP(T)                              \
    inline T atomicCAS(T* address, T expected, T value) { \
        T old = *address;                                \
        if (old == expected) *address = value;           \
        return old;                                      \
    }
COMPARE_AND_SWAP(int)
COMPARE_AND_SWAP(unsigned)
COMPARE_AND_SWAP(unsigned long long)
#undef COMPARE_AND_SWAP

// ---------------------------------------------------------------- Arithmetic

#define MIN_MAX(T)                                         \
    inline T max(T a, T b) { return a > b ? a : b; }       \
    inline T min(T a, T b) { return a < b ? a : b; }
MIN_MAX(int)
MIN_MAX(unsigned)
MIN_MAX(long)
MIN_MAX(unsigned long)
MIN_MAX(long long)
MIN_MAX(unsigned long long)
#undef MIN_MAX
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }  // nan becomes 0
inline float fdividef(float x, float y) { return x / y; }
inline float sinpif(float x) { return sinf(3.14159265358979323846f * x); }
inline float cospif(float x) { return cosf(3.14159265358979323846f * x); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
inline void __sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }

inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_on_cpu::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bit_cast<float>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_cpu::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_cpu::bit_cast<double>(x); }

namespace cuda_on_cpu {
// Out-of-range conversions saturate on a device and are undefined in C++; nan becomes 0.
template <class T>
T saturated(double x) {
    constexpr T low = std::is_signed<T>::value ? (T)((T)1 << (8 * sizeof(T) - 1)) : (T)0, high = ~low;
    if (x != x) return 0;
    return x <= (double)low ? low : x >= (double)high ? high : (T)x;
}
}  // namespace cuda_on_cpu
#define FROM_FLOAT(name, T)                                                                     \
    inline T __float2##name##_rn(float x) { return cuda_on_cpu::saturated<T>(nearbyint(x)); }   \
    inline T __float2##name##_rz(float x) { return cuda_on_cpu::saturated<T>(trunc(x)); }       \
    inline T __float2##name##_rd(float x) { return cuda_on_cpu::saturated<T>(floor(x)); }       \
    inline T __float2##name##_ru(float x) { return cuda_on_cpu::saturated<T>(ceil(x)); }        \
    inline float __##name##2float_rn(T x) { return (float)x; }
FROM_FLOAT(int, int)
FROM_FLOAT(uint, unsigned)
FROM_FLOAT(ll, long long)
FROM_FLOAT(ull, unsigned long long)
#undef FROM_FLOAT
inline float __double2float_rn(double x) { return (float)x; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

// Kernels compiled by NVRTC do not have these names, which math.h defines here.
#undef INFINITY
#undef NAN
#undef M_PI
#undef M_SQRT2
#pragma GCC poison INFINITY NAN M_PI M_SQRT2 uint8_t uint16_t uint32_t uint64_t int8_t int16_t int32_t int64_t
