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

// Split-n kernels cut the vectors of a system into pieces of kPieceChunks chunks: a block each, a chunk per thread,
// kPieceRows basis rows in flight.
constexpr int kSplit = kVariantCount;
constexpr int kPieceThreads = 256;
constexpr int kPieceChunks = kPieceThreads;
constexpr int kPieceRows = 8;

struct Plan {
  int variant;     // index into kVariants, or kSplit
  int32_t pieces;  // per system; the end of a cycle works on pieces whatever the variant

  bool split() const { return variant == kSplit; }
};

inline Plan make_plan(const Solve& p) {
  const int64_t row_chunks = p.ld * (p.dtype == kFloat32 ? 4 : 8) / 16;
  const int64_t processors = multiprocessors(p.device);
  Plan plan{};
  plan.pieces = static_cast<int32_t>((row_chunks + kPieceChunks - 1) / kPieceChunks);
  while (plan.variant < kSplit && row_chunks > kVariants[plan.variant].threads * kVariants[plan.variant].chunks) {
    ++plan.variant;
  }

  // Time of an average step in microseconds, by bytes of V read: block-per-system reads V once, but one multiprocessor
  // cannot draw much more than its share of the bandwidth; split-n reads it twice, with all of them, in two launches
  // more.
  constexpr double kOneProcessor = 60e3;    // bytes per microsecond into one multiprocessor
  constexpr double kEachOfAll = 30e3;       // the same when all of them read
  constexpr double kTwoMoreLaunches = 5.0;  // microseconds
  const double bytes = 0.5 * static_cast<double>(p.restart) * static_cast<double>(row_chunks * 16);
  const double waves = static_cast<double>((p.batch + processors - 1) / processors);
  const double shared = static_cast<double>(p.batch) * bytes / (kEachOfAll * static_cast<double>(processors));
  if (kTwoMoreLaunches + 2.0 * shared < std::max(waves * bytes / kOneProcessor, shared)) plan.variant = kSplit;

#if defined(SOAE_SIMT)
  if (simt::forced_variant() >= 0) plan.variant = simt::forced_variant();
#endif
  return plan;
}

}  // namespace soae::cuda
