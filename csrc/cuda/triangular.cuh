// Substitution by a whole block: forward for (I + L) h = r, and backward for R y = g by counting from the end.
#pragma once

#include "reduce.cuh"

namespace soae::cuda {

// Solves T x = b for a lower triangular T; x in shared memory holds b, then the solution. at(row, column) reads T at
// row >= column. The first warp solves 32 unknowns, then all threads take them out of the rows below; the next 32 rows
// are the first warp's own, so one barrier per 32 unknowns is enough. Each row subtracts its terms in the order of the
// columns. Ends with x visible to the block.
template <typename At>
SOAE_DEVICE void substitute(int32_t count, double* x, const At& at) {
  for (int32_t base = 0; base < count; base += kWarp) {
    const int32_t width = count - base < kWarp ? count - base : kWarp;
    if (warp_index() == 0) {
      const int lane = lane_index();
      const int32_t row = base + lane;
      double value = lane < width ? x[row] : 0.0;
      for (int32_t i = 0; i < width; ++i) {
        if (lane == i) value /= at(row, row);
        const double solved = shuffle(value, i);
        if (lane > i && lane < width) value -= at(row, base + i) * solved;
      }
      if (lane < width) x[row] = value;
    }
    block_barrier();
    for (int32_t row = base + width + thread_index(); row < count; row += thread_count()) {
      double value = x[row];
      for (int32_t i = 0; i < width; ++i) value -= at(row, base + i) * x[base + i];
      x[row] = value;
    }
  }
}

// R, packed by columns, read from its last row and column: lower triangular.
struct ReversedUpper {
  const double* r;
  int32_t last;
  SOAE_DEVICE double operator()(int32_t row, int32_t column) const {
    const int64_t j = last - column;
    return r[j * (j + 1) / 2 + (last - row)];
  }
};

// I + L; the strict lower triangle of L is packed by columns of an order x order matrix, so that neighbouring rows are
// neighbours in memory.
struct UnitLower {
  double* l;
  int64_t order;
  SOAE_DEVICE double& below(int32_t row, int32_t column) const {
    const int64_t c = column;
    return l[c * order - c * (c + 1) / 2 + row - c - 1];
  }
  SOAE_DEVICE double operator()(int32_t row, int32_t column) const { return row == column ? 1.0 : below(row, column); }
};

}  // namespace soae::cuda
