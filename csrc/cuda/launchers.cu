// The launchers of gmres.h: the choice of kernels, and what needs no more than a choice.
#include "../dispatch.h"
#include "cycle.cuh"
#include "plan.h"
#include "scratch.cuh"
#include "steps.h"
#include "update.cuh"

namespace soae::cuda {

namespace {

bool empty(const Solve& p) { return p.batch == 0 || p.n == 0; }

// begin and close.
template <typename T, typename S>
void turn_typed(const Solve& p, const void* ax, bool opening, bool stop, void* stream) {
  constexpr std::size_t kReduceBytes = CycleReduce::kDoubles * sizeof(double);
  const Plan plan = make_plan(p);
  if (!plan.split) {
    launch(turn_cycle<T, S>, p.batch, kCycleThreads, kReduceBytes + sizeof(int32_t), stream, p, ax, opening, stop);
    return;
  }
  SplitScratch scratch{};
  lay_out(p, plan, p.scratch, scratch);
  const int64_t blocks = p.batch * plan.pieces;
  const int32_t length = kPieceChunks * static_cast<int32_t>(sizeof(T) / sizeof(S));  // in chunks of T
  launch(measure_pieces<T>, blocks, kCycleThreads, kReduceBytes, stream, p, scratch, ax, opening, length);
  launch(decide_systems, p.batch, kWarp, 0, stream, p, scratch, opening, stop);
  launch(apply_pieces<T, S>, blocks, kCycleThreads, 0, stream, p, scratch, ax, opening);
}

void turn(const Solve& p, const void* ax, bool opening, bool stop, void* stream) {
  dispatch(p.dtype, p.basis_dtype, [&](auto type, auto stored) {
    turn_typed<decltype(type), MergedBits<decltype(stored)>>(p, ax, opening, stop, stream);
  });
}

}  // namespace

int64_t scratch_bytes(const Solve& p) {
  if (empty(p)) return 0;
  const Plan plan = make_plan(p);
  SplitScratch scratch{};
  return plan.split ? lay_out(p, plan, nullptr, scratch) : 0;
}

void begin(const Solve& p, const void* ax, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  turn(p, ax, true, false, stream);
}

void step(const Solve& p, int32_t j, const void* w, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  const Plan plan = make_plan(p);
  (plan.split ? launch_split_step : launch_block_step)(p, plan, j, w, stream);
}

void finish(const Solve& p, bool preconditioned, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  dispatch(p.dtype, update_dtype(p), [&](auto type, auto stored) {
    using T = decltype(type);
    using U = MergedBits<decltype(stored)>;
    const int32_t pieces = count_pieces(static_cast<std::size_t>(p.update_ld) * sizeof(U));
    launch(finish_pieces<T, U>, p.batch * pieces, kPieceThreads, finish_shared_bytes(p.restart), stream, p, pieces,
           preconditioned);
  });
}

void correct(const Solve& p, const void* z, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  const int32_t pieces = count_pieces(static_cast<std::size_t>(p.n) * bytes_of(p.dtype));
  launch(p.dtype == kFloat32 ? correct_pieces<float> : correct_pieces<double>, p.batch * pieces, kPieceThreads, 0,
         stream, p, pieces, z);
}

void close(const Solve& p, const void* ax, bool stop, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  turn(p, ax, false, stop, stream);
}

}  // namespace soae::cuda
