// Sums and maxima over a cluster of blocks, in a fixed order: the same bits in every run, and in every block.
#pragma once

#include "reduce.cuh"

namespace soae::cuda {

constexpr int kLargestCluster = 16;

// What BlockReduce is for a block. Every block reduces its part and sends the result to all blocks of the cluster, into
// one half of their buffers, and the next reduction uses the other half. Whoever writes a half again has heard of the
// reduction in between from all blocks, and these had read the half by then: they passed a barrier since.
template <int kThreads, int kRows>
class ClusterReduce {
  using Block = BlockReduce<kThreads, kRows>;
  static constexpr int kSlots = kLargestCluster * kRows;
  static_assert(kThreads >= kSlots, "a thread for every number that is sent");

 public:
  static constexpr int kDoubles = Block::kDoubles + 2 * kSlots + 2;

  // For all threads of the cluster together.
  SOAE_DEVICE explicit ClusterReduce(double* shared)
      : block_(shared), slots_(shared + Block::kDoubles), boxes_(reinterpret_cast<uint64_t*>(slots_ + 2 * kSlots)) {
    if (thread_index() == 0) {
      open_mailbox(boxes_);
      open_mailbox(boxes_ + 1);
    }
    cluster_barrier();
  }

  template <typename T>
  SOAE_DEVICE double sum(T value) {
    return warp_sum(of_lane(trade<1>(block_.sum(value))));
  }

  template <typename T>
  SOAE_DEVICE double max(T value) {  // of values >= 0
    return warp_max(of_lane(trade<1>(block_.max(value))));
  }

  // rows[r]: this thread's part of row r, then the cluster's total.
  template <typename T>
  SOAE_DEVICE void sum_rows(T (&rows)[kRows]) {
    const double* half = trade<kRows>(block_.total_of_lane(rows));
    const int lane = lane_index();
    double sum = 0.0;  // of row lane % kRows
#pragma unroll
    for (int i = 0; i < kSlots; i += kWarp) {
      if (i + lane < cluster_size() * kRows) sum += half[i + lane];
    }
#pragma unroll
    for (int offset = kWarp / 2; offset >= kRows; offset /= 2) sum += shuffle_xor(sum, offset);
    Block::hand_out(sum, rows);
  }

 private:
  // Thread t holds number t % kCount of its block. Returns the numbers of all blocks, one block's after the other's.
  template <int kCount>
  SOAE_DEVICE const double* trade(double value) {
    double* const half = slots_ + (trades_ % 2) * kSlots;
    uint64_t* const box = boxes_ + trades_ % 2;
    const int numbers = cluster_size() * kCount;
    if (thread_index() == 0) expect_bytes(box, numbers * static_cast<int>(sizeof(double)));
    if (thread_index() < numbers) {
      send(value, half + cluster_rank() * kCount + thread_index() % kCount, box, thread_index() / kCount);
    }
    wait_for(box, trades_ / 2 % 2);
    ++trades_;
    return half;
  }

  // Lane r of every warp receives the number of block r; lanes without a block receive zero.
  SOAE_DEVICE double of_lane(const double* half) { return lane_index() < cluster_size() ? half[lane_index()] : 0.0; }

  Block block_;
  double* slots_;
  uint64_t* boxes_;
  int trades_ = 0;
};

}  // namespace soae::cuda
