// Runs a kernel: one block after the other, the threads of a block as fibers that give way where they wait for each other.
#include "emulated.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <vector>

__thread Thread* emulated_thread = nullptr;

const unsigned char emulated_fill = getenv("EMULATED_GPU_FILL") ? strtoul(getenv("EMULATED_GPU_FILL"), nullptr, 16) : 0xff;

namespace {

// Not a power of two: the same variable of all threads would fall into the same lines of the cache.
constexpr size_t STACK_BYTES = (64 << 10) + 576;

enum class State { Fresh, Ready, Waiting, Done };

struct Copy {
    void* to;
    const void* from;
    int bytes, group;
};

struct Warp {
    int first, last;  // its threads
    unsigned alive, arrived, mask;
    void (*act)(void**);
    void* slots[32];
};

struct Fiber : Thread {
    State state;
    bool at_barrier;
    void* stack_pointer;
    char* stack;
    Warp* warp;
    std::vector<Copy> copies;
    int groups;
};

struct Runner {
    const Launch* launch = nullptr;
    Block block{};
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<char*> stacks;
    Fiber* current = nullptr;
    void* home = nullptr;
    int alive = 0, arrived = 0;
    const char* failure = nullptr;
    unsigned launches = 0;
    bool backwards = false;

    ~Runner() {
        for (char* stack : stacks) munmap(stack, STACK_BYTES);
    }
};

thread_local Runner runner;

}  // namespace

// Saves what a function must preserve, leaves the stack for another, and goes on there.
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
    .text
    .globl emulated_switch
    .hidden emulated_switch
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace {

void give_way() {
    Fiber* fiber = runner.current;
    emulated_switch(&fiber->stack_pointer, runner.home);
}

bool complete(const Warp& warp) { return warp.arrived && warp.arrived == (warp.mask & warp.alive); }

void act_together(Warp& warp) {
    warp.act(warp.slots);
    for (int lane = 0; lane < 32; lane++)
        if (warp.arrived >> lane & 1) runner.fibers[warp.first + lane].state = State::Ready;
    memset(warp.slots, 0, sizeof warp.slots);
    warp.arrived = 0;
}

void open_barrier() {
    runner.arrived = 0;
    for (Fiber& fiber : runner.fibers)
        if (fiber.at_barrier) fiber.at_barrier = false, fiber.state = State::Ready;
}

// A thread has ended: those that wait for all that are left may now be complete.
void leave() {
    Fiber& fiber = *runner.current;
    fiber.state = State::Done;
    runner.stacks.push_back(fiber.stack);
    fiber.warp->alive &= ~(1u << fiber.lane);
    if (complete(*fiber.warp)) act_together(*fiber.warp);
    if (--runner.alive && runner.alive == runner.arrived) open_barrier();
}

void body() {
    runner.launch->call(runner.launch->arguments);
    leave();
    give_way();
}

void prepare(Fiber& fiber) {
    if (runner.stacks.empty()) {
        void* fresh = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (fresh == MAP_FAILED) die("no memory for the stack of a thread");
        runner.stacks.push_back(static_cast<char*>(fresh));
    }
    fiber.stack = runner.stacks.back();
    runner.stacks.pop_back();
    // As emulated_switch leaves a stack: six registers and where to go on; below that a function expects a return address.
    void** top = reinterpret_cast<void**>(fiber.stack + STACK_BYTES) - 2;
    top[1] = nullptr;
    top[0] = reinterpret_cast<void*>(body);
    fiber.stack_pointer = top - 6;
}

void resume(Fiber& fiber) {
    if (fiber.state == State::Fresh) prepare(fiber);
    fiber.state = State::Ready;
    runner.current = &fiber;
    emulated_thread = &fiber;
    emulated_switch(&runner.home, fiber.stack_pointer);
}

// Lets every thread of a warp that can go on do so; false if none can.
bool step(Warp& warp) {
    bool moved = false;
    for (int i = warp.first; i < warp.last && !runner.failure; i++) {
        Fiber& fiber = runner.fibers[runner.backwards ? warp.first + warp.last - 1 - i : i];
        if (fiber.state != State::Fresh && fiber.state != State::Ready) continue;
        resume(fiber);
        moved = true;
    }
    return moved;
}

void set_up(const Launch& launch, Three index) {
    int threads = launch.block.x * launch.block.y * launch.block.z;
    runner.launch = &launch;
    runner.block = {index, launch.block, launch.grid, runner.block.shared, launch.shared_bytes};
    runner.alive = threads;
    runner.arrived = 0;
    runner.fibers.resize(threads);
    runner.warps.assign((threads + 31) / 32, Warp{});
    for (int i = 0; i < threads; i++) {
        Fiber& fiber = runner.fibers[i];
        Warp& warp = runner.warps[i / 32];
        if (i % 32 == 0) warp.first = i;
        warp.last = i + 1;
        warp.alive |= 1u << i % 32;
        unsigned x = i % launch.block.x, y = i / launch.block.x % launch.block.y, z = i / launch.block.x / launch.block.y;
        static_cast<Thread&>(fiber) = {{x, y, z}, i % 32, &runner.block};
        fiber.state = State::Fresh;
        fiber.at_barrier = false;
        fiber.warp = &warp;
        fiber.copies.clear();
        fiber.groups = 0;
    }
}

void run_block(const Launch& launch, Three index) {
    set_up(launch, index);
    while (runner.alive && !runner.failure) {
        bool moved = false;
        for (size_t i = 0; i < runner.warps.size(); i++) {
            Warp& warp = runner.warps[runner.backwards ? runner.warps.size() - 1 - i : i];
            while (step(warp)) moved = true;
        }
        if (!moved && !runner.failure) runner.failure = "threads wait for threads that never come";
    }
    if (!runner.failure) return;
    for (Fiber& fiber : runner.fibers)
        if (fiber.state != State::Done && fiber.state != State::Fresh) runner.stacks.push_back(fiber.stack);
}

}  // namespace

void emulated_fail(const char* why) {
    runner.failure = why;
    while (true) give_way();
}

void emulated_barrier() {
    if (++runner.arrived == runner.alive) return open_barrier();
    runner.current->at_barrier = true;
    runner.current->state = State::Waiting;
    give_way();
}

void emulated_together(unsigned mask, void (*act)(void**), void* slot) {
    Fiber& fiber = *runner.current;
    Warp& warp = *fiber.warp;
    if (!(mask >> fiber.lane & 1)) emulated_fail("a thread that is not in its own mask");
    if (!warp.arrived) warp.mask = mask, warp.act = act;
    if (warp.mask != mask || warp.act != act) emulated_fail("threads of a warp meet in different calls");
    warp.slots[fiber.lane] = slot;
    warp.arrived |= 1u << fiber.lane;
    if (complete(warp)) return act_together(warp);
    fiber.state = State::Waiting;
    give_way();
}

void emulated_copy(void* to, const void* from, int bytes) {
    // Who reads this before the wait, or should have read before what was here, finds that it is spoilt.
    memset(to, emulated_fill, 16);
    runner.current->copies.push_back({to, from, bytes, runner.current->groups});
}

void emulated_commit() { runner.current->groups++; }

void emulated_wait(int pending) {
    Fiber& fiber = *runner.current;
    size_t kept = 0;
    for (const Copy& copy : fiber.copies) {
        if (copy.group >= fiber.groups - pending) {
            fiber.copies[kept++] = copy;
            continue;
        }
        memset(copy.to, 0, 16);
        memcpy(copy.to, copy.from, copy.bytes);
    }
    fiber.copies.resize(kept);
}

const char* run(const Launch& launch) {
    std::vector<char> shared(launch.shared_bytes + 1024);
    runner.block.shared = shared.data() + (1024 - reinterpret_cast<size_t>(shared.data()) % 1024);
    runner.failure = nullptr;
    // First threads first and last threads first, in no simple alternation: a result that depends on it changes.
    runner.backwards = __builtin_parity(runner.launches++);
    for (unsigned z = 0; z < launch.grid.z; z++)
        for (unsigned y = 0; y < launch.grid.y; y++)
            for (unsigned x = 0; x < launch.grid.x && !runner.failure; x++) {
                memset(runner.block.shared, emulated_fill, launch.shared_bytes);
                run_block(launch, {x, y, z});
            }
    return runner.failure;
}

const char* running() { return runner.launch ? runner.launch->name : "no kernel"; }
