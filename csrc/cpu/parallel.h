// Threads of the CPU backend, and where each finds its scratch.
//
// Two ways to share the work, chosen from the shape alone: a team of one thread per system, many systems at a time; or,
// when there are fewer systems than threads and n is long, a team of all threads on one system at a time. Either way a
// system is cut into the same chunks and the chunks' partial sums are added in the same order, so the result depends
// neither on the way nor on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gmres.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace soae::cpu {

// Bytes of one vector that are processed at a time: the vector and two panels of four stay in the second-level cache.
constexpr int64_t kChunkBytes = 16384;

// Partial results of one chunk; a cache line, so that threads do not share one.
struct alignas(64) Partial {
  double value[8];
};

struct Layout {
  int64_t chunk;       // elements
  int64_t chunks;
  int64_t row_bytes;   // w
  int64_t small_bytes; // column of the Hessenberg matrix, or y; and the flag
  int64_t team_bytes;
  int32_t teams;
  int32_t threads;
  bool split;          // all threads on one system
};

Layout make_layout(const Solve& p);

// One or more threads that work on one system together.
class Team {
 public:
  Team(const Solve& p, const Layout& layout, int32_t team, int32_t rank, int32_t size);

  bool leader() const { return rank_ == 0; }
  void wait() const {
    if (size_ > 1) {
#if defined(_OPENMP)
#pragma omp barrier
#endif
    }
  }

  // Calls body(offset, count, partial) for the chunks of this thread, then adds (or takes the maximum of) the first
  // `values` partial results over all chunks, in order, into `total`. Every thread gets the same total.
  template <typename Body>
  void sum(int values, double* total, Body&& body) {
    gather(body);
    for (int i = 0; i < values; ++i) total[i] = 0.0;
    for (int64_t c = 0; c < chunks_; ++c) {
      for (int i = 0; i < values; ++i) total[i] += partials_[c].value[i];
    }
    flip();
  }

  template <typename Body>
  void max(int values, double* total, Body&& body) {
    gather(body);
    for (int i = 0; i < values; ++i) total[i] = 0.0;
    for (int64_t c = 0; c < chunks_; ++c) {
      for (int i = 0; i < values; ++i) total[i] = total[i] > partials_[c].value[i] ? total[i] : partials_[c].value[i];
    }
    flip();
  }

  // Calls body(offset, count) for the chunks of this thread.
  template <typename Body>
  void each(Body&& body) const {
    for (int64_t c = first_; c < last_; ++c) {
      const int64_t offset = c * chunk_;
      body(offset, n_ - offset < chunk_ ? n_ - offset : chunk_);
    }
  }

  template <typename T>
  T* row() const {
    return reinterpret_cast<T*>(row_);
  }
  double* column() const { return column_; }
  int32_t& flag() const { return *flag_; }

 private:
  template <typename Body>
  void gather(Body&& body) {
    for (int64_t c = first_; c < last_; ++c) {
      const int64_t offset = c * chunk_;
      body(offset, n_ - offset < chunk_ ? n_ - offset : chunk_, partials_[c].value);
    }
    wait();
  }
  // The next reduction writes elsewhere: a slower thread may still be adding this one up.
  void flip() {
    Partial* const other = other_;
    other_ = partials_;
    partials_ = other;
  }

  int32_t rank_, size_;
  int64_t n_, chunk_, chunks_, first_, last_;
  std::byte* row_;
  Partial* partials_;
  Partial* other_;
  double* column_;
  int32_t* flag_;
};

// Of so many threads those worth using for `elements` elements of memory traffic; 1 in a forked child.
int32_t worthwhile_threads(int32_t threads, int64_t elements);

// Calls body(system, team) for every system.
template <typename Body>
void for_each_system(const Solve& p, int64_t elements_per_system, Body&& body) {
  const Layout layout = make_layout(p);
  const int32_t threads = worthwhile_threads(layout.threads, p.batch * elements_per_system);
  if (threads == 1) {
    for (int64_t system = 0; system < p.batch; ++system) {
      Team team(p, layout, 0, 0, 1);
      body(system, team);
    }
    return;
  }
#if defined(_OPENMP)
  if (layout.split) {
#pragma omp parallel num_threads(threads)
    {
      Team team(p, layout, 0, omp_get_thread_num(), omp_get_num_threads());
      for (int64_t system = 0; system < p.batch; ++system) body(system, team);
    }
  } else {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t system = 0; system < p.batch; ++system) {
      // Fewer systems than threads: a row for each system, not for each thread.
      Team team(p, layout, p.batch < threads ? static_cast<int32_t>(system) : omp_get_thread_num(), 0, 1);
      body(system, team);
    }
  }
#endif
}

}  // namespace soae::cpu
