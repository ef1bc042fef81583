// Products of dense matrices with one vector each, read once at the speed of the memory.
#pragma once

#include <cstdint>

#include "gmres.h"

namespace soae::cpu {

// out_i = A_i v_i for `batch` matrices of n rows and n columns, whose rows are contiguous.
struct Matvec {
  int64_t batch;
  int64_t n;
  int64_t row_stride;     // elements from one row of a matrix to the next
  int64_t matrix_stride;  // elements from one matrix to the next
  int32_t dtype;          // Dtype
  int32_t threads;
  const void* matrices;
  const void* v;  // (batch, n)
  void* out;      // (batch, n), not the memory of v
};

void matvec(const Matvec& p);

// All steps of a cycle whose operator these matrices are: v is the solve's direction. Returns how many were taken.
int32_t dense_cycle(const Solve& solve, const Matvec& product);

}  // namespace soae::cpu
