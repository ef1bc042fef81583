// Rows of the basis, in memory and in registers. They move 16 bytes at a time, as they are stored; a working number is
// made of each only where it is used, so that a panel in registers takes no more room than in memory.
#pragma once

#include <type_traits>

#include "../storage.h"
#include "rows.cuh"

namespace soae::cuda {

// Float16 or Bfloat16, as the solve says: one kernel for both, where a kernel for each would gain nothing.
struct Either16 {
  uint16_t bits;
};
template <typename S>
using MergedBits = std::conditional_t<sizeof(S) == 2, Either16, S>;
// Where a working number is float64, four times as wide, the choice of a kind is lost beside the arithmetic.
template <typename T, typename S>
using Merged = std::conditional_t<sizeof(T) == 4 * sizeof(S), Either16, S>;

// How a basis in S stores numbers of type T, and its powers of two: rows hold v times scale, v is what they hold times
// unit. Both are 1 where the basis is not in float16.
template <typename T, typename S>
struct Stored {
  static constexpr int kSize = 16 / sizeof(S);
  static constexpr bool kMayBeFloat16 = std::is_same_v<S, Float16> || std::is_same_v<S, Either16>;
  using Word = std::conditional_t<sizeof(S) == 2, uint32_t, S>;  // 16-bit numbers move in pairs
  using Packed = Chunk<Word>;
  using Values = Chunk<T, kSize>;

  bool float16;
  T scale, unit;

  // dtype: of these rows.
  SOAE_DEVICE Stored(const Solve& p, int32_t dtype)
      : float16(std::is_same_v<S, Either16> ? dtype == kFloat16 : std::is_same_v<S, Float16>),
        scale(kMayBeFloat16 && float16 ? power_of_two<T>(p.basis_exponent) : T(1)),
        unit(kMayBeFloat16 && float16 ? power_of_two<T>(-p.basis_exponent) : T(1)) {}
  SOAE_DEVICE explicit Stored(const Solve& p) : Stored(p, p.basis_dtype) {}

  static SOAE_DEVICE Packed load(const S* row, int32_t chunk) { return load_chunk(word(row, chunk)); }
  static SOAE_DEVICE Packed stream(const S* row, int32_t chunk, bool valid) {
    return load_stream(word(row, chunk), valid);
  }

  SOAE_DEVICE Values unpack(const Packed& packed) const {
    Values values;
    if constexpr (sizeof(S) == 2) {
#pragma unroll
      for (int i = 0; i < Packed::kSize; ++i) {
        float low, high;
        if (kMayBeFloat16 && float16) {
          unpack_float16(packed.a[i], low, high);
        } else {
          low = bit_cast<float>(packed.a[i] << 16);
          high = bit_cast<float>(packed.a[i] & 0xffff0000u);
        }
        values.a[2 * i] = static_cast<T>(low);
        values.a[2 * i + 1] = static_cast<T>(high);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kSize; ++e) values.a[e] = static_cast<T>(packed.a[e]);
    }
    return values;
  }

  SOAE_DEVICE Packed pack(const Values& values) const {
    Packed packed;
    if constexpr (sizeof(S) == 2) {
#pragma unroll
      for (int i = 0; i < Packed::kSize; ++i) {
        const float low = static_cast<float>(values.a[2 * i]), high = static_cast<float>(values.a[2 * i + 1]);
        if (kMayBeFloat16 && float16) {
          packed.a[i] = pack_float16(low, high);
        } else {
          packed.a[i] = to_bfloat16(low).bits | static_cast<uint32_t>(to_bfloat16(high).bits) << 16;
        }
      }
    } else {
#pragma unroll
      for (int e = 0; e < kSize; ++e) packed.a[e] = static_cast<S>(values.a[e]);
    }
    return packed;
  }

  // Stores values, times scale already. Returns the basis vector that this makes: what was stored, times unit.
  SOAE_DEVICE Values store(S* row, int32_t chunk, const Values& values) const {
    const Packed packed = pack(values);
    store_chunk(word(row, chunk), packed);
    return scaled(unpack(packed), unit);
  }

  static SOAE_DEVICE Values scaled(Values values, T factor) {
#pragma unroll
    for (int e = 0; e < kSize; ++e) values.a[e] *= factor;
    return values;
  }

 private:
  static SOAE_DEVICE const Word* word(const S* row, int32_t chunk) {
    return reinterpret_cast<const Word*>(row + static_cast<int64_t>(chunk) * kSize);
  }
  static SOAE_DEVICE Word* word(S* row, int32_t chunk) {
    return reinterpret_cast<Word*>(row + static_cast<int64_t>(chunk) * kSize);
  }
};

template <typename S>
SOAE_DEVICE S* basis_row(const Solve& p, int64_t system, int64_t row) {
  if (p.chunk_shift == 0) return static_cast<S*>(p.basis) + basis_offset(p, system, row);
  const int64_t chunk = row >> p.chunk_shift, first = chunk << p.chunk_shift;
  const int64_t whole = int64_t(1) << p.chunk_shift, left = p.restart + 1 - first;
  return static_cast<S*>(p.chunks[chunk]) + (system * (left < whole ? left : whole) + row - first) * p.ld;
}

// Chunks of a row of the basis.
template <typename S>
SOAE_HD int32_t row_chunks(const Solve& p) {
  return static_cast<int32_t>(p.ld * static_cast<int64_t>(sizeof(S)) / 16);
}

// The part of a vector that goes with a block's part of a stored row.
template <typename T, typename S, int kThreads, int kChunks>
using TileFor = Tile<T, Stored<T, S>::kSize, kThreads, kChunks>;
template <typename T, typename S>
using VectorFor = Vector<T, Stored<T, S>::kSize>;

// The part of a stored row that a block holds in registers. Chunks beyond the row are zero.
template <typename T, typename S, int kThreads, int kChunks>
struct StoredTile {
  using Row = Stored<T, S>;
  using Working = TileFor<T, S, kThreads, kChunks>;
  typename Row::Packed c[kChunks];

  SOAE_DEVICE void load(const S* row, int32_t first, int32_t chunks) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int32_t at = Working::index(first, i);
      c[i] = Row::stream(row, at, at < chunks);
    }
  }

  // From a row of so many chunks in shared memory.
  SOAE_DEVICE void load_shared(const S* row, int32_t chunks) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int32_t at = Working::index(0, i);
      c[i] = at < chunks ? Row::load(row, at) : typename Row::Packed{};
    }
  }

  SOAE_DEVICE T dot(const Working& w, const Row& rows) const {
    T sum = T(0);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const typename Row::Values v = rows.unpack(c[i]);
#pragma unroll
      for (int e = 0; e < Row::kSize; ++e) sum += v.a[e] * w.c[i].a[e];
    }
    return sum;
  }

  // w += factor times what the row holds
  SOAE_DEVICE void add_to(Working& w, T factor, const Row& rows) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const typename Row::Values v = rows.unpack(c[i]);
#pragma unroll
      for (int e = 0; e < Row::kSize; ++e) w.c[i].a[e] += factor * v.a[e];
    }
  }

  SOAE_DEVICE void unpack_to(Working& w, const Row& rows) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) w.c[i] = rows.unpack(c[i]);
  }
};

}  // namespace soae::cuda
