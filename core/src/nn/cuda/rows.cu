// What happens to rows and to single numbers: norms, modulation, gates, rotary positions, activations, group norms and
// AdamW, each in one pass over memory. Compiled for each type of number: -DBF16=1 or 0. Arithmetic is in f32.

typedef long long i64;
typedef unsigned int u32;

#if BF16
typedef unsigned short num;
__device__ inline float wide(num x) { return __uint_as_float((u32)x << 16); }
__device__ inline num narrow(float x) {
    num y;
    asm("cvt.rn.bf16.f32 %0, %1;\n" : "=h"(y) : "f"(x));
    return y;
}
#else
typedef float num;
__device__ inline float wide(num x) { return x; }
__device__ inline num narrow(float x) { return x; }
#endif

#define WARPS 4

__device__ inline float over_warp(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

// The sum over a block of 256 threads, the same in all.
__device__ float over_block(float x) {
    __shared__ float warps[8];
    __syncthreads();  // a call before this one may still be read
    x = over_warp(x);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
    for (int i = 0; i < 8; i++) x += warps[i];
    return x;
}

// `V` neighbouring numbers at once, by accesses of 16 bytes, the widest there are: a warp's reads then fill whole cache lines.
template <int V>
struct Several {
    num x[V];
};
template <int V>
__device__ inline Several<V> several(const num* from) {
    Several<V> out;
#if BF16
    if (V == 8) {
        uint4 all = *(const uint4*)from;
        u32 pairs[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
        for (int i = 0; i < V / 2; i++) out.x[2 * i] = (num)pairs[i], out.x[2 * i + 1] = (num)(pairs[i] >> 16);
        return out;
    }
    if (V == 4) {
        uint2 both = *(const uint2*)from;
        out.x[0] = (num)both.x, out.x[1] = (num)(both.x >> 16), out.x[2] = (num)both.y, out.x[3] = (num)(both.y >> 16);
        return out;
    }
#else
    if (V >= 4) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            float4 all = *(const float4*)(from + i);
            out.x[i] = all.x, out.x[i + 1] = all.y, out.x[i + 2] = all.z, out.x[i + 3] = all.w;
        }
        return out;
    }
#endif
    for (int i = 0; i < V; i++) out.x[i] = from[i];
    return out;
}
template <int V>
__device__ inline void put(num* to, const Several<V>& from) {
#if BF16
    u32 pairs[V / 2 + 1];
#pragma unroll
    for (int i = 0; i < V / 2; i++) pairs[i] = from.x[2 * i] | (u32)from.x[2 * i + 1] << 16;
    if (V == 8) {
        *(uint4*)to = make_uint4(pairs[0], pairs[1], pairs[2 % (V / 2 + 1)], pairs[3 % (V / 2 + 1)]);
        return;
    }
    if (V == 4) {
        *(uint2*)to = make_uint2(pairs[0], pairs[1 % (V / 2 + 1)]);
        return;
    }
#else
    if (V >= 4) {
#pragma unroll
        for (int i = 0; i < V; i += 4)
            *(float4*)(to + i) = make_float4(from.x[i], from.x[(i + 1) % V], from.x[(i + 2) % V], from.x[(i + 3) % V]);
        return;
    }
#endif
    for (int i = 0; i < V; i++) to[i] = from.x[i];
}

// A vector for each of consecutive `span` rows, or none. `more` is added to it.
struct PerRow {
    const num* data;
    i64 span;
    float more;
};
__device__ inline const num* of_row(const PerRow& p, i64 row, int width) {
    return p.data ? p.data + row / p.span * width : nullptr;
}

template <int V>
__device__ inline float mean_of(const num* x, int width, int lane) {
    float sum = 0.0f;
    for (int i = lane * V; i < width; i += 32 * V) {
        Several<V> some = several<V>(x + i);
#pragma unroll
        for (int j = 0; j < V; j++) sum += wide(some.x[j]);
    }
    return over_warp(sum) / width;
}
// One over the root of the mean square of what is left.
template <int V>
__device__ inline float factor_of(const num* x, int width, int lane, float mean, float eps) {
    float sum = 0.0f;
    for (int i = lane * V; i < width; i += 32 * V) {
        Several<V> some = several<V>(x + i);
#pragma unroll
        for (int j = 0; j < V; j++) sum += (wide(some.x[j]) - mean) * (wide(some.x[j]) - mean);
    }
    return 1.0f / sqrtf(over_warp(sum) / width + eps);
}

// (x - mean) / deviation * gain + bias; `centred` is 0 where only the mean square is brought to 1. A warp a row.
template <int V>
__device__ void norm(const num* x, num* out, PerRow gain, PerRow bias, i64 rows, int width, int centred, float eps) {
    i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const num *from = x + row * width, *gains = of_row(gain, row, width), *biases = of_row(bias, row, width);
    float mean = centred ? mean_of<V>(from, width, lane) : 0.0f, factor = factor_of<V>(from, width, lane, mean, eps);
    for (int i = lane * V; i < width; i += 32 * V) {
        Several<V> some = several<V>(from + i), g, b;
        if (gains) g = several<V>(gains + i);
        if (biases) b = several<V>(biases + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float y = (wide(some.x[j]) - mean) * factor;
            if (gains) y *= wide(g.x[j]) + gain.more;
            if (biases) y += wide(b.x[j]);
            some.x[j] = narrow(y);
        }
        put<V>(out + row * width + i, some);
    }
}

// With u the normed row, r its factor, h the gradient times the gain: r (h - mean(h) - u mean(h u)).
template <int V>
__device__ void norm_backward(const num* x, const num* gradient, num* out, PerRow gain, i64 rows, int width, int centred, float eps) {
    i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const num *from = x + row * width, *g = gradient + row * width, *gains = of_row(gain, row, width);
    float mean = centred ? mean_of<V>(from, width, lane) : 0.0f, factor = factor_of<V>(from, width, lane, mean, eps);
    float across = 0.0f, along = 0.0f;
    for (int i = lane * V; i < width; i += 32 * V) {
        Several<V> some = several<V>(from + i), h = several<V>(g + i), m;
        if (gains) m = several<V>(gains + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float each = wide(h.x[j]) * (gains ? wide(m.x[j]) + gain.more : 1.0f);
            across += each;
            along += each * (wide(some.x[j]) - mean) * factor;
        }
    }
    across = centred ? over_warp(across) / width : 0.0f;
    along = over_warp(along) / width;
    for (int i = lane * V; i < width; i += 32 * V) {
        Several<V> some = several<V>(from + i), h = several<V>(g + i), m;
        if (gains) m = several<V>(gains + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float each = wide(h.x[j]) * (gains ? wide(m.x[j]) + gain.more : 1.0f);
            some.x[j] = narrow(factor * (each - across - (wide(some.x[j]) - mean) * factor * along));
        }
        put<V>(out + row * width + i, some);
    }
}

// The sums over a block of ROW_THREADS threads of two numbers, the same in all threads.
#define ROW_THREADS 128
__device__ inline float2 over_row(float2 x) {
    __shared__ float2 warps[ROW_THREADS / 32];
    x.x = over_warp(x.x), x.y = over_warp(x.y);
    __syncthreads();  // as in over_block
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < ROW_THREADS / 32; i++) x.x += warps[i].x, x.y += warps[i].y;
    return x;
}

// Wide rows: a block a row, which it reads once and holds in registers. K times 8 numbers a thread, so `width` is a multiple of 8
// and at most K * 8 * ROW_THREADS.
template <int K>
struct HeldRow {
    float x[K][8];
    float mean, factor;
};
template <int K>
__device__ inline void hold(HeldRow<K>& row, const num* from, int width, int centred, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < K; k++) {
        int at = (k * ROW_THREADS + threadIdx.x) * 8;
        if (at >= width) continue;
        Several<8> some = several<8>(from + at);
#pragma unroll
        for (int j = 0; j < 8; j++) row.x[k][j] = wide(some.x[j]), sum += row.x[k][j];
    }
    row.mean = centred ? over_row(make_float2(sum, 0.0f)).x / width : 0.0f;
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < K; k++) {
        if ((k * ROW_THREADS + threadIdx.x) * 8 >= width) continue;  // never loaded
#pragma unroll
        for (int j = 0; j < 8; j++) squares += (row.x[k][j] - row.mean) * (row.x[k][j] - row.mean);
    }
    row.factor = 1.0f / sqrtf(over_row(make_float2(squares, 0.0f)).x / width + eps);
}

template <int K>
__device__ void norm_wide(const num* x, num* out, PerRow gain, PerRow bias, i64 row, int width, int centred, float eps) {
    const num *gains = of_row(gain, row, width), *biases = of_row(bias, row, width);
    HeldRow<K> held;
    hold<K>(held, x + row * width, width, centred, eps);
#pragma unroll
    for (int k = 0; k < K; k++) {
        int at = (k * ROW_THREADS + threadIdx.x) * 8;
        if (at >= width) continue;
        Several<8> g, b, y;
        if (gains) g = several<8>(gains + at);
        if (biases) b = several<8>(biases + at);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float z = (held.x[k][j] - held.mean) * held.factor;
            if (gains) z *= wide(g.x[j]) + gain.more;
            if (biases) z += wide(b.x[j]);
            y.x[j] = narrow(z);
        }
        put<8>(out + row * width + at, y);
    }
}

template <int K>
__device__ void norm_backward_wide(const num* x, const num* gradient, num* out, PerRow gain, i64 row, int width, int centred, float eps) {
    const num *from = gradient + row * width, *gains = of_row(gain, row, width);
    HeldRow<K> held;
    hold<K>(held, x + row * width, width, centred, eps);
    float h[K][8];
    float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int k = 0; k < K; k++) {
        int at = (k * ROW_THREADS + threadIdx.x) * 8;
        if (at >= width) continue;
        Several<8> g = several<8>(from + at), m;
        if (gains) m = several<8>(gains + at);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            held.x[k][j] = (held.x[k][j] - held.mean) * held.factor;
            h[k][j] = wide(g.x[j]) * (gains ? wide(m.x[j]) + gain.more : 1.0f);
            sums.x += h[k][j];
            sums.y += h[k][j] * held.x[k][j];
        }
    }
    sums = over_row(sums);
    float across = centred ? sums.x / width : 0.0f, along = sums.y / width;
#pragma unroll
    for (int k = 0; k < K; k++) {
        int at = (k * ROW_THREADS + threadIdx.x) * 8;
        if (at >= width) continue;
        Several<8> y;
#pragma unroll
        for (int j = 0; j < 8; j++) y.x[j] = narrow(held.factor * (h[k][j] - across - held.x[k][j] * along));
        put<8>(out + row * width + at, y);
    }
}

#define WIDE(K)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) norm_wide_##K(const num* x, num* out, PerRow gain,         \
                                                                            PerRow bias, i64 rows, int width,            \
                                                                            int centred, float eps) {                    \
        norm_wide<K>(x, out, gain, bias, blockIdx.x, width, centred, eps);                                               \
    }                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) norm_backward_wide_##K(                                    \
        const num* x, const num* gradient, num* out, PerRow gain, i64 rows, int width, int centred, float eps) {         \
        norm_backward_wide<K>(x, gradient, out, gain, blockIdx.x, width, centred, eps);                                  \
    }
WIDE(1)
WIDE(2)
WIDE(3)
WIDE(4)

// Divides by 32-bit arithmetic where the numbers allow it: a division of 64 bits is a hundred instructions.
__device__ inline i64 quotient(i64 x, int by) { return x >> 31 ? x / by : (i64)((u32)x / (u32)by); }

// gate y, plus x where there is one. A thread V numbers.
template <int V>
__device__ void gated(const num* x, PerRow gate, const num* y, num* out, i64 rows, int width) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at >= rows * width) return;
    i64 row = quotient(at, width);
    Several<V> values = several<V>(y + at), gates = several<V>(of_row(gate, row, width) + (at - row * width)), old;
    if (x) old = several<V>(x + at);
#pragma unroll
    for (int j = 0; j < V; j++) {
        float z = wide(values.x[j]) * wide(gates.x[j]);
        values.x[j] = narrow(x ? z + wide(old.x[j]) : z);
    }
    put<V>(out + at, values);
}

// The same vector in every row.
template <int V>
__device__ void spread(const num* vector, num* out, i64 rows, int width) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at < rows * width) put<V>(out + at, several<V>(vector + (at - quotient(at, width) * width)));
}

// A view whose rows of `run` numbers lie apart, in one piece. Dimensions before `first` are of one number.
struct View {
    i64 strides[6];
    int extents[6];
    int first;
    int run;
};
template <int V>
__device__ void dense(const num* x, num* out, View v, i64 count) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    i64 row = quotient(at, v.run), from = at - row * v.run;
    // The extents before `first` are 1. By constants alone: numbers found by an index that is not one would lie in memory.
#pragma unroll
    for (int i = 5; i >= 0; i--) {
        if (i < v.first) break;
        i64 outer = i == v.first ? 0 : quotient(row, v.extents[i]);
        from += (row - outer * v.extents[i]) * v.strides[i];
        row = outer;
    }
    put<V>(out + at, several<V>(x + from));
}

__device__ inline float combined(float x, float y, int product) { return product ? x * y : x + y; }

#define GELU_RATE 1.5957691216057308f  // 2 sqrt(2 / pi)
#define GELU_CUBIC 0.044715f

__device__ inline float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// 0: x Phi(x); 1: by tanh; 2: x sigmoid(1.702 x); 3: x sigmoid(x).
__device__ inline float curve(int kind, float x) {
    if (kind == 0) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    if (kind == 1) return x * logistic(GELU_RATE * x * (1.0f + GELU_CUBIC * x * x));
    return x * logistic(kind == 2 ? 1.702f * x : x);
}
__device__ inline float slope(int kind, float x) {
    if (kind == 0) return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.3989422804014327f * expf(-0.5f * x * x);
    if (kind == 1) {
        float gate = logistic(GELU_RATE * x * (1.0f + GELU_CUBIC * x * x));
        return gate + gate * (1.0f - gate) * GELU_RATE * x * (1.0f + 3.0f * GELU_CUBIC * x * x);
    }
    float rate = kind == 2 ? 1.702f : 1.0f, gate = logistic(rate * x);
    return gate + gate * (1.0f - gate) * rate * x;
}

// curve(x), or curve(x) other, or slope(x) other (`mode` 0, 1, 2).
template <int V>
__device__ void activate(const num* x, const num* other, num* out, i64 count, int kind, int mode) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    Several<V> some = several<V>(x + at), times;
    if (mode) times = several<V>(other + at);
#pragma unroll
    for (int j = 0; j < V; j++) {
        float y = mode == 2 ? slope(kind, wide(some.x[j])) : curve(kind, wide(some.x[j]));
        some.x[j] = narrow(mode == 0 ? y : y * wide(times.x[j]));
    }
    put<V>(out + at, some);
}

#define NORMS(V, SUFFIX)                                                                                                  \
    extern "C" __global__ void norm_##SUFFIX(const num* x, num* out, PerRow gain, PerRow bias, i64 rows, int width,      \
                                             int centred, float eps) {                                                   \
        norm<V>(x, out, gain, bias, rows, width, centred, eps);                                                          \
    }                                                                                                                    \
    extern "C" __global__ void norm_backward_##SUFFIX(const num* x, const num* gradient, num* out, PerRow gain,          \
                                                      i64 rows, int width, int centred, float eps) {                     \
        norm_backward<V>(x, gradient, out, gain, rows, width, centred, eps);                                             \
    }
NORMS(4, by_4)
NORMS(1, by_1)

#define BOTH(V, SUFFIX)                                                                                                  \
    extern "C" __global__ void gated_##SUFFIX(const num* x, PerRow gate, const num* y, num* out, i64 rows, int width) {  \
        gated<V>(x, gate, y, out, rows, width);                                                                          \
    }                                                                                                                    \
    extern "C" __global__ void spread_##SUFFIX(const num* vector, num* out, i64 rows, int width) {                       \
        spread<V>(vector, out, rows, width);                                                                             \
    }                                                                                                                    \
    extern "C" __global__ void dense_##SUFFIX(const num* x, num* out, View v, i64 count) { dense<V>(x, out, v, count); } \
    extern "C" __global__ void activate_##SUFFIX(const num* x, const num* other, num* out, i64 count, int kind,          \
                                                 int mode) {                                                             \
        activate<V>(x, other, out, count, kind, mode);                                                                   \
    }                                                                                                                    \
    extern "C" __global__ void combine_##SUFFIX(const num* x, const num* y, num* out, i64 count, int product) {          \
        i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * V;                                                       \
        if (at >= count) return;                                                                                         \
        Several<V> a = several<V>(x + at), b = several<V>(y + at);                                                       \
        for (int j = 0; j < V; j++) a.x[j] = narrow(combined(wide(a.x[j]), wide(b.x[j]), product));                      \
        put<V>(out + at, a);                                                                                             \
    }
BOTH(8, by_8)
BOTH(4, by_4)
BOTH(1, by_1)

// 8-bit floats: e5m2 where `five`, else e4m3.

// The code of the number nearest to x, of two as near the even one; of what is too large, that of the largest.
__device__ inline u32 float8(float x, int five) {
    u32 bits = __float_as_uint(x), sign = bits >> 24 & 128, drop = five ? 21 : 20;
    bits &= 0x7fffffff;
    if (bits < (five ? 113u : 121u) << 23) {
        // Below the normal numbers: in a sum with one this large, the last bit is worth as much as that of a code.
        float large = five ? 128.0f : 16384.0f;
        return sign | (__float_as_uint(__uint_as_float(bits) + large) - __float_as_uint(large));
    }
    bits += (1u << (drop - 1)) - 1 + (bits >> drop & 1);
    bits = (bits - ((five ? 112u : 120u) << 23)) >> drop;
    u32 most = five ? 0x7b : 0x7e;
    return sign | (bits < most ? bits : most);
}

// The largest over a block of 256 threads, the same in all.
__device__ u32 largest_of_block(u32 x) {
    __shared__ u32 warps[8];
    for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(~0u, x, step));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    for (int i = 0; i < 8; i++) x = max(x, warps[i]);
    return x;
}

// The largest magnitude that each block meets, as bits: by these, what is no number is larger than all that are.
template <int V>
__device__ void largest(const num* x, u32* out, i64 count) {
    u32 most = 0;
    for (i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * V; at < count; at += (i64)gridDim.x * blockDim.x * V) {
        Several<V> some = several<V>(x + at);
#pragma unroll
        for (int j = 0; j < V; j++) most = max(most, __float_as_uint(wide(some.x[j])) & 0x7fffffff);
    }
    most = largest_of_block(most);
    if (threadIdx.x == 0) out[blockIdx.x] = most;
}

// Codes, and the scale that brings them back, by the largest of `parts` magnitudes: that becomes `reach`. None is smaller than `least`.
template <int V>
__device__ void float8s(const num* x, const u32* magnitudes, int parts, unsigned char* out, float* scale, i64 count, int five, double reach,
                        double least) {
    u32 most = 0;
    for (int i = threadIdx.x; i < parts; i += blockDim.x) most = max(most, magnitudes[i]);
    most = largest_of_block(most);
    bool finite = most < 0x7f800000;
    float over = finite ? (float)(reach / fmax((double)__uint_as_float(most), least)) : 0.0f;
    if (blockIdx.x == 0 && threadIdx.x == 0) *scale = finite ? 1.0f / over : __uint_as_float(0x7fffffff);
    for (i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * V; at < count; at += (i64)gridDim.x * blockDim.x * V) {
        Several<V> some = several<V>(x + at);
        u32 codes[(V + 3) / 4] = {};
#pragma unroll
        // Rounded before anything is added to it, as on the host.
        for (int j = 0; j < V; j++) codes[j / 4] |= float8(__fmul_rn(wide(some.x[j]), over), five) << j % 4 * 8;
        if (V == 8) *(uint2*)(out + at) = make_uint2(codes[0], codes[V / 8]);
        if (V == 4) *(u32*)(out + at) = codes[0];
        if (V == 1) out[at] = (unsigned char)codes[0];
    }
}
#define FLOAT8(V, SUFFIX)                                                                                                \
    extern "C" __global__ void largest_##SUFFIX(const num* x, u32* out, i64 count) { largest<V>(x, out, count); }        \
    extern "C" __global__ void float8_##SUFFIX(const num* x, const u32* magnitudes, int parts, unsigned char* out,       \
                                               float* scale, i64 count, int five, double reach, double least) {          \
        float8s<V>(x, magnitudes, parts, out, scale, count, five, reach, least);                                         \
    }
FLOAT8(8, by_8)
FLOAT8(4, by_4)
FLOAT8(1, by_1)

// A matrix of bytes, columns first: its extents are multiples of 16. A block a tile of 64 x 64.
extern "C" __global__ void turned_codes(const unsigned char* x, unsigned char* out, int rows, int columns) {
    __shared__ __align__(4) unsigned char tile[64][68];
    int left = blockIdx.x * 64, top = blockIdx.y * 64, four = threadIdx.x % 16 * 4, line = threadIdx.x / 16;
    for (int i = line; i < 64; i += 16)
        if (top + i < rows && left + four < columns)
            *(u32*)&tile[i][four] = *(const u32*)(x + (i64)(top + i) * columns + left + four);
    __syncthreads();
    for (int i = line; i < 64; i += 16) {
        if (left + i >= columns || top + four >= rows) continue;
        u32 all = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) all |= (u32)tile[four + j][i] << 8 * j;
        *(u32*)(out + (i64)(left + i) * rows + top + four) = all;
    }
}

// Pairs (2i, 2i + 1) of x [B, N, H, D] turned by the angles whose cosine and sine are in [N, D / 2]; `sign` -1 turns back.
template <int V>
__device__ void rope(const num* x, const float* cosines, const float* sines, num* out, i64 count, int length, int heads, int half,
                     float sign) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    i64 pair = at / 2, head = quotient(pair, half), token = quotient(head, heads);
    i64 angle = (token - quotient(token, length) * length) * half + (pair - head * half);
    Several<V> some = several<V>(x + at);
#pragma unroll
    for (int j = 0; j < V / 2; j++) {
        float c = cosines[angle + j], s = sines[angle + j] * sign, a = wide(some.x[2 * j]), b = wide(some.x[2 * j + 1]);
        some.x[2 * j] = narrow(a * c - b * s);
        some.x[2 * j + 1] = narrow(a * s + b * c);
    }
    put<V>(out + at, some);
}
extern "C" __global__ void rope_by_8(const num* x, const float* cosines, const float* sines, num* out, i64 count, int length,
                                     int heads, int half, float sign) {
    rope<8>(x, cosines, sines, out, count, length, heads, half, sign);
}
extern "C" __global__ void rope_by_2(const num* x, const float* cosines, const float* sines, num* out, i64 count, int length,
                                     int heads, int half, float sign) {
    rope<2>(x, cosines, sines, out, count, length, heads, half, sign);
}

// The mask of a dropout: the numbers that ChaCha8 (Bernstein 2008) gives under a key, as on the host. A thread a block of it,
// which is eight numbers.
struct Key {
    u32 words[8];
};

__device__ inline void quarter(u32& a, u32& b, u32& c, u32& d) {
    a += b, d = __funnelshift_l(d ^ a, d ^ a, 16);
    c += d, b = __funnelshift_l(b ^ c, b ^ c, 12);
    a += b, d = __funnelshift_l(d ^ a, d ^ a, 8);
    c += d, b = __funnelshift_l(b ^ c, b ^ c, 7);
}

extern "C" __global__ void dropout(Key key, double probability, float kept, num* out, i64 count) {
    i64 block = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (block * 8 >= count) return;
    u32 start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}, x[16];
#pragma unroll
    for (int i = 0; i < 8; i++) start[4 + i] = key.words[i];
    start[12] = (u32)block, start[13] = (u32)(block >> 32), start[14] = start[15] = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) x[i] = start[i];
#pragma unroll
    for (int round = 0; round < 8; round += 2) {
        quarter(x[0], x[4], x[8], x[12]), quarter(x[1], x[5], x[9], x[13]);
        quarter(x[2], x[6], x[10], x[14]), quarter(x[3], x[7], x[11], x[15]);
        quarter(x[0], x[5], x[10], x[15]), quarter(x[1], x[6], x[11], x[12]);
        quarter(x[2], x[7], x[8], x[13]), quarter(x[3], x[4], x[9], x[14]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        unsigned long long low = x[2 * i] + start[2 * i], high = x[2 * i + 1] + start[2 * i + 1];
        // 53 bits, as `Rng::uniform`.
        double uniform = (double)((high << 32 | low) >> 11) * (1.0 / 9007199254740992.0);
        if (block * 8 + i < count) out[block * 8 + i] = narrow(uniform < probability ? 0.0f : kept);
    }
}

// Windows on pictures [B, C, H, W], which may be doubled first; those of some rows.
struct Windows {
    int channels, height, width, grown, kernel_h, kernel_w, stride, top, left, out_w, first, rows;
};

// The windows, [B, C * kernel_h * kernel_w, pixels], zeros where they reach beyond the picture.
extern "C" __global__ void windows(const num* x, num* out, Windows w) {
    int pixels = w.rows * w.out_w, at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= pixels) return;
    int k = blockIdx.y, b = blockIdx.z, kx = k % w.kernel_w, ky = k / w.kernel_w % w.kernel_h, c = k / w.kernel_w / w.kernel_h;
    int row = (w.first + at / w.out_w) * w.stride + ky - w.top, column = at % w.out_w * w.stride + kx - w.left;
    bool there = row >= 0 && row < w.height * w.grown && column >= 0 && column < w.width * w.grown;
    i64 from = (((i64)b * w.channels + c) * w.height + row / w.grown) * w.width + column / w.grown;
    out[((i64)b * gridDim.y + k) * pixels + at] = there ? x[from] : narrow(0.0f);
}

// The way back: each pixel is the sum over the windows that saw it. All rows.
extern "C" __global__ void gather(const num* windows, num* x, i64 count, Windows w) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    int column = at % w.width, row = at / w.width % w.height, c = at / w.width / w.height % w.channels;
    i64 b = at / w.width / w.height / w.channels, pixels = (i64)w.rows * w.out_w;
    const num* from = windows + (b * w.channels + c) * w.kernel_h * w.kernel_w * pixels;
    float sum = 0.0f;
    for (int y = row * w.grown; y < (row + 1) * w.grown; y++)
        for (int ky = 0; ky < w.kernel_h; ky++) {
            int up = y + w.top - ky;
            if (up < 0 || up % w.stride || up / w.stride >= w.rows) continue;
            for (int z = column * w.grown; z < (column + 1) * w.grown; z++)
                for (int kx = 0; kx < w.kernel_w; kx++) {
                    int left = z + w.left - kx;
                    if (left < 0 || left % w.stride || left / w.stride >= w.out_w) continue;
                    sum += wide(from[(ky * w.kernel_w + kx) * pixels + (i64)(up / w.stride) * w.out_w + left / w.stride]);
                }
        }
    x[at] = narrow(sum);
}

// The same number in every pixel of a channel.
extern "C" __global__ void spread_channels(const num* vector, num* out, i64 count, int pixels, int channels) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) out[at] = vector[at / pixels % channels];
}

// target += factor x, where the target is f32.
extern "C" __global__ void accumulate(const num* x, float* target, i64 count, float factor) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) target[at] += factor * wide(x[at]);
}

// The same for many at once: the f32 numbers of each piece go to their place. A block row a piece.
struct Piece {
    const float* from;
    i64 start, count;
};
extern "C" __global__ void accumulate_pieces(const Piece* pieces, float* target, float factor) {
    Piece piece = pieces[blockIdx.y];
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < piece.count; at += (i64)gridDim.x * blockDim.x)
        target[piece.start + at] += factor * piece.from[at];
}

// Numbers of each piece, one piece behind the other, rounded. A block row a piece.
struct Taken {
    i64 from, to, count;
};
extern "C" __global__ void gather_pieces(const Taken* pieces, const float* from, num* to) {
    Taken piece = pieces[blockIdx.y];
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < piece.count; at += (i64)gridDim.x * blockDim.x)
        to[piece.to + at] = narrow(from[piece.from + at]);
}

// The sum of the squares of each block's share, which is the same whatever ran first.
extern "C" __global__ void squares(const num* x, float* sums, i64 count) {
    float sum = 0.0f;
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (i64)gridDim.x * blockDim.x)
        sum += wide(x[at]) * wide(x[at]);
    sum = over_block(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Of each row, sums of the squared differences of its parts, which are the same whatever ran first. A block row a row.
extern "C" __global__ void squared_errors(const num* x, const float* target, float* sums, i64 row) {
    x += blockIdx.y * row, target += blockIdx.y * row;
    float sum = 0.0f;
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < row; at += (i64)gridDim.x * blockDim.x) {
        float difference = wide(x[at]) - target[at];
        sum += difference * difference;
    }
    sum = over_block(sum);
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// `scale` times the sum of all parts, each row's times its weight: one thread, in order.
extern "C" __global__ void weighted_sum(const float* sums, const float* weights, float* loss, int rows, int parts, double scale) {
    double all = 0.0;
    for (int row = 0; row < rows; row++) {
        double sum = 0.0;
        for (int part = 0; part < parts; part++) sum += sums[row * parts + part];
        all += sum * weights[row];
    }
    *loss = (float)(scale * all);
}

// The gradient of that, `outer` times.
extern "C" __global__ void error_gradient(const num* x, const float* target, const float* weights, const float* outer, num* out,
                                          i64 count, i64 row, double scale) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    float factor = (float)(scale * *outer * weights[at / row]);
    out[at] = narrow(factor * (wide(x[at]) - target[at]));
}

// Cosines of every number's angles, then their sines; an angle is the number over a power of `exp(-step)`.
extern "C" __global__ void sinusoids(const float* numbers, num* out, i64 count, int half, float step) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    int i = (int)(at % (2 * half));
    bool sine = i >= half;
    if (sine) i -= half;
    // What the host rounds to 32 bits is rounded here.
    float frequency = (float)exp((double)(step * (float)i / (float)half));
    double angle = (double)(numbers[at / (2 * half)] * frequency);
    out[at] = narrow((float)(sine ? sin(angle) : cos(angle)));
}

// `x` and a vector of `vectors` numbers, each for `span` neighbours, over and over. Numbers that are taken at once are of one number of the
// vector, or for each there is one, where `span` is 1.
template <int V>
__device__ void combine_spread(const num* x, const num* vector, num* out, i64 count, int span, int vectors, int product) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    i64 piece = quotient(at, span), from = piece - quotient(piece, vectors) * vectors;
    Several<V> some = several<V>(x + at), with;
    if (span == 1)
        with = several<V>(vector + from);
    else
#pragma unroll
        for (int j = 0; j < V; j++) with.x[j] = vector[from];
#pragma unroll
    for (int j = 0; j < V; j++) some.x[j] = narrow(combined(wide(some.x[j]), wide(with.x[j]), product));
    put<V>(out + at, some);
}
#define SPREAD(V, SUFFIX)                                                                                                    \
    extern "C" __global__ void combine_spread_##SUFFIX(const num* x, const num* vector, num* out, i64 count, int span, int vectors, \
                                                       int product) {                                                        \
        combine_spread<V>(x, vector, out, count, span, vectors, product);                                                    \
    }
SPREAD(8, by_8)
SPREAD(4, by_4)
SPREAD(1, by_1)

// The sums of what a vector of `vectors` numbers was spread to like that, a block for each; the same whatever ran first.
extern "C" __global__ void spread_sums(const num* x, num* out, i64 count, int span, int vectors) {
    i64 own = count / vectors;
    float sum = 0.0f;
    for (i64 i = threadIdx.x; i < own; i += blockDim.x) {
        i64 piece = quotient(i, span);
        sum += wide(x[(piece * vectors + blockIdx.x) * span + i - piece * span]);
    }
    sum = over_block(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = narrow(sum);
}

// Group norms: a group of a picture lies in one piece, `size` numbers, and is read by several blocks. The first pass leaves
// two sums of every piece, the second puts them together in order: no sum depends on which block was first. Numbers that are taken at once
// are of one channel.
struct Groups {
    i64 size;        // of a group: channels * pixels
    int pixels;      // of a channel
    int channels;    // of a group
    int groups;      // of a picture
    int pieces;      // of a group
    float eps;
};

// Numbers of a piece: what is taken at once is never of two.
__device__ inline i64 of_piece(const Groups& g) { return ((g.size + g.pieces - 1) / g.pieces + 7) / 8 * 8; }

__device__ inline void piece_of(const Groups& g, i64& first, i64& last) {
    i64 each = of_piece(g);
    first = blockIdx.x * each;
    last = min(first + each, g.size);
}
#define OVER_PIECE(V) for (i64 i = first + threadIdx.x * V; i < last; i += blockDim.x * V)

// The mean and the sum of squared differences from it, of a piece.
template <int V>
__device__ void group_moments(const num* x, float2* moments, Groups g) {
    const num* from = x + blockIdx.y * g.size;
    i64 first, last;
    piece_of(g, first, last);
    float sum = 0.0f, squares = 0.0f;
    OVER_PIECE(V) {
        Several<V> some = several<V>(from + i);
#pragma unroll
        for (int j = 0; j < V; j++) sum += wide(some.x[j]);
    }
    float mean = last > first ? over_block(sum) / (last - first) : 0.0f;
    OVER_PIECE(V) {
        Several<V> some = several<V>(from + i);
#pragma unroll
        for (int j = 0; j < V; j++) squares += (wide(some.x[j]) - mean) * (wide(some.x[j]) - mean);
    }
    squares = over_block(squares);
    if (threadIdx.x == 0) moments[blockIdx.y * g.pieces + blockIdx.x] = make_float2(mean, squares);
}

// The mean of a group and one over its deviation, from those of its pieces (Chan, Golub, LeVeque 1983).
__device__ inline void group_statistics(const float2* moments, const Groups& g, float& mean, float& factor) {
    float squares = 0.0f;
    mean = 0.0f;
    i64 each = of_piece(g), count = 0;
    for (int i = 0; i < g.pieces; i++) {
        i64 more = min(each, g.size - i * each);
        if (more <= 0) break;
        float2 piece = moments[blockIdx.y * g.pieces + i];
        float apart = piece.x - mean, share = (float)more / (count + more);
        mean += apart * share;
        squares += piece.y + apart * apart * share * count;
        count += more;
    }
    factor = 1.0f / sqrtf(squares / g.size + g.eps);
}

template <int V>
__device__ void group_norm(const num* x, const float2* moments, const num* weight, const num* bias, num* out, Groups g, int silu) {
    float mean, factor;
    group_statistics(moments, g, mean, factor);
    i64 first, last, start = blockIdx.y * g.size;
    piece_of(g, first, last);
    int channel = blockIdx.y % g.groups * g.channels;
    OVER_PIECE(V) {
        int c = channel + (int)quotient(i, g.pixels);
        float gain = wide(weight[c]), more = wide(bias[c]);
        Several<V> some = several<V>(x + start + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float y = (wide(some.x[j]) - mean) * factor * gain + more;
            some.x[j] = narrow(silu ? y * logistic(y) : y);
        }
        put<V>(out + start + i, some);
    }
}

// The gradient of a normed number, times its weight, and the normed number.
__device__ inline float2 group_gradient(num x, num gradient, float gain, float more, float mean, float factor, int silu) {
    float unit = (wide(x) - mean) * factor, h = wide(gradient);
    if (silu) h *= slope(3, unit * gain + more);
    return make_float2(h * gain, unit);
}

// The sums of the gradient, and of the gradient times the normed numbers, of a piece.
template <int V>
__device__ void group_sums(const num* x, const num* gradient, const float2* moments, const num* weight, const num* bias, float2* sums,
                           Groups g, int silu) {
    float mean, factor, across = 0.0f, along = 0.0f;
    group_statistics(moments, g, mean, factor);
    i64 first, last, start = blockIdx.y * g.size;
    piece_of(g, first, last);
    int channel = blockIdx.y % g.groups * g.channels;
    OVER_PIECE(V) {
        int c = channel + (int)quotient(i, g.pixels);
        float gain = wide(weight[c]), more = wide(bias[c]);
        Several<V> some = several<V>(x + start + i), towards = several<V>(gradient + start + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float2 h = group_gradient(some.x[j], towards.x[j], gain, more, mean, factor, silu);
            across += h.x;
            along += h.x * h.y;
        }
    }
    across = over_block(across);
    along = over_block(along);
    if (threadIdx.x == 0) sums[blockIdx.y * g.pieces + blockIdx.x] = make_float2(across, along);
}

template <int V>
__device__ void group_norm_backward(const num* x, const num* gradient, const float2* moments, const float2* sums, const num* weight,
                                    const num* bias, num* out, Groups g, int silu) {
    float mean, factor, across = 0.0f, along = 0.0f;
    group_statistics(moments, g, mean, factor);
    for (int i = 0; i < g.pieces; i++) {
        across += sums[blockIdx.y * g.pieces + i].x;
        along += sums[blockIdx.y * g.pieces + i].y;
    }
    across /= g.size;
    along /= g.size;
    i64 first, last, start = blockIdx.y * g.size;
    piece_of(g, first, last);
    int channel = blockIdx.y % g.groups * g.channels;
    OVER_PIECE(V) {
        int c = channel + (int)quotient(i, g.pixels);
        float gain = wide(weight[c]), more = wide(bias[c]);
        Several<V> some = several<V>(x + start + i), towards = several<V>(gradient + start + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float2 h = group_gradient(some.x[j], towards.x[j], gain, more, mean, factor, silu);
            some.x[j] = narrow(factor * (h.x - across - h.y * along));
        }
        put<V>(out + start + i, some);
    }
}
#define GROUP_NORMS(V, SUFFIX)                                                                                               \
    extern "C" __global__ void group_moments_##SUFFIX(const num* x, float2* moments, Groups g) { group_moments<V>(x, moments, g); } \
    extern "C" __global__ void group_norm_##SUFFIX(const num* x, const float2* moments, const num* weight, const num* bias, num* out, \
                                                   Groups g, int silu) {                                                     \
        group_norm<V>(x, moments, weight, bias, out, g, silu);                                                               \
    }                                                                                                                        \
    extern "C" __global__ void group_sums_##SUFFIX(const num* x, const num* gradient, const float2* moments, const num* weight, \
                                                   const num* bias, float2* sums, Groups g, int silu) {                      \
        group_sums<V>(x, gradient, moments, weight, bias, sums, g, silu);                                                    \
    }                                                                                                                        \
    extern "C" __global__ void group_norm_backward_##SUFFIX(const num* x, const num* gradient, const float2* moments,        \
                                                            const float2* sums, const num* weight, const num* bias, num* out, \
                                                            Groups g, int silu) {                                            \
        group_norm_backward<V>(x, gradient, moments, sums, weight, bias, out, g, silu);                                      \
    }
GROUP_NORMS(8, by_8)
GROUP_NORMS(4, by_4)
GROUP_NORMS(1, by_1)

#if !BF16
struct Update {
    float keep1, take1, keep2, take2, shrink, step_size, root_correction, epsilon;
};

extern "C" __global__ void adamw(float* parameters, const float* gradient, float* first, float* second, i64 count, Update u) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    float g = gradient[at], m = u.keep1 * first[at] + u.take1 * g, v = u.keep2 * second[at] + u.take2 * g * g;
    first[at] = m;
    second[at] = v;
    parameters[at] = u.shrink * parameters[at] - u.step_size * m / (sqrtf(v) / u.root_correction + u.epsilon);
}
#endif
