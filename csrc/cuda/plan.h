// Which kernels a solve uses. Decided here and nowhere else, from (B, n, dtypes, restart) and the number of
// multiprocessors alone: never from which systems are still active, so that a neighbour cannot change a result.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../gmres.h"
#include "port.h"

namespace soae::cuda {

// Kernels that read V once, by one block or by the blocks of one cluster for each system: `threads` times `chunks` chunks
// hold the vector, or the block's part of it, in registers, each as many numbers as 16 bytes of a basis row; `panel` basis
// rows are orthogonalised against per reduction; `min_blocks` is the occupancy the register budget is cut for. With a ring
// the rows come through shared memory (panels.cuh, sm_80 and later).
struct Variant {
  int threads, chunks, panel, min_blocks;
  bool clusters, ring;
};
constexpr Variant kVariants[] = {
    {64, 1, 4, 8, false, false},   // n <=     256 (float32)
    {128, 2, 4, 5, false, false},  // n <=   1,024
    {256, 3, 4, 2, false, false},  // n <=   3,072
    {512, 3, 4, 1, false, false},  // n <=   6,144
    {512, 6, 2, 1, false, false},  // n <=  12,288
    {256, 3, 4, 2, true, false},   // n <=  49,152 in clusters of 16; small clusters for few systems
    {512, 5, 2, 1, true, false},   // n <= 163,840 in clusters of 16
    {256, 3, 4, 2, false, true},   // n <=   3,072
    {256, 3, 8, 1, false, true},   // n <=   3,072 with half the reductions
    {512, 6, 2, 1, false, true},   // n <=  12,288
    {512, 5, 2, 1, true, true},    // n <= 163,840 in clusters of 16
};
// For a basis in half the working precision, whose chunks take twice the room in registers.
constexpr Variant kHalfVariants[] = {
    {128, 1, 4, 5, false, false},  // n <=   1,024 (16-bit under float32)
    {192, 2, 4, 2, false, false},  // n <=   3,072
    {512, 3, 2, 1, false, false},  // n <=  12,288
    {384, 4, 2, 1, true, false},   // n <= 196,608 in clusters of 16
    {192, 2, 8, 1, false, true},   // n <=   3,072 with half the reductions
};
constexpr int kRingStages = 2;

struct VariantTable {
  const Variant* variants;
  int count;
};
// ratio: bytes of a working number to those of a stored one. A basis in a quarter of the working precision is left to
// split-n, which has room for it.
constexpr VariantTable variant_table(std::size_t ratio) {
  return ratio == 1   ? VariantTable{kVariants, sizeof(kVariants) / sizeof(kVariants[0])}
         : ratio == 2 ? VariantTable{kHalfVariants, sizeof(kHalfVariants) / sizeof(kHalfVariants[0])}
                      : VariantTable{kHalfVariants, 0};
}

// Split-n kernels cut the vectors of a system into pieces of kPieceChunks chunks: a block each, a chunk per thread,
// kPieceRows basis rows in flight.
constexpr int kPieceThreads = 256;
constexpr int kPieceChunks = kPieceThreads;
template <typename T, typename S>
constexpr int kPieceRows = sizeof(T) / sizeof(S) == 4 ? 4 : 8;

struct Plan {
  int variant;     // index into one of the tables above, or their end: split-n
  int32_t blocks;  // of the cluster that works on a system; 1 for a block of its own
  int32_t pieces;  // of a system in split-n
  bool split;
};

// A row of choices.h: what was the fastest for systems of at most so many unknowns, in batches of at most so many.
struct Choice {
  int architecture;  // 90 for sm_90
  Dtype dtype, basis_dtype;
  int64_t most_unknowns, most_systems;
  int variant;
  int32_t blocks;
};

// Microseconds of an average step by the bytes of V that it reads, where no choice was measured. A block or a cluster
// reads V once, but one multiprocessor cannot draw much more than its share of the bandwidth, and the blocks of a cluster
// wait for each other at every panel; split-n reads V twice, with all multiprocessors, in two launches more.
class StepModel {
 public:
  StepModel(const Solve& p, std::size_t row_bytes, int64_t processors)
      : batch_(p.batch), processors_(processors), rows_(0.5 * static_cast<double>(p.restart)),
        bytes_(rows_ * static_cast<double>(row_bytes)),
        shared_(static_cast<double>(p.batch) * bytes_ / (kEachOfAll * static_cast<double>(processors))) {}

  double split() const { return kTwoMoreLaunches + 2.0 * shared_; }
  double by_blocks(const Variant& variant, int64_t blocks) const {
    const int64_t at_once = std::max<int64_t>(1, processors_ / blocks);
    const double waves = static_cast<double>((batch_ + at_once - 1) / at_once);
    const double exchanges = blocks > 1 ? kExchange * rows_ / variant.panel : 0.0;
    return std::max(waves * bytes_ / (kOneProcessor * static_cast<double>(blocks)), shared_) + waves * exchanges;
  }

 private:
  static constexpr double kOneProcessor = 60e3;    // bytes per microsecond into one multiprocessor
  static constexpr double kEachOfAll = 30e3;       // the same when all of them read
  static constexpr double kTwoMoreLaunches = 5.0;  // microseconds
  static constexpr double kExchange = 1.0;         // microseconds

  int64_t batch_, processors_;
  double rows_, bytes_, shared_;
};

// Blocks that a system's vector needs with this variant; 0 if the variant cannot hold it on this GPU.
inline int32_t blocks_needed(const Variant& variant, int64_t row_chunks, int largest) {
  const int64_t capacity = static_cast<int64_t>(variant.threads) * variant.chunks;
  if (!variant.clusters) return row_chunks <= capacity ? 1 : 0;
  int32_t blocks = 2;
  while (blocks * capacity < row_chunks) blocks *= 2;
  return blocks <= largest ? blocks : 0;
}

// For measurements and tests: every later solve uses this variant, with clusters of at least so many blocks; -1 leaves it
// to the plan.
void force_variant(int variant, int blocks);
// What a solve uses: the variant, and the blocks that work on a system.
void describe_plan(const Solve& p, int& variant, int& blocks);

inline std::size_t bytes_of(int32_t dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// Pieces of a row of so many bytes.
inline int32_t count_pieces(std::size_t bytes) {
  constexpr std::size_t kPieceBytes = 16 * kPieceChunks;
  return static_cast<int32_t>((bytes + kPieceBytes - 1) / kPieceBytes);
}

// Blocks of the largest cluster that this GPU runs; 0 where there are none.
int largest_cluster(int device);

Plan make_plan(const Solve& p);

}  // namespace soae::cuda
