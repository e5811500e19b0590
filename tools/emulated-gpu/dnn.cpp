// As much of cuDNN's backend API as graphs of attention and single convolutions take: a graph's operations are computed one after the other,
// in f32, rounded where a tensor between them is bf16. Numbers are those of cuDNN 9's headers.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "emulated.h"

// Attention of 1536 tokens has 14 million scores.
#pragma GCC optimize("O3", "no-math-errno")

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Status { OK = 0, BAD_PARAM = 2000, NOT_SUPPORTED = 3000 };
enum Kind {
    POINTWISE = 0, CONVOLUTION = 1, ENGINE = 2, ENGINE_CONFIG = 3, HEURISTICS = 4, PLAN = 5, CONVOLUTION_FORWARD = 10,
    CONVOLUTION_BACKWARD_DATA = 12, POINTWISE_OPERATION = 13, GRAPH = 15, PACK = 16, TENSOR = 17, MATMUL = 18, MATMUL_OPERATION = 19,
    REDUCTION = 21, REDUCTION_OPERATION = 22, RESHAPE_OPERATION = 31,
};
enum Numbers { F32 = 0, I32 = 4, BF16 = 9, BOOLEAN = 11 };
enum Holds { HOLDS_INT64 = 3, HOLDS_FLOAT = 4, HOLDS_VOID_PTR = 6, HOLDS_DESCRIPTOR = 15 };

char last_error[512];
char a_handle;

int refuse(Status status, const char* why) {
    snprintf(last_error, sizeof last_error, "emulated: %s", why);
    return status;
}

struct Descriptor {
    int kind;
    bool finalized = false;
    std::map<int, std::vector<char>> attributes;

    bool has(int attribute) const { return attributes.count(attribute); }
    template <class T>
    std::vector<T> all(int attribute) const {
        std::vector<T> values;
        auto found = attributes.find(attribute);
        if (found == attributes.end()) return values;
        values.resize(found->second.size() / sizeof(T));
        memcpy(values.data(), found->second.data(), values.size() * sizeof(T));
        return values;
    }
    template <class T>
    T one(int attribute) const {
        auto values = all<T>(attribute);
        if (values.size() != 1) die("cuDNN: attribute " + std::to_string(attribute) + " is not one value");
        return values[0];
    }
    const Descriptor* part(int attribute) const { return has(attribute) ? one<const Descriptor*>(attribute) : nullptr; }
};

size_t bytes_of(int holds) {
    switch (holds) {
    case 0: case HOLDS_INT64: case 5: case HOLDS_VOID_PTR: case HOLDS_DESCRIPTOR: return 8;
    case 2: return 1;
    default: return 4;
    }
}

// A tensor's numbers in the order of its dimensions.
struct Values {
    int64_t dims[4];
    std::vector<float> x;

    int64_t count() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
    int64_t at(int64_t a, int64_t b, int64_t c, int64_t d) const { return ((a * dims[1] + b) * dims[2] + c) * dims[3] + d; }
    // Where a number for the place (a, b, c, d) of a larger tensor is: dimensions of 1 have it for all.
    int64_t spread(int64_t a, int64_t b, int64_t c, int64_t d) const {
        return at(dims[0] > 1 ? a : 0, dims[1] > 1 ? b : 0, dims[2] > 1 ? c : 0, dims[3] > 1 ? d : 0);
    }
};

template <class F>
void each(const int64_t* dims, F f) {
    for (int64_t a = 0; a < dims[0]; a++)
        for (int64_t b = 0; b < dims[1]; b++)
            for (int64_t c = 0; c < dims[2]; c++)
                for (int64_t d = 0; d < dims[3]; d++) f(a, b, c, d);
}

struct Run {
    std::map<int64_t, char*> addresses;
    std::map<const Descriptor*, std::unique_ptr<Values>> found;

    static int type(const Descriptor* tensor) { return tensor->one<int>(901); }
    static bool flag(const Descriptor* tensor, int attribute) { return tensor->has(attribute) && tensor->one<char>(attribute); }

    char* address(const Descriptor* tensor) {
        auto at = addresses.find(tensor->one<int64_t>(906));
        if (at == addresses.end()) die("cuDNN: a tensor of the graph has no address");
        return at->second;
    }

    std::unique_ptr<Values> room(const Descriptor* tensor) {
        auto values = std::make_unique<Values>();
        auto dims = tensor->all<int64_t>(902);
        if (dims.size() != 4) die("cuDNN: a tensor of other than 4 dimensions");
        memcpy(values->dims, dims.data(), sizeof values->dims);
        values->x.assign(values->count(), 0);
        return values;
    }

    const Values& read(const Descriptor* tensor) {
        auto& values = found[tensor];
        if (values) return *values;
        if (flag(tensor, 907)) die("cuDNN: a tensor between operations is read before it is written");
        values = room(tensor);
        char* from = address(tensor);
        if (flag(tensor, 908)) {
            memcpy(&values->x[0], from, 4);
            return *values;
        }
        if (reinterpret_cast<uint64_t>(from) % tensor->one<int64_t>(900)) die("cuDNN: a tensor is not aligned as promised");
        auto strides = tensor->all<int64_t>(903);
        int64_t i = 0;
        each(values->dims, [&](int64_t a, int64_t b, int64_t c, int64_t d) {
            int64_t place = a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3];
            float& x = values->x[i++];
            switch (type(tensor)) {
            case BF16: x = wide(reinterpret_cast<uint16_t*>(from)[place]); break;
            case I32: x = reinterpret_cast<int32_t*>(from)[place]; break;
            default: x = reinterpret_cast<float*>(from)[place];
            }
        });
        return *values;
    }

    // `rows` are those of each first index that are written to memory; the others stay as they are there.
    void write(const Descriptor* tensor, std::unique_ptr<Values> values, const Values* rows = nullptr) {
        if (type(tensor) == BF16)
            for (float& x : values->x) x = wide(narrow(x));
        if (!flag(tensor, 907)) {
            char* to = address(tensor);
            auto strides = tensor->all<int64_t>(903);
            int64_t i = 0;
            each(values->dims, [&](int64_t a, int64_t b, int64_t c, int64_t d) {
                float x = values->x[i++];
                if (rows && c >= rows->x[a]) return;
                int64_t place = a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3];
                if (type(tensor) == BF16) reinterpret_cast<uint16_t*>(to)[place] = narrow(x);
                else reinterpret_cast<float*>(to)[place] = x;
            });
        }
        found[tensor] = std::move(values);
    }

    void pointwise(const Descriptor& operation) {
        const Descriptor* how = operation.part(750);
        const Values& x = read(operation.part(751));
        const Values* b = operation.has(752) ? &read(operation.part(752)) : nullptr;
        const Values* t = operation.has(758) ? &read(operation.part(758)) : nullptr;
        const Descriptor* to = operation.part(753);
        auto y = room(to);
        int mode = how->one<int>(0);
        int64_t axis = how->has(9) ? how->one<int64_t>(9) : 0, i = 0;
        auto of = [&](auto f) {
            each(y->dims, [&](int64_t a, int64_t h, int64_t c, int64_t d) {
                y->x[i++] = f(x.x[x.spread(a, h, c, d)], b ? b->x[b->spread(a, h, c, d)] : 0);
            });
        };
        switch (mode) {
        case 0: of([](float p, float q) { return p + q; }); break;
        case 1: of([](float p, float q) { return p * q; }); break;
        case 6: of([](float p, float q) { return p / q; }); break;
        case 9: of([](float p, float q) { return p - q; }); break;
        case 13: of([](float p, float) { return expf(p); }); break;
        case 15: of([](float p, float) { return logf(p); }); break;
        case 304: of([](float p, float q) { return float(p < q); }); break;
        case 400: of([](float p, float q) { return float(p && q); }); break;
        case 501:
            each(y->dims, [&](int64_t a, int64_t h, int64_t c, int64_t d) { y->x[i++] = (int64_t[]){a, h, c, d}[axis]; });
            break;
        case 601:
            if (!t) die("cuDNN: a choice without flags");
            each(y->dims, [&](int64_t a, int64_t h, int64_t c, int64_t d) {
                bool kept = t->x[t->spread(a, h, c, d)];
                y->x[i++] = kept ? x.x[x.spread(a, h, c, d)] : b->x[b->spread(a, h, c, d)];
            });
            break;
        default: die("cuDNN: a pointwise operation that is not emulated");
        }
        write(to, std::move(y));
    }

    void reduce(const Descriptor& operation) {
        int how = operation.part(1612)->one<int>(1600);
        const Values& x = read(operation.part(1610));
        const Descriptor* to = operation.part(1611);
        auto y = room(to);
        for (float& r : y->x) r = how == 3 ? -INFINITY : 0;
        int64_t i = 0;
        each(x.dims, [&](int64_t a, int64_t b, int64_t c, int64_t d) {
            float& r = y->x[y->spread(a, b, c, d)];
            float p = x.x[i++];
            r = how == 3 ? std::max(r, p) : r + p;
        });
        write(to, std::move(y));
    }

    void multiply(const Descriptor& operation) {
        const Values &a = read(operation.part(1520)), &b = read(operation.part(1521));
        auto lengths = [&](int attribute) { return operation.has(attribute) ? &read(operation.part(attribute)) : nullptr; };
        const Values *rows = lengths(1525), *columns = lengths(1526), *inner = lengths(1527);
        const Descriptor* to = operation.part(1522);
        auto c = room(to);
        int64_t m = c->dims[2], n = c->dims[3], k = a.dims[3];
        if (a.dims[2] != m || b.dims[3] != n || b.dims[2] != k) die("cuDNN: a product of matrices that do not fit");
        for (int64_t batch = 0; batch < c->dims[0]; batch++) {
            int64_t most_m = rows ? rows->x[batch] : m, most_n = columns ? columns->x[batch] : n, most_k = inner ? inner->x[batch] : k;
            for (int64_t head = 0; head < c->dims[1]; head++)
                for (int64_t i = 0; i < std::min(m, most_m); i++) {
                    float* row = &c->x[c->at(batch, head, i, 0)];
                    for (int64_t l = 0; l < std::min(k, most_k); l++) {
                        float factor = a.x[a.at(batch, head, i, l)];
                        const float* of_b = &b.x[b.at(batch, head, l, 0)];
                        for (int64_t j = 0; j < std::min(n, most_n); j++) row[j] += factor * of_b[j];
                    }
                }
        }
        write(to, std::move(c), rows);
    }

    void turn(const Descriptor& operation) {
        const Values& x = read(operation.part(2200));
        const Descriptor* to = operation.part(2201);
        auto y = room(to);
        if (y->dims[2] != x.dims[3] || y->dims[3] != x.dims[2]) die("cuDNN: a reshape that is not emulated");
        int64_t i = 0;
        each(y->dims, [&](int64_t a, int64_t b, int64_t c, int64_t d) { y->x[i++] = x.x[x.at(a, b, d, c)]; });
        write(to, std::move(y));
    }

    // The first attribute of the operation is its alpha's.
    void convolve(const Descriptor& operation, int first) {
        bool forward = operation.kind == CONVOLUTION_FORWARD;
        const Descriptor* how = operation.part(first + 2);
        const Descriptor *of_w = operation.part(first + 3), *of_x = operation.part(first + 4), *of_y = operation.part(first + 5);
        auto strides = how->all<int64_t>(103), before = how->all<int64_t>(105), behind = how->all<int64_t>(104);
        if (how->one<int>(100) != F32 || how->one<int>(101) != 1 || how->one<int64_t>(106) != 2 ||
            how->all<int64_t>(102) != std::vector<int64_t>{1, 1} || operation.one<float>(first) != 1 || operation.one<float>(first + 1) != 0)
            die("cuDNN: a convolution that is not emulated");
        const Values& w = read(of_w);
        auto made = room(forward ? of_y : of_x);
        const Values& given = read(forward ? of_x : of_y);
        const int64_t *x = forward ? given.dims : made->dims, *y = forward ? made->dims : given.dims;
        for (int axis = 0; axis < 2; axis++)
            if ((x[2 + axis] + before[axis] + behind[axis] - w.dims[2 + axis]) / strides[axis] + 1 != y[2 + axis])
                die("cuDNN: a picture that does not follow from the other");
        if (w.dims[0] != y[1] || w.dims[1] != x[1] || x[0] != y[0]) die("cuDNN: channels that do not fit");
        each(y, [&](int64_t n, int64_t o, int64_t row, int64_t column) {
            each(w.dims, [&](int64_t of, int64_t c, int64_t i, int64_t j) {
                int64_t h = row * strides[0] + i - before[0], v = column * strides[1] + j - before[1];
                if (of != o || h < 0 || v < 0 || h >= x[2] || v >= x[3]) return;
                int64_t in_x = ((n * x[1] + c) * x[2] + h) * x[3] + v, in_y = ((n * y[1] + o) * y[2] + row) * y[3] + column;
                float factor = w.x[w.at(o, c, i, j)];
                if (forward) made->x[in_y] += factor * given.x[in_x];
                else made->x[in_x] += factor * given.x[in_y];
            });
        });
        write(forward ? of_y : of_x, std::move(made));
    }

    void all(const Descriptor* graph) {
        for (const Descriptor* operation : graph->all<const Descriptor*>(801)) {
            switch (operation->kind) {
            case POINTWISE_OPERATION: pointwise(*operation); break;
            case REDUCTION_OPERATION: reduce(*operation); break;
            case MATMUL_OPERATION: multiply(*operation); break;
            case RESHAPE_OPERATION: turn(*operation); break;
            case CONVOLUTION_FORWARD: convolve(*operation, 700); break;
            case CONVOLUTION_BACKWARD_DATA: convolve(*operation, 706); break;
            default: die("cuDNN: an operation that is not emulated");
            }
        }
    }
};

template <class T>
int tell(int64_t room, int64_t* count, void* to, const std::vector<T>& values) {
    *count = values.size();
    for (size_t i = 0; to && int64_t(i) < room && i < values.size(); i++) static_cast<T*>(to)[i] = values[i];
    return OK;
}

}  // namespace

API size_t cudnnGetVersion() { return 91500; }
API size_t cudnnGetCudartVersion() { return 13000; }
API const char* cudnnGetErrorString(int status) { return status ? "an error" : "none"; }
API void cudnnGetLastErrorString(char* to, size_t room) { snprintf(to, room, "%s", last_error); }
API int cudnnCreate(void** handle) {
    *handle = &a_handle;
    return OK;
}
API int cudnnDestroy(void*) { return OK; }
API int cudnnSetStream(void*, void*) { return OK; }
API int cudnnBackendCreateDescriptor(int kind, void** descriptor) {
    *descriptor = new Descriptor{kind, false, {}};
    return OK;
}
API int cudnnBackendDestroyDescriptor(void* descriptor) {
    delete static_cast<Descriptor*>(descriptor);
    return OK;
}
API int cudnnBackendSetAttribute(void* descriptor, int attribute, int holds, int64_t count, const void* values) {
    auto* d = static_cast<Descriptor*>(descriptor);
    if (d->finalized) return refuse(BAD_PARAM, "a finalized descriptor is changed");
    if (holds == HOLDS_DESCRIPTOR)
        for (int64_t i = 0; i < count; i++)
            if (!static_cast<Descriptor* const*>(values)[i]->finalized) return refuse(BAD_PARAM, "a part that is not finalized");
    auto* bytes = static_cast<const char*>(values);
    d->attributes[attribute].assign(bytes, bytes + count * bytes_of(holds));
    return OK;
}
API int cudnnBackendFinalize(void* descriptor) {
    static_cast<Descriptor*>(descriptor)->finalized = true;
    return OK;
}
API int cudnnBackendGetAttribute(const void* descriptor, int attribute, int, int64_t room, int64_t* count, void* to) {
    auto* d = static_cast<const Descriptor*>(descriptor);
    switch (attribute) {
    case 202:  // of heuristics: one engine, with the graph in its config
        *count = 1;
        if (room >= 1) {
            Descriptor* config = *static_cast<Descriptor**>(to);
            config->attributes[201] = d->attributes.at(201);
            config->finalized = true;
        }
        return OK;
    case 300:
        *count = 1;
        (*static_cast<Descriptor**>(to))->finalized = true;
        return OK;
    case 402: return tell<int64_t>(room, count, to, {100});
    case 1303: return tell<int>(room, count, to, {0});
    }
    return refuse(NOT_SUPPORTED, "an attribute that is not told");
}
API int cudnnBackendExecute(void*, void* plan, void* pack) {
    auto* from = static_cast<const Descriptor*>(pack);
    auto ids = from->all<int64_t>(1000);
    auto addresses = from->all<char*>(1001);
    if (ids.size() != addresses.size() || !from->one<char*>(1003)) return refuse(BAD_PARAM, "a pack that does not fit");
    // Numbers that are given by value are read now.
    std::map<int64_t, std::string> values;
    for (size_t i = 0; i < ids.size(); i++)
        if (!on_device(addresses[i])) values[ids[i]] = std::string(addresses[i], 4);
    auto* graph = static_cast<const Descriptor*>(plan)->part(401)->part(201);
    auto work = [=]() mutable {
        Run run;
        for (size_t i = 0; i < ids.size(); i++) run.addresses[ids[i]] = addresses[i];
        for (auto& [id, bytes] : values) run.addresses[id] = &bytes[0];
        run.all(graph);
    };
    if (!kept(work)) work();
    return OK;
}
