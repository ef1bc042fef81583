// Sums and maxima over a block, in a fixed order: the same bits in every run.
#pragma once

#include "port.h"

namespace soae::cuda {

SOAE_DEVICE int lane_index() { return thread_index() % kWarp; }
SOAE_DEVICE int warp_index() { return thread_index() / kWarp; }

// Sums kRows values over the lanes of a warp. Each exchange halves the rows that a lane still carries, which takes
// kRows + 4 - log2(kRows) shuffles instead of 5 kRows. The total of row r ends in lanes [r, r + 1) kWarp / kRows.
template <int kRows, typename T>
SOAE_DEVICE T warp_sum_rows(T (&rows)[kRows]) {
  int offset = kWarp / 2;
#pragma unroll
  for (int half = kRows / 2; half >= 1; half /= 2) {
    const bool upper = (thread_index() & offset) != 0;
#pragma unroll
    for (int r = 0; r < half; ++r) {
      const T send = upper ? rows[r] : rows[r + half];
      const T keep = upper ? rows[r + half] : rows[r];
      rows[r] = keep + shuffle_xor(send, offset);
    }
    offset /= 2;
  }
#pragma unroll
  for (; offset >= 1; offset /= 2) rows[0] += shuffle_xor(rows[0], offset);
  return rows[0];
}

template <typename T>
SOAE_DEVICE T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset >= 1; offset /= 2) value += shuffle_xor(value, offset);
  return value;
}

template <typename T>
SOAE_DEVICE T warp_max(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset >= 1; offset /= 2) {
    const T other = shuffle_xor(value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// Reductions over a block with one barrier each: warps leave their partial results in one half of the buffer, and the
// next reduction uses the other half. Whoever writes a half again has passed the barrier in between, and so has
// everyone who read it. Every thread receives the result. Across warps the sums are in double.
template <int kThreads, int kRows>
class BlockReduce {
 public:
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kDoubles = 2 * kWarps * kRows;  // of shared memory
  static_assert(kThreads % kWarp == 0 && kWarps <= kWarp && kWarp % kRows == 0, "whole warps, at most 32 of them");

  SOAE_DEVICE explicit BlockReduce(double* shared) : shared_(shared) {}

  template <typename T>
  SOAE_DEVICE double sum(T value) {
    return warp_sum(exchange(static_cast<double>(warp_sum(value))));
  }

  template <typename T>
  SOAE_DEVICE double max(T value) {  // of values >= 0
    return warp_max(exchange(static_cast<double>(warp_max(value))));
  }

  // rows[r]: this thread's part of row r, then the block's total.
  template <typename T>
  SOAE_DEVICE void sum_rows(T (&rows)[kRows]) {
    hand_out(total_of_lane(rows), rows);
  }

  // The block's total of row lane_index() % kRows; the rows are used up.
  template <typename T>
  SOAE_DEVICE double total_of_lane(T (&rows)[kRows]) {
    constexpr int kLanesPerRow = kWarp / kRows;
    const T total = warp_sum_rows(rows);
    double* partial = next_half();
    const int lane = lane_index();
    if (lane % kLanesPerRow == 0) partial[warp_index() * kRows + lane / kLanesPerRow] = static_cast<double>(total);
    block_barrier();
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < kWarps * kRows; i += kWarp) {
      if (i + lane < kWarps * kRows) sum += partial[i + lane];
    }
#pragma unroll
    for (int offset = kWarp / 2; offset >= kRows; offset /= 2) sum += shuffle_xor(sum, offset);
    return sum;
  }

  // rows[r] = what lane r holds.
  template <typename T>
  static SOAE_DEVICE void hand_out(double total, T (&rows)[kRows]) {
    const T rounded = static_cast<T>(total);
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows[r] = shuffle(rounded, r);
  }

 private:
  SOAE_DEVICE double* next_half() {
    double* half = shared_ + used_;
    used_ = kDoubles / 2 - used_;
    return half;
  }

  // Lane w of every warp receives the value of warp w; lanes without a warp receive zero.
  SOAE_DEVICE double exchange(double value) {
    double* partial = next_half();
    if (lane_index() == 0) partial[warp_index()] = value;
    block_barrier();
    return lane_index() < kWarps ? partial[lane_index()] : 0.0;
  }

  double* shared_;
  int used_ = 0;
};

}  // namespace soae::cuda
