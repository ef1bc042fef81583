// One Arnoldi step of one system by one block or by the blocks of one cluster, in one launch. The new vector stays in
// registers from the operator's output to the basis, so every basis row is read once (twice for kCgs2, and after a
// cancellation). Every block of a cluster holds an equal part of it and does the same with the same totals.
#pragma once

#include <type_traits>

#include "cluster_reduce.cuh"
#include "panels.cuh"
#include "plan.h"
#include "reduce.cuh"
#include "stored.cuh"

namespace soae::cuda {

template <typename T, typename S, int kVariant>
struct BlockStep {
  static constexpr Variant kChosen = variant_table(sizeof(T) / sizeof(S)).variants[kVariant];
  static constexpr int kThreads = kChosen.threads;
  static constexpr int kChunks = kChosen.chunks;
  static constexpr int kPanel = kChosen.panel;
  static constexpr int kMinBlocks = kChosen.min_blocks;
  static constexpr bool kClusters = kChosen.clusters;
  static constexpr bool kRing = kChosen.ring;
  using Row = Stored<T, S>;
  using Tile = TileFor<T, S, kThreads, kChunks>;
  using Panels = std::conditional_t<kRing, RingedPanels<T, S, kThreads, kChunks, kPanel>,
                                    LoadedPanels<T, S, kThreads, kChunks, kPanel>>;
  using Reduce = std::conditional_t<kClusters, ClusterReduce<kThreads, kPanel>, BlockReduce<kThreads, kPanel>>;

  // Shared memory of a block whose part of a row has so many chunks: the ring, reductions, one column.
  static SOAE_HD std::size_t ring_bytes(int32_t each) {
    return kRing ? RingedPanels<T, S, kThreads, kChunks, kPanel>::bytes(each) : 0;
  }
  static std::size_t shared_bytes(int32_t each, int64_t columns) {
    const std::size_t doubles = static_cast<std::size_t>(Reduce::kDoubles) + static_cast<std::size_t>(columns);
    return ring_bytes(each) + doubles * sizeof(double);
  }
};

// w -= V V^T w for the panel of rows that begins at `row`: classical within the panel, modified between panels. The
// coefficients, times `unit`, are added to the column, each by a thread of its own.
template <typename T, typename S, int kVariant>
SOAE_DEVICE void orthogonalize_panel(typename BlockStep<T, S, kVariant>::Tile& w,
                                     typename BlockStep<T, S, kVariant>::Reduce& reduce,
                                     typename BlockStep<T, S, kVariant>::Panels& panels, const Stored<T, S>& stored,
                                     int32_t row, int32_t rows, double* column, double unit) {
  using Step = BlockStep<T, S, kVariant>;
  constexpr int kPanel = Step::kPanel;
  typename Step::Panels::Panel v;
  panels.load(v, row, rows);

  T h[kPanel];
#pragma unroll
  for (int q = 0; q < kPanel; ++q) h[q] = v[q].dot(w, stored);
  reduce.sum_rows(h);
  panels.next(row, rows);

  T mine = h[0] * stored.unit;
#pragma unroll
  for (int q = 0; q < kPanel; ++q) {
    h[q] *= stored.unit;
    v[q].add_to(w, -h[q] * stored.unit, stored);
    mine = thread_index() == q ? h[q] : mine;
  }
  const int32_t at = row + thread_index();
  if (thread_index() < kPanel && at < rows) column[at] += unit * static_cast<double>(mine);
}

template <typename T, typename S, int kVariant>
SOAE_KERNEL((BlockStep<T, S, kVariant>::kThreads), (BlockStep<T, S, kVariant>::kMinBlocks))
block_step(SOAE_PARAM Solve p, int32_t j, const T* operator_output) {
  using Step = BlockStep<T, S, kVariant>;
  if ((Step::kClusters && !has_clusters()) || (Step::kRing && !has_async_copies())) return;
  const int blocks = Step::kClusters ? cluster_size() : 1;
  const int rank = Step::kClusters ? cluster_rank() : 0;
  const int64_t system = block_index() / blocks;
  const int32_t chunks = row_chunks<S>(p);
  const Span own = Step::kClusters ? Span::of(chunks, blocks, rank) : Span{0, chunks, chunks};
  const VectorFor<T, S> direction = vector_of<T, Step::Row::kSize>(p, p.direction, system);
  if (p.systems[system].outcome != kActive) return clear_vector(direction, own.first, own.last);
  j = step_index(p, system, j);

  typename Step::Panels panels(p, system, own, dynamic_shared<double>());
  double* const shared = dynamic_shared<double>() + Step::ring_bytes(own.each) / sizeof(double);
  typename Step::Reduce reduce(shared);
  double* column = shared + Step::Reduce::kDoubles;
  for (int32_t i = thread_index(); i <= j; i += Step::kThreads) column[i] = 0.0;

  typename Step::Tile w;
  w.load(vector_of<T, Step::Row::kSize>(p, operator_output, system), own.first,
         Step::kClusters ? own.last : INT32_MAX);
  const double largest = reduce.max(w.max_magnitude());
  if (!is_finite(largest)) {
    if (thread_index() == 0 && rank == 0) reject_column(p, system);
    return clear_vector(direction, own.first, own.last);
  }
  panels.begin(j + 1);
  const int32_t exponent = scale_exponent(largest, p.dtype);
  w.scale(power_of_two<T>(-exponent));
  const double before = sqrt(reduce.sum(w.dot(w)));

  const double unit = power_of_two<double>(exponent);
  const typename Step::Row stored(p);
  double after = 0.0;
  for (int sweep = 0; sweep < 2; ++sweep) {
    if (sweep > 0) panels.begin(j + 1);
    for (int32_t row = 0; row <= j; row += Step::kPanel) {
      orthogonalize_panel<T, S, kVariant>(w, reduce, panels, stored, row, j + 1, column, unit);
    }
    after = sqrt(reduce.sum(w.dot(w)));
    if (p.orthogonalization == kMgs && !(after < kCancellation * before)) break;
  }

  if (thread_index() == 0 && rank == 0) {
    append_column(p, system, j, column, ldexp(after, exponent), ldexp(before, exponent));
    if (p.systems[system].outcome == kActive) atomic_add(&p.active[j + 1], 1);
  }
  if (Step::kClusters) {
    cluster_barrier();
  } else {
    block_barrier();
  }
  if (p.systems[system].outcome != kActive) return clear_vector(direction, own.first, own.last);
  w.scale(static_cast<T>(1.0 / after) * stored.scale);
  S* next = basis_row<S>(p, system, j + 1);
#pragma unroll
  for (int i = 0; i < Step::kChunks; ++i) {
    const int32_t at = Step::Tile::index(own.first, i);
    if (at < own.last) direction.store(at, stored.store(next, at, w.c[i]));
  }
}

}  // namespace soae::cuda
