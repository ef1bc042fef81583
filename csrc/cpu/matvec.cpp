#include "cpu/matvec.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace soae::cpu {

namespace {

constexpr int64_t kFetchedBytes = 1024;

// Rows first .. first + kPanel - 1 of one matrix, or as many as there are.
template <typename T>
void panel_times_vector(const Matvec& p, const VectorLoops<T>& loops, int64_t system, int64_t first) {
  const T* const matrix = static_cast<const T*>(p.matrices) + system * p.matrix_stride;
  const int64_t rows = std::min<int64_t>(kPanel, p.n - first);
  Panel<T> panel;
  // Short rows are in the cache, or follow each other so closely that the hardware fetches them.
  const bool far = p.n * static_cast<int64_t>(sizeof(T)) >= kFetchedBytes && first + 2 * kPanel <= p.n;
  Ahead ahead{{}, far};
  for (int64_t r = 0; r < kPanel; ++r) {
    panel.row[r] = matrix + (first + std::min(r, rows - 1)) * p.row_stride;
    ahead.row[r] = reinterpret_cast<std::uintptr_t>(panel.row[r] + kPanel * p.row_stride);
  }
  double result[kPanel];
  loops.dot(panel, static_cast<const T*>(p.v) + system * p.n, ahead, result, p.n);
  T* const out = static_cast<T*>(p.out) + system * p.n + first;
  for (int64_t r = 0; r < rows; ++r) out[r] = static_cast<T>(result[r]);
}

template <typename T>
void run(const Matvec& p) {
  const VectorLoops<T>& loops = vector_loops<T>();
  const int64_t panels = (p.n + kPanel - 1) / kPanel;
  const int64_t all = p.batch * panels;
  const int32_t threads = worthwhile_threads(p.threads, p.batch * p.n * p.n);
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
  for (int64_t k = 0; k < all; ++k) panel_times_vector(p, loops, k / panels, k % panels * kPanel);
}

}  // namespace

void matvec(const Matvec& p) {
  if (p.dtype == kFloat32) {
    run<float>(p);
  } else {
    run<double>(p);
  }
}

int32_t dense_cycle(const Solve& solve, const Matvec& product) {
  const int32_t steps = static_cast<int32_t>(solve.restart);
  for (int32_t j = 0; j < steps; ++j) {
    matvec(product);
    step(solve, j, product.out, nullptr);
    if (solve.active[j + 1] == 0) return j + 1;
  }
  return steps;
}

}  // namespace soae::cpu
