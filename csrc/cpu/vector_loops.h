// The loops themselves. Included once per instruction set by a file that sets SOAE_LEVEL and SOAE_VECTOR_BYTES and is
// compiled with that set's flags. Everything but the table is local to that file, and nothing of the standard
// library is called: the linker would be free to keep this file's copy for machines that cannot run it.
#include <cstdint>
#include <cstring>

#include "cpu/basis_loops.h"
#include "cpu/simd.h"

namespace soae::cpu {

namespace {

// Magnitudes of floating-point numbers are ordered as their bit patterns are, with infinity and NaN above all others,
// so that one integer maximum answers both questions.
template <typename T>
double max_abs(const T* a, const Ahead& ahead, int64_t n) {
  using Int = typename Simd<T>::Int;
  Int largest = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    for (int64_t i = begin; i < end; i += kLine<T>) fetch<T>(ahead, i);
#pragma omp simd reduction(max : largest)
    for (int64_t i = begin; i < end; ++i) {
      Int bits;
      std::memcpy(&bits, a + i, sizeof(T));
      bits &= Simd<T>::kMagnitude;
      largest = bits > largest ? bits : largest;
    }
  }
  T value;
  std::memcpy(&value, &largest, sizeof(T));
  return value - value == T(0) ? double(value) : __builtin_huge_val();
}

template <typename T>
double sum_squares(const T* a, T scale, int64_t n) {
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    T part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) {
      const T value = a[i] * scale;
      part += value * value;
    }
    sum += double(part);
  }
  return sum;
}

template <typename T>
void multiply(T* out, const T* a, T scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] * scale;
}

template <typename T>
void subtract(T* out, const T* a, const T* b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] - b[i];
}

template <typename T>
void add_scaled(T* first, T* second, const T* a, const T* b, T scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T value = a[i] + scale * b[i];
    first[i] = value;
    second[i] = value;
  }
}

template <typename T>
void dot(const Panel<T>& panel, const T* v, const Ahead& ahead, double* result, int64_t n) {
  const T *v0 = panel.row[0], *v1 = panel.row[1], *v2 = panel.row[2], *v3 = panel.row[3];
  Vector<T> d0{}, d1{}, d2{}, d3{};
  double t0 = 0, t1 = 0, t2 = 0, t3 = 0;
  sweep<T, T>(
      ahead, n,
      [&](int64_t i) {
        const Vector<T> value = load(v + i);
        d0 += value * load(v0 + i);
        d1 += value * load(v1 + i);
        d2 += value * load(v2 + i);
        d3 += value * load(v3 + i);
      },
      [&](int64_t i) {
        t0 += double(v[i] * v0[i]);
        t1 += double(v[i] * v1[i]);
        t2 += double(v[i] * v2[i]);
        t3 += double(v[i] * v3[i]);
      },
      [&] {
        t0 += total<T>(d0), t1 += total<T>(d1), t2 += total<T>(d2), t3 += total<T>(d3);
        d0 = d1 = d2 = d3 = Vector<T>{};
      });
  result[0] = t0, result[1] = t1, result[2] = t2, result[3] = t3;
}

template <typename T>
constexpr VectorLoops<T> vector_table() {
  return {max_abs<T>, sum_squares<T>, multiply<T>, subtract<T>, add_scaled<T>, dot<T>};
}

template <typename T, typename S>
constexpr BasisLoops<T, S> basis_table() {
  return {scale_dot<T, S>, update_dot<T, S>, update_norm<T, S>, combine<T, S>, append<T, S>, restore<T, S>};
}

}  // namespace

namespace SOAE_LEVEL {
const LoopSet kLoops = {
    vector_table<float>(),         vector_table<double>(),          basis_table<float, float>(),
    basis_table<float, Float16>(), basis_table<float, Bfloat16>(),  basis_table<double, double>(),
    basis_table<double, float>(),  basis_table<double, Float16>(),  basis_table<double, Bfloat16>(),
};
}  // namespace SOAE_LEVEL

}  // namespace soae::cpu
