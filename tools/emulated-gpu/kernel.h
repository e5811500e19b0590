// What the source of a kernel finds of CUDA when it is compiled for a CPU. Included before anything else.
#pragma once
#include <assert.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "threads.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// A block runs in one thread of the program.
#define __shared__ static __thread

#define threadIdx (emulated_thread->index)
#define blockIdx (emulated_thread->block->index)
#define blockDim (emulated_thread->block->extent)
#define gridDim (emulated_thread->block->grid)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return same_bits<int>(x); }
inline double __longlong_as_double(long long x) { return same_bits<double>(x); }
inline long long __double_as_longlong(double x) { return same_bits<long long>(x); }

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return ((unsigned long long)high << 32 | low) << (by & 31) >> 32;
}
// Rounded: never part of a product that something is added to.
inline float __fmul_rn(float x, float y) {
    float product = x * y;
    asm("" : "+x"(product));
    return product;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
inline float normcdff(float x) { return (float)normcdf(x); }
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmin(a, b);
    return (std::common_type_t<A, B>)a < (std::common_type_t<A, B>)b ? a : b;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmax(a, b);
    return (std::common_type_t<A, B>)a > (std::common_type_t<A, B>)b ? a : b;
}
namespace cuda::std {
using ::std::numeric_limits;
}

template <class T, class F>
inline T atomic_change(T* at, F change) {
    T old, next;
    __atomic_load(at, &old, __ATOMIC_SEQ_CST);
    do next = change(old);
    while (!__atomic_compare_exchange(at, &old, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return old;
}
template <class T>
using Same = std::common_type_t<T>;  // not what a template's type is taken from
template <class T>
inline T atomicAdd(T* at, Same<T> x) { return atomic_change(at, [x](T old) { return T(old + x); }); }
template <class T>
inline T atomicMin(T* at, Same<T> x) { return atomic_change(at, [x](T old) { return old < x ? old : x; }); }
template <class T>
inline T atomicMax(T* at, Same<T> x) { return atomic_change(at, [x](T old) { return old > x ? old : x; }); }
template <class T>
inline T atomicCAS(T* at, Same<T> expected, Same<T> x) { return atomic_change(at, [=](T old) { return old == expected ? x : old; }); }

// Threads together.

inline void __syncthreads() { emulated_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) {
    static char none;
    emulated_together(mask, [](void**) {}, &none);
}

template <class T>
struct Shuffled {
    T value, result;
    int from;
};
template <class T>
inline void shuffle(void** slots) {
    auto all = reinterpret_cast<Shuffled<T>**>(slots);
    for (int lane = 0; lane < 32; lane++) {
        if (!all[lane]) continue;
        memset((void*)&all[lane]->result, emulated_fill, sizeof(T));  // undefined, if the other is not there
        if (Shuffled<T>* other = all[all[lane]->from]) all[lane]->result = other->value;
    }
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int apart, int width = 32) {
    if (width != 32) emulated_fail("a shuffle of less than 32 threads is not emulated");
    Shuffled<T> slot = {value, value, (emulated_thread->lane ^ apart) & 31};
    emulated_together(mask, shuffle<T>, &slot);
    return slot.result;
}

// Numbers of 16 bits. Arithmetic is rounded after each operation, as CUDA's operators do.

struct Bfloat {
    static float wide(uint16_t bits) { return __uint_as_float((unsigned)bits << 16); }
    static uint16_t narrow(float x) {
        unsigned bits = __float_as_uint(x);
        if (x != x) return 0x7fff;
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
};
struct Half {
    static float wide(uint16_t bits) { return _cvtsh_ss(bits); }
    static uint16_t narrow(float x) { return _cvtss_sh(x, 0); }
};
template <class Format>
struct Small {
    uint16_t bits;
    Small() = default;
    template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>>
    Small(N x) : bits(Format::narrow((float)x)) {}
    operator float() const { return Format::wide(bits); }
    Small operator-() const { return -(float)*this; }
    Small& operator+=(Small x) { return *this = (float)*this + (float)x; }
    Small& operator*=(Small x) { return *this = (float)*this * (float)x; }
};
template <class F> inline Small<F> operator+(Small<F> a, Small<F> b) { return (float)a + (float)b; }
template <class F> inline Small<F> operator-(Small<F> a, Small<F> b) { return (float)a - (float)b; }
template <class F> inline Small<F> operator*(Small<F> a, Small<F> b) { return (float)a * (float)b; }
template <class F> inline Small<F> operator/(Small<F> a, Small<F> b) { return (float)a / (float)b; }
template <class F> inline Small<F> hsqrt(Small<F> x) { return sqrtf(x); }
template <class F> inline Small<F> hcos(Small<F> x) { return cosf(x); }
template <class F> inline Small<F> hsin(Small<F> x) { return sinf(x); }
template <class F> inline Small<F> hlog(Small<F> x) { return logf(x); }
template <class F> inline Small<F> hexp(Small<F> x) { return expf(x); }
template <class F> inline Small<F> __habs(Small<F> x) { return fabsf(x); }
template <class F> inline bool __hisnan(Small<F> x) { return isnan((float)x); }
template <class F> inline Small<F> __hmax_nan(Small<F> a, Small<F> b) { return isnan((float)a) || a > b ? a : b; }
template <class F> inline Small<F> __hmin_nan(Small<F> a, Small<F> b) { return isnan((float)a) || a < b ? a : b; }

using __nv_bfloat16 = Small<Bfloat>;
using __half = Small<Half>;
using half = __half;
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return same_bits<__half>(bits); }

// Enough of 8-bit numbers for candle's sources to compile.
#define __NV_E4M3 0
struct __nv_fp8_e4m3 {
    unsigned char __x;
    __nv_fp8_e4m3() = default;
    template <class N>
    __nv_fp8_e4m3(N) { emulated_fail("8-bit floats are not emulated"); }
};
inline __half __nv_cvt_fp8_to_halfraw(unsigned char, int) { emulated_fail("8-bit floats are not emulated"); }

// Instructions: the operands in the order of the text. An unknown one is a function that is not declared.

inline void ptx_cvt_rn_bf16_f32(unsigned short& to, float x) { to = Bfloat::narrow(x); }
inline void ptx_cvt_rn_bf16x2_f32(unsigned& to, float high, float low) {
    to = (unsigned)Bfloat::narrow(high) << 16 | Bfloat::narrow(low);
}
inline float no_subnormal(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x; }
inline void ptx_ex2_approx_ftz_f32(float& to, float x) { to = no_subnormal(exp2f(no_subnormal(x))); }

inline unsigned __cvta_generic_to_shared(const void* p) {
    size_t from = (const char*)p - emulated_thread->block->shared;
    if (from >= emulated_thread->block->shared_bytes) emulated_fail("no address in dynamic shared memory");
    return (unsigned)from;
}
inline char* shared_16_bytes(unsigned from) {
    const Block& block = *emulated_thread->block;
    if (from % 16 != 0) emulated_fail("16 bytes of shared memory that are not aligned");
    if (from + 16ul > block.shared_bytes) emulated_fail("beyond dynamic shared memory");
    return block.shared + from;
}
inline void ptx_cp_async_cg_shared_global(unsigned to, const void* from, int size, int bytes) {
    if (size != 16 || bytes < 0 || bytes > 16) emulated_fail("cp.async of another size");
    if (reinterpret_cast<size_t>(from) % 16) emulated_fail("cp.async from an address that is not aligned");
    emulated_copy(shared_16_bytes(to), from, bytes);
}
inline void ptx_cp_async_commit_group() { emulated_commit(); }
inline void ptx_cp_async_wait_group(int pending) { emulated_wait(pending); }

inline void need_all(void** slots) {
    for (int lane = 0; lane < 32; lane++)
        if (!slots[lane]) emulated_fail("an instruction of a whole warp without all its threads");
}

struct Matrices {
    const uint16_t* row;  // the one this thread names
    unsigned result[4];
};
template <bool TURNED>
inline void load_matrices(void** slots) {
    need_all(slots);
    auto all = reinterpret_cast<Matrices**>(slots);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            auto number = [&](int j) -> unsigned {
                int row = lane / 4, column = lane % 4 * 2 + j;
                return TURNED ? all[i * 8 + column]->row[row] : all[i * 8 + row]->row[column];
            };
            all[lane]->result[i] = number(1) << 16 | number(0);
        }
}
template <bool TURNED>
inline void ldmatrix(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned from) {
    Matrices slot = {(const uint16_t*)shared_16_bytes(from), {}};
    emulated_together(~0u, load_matrices<TURNED>, &slot);
    a = slot.result[0], b = slot.result[1], c = slot.result[2], d = slot.result[3];
}
inline void ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned from) {
    ldmatrix<false>(a, b, c, d, from);
}
inline void ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d,
                                                               unsigned from) {
    ldmatrix<true>(a, b, c, d, from);
}

struct Product {
    unsigned a[4], b[2];
    float c[4];
};
// The fragments are those of the PTX manual, "Matrix Fragments for mma.m16n8k16 with floating point type".
inline void multiply_matrices(void** slots) {
    need_all(slots);
    auto all = reinterpret_cast<Product**>(slots);
    float a[16][16], b[16][8], c[16][8];
    auto low = [](unsigned pair) { return __uint_as_float(pair << 16); };
    auto high = [](unsigned pair) { return __uint_as_float(pair & 0xffff0000u); };
    for (int lane = 0; lane < 32; lane++) {
        const Product& p = *all[lane];
        int row = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            float* to = &a[row + i % 2 * 8][pair + i / 2 * 8];
            to[0] = low(p.a[i]), to[1] = high(p.a[i]);
            c[row + i / 2 * 8][pair + i % 2] = p.c[i];
        }
        for (int i = 0; i < 2; i++) b[pair + i * 8][row] = low(p.b[i]), b[pair + i * 8 + 1][row] = high(p.b[i]);
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) c[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) all[lane]->c[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}
inline void ptx_mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(
    float& d0, float& d1, float& d2, float& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1,
    float c0, float c1, float c2, float c3) {
    Product slot = {{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
    emulated_together(~0u, multiply_matrices, &slot);
    d0 = slot.c[0], d1 = slot.c[1], d2 = slot.c[2], d3 = slot.c[3];
}

// How the library calls a kernel: with addresses of its arguments.

template <class... A, size_t... I>
inline void emulated_call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}
template <class... A>
inline void emulated_call(void (*kernel)(A...), void** arguments) {
    emulated_call(kernel, arguments, std::index_sequence_for<A...>());
}
// The bytes of each argument, and 0 behind them.
template <class... A>
inline const size_t* emulated_sizes(void (*)(A...)) {
    static const size_t sizes[] = {sizeof(A)..., 0};
    return sizes;
}
#define EMULATED_KERNEL(NAME, THREADS)                                                               \
    extern "C" void emulated_call_##NAME(void** arguments) { emulated_call(NAME, arguments); }       \
    extern "C" const size_t* emulated_sizes_##NAME() { return emulated_sizes(NAME); }                \
    extern "C" const int emulated_threads_##NAME = THREADS;
