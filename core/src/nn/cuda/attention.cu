// Attention without a matrix of scores (Dao, FlashAttention-2, arXiv:2307.08691), on bf16 with sums in f32, by the tensor
// cores of compute capability 8.0 and up (mma.sync). Compiled for each width of a head: -DD=.. (a multiple of 16, at most 128).
//
// Heads come packed, [B, N, H, D], in one or two parts that count as one sequence. Scores are kept in powers of two:
// `scale` has log2(e) in it. Backward makes the weights again, once for the keys and once for the queries, so that no
// two blocks add to the same number and the result is the same bits on every run.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef long long i64;

#define THREADS 128
#define STRIDE (D + 8)  // 16 bytes more than a row: eight rows then lie in different banks
#define INFINITE __int_as_float(0x7f800000)
#define LOG2E 1.4426950408889634f

// [B, N, H, D] in two parts: the first `split` tokens are `first`'s. `row` is H * D.
struct Tokens {
    bf16* first;
    bf16* second;
    int split, total, row;
};

// Where head h of token i begins: two parts are read as one sequence, so that they need not be copied together.
__device__ inline bf16* place(const Tokens& t, int b, int h, int i) {
    bool early = i < t.split;
    bf16* part = early ? t.first : t.second;
    i64 token = early ? (i64)b * t.split + i : (i64)b * (t.total - t.split) + (i - t.split);
    return part + token * t.row + h * D;
}

__device__ inline u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes into shared memory, zeros if there are none. Asynchronous: the next tile arrives while this one is multiplied.
__device__ inline void copy16(u32 to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;\n"); }
template <int PENDING>
__device__ inline void wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING));
    __syncthreads();
}

template <int ROWS>
__device__ inline void load(bf16* to, const Tokens& t, int b, int h, int start) {
    for (int i = threadIdx.x; i < ROWS * (D / 8); i += THREADS) {
        int row = i / (D / 8), column = i % (D / 8) * 8, token = start + row;
        bool there = token < t.total;
        // Past the end the address is that of token 0: it must be valid even where nothing is read.
        copy16(shared_address(to + row * STRIDE + column), place(t, b, h, there ? token : 0) + column, there);
    }
}

// The left operand of a product: 16 rows and 16 columns of a tile.
__device__ inline void left(u32 (&a)[4], const bf16* tile, int row, int column) {
    int lane = threadIdx.x % 32;
    u32 from = shared_address(tile + (row + lane % 16) * STRIDE + column + lane / 16 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(from));
}

// Two right operands of 16 x 8 from a tile's transpose: 16 rows of it are their columns.
__device__ inline void right_of_rows(u32 (&b)[4], const bf16* tile, int row, int column) {
    int lane = threadIdx.x % 32;
    u32 from = shared_address(tile + (row + lane / 16 * 8 + lane % 8) * STRIDE + column + lane / 8 % 2 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(from));
}

// Two right operands of 16 x 8 from a tile as it lies: 16 columns of it are theirs.
__device__ inline void right_of_columns(u32 (&b)[4], const bf16* tile, int row, int column) {
    int lane = threadIdx.x % 32;
    u32 from = shared_address(tile + (row + lane % 16) * STRIDE + column + lane / 16 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(from));
}

__device__ inline void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline u32 pair(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ inline float wide(bf16 x) { return __uint_as_float((u32)x << 16); }
__device__ inline float power(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// Two neighbouring 16 x 8 results as a left operand of 16 x 16.
__device__ inline void as_left(u32 (&a)[4], const float (&c)[4], const float (&d)[4]) {
    a[0] = pair(c[0], c[1]);
    a[1] = pair(c[2], c[3]);
    a[2] = pair(d[0], d[1]);
    a[3] = pair(d[2], d[3]);
}

// What holds for the four threads that share a row.
__device__ inline float most(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

#define Q_ROWS 128
#define K_ROWS 64

// out = softmax(scale q k^T + bias) v, and for each row the logarithm (base 2) of the sum of its exponentials, [B, H, N].
// `counts`: how many keys a batch row sees, or null. `bias`: [1 or B, H, N, M], `bias_batch` apart, or null.
extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(
    Tokens q, Tokens k, Tokens v, Tokens out, float* logsum, const bf16* bias, i64 bias_batch, const u32* counts, int causal,
    float scale) {
    extern __shared__ __align__(16) bf16 tiles[];
    bf16 *tile_q = tiles, *tile_k = tile_q + Q_ROWS * STRIDE, *tile_v = tile_k + K_ROWS * STRIDE;
    int start = blockIdx.x * Q_ROWS, h = blockIdx.y, b = blockIdx.z;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    int offset = k.total - q.total;
    int reach = counts ? (int)counts[b] : k.total;
    int last = causal ? min(reach, start + Q_ROWS + offset) : reach;
    int rounds = (last + K_ROWS - 1) / K_ROWS;

    float o[2][D / 8][4], high[2][2], total[2][2];
#pragma unroll
    for (int t = 0; t < 2; t++) {
#pragma unroll
        for (int e = 0; e < D / 8; e++) o[t][e][0] = o[t][e][1] = o[t][e][2] = o[t][e][3] = 0.0f;
        high[t][0] = high[t][1] = -INFINITE;
        total[t][0] = total[t][1] = 0.0f;
    }
    load<Q_ROWS>(tile_q, q, b, h, start);
    load<K_ROWS>(tile_k, k, b, h, 0);
    commit();
    for (int round = 0; round < rounds; round++) {
        int first = round * K_ROWS;
        load<K_ROWS>(tile_v, v, b, h, first);
        commit();
        wait<1>();  // the keys are there
        float s[2][K_ROWS / 8][4];
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int n = 0; n < K_ROWS / 8; n++) s[t][n][0] = s[t][n][1] = s[t][n][2] = s[t][n][3] = 0.0f;
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            u32 a[2][4], keys[4];
            left(a[0], tile_q, warp * 32, d);
            left(a[1], tile_q, warp * 32 + 16, d);
#pragma unroll
            for (int n = 0; n < K_ROWS / 8; n += 2) {
                right_of_rows(keys, tile_k, n * 8, d);
#pragma unroll
                for (int t = 0; t < 2; t++) {
                    multiply(s[t][n], a[t], keys[0], keys[1]);
                    multiply(s[t][n + 1], a[t], keys[2], keys[3]);
                }
            }
        }
        __syncthreads();  // all warps have read these keys: the next ones may take their place
        if (round + 1 < rounds) load<K_ROWS>(tile_k, k, b, h, first + K_ROWS);
        commit();  // also where nothing was loaded: wait<1> below counts groups
        bool whole = !bias && !causal && first + K_ROWS <= reach;
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int query = start + warp * 32 + t * 16 + half * 8 + row;
                int limit = causal ? min(reach, query + 1 + offset) : reach;
                const bf16* biases = bias && query < q.total
                    ? bias + b * bias_batch + ((i64)h * q.total + query) * k.total : nullptr;
                float top = high[t][half];
#pragma unroll
                for (int n = 0; n < K_ROWS / 8; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float x = s[t][n][half * 2 + c] * scale;
                        if (!whole) {
                            int key = first + n * 8 + column + c;
                            if (key >= limit) x = -INFINITE;
                            else if (biases) x += wide(biases[key]) * LOG2E;
                        }
                        s[t][n][half * 2 + c] = x;
                        top = fmaxf(top, x);
                    }
                top = most(top);  // finite: every row sees the first key
                // A higher top makes what was summed so far smaller (online softmax; Milakov, Gimelshein, arXiv:1805.02867).
                float shrink = power(high[t][half] - top), gained = 0.0f;
                high[t][half] = top;
#pragma unroll
                for (int n = 0; n < K_ROWS / 8; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float p = power(s[t][n][half * 2 + c] - top);
                        s[t][n][half * 2 + c] = p;
                        gained += p;
                    }
                total[t][half] = total[t][half] * shrink + gained;
#pragma unroll
                for (int e = 0; e < D / 8; e++) {
                    o[t][e][half * 2] *= shrink;
                    o[t][e][half * 2 + 1] *= shrink;
                }
            }
        wait<1>();  // the values are there
#pragma unroll
        for (int n = 0; n < K_ROWS / 8; n += 2) {
            u32 a[2][4], values[4];
            as_left(a[0], s[0][n], s[0][n + 1]);
            as_left(a[1], s[1][n], s[1][n + 1]);
#pragma unroll
            for (int e = 0; e < D / 8; e += 2) {
                right_of_columns(values, tile_v, n * 8, e * 8);
#pragma unroll
                for (int t = 0; t < 2; t++) {
                    multiply(o[t][e], a[t], values[0], values[1]);
                    multiply(o[t][e + 1], a[t], values[2], values[3]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = start + warp * 32 + t * 16 + half * 8 + row;
            float all = sum(total[t][half]);
            if (query >= q.total) continue;
            float factor = 1.0f / all;
            bf16* to = place(out, b, h, query) + column;
#pragma unroll
            for (int e = 0; e < D / 8; e++)
                *(u32*)(to + e * 8) = pair(o[t][e][half * 2] * factor, o[t][e][half * 2 + 1] * factor);
            if (logsum && column == 0) logsum[((i64)b * gridDim.y + h) * q.total + query] = high[t][half] + log2f(all);
        }
}

// For each query the sum of its result times the gradient of that, [B, H, N]. A warp a query.
extern "C" __global__ void __launch_bounds__(THREADS) attention_inner(Tokens out, Tokens gradient, float* inner) {
    int query = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, h = blockIdx.y, b = blockIdx.z, lane = threadIdx.x % 32;
    if (query >= out.total) return;
    const bf16 *x = place(out, b, h, query), *g = place(gradient, b, h, query);
    float sum = 0.0f;
    for (int i = lane; i < D; i += 32) sum += wide(x[i]) * wide(g[i]);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) inner[((i64)b * gridDim.y + h) * out.total + query] = sum;
}

#define ROWS 64
#define EACH (ROWS / 8)

// s = 16 rows of `tile`, from `row` on, times the transpose of the 64 rows of `other`.
__device__ inline void scores(float (&s)[EACH][4], const bf16* tile, int row, const bf16* other) {
#pragma unroll
    for (int n = 0; n < EACH; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        u32 a[4], columns[4];
        left(a, tile, row, d);
#pragma unroll
        for (int n = 0; n < EACH; n += 2) {
            right_of_rows(columns, other, n * 8, d);
            multiply(s[n], a, columns[0], columns[1]);
            multiply(s[n + 1], a, columns[2], columns[3]);
        }
    }
}

// sum += s (16 x 64) times the 64 rows of `tile`.
__device__ inline void add_product(float (&sum)[D / 8][4], const float (&s)[EACH][4], const bf16* tile) {
#pragma unroll
    for (int n = 0; n < EACH; n += 2) {
        u32 a[4], columns[4];
        as_left(a, s[n], s[n + 1]);
#pragma unroll
        for (int e = 0; e < D / 8; e += 2) {
            right_of_columns(columns, tile, n * 8, e * 8);
            multiply(sum[e], a, columns[0], columns[1]);
            multiply(sum[e + 1], a, columns[2], columns[3]);
        }
    }
}

__device__ inline void clear(float (&x)[D / 8][4]) {
#pragma unroll
    for (int e = 0; e < D / 8; e++) x[e][0] = x[e][1] = x[e][2] = x[e][3] = 0.0f;
}

__device__ inline void store(const Tokens& to, int b, int h, int first, const float (&x)[D / 8][4], float factor) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int token = first + half * 8 + lane / 4;
        if (token >= to.total) continue;
        bf16* at = place(to, b, h, token) + lane % 4 * 2;
#pragma unroll
        for (int e = 0; e < D / 8; e++) *(u32*)(at + e * 8) = pair(x[e][half * 2] * factor, x[e][half * 2 + 1] * factor);
    }
}

// The gradients of 64 keys and their values: a sum over all queries, zeros for keys that no query sees. `counts` as forward; `scale` is with
// log2(e), `plain` without.
extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_keys(
    Tokens q, Tokens k, Tokens v, Tokens gradient, const float* logsum, const float* inner, const u32* counts, Tokens dk, Tokens dv,
    float scale, float plain) {
    extern __shared__ __align__(16) bf16 tiles[];
    bf16 *tile_k = tiles, *tile_v = tile_k + ROWS * STRIDE, *tile_q = tile_v + ROWS * STRIDE, *tile_g = tile_q + ROWS * STRIDE;
    __shared__ float sums[ROWS], inners[ROWS];
    int start = blockIdx.x * ROWS, h = blockIdx.y, b = blockIdx.z;
    int own = threadIdx.x / 32 * 16, row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    int reach = counts ? (int)counts[b] : k.total;
    const float *logsums = logsum + ((i64)b * gridDim.y + h) * q.total, *all_inner = inner + ((i64)b * gridDim.y + h) * q.total;
    float sum_k[D / 8][4], sum_v[D / 8][4];
    clear(sum_k);
    clear(sum_v);
    load<ROWS>(tile_k, k, b, h, start);
    load<ROWS>(tile_v, v, b, h, start);
    // Of keys that are not seen nothing but the zeros is stored.
    for (int first = start < reach ? 0 : q.total; first < q.total; first += ROWS) {
        load<ROWS>(tile_q, q, b, h, first);
        load<ROWS>(tile_g, gradient, b, h, first);
        commit();
        if (threadIdx.x < ROWS) {
            int query = first + threadIdx.x;
            // Past the end: the weights become 0.
            sums[threadIdx.x] = query < q.total ? logsums[query] : INFINITE;
            inners[threadIdx.x] = query < q.total ? all_inner[query] : 0.0f;
        }
        wait<0>();
        // Keys as rows: the weights come out transposed, as the left operands of both products below.
        float p[EACH][4], g[EACH][4];
        scores(p, tile_k, own, tile_q);
        scores(g, tile_v, own, tile_g);
#pragma unroll
        for (int n = 0; n < EACH; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int query = n * 8 + column + c % 2;
                bool seen = start + own + c / 2 * 8 + row < reach;
                p[n][c] = seen ? power(p[n][c] * scale - sums[query]) : 0.0f;
                g[n][c] = p[n][c] * (g[n][c] - inners[query]);
            }
        add_product(sum_v, p, tile_g);
        add_product(sum_k, g, tile_q);
        __syncthreads();
    }
    store(dk, b, h, start + own, sum_k, plain);
    store(dv, b, h, start + own, sum_v, 1.0f);
}

// The gradients of 64 queries: a sum over all keys that they see.
extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries(
    Tokens q, Tokens k, Tokens v, Tokens gradient, const float* logsum, const float* inner, const u32* counts, Tokens dq, float scale,
    float plain) {
    extern __shared__ __align__(16) bf16 tiles[];
    bf16 *tile_q = tiles, *tile_g = tile_q + ROWS * STRIDE, *tile_k = tile_g + ROWS * STRIDE, *tile_v = tile_k + ROWS * STRIDE;
    int start = blockIdx.x * ROWS, h = blockIdx.y, b = blockIdx.z;
    int own = threadIdx.x / 32 * 16, lane = threadIdx.x % 32, column = lane % 4 * 2;
    int reach = counts ? (int)counts[b] : k.total;
    float sums[2], inners[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = start + own + half * 8 + lane / 4;
        i64 at = ((i64)b * gridDim.y + h) * q.total + query;
        sums[half] = query < q.total ? logsum[at] : INFINITE;
        inners[half] = query < q.total ? inner[at] : 0.0f;
    }
    float sum_q[D / 8][4];
    clear(sum_q);
    load<ROWS>(tile_q, q, b, h, start);
    load<ROWS>(tile_g, gradient, b, h, start);
    for (int first = 0; first < reach; first += ROWS) {
        load<ROWS>(tile_k, k, b, h, first);
        load<ROWS>(tile_v, v, b, h, first);
        commit();
        wait<0>();
        float p[EACH][4], g[EACH][4];
        scores(p, tile_q, own, tile_k);
        scores(g, tile_g, own, tile_v);
#pragma unroll
        for (int n = 0; n < EACH; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                // Past the end zeros were loaded, whose score of 0 would still have a weight.
                bool seen = first + n * 8 + column + c % 2 < reach;
                float weight = seen ? power(p[n][c] * scale - sums[c / 2]) : 0.0f;
                g[n][c] = weight * (g[n][c] - inners[c / 2]);
            }
        add_product(sum_q, g, tile_k);
        __syncthreads();
    }
    store(dq, b, h, start + own, sum_q, plain);
}
