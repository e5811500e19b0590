// The functions of the CUDA driver and of NVRTC that candle and plumb call. Every call is finished when it returns.
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "emulated.h"

#define API extern "C" __attribute__((visibility("default")))

void die(const std::string& why) {
    fprintf(stderr, "emulated GPU: %s (the last kernel: %s)\n", why.c_str(), running());
    abort();
}

namespace {

enum Error {
    OK = 0, INVALID_VALUE = 1, INVALID_PTX = 218, NOT_FOUND = 500, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
};

int complain(Error error, const std::string& why) {
    fprintf(stderr, "emulated GPU: %s\n", why.c_str());
    return error;
}

// Handles that stand for nothing.
char a_context, a_stream, a_pool, an_event;
thread_local void* current = nullptr;

template <class T>
int give(T* to, T value) {
    *to = value;
    return OK;
}

// A graph: what was asked for while it was recorded, in order. Its memory is its own as long as it is there; between launches, and after
// a tensor of it is freed, there is nothing in it.
struct Node {
    enum Kind { KERNEL = 0, MEMCPY = 1, MEMSET = 2, ALLOC = 10, FREE = 11 } kind;
    std::function<void()> run;
};
struct Graph {
    std::vector<std::unique_ptr<Node>> nodes;
    std::set<uint64_t> memory, alive;
};

// What a thread records, if it does. (Of a stream, for a GPU's driver: here there is one for all.)
struct Capture {
    std::unique_ptr<Graph> graph;
    bool invalid = false;
    std::string kernel = "no kernel";  // the last one
    size_t copied = 0;                 // bytes since then
};
thread_local Capture capture;

bool capturing() { return capture.graph != nullptr; }

bool keep(Node::Kind kind, std::function<void()> run) {
    if (!capturing()) return false;
    capture.graph->nodes.emplace_back(new Node{kind, std::move(run)});
    return true;
}

// What nobody may ask for while a graph is recorded.
int unless_capturing(const char* what) {
    if (!capturing()) return OK;
    capture.invalid = true;
    return complain(CAPTURE_UNSUPPORTED, std::string(what) + " while a graph is recorded");
}

// On a small stack, hence no fprintf.
void on_signal(int number, siginfo_t*, void*) {
    const char* what = number == SIGILL ? "an access that is not aligned" : "an access that is not aligned or outside of memory";
    for (const char* part : {"emulated GPU: ", what, " in ", running(), "\n"})
        if (write(2, part, strlen(part)) < 0) break;
    signal(number, SIG_DFL);
}

}  // namespace

bool kept(std::function<void()> work) { return keep(Node::KERNEL, std::move(work)); }

API int cuInit(unsigned) {
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGILL, &action, nullptr);
    sigaction(SIGSEGV, &action, nullptr);
    return OK;
}
API int cuDriverGetVersion(int* version) { return give(version, 13000); }
API int cuDeviceGetCount(int* count) { return give(count, 1); }
API int cuDeviceGet(int* device, int number) { return number == 0 ? give(device, 0) : INVALID_VALUE; }
API int cuDeviceGetName(char* name, int size, int) {
    snprintf(name, size, "emulated GPU");
    return OK;
}
API int cuDeviceGetUuid_v2(char* uuid, int) {
    memset(uuid, 0xee, 16);
    return OK;
}
API int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 75: return give(value, 9);    // compute capability, major
    case 76: return give(value, 0);    // and minor
    case 115: return give(value, 1);   // memory pools
    case 16: return give(value, 132);  // multiprocessors
    case 1: return give(value, 1024);  // threads of a block
    case 10: return give(value, 32);   // of a warp
    }
    return complain(INVALID_VALUE, "the device's attribute " + std::to_string(attribute));
}
API int cuDevicePrimaryCtxRetain(void** context, int) { return give<void*>(context, &a_context); }
API int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API int cuCtxGetCurrent(void** context) { return give(context, current); }
API int cuCtxSetCurrent(void* context) { return give(&current, context); }
API int cuCtxSynchronize() { return unless_capturing("waiting"); }
API int cuDeviceGetDefaultMemPool(void** pool, int) { return give<void*>(pool, &a_pool); }
API int cuMemPoolSetAttribute(void*, int, void*) { return OK; }
API int cuMemPoolTrimTo(void*, size_t) { return unless_capturing("giving memory back"); }
API int cuDeviceGraphMemTrim(int) { return unless_capturing("giving memory back"); }
API int cuStreamCreate(void** stream, unsigned) { return give<void*>(stream, &a_stream); }
API int cuStreamCreateWithPriority(void** stream, unsigned, int) { return give<void*>(stream, &a_stream); }
API int cuStreamDestroy_v2(void*) { return OK; }
API int cuStreamSynchronize(void*) { return unless_capturing("waiting"); }
API int cuStreamWaitEvent(void*, void*, unsigned) { return OK; }
API int cuStreamIsCapturing(void*, int* status) { return give(status, capturing() ? 1 : 0); }
API int cuEventCreate(void** event, unsigned) { return give<void*>(event, &an_event); }
API int cuEventRecord(void*, void*) { return OK; }
API int cuEventQuery(void*) { return OK; }
API int cuEventSynchronize(void*) { return unless_capturing("waiting"); }
API int cuEventDestroy_v2(void*) { return OK; }
API int cuGetErrorName(int error, const char** name) {
    switch (error) {
    case OK: return give(name, "CUDA_SUCCESS");
    case INVALID_VALUE: return give(name, "CUDA_ERROR_INVALID_VALUE");
    case INVALID_PTX: return give(name, "CUDA_ERROR_INVALID_PTX");
    case NOT_FOUND: return give(name, "CUDA_ERROR_NOT_FOUND");
    case CAPTURE_UNSUPPORTED: return give(name, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
    case CAPTURE_INVALIDATED: return give(name, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
    }
    return give(name, "CUDA_ERROR_LAUNCH_FAILED");
}
API int cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }

// Memory: filled before it is written and after it is freed, with a zone of the same before and behind that nobody may write.

namespace {

constexpr size_t TOTAL = 16ull << 30, ZONE = 256;

std::mutex memory_lock;
std::map<char*, size_t> allocations;
size_t used = 0;

bool untouched(const char* from, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (from[i] != char(emulated_fill)) return false;
    return true;
}

int allocate(uint64_t* address, size_t bytes) {
    size_t whole = (ZONE + bytes + ZONE + 255) / 256 * 256;
    char* start = static_cast<char*>(aligned_alloc(256, whole));
    if (!start) return 2;
    memset(start, emulated_fill, whole);
    std::lock_guard<std::mutex> guard(memory_lock);
    allocations[start + ZONE] = bytes;
    used += bytes;
    return give(address, reinterpret_cast<uint64_t>(start + ZONE));
}

int release(uint64_t address) {
    char* data = reinterpret_cast<char*>(address);
    std::lock_guard<std::mutex> guard(memory_lock);
    auto found = allocations.find(data);
    if (found == allocations.end()) die("memory is freed that was not allocated");
    size_t bytes = found->second;
    if (!untouched(data - ZONE, ZONE) || !untouched(data + bytes, ZONE))
        die("something wrote outside of its " + std::to_string(bytes) + " bytes; which kernel, EMULATED_GPU_CHECK=1 tells");
    allocations.erase(found);
    used -= bytes;
    memset(data, emulated_fill, bytes);
    free(data - ZONE);
    return OK;
}

void check_zones() {
    std::lock_guard<std::mutex> guard(memory_lock);
    for (auto [data, bytes] : allocations)
        if (!untouched(data - ZONE, ZONE) || !untouched(data + bytes, ZONE))
            die("a write outside of " + std::to_string(bytes) + " bytes");
}

// From the host a graph copies, each time, what lies there by then.
int copy(void* to, const void* from, size_t bytes) {
    auto run = [=] { memmove(to, from, bytes); };
    if (!keep(Node::MEMCPY, run)) {
        run();
        return OK;
    }
    capture.copied += bytes;
    return OK;
}
int copy_now(void* to, const void* from, size_t bytes) {
    if (int error = unless_capturing("copying and waiting")) return error;
    return copy(to, from, bytes);
}
void* at(uint64_t address) { return reinterpret_cast<void*>(address); }

void fill(uint64_t address) {
    std::lock_guard<std::mutex> guard(memory_lock);
    auto found = allocations.find(static_cast<char*>(at(address)));
    if (found != allocations.end()) memset(found->first, emulated_fill, found->second);
}

int allocate_in_stream(uint64_t* address, size_t bytes) {
    if (bytes == 0) return complain(INVALID_VALUE, "an allocation of nothing");
    if (int error = allocate(address, bytes)) return error;
    if (!capturing()) return OK;
    uint64_t place = *address;
    capture.graph->memory.insert(place), capture.graph->alive.insert(place);
    keep(Node::ALLOC, [=] { fill(place); });
    return OK;
}

int release_in_stream(uint64_t address) {
    if (!capturing()) return release(address);
    if (!capture.graph->alive.erase(address)) {
        capture.invalid = true;
        return complain(INVALID_VALUE, "memory from before is freed while a graph is recorded");
    }
    keep(Node::FREE, [=] { fill(address); });
    return OK;
}

}  // namespace

API int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = TOTAL;
    return give(free, TOTAL - used);
}
API int cuMemAllocAsync(uint64_t* address, size_t bytes, void*) { return allocate_in_stream(address, bytes); }
API int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    if (int error = unless_capturing("allocating at once")) return error;
    return allocate(address, bytes);
}
API int cuMemFreeAsync(uint64_t address, void*) { return release_in_stream(address); }
API int cuMemFree_v2(uint64_t address) { return release(address); }
API int cuMemHostAlloc(void** address, size_t bytes, unsigned) { return give(address, malloc(bytes)); }
API int cuMemFreeHost(void* address) {
    free(address);
    return OK;
}
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) { return copy(at(to), from, bytes); }
API int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) { return copy_now(at(to), from, bytes); }
API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) { return copy(to, at(from), bytes); }
API int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) { return copy_now(to, at(from), bytes); }
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void*) { return copy(at(to), at(from), bytes); }
API int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return copy_now(at(to), at(from), bytes); }
API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void*) {
    auto run = [=] { memset(at(to), value, bytes); };
    if (!keep(Node::MEMSET, run)) run();
    return OK;
}
API int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, nullptr); }

bool on_device(const void* address) {
    auto* data = static_cast<char*>(const_cast<void*>(address));
    std::lock_guard<std::mutex> guard(memory_lock);
    auto after = allocations.upper_bound(data);
    if (after == allocations.begin()) return false;
    auto [start, bytes] = *std::prev(after);
    return data < start + bytes;
}

// Graphs.

API int cuStreamBeginCapture_v2(void*, int) {
    if (capture.graph) return complain(INVALID_VALUE, "one recording within another");
    capture.graph = std::make_unique<Graph>();
    capture.invalid = false;
    return OK;
}
API int cuStreamEndCapture(void*, Graph** graph) {
    auto made = std::move(capture.graph);
    if (!made) return complain(INVALID_VALUE, "no recording ends");
    if (capture.invalid) return CAPTURE_INVALIDATED;
    return give(graph, made.release());
}
API int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) { return give(executable, graph); }
API int cuGraphExecDestroy(Graph*) { return OK; }
API int cuGraphDestroy(Graph* graph) {
    for (uint64_t address : graph->memory)
        if (!graph->alive.count(address)) release(address);
    delete graph;
    return OK;
}
API int cuGraphLaunch(Graph* graph, void*) {
    if (int error = unless_capturing("a graph's launch")) return error;
    for (auto& node : graph->nodes) node->run();
    return OK;
}
API int cuGraphGetNodes(Graph* graph, Node** nodes, size_t* count) {
    for (size_t i = 0; nodes && i < graph->nodes.size() && i < *count; i++) nodes[i] = graph->nodes[i].get();
    return give(count, graph->nodes.size());
}
API int cuGraphNodeGetType(Node* node, int* kind) { return give(kind, int(node->kind)); }

// Modules: what NVRTC below made is a text that names a shared object; all other PTX is candle's, whose sources are compiled.

namespace {

const std::string MADE = "// emulated GPU: ";

struct Function {
    std::string name;
    void (*call)(void**);
    const size_t* sizes;  // of its arguments
    int threads;
    unsigned shared_bytes;
};

// How often each kernel was launched, told at the end if EMULATED_GPU_COUNT is set.
struct Counts {
    std::mutex lock;
    std::map<std::string, size_t> launches;
    void add(const std::string& name) {
        std::lock_guard<std::mutex> guard(lock);
        launches[name]++;
    }
    ~Counts() {
        if (!getenv("EMULATED_GPU_COUNT")) return;
        for (const auto& [name, count] : launches) fprintf(stderr, "emulated GPU: %8zu %s\n", count, name.c_str());
    }
} counts;

// A kernel of each of candle's sources.
const char* const CANDLE[][2] = {
    {"affine", "affine_f32"},     {"binary", "badd_f32"},     {"cast", "cast_f32_bf16"}, {"conv", "conv2d_f32"},
    {"fill", "fill_f32"},         {"indexing", "is_u32_f32"}, {"reduce", "fast_sum_f32"}, {"sort", "asort_asc_f32"},
    {"ternary", "where_u8_f32"},  {"unary", "ucopy_f32"},
};

std::string shared_object_of(const std::string& ptx) {
    if (ptx.compare(0, MADE.size(), MADE) == 0) return ptx.substr(MADE.size());
    for (auto [source, kernel] : CANDLE) {
        if (ptx.find(std::string(".entry ") + kernel + "(") == std::string::npos) continue;
        std::string sources = CANDLE_KERNELS;
        Compiled made = compile(contents(sources + "/" + source + ".cu"), "-I " + sources);
        if (made.path.empty()) fprintf(stderr, "%s\n", made.log.c_str());
        return made.path;
    }
    fprintf(stderr, "emulated GPU: a module of unknown source: %.2000s\n", ptx.c_str());
    return "";
}

}  // namespace

API int cuModuleLoadData(void** module, const void* image) {
    if (int error = unless_capturing("loading kernels")) return error;
    std::string path = shared_object_of(static_cast<const char*>(image));
    *module = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    return *module ? OK : complain(INVALID_PTX, path.empty() ? "it was not compiled" : dlerror());
}
API int cuModuleUnload(void*) { return OK; }
API int cuModuleGetFunction(Function** function, void* module, const char* name) {
    void* call = dlsym(module, (std::string("emulated_call_") + name).c_str());
    void* threads = dlsym(module, (std::string("emulated_threads_") + name).c_str());
    void* sizes = dlsym(module, (std::string("emulated_sizes_") + name).c_str());
    if (!call || !threads || !sizes) return complain(NOT_FOUND, std::string("no kernel ") + name);
    *function = new Function{name, reinterpret_cast<void (*)(void**)>(call), reinterpret_cast<const size_t* (*)()>(sizes)(),
                             *static_cast<int*>(threads), 48 << 10};
    return OK;
}
API int cuFuncSetAttribute(Function* function, int attribute, int value) {
    if (attribute != 8 || value < 0 || value > 227 << 10) return complain(INVALID_VALUE, "a function's attribute");
    function->shared_bytes = value;
    return OK;
}
API int cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x, unsigned y, unsigned z,
                       unsigned shared_bytes, void*, void** arguments, void**) {
    static const bool check = getenv("EMULATED_GPU_CHECK");
    if (!grid_x || !grid_y || !grid_z || grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535)
        return complain(INVALID_VALUE, function->name + ": a grid that a GPU refuses");
    if (!x || !y || !z || size_t(x) * y * z > size_t(function->threads))
        return complain(INVALID_VALUE, function->name + ": too many threads or none");
    if (shared_bytes > function->shared_bytes) return complain(INVALID_VALUE, function->name + ": too much shared memory");
    auto launch = [=](void** arguments) -> int {
        Launch launch = {function->name.c_str(), function->call, arguments, {grid_x, grid_y, grid_z}, {x, y, z}, shared_bytes};
        counts.add(function->name);
        const char* failure = run(launch);
        if (check) check_zones();
        return failure ? complain(LAUNCH_FAILED, function->name + ": " + failure) : OK;
    };
    if (!capturing()) return launch(arguments);
    if (capture.copied)
        fprintf(stderr, "emulated GPU: a graph copies %zu bytes between %s and %s\n", capture.copied, capture.kernel.c_str(), function->name.c_str());
    capture.kernel = function->name, capture.copied = 0;
    std::vector<std::string> copies;
    for (size_t i = 0; function->sizes[i]; i++) copies.emplace_back(static_cast<const char*>(arguments[i]), function->sizes[i]);
    keep(Node::KERNEL, [=]() mutable {
        std::vector<void*> places;
        for (std::string& copy : copies) places.push_back(&copy[0]);
        if (launch(places.data())) die("a kernel of a graph failed");
    });
    return OK;
}

// NVRTC.

namespace {

// EMULATED_GPU_NEWER_NVRTC=1: NVRTC is of a later CUDA than the driver, which does not read its PTX.
bool newer_compiler() { return getenv("EMULATED_GPU_NEWER_NVRTC"); }

struct Program {
    std::string source;
    Compiled made;
    bool own_code = false;  // was asked for, of one kind of GPU
    std::string code() const { return MADE + made.path; }
    std::string ptx() const { return newer_compiler() ? "// PTX of a later CUDA than the driver's" : code(); }
};

int hand_over(const std::string& text, char* to) {
    memcpy(to, text.c_str(), text.size() + 1);
    return OK;
}

}  // namespace

API int nvrtcCreateProgram(Program** program, const char* source, const char*, int, const char* const*, const char* const*) {
    return give(program, new Program{source, {}});
}
API int nvrtcDestroyProgram(Program** program) {
    delete *program;
    return OK;
}
API int nvrtcVersion(int* major, int* minor) {
    *minor = newer_compiler();
    return give(major, 13);
}
API int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    std::string defines;
    for (int i = 0; i < count; i++) {
        if (strncmp(options[i], "-D", 2) == 0) defines += std::string(options[i]) + " ";
        if (strcmp(options[i], "--gpu-architecture=sm_90") == 0) program->own_code = true;
    }
    program->made = compile(program->source, defines);
    return program->made.path.empty() ? 6 : OK;  // NVRTC_ERROR_COMPILATION
}
API int nvrtcGetPTXSize(Program* program, size_t* size) { return give(size, program->ptx().size() + 1); }
API int nvrtcGetPTX(Program* program, char* to) { return hand_over(program->ptx(), to); }
API int nvrtcGetCUBINSize(Program* program, size_t* size) { return give(size, program->own_code ? program->code().size() + 1 : 0); }
API int nvrtcGetCUBIN(Program* program, char* to) { return program->own_code ? hand_over(program->code(), to) : OK; }
API int nvrtcGetProgramLogSize(Program* program, size_t* size) { return give(size, program->made.log.size() + 1); }
API int nvrtcGetProgramLog(Program* program, char* to) { return hand_over(program->made.log, to); }
