// From what the basis is stored in to the working type and back: one number, or as many as a vector has lanes.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <type_traits>

#include "cpu/simd.h"

namespace soae::cpu {

namespace {

template <typename T, typename S>
__attribute__((always_inline)) inline T to_working(S stored) {
  if constexpr (std::is_floating_point_v<S>) {
    return static_cast<T>(stored);
  } else {
    return static_cast<T>(to_float(stored));
  }
}

template <typename S, typename T>
__attribute__((always_inline)) inline S to_stored(T value) {
  if constexpr (std::is_floating_point_v<S>) {
    return static_cast<S>(value);
  } else if constexpr (std::is_same_v<S, Float16>) {
    return to_float16(static_cast<float>(value));
  } else {
    return to_bfloat16(static_cast<float>(value));
  }
}

template <typename Number, int64_t lanes>
struct Some {
  typedef Number Type __attribute__((vector_size(sizeof(Number) * lanes)));
};
template <typename Number, int64_t lanes>
using Lanes = typename Some<Number, lanes>::Type;

// 16 bits in each lane, as the lower half of 32.
template <int64_t lanes>
inline Lanes<uint32_t, lanes> load_bits(const void* at) {
  Lanes<uint16_t, lanes> bits;
  std::memcpy(&bits, at, sizeof bits);
  return __builtin_convertvector(bits, Lanes<uint32_t, lanes>);
}

template <int64_t lanes>
inline Lanes<float, lanes> load_floats(const Bfloat16* at) {
  const Lanes<uint32_t, lanes> bits = load_bits<lanes>(at) << 16;
  Lanes<float, lanes> out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// As to_float in storage.h, or by the instruction for it.
template <int64_t lanes>
inline Lanes<float, lanes> load_floats(const Float16* at) {
  Lanes<float, lanes> out;
#if defined(__AVX512F__)
  if constexpr (lanes == 16) {
    // All lanes of the masked form: GCC takes the plain one's undefined operand for a mistake of ours.
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    const __m512 wide = _mm512_maskz_cvtph_ps(static_cast<__mmask16>(-1), halves);
    std::memcpy(&out, &wide, sizeof out);
    return out;
  }
#endif
#if defined(__F16C__)
  if constexpr (lanes == 8) {
    const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    std::memcpy(&out, &wide, sizeof out);
    return out;
  }
  if constexpr (lanes == 4) {
    const __m128 wide = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    std::memcpy(&out, &wide, sizeof out);
    return out;
  }
#endif
  const Lanes<uint32_t, lanes> h = load_bits<lanes>(at);
  const Lanes<uint32_t, lanes> bits = (h & 0x8000u) << 16 | (h & 0x7fffu) << 13;
  std::memcpy(&out, &bits, sizeof out);
  return out * 0x1p112f;
}

// As many stored numbers as a vector of T has lanes.
template <typename T, typename S>
inline Vector<T> widen(const S* at) {
  if constexpr (std::is_same_v<T, S>) {
    return load(at);
  } else if constexpr (std::is_same_v<S, float>) {
    Lanes<float, kLanes<T>> values;
    std::memcpy(&values, at, sizeof values);
    return __builtin_convertvector(values, Vector<T>);
  } else if constexpr (std::is_same_v<T, float>) {
    return load_floats<kLanes<T>>(at);
  } else {
    return __builtin_convertvector(load_floats<kLanes<T>>(at), Vector<T>);
  }
}

}  // namespace

}  // namespace soae::cpu
