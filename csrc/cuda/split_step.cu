#include "split_step.cuh"

#include "../dispatch.h"
#include "steps.h"

namespace soae::cuda {

namespace {

template <typename T, typename Kind>
void launch_pieces(const Solve& p, const Plan& plan, int32_t j, const void* operator_output, void* stream) {
  using S = Merged<T, Kind>;
  SplitScratch scratch{};
  lay_out(p, plan, p.scratch, scratch);
  const int64_t blocks = p.batch * plan.pieces;
  const std::size_t shared = SplitShared::bytes(p.restart);
  const T* w = static_cast<const T*>(operator_output);
  launch(split_dots<T, S>, blocks, kPieceThreads, shared, stream, p, scratch, j, w);
  // Rounded rows have not quite unit length: after one sweep against them a vector of their span is not zero.
  if (p.orthogonalization == kCgs2 || p.basis_dtype != p.dtype) {
    launch(split_project<T, S>, blocks, kPieceThreads, shared, stream, p, scratch, w);
    w = nullptr;
  }
  launch(split_update<T, S>, blocks, kPieceThreads, shared, stream, p, scratch, w);
  launch(split_normalize<T, MergedBits<S>>, blocks, kPieceThreads, 0, stream, p, scratch);
}

}  // namespace

void launch_split_step(const Solve& p, const Plan& plan, int32_t j, const void* w, void* stream) {
  dispatch(p.dtype, p.basis_dtype, [&](auto type, auto stored) {
    launch_pieces<decltype(type), decltype(stored)>(p, plan, j, w, stream);
  });
}

}  // namespace soae::cuda
