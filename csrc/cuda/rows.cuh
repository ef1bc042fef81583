// Vectors in memory and in registers. A vector is cut in chunks, as many numbers as 16 bytes of a basis row hold; thread
// t of a block holds the chunks first + t, first + t + threads, ...: neighbouring threads touch neighbouring chunks.
#pragma once

#include "../gmres.h"
#include "../rules.h"
#include "port.h"

namespace soae::cuda {

// Offsets of a system's part of an array. 64-bit: B (m+1) ld passes 2^31 at sizes in daily use.
SOAE_HD int64_t vector_offset(const Solve& p, int64_t system) { return system * p.n; }
SOAE_HD int64_t basis_offset(const Solve& p, int64_t system, int64_t row) {
  return (system * (p.restart + 1) + row) * p.ld;
}
SOAE_HD int64_t update_offset(const Solve& p, int64_t system, int64_t row) {
  return (system * p.update_rows + row) * p.update_ld;
}

// A vector of n elements with no promise on its alignment: what the caller of gmres sees, and what the operator reads
// and writes. Chunks that lie within n move in one access where the row is aligned, else element by element.
template <typename T, int kSize = Chunk<T>::kSize>
struct Vector {
  using Values = Chunk<T, kSize>;
  T* data;
  int64_t n;
  bool aligned;

  SOAE_DEVICE Vector(T* start, int64_t count)
      : data(start), n(count), aligned(reinterpret_cast<std::uintptr_t>(start) % 16 == 0) {}

  SOAE_DEVICE Values load(int32_t chunk) const {
    const int64_t at = static_cast<int64_t>(chunk) * kSize;
    Values c;
    if (aligned && at + kSize <= n) {
#pragma unroll
      for (int e = 0; e < kSize; e += Chunk<T>::kSize) {
        const Chunk<T> part = load_chunk(data + at + e);
#pragma unroll
        for (int i = 0; i < Chunk<T>::kSize; ++i) c.a[e + i] = part.a[i];
      }
      return c;
    }
#pragma unroll
    for (int e = 0; e < kSize; ++e) c.a[e] = at + e < n ? data[at + e] : T(0);
    return c;
  }

  SOAE_DEVICE void store(int32_t chunk, const Values& c) const {
    const int64_t at = static_cast<int64_t>(chunk) * kSize;
    if (aligned && at + kSize <= n) {
#pragma unroll
      for (int e = 0; e < kSize; e += Chunk<T>::kSize) {
        Chunk<T> part;
#pragma unroll
        for (int i = 0; i < Chunk<T>::kSize; ++i) part.a[i] = c.a[e + i];
        store_chunk(data + at + e, part);
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if (at + e < n) data[at + e] = c.a[e];
    }
  }
};

template <typename T, int kSize = Chunk<T>::kSize>
SOAE_DEVICE Vector<T, kSize> vector_of(const Solve& p, void* array, int64_t system) {
  return {static_cast<T*>(array) + vector_offset(p, system), p.n};
}
// Read-only arrays are viewed through the same type; nothing stores to them.
template <typename T, int kSize = Chunk<T>::kSize>
SOAE_DEVICE Vector<T, kSize> vector_of(const Solve& p, const void* array, int64_t system) {
  return vector_of<T, kSize>(p, const_cast<void*>(array), system);
}

// The step that an active system is about to take: j, or its own count where j is negative. That count is of use until
// the step's column is appended.
SOAE_DEVICE int32_t step_index(const Solve& p, int64_t system, int32_t j) {
  return j < 0 ? p.systems[system].length : j;
}

template <typename T>
SOAE_DEVICE T power_of_two(int32_t exponent) {
  return static_cast<T>(ldexp(1.0, exponent));
}

// |a|, infinite where a is not finite, so that a maximum sees NaN.
template <typename T>
SOAE_DEVICE T magnitude(T a) {
  return a - a == T(0) ? (a < T(0) ? -a : a) : static_cast<T>(INFINITY);
}

template <typename T, int kSize>
SOAE_DEVICE T chunk_max(const Chunk<T, kSize>& c, T largest) {
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    const T m = magnitude(c.a[e]);
    largest = m > largest ? m : largest;
  }
  return largest;
}

// Chunks first .. last - 1 of a vector: the part of one of the blocks that work on it, at most `each` chunks.
struct Span {
  int32_t first, last, each;

  static SOAE_HD int32_t largest(int32_t chunks, int32_t blocks) { return (chunks + blocks - 1) / blocks; }

  static SOAE_DEVICE Span of(int32_t chunks, int32_t blocks, int32_t rank) {
    const int32_t each = largest(chunks, blocks);
    const int32_t first = rank * each < chunks ? rank * each : chunks;
    return {first, first + each < chunks ? first + each : chunks, each};
  }
};

// The part of a vector that a block holds in registers. Chunks beyond the vector are zero.
template <typename T, int kSize, int kThreads, int kChunks>
struct Tile {
  Chunk<T, kSize> c[kChunks];

  static SOAE_DEVICE int32_t index(int32_t first, int i) { return first + i * kThreads + thread_index(); }

  SOAE_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) c[i] = Chunk<T, kSize>{};
  }

  SOAE_DEVICE void load(const Vector<T, kSize>& v, int32_t first, int32_t last = INT32_MAX) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) c[i] = index(first, i) < last ? v.load(index(first, i)) : Chunk<T, kSize>{};
  }

  SOAE_DEVICE void store(const Vector<T, kSize>& v, int32_t first) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) v.store(index(first, i), c[i]);
  }

  SOAE_DEVICE void scale(T factor) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) c[i].a[e] *= factor;
    }
  }

  SOAE_DEVICE void add(T factor, const Tile& other) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) c[i].a[e] += factor * other.c[i].a[e];
    }
  }

  SOAE_DEVICE T dot(const Tile& other) const {
    T sum = T(0);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) sum += c[i].a[e] * other.c[i].a[e];
    }
    return sum;
  }

  SOAE_DEVICE T max_magnitude() const {
    T largest = T(0);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) largest = chunk_max(c[i], largest);
    return largest;
  }
};

// Zeroes chunks first + t, ... < last of a vector.
template <typename T, int kSize>
SOAE_DEVICE void clear_vector(const Vector<T, kSize>& v, int32_t first, int32_t last) {
#pragma unroll 1
  for (int32_t at = first + thread_index(); at < last; at += thread_count()) v.store(at, Chunk<T, kSize>{});
}

}  // namespace soae::cuda
