// The kernels of cupy_kernels.py, each backward below its forward. The functions of the same names in formulas.py
// define what they compute.
//
// T is float or bf16; all sums are accumulated in float. An array is contiguous unless the kernel takes its strides,
// which count elements. Comments say which pointers may be null. Scalar parameters are long long and double, the types
// that CuPy passes for Python numbers. Threads add up in a fixed order, without atomics, so results are deterministic.

// --- Numbers

struct bf16 {  // the upper half of a float
    unsigned short bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

template <typename T>
__device__ T rounded(float x);
template <>
__device__ inline float rounded<float>(float x) {
    return x;
}
template <>
__device__ inline bf16 rounded<bf16>(float x) {  // to nearest, ties to even
    unsigned bits = __float_as_uint(x);
    bits = x != x ? 0x7fc00000 : bits + 0x7fff + (bits >> 16 & 1);  // a nan stays one
    return bf16{static_cast<unsigned short>(bits >> 16)};
}

__device__ inline float infinity() { return __uint_as_float(0x7f800000); }
constexpr float LOWEST = -3.402823466e+38f;  // the smallest finite float

// --- Memory

template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {  // N elements in one access, of 16 bytes at most
    T at[N];
};

template <int N, typename T>
__device__ inline void load(float (&to)[N], const T* from) {
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = to_float(pack.at[i]);
}

template <int N, typename T>
__device__ inline void store(T* to, const float (&from)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.at[i] = rounded<T>(from[i]);
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

__device__ inline bool aligned(const void* p, int bytes) {
    return reinterpret_cast<unsigned long long>(p) % bytes == 0;
}

// --- Sums

constexpr unsigned ALL_LANES = 0xffffffff;
constexpr int WARPS = 8;  // per block of the row and column kernels

// Reductions over groups of LANES neighbouring lanes; each lane gets the result of its group.
template <int LANES = 32>
__device__ inline float lane_sum(float x) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

template <int LANES = 32>
__device__ inline float lane_max(float x) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The sum over a block of full warps; thread 0 gets the result. of_warp is in shared memory.
__device__ inline float block_sum(float (&of_warp)[32], float x) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    x = lane_sum(x);
    __syncthreads();  // other threads may still read of_warp for an earlier sum
    if (lane == 0) of_warp[warp] = x;
    __syncthreads();
    return lane_sum(lane < blockDim.x / 32 ? of_warp[lane] : 0.0f);
}

// Column sums take two stages. First each block sums its 32 N columns over its rows: lane l of each warp has N
// neighbouring columns, and each warp every WARPS-th row. Then `column_sums` adds the blocks' partial sums.

// The end of the first stage: adds the `sums` of all warps and writes them to `to`, a row of length c. of_warp is in
// shared memory.
template <int N>
__device__ inline void store_sums(float (&of_warp)[WARPS][32 * N], float* to, const float (&sums)[N], long long c) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads();  // other threads may still read of_warp for earlier sums
#pragma unroll
    for (int i = 0; i < N; i++) of_warp[warp][lane * N + i] = sums[i];
    __syncthreads();
    const long long column = blockIdx.x * 32LL * N + threadIdx.x;
    if (threadIdx.x >= 32 * N || column >= c) return;
    float total = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) total += of_warp[i][threadIdx.x];
    to[column] = total;
}

// The second stage: partial (sets, m, c) -> (c,) for each of one or two sets; a null output skips its set. A block of
// 32 warps has 32 columns of one set.
template <typename T>
__global__ void column_sums(const float* partial, T* out_of_first, T* out_of_second, long long m, long long c) {
    __shared__ float of_warp[32][33];  // 33, so that reading a column has no bank conflicts
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long long first = blockIdx.x * 32LL, column = first + lane;
    T* out = blockIdx.y == 0 ? out_of_first : out_of_second;
    if (!out) return;
    partial += blockIdx.y * m * c;
    double sum = 0;  // there may be thousands of partial sums
    if (column < c) {
#pragma unroll 4
        for (long long row = warp; row < m; row += 32) sum += partial[row * c + column];
    }
    of_warp[warp][lane] = static_cast<float>(sum);
    __syncthreads();
    const float total = lane_sum(of_warp[lane][warp]);
    if (lane == 0 && first + warp < c) out[first + warp] = rounded<T>(total);
}

// The first stage for x (n, c) itself: the partial sums (gridDim.y, c), each over `chunk` rows.
template <typename T, int V>
__global__ void __launch_bounds__(32 * WARPS)
    row_sums(const T* __restrict__ x, float* __restrict__ partial, long long n, long long c, long long chunk) {
    __shared__ float of_warp[WARPS][32 * V];
    const long long pack = blockIdx.x * 32LL + threadIdx.x % 32, start = blockIdx.y * chunk;
    const long long end = pack * V >= c ? 0 : start + chunk < n ? start + chunk : n;  // all reach store_sums
    float sums[V] = {};
#pragma unroll 2
    for (long long row = start + threadIdx.x / 32; row < end; row += WARPS) {
        float v[V];
        load(v, x + (row * (c / V) + pack) * V);
#pragma unroll
        for (int i = 0; i < V; i++) sums[i] += v[i];
    }
    store_sums(of_warp, partial + blockIdx.y * c, sums, c);
}

// --- Sums and products of the elements of two arrays, and copies

// out (n, c) = a (n, c) + b, a b, or a. b is (n, c), or (c,) if b_step, the distance of its rows, is 0; for COPY it is
// null. out_step is the distance of the rows of out, which may be a. Each thread has V elements of `ROWS_OF_A_THREAD`
// rows, so that it divides once.
enum Operation { ADD, MULTIPLY, COPY };
constexpr int ROWS_OF_A_THREAD = 4;

template <typename T, int V, Operation KIND>
__global__ void elementwise(const T* a, const T* b, T* out, long long n, long long c, long long b_step,
                            long long out_step) {
    const long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x, packs = c / V;
    const long long first = i / packs * ROWS_OF_A_THREAD, column = i % packs * V;
#pragma unroll
    for (int r = 0; r < ROWS_OF_A_THREAD; r++) {
        const long long row = first + r;
        if (row >= n) return;
        float x[V], y[V];
        load(x, a + row * c + column);
        if (KIND != COPY) load(y, b + row * b_step + column);
#pragma unroll
        for (int j = 0; j < V; j++) {
            if (KIND == ADD) x[j] += y[j];
            if (KIND == MULTIPLY) x[j] *= y[j];
        }
        store(out + row * out_step + column, x);
    }
}

// --- Activations. GELU: Hendrycks & Gimpel, arXiv:1606.08415, section 2, with Phi the normal distribution function or
// its tanh approximation.

enum Activation { GELU, GELU_TANH, LEAKY_RELU };
constexpr float GELU_C = 0.7978845608f;  // sqrt(2 / pi)

template <Activation KIND>
__device__ inline float normal_cdf(float z) {
    return 0.5f + 0.5f * (KIND == GELU ? erff(0.7071067812f * z) : tanhf(GELU_C * (z + 0.044715f * z * z * z)));
}

// y times the slope of leaky ReLU at z; alpha = 0 is ReLU, whose slope at nan is 1.
__device__ inline float leaky(float z, float y, float alpha) {
    return z > 0 || (alpha == 0 && z != z) ? y : alpha == 0 ? 0.0f : alpha * y;
}

// Phi + z Phi'. Phi' is the normal density, or for the approximation 2 Phi (1 - Phi) GELU_C (1 + 3 * 0.044715 z^2).
template <Activation KIND>
__device__ inline float gelu_slope(float z) {
    const float p = normal_cdf<KIND>(z);
    if (KIND == GELU) return p + z * 0.3989422804f * expf(-0.5f * z * z);
    const float bend = z * p * (1.0f - p);  // 0 for large |z|, where z^2 may overflow
    return bend == 0 ? p : p + bend * (2.0f * GELU_C + 6.0f * GELU_C * 0.044715f * z * z);
}

// out = act(a), or g act'(a) if g is not null. Each of the first n threads has V elements.
template <typename T, int V, Activation KIND>
__global__ void activation(const T* __restrict__ a, const T* __restrict__ g, T* __restrict__ out, long long n,
                           double alpha) {
    const long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (i >= n) return;
    float z[V], y[V];
    load(z, a + i * V);
    if (g) load(y, g + i * V);
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (KIND == LEAKY_RELU) z[j] = leaky(z[j], g ? y[j] : z[j], alpha);
        else z[j] = g ? y[j] * gelu_slope<KIND>(z[j]) : z[j] * normal_cdf<KIND>(z[j]);
    }
    store(out + i * V, z);
}

// --- Layer norm: y = (x - mean) rstd gamma + beta for each row of (n, c), one warp per row. gamma, beta (c,) or null.
// Ba, Kiros & Hinton, arXiv:1607.06450, equation 4.

template <typename T, int V>
__global__ void __launch_bounds__(32 * WARPS, 4)
    layer_norm(const T* __restrict__ x, const T* __restrict__ gamma, const T* __restrict__ beta, T* __restrict__ y,
               float* __restrict__ mean, float* __restrict__ rstd, long long n, long long c, double eps) {
    const long long row = blockIdx.x * static_cast<long long>(WARPS) + threadIdx.x / 32;
    const int first = threadIdx.x % 32 * V;
    if (row >= n) return;
    x += row * c;
    y += row * c;
    float total = 0, deviations = 0, squares = 0, v[V], w[V];
    for (long long i = first; i < c; i += 32 * V) {
        load(v, x + i);
#pragma unroll
        for (int j = 0; j < V; j++) total += v[j];
    }
    const float m = lane_sum(total) / c;
    for (long long i = first; i < c; i += 32 * V) {  // from centred values: E[x^2] - E[x]^2 cancels when m is large
        load(v, x + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            deviations += v[j] - m;
            squares += (v[j] - m) * (v[j] - m);
        }
    }
    const float error = lane_sum(deviations) / c;  // of m, which matters when m is large
    const float s = 1.0f / sqrtf(lane_sum(squares) / c - error * error + static_cast<float>(eps));
    for (long long i = first; i < c; i += 32 * V) {
        load(v, x + i);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = (v[j] - m - error) * s;
        if (gamma) {
            load(w, gamma + i);
#pragma unroll
            for (int j = 0; j < V; j++) v[j] *= w[j];
        }
        if (beta) {
            load(w, beta + i);
#pragma unroll
            for (int j = 0; j < V; j++) v[j] += w[j];
        }
        store(y + i, v);
    }
    if (first == 0) {
        mean[row] = m + error;
        rstd[row] = s;
    }
}

// With h = g gamma and normed = (x - mean) rstd: gx = rstd (h - mean(h) - normed mean(h normed)), one warp per row.
// The gradient of centring removes the mean of h; that of scaling removes its component along `normed`.
template <typename T, int V>
__global__ void __launch_bounds__(32 * WARPS, 4)
    layer_norm_backward(const T* __restrict__ g, const T* __restrict__ x, const T* __restrict__ gamma,
                        const float* __restrict__ mean, const float* __restrict__ rstd, T* __restrict__ gx,
                        long long n, long long c) {
    const long long row = blockIdx.x * static_cast<long long>(WARPS) + threadIdx.x / 32;
    const int first = threadIdx.x % 32 * V;
    if (row >= n) return;
    g += row * c;
    x += row * c;
    const float m = mean[row], s = rstd[row];
    float total = 0, along = 0, h[V], normed[V], w[V];
    for (long long i = first; i < c; i += 32 * V) {
        load(h, g + i);
        load(normed, x + i);
        if (gamma) load(w, gamma + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            if (gamma) h[j] *= w[j];
            total += h[j];
            along += h[j] * ((normed[j] - m) * s);
        }
    }
    total = lane_sum(total) / c;
    along = lane_sum(along) / c;
    for (long long i = first; i < c; i += 32 * V) {
        load(h, g + i);
        load(normed, x + i);
        if (gamma) load(w, gamma + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            if (gamma) h[j] *= w[j];
            h[j] = s * (h[j] - total - (normed[j] - m) * s * along);
        }
        store(gx + row * c + i, h);
    }
}

// The gradients of gamma, sum over rows of g normed, and of beta, sum over rows of g: partial (2, chunks, c).
template <typename T, int V>
__global__ void __launch_bounds__(32 * WARPS, 4)
    layer_norm_backward_columns(const T* __restrict__ g, const T* __restrict__ x, const float* __restrict__ mean,
                                const float* __restrict__ rstd, float* __restrict__ partial, long long n, long long c,
                                long long chunk) {
    __shared__ float of_warp[WARPS][32 * V];
    const long long pack = blockIdx.x * 32LL + threadIdx.x % 32, start = blockIdx.y * chunk;
    const long long end = pack * V >= c ? 0 : start + chunk < n ? start + chunk : n;  // all reach store_sums
    float ggamma[V] = {}, gbeta[V] = {};
#pragma unroll 2
    for (long long row = start + threadIdx.x / 32; row < end; row += WARPS) {
        const long long at = (row * (c / V) + pack) * V;
        float upstream[V], v[V];
        load(upstream, g + at);
        load(v, x + at);
        const float m = mean[row], s = rstd[row];
#pragma unroll
        for (int i = 0; i < V; i++) {
            ggamma[i] += upstream[i] * ((v[i] - m) * s);
            gbeta[i] += upstream[i];
        }
    }
    store_sums(of_warp, partial + blockIdx.y * c, ggamma, c);
    store_sums(of_warp, partial + (gridDim.y + blockIdx.y) * c, gbeta, c);
}

// --- Softmax: y = e^a / sum e^a, or its logarithm, of each row of (n, c), one warp per row.

template <typename T>
__global__ void __launch_bounds__(32 * WARPS, 4)
    softmax(const T* __restrict__ a, T* __restrict__ y, long long n, long long c, long long logarithm) {
    const long long row = blockIdx.x * static_cast<long long>(WARPS) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= n) return;
    a += row * c;
    y += row * c;
    float top = -infinity(), total = 0;
    for (long long i = lane; i < c; i += 32) top = fmaxf(top, to_float(a[i]));
    top = lane_max(top);  // fmaxf ignores nan, which still reaches the sum
    for (long long i = lane; i < c; i += 32) total += expf(to_float(a[i]) - top);
    total = lane_sum(total);
    const float log_total = logf(total), share = 1.0f / total;
    for (long long i = lane; i < c; i += 32) {
        const float z = to_float(a[i]) - top;
        y[i] = rounded<T>(logarithm ? z - log_total : expf(z) * share);
    }
}

// ga = y (g - sum(g y)); for the logarithm, ga = g - e^y sum(g).
template <typename T>
__global__ void __launch_bounds__(32 * WARPS, 4)
    softmax_backward(const T* __restrict__ g, const T* __restrict__ y, T* __restrict__ ga, long long n, long long c,
                     long long logarithm) {
    const long long row = blockIdx.x * static_cast<long long>(WARPS) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= n) return;
    g += row * c;
    y += row * c;
    float total = 0;
    for (long long i = lane; i < c; i += 32) total += to_float(g[i]) * (logarithm ? 1.0f : to_float(y[i]));
    total = lane_sum(total);
    for (long long i = lane; i < c; i += 32) {
        const float v = to_float(y[i]), u = to_float(g[i]);
        ga[row * c + i] = rounded<T>(logarithm ? u - expf(v) * total : v * (u - total));
    }
}

// --- Cross-entropy: losses (n,) = log sum e^logits - logits[id], 0 for invalid rows, and probs (n, c), the softmax.
// One warp per row. Class `excluded` has probability 0; -1 excludes none. valid (n,), or null if all rows are valid.

template <typename T>
__global__ void __launch_bounds__(32 * WARPS, 4)
    cross_entropy(const T* __restrict__ logits, const long long* __restrict__ ids, const bool* __restrict__ valid,
                  float* __restrict__ losses, T* __restrict__ probs, long long n, long long c, long long excluded) {
    const long long row = blockIdx.x * static_cast<long long>(WARPS) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= n) return;
    logits += row * c;
    float top = -infinity();
    for (long long i = lane; i < c; i += 32) top = i == excluded ? top : fmaxf(top, to_float(logits[i]));
    top = lane_max(top);
    double parts = 0;  // the error of one sum in float32 grows with the number of classes
    for (long long start = 0; start < c; start += 1024) {
        const long long end = start + 1024 < c ? start + 1024 : c;
        float part = 0;
        for (long long i = start + lane; i < end; i += 32) {
            part += i == excluded ? 0.0f : expf(to_float(logits[i]) - top);
        }
        parts += part;
    }
    const float total = lane_sum(static_cast<float>(parts));
    for (long long i = lane; i < c; i += 32) {
        probs[row * c + i] = rounded<T>(i == excluded ? 0.0f / total : expf(to_float(logits[i]) - top) / total);
    }
    if (lane == 0) {
        const float z = ids[row] == excluded ? -infinity() : to_float(logits[ids[row]]) - top;
        losses[row] = valid && !valid[row] ? 0.0f : logf(total) - z;
    }
}

// count () = the number of valid rows, and loss () = the sum of losses / count; one block. losses and loss may be null.
__global__ void valid_mean(const float* losses, const bool* valid, float* count, float* loss, long long n) {
    __shared__ float of_warp[32];
    float total = 0, rows = 0;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) {
        rows += !valid || valid[i];
        if (losses) total += losses[i];
    }
    rows = block_sum(of_warp, rows);  // exact up to 2^24
    total = block_sum(of_warp, total);
    if (threadIdx.x == 0) {
        *count = rows;
        if (loss) *loss = total / rows;
    }
}

// out (n, c) = (probs - one-hot of ids) g / count, 0 for invalid rows; one warp per row.
template <typename T>
__global__ void __launch_bounds__(32 * WARPS, 4)
    cross_entropy_backward(const float* __restrict__ g, const T* __restrict__ probs, const long long* __restrict__ ids,
                           const bool* __restrict__ valid, const float* __restrict__ count, T* __restrict__ out,
                           long long n, long long c) {
    const long long row = blockIdx.x * static_cast<long long>(WARPS) + threadIdx.x / 32;
    if (row >= n) return;
    const float scale = valid && !valid[row] ? 0.0f : *g / (valid ? *count : static_cast<float>(n));
    const long long id = ids[row];
    for (long long i = threadIdx.x % 32; i < c; i += 32) {
        out[row * c + i] = rounded<T>((to_float(probs[row * c + i]) - (i == id ? 1.0f : 0.0f)) * scale);
    }
}

// --- Attention in float32: out = softmax(q k^T / sqrt(d)) v for each of the B x H heads, without storing the L x S
// scores. A block has ROWS queries (in the last kernel, keys) of one head and loops over tiles of the keys (queries).
// Each thread computes part of the tile of scores and part of the result in registers; operands come from shared
// memory. The online softmax rescales the sums when a larger score appears: Dao et al., arXiv:2205.14135, algorithm 1;
// the division into blocks is that of Dao, arXiv:2307.08691, section 3. Strides are those of batch, head and row.
//
// The threads form ROWS / 4 groups of 8 lanes. A group has rows `group + i ROWS / 4` of the block, i < 4. In these rows
// lane l has the tile's columns l + 8 j and the result's columns 4 l + 32 j + (0 to 3). So a row belongs to one warp,
// and 8 lanes read 128 contiguous bytes. D is the width in shared memory, padded by 4 so that 8 rows read at once lie
// in different banks.

template <int D>
struct Sizes {  // chosen so that the tiles fit in 48 KiB
    static constexpr int ROWS = D <= 64 ? 64 : 32, KEYS = D <= 64 ? 32 : 16, THREADS = 2 * ROWS;
    static constexpr int BACK_ROWS = 32, BACK_TILE = D <= 64 ? 32 : 8, BACK_THREADS = 2 * BACK_ROWS;
    // Resident blocks per multiprocessor: what shared memory allows, and registers allow without spills.
    static constexpr int BLOCKS = D == 64 ? 3 : 4, BACK_BLOCKS = D == 32 ? 6 : 4;
};

// The keys hidden from the queries of one head: those past query + offset, a tile's padding, those in the mask.
struct Hiding {
    const bool* mask;  // may be null
    long long row, column;  // strides of the mask
    int offset, n_queries, n_keys;

    __device__ bool operator()(int query, int key) const {
        if (key > query + offset || key >= n_keys) return true;
        return mask && (query >= n_queries || mask[query * row + key * column]);
    }

    __device__ bool none(int query, int end) const {  // of the keys before `end`, from this query and later ones
        return !mask && end <= n_keys && end <= query + offset + 1;
    }

    __device__ int keys_seen(int query) const {  // by the queries before this one
        const int seen = query + offset;
        return seen < 0 ? 0 : seen < n_keys ? seen : n_keys;
    }
};

// Dropout of the weights of one head: which ones `dropout_bits` keeps, and the factor on those. Without DROP it is 1.
template <bool DROP>
struct Dropout {
    const unsigned* kept;  // (L, words)
    long long words;
    float scale;

    __device__ Dropout(const unsigned* kept, int head, long long L, long long S, double scale)
        : words((S + 31) / 32), scale(static_cast<float>(scale)) {
        this->kept = DROP ? kept + head * L * words : nullptr;
    }

    // The bits of `key` and the following keys, up to the next multiple of 32.
    __device__ unsigned bits(int query, int key) const {
        return DROP ? kept[query * words + key / 32] >> key % 32 : 0;
    }
    __device__ float factor(unsigned bits, int i) const { return !DROP ? 1.0f : bits >> i & 1 ? scale : 0.0f; }
};

// Loads rows `start` to `start + ROWS` of (n, width) into shared memory, zero-padded.
template <int THREADS, int ROWS, int W>
__device__ inline void load_tile(float (&tile)[ROWS][W], const float* from, long long stride, int start, int n,
                                 int width) {
    constexpr int PER_ROW = W / 4 - 1;
    const bool whole = width % 4 == 0 && stride % 4 == 0 && aligned(from, 16);
#pragma unroll 2
    for (int i = threadIdx.x; i < ROWS * PER_ROW; i += THREADS) {
        const int row = i / PER_ROW, column = i % PER_ROW * 4;
        float values[4] = {};
        if (start + row < n && column < width) {
            const float* at = from + (start + row) * stride + column;
            if (whole) {
                load(values, at);
            } else {
#pragma unroll
                for (int j = 0; j < 4; j++) values[j] = column + j < width ? at[j] : 0.0f;
            }
        }
        store(&tile[row][column], values);
    }
}

// s[i][j] += (row i STEP of a) . (row 8 j of b); a and b point to the thread's first rows.
template <int STEP, int I, int J, int W>
__device__ inline void add_scores(float (&s)[I][J], const float (*a)[W], const float (*b)[W]) {
#pragma unroll 1
    for (int d = 0; d < W - 4; d += 4) {
        float x[I][4], y[4];
#pragma unroll
        for (int i = 0; i < I; i++) load(x[i], &a[i * STEP][d]);
#pragma unroll
        for (int j = 0; j < J; j++) {
            load(y, &b[8 * j][d]);
#pragma unroll
            for (int i = 0; i < I; i++) {
#pragma unroll
                for (int u = 0; u < 4; u++) s[i][j] += x[i][u] * y[u];
            }
        }
    }
}

// o[i] += (row i STEP of p) times the thread's columns of b; p points to the thread's first row.
template <int STEP, int I, int C, int P, int W>
__device__ inline void add_product(float (&o)[I][C], const float (*p)[P], const float (*b)[W], int lane) {
#pragma unroll 1
    for (int k = 0; k < P - 4; k += 4) {
        float x[I][4], y[4];
#pragma unroll
        for (int i = 0; i < I; i++) load(x[i], &p[i * STEP][k]);
#pragma unroll
        for (int u = 0; u < 4; u++) {
#pragma unroll
            for (int c = 0; c < C; c += 4) {
                load(y, &b[k + u][4 * lane + 8 * c]);
#pragma unroll
                for (int i = 0; i < I; i++) {
#pragma unroll
                    for (int w = 0; w < 4; w++) o[i][c + w] += x[i][u] * y[w];
                }
            }
        }
    }
}

// Stores the thread's columns of one row of the result, times `scale`; `to` is the start of the row.
template <int C>
__device__ inline void store_row(float* to, const float (&o)[C], float scale, int lane, int width) {
#pragma unroll
    for (int c = 0; c < C; c += 4) {
        const int column = 4 * lane + 8 * c;
        const float four[4] = {o[c] * scale, o[c + 1] * scale, o[c + 2] * scale, o[c + 3] * scale};
        if (width % 4 == 0 && column < width) {  // rows are aligned: cupy_kernels.py allocates them
            store(to + column, four);
        } else {
#pragma unroll
            for (int w = 0; w < 4; w++) {
                if (column + w < width) to[column + w] = four[w];
            }
        }
    }
}

// q (B, H, L, d), k (B, H, S, d), v (B, H, S, e) -> out (B, H, L, e), log_sum (B, H, L). A block has ROWS queries;
// blocks with the most keys start first. Query i sees keys up to i + offset, with offset in [-L, S].
template <int D, bool DROP = false>
__global__ void __launch_bounds__(Sizes<D>::THREADS, Sizes<D>::BLOCKS)
    attention(const float* q, const float* k, const float* v, const bool* mask, float* out, float* log_sum, long long H,
              long long L, long long S, long long d, long long e, long long offset, double scale, long long q_batch,
              long long q_head, long long q_row, long long k_batch, long long k_head, long long k_row,
              long long v_batch, long long v_head, long long v_row, long long mask_batch, long long mask_head,
              long long mask_row, long long mask_column, long long out_batch, long long out_head, long long out_row,
              const unsigned* kept, double drop_scale) {
    constexpr int ROWS = Sizes<D>::ROWS, KEYS = Sizes<D>::KEYS, THREADS = Sizes<D>::THREADS, STEP = ROWS / 4;
    alignas(16) __shared__ float qs[ROWS][D + 4], ks[KEYS][D + 4], vs[KEYS][D + 4], weights[ROWS][KEYS + 4];
    const int n_queries = L, n_keys = S, tiles = (n_queries + ROWS - 1) / ROWS, group = threadIdx.x / 8;
    const int start = (tiles - 1 - static_cast<int>(blockIdx.x % tiles)) * ROWS, lane = threadIdx.x % 8;
    const int head = blockIdx.x / tiles, b = head / static_cast<int>(H), h = head % static_cast<int>(H);
    k += b * k_batch + h * k_head;
    v += b * v_batch + h * v_head;
    if (mask) mask += b * mask_batch + h * mask_head;
    const Hiding hidden{mask, mask_row, mask_column, static_cast<int>(offset), n_queries, n_keys};
    const Dropout<DROP> drop(kept, head, L, S, drop_scale);
    float top[4] = {LOWEST, LOWEST, LOWEST, LOWEST}, total[4] = {}, o[4][D / 8] = {};
    load_tile<THREADS>(qs, q + b * q_batch + h * q_head, q_row, start, n_queries, d);
    const int seen = hidden.keys_seen(start + ROWS);
    for (int first = 0; first < seen; first += KEYS) {
        __syncthreads();  // all threads are done with the previous tiles
        load_tile<THREADS>(ks, k, k_row, first, n_keys, d);
        load_tile<THREADS>(vs, v, v_row, first, n_keys, e);
        __syncthreads();
        float s[4][KEYS / 8] = {};
        add_scores<STEP>(s, qs + group, ks + lane);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float higher = top[i];  // at least LOWEST, so a row with every key hidden has weights of 0, not nan
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                const bool hide = hidden(start + group + i * STEP, first + lane + 8 * j);
                s[i][j] = hide ? -infinity() : s[i][j] * static_cast<float>(scale);
                higher = fmaxf(higher, s[i][j]);
            }
            higher = lane_max<8>(higher);
            const float shrink = expf(top[i] - higher);
            top[i] = higher;
            total[i] *= shrink;
            const unsigned kept_keys = drop.bits(start + group + i * STEP, first);
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                const float weight = expf(s[i][j] - higher);
                total[i] += weight;
                weights[group + i * STEP][lane + 8 * j] = weight * drop.factor(kept_keys, lane + 8 * j);
            }
#pragma unroll
            for (int c = 0; c < D / 8; c++) o[i][c] *= shrink;
        }
        __syncwarp();  // one warp writes and reads a row of weights
        add_product<STEP>(o, weights + group, vs, lane);
    }
    out += b * out_batch + h * out_head;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int query = start + group + i * STEP;
        const float sum = lane_sum<8>(total[i]);
        if (query >= n_queries) continue;
        store_row(out + query * out_row, o[i], sum == 0 ? 0.0f : 1.0f / sum, lane, e);
        if (lane == 0) log_sum[head * L + query] = sum == 0 ? infinity() : logf(sum) + top[i];
    }
}

// With the weights p = e^(scores - log_sum) and their gradient g v^T, the gradient of a score is p (g v^T - delta).
// delta (B, H, L), the sum of g out over a row, is the term that softmax's backward subtracts. This kernel computes
// delta, and gq (B, H, L, d) = (gradient of the scores) k / sqrt(d), unless gq is null. A block has BACK_ROWS queries.
template <int D, bool DROP = false>
__global__ void __launch_bounds__(Sizes<D>::BACK_THREADS, Sizes<D>::BACK_BLOCKS)
    attention_backward_q(const float* g, const float* q, const float* k, const float* v, const float* out,
                         const float* log_sum, const bool* mask, float* delta, float* gq, long long H, long long L,
                         long long S, long long d, long long e, long long offset, double scale, long long g_batch,
                         long long g_head, long long g_row, long long q_batch, long long q_head, long long q_row,
                         long long k_batch, long long k_head, long long k_row, long long v_batch, long long v_head,
                         long long v_row, long long out_batch, long long out_head, long long out_row,
                         long long mask_batch, long long mask_head, long long mask_row, long long mask_column,
                         long long gq_batch, long long gq_head, long long gq_row,
                         const unsigned* kept, double drop_scale) {
    constexpr int ROWS = Sizes<D>::BACK_ROWS, KEYS = Sizes<D>::BACK_TILE, THREADS = 2 * ROWS, STEP = ROWS / 4;
    alignas(16) __shared__ float gs[ROWS][D + 4], qs[ROWS][D + 4], ks[KEYS][D + 4], vs[KEYS][D + 4];
    alignas(16) __shared__ float g_scores[ROWS][KEYS + 4];
    const int n_queries = L, n_keys = S, tiles = (n_queries + ROWS - 1) / ROWS, group = threadIdx.x / 8;
    const int start = (tiles - 1 - static_cast<int>(blockIdx.x % tiles)) * ROWS, lane = threadIdx.x % 8;
    const int head = blockIdx.x / tiles, b = head / static_cast<int>(H), h = head % static_cast<int>(H);
    k += b * k_batch + h * k_head;
    v += b * v_batch + h * v_head;
    out += b * out_batch + h * out_head;
    if (mask) mask += b * mask_batch + h * mask_head;
    const Hiding hidden{mask, mask_row, mask_column, static_cast<int>(offset), n_queries, n_keys};
    const Dropout<DROP> drop(kept, head, L, S, drop_scale);
    load_tile<THREADS>(gs, g + b * g_batch + h * g_head, g_row, start, n_queries, e);
    load_tile<THREADS>(qs, q + b * q_batch + h * q_head, q_row, start, n_queries, d);
    __syncthreads();
    float taken_off[4], of_row[4], o[4][D / 8] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = group + i * STEP, query = start + row;
        float sum = 0;
        of_row[i] = infinity();
        if (query < n_queries) {
            of_row[i] = log_sum[head * L + query];
            for (int c = lane; c < e; c += 8) sum += gs[row][c] * out[query * out_row + c];
        }
        taken_off[i] = lane_sum<8>(sum);
        if (lane == 0 && query < n_queries) delta[head * L + query] = taken_off[i];
    }
    if (!gq) return;
    const int seen = hidden.keys_seen(start + ROWS);
    for (int first = 0; first < seen; first += KEYS) {
        __syncthreads();  // all threads are done with the previous tiles
        load_tile<THREADS>(ks, k, k_row, first, n_keys, d);
        load_tile<THREADS>(vs, v, v_row, first, n_keys, e);
        __syncthreads();
        float s[4][KEYS / 8] = {}, gp[4][KEYS / 8] = {};
        add_scores<STEP>(s, qs + group, ks + lane);
        add_scores<STEP>(gp, gs + group, vs + lane);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const unsigned kept_keys = drop.bits(start + group + i * STEP, first);
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                const bool hide = hidden(start + group + i * STEP, first + lane + 8 * j);
                const float weight = hide ? 0.0f : expf(s[i][j] * static_cast<float>(scale) - of_row[i]);
                const float g_weight = gp[i][j] * drop.factor(kept_keys, lane + 8 * j);
                g_scores[group + i * STEP][lane + 8 * j] = weight * (g_weight - taken_off[i]);
            }
        }
        __syncwarp();  // one warp writes and reads a row of g_scores
        add_product<STEP>(o, g_scores + group, ks, lane);
    }
    gq += b * gq_batch + h * gq_head;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int query = start + group + i * STEP;
        if (query < n_queries) store_row(gq + query * gq_row, o[i], scale, lane, d);
    }
}

// gk (B, H, S, d) = (gradient of the scores)^T q / sqrt(d) and gv (B, H, S, e) = p^T g, with p and delta as above.
// Either may be null; only gk needs delta. A block has BACK_ROWS keys; `weights` is the transposed tile.
template <int D, bool DROP = false>
__global__ void __launch_bounds__(Sizes<D>::BACK_THREADS, Sizes<D>::BACK_BLOCKS)
    attention_backward_kv(const float* g, const float* q, const float* k, const float* v, const float* log_sum,
                          const float* delta, const bool* mask, float* gk, float* gv, long long H, long long L,
                          long long S, long long d, long long e, long long offset, double scale, long long g_batch,
                          long long g_head, long long g_row, long long q_batch, long long q_head, long long q_row,
                          long long k_batch, long long k_head, long long k_row, long long v_batch, long long v_head,
                          long long v_row, long long mask_batch, long long mask_head, long long mask_row,
                          long long mask_column, long long gk_batch, long long gk_head, long long gk_row,
                          long long gv_batch, long long gv_head, long long gv_row,
                          const unsigned* kept, double drop_scale) {
    constexpr int ROWS = Sizes<D>::BACK_ROWS, QUERIES = Sizes<D>::BACK_TILE, THREADS = 2 * ROWS, STEP = ROWS / 4;
    alignas(16) __shared__ float ks[ROWS][D + 4], vs[ROWS][D + 4], qs[QUERIES][D + 4], gs[QUERIES][D + 4];
    alignas(16) __shared__ float weights[ROWS][QUERIES + 4];
    const int n_queries = L, n_keys = S, tiles = (n_keys + ROWS - 1) / ROWS, group = threadIdx.x / 8;
    const int start = static_cast<int>(blockIdx.x % tiles) * ROWS, lane = threadIdx.x % 8;
    const int head = blockIdx.x / tiles, b = head / static_cast<int>(H), h = head % static_cast<int>(H);
    q += b * q_batch + h * q_head;
    g += b * g_batch + h * g_head;
    if (mask) mask += b * mask_batch + h * mask_head;
    const Hiding hidden{mask, mask_row, mask_column, static_cast<int>(offset), n_queries, n_keys};
    const Dropout<DROP> drop(kept, head, L, S, drop_scale);
    load_tile<THREADS>(ks, k + b * k_batch + h * k_head, k_row, start, n_keys, d);
    load_tile<THREADS>(vs, v + b * v_batch + h * v_head, v_row, start, n_keys, e);
    float ok[4][D / 8] = {}, ov[4][D / 8] = {};
    const int unseen = start - hidden.offset;  // earlier queries see no key of the block
    for (int first = unseen > 0 ? unseen / QUERIES * QUERIES : 0; first < n_queries; first += QUERIES) {
        __syncthreads();  // all threads are done with the previous tiles
        load_tile<THREADS>(qs, q, q_row, first, n_queries, d);
        load_tile<THREADS>(gs, g, g_row, first, n_queries, e);
        __syncthreads();
        float s[4][QUERIES / 8] = {}, gp[4][QUERIES / 8] = {};
        add_scores<STEP>(s, ks + group, qs + lane);
        if (gk) add_scores<STEP>(gp, vs + group, gs + lane);
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++) {
            const int query = first + lane + 8 * j;
            const float of_row = query < n_queries ? log_sum[head * L + query] : infinity();
            const float taken_off = gk && query < n_queries ? delta[head * L + query] : 0.0f;
            const unsigned kept_keys = drop.bits(query, start);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const bool hide = hidden(query, start + group + i * STEP);
                const float factor = drop.factor(kept_keys, group + i * STEP);
                s[i][j] = hide ? 0.0f : expf(s[i][j] * static_cast<float>(scale) - of_row);
                gp[i][j] = s[i][j] * (gp[i][j] * factor - taken_off);
                weights[group + i * STEP][lane + 8 * j] = s[i][j] * factor;
            }
        }
        __syncwarp();  // one warp writes and reads a row of weights
        if (gv) add_product<STEP>(ov, weights + group, gs, lane);
        if (!gk) continue;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < QUERIES / 8; j++) weights[group + i * STEP][lane + 8 * j] = gp[i][j];
        }
        __syncwarp();
        add_product<STEP>(ok, weights + group, qs, lane);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int key = start + group + i * STEP;
        if (key >= n_keys) continue;
        if (gk) store_row(gk + b * gk_batch + h * gk_head + key * gk_row, ok[i], scale, lane, d);
        if (gv) store_row(gv + b * gv_batch + h * gv_head + key * gv_row, ov[i], 1.0f, lane, e);
    }
}

// --- Attention on tensor cores (since sm_80): the same kernels, but warps multiply tiles of bf16 or TF32, as in Dao,
// arXiv:2307.08691, algorithms 1 and 2. T is bf16, or float, whose elements are rounded to TF32 (10 bits of fraction)
// when they become factors. The weights and the gradients of the scores are rounded, too; all sums are float, and so is
// everything that is not a factor. Exponentials have base 2: exp2f is one instruction, expf several.
//
// A block has ROWS queries (in the last kernel, keys), 16 for each warp, which has their rows of the result in its
// registers. There, each lane holds a part of a matrix, its fragment (PTX ISA, "Matrix fragments for mma.m16n8k16 with
// floating point type" and "Matrix fragments for mma.m16n8k8"): of a result (16, 8), lane l has columns 2 (l % 4) and
// the next, first in row l / 4, then in row l / 4 + 8. So a row belongs to 4 lanes, and the weights need not leave the
// registers to become a left factor.

#ifndef CUDA_ON_CPU  // tests/standin/cuda_on_cpu.h defines these functions in C++

// c (16, 8) += a (16, 16) b (16, 8) in bf16. a[0] has columns 2 (l % 4) and the next of row l / 4, a[1] those of row
// l / 4 + 8, and a[2], a[3] those 8 columns on. b0 has rows 2 (l % 4) and the next of column l / 4, b1 those 8 rows on.
__device__ inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800  // attention_takes refuses earlier devices, which run the other kernels
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    __trap();
#endif
}

// c (16, 8) += a (16, 8) b (8, 8) in TF32. a[0] has column l % 4 of row l / 4, a[1] that of row l / 4 + 8, and a[2],
// a[3] those 4 columns on. b0 has row l % 4 of column l / 4, b1 the one 4 rows on.
__device__ inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    __trap();
#endif
}

// Loads four matrices of 8 rows of 16 bytes from shared memory; lane l has the address of row l % 8 of matrix l / 8.
// to[i] becomes bytes 4 (l % 4) to 4 (l % 4) + 3 of row l / 4 of matrix i.
__device__ inline void ldmatrix(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// As ldmatrix, of the transposed matrices of 2-byte elements.
__device__ inline void ldmatrix_trans(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// x and y rounded to bf16, x in the lower half.
__device__ inline unsigned cvt_bf16x2(float x, float y) {
    unsigned pair = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
#endif
    return pair;
}

// x rounded to TF32, to nearest, ties away from zero. mma_tf32 would ignore the other bits, which rounds towards zero.
__device__ inline unsigned cvt_tf32(float x) {
    unsigned bits = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return bits;
}

#endif

constexpr float LOG2_E = 1.4426950409f, LOG_2 = 0.6931471806f;

template <typename T, int D>
struct Tiles {  // in dynamic shared memory, whose size cupy_kernels.py has to know
    static constexpr int PACK = 16 / sizeof(T), W = D + PACK;  // so 8 rows read at once lie in different banks
    static constexpr int ROWS = 64, THREADS = 2 * ROWS, TILE = D <= 64 ? 32 : 16;
    // Resident blocks per multiprocessor: as many as registers allow without spills.
    static constexpr int BLOCKS = D <= 64 ? 4 : 3;
    static constexpr int BACK_Q_BLOCKS = D <= 64 ? 4 : 2, BACK_KV_BLOCKS = D <= 64 ? 3 : 2;
    static constexpr int FEWER_WITH_DROPOUT = D == 64 && sizeof(T) == 4;  // blocks, or registers would spill
};

__device__ inline bf16 to_factor(bf16 x) { return x; }
__device__ inline float to_factor(float x) { return __uint_as_float(cvt_tf32(x)); }

// N rows of (n, width) on their way from the device's memory to a tile in shared memory, zero-padded. `load` starts the
// loads of 16 bytes, one every STEP rows for each thread; `store` waits for them. If rows are not aligned to 16 bytes,
// `store` copies them, one element at a time.
template <typename T, int D, int N>
struct Loader {
    static constexpr int PACK = Tiles<T, D>::PACK, W = Tiles<T, D>::W, PER_ROW = D / PACK;
    static constexpr int STEP = Tiles<T, D>::THREADS / PER_ROW, EACH = N / STEP;
    typedef Pack<unsigned, 4> Bytes;
    const T* from;
    long long stride;
    int n, width;
    Bytes bytes[EACH];

    __device__ Loader(const T* from, long long stride, int n, int width)
        : from(from), stride(stride), n(n), width(width) {}

    __device__ static int row() { return threadIdx.x / PER_ROW; }
    __device__ static int column() { return threadIdx.x % PER_ROW * PACK; }
    __device__ bool whole() const { return width % PACK == 0 && stride % PACK == 0 && aligned(from, 16); }

    __device__ void load(int start) {
        if (!whole()) return;
        const int end = column() < width ? n - row() : 0;
        const T* at = from + (start + row()) * stride + column();
#pragma unroll
        for (int u = 0; u < EACH; u++, at += STEP * stride) {
            bytes[u] = start + u * STEP < end ? *reinterpret_cast<const Bytes*>(at) : Bytes{};
        }
    }

    template <bool ROUND = true>
    __device__ void store(T (*tile)[W], int start) const {
        T* to = &tile[row()][column()];
        if (whole()) {
#pragma unroll
            for (int u = 0; u < EACH; u++) {
                Bytes rounded = bytes[u];
                if (ROUND && sizeof(T) == 4) {
#pragma unroll
                    for (int j = 0; j < 4; j++) rounded.at[j] = cvt_tf32(__uint_as_float(rounded.at[j]));
                }
                *reinterpret_cast<Bytes*>(to + u * STEP * W) = rounded;
            }
        } else {
#pragma unroll 1
            for (int u = 0; u < N; u += STEP) {
                for (int j = 0; j < PACK; j++) {
                    const int r = start + row() + u, c = column() + j;
                    const T x = r < n && c < width ? from[r * stride + c] : T{};
                    to[u * W + j] = ROUND ? to_factor(x) : x;
                }
            }
        }
    }
};

// c (16, 8) += a b, with 32 bytes of each row of a and each column of b.
template <typename T>
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    if (sizeof(T) == 2) mma_bf16(c, a, b0, b1);
    else mma_tf32(c, a, b0, b1);
}

// s (16, N) = a b^T, where a is 16 rows of a tile, and b N of them. ldmatrix of 16 rows of 32 bytes gives their
// quarters: upper left, lower left, upper right, lower right. Columns of b^T are rows of b.
template <int N, typename T, int W>
__device__ inline void multiply_transposed(float (&s)[N / 8][4], const T (*a)[W], const T (*b)[W]) {
    constexpr int PACK = 16 / sizeof(T);
    const int row = threadIdx.x % 16, column = threadIdx.x % 32 / 16 * PACK;
#pragma unroll
    for (int n = 0; n < N / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int k = 0; k < W - PACK; k += 2 * PACK) {
        unsigned x[4], y[4];
        ldmatrix(x, &a[row][k + column]);
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            ldmatrix(y, &b[n + row][k + column]);
            mma<T>(s[n / 8], x, y[0], y[2]);
            mma<T>(s[n / 8 + 1], x, y[1], y[3]);
        }
    }
}

// o (16, D) += p (16, N) b (N, D), where p is a result and b N rows of a tile. Two results in bf16 side by side are the
// fragments of a left factor (16, 16).
template <int N, int W, int C>
__device__ inline void add_product(float (&o)[C][4], const float (&p)[N / 8][4], const bf16 (*b)[W]) {
    const int row = threadIdx.x % 16, column = threadIdx.x % 32 / 16 * 8;
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
        const unsigned x[4] = {cvt_bf16x2(p[n][0], p[n][1]), cvt_bf16x2(p[n][2], p[n][3]),
                               cvt_bf16x2(p[n + 1][0], p[n + 1][1]), cvt_bf16x2(p[n + 1][2], p[n + 1][3])};
#pragma unroll
        for (int c = 0; c < C; c += 2) {
            unsigned y[4];
            ldmatrix_trans(y, &b[8 * n + row][8 * c + column]);
            mma<bf16>(o[c], x, y[0], y[1]);
            mma<bf16>(o[c + 1], x, y[2], y[3]);
        }
    }
}

// In TF32, a left factor has columns l % 4 and l % 4 + 4 where a result has 2 (l % 4) and the next. Their order does not
// matter if the rows of b have the same: row l % 4 of each factor (8, 8) is row 2 (l % 4) of b, and row l % 4 + 4 the
// next. A lane reads 4 columns of both rows at once, for 4 products. So of o, it has in o[4 i + j] not columns
// 2 (l % 4) and the next of 8, but of each 32 columns first 4 (l % 4) + j, then 16 + 4 (l % 4 ^ 1) + j: lane l reads
// columns `four_columns` and those after them. In this order, the lanes of a read are in different banks, and store_rows
// writes 32 bytes side by side.
__device__ inline int four_columns() {
    const int column = threadIdx.x % 32 / 4;
    return 4 * (column % 2 == 0 ? column / 2 : 4 + (column / 2 ^ 1));
}

template <int N, int W, int C>
__device__ inline void add_product(float (&o)[C][4], const float (&p)[N / 8][4], const float (*b)[W]) {
    const int row = threadIdx.x % 4 * 2, column = four_columns();
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        const unsigned x[4] = {cvt_tf32(p[n][0]), cvt_tf32(p[n][2]), cvt_tf32(p[n][1]), cvt_tf32(p[n][3])};
#pragma unroll
        for (int c = 0; c < C; c += 4) {
            float y[4], z[4];
            load(y, &b[8 * n + row][8 * c + column]);
            load(z, &b[8 * n + row + 1][8 * c + column]);
#pragma unroll
            for (int j = 0; j < 4; j++) mma_tf32(o[c + j], x, __float_as_uint(y[j]), __float_as_uint(z[j]));
        }
    }
}

// Makes the hidden scores -inf. s starts at a query and a key; its rows are queries, or keys if TRANSPOSED.
template <bool TRANSPOSED, int N>
__device__ inline void hide(float (&s)[N][4], const Hiding& hidden, int query, int key) {
    if (hidden.none(query, key + (TRANSPOSED ? 16 : 8 * N))) return;  // most tiles
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = row + i / 2 * 8;
        // A row that is a query sees the columns before `end`; one that is a key is seen by those from `begin` on.
        const int end = hidden.keys_seen(query + r + 1) - key;
        const int begin = key + r < hidden.n_keys ? key + r - hidden.offset - query : 8 * N;
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int c = column + 8 * n + i % 2;
            if (TRANSPOSED ? c < begin : c >= end) s[n][i] = -infinity();
        }
    }
    if (!hidden.mask) return;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = row + i / 2 * 8, c = column + 8 * n + i % 2;
            if (TRANSPOSED ? hidden(query + c, key + r) : hidden(query + r, key + c)) s[n][i] = -infinity();
        }
    }
}

// Stores a warp's result from row `start` on, rows l / 4 times one scale and rows l / 4 + 8 times another. It goes
// through 16 `rows` of a tile, so that a lane writes 16 bytes. They are the warp's left factor, which only it has read.
template <int C, int W>
__device__ inline void store_rows(bf16* to, long long stride, int start, int n, int width, bf16 (*rows)[W],
                                  const float (&o)[C][4], float scale_of_first, float scale_of_second) {
    const int lane = threadIdx.x % 32;
    __syncwarp(ALL_LANES);  // after the reads of `rows`, which ldmatrix has ordered; racecheck needs it
#pragma unroll
    for (int c = 0; c < C; c++) {
        unsigned* pair = reinterpret_cast<unsigned*>(&rows[lane / 4][8 * c + lane % 4 * 2]);
        pair[0] = cvt_bf16x2(o[c][0] * scale_of_first, o[c][1] * scale_of_first);
        pair[8 * W / 2] = cvt_bf16x2(o[c][2] * scale_of_second, o[c][3] * scale_of_second);
    }
    __syncwarp();
    for (int i = lane; i < 16 * C; i += 32) {
        const int row = i / C, column = i % C * 8;
        if (start + row >= n || column >= width) continue;
        bf16* at = to + (start + row) * stride + column;
        if (width % 8 == 0) {  // rows are aligned: cupy_kernels.py allocates them
            *reinterpret_cast<Pack<bf16, 8>*>(at) = *reinterpret_cast<const Pack<bf16, 8>*>(&rows[row][column]);
        } else {
            for (int j = 0; j < 8 && column + j < width; j++) at[j] = rows[row][column + j];
        }
    }
}

// A result of TF32 factors has 4 columns side by side in each lane (see add_product).
template <int C, int W>
__device__ inline void store_rows(float* to, long long stride, int start, int n, int width, float (*)[W],
                                  const float (&o)[C][4], float scale_of_first, float scale_of_second) {
    const int lane = threadIdx.x % 32;
    to += start * stride;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8;
        const float scale = i < 2 ? scale_of_first : scale_of_second;
        if (row >= n - start) continue;
#pragma unroll
        for (int c = 0; c < C; c += 4) {
            const int column = 8 * c + (i % 2 == 0 ? 4 * (lane % 4) : 16 + 4 * (lane % 4 ^ 1));
            const float four[4] = {o[c][i] * scale, o[c + 1][i] * scale, o[c + 2][i] * scale, o[c + 3][i] * scale};
            if (width % 4 == 0 && column < width) {  // rows are aligned: cupy_kernels.py allocates them
                store(to + row * stride + column, four);
            } else {
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    if (column + w < width) to[row * stride + column + w] = four[w];
                }
            }
        }
    }
}

template <typename T, int D, bool DROP = false>
__global__ void __launch_bounds__(Tiles<T, D>::THREADS, Tiles<T, D>::BLOCKS)
    attention_mma(const T* q, const T* k, const T* v, const bool* mask, T* out, float* log_sum, long long H,
                  long long L, long long S, long long d, long long e, long long offset, double scale, long long q_batch,
                  long long q_head, long long q_row, long long k_batch, long long k_head, long long k_row,
                  long long v_batch, long long v_head, long long v_row, long long mask_batch, long long mask_head,
                  long long mask_row, long long mask_column, long long out_batch, long long out_head,
                  long long out_row, const unsigned* kept, double drop_scale) {
    constexpr int ROWS = Tiles<T, D>::ROWS, KEYS = Tiles<T, D>::TILE, W = Tiles<T, D>::W;
    extern __shared__ Pack<unsigned, 4> memory[];
    T (*qs)[W] = reinterpret_cast<T (*)[W]>(memory), (*ks)[W] = qs + ROWS, (*vs)[W] = ks + KEYS;
    const int n_queries = L, n_keys = S, tiles = (n_queries + ROWS - 1) / ROWS;
    const int start = (tiles - 1 - static_cast<int>(blockIdx.x % tiles)) * ROWS;
    const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;  // row: the warp's first of the block
    const int head = blockIdx.x / tiles, b = head / static_cast<int>(H), h = head % static_cast<int>(H);
    if (mask) mask += b * mask_batch + h * mask_head;
    const Hiding hidden{mask, mask_row, mask_column, static_cast<int>(offset), n_queries, n_keys};
    const Dropout<DROP> drop(kept, head, L, S, drop_scale);
    const float unit = static_cast<float>(scale) * LOG2_E;
    const int seen = hidden.keys_seen(start + ROWS);
    Loader<T, D, KEYS> next_k(k + b * k_batch + h * k_head, k_row, n_keys, d);
    Loader<T, D, KEYS> next_v(v + b * v_batch + h * v_head, v_row, n_keys, e);
    if (seen > 0) {  // else no barrier would separate this from store_rows
        Loader<T, D, ROWS> all_q(q + b * q_batch + h * q_head, q_row, n_queries, d);
        all_q.load(start);
        next_k.load(0);
        next_v.load(0);
        all_q.store(qs, start);
    }
    float top[2] = {LOWEST, LOWEST}, total[2] = {}, o[D / 8][4] = {};
    for (int first = 0; first < seen; first += KEYS) {
        __syncthreads();  // all threads are done with the previous tiles
        next_k.store(ks, first);
        next_v.store(vs, first);
        __syncthreads();
        const bool more = first + KEYS < seen;
        if (more) next_k.load(first + KEYS);
        float s[KEYS / 8][4];
        multiply_transposed<KEYS>(s, qs + row, ks);
        hide<false>(s, hidden, start + row, first);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float higher = top[i];  // at least LOWEST, so a row with every key hidden has weights of 0, not nan
#pragma unroll
            for (int j = 0; j < KEYS / 4; j++) {
                float& score = s[j / 2][2 * i + j % 2];
                score *= unit;
                higher = fmaxf(higher, score);
            }
            higher = lane_max<4>(higher);
            const float shrink = exp2f(top[i] - higher);
            top[i] = higher;
            total[i] *= shrink;
            const unsigned kept_keys = drop.bits(start + row + lane / 4 + 8 * i, first) >> lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < KEYS / 4; j++) {
                float& score = s[j / 2][2 * i + j % 2];
                score = exp2f(score - higher);
                total[i] += score;
                score *= drop.factor(kept_keys, j / 2 * 8 + j % 2);
            }
#pragma unroll
            for (int j = 0; j < D / 4; j++) o[j / 2][2 * i + j % 2] *= shrink;
        }
        if (more) next_v.load(first + KEYS);
        add_product<KEYS>(o, s, vs);
    }
    float share[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int query = start + row + lane / 4 + 8 * i;
        const float sum = lane_sum<4>(total[i]);
        share[i] = sum == 0 ? 0.0f : 1.0f / sum;
        if (lane % 4 == 0 && query < n_queries) {
            log_sum[head * L + query] = sum == 0 ? infinity() : (log2f(sum) + top[i]) * LOG_2;
        }
    }
    out += b * out_batch + h * out_head;
    store_rows(out, out_row, start + row, n_queries, e, qs + row, o, share[0], share[1]);
}

template <typename T, int D, bool DROP = false>
__global__ void __launch_bounds__(Tiles<T, D>::THREADS,
                                  Tiles<T, D>::BACK_Q_BLOCKS - DROP * Tiles<T, D>::FEWER_WITH_DROPOUT)
    attention_backward_q_mma(const T* g, const T* q, const T* k, const T* v, const T* out, const float* log_sum,
                             const bool* mask, float* delta, T* gq, long long H, long long L, long long S, long long d,
                             long long e, long long offset, double scale, long long g_batch, long long g_head,
                             long long g_row, long long q_batch, long long q_head, long long q_row, long long k_batch,
                             long long k_head, long long k_row, long long v_batch, long long v_head, long long v_row,
                             long long out_batch, long long out_head, long long out_row, long long mask_batch,
                             long long mask_head, long long mask_row, long long mask_column, long long gq_batch,
                             long long gq_head, long long gq_row, const unsigned* kept, double drop_scale) {
    constexpr int ROWS = Tiles<T, D>::ROWS, KEYS = Tiles<T, D>::TILE, W = Tiles<T, D>::W;
    constexpr int PART = 4 / sizeof(T);  // elements in 4 bytes, which a lane reads for delta
    extern __shared__ Pack<unsigned, 4> memory[];
    T (*gs)[W] = reinterpret_cast<T (*)[W]>(memory), (*qs)[W] = gs + ROWS, (*ks)[W] = qs + ROWS, (*vs)[W] = ks + KEYS;
    const int n_queries = L, n_keys = S, tiles = (n_queries + ROWS - 1) / ROWS;
    const int start = (tiles - 1 - static_cast<int>(blockIdx.x % tiles)) * ROWS;
    const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const int head = blockIdx.x / tiles, b = head / static_cast<int>(H), h = head % static_cast<int>(H);
    if (mask) mask += b * mask_batch + h * mask_head;
    const Hiding hidden{mask, mask_row, mask_column, static_cast<int>(offset), n_queries, n_keys};
    const Dropout<DROP> drop(kept, head, L, S, drop_scale);
    const float unit = static_cast<float>(scale) * LOG2_E;
    Loader<T, D, ROWS> all_g(g + b * g_batch + h * g_head, g_row, n_queries, e);
    Loader<T, D, ROWS> all_out(out + b * out_batch + h * out_head, out_row, n_queries, e);  // for delta only
    all_g.load(start);
    all_out.load(start);
    all_g.template store<false>(gs, start);
    all_out.template store<false>(qs, start);
    __syncthreads();
    float taken_off[2], of_row[2], o[D / 8][4] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = row + lane / 4 + 8 * i, query = start + at;
        float sum = 0, x[PART], y[PART];
#pragma unroll
        for (int c = lane % 4 * PART; c < D; c += 4 * PART) {
            load(x, &gs[at][c]);
            load(y, &qs[at][c]);
#pragma unroll
            for (int j = 0; j < PART; j++) sum += x[j] * y[j];
        }
        taken_off[i] = lane_sum<4>(sum);
        of_row[i] = query < n_queries ? log_sum[head * L + query] * LOG2_E : infinity();
        if (lane % 4 == 0 && query < n_queries) delta[head * L + query] = taken_off[i];
    }
    if (!gq) return;
    Loader<T, D, ROWS> all_q(q + b * q_batch + h * q_head, q_row, n_queries, d);
    Loader<T, D, KEYS> next_k(k + b * k_batch + h * k_head, k_row, n_keys, d);
    Loader<T, D, KEYS> next_v(v + b * v_batch + h * v_head, v_row, n_keys, e);
    const int seen = hidden.keys_seen(start + ROWS);
    all_q.load(start);
    if (sizeof(T) == 4) all_g.load(start);
    __syncthreads();  // all threads are done with out
    all_q.store(qs, start);
    if (sizeof(T) == 4) all_g.store(gs, start);  // rounded
    if (seen > 0) next_k.load(0);
    if (seen > 0) next_v.load(0);
    for (int first = 0; first < seen; first += KEYS) {
        __syncthreads();  // all threads are done with the previous tiles
        next_k.store(ks, first);
        next_v.store(vs, first);
        __syncthreads();
        const bool more = first + KEYS < seen;
        if (more) next_k.load(first + KEYS);
        float s[KEYS / 8][4], gp[KEYS / 8][4];
        multiply_transposed<KEYS>(s, qs + row, ks);
        multiply_transposed<KEYS>(gp, gs + row, vs);
        hide<false>(s, hidden, start + row, first);
        unsigned kept_keys[2];
#pragma unroll
        for (int i = 0; i < 2; i++) kept_keys[i] = drop.bits(start + row + lane / 4 + 8 * i, first) >> lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float g_weight = gp[j][i] * drop.factor(kept_keys[i / 2], 8 * j + i % 2);
                s[j][i] = exp2f(s[j][i] * unit - of_row[i / 2]) * (g_weight - taken_off[i / 2]);
            }
        }
        if (more) next_v.load(first + KEYS);
        add_product<KEYS>(o, s, ks);
    }
    gq += b * gq_batch + h * gq_head;
    store_rows(gq, gq_row, start + row, n_queries, d, gs + row, o, scale, scale);
}

template <typename T, int D, bool DROP = false>
__global__ void __launch_bounds__(Tiles<T, D>::THREADS,
                                  Tiles<T, D>::BACK_KV_BLOCKS - DROP * Tiles<T, D>::FEWER_WITH_DROPOUT)
    attention_backward_kv_mma(const T* g, const T* q, const T* k, const T* v, const float* log_sum, const float* delta,
                              const bool* mask, T* gk, T* gv, long long H, long long L, long long S, long long d,
                              long long e, long long offset, double scale, long long g_batch, long long g_head,
                              long long g_row, long long q_batch, long long q_head, long long q_row, long long k_batch,
                              long long k_head, long long k_row, long long v_batch, long long v_head, long long v_row,
                              long long mask_batch, long long mask_head, long long mask_row, long long mask_column,
                              long long gk_batch, long long gk_head, long long gk_row, long long gv_batch,
                              long long gv_head, long long gv_row, const unsigned* kept, double drop_scale) {
    constexpr int ROWS = Tiles<T, D>::ROWS, QUERIES = Tiles<T, D>::TILE, W = Tiles<T, D>::W;
    extern __shared__ Pack<unsigned, 4> memory[];
    T (*ks)[W] = reinterpret_cast<T (*)[W]>(memory), (*vs)[W] = ks + ROWS, (*qs)[W] = vs + ROWS;
    T (*gs)[W] = qs + QUERIES;
    __shared__ float of_query[QUERIES], taken_off[QUERIES];
    const int n_queries = L, n_keys = S, tiles = (n_keys + ROWS - 1) / ROWS;
    const int start = static_cast<int>(blockIdx.x % tiles) * ROWS;
    const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const int head = blockIdx.x / tiles, b = head / static_cast<int>(H), h = head % static_cast<int>(H);
    if (mask) mask += b * mask_batch + h * mask_head;
    const Hiding hidden{mask, mask_row, mask_column, static_cast<int>(offset), n_queries, n_keys};
    const Dropout<DROP> drop(kept, head, L, S, drop_scale);
    const float unit = static_cast<float>(scale) * LOG2_E;
    const int unseen = start - hidden.offset;  // earlier queries see no key of the block
    int first = unseen > 0 ? unseen / QUERIES * QUERIES : 0;
    Loader<T, D, QUERIES> next_q(q + b * q_batch + h * q_head, q_row, n_queries, d);
    Loader<T, D, QUERIES> next_g(g + b * g_batch + h * g_head, g_row, n_queries, e);
    const auto row_of = [&](int first) {  // log_sum of the thread's query, or delta in the threads from QUERIES on
        const int query = first + threadIdx.x % QUERIES;
        if (threadIdx.x < QUERIES) return query < n_queries ? log_sum[head * L + query] : infinity();
        return gk && query < n_queries ? delta[head * L + query] : 0.0f;
    };
    float next_row = 0;
    if (first < n_queries) {  // else no barrier would separate this from store_rows
        Loader<T, D, ROWS> all_k(k + b * k_batch + h * k_head, k_row, n_keys, d);
        Loader<T, D, ROWS> all_v(v + b * v_batch + h * v_head, v_row, n_keys, e);
        all_k.load(start);
        all_v.load(start);
        next_q.load(first);
        next_g.load(first);
        next_row = row_of(first);
        all_k.store(ks, start);
        all_v.store(vs, start);
    }
    float ok[D / 8][4] = {}, ov[D / 8][4] = {};
    for (; first < n_queries; first += QUERIES) {
        __syncthreads();  // all threads are done with the previous tiles
        next_q.store(qs, first);
        next_g.store(gs, first);
        if (threadIdx.x < QUERIES) of_query[threadIdx.x] = next_row * LOG2_E;
        else if (threadIdx.x < 2 * QUERIES) taken_off[threadIdx.x - QUERIES] = next_row;
        __syncthreads();
        const bool more = first + QUERIES < n_queries;
        if (more) next_q.load(first + QUERIES);
        float s[QUERIES / 8][4], gp[QUERIES / 8][4];
        multiply_transposed<QUERIES>(s, ks + row, qs);
        hide<true>(s, hidden, first, start + row);
        unsigned kept_keys[QUERIES / 8][2];
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                kept_keys[j][i] = drop.bits(first + 8 * j + lane % 4 * 2 + i, start + row + lane / 4);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[j][i] = exp2f(s[j][i] * unit - of_query[8 * j + lane % 4 * 2 + i % 2]);
                if (DROP) gp[j][i] = s[j][i] * drop.factor(kept_keys[j][i % 2], i / 2 * 8);  // gp is free until its product below
            }
        }
        if (gv) add_product<QUERIES>(ov, DROP ? gp : s, gs);
        if (gk) {
            multiply_transposed<QUERIES>(gp, vs + row, gs);
#pragma unroll
            for (int j = 0; j < QUERIES / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float g_weight = gp[j][i] * drop.factor(kept_keys[j][i % 2], i / 2 * 8);
                    s[j][i] *= g_weight - taken_off[8 * j + lane % 4 * 2 + i % 2];
                }
            }
        }
        if (more) next_g.load(first + QUERIES);
        if (more) next_row = row_of(first + QUERIES);
        if (gk) add_product<QUERIES>(ok, s, qs);
    }
    const long long to_k = b * gk_batch + h * gk_head, to_v = b * gv_batch + h * gv_head;
    if (gk) store_rows(gk + to_k, gk_row, start + row, n_keys, d, ks + row, ok, scale, scale);
    if (gv) store_rows(gv + to_v, gv_row, start + row, n_keys, e, vs + row, ov, 1.0f, 1.0f);
}

// --- Embedding: the rows of g (n, c) summed by id, in two stages. Each thread of a block adds one column of `chunk`
// rows, in order, into partial (chunks, n_rows, c); then column_sums adds the chunks. n_rows blockDim.x <= TABLE.

constexpr int TABLE = 12288;  // floats, 48 KiB

template <typename T>
__global__ void embedding_backward(const T* __restrict__ g, const long long* __restrict__ ids,
                                   float* __restrict__ partial, long long n, long long c, long long n_rows,
                                   long long chunk) {
    __shared__ float table[TABLE];  // (n_rows, blockDim.x); each thread uses its own column only
    const long long column = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (column >= c) return;
    for (int i = 0; i < n_rows; i++) table[i * blockDim.x + threadIdx.x] = 0;
    const long long start = blockIdx.y * chunk, end = start + chunk < n ? start + chunk : n;
#pragma unroll 8
    for (long long row = start; row < end; row++) {
        table[static_cast<int>(ids[row]) * blockDim.x + threadIdx.x] += to_float(g[row * c + column]);
    }
    partial += blockIdx.y * n_rows * c + column;
    for (int i = 0; i < n_rows; i++) partial[i * c] = table[i * blockDim.x + threadIdx.x];
}

// --- One optimizer step

// partial (blocks,): the sum of g^2 over each block's part of g (n,).
template <typename T>
__global__ void __launch_bounds__(256, 4) squares(const T* __restrict__ g, float* __restrict__ partial, long long n) {
    constexpr int V = 16 / sizeof(T);
    __shared__ float of_warp[32];
    const bool whole = aligned(g, 16);
    const long long first = (blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x) * V;
    float total = 0;
#pragma unroll 4
    for (long long i = first; i < n; i += gridDim.x * static_cast<long long>(blockDim.x) * V) {
        float v[V] = {};
        if (whole && i + V <= n) {
            load(v, g + i);
        } else {
#pragma unroll
            for (int j = 0; j < V; j++) v[j] = i + j < n ? to_float(g[i + j]) : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < V; j++) total += v[j] * v[j];
    }
    total = block_sum(of_warp, total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// partial (m,) -> out (2,): the norm, and min(1, max_norm / (norm + 1e-6)); one block.
__global__ void norm_and_scale(const float* partial, float* out, long long m, double max_norm) {
    __shared__ float of_warp[32];
    float total = 0;
    for (long long i = threadIdx.x; i < m; i += blockDim.x) total += partial[i];
    total = block_sum(of_warp, total);
    if (threadIdx.x > 0) return;
    const float norm = sqrtf(total), scale = static_cast<float>(max_norm) / (norm + 1e-6f);
    out[0] = norm;
    out[1] = scale >= 1 ? 1.0f : scale;  // nan stays nan
}

// Adam on p, m, v (n,) with the gradient g (n,) of type T, times *clip unless clip is null. rates (3,) are
// lr / (1 - beta1^t), sqrt(1 - beta2^t) and lr weight_decay. p_half (n,), which may be null, becomes p in bf16.
// Kingma & Ba, arXiv:1412.6980, algorithm 1; decoupled decay: Loshchilov & Hutter, arXiv:1711.05101.
struct Adam {
    float rate, root, decay, clip, beta1, beta2, rest1, rest2, eps, weight_decay;
    bool decoupled;

    __device__ void operator()(float& p, float g, float& m, float& v) const {
        g *= clip;
        if (decoupled) {
            p *= 1.0f - decay;
        } else {
            g += weight_decay * p;
        }
        m = m * beta1 + g * rest1;
        v = v * beta2 + g * g * rest2;
        p -= m / (sqrtf(v) / root + eps) * rate;
    }
};

template <typename T>
__global__ void __launch_bounds__(256, 4)
    adam_step(float* p, const T* g, float* m, float* v, const float* rates, const float* clip, bf16* p_half,
              long long n, double beta1, double beta2, double eps, double weight_decay, long long decoupled) {
    const Adam step{rates[0], rates[1], rates[2], clip ? *clip : 1.0f,
                    static_cast<float>(beta1), static_cast<float>(beta2), static_cast<float>(1 - beta1),
                    static_cast<float>(1 - beta2), static_cast<float>(eps), static_cast<float>(weight_decay),
                    decoupled != 0};
    const long long i = (blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x) * 4;
    const bool whole = aligned(p, 16) && aligned(m, 16) && aligned(v, 16) && aligned(g, sizeof(Pack<T, 4>)) &&
                       aligned(p_half, sizeof(Pack<bf16, 4>));
    if (whole && i + 4 <= n) {
        float ps[4], gs[4], ms[4], vs[4];
        load(ps, p + i);
        load(gs, g + i);
        load(ms, m + i);
        load(vs, v + i);
#pragma unroll
        for (int j = 0; j < 4; j++) step(ps[j], gs[j], ms[j], vs[j]);
        store(p + i, ps);
        store(m + i, ms);
        store(v + i, vs);
        if (p_half) store(p_half + i, ps);
        return;
    }
    for (long long j = i; j < i + 4 && j < n; j++) {
        step(p[j], to_float(g[j]), m[j], v[j]);
        if (p_half) p_half[j] = rounded<bf16>(p[j]);
    }
}

// --- Random numbers: Philox4x64-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: the
// sequence of numpy.random.Philox(key=key[0], counter=[0, 0, key[1], key[2]]), whose first block has counter 1.
// out (n,) starts at number key[3] of the sequence. A thread computes a block of four numbers in [0, 1): the upper 53
// of 64 bits, times 2^-53, rounded to T, which may also be double.
template <typename T>
__device__ T drawn(double value) {
    return rounded<T>(static_cast<float>(value));
}

template <>
__device__ double drawn<double>(double value) {
    return value;
}

template <typename T>
__device__ bool is_dropped(T drawn, double p) {
    return to_float(drawn) < static_cast<float>(p);
}

template <>
__device__ bool is_dropped<double>(double drawn, double p) {
    return drawn < p;
}

// 0 for a number that is dropped, else `scale`.
template <typename T>
__device__ T of_mask(T drawn, double p, double scale) {
    return rounded<T>(is_dropped(drawn, p) ? 0.0f : static_cast<float>(scale));
}

template <>
__device__ double of_mask<double>(double drawn, double p, double scale) {
    return is_dropped(drawn, p) ? 0.0 : scale;
}

// The numbers 4 block to 4 block + 3 of the sequence of `key`.
__device__ inline void draw(double (&to)[4], const unsigned long long* key, unsigned long long block) {
    typedef unsigned long long u64;
    u64 x[4] = {block + 1, 0, key[1], key[2]}, key0 = key[0], key1 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 high0 = __umul64hi(0xD2E7470EE14C6C93, x[0]), low0 = 0xD2E7470EE14C6C93 * x[0];
        const u64 high1 = __umul64hi(0xCA5A826395121157, x[2]), low1 = 0xCA5A826395121157 * x[2];
        x[0] = high1 ^ x[1] ^ key0;
        x[1] = low1;
        x[2] = high0 ^ x[3] ^ key1;
        x[3] = low0;
        key0 += 0x9E3779B97F4A7C15;
        key1 += 0xBB67AE8584CAA73B;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = static_cast<double>(x[i] >> 11) * 1.1102230246251565e-16;
}

// With MASK, the mask of dropout: the numbers become 0 or `scale`.
template <typename T, bool MASK>
__global__ void __launch_bounds__(256, 4)
    uniform(T* out, const unsigned long long* key, long long n, double p, double scale) {
    const unsigned long long first = blockIdx.x * static_cast<unsigned long long>(blockDim.x);
    const unsigned long long block = key[3] / 4 + first + threadIdx.x;
    double values[4];
    draw(values, key, block);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const long long at = static_cast<long long>(block * 4 + i - key[3]);  // may be negative
        const T value = drawn<T>(values[i]);
        if (at >= 0 && at < n) out[at] = MASK ? of_mask(value, p, scale) : value;
    }
}

// Dropout of attention weights: kept (B, H, L, words), where bit i of word w is 0 if the weight of key 32 w + i is
// dropped. The numbers are those of a mask (B, H, L, S) in T. A thread computes one word of the n, unless all its keys
// come after query + offset, which hides them.
template <typename T>
__global__ void __launch_bounds__(256, 4)
    dropout_bits(unsigned* kept, const unsigned long long* key, long long n, long long L, long long S, long long offset,
                 double p) {
    const long long words = (S + 31) / 32, at = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    const long long row = at / words, first = at % words * 32;
    if (at >= n || first > row % L + offset) return;
    const unsigned long long start = key[3] + row * S + first;
    unsigned bits = 0;
    for (int i = -static_cast<int>(start % 4); i < 32; i += 4) {
        double values[4];
        draw(values, key, (start + i) / 4);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (i + j >= 0 && i + j < 32 && !is_dropped(drawn<T>(values[j]), p)) bits |= 1u << (i + j);
        }
    }
    kept[at] = bits;
}
