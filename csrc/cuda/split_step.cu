#include "split_step.cuh"

#include "steps.h"

namespace soae::cuda {

namespace {

template <typename T>
void launch_pieces(const Solve& p, const Plan& plan, int32_t j, const void* operator_output, void* stream) {
  SplitScratch scratch{};
  lay_out(p, plan, p.scratch, scratch);
  const int64_t blocks = p.batch * plan.pieces;
  const std::size_t shared = SplitShared::bytes(p.restart);
  const T* w = static_cast<const T*>(operator_output);
  launch(split_dots<T>, blocks, kPieceThreads, shared, stream, p, scratch, j, w);
  if (p.orthogonalization == kCgs2) {
    launch(split_project<T>, blocks, kPieceThreads, shared, stream, p, scratch, w);
    w = nullptr;
  }
  launch(split_update<T>, blocks, kPieceThreads, shared, stream, p, scratch, w);
  launch(split_normalize<T>, blocks, kPieceThreads, 0, stream, p, scratch);
}

}  // namespace

void launch_split_step(const Solve& p, const Plan& plan, int32_t j, const void* w, void* stream) {
  (p.dtype == kFloat32 ? launch_pieces<float> : launch_pieces<double>)(p, plan, j, w, stream);
}

}  // namespace soae::cuda
