#include "block_step.cuh"

#include <utility>

#include "../dispatch.h"
#include "steps.h"

namespace soae::cuda {

namespace {

template <typename T, typename S, int kVariant>
std::size_t shared_of(const Solve& p, int32_t blocks, int64_t columns) {
  return BlockStep<T, S, kVariant>::shared_bytes(Span::largest(row_chunks<S>(p), blocks), columns);
}

template <typename T, typename S, int kVariant>
void launch_variant(const Solve& p, int32_t blocks, int32_t j, const void* w, void* stream) {
  launch_clusters(block_step<T, S, kVariant>, p.batch, blocks, BlockStep<T, S, kVariant>::kThreads,
                  shared_of<T, S, kVariant>(p, blocks, j < 0 ? p.restart : j + 1), stream, p, j,
                  static_cast<const T*>(w));
}

struct Functions {
  void (*launch)(const Solve&, int32_t, int32_t, const void*, void*);
  std::size_t (*shared)(const Solve&, int32_t, int64_t);
};

template <typename T, typename S, int... kVariant>
const Functions& functions(int which, std::integer_sequence<int, kVariant...>) {
  static constexpr Functions kTable[] = {{launch_variant<T, S, kVariant>, shared_of<T, S, kVariant>}...};
  return kTable[which];
}

// Calls body with the functions of a variant of the solve's types.
template <typename Body>
void with_functions(const Solve& p, int variant, const Body& body) {
  dispatch(p.dtype, p.basis_dtype, [&](auto type, auto stored) {
    using T = decltype(type);
    using S = decltype(stored);
    constexpr int kCount = variant_table(sizeof(T) / sizeof(S)).count;
    if constexpr (kCount > 0) body(functions<T, S>(variant, std::make_integer_sequence<int, kCount>{}));
  });
}

}  // namespace

// That of the kernel with the most registers, and shared memory for a few hundred columns.
int largest_cluster(int device) {
  using Step = BlockStep<float, float, 6>;
  static_assert(Step::kClusters && !Step::kRing, "the largest of the clusters' kernels that load");
  return largest_cluster_of(reinterpret_cast<const void*>(block_step<float, float, 6>), Step::kThreads,
                            Step::shared_bytes(0, 512), device);
}

std::size_t block_step_shared(const Solve& p, int variant, int32_t blocks) {
  std::size_t bytes = 0;
  with_functions(p, variant, [&](const Functions& of) { bytes = of.shared(p, blocks, p.restart); });
  return bytes;
}

void launch_block_step(const Solve& p, const Plan& plan, int32_t j, const void* w, void* stream) {
  with_functions(p, plan.variant, [&](const Functions& of) { of.launch(p, plan.blocks, j, w, stream); });
}

}  // namespace soae::cuda
