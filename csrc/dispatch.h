// From dtype codes to types.
#pragma once

#include "gmres.h"
#include "storage.h"

namespace soae {

// Calls body(T(), S()) for the working type and what rows are stored in.
template <typename Body>
void dispatch(int32_t dtype, int32_t rows, const Body& body) {
  const auto with = [&](auto type) {
    if (rows == kFloat16) return body(type, Float16());
    if (rows == kBfloat16) return body(type, Bfloat16());
    if (rows == kFloat32) return body(type, float());
    if constexpr (sizeof(type) == sizeof(double)) body(type, double());
  };
  if (dtype == kFloat32) {
    with(float());
  } else {
    with(double());
  }
}

}  // namespace soae
