#include "block_step.cuh"

#include <utility>

#include "steps.h"

namespace soae::cuda {

namespace {

template <typename T, int kVariant>
void launch_variant(const Solve& p, int32_t blocks, int32_t j, const void* w, void* stream) {
  using Step = BlockStep<T, kVariant>;
  launch_clusters(block_step<T, kVariant>, p.batch, blocks, Step::kThreads,
                  Step::shared_bytes(j < 0 ? p.restart : j + 1), stream, p, j, static_cast<const T*>(w));
}

using Launch = void (*)(const Solve&, int32_t, int32_t, const void*, void*);

template <typename T, int... kVariant>
Launch variant(int which, std::integer_sequence<int, kVariant...>) {
  static constexpr Launch kTable[] = {launch_variant<T, kVariant>...};
  return kTable[which];
}

}  // namespace

void launch_block_step(const Solve& p, const Plan& plan, int32_t j, const void* w, void* stream) {
  constexpr std::make_integer_sequence<int, kVariantCount> all{};
  const Launch f = p.dtype == kFloat32 ? variant<float>(plan.variant, all) : variant<double>(plan.variant, all);
  f(p, plan.blocks, j, w, stream);
}

}  // namespace soae::cuda
