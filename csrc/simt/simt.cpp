#include "simt.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
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

enum class Wait { kNone, kWarp, kBlock, kCluster, kMail, kDone };

struct Site {
  const char* file = nullptr;
  int line = 0;
};

// A mailbox's 8 bytes.
struct Mailbox {
  std::int32_t missing;  // bytes
  std::int16_t arrivals;
  std::int16_t phase;    // of 0 and 1, the one that is running
};
static_assert(sizeof(Mailbox) == sizeof(std::uint64_t), "as large as an mbarrier");

// A copy on its way.
struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

// A thread of the running cluster. Its stack and its context outlive the cluster: the next one's thread continues them.
struct Fiber {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  Wait wait = Wait::kDone;
  Site site;
  const std::uint64_t* box = nullptr;  // waited for, until the phase is no longer `running_phase`
  int running_phase = 0;
  std::uint64_t mailbox[2] = {};
  int parity = 0;  // of the mailbox: a lane that is one shuffle ahead must not overwrite what others still read
  std::vector<std::vector<Copy>> copies;  // groups on their way, the last one open
  void* fake_stack = nullptr;
};

enum class Schedule { kInOrder, kReversed, kShuffled };

struct Machine {
  Schedule schedule = Schedule::kInOrder;
  std::mt19937_64 random;
  int multiprocessors = 132;
  int largest_cluster = 16;

  std::mutex mutex;
  std::vector<std::unique_ptr<Fiber>> fibers;        // of a cluster: those of its first block, of its second, ...
  std::vector<std::unique_ptr<unsigned char[]>> shared;  // of each block of the cluster
  std::vector<std::pair<Copy, std::uint64_t*>> bulk;     // on their way
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

// Releases the threads first .. first + count - 1 if all of them that have not returned wait at one barrier of a kind.
bool release(Wait kind, int first, int count) {
  const Site* site = nullptr;
  for (int i = first; i < first + count; ++i) {
    const Fiber& f = fiber(i);
    if (f.wait == Wait::kDone) continue;
    if (f.wait != kind) return false;
    if (site == nullptr) site = &f.site;
    if (f.site.line != site->line || std::string(f.site.file) != site->file) {
      throw std::runtime_error("divergent barrier: threads of a block wait at " + place(*site) + " and at " +
                               place(f.site));
    }
  }
  if (site == nullptr) return false;
  for (int i = first; i < first + count; ++i) {
    Fiber& f = fiber(i);
    if (f.wait == kind) f.wait = Wait::kNone;
  }
  return true;
}

Mailbox read(const std::uint64_t* box) {
  Mailbox m;
  std::memcpy(&m, box, sizeof m);
  return m;
}

// A phase that is complete gives way to the next.
void write(std::uint64_t* box, Mailbox m) {
  if (m.arrivals == 1 && m.missing == 0) m = {0, 0, static_cast<std::int16_t>(1 - m.phase)};
  std::memcpy(box, &m, sizeof m);
}

void depart(const Copy& copy) { std::memset(copy.to, 0xff, copy.bytes); }
void arrive(const Copy& copy) { std::memcpy(copy.to, copy.from, copy.bytes); }

// Lets the threads go on whose mailbox is full, when all that is on its way has come.
bool release_mail(int threads) {
  for (const auto& [copy, box] : std::exchange(machine.bulk, {})) {
    arrive(copy);
    deliver(box, static_cast<int>(copy.bytes));
  }
  bool any = false;
  for (int i = 0; i < threads; ++i) {
    Fiber& f = fiber(i);
    if (f.wait != Wait::kMail || read(f.box).phase == f.running_phase) continue;
    f.wait = Wait::kNone;
    any = true;
  }
  return any;
}

// Runs each thread of a group, a warp where the schedule keeps warps together, to its next barrier or shuffle. Called
// until none of them can run: a warp gets as far ahead of the others as the barriers let it.
bool run_group(std::vector<int>::const_iterator group, std::int64_t first_block, int threads, int cluster) {
  bool ran = false;
  for (auto i = group; i != group + kWarp; ++i) {
    Fiber& f = fiber(*i);
    if (f.wait != Wait::kNone) continue;
    ran = true;
    const int rank = *i / threads;
    unsigned char* const shared = machine.shared[static_cast<std::size_t>(rank)].get();
    machine.position = {first_block + rank, *i % threads, threads, rank, cluster, shared};
    resume(f);
    if (machine.error) std::rethrow_exception(std::exchange(machine.error, nullptr));
    if (f.wait == Wait::kWarp) release_warp(*i / kWarp * kWarp);
  }
  return ran;
}

// Lets those threads go on that have all arrived where they wait for each other; mail comes when there are none.
bool release_any(int threads, int cluster) {
  bool any = false;
  for (int rank = 0; rank < cluster; ++rank) any = release(Wait::kBlock, rank * threads, threads) || any;
  return any || release(Wait::kCluster, 0, threads * cluster) || release_mail(threads * cluster);
}

void run_cluster(std::int64_t first_block, int threads, std::size_t shared, int cluster) {
  machine.shared.clear();
  for (int rank = 0; rank < cluster; ++rank) {
    machine.shared.emplace_back(new unsigned char[shared]);
    std::fill_n(machine.shared.back().get(), shared, static_cast<unsigned char>(0xff));
  }
  for (int i = 0; i < threads * cluster; ++i) {
    Fiber& f = fiber(i);
    f.wait = Wait::kNone;
    f.parity = 0;
    f.copies.assign(1, {});
  }
  machine.bulk.clear();
  const std::vector<int> order = scheduled(threads * cluster);
  for (;;) {
    bool ran = false, alive = false;
    for (auto group = order.begin(); group != order.end(); group += kWarp) {
      while (run_group(group, first_block, threads, cluster)) ran = true;
      for (auto i = group; i != group + kWarp; ++i) alive = alive || fiber(*i).wait != Wait::kDone;
    }
    if (!alive && !machine.bulk.empty()) {
      throw std::runtime_error("a block ended while copies to its shared memory were on their way");
    }
    if (!alive) return;
    if (!ran && !release_any(threads, cluster)) {
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

void set_largest_cluster(int blocks) { machine.largest_cluster = blocks; }
int largest_cluster() { return machine.largest_cluster; }
int most_shared_bytes() { return (machine.largest_cluster > 0 ? 227 : 99) * 1024; }

void launch(const std::function<void()>& thread, std::int64_t blocks, int threads, std::size_t shared, int cluster) {
  if (blocks <= 0 || threads <= 0 || threads % kWarp != 0) {
    throw std::runtime_error("launch: blocks and threads must be positive, threads a multiple of the warp");
  }
  if (cluster < 1 || blocks % cluster != 0 || cluster > std::max(1, machine.largest_cluster)) {
    throw std::runtime_error("launch: the blocks must be whole clusters of a size that the GPU runs");
  }
  const std::lock_guard<std::mutex> lock(machine.mutex);
  while (machine.fibers.size() < static_cast<std::size_t>(threads) * static_cast<std::size_t>(cluster)) {
    machine.fibers.push_back(std::make_unique<Fiber>());
  }
  machine.body = &thread;
  try {
    for (const std::int64_t c : scheduled(blocks / cluster)) run_cluster(c * cluster, threads, shared, cluster);
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

void cluster_barrier(const char* file, int line) {
  Fiber& f = *machine.current;
  f.site = {file, line};
  f.wait = Wait::kCluster;
  yield();
}

void* remote(void* at, int rank) {
  return machine.shared[static_cast<std::size_t>(rank)].get() + (static_cast<unsigned char*>(at) - machine.position.shared);
}

void open_mailbox(std::uint64_t* box) { write(box, {0, 0, 0}); }

void expect_bytes(std::uint64_t* box, int bytes) {
  Mailbox m = read(box);
  m.missing += bytes;
  ++m.arrivals;
  write(box, m);
}

void deliver(std::uint64_t* box, int bytes) {
  Mailbox m = read(box);
  m.missing -= bytes;
  write(box, m);
}

void wait_for(const std::uint64_t* box, int parity) {
  if (read(box).phase != parity) return;
  Fiber& f = *machine.current;
  f.box = box;
  f.running_phase = parity;
  f.wait = Wait::kMail;
  yield();
}

void copy_bulk(void* to, const void* from, int bytes, std::uint64_t* box) {
  machine.bulk.emplace_back(Copy{to, from, static_cast<std::size_t>(bytes)}, box);
  depart(machine.bulk.back().first);
}

void copy_chunk(void* to, const void* from) {
  machine.current->copies.back().push_back({to, from, 16});
  depart(machine.current->copies.back().back());
}

void commit_copies() { machine.current->copies.emplace_back(); }

void wait_for_copies(int pending) {
  std::vector<std::vector<Copy>>& groups = machine.current->copies;
  while (groups.size() > static_cast<std::size_t>(pending) + 1) {
    for (const Copy& copy : groups.front()) arrive(copy);
    groups.erase(groups.begin());
  }
}

std::uint64_t exchange(std::uint64_t value, int lane) {
  Fiber& f = *machine.current;
  const int first = machine.position.rank * machine.position.threads + machine.position.thread / kWarp * kWarp;
  const int parity = f.parity;
  f.parity = 1 - parity;
  f.mailbox[parity] = value;
  f.wait = Wait::kWarp;
  yield();
  return fiber(first + lane).mailbox[parity];
}

}  // namespace soae::simt
