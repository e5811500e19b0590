// What a compiled kernel and the library that runs it know of each other.
#pragma once
#include <cstddef>

struct Three {
    unsigned x, y, z;
};

struct Block {
    Three index, extent, grid;
    char* shared;  // the dynamic part
    size_t shared_bytes;
};

struct Thread {
    Three index;
    int lane;
    const Block* block;
};

extern "C" {
// The thread of a block that runs now. In the static block of thread-local storage, because every threadIdx reads it.
extern __thread Thread* emulated_thread __attribute__((tls_model("initial-exec")));

// What memory is filled with that nobody has written: 0xff, NaN in every format of floats, unless EMULATED_GPU_FILL says
// otherwise (4b makes them large numbers, for tests that do not see NaN).
extern const unsigned char emulated_fill;

// Ends the launch; the driver answers it with an error.
[[noreturn]] void emulated_fail(const char* why);

// __syncthreads.
void emulated_barrier();

// What the threads of a warp in `mask` do together: each brings a slot, and when the last has come `act` is called once with
// the slots of all 32 lanes, null for those that are not there.
void emulated_together(unsigned mask, void (*act)(void** slots), void* slot);

// cp.async: the bytes are there after the wait and not before.
void emulated_copy(void* to, const void* from, int bytes);
void emulated_commit();
void emulated_wait(int pending);
}
