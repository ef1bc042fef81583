// The loops over one chunk of a vector, in float and double, compiled for several instruction sets (vector.cpp).
//
// Sums run in the working precision in many accumulators (at most a chunk long) and are returned in double.
#pragma once

#include <cstdint>

namespace soae::cpu {

constexpr int kPanel = 4;

// Rows that a panel does not have repeat one that it has, with a zero coefficient.
template <typename T>
struct Panel {
  const T* row[kPanel];
};

// clang-format off
#define SOAE_DECLARE_VECTOR(T)                                                                                      \
  /* max |a_i|, infinity if any is not finite */                                                                    \
  double max_abs(const T* a, int64_t n);                                                                            \
  /* sum (scale a_i)^2 */                                                                                           \
  double sum_squares(const T* a, T scale, int64_t n);                                                               \
  /* out = scale a */                                                                                               \
  void multiply(T* out, const T* a, T scale, int64_t n);                                                            \
  /* out = a - b */                                                                                                 \
  void subtract(T* out, const T* a, const T* b, int64_t n);                                                         \
  /* both outputs = a + scale b; an output may be b */                                                              \
  void add_scaled(T* first, T* second, const T* a, const T* b, T scale, int64_t n);                                 \
  /* w = scale a; result[0..3] = panel . w; result[4] = w . w */                                                    \
  void scale_dot(T* w, const T* a, T scale, const Panel<T>& panel, double* result, int64_t n);                      \
  /* w -= used h; result[0..3] = next . w */                                                                        \
  void update_dot(T* w, const Panel<T>& used, const T* h, const Panel<T>& next, double* result, int64_t n);         \
  /* w -= used h; returns w . w */                                                                                  \
  double update_norm(T* w, const Panel<T>& used, const T* h, int64_t n);                                            \
  /* w += panel y */                                                                                                \
  void combine(T* w, const Panel<T>& panel, const T* y, int64_t n);
// clang-format on

SOAE_DECLARE_VECTOR(float)
SOAE_DECLARE_VECTOR(double)
#undef SOAE_DECLARE_VECTOR

}  // namespace soae::cpu
