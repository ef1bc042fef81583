#include "cpu/vector.h"

#include <cstring>
#include <limits>

// One copy of each loop per instruction set, chosen by the dynamic loader. Needs ifunc, hence glibc; elsewhere (and on
// AArch64, whose baseline has what these loops need) one copy is built.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define SOAE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SOAE_CLONES
#endif

// The templates below must end up inside the clones, or they would be compiled for the baseline alone.
#define SOAE_INLINE __attribute__((always_inline)) inline

namespace soae::cpu {

namespace {

template <typename T>
struct Bits;
template <>
struct Bits<float> {
  using type = int32_t;
};
template <>
struct Bits<double> {
  using type = int64_t;
};

// Magnitudes of floating-point numbers are ordered as their bit patterns are, with infinity and NaN above all others,
// so that one integer maximum answers both questions.
template <typename T>
SOAE_INLINE double max_abs_of(const T* a, int64_t n) {
  using Int = typename Bits<T>::type;
  Int largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) {
    Int bits;
    std::memcpy(&bits, a + i, sizeof(T));
    bits &= std::numeric_limits<Int>::max();
    largest = bits > largest ? bits : largest;
  }
  T value;
  std::memcpy(&value, &largest, sizeof(T));
  return value - value == T(0) ? double(value) : std::numeric_limits<double>::infinity();
}

template <typename T>
SOAE_INLINE double sum_squares_of(const T* a, T scale, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const T value = a[i] * scale;
    sum += value * value;
  }
  return double(sum);
}

template <typename T>
SOAE_INLINE void multiply_of(T* out, const T* a, T scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] * scale;
}

template <typename T>
SOAE_INLINE void subtract_of(T* out, const T* a, const T* b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] - b[i];
}

template <typename T>
SOAE_INLINE void add_scaled_of(T* first, T* second, const T* a, const T* b, T scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T value = a[i] + scale * b[i];
    first[i] = value;
    second[i] = value;
  }
}

template <typename T>
SOAE_INLINE void scale_dot_of(T* w, const T* a, T scale, const Panel<T>& panel, double* result, int64_t n) {
  const T *v0 = panel.row[0], *v1 = panel.row[1], *v2 = panel.row[2], *v3 = panel.row[3];
  T d0 = 0, d1 = 0, d2 = 0, d3 = 0, norm = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3, norm)
  for (int64_t i = 0; i < n; ++i) {
    const T value = a[i] * scale;
    w[i] = value;
    d0 += v0[i] * value;
    d1 += v1[i] * value;
    d2 += v2[i] * value;
    d3 += v3[i] * value;
    norm += value * value;
  }
  result[0] = d0, result[1] = d1, result[2] = d2, result[3] = d3, result[4] = norm;
}

template <typename T>
SOAE_INLINE void update_dot_of(T* w, const Panel<T>& used, const T* h, const Panel<T>& next, double* result,
                               int64_t n) {
  const T *u0 = used.row[0], *u1 = used.row[1], *u2 = used.row[2], *u3 = used.row[3];
  const T *v0 = next.row[0], *v1 = next.row[1], *v2 = next.row[2], *v3 = next.row[3];
  const T h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3];
  T d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3)
  for (int64_t i = 0; i < n; ++i) {
    const T value = w[i] - h0 * u0[i] - h1 * u1[i] - h2 * u2[i] - h3 * u3[i];
    w[i] = value;
    d0 += v0[i] * value;
    d1 += v1[i] * value;
    d2 += v2[i] * value;
    d3 += v3[i] * value;
  }
  result[0] = d0, result[1] = d1, result[2] = d2, result[3] = d3;
}

template <typename T>
SOAE_INLINE double update_norm_of(T* w, const Panel<T>& used, const T* h, int64_t n) {
  const T *u0 = used.row[0], *u1 = used.row[1], *u2 = used.row[2], *u3 = used.row[3];
  const T h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3];
  T norm = 0;
#pragma omp simd reduction(+ : norm)
  for (int64_t i = 0; i < n; ++i) {
    const T value = w[i] - h0 * u0[i] - h1 * u1[i] - h2 * u2[i] - h3 * u3[i];
    w[i] = value;
    norm += value * value;
  }
  return double(norm);
}

template <typename T>
SOAE_INLINE void combine_of(T* w, const Panel<T>& panel, const T* y, int64_t n) {
  const T *v0 = panel.row[0], *v1 = panel.row[1], *v2 = panel.row[2], *v3 = panel.row[3];
  const T y0 = y[0], y1 = y[1], y2 = y[2], y3 = y[3];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) w[i] += y0 * v0[i] + y1 * v1[i] + y2 * v2[i] + y3 * v3[i];
}

}  // namespace

// clang-format off
#define SOAE_DEFINE_VECTOR(T)                                                                                       \
  SOAE_CLONES double max_abs(const T* a, int64_t n) { return max_abs_of(a, n); }                                    \
  SOAE_CLONES double sum_squares(const T* a, T scale, int64_t n) { return sum_squares_of(a, scale, n); }            \
  SOAE_CLONES void multiply(T* out, const T* a, T scale, int64_t n) { multiply_of(out, a, scale, n); }              \
  SOAE_CLONES void subtract(T* out, const T* a, const T* b, int64_t n) { subtract_of(out, a, b, n); }               \
  SOAE_CLONES void add_scaled(T* first, T* second, const T* a, const T* b, T scale, int64_t n) {                    \
    add_scaled_of(first, second, a, b, scale, n);                                                                   \
  }                                                                                                                 \
  SOAE_CLONES void scale_dot(T* w, const T* a, T scale, const Panel<T>& panel, double* result, int64_t n) {         \
    scale_dot_of(w, a, scale, panel, result, n);                                                                    \
  }                                                                                                                 \
  SOAE_CLONES void update_dot(T* w, const Panel<T>& used, const T* h, const Panel<T>& next, double* result,         \
                              int64_t n) {                                                                          \
    update_dot_of(w, used, h, next, result, n);                                                                     \
  }                                                                                                                 \
  SOAE_CLONES double update_norm(T* w, const Panel<T>& used, const T* h, int64_t n) {                               \
    return update_norm_of(w, used, h, n);                                                                           \
  }                                                                                                                 \
  SOAE_CLONES void combine(T* w, const Panel<T>& panel, const T* y, int64_t n) { combine_of(w, panel, y, n); }
// clang-format on

SOAE_DEFINE_VECTOR(float)
SOAE_DEFINE_VECTOR(double)

}  // namespace soae::cpu
