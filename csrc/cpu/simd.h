// Vectors of one instruction set, and the loop that goes over rows with them. See vector_loops.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/vector.h"

namespace soae::cpu {

namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kBlock = 1024;  // elements whose sum is kept in the working precision

template <typename T>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(SOAE_VECTOR_BYTES)));
  using Int = int32_t;
  static constexpr Int kMagnitude = 0x7fffffff;
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(SOAE_VECTOR_BYTES)));
  using Int = int64_t;
  static constexpr Int kMagnitude = 0x7fffffffffffffff;
};
template <typename T>
using Vector = typename Simd<T>::Vector;

template <typename T>
constexpr int64_t kLanes = SOAE_VECTOR_BYTES / sizeof(T);
template <typename T>
constexpr int64_t kLine = kLineBytes / sizeof(T);

template <typename T>
inline Vector<T> load(const T* a) {
  Vector<T> v;
  std::memcpy(&v, a, sizeof v);
  return v;
}

template <typename T>
inline void store(T* a, const Vector<T>& v) {
  std::memcpy(a, &v, sizeof v);
}

// Sum of the first 2 * half numbers, pairwise.
template <int64_t half, typename T>
inline T fold(T* lane) {
  for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  if constexpr (half > 1) return fold<half / 2>(lane);
  return lane[0];
}

template <typename T>
inline double total(const Vector<T>& v) {
  T lane[kLanes<T>];
  std::memcpy(lane, &v, sizeof v);
  return double(fold<kLanes<T> / 2>(lane));
}

// Always inline: GCC takes a function that only prefetches for one without effect, and drops the call.
template <typename T>
__attribute__((always_inline)) inline void fetch(const Ahead& ahead, int64_t i) {
  if (!ahead.wanted) return;
  for (int r = 0; r < kPanel; ++r) {
    __builtin_prefetch(reinterpret_cast<const void*>(ahead.row[r] + i * sizeof(T)), 0, 2);
  }
}

// Calls vector(i) for whole vectors and scalar(i) for the rest, and flush() after every block; asks for a cache line of
// each row ahead, stored in S, per cache line of the loop.
template <typename T, typename S, typename OnVector, typename OnScalar, typename Flush>
inline void sweep(const Ahead& ahead, int64_t n, OnVector&& vector, OnScalar&& scalar, Flush&& flush) {
  int64_t i = 0;
  while (i + kLine<T> <= n) {
    const int64_t rest = (n - i) / kLine<T> * kLine<T>;
    const int64_t end = i + (rest < kBlock ? rest : kBlock);
    for (; i < end; i += kLine<T>) {
      if (i % kLine<S> == 0) fetch<S>(ahead, i);
      for (int64_t part = 0; part < kLine<T>; part += kLanes<T>) vector(i + part);
    }
    flush();
  }
  for (; i < n; ++i) scalar(i);
}

}  // namespace

}  // namespace soae::cpu
