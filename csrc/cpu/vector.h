// The loops over one chunk of a vector, in float and double, for the instruction set of this machine, and over rows of
// the basis that are stored in the same or a narrower type.
//
// Sums run in the working precision over short blocks, many accumulators at a time, and in double over the blocks.
#pragma once

#include <cstdint>

#include "storage.h"

namespace soae::cpu {

constexpr int kPanel = 4;

// Rows that a panel does not have repeat one that it has, with a zero coefficient.
template <typename S>
struct Panel {
  const S* row[kPanel];
};

// What to bring into the second-level cache meanwhile: as many bytes from each of these addresses as are read of a row.
// Hardware prefetchers stop at every page; this is worth a tenth of a step's time where memory is the limit.
struct Ahead {
  std::uintptr_t row[kPanel];
  bool wanted;
};

template <typename T>
struct VectorLoops {
  // max |a_i|, infinity if any is not finite
  double (*max_abs)(const T* a, const Ahead& ahead, int64_t n);
  // sum (scale a_i)^2
  double (*sum_squares)(const T* a, T scale, int64_t n);
  // out = scale a
  void (*multiply)(T* out, const T* a, T scale, int64_t n);
  // out = a - b
  void (*subtract)(T* out, const T* a, const T* b, int64_t n);
  // both outputs = a + scale b; an output may be b
  void (*add_scaled)(T* first, T* second, const T* a, const T* b, T scale, int64_t n);
  // result[0..3] = panel . v
  void (*dot)(const Panel<T>& panel, const T* v, const Ahead& ahead, double* result, int64_t n);
};

// Rows in S take part with the numbers that are stored: their power of two is the caller's.
template <typename T, typename S>
struct BasisLoops {
  // w = scale a; result[0..3] = panel . w; result[4] = w . w
  void (*scale_dot)(T* w, const T* a, T scale, const Panel<S>& panel, const Ahead& ahead, double* result, int64_t n);
  // w -= used h; result[0..3] = next . w
  void (*update_dot)(T* w, const Panel<S>& used, const T* h, const Panel<S>& next, const Ahead& ahead, double* result,
                     int64_t n);
  // w -= used h; returns w . w
  double (*update_norm)(T* w, const Panel<S>& used, const T* h, int64_t n);
  // w += panel y
  void (*combine)(T* w, const Panel<S>& panel, const T* y, int64_t n);
  // row = scale a, rounded; out = unit row
  void (*append)(S* row, T* out, const T* a, T scale, T unit, int64_t n);
  // out = unit row
  void (*restore)(T* out, const S* row, T unit, int64_t n);
};

struct LoopSet : VectorLoops<float>,
                 VectorLoops<double>,
                 BasisLoops<float, float>,
                 BasisLoops<float, Float16>,
                 BasisLoops<float, Bfloat16>,
                 BasisLoops<double, double>,
                 BasisLoops<double, float>,
                 BasisLoops<double, Float16>,
                 BasisLoops<double, Bfloat16> {};

// One set per instruction set, each compiled with its own flags (CMakeLists.txt).
namespace baseline {
extern const LoopSet kLoops;
}
namespace x86_64_v3 {
extern const LoopSet kLoops;
}
namespace x86_64_v4 {
extern const LoopSet kLoops;
}

// The best of these that this processor runs.
const LoopSet& loop_set();

template <typename T>
const VectorLoops<T>& vector_loops() {
  return loop_set();
}
template <typename T, typename S>
const BasisLoops<T, S>& basis_loops() {
  return loop_set();
}

}  // namespace soae::cpu
