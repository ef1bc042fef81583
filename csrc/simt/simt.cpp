#include "simt.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace soae::simt {

namespace {

constexpr std::size_t kStackBytes = 256 * 1024;

enum class Wait { kNone, kWarp, kBlock, kDone };

struct Site {
  const char* file = nullptr;
  int line = 0;
};

// A thread of the running block. Its stack and its context outlive the block: the next block's thread continues them.
struct Fiber {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  Wait wait = Wait::kDone;
  Site site;
  std::uint64_t mailbox[2] = {};
  int parity = 0;  // of the mailbox: a lane that is one shuffle ahead must not overwrite what others still read
  void* fake_stack = nullptr;
};

enum class Schedule { kInOrder, kReversed, kShuffled };

struct Machine {
  Schedule schedule = Schedule::kInOrder;
  std::mt19937_64 random;
  int multiprocessors = 132;
  int forced_variant = -1;

  std::mutex mutex;
  std::vector<std::unique_ptr<Fiber>> fibers;
  Position position{};
  Fiber* current = nullptr;
  const std::function<void()>* body = nullptr;
  std::exception_ptr error;  // thrown by a thread of the kernel
  jmp_buf scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_stack_bytes = 0;
};

Machine machine;

Fiber& fiber(int thread) { return *machine.fibers[static_cast<std::size_t>(thread)]; }

// AddressSanitizer has to know which stack is in use.
#if defined(__SANITIZE_ADDRESS__)
void leave_for(void** fake_stack, const void* stack, std::size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
}
void arrived_on_fiber(Fiber& f) {
  __sanitizer_finish_switch_fiber(f.fake_stack, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
}
void arrived_on_scheduler() { __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr); }
#else
void leave_for(void**, const void*, std::size_t) {}
void arrived_on_fiber(Fiber&) {}
void arrived_on_scheduler() {}
#endif

// Back to the scheduler, until it resumes this fiber.
void yield() {
  Fiber& f = *machine.current;
  if (_setjmp(f.resume) == 0) {
    leave_for(&f.fake_stack, machine.scheduler_stack, machine.scheduler_stack_bytes);
    _longjmp(machine.scheduler, 1);
  }
  arrived_on_fiber(f);
}

void fiber_main() {
  arrived_on_fiber(*machine.current);
  for (;;) {
    try {
      (*machine.body)();
    } catch (...) {
      machine.error = std::current_exception();
    }
    machine.current->wait = Wait::kDone;
    yield();
  }
}

// From the scheduler into a fiber, until it yields. The context is entered once; later switches are plain jumps, which
// cost no system call.
void resume(Fiber& f) {
  machine.current = &f;
  if (_setjmp(machine.scheduler) == 0) {
    leave_for(&machine.scheduler_fake_stack, f.stack.get(), kStackBytes);
    if (f.started) _longjmp(f.resume, 1);
    f.started = true;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.get();
    f.start.uc_stack.ss_size = kStackBytes;
    f.start.uc_link = nullptr;
    makecontext(&f.start, fiber_main, 0);
    setcontext(&f.start);
  }
  arrived_on_scheduler();
}

template <typename Index>
std::vector<Index> scheduled(Index count) {
  std::vector<Index> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), Index(0));
  if (machine.schedule == Schedule::kReversed) std::reverse(order.begin(), order.end());
  if (machine.schedule == Schedule::kShuffled) std::shuffle(order.begin(), order.end(), machine.random);
  return order;
}

std::string place(const Site& s) { return std::string(s.file) + ":" + std::to_string(s.line); }

// Releases the warp's lanes if all of them wait at a shuffle.
void release_warp(int first) {
  for (int i = first; i < first + kWarp; ++i) {
    if (fiber(i).wait != Wait::kWarp) return;
  }
  for (int i = first; i < first + kWarp; ++i) fiber(i).wait = Wait::kNone;
}

// Releases the block if all of its threads that have not returned wait at one barrier.
bool release_block(int threads) {
  const Site* site = nullptr;
  for (int i = 0; i < threads; ++i) {
    const Fiber& f = fiber(i);
    if (f.wait == Wait::kDone) continue;
    if (f.wait != Wait::kBlock) return false;
    if (site == nullptr) site = &f.site;
    if (f.site.line != site->line || std::string(f.site.file) != site->file) {
      throw std::runtime_error("divergent barrier: threads of a block wait at " + place(*site) + " and at " +
                               place(f.site));
    }
  }
  if (site == nullptr) return false;
  for (int i = 0; i < threads; ++i) {
    Fiber& f = fiber(i);
    if (f.wait == Wait::kBlock) f.wait = Wait::kNone;
  }
  return true;
}

// Runs each thread of a group, a warp where the schedule keeps warps together, to its next barrier or shuffle. Called
// until none of them can run: a warp gets as far ahead of the others as the barriers let it.
bool run_group(std::vector<int>::const_iterator group, std::int64_t block, int threads, unsigned char* shared) {
  bool ran = false;
  for (auto i = group; i != group + kWarp; ++i) {
    Fiber& f = fiber(*i);
    if (f.wait != Wait::kNone) continue;
    ran = true;
    machine.position = {block, *i, threads, shared};
    resume(f);
    if (machine.error) std::rethrow_exception(std::exchange(machine.error, nullptr));
    if (f.wait == Wait::kWarp) release_warp(*i / kWarp * kWarp);
  }
  return ran;
}

void run_block(std::int64_t block, int threads, std::size_t shared) {
  const std::unique_ptr<unsigned char[]> buffer(new unsigned char[shared]);
  std::fill_n(buffer.get(), shared, static_cast<unsigned char>(0xff));
  for (int i = 0; i < threads; ++i) {
    Fiber& f = fiber(i);
    f.wait = Wait::kNone;
    f.parity = 0;
  }
  const std::vector<int> order = scheduled(threads);
  for (;;) {
    bool ran = false, alive = false;
    for (auto group = order.begin(); group != order.end(); group += kWarp) {
      while (run_group(group, block, threads, buffer.get())) ran = true;
      for (auto i = group; i != group + kWarp; ++i) alive = alive || fiber(*i).wait != Wait::kDone;
    }
    if (!alive) return;
    if (!ran && !release_block(threads)) {
      throw std::runtime_error("deadlock: threads of a block wait at barriers that the others never reach");
    }
  }
}

}  // namespace

void set_schedule(const std::string& name, std::uint64_t seed) {
  if (name == "in-order") {
    machine.schedule = Schedule::kInOrder;
  } else if (name == "reversed") {
    machine.schedule = Schedule::kReversed;
  } else if (name == "shuffled") {
    machine.schedule = Schedule::kShuffled;
  } else {
    throw std::invalid_argument("schedule: in-order, reversed or shuffled, not " + name);
  }
  machine.random.seed(seed);
}

void set_multiprocessors(int count) { machine.multiprocessors = count; }
int multiprocessors() { return machine.multiprocessors; }

void force_variant(int variant) { machine.forced_variant = variant; }
int forced_variant() { return machine.forced_variant; }

void launch(const std::function<void()>& thread, std::int64_t blocks, int threads, std::size_t shared) {
  if (blocks <= 0 || threads <= 0 || threads % kWarp != 0) {
    throw std::runtime_error("launch: blocks and threads must be positive, threads a multiple of the warp");
  }
  const std::lock_guard<std::mutex> lock(machine.mutex);
  while (machine.fibers.size() < static_cast<std::size_t>(threads)) {
    machine.fibers.push_back(std::make_unique<Fiber>());
  }
  machine.body = &thread;
  try {
    for (const std::int64_t block : scheduled(blocks)) run_block(block, threads, shared);
  } catch (...) {
    machine.fibers.clear();  // some are stuck in the middle of a kernel
    throw;
  }
}

const Position& position() { return machine.position; }

void barrier(const char* file, int line) {
  Fiber& f = *machine.current;
  f.site = {file, line};
  f.wait = Wait::kBlock;
  yield();
}

std::uint64_t exchange(std::uint64_t value, int lane) {
  Fiber& f = *machine.current;
  const int first = machine.position.thread / kWarp * kWarp;
  const int parity = f.parity;
  f.parity = 1 - parity;
  f.mailbox[parity] = value;
  f.wait = Wait::kWarp;
  yield();
  return fiber(first + lane).mailbox[parity];
}

}  // namespace soae::simt
