// Products of matrices as cuBLAS and cuBLASLt offer them, and as much of cuRAND as opening a device takes.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "emulated.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Status { OK = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Kind { F32 = 0, F64 = 1, BF16 = 14, E4M3 = 28, E5M2 = 29 };
constexpr int SUMS_IN_F32 = 68;
enum Epilogue { NOTHING = 1, BIAS = 4, GELU_AUX_BIAS = 164 };

char a_handle;

template <class T>
int give(T* to, T value) {
    *to = value;
    return OK;
}

int refuse(Status status, const char* why) {
    fprintf(stderr, "emulated GPU: a product: %s\n", why);
    return status;
}

bool in_8_bits(int kind) { return kind == E4M3 || kind == E5M2; }

// The number of a byte: a sign, an exponent, and behind it the bits of a fraction.
double of_8_bits(uint8_t code, Kind kind) {
    int bits = kind == E4M3 ? 3 : 2, bias = kind == E4M3 ? 7 : 15, exponent = (code & 127) >> bits, fraction = code & ((1 << bits) - 1);
    bool none = kind == E4M3 ? (code & 127) == 127 : exponent == 31;  // no number, or in e5m2 an infinite one
    double size = none       ? NAN
                  : exponent ? ldexp(1 + ldexp(fraction, -bits), exponent - bias)
                             : ldexp(fraction, 1 - bias - bits);
    return code & 128 ? -size : size;
}

// A matrix that lies in columns, as a factor: itself or its transpose.
struct Matrix {
    char* data;
    Kind kind;
    int64_t column;  // numbers from one to the next
    bool turned;

    size_t size() const { return in_8_bits(kind) ? 1 : kind == BF16 ? 2 : kind == F32 ? 4 : 8; }
    char* at(int64_t i, int64_t j) const { return data + (turned ? j + i * column : i + j * column) * size(); }
    double get(int64_t i, int64_t j) const {
        const char* from = at(i, j);
        switch (kind) {
        case BF16: return wide(*reinterpret_cast<const uint16_t*>(from));
        case F32: return *reinterpret_cast<const float*>(from);
        case E4M3:
        case E5M2: return of_8_bits(*reinterpret_cast<const uint8_t*>(from), kind);
        default: return *reinterpret_cast<const double*>(from);
        }
    }
    void set(int64_t i, int64_t j, double x) const {
        char* to = at(i, j);
        switch (kind) {
        case BF16: *reinterpret_cast<uint16_t*>(to) = narrow(x); break;
        case F32: *reinterpret_cast<float*>(to) = x; break;
        default: *reinterpret_cast<double*>(to) = x;
        }
    }
};

template <class T>
__attribute__((optimize("fast-math"))) T inner(const T* a, const T* b, int64_t count) {
    T sum = 0;
    for (int64_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

// c = alpha a b + beta c + bias, summed in T; a bias is a number for each row.
template <class T>
void multiply(int64_t m, int64_t n, int64_t k, T alpha, Matrix a, Matrix b, T beta, Matrix c, const Matrix* bias) {
    std::vector<T> rows(m * k), columns(n * k);
    for (int64_t i = 0; i < m; i++)
        for (int64_t l = 0; l < k; l++) rows[i * k + l] = a.get(i, l);
    for (int64_t j = 0; j < n; j++)
        for (int64_t l = 0; l < k; l++) columns[j * k + l] = b.get(l, j);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            T x = alpha * inner(&rows[i * k], &columns[j * k], k);
            if (beta != 0) x += beta * T(c.get(i, j));  // else it may be anything, NaN too
            if (bias) x += T(bias->get(i, 0));
            c.set(i, j, x);
        }
}

bool known(int kind) { return kind == F32 || kind == BF16 || kind == F64; }

Matrix matrix(const void* data, int kind, int64_t column, bool turned) {
    return {static_cast<char*>(const_cast<void*>(data)), static_cast<Kind>(kind), column, turned};
}

template <class T>
int batched(int op_a, int op_b, int m, int n, int k, const T* alpha, Matrix a, int64_t a_apart, Matrix b, int64_t b_apart,
            const T* beta, Matrix c, int64_t c_apart, int batch) {
    a.turned = op_a != 0, b.turned = op_b != 0;
    bool wide_enough = a.column >= (a.turned ? k : m) && b.column >= (b.turned ? n : k) && c.column >= m;
    if (!wide_enough || m < 0 || n < 0 || k < 0) return refuse(INVALID_VALUE, "columns that overlap");
    auto work = [=, alpha = *alpha, beta = *beta]() mutable {
        Matrix x = a, y = b, z = c;
        for (int i = 0; i < batch; i++) {
            multiply<T>(m, n, k, alpha, x, y, beta, z, nullptr);
            x.data += a_apart * x.size(), y.data += b_apart * y.size(), z.data += c_apart * z.size();
        }
    };
    if (!kept(work)) work();
    return OK;
}

}  // namespace

API int cublasCreate_v2(void** handle) { return give<void*>(handle, &a_handle); }
API int cublasDestroy_v2(void*) { return OK; }
API int cublasSetStream_v2(void*, void*) { return OK; }
API int cublasSetWorkspace_v2(void*, void*, size_t) { return OK; }
API int cublasGemmStridedBatchedEx(void*, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int a_kind,
                                   int lda, long long a_apart, const void* b, int b_kind, int ldb, long long b_apart,
                                   const void* beta, void* c, int c_kind, int ldc, long long c_apart, int batch, int compute,
                                   int) {
    if (compute != SUMS_IN_F32 || a_kind != b_kind || (a_kind != F32 && a_kind != BF16) || (c_kind != a_kind && c_kind != F32))
        return refuse(NOT_SUPPORTED, "types that are not emulated");
    return batched<float>(op_a, op_b, m, n, k, static_cast<const float*>(alpha), matrix(a, a_kind, lda, false), a_apart,
                          matrix(b, b_kind, ldb, false), b_apart, static_cast<const float*>(beta),
                          matrix(c, c_kind, ldc, false), c_apart, batch);
}
API int cublasDgemmStridedBatched(void*, int op_a, int op_b, int m, int n, int k, const double* alpha, const double* a, int lda,
                                  long long a_apart, const double* b, int ldb, long long b_apart, const double* beta, double* c,
                                  int ldc, long long c_apart, int batch) {
    return batched<double>(op_a, op_b, m, n, k, alpha, matrix(a, F64, lda, false), a_apart, matrix(b, F64, ldb, false), b_apart,
                           beta, matrix(c, F64, ldc, false), c_apart, batch);
}

// cuBLASLt.

namespace {

struct Layout {
    int kind;
    uint64_t rows, columns;
    int64_t column;
    int32_t batch = 1;
    int64_t apart = 0;  // numbers from one matrix to the next
    bool sixteen() const { return column * (in_8_bits(kind) ? 1 : kind == BF16 ? 2 : 4) % 16 == 0; }
};

struct Description {
    int compute, scale;
    int turned_a = 0, turned_b = 0, epilogue = 1;
    const void* bias = nullptr;
    int64_t bias_apart = 0;
    void* kept = nullptr;  // what GELU is taken of
    int64_t kept_column = 0;
    const float *scale_a = nullptr, *scale_b = nullptr;
    int8_t fast = 0;  // of no effect here
};

struct Found {  // cublasLtMatmulHeuristicResult_t
    uint64_t algorithm[8];
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

template <class T>
int take(T& to, const void* value, size_t bytes) {
    if (bytes != sizeof to) return refuse(INVALID_VALUE, "an attribute of another size");
    memcpy(&to, value, bytes);
    return OK;
}

bool fit(const Description& d, const Layout& a, const Layout& b, const Layout& c) {
    uint64_t m = d.turned_a ? a.columns : a.rows, k = d.turned_a ? a.rows : a.columns;
    uint64_t inner = d.turned_b ? b.columns : b.rows, n = d.turned_b ? b.rows : b.columns;
    // 8-bit floats: the left one turned, and not both in e5m2.
    bool eight = in_8_bits(a.kind) && in_8_bits(b.kind) && (a.kind == E4M3 || b.kind == E4M3) && (c.kind == BF16 || c.kind == F32) &&
                 d.turned_a && !d.turned_b && d.scale_a && d.scale_b;
    bool alike = a.kind == b.kind && a.kind == c.kind && known(a.kind) && !d.scale_a && !d.scale_b;
    return k == inner && c.rows == m && c.columns == n && (alike || eight) && d.compute == SUMS_IN_F32 && d.scale == F32 && a.batch == b.batch && a.batch == c.batch;
}

}  // namespace

API size_t cublasLtGetVersion() { return 130000; }
API int cublasLtCreate(void** handle) { return give<void*>(handle, &a_handle); }
API int cublasLtDestroy(void*) { return OK; }
API int cublasLtMatrixLayoutCreate(Layout** layout, int kind, uint64_t rows, uint64_t columns, int64_t column) {
    return give(layout, new Layout{kind, rows, columns, column});
}
API int cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return OK;
}
API int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
    case 5: return take(layout->batch, value, bytes);
    case 6: return take(layout->apart, value, bytes);
    }
    return refuse(INVALID_VALUE, "an attribute that is not emulated");
}
API int cublasLtMatmulDescCreate(Description** description, int compute, int scale) {
    return give(description, new Description{compute, scale});
}
API int cublasLtMatmulDescDestroy(Description* description) {
    delete description;
    return OK;
}
API int cublasLtMatmulDescSetAttribute(Description* d, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
    case 3: return take(d->turned_a, value, bytes);
    case 4: return take(d->turned_b, value, bytes);
    case 7: return take(d->epilogue, value, bytes);
    case 8: return take(d->bias, value, bytes);
    case 10: return take(d->bias_apart, value, bytes);
    case 11: return take(d->kept, value, bytes);
    case 12: return take(d->kept_column, value, bytes);
    case 17: return take(d->scale_a, value, bytes);
    case 18: return take(d->scale_b, value, bytes);
    case 25: return take(d->fast, value, bytes);
    }
    return refuse(INVALID_VALUE, "an attribute that is not emulated");
}
API int cublasLtMatmulPreferenceCreate(void** preference) { return give<void*>(preference, &a_handle); }
API int cublasLtMatmulPreferenceDestroy(void*) { return OK; }
API int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return OK; }
API int cublasLtMatmulAlgoGetHeuristic(void*, Description* d, Layout* a, Layout* b, Layout* c, Layout*, void*, int, Found* found,
                                       int* count) {
    *count = 0;
    if (!fit(*d, *a, *b, *c)) return refuse(INVALID_VALUE, "layouts that do not fit together");
    // The library has algorithms for other strides too; here there are none, so that whoever asks must do without.
    if (!a->sixteen() || !b->sixteen() || !c->sixteen()) return NOT_SUPPORTED;
    // Of 8-bit floats no extents but that of the rows of x are served that are no multiples of 16; a bias of them is in bf16.
    if (in_8_bits(a->kind) && (a->rows % 16 || a->columns % 16 || (d->epilogue == BIAS && c->kind != BF16))) return NOT_SUPPORTED;
    if ((!d->bias && d->epilogue != NOTHING) || (d->epilogue == GELU_AUX_BIAS && !d->kept)) return refuse(INVALID_VALUE, "an algorithm for a bias that is nowhere");
    *found = {};
    return give(count, 1);
}
namespace {

void multiply_with_epilogue(const Description& d, float alpha, const void* a, const Layout& a_layout, const void* b, const Layout& b_layout,
                            float beta, const void* c, const Layout& c_layout, void* to, const Layout& to_layout) {
    bool gelu = d.epilogue == GELU_AUX_BIAS;
    Matrix left = matrix(a, a_layout.kind, a_layout.column, d.turned_a);
    Matrix right = matrix(b, b_layout.kind, b_layout.column, d.turned_b);
    Matrix added = matrix(c, c_layout.kind, c_layout.column, false);
    Matrix result = matrix(to, to_layout.kind, to_layout.column, false), bias = matrix(d.bias, to_layout.kind, 1, false);
    if (d.scale_a) alpha *= *d.scale_a * *d.scale_b;
    if (gelu) result = matrix(d.kept, to_layout.kind, d.kept_column, false);
    if (beta != 0)
        for (uint64_t j = 0; j < to_layout.columns; j++)
            for (uint64_t i = 0; i < to_layout.rows; i++) result.set(i, j, added.get(i, j));
    for (int i = 0; i < to_layout.batch; i++) {
        multiply<float>(to_layout.rows, to_layout.columns, d.turned_a ? a_layout.rows : a_layout.columns, alpha, left, right,
                        beta, result, d.bias ? &bias : nullptr);
        left.data += a_layout.apart * left.size(), right.data += b_layout.apart * right.size();
        result.data += to_layout.apart * result.size(), bias.data += d.bias_apart * bias.size();
    }
    if (gelu) {
        result = matrix(d.kept, to_layout.kind, d.kept_column, false);
        Matrix activated = matrix(to, to_layout.kind, to_layout.column, false);
        for (uint64_t j = 0; j < to_layout.columns; j++)
            for (uint64_t i = 0; i < to_layout.rows; i++) {
                double x = result.get(i, j);
                activated.set(i, j, 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))));
            }
    }
}

}  // namespace

API int cublasLtMatmul(void*, Description* d, const float* alpha, const void* a, Layout* a_layout, const void* b,
                       Layout* b_layout, const float* beta, const void* c, Layout* c_layout, void* to, Layout* to_layout,
                       const void*, void*, size_t, void*) {
    if (!fit(*d, *a_layout, *b_layout, *to_layout)) return refuse(INVALID_VALUE, "layouts that do not fit together");
    if (c_layout->column != to_layout->column) return refuse(NOT_SUPPORTED, "a matrix of another layout is added");
    bool gelu = d->epilogue == GELU_AUX_BIAS;
    if (d->epilogue != NOTHING && d->epilogue != BIAS && !gelu) return refuse(NOT_SUPPORTED, "an epilogue that is not emulated");
    if (!d->bias != (d->epilogue == NOTHING)) return refuse(INVALID_VALUE, "a bias that is nowhere, or that nothing adds");
    if (gelu && (to_layout->batch != 1 || !d->kept || d->kept_column % 8 || d->kept_column < int64_t(to_layout->rows)))
        return refuse(INVALID_VALUE, "no room for what GELU is taken of");
    if (*beta != 0 && to_layout->batch != 1) return refuse(NOT_SUPPORTED, "matrices are added to several products");
    for (const void* each : {a, b, c, const_cast<const void*>(to), d->bias, const_cast<const void*>(d->kept)})
        if (reinterpret_cast<uint64_t>(each) % 16) return refuse(INVALID_VALUE, "a matrix that is not aligned as promised");
    auto work = [=, d = *d, alpha = *alpha, beta = *beta, a_layout = *a_layout, b_layout = *b_layout, c_layout = *c_layout,
                 to_layout = *to_layout] { multiply_with_epilogue(d, alpha, a, a_layout, b, b_layout, beta, c, c_layout, to, to_layout); };
    if (!kept(work)) work();
    return OK;
}

// cuRAND: a generator that makes nothing.

API int curandCreateGenerator(void** generator, int) { return give<void*>(generator, &a_handle); }
API int curandDestroyGenerator(void*) { return OK; }
API int curandSetStream(void*, void*) { return OK; }
API int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return OK; }
