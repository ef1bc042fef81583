// Which kernels a solve uses. Decided here and nowhere else, from (B, n, dtype, restart) and the number of
// multiprocessors alone: never from which systems are still active, so that a neighbour cannot change a result.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../gmres.h"
#include "port.h"

namespace soae::cuda {

// Block-per-system kernels: `threads` times `chunks` chunks of 16 bytes hold the vector in registers; `panel` basis
// rows are orthogonalised against per reduction; `min_blocks` is the occupancy the register budget is cut for.
struct Variant {
  int threads, chunks, panel, min_blocks;
};
constexpr Variant kVariants[] = {
    {64, 1, 4, 8},   // n <=    256 (float32)
    {128, 2, 4, 5},  // n <=  1,024
    {256, 3, 4, 2},  // n <=  3,072
    {512, 3, 4, 1},  // n <=  6,144
    {512, 6, 2, 1},  // n <= 12,288
};
constexpr int kVariantCount = sizeof(kVariants) / sizeof(kVariants[0]);

// Kernels that cut the vectors of a system into pieces: one block of kSplitThreads per piece, `chunks` chunks a thread.
constexpr int kSplitThreads = 128;
constexpr int kSmallTile = 1;
constexpr int kLargeTile = 4;

struct Plan {
  bool split;          // step, begin and close work on pieces; else one block per system does them
  int variant;         // of the block-per-system step
  int chunks;          // chunks a thread holds in the kernels that work on pieces: kSmallTile or kLargeTile
  int32_t pieces;      // per system
};

inline int64_t chunks_per_row(const Solve& p) { return p.ld * (p.dtype == kFloat32 ? 4 : 8) / 16; }

inline int32_t pieces_of(const Solve& p, int chunks) {
  const int64_t capacity = static_cast<int64_t>(kSplitThreads) * chunks;
  return static_cast<int32_t>((chunks_per_row(p) + capacity - 1) / capacity);
}

inline Plan make_plan(const Solve& p) {
  const int64_t row_chunks = chunks_per_row(p);
  const int64_t processors = multiprocessors(p.device);
  Plan plan{};

  plan.variant = kVariantCount;
  for (int i = kVariantCount - 1; i >= 0; --i) {
    if (row_chunks <= kVariants[i].threads * kVariants[i].chunks) plan.variant = i;
  }

  // Few pieces keep partial results few; many fill the GPU.
  plan.chunks = p.batch * pieces_of(p, kLargeTile) >= 2 * processors ? kLargeTile : kSmallTile;

  // Time of an average step in microseconds, by bytes of V read: block-per-system reads V once, but one multiprocessor
  // cannot draw more than its own share of several; split reads it twice, with all of them, in two launches more.
  constexpr double kOneProcessor = 60e3;    // bytes per microsecond into one multiprocessor
  constexpr double kEachOfAll = 30e3;       // the same when all of them read
  constexpr double kTwoMoreLaunches = 5.0;  // microseconds
  const double bytes = 0.5 * static_cast<double>(p.restart) * static_cast<double>(row_chunks * 16);
  const double waves = static_cast<double>((p.batch + processors - 1) / processors);
  const double everyone = static_cast<double>(p.batch) * bytes / (kEachOfAll * static_cast<double>(processors));
  const double block_time = std::max(waves * bytes / kOneProcessor, everyone);
  const double split_time = kTwoMoreLaunches + 2.0 * everyone;
  plan.split = plan.variant == kVariantCount || split_time < block_time;

#if defined(SOAE_SIMT)
  simt::adjust_plan(plan.split, plan.variant, plan.chunks);
#endif
  plan.pieces = pieces_of(p, plan.chunks);
  return plan;
}

}  // namespace soae::cuda
