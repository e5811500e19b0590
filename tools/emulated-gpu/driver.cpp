// The functions of the CUDA driver and of NVRTC that candle and plumb call. Every call is finished when it returns.
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "emulated.h"

#define API extern "C" __attribute__((visibility("default")))

void die(const std::string& why) {
    fprintf(stderr, "emulated GPU: %s (the last kernel: %s)\n", why.c_str(), running());
    abort();
}

namespace {

enum Error { OK = 0, INVALID_VALUE = 1, INVALID_PTX = 218, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

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

// On a small stack, hence no fprintf.
void on_signal(int number, siginfo_t*, void*) {
    const char* what = number == SIGILL ? "an access that is not aligned" : "an access that is not aligned or outside of memory";
    for (const char* part : {"emulated GPU: ", what, " in ", running(), "\n"})
        if (write(2, part, strlen(part)) < 0) break;
    signal(number, SIG_DFL);
}

}  // namespace

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
API int cuCtxSynchronize() { return OK; }
API int cuDeviceGetDefaultMemPool(void** pool, int) { return give<void*>(pool, &a_pool); }
API int cuMemPoolSetAttribute(void*, int, void*) { return OK; }
API int cuStreamCreate(void** stream, unsigned) { return give<void*>(stream, &a_stream); }
API int cuStreamCreateWithPriority(void** stream, unsigned, int) { return give<void*>(stream, &a_stream); }
API int cuStreamDestroy_v2(void*) { return OK; }
API int cuStreamSynchronize(void*) { return OK; }
API int cuStreamWaitEvent(void*, void*, unsigned) { return OK; }
API int cuStreamIsCapturing(void*, int* status) { return give(status, 0); }
API int cuEventCreate(void** event, unsigned) { return give<void*>(event, &an_event); }
API int cuEventRecord(void*, void*) { return OK; }
API int cuEventQuery(void*) { return OK; }
API int cuEventSynchronize(void*) { return OK; }
API int cuEventDestroy_v2(void*) { return OK; }
API int cuGetErrorName(int error, const char** name) {
    switch (error) {
    case OK: return give(name, "CUDA_SUCCESS");
    case INVALID_VALUE: return give(name, "CUDA_ERROR_INVALID_VALUE");
    case INVALID_PTX: return give(name, "CUDA_ERROR_INVALID_PTX");
    case NOT_FOUND: return give(name, "CUDA_ERROR_NOT_FOUND");
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

int copy(void* to, const void* from, size_t bytes) {
    memmove(to, from, bytes);
    return OK;
}
void* at(uint64_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

API int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = TOTAL;
    return give(free, TOTAL - used);
}
API int cuMemAllocAsync(uint64_t* address, size_t bytes, void*) { return allocate(address, bytes); }
API int cuMemAlloc_v2(uint64_t* address, size_t bytes) { return allocate(address, bytes); }
API int cuMemFreeAsync(uint64_t address, void*) { return release(address); }
API int cuMemFree_v2(uint64_t address) { return release(address); }
API int cuMemHostAlloc(void** address, size_t bytes, unsigned) { return give(address, malloc(bytes)); }
API int cuMemFreeHost(void* address) {
    free(address);
    return OK;
}
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) { return copy(at(to), from, bytes); }
API int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) { return copy(at(to), from, bytes); }
API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) { return copy(to, at(from), bytes); }
API int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) { return copy(to, at(from), bytes); }
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void*) { return copy(at(to), at(from), bytes); }
API int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return copy(at(to), at(from), bytes); }
API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void*) {
    memset(at(to), value, bytes);
    return OK;
}
API int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, nullptr); }

// Modules: what NVRTC below made is a text that names a shared object; all other PTX is candle's, whose sources are compiled.

namespace {

const std::string MADE = "// emulated GPU: ";

struct Function {
    std::string name;
    void (*call)(void**);
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
    std::string path = shared_object_of(static_cast<const char*>(image));
    *module = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    return *module ? OK : complain(INVALID_PTX, path.empty() ? "it was not compiled" : dlerror());
}
API int cuModuleUnload(void*) { return OK; }
API int cuModuleGetFunction(Function** function, void* module, const char* name) {
    void* call = dlsym(module, (std::string("emulated_call_") + name).c_str());
    void* threads = dlsym(module, (std::string("emulated_threads_") + name).c_str());
    if (!call || !threads) return complain(NOT_FOUND, std::string("no kernel ") + name);
    *function = new Function{name, reinterpret_cast<void (*)(void**)>(call), *static_cast<int*>(threads), 48 << 10};
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
    Launch launch = {function->name.c_str(), function->call, arguments, {grid_x, grid_y, grid_z}, {x, y, z}, shared_bytes};
    counts.add(function->name);
    const char* failure = run(launch);
    if (check) check_zones();
    return failure ? complain(LAUNCH_FAILED, function->name + ": " + failure) : OK;
}

// NVRTC.

namespace {

struct Program {
    std::string source;
    Compiled made;
    std::string ptx() const { return MADE + made.path; }
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
    *minor = 0;
    return give(major, 13);
}
API int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    std::string defines;
    for (int i = 0; i < count; i++)
        if (strncmp(options[i], "-D", 2) == 0) defines += std::string(options[i]) + " ";
    program->made = compile(program->source, defines);
    return program->made.path.empty() ? 6 : OK;  // NVRTC_ERROR_COMPILATION
}
API int nvrtcGetPTXSize(Program* program, size_t* size) { return give(size, program->ptx().size() + 1); }
API int nvrtcGetPTX(Program* program, char* to) { return hand_over(program->ptx(), to); }
API int nvrtcGetProgramLogSize(Program* program, size_t* size) { return give(size, program->made.log.size() + 1); }
API int nvrtcGetProgramLog(Program* program, char* to) { return hand_over(program->made.log, to); }
