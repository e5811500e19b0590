// What the files of the library share.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "threads.h"

struct Launch {
    const char* name;
    void (*call)(void** arguments);
    void** arguments;
    Three grid, block;
    size_t shared_bytes;
};

// Runs all blocks of a launch; null, or why it failed.
const char* run(const Launch& launch);

// The kernel that this thread of the program ran last.
const char* running();

// Compiles CUDA C++ to a shared object and says where that is. On an error `path` is empty.
struct Compiled {
    std::string path, log;
};
Compiled compile(const std::string& source, const std::string& options);

// The folder of this library, in which it keeps what it compiles.
std::string folder();

std::string contents(const std::string& path);

[[noreturn]] void die(const std::string& why);

// While a graph is recorded, work is kept for when it is launched, which is what true says. What the caller changes or frees
// afterwards must be copied into `work` if a GPU's driver copies it, and must not be if it does not.
bool kept(std::function<void()> work);

// Whether an address is in memory of the GPU.
bool on_device(const void* address);

// A bf16 and an f32 that is rounded to one.
inline float wide(uint16_t bits) {
    uint32_t all = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &all, 4);
    return x;
}
inline uint16_t narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
