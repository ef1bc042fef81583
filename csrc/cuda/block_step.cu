#include "block_step.cuh"

#include <utility>

#include "../dispatch.h"
#include "steps.h"

namespace soae::cuda {

namespace {

template <typename T, typename S, int kVariant>
void launch_variant(const Solve& p, int32_t blocks, int32_t j, const void* w, void* stream) {
  using Step = BlockStep<T, S, kVariant>;
  launch_clusters(block_step<T, S, kVariant>, p.batch, blocks, Step::kThreads,
                  Step::shared_bytes(j < 0 ? p.restart : j + 1), stream, p, j, static_cast<const T*>(w));
}

using Launch = void (*)(const Solve&, int32_t, int32_t, const void*, void*);

template <typename T, typename S, int... kVariant>
Launch variant(int which, std::integer_sequence<int, kVariant...>) {
  static constexpr Launch kTable[] = {launch_variant<T, S, kVariant>...};
  return kTable[which];
}

}  // namespace

// That of the kernel with the most registers, and shared memory for a few hundred columns.
int largest_cluster(int device) {
  using Step = BlockStep<float, float, 6>;
  static_assert(Step::kClusters, "the last variant is a cluster's");
  return largest_cluster_of(reinterpret_cast<const void*>(block_step<float, float, 6>), Step::kThreads,
                            Step::shared_bytes(512), device);
}

void launch_block_step(const Solve& p, const Plan& plan, int32_t j, const void* w, void* stream) {
  dispatch(p.dtype, p.basis_dtype, [&](auto type, auto stored) {
    using T = decltype(type);
    using S = decltype(stored);
    constexpr int kCount = variant_table(sizeof(T) / sizeof(S)).count;
    if constexpr (kCount > 0) {
      const Launch f = variant<T, S>(plan.variant, std::make_integer_sequence<int, kCount>{});
      f(p, plan.blocks, j, w, stream);
    }
  });
}

}  // namespace soae::cuda
