#include "split_step.cuh"

#include "steps.h"

namespace soae::cuda {

namespace {

template <typename T, int kChunks>
void launch_pieces(const Solve& p, const Plan& plan, int32_t j, const void* operator_output, void* stream) {
  SplitScratch scratch{};
  lay_out(p, plan, p.scratch, scratch);
  const int64_t blocks = p.batch * plan.pieces;
  const std::size_t shared = SplitShared::bytes(p.restart);
  const T* w = static_cast<const T*>(operator_output);
  if (p.orthogonalization == kCgs2) {
    launch(split_dots<T, kChunks, false>, blocks, kSplitThreads, shared, stream, p, scratch, j, w);
    launch(split_project<T, kChunks>, blocks, kSplitThreads, shared, stream, p, scratch, j, w);
    w = nullptr;
  } else {
    launch(split_dots<T, kChunks, true>, blocks, kSplitThreads, shared, stream, p, scratch, j, w);
  }
  launch(split_update<T, kChunks>, blocks, kSplitThreads, shared, stream, p, scratch, j, w);
  launch(split_normalize<T>, blocks, kSplitThreads, 0, stream, p, scratch, j);
}

}  // namespace

void launch_split_step(const Solve& p, const Plan& plan, int32_t j, const void* w, void* stream) {
  const bool small = plan.chunks == kSmallTile;
  if (p.dtype == kFloat32) {
    (small ? launch_pieces<float, kSmallTile> : launch_pieces<float, kLargeTile>)(p, plan, j, w, stream);
  } else {
    (small ? launch_pieces<double, kSmallTile> : launch_pieces<double, kLargeTile>)(p, plan, j, w, stream);
  }
}

}  // namespace soae::cuda
