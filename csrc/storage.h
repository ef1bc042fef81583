// The 16-bit types that a Krylov basis may be stored in, and the conversions that every compiler has. Exact on the way
// to float; on the way back rounded to the nearest, ties to even. What is stored is finite and below 2^16.
#pragma once

#include <cstdint>
#include <cstring>

// Always inline on the CPU: these are part of files that are compiled for different instruction sets, and the linker
// would be free to keep any of the copies.
#if defined(__CUDACC__)
#define SOAE_CONVERSION __host__ __device__ inline
#else
#define SOAE_CONVERSION __attribute__((always_inline)) inline
#endif

namespace soae {

struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

template <typename To, typename From>
SOAE_CONVERSION To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits under another name");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

SOAE_CONVERSION float to_float(Bfloat16 a) { return bit_cast<float>(static_cast<uint32_t>(a.bits) << 16); }

SOAE_CONVERSION Bfloat16 to_bfloat16(float a) {
  const uint32_t bits = bit_cast<uint32_t>(a);
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// The exponent's field is 5 bits wide in float16 and 8 in float: a power of two makes up for the difference in bias,
// for subnormal numbers too.
SOAE_CONVERSION float to_float(Float16 a) {
  const uint32_t h = a.bits;
  return bit_cast<float>((h & 0x8000u) << 16 | (h & 0x7fffu) << 13) * 0x1p112f;
}

SOAE_CONVERSION Float16 to_float16(float a) {
  const uint32_t bits = bit_cast<uint32_t>(a), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 1/2 leaves a subnormal's bits, rounded, at the end of the sum's.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | (magnitude < 0x38800000u ? subnormal : normal))};
}

}  // namespace soae
