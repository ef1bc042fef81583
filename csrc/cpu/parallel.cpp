#include "cpu/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>

namespace soae::cpu {

namespace {

constexpr int64_t kAlignment = 256;

// Starting and joining threads costs a few microseconds, the time in which one thread reads about this much.
constexpr int64_t kSerialElements = 32768;

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// A forked child has the thread pool of its parent on record but none of its threads: a parallel region would wait for
// them for ever.
std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

}  // namespace

Layout make_layout(const Solve& p) {
  const int64_t item = p.dtype == kFloat32 ? 4 : 8;
  Layout l;
  l.chunk = kChunkBytes / item;
  l.chunks = std::max<int64_t>(1, (p.n + l.chunk - 1) / l.chunk);
  l.threads = registered == 0 ? std::max(1, p.threads) : 1;
  l.split = p.batch < l.threads && l.chunks > 1;
  l.teams = l.split ? 1 : static_cast<int32_t>(std::min<int64_t>(l.threads, std::max<int64_t>(1, p.batch)));
  l.row_bytes = round_up(p.ld * item, kAlignment);
  l.small_bytes = round_up((p.restart + 2) * static_cast<int64_t>(sizeof(double)), kAlignment);
  const int64_t partial_bytes = 2 * l.chunks * static_cast<int64_t>(sizeof(Partial));
  l.team_bytes = l.row_bytes + l.small_bytes + round_up(partial_bytes, kAlignment);
  return l;
}

Team::Team(const Solve& p, const Layout& l, int32_t team, int32_t rank, int32_t size)
    : rank_(rank), size_(size), n_(p.n), chunk_(l.chunk), chunks_(l.chunks) {
  first_ = chunks_ * rank / size;
  last_ = chunks_ * (rank + 1) / size;
  row_ = static_cast<std::byte*>(p.scratch) + team * l.team_bytes;
  column_ = reinterpret_cast<double*>(row_ + l.row_bytes);
  flag_ = reinterpret_cast<int32_t*>(column_ + p.restart + 1);
  partials_ = reinterpret_cast<Partial*>(row_ + l.row_bytes + l.small_bytes);
  other_ = partials_ + l.chunks;
}

int32_t worthwhile_threads(int32_t threads, int64_t elements) {
  const bool alone = registered != 0 || threads < 1 || elements < kSerialElements;
  return alone || forked.load(std::memory_order_relaxed) ? 1 : threads;
}

}  // namespace soae::cpu
