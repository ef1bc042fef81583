// The launchers of gmres.h: the choice of kernels, and what needs no more than a choice.
#include "cycle.cuh"
#include "plan.h"
#include "scratch.cuh"
#include "steps.h"
#include "update.cuh"

namespace soae::cuda {

namespace {

bool empty(const Solve& p) { return p.batch == 0 || p.n == 0; }

// begin and close.
template <typename T>
void turn(const Solve& p, const void* ax, bool opening, bool stop, void* stream) {
  constexpr std::size_t kReduceBytes = CycleReduce::kDoubles * sizeof(double);
  const Plan plan = make_plan(p);
  if (!plan.split()) {
    launch(turn_cycle<T>, p.batch, kCycleThreads, kReduceBytes + sizeof(int32_t), stream, p, ax, opening, stop);
    return;
  }
  SplitScratch scratch{};
  lay_out(p, plan, p.scratch, scratch);
  const int64_t blocks = p.batch * plan.pieces;
  launch(measure_pieces<T>, blocks, kCycleThreads, kReduceBytes, stream, p, scratch, ax, opening);
  launch(decide_systems, p.batch, kWarp, 0, stream, p, scratch, opening, stop);
  launch(apply_pieces<T>, blocks, kCycleThreads, 0, stream, p, scratch, ax, opening);
}

template <typename T>
void finish_typed(const Solve& p, bool preconditioned, void* stream) {
  const Plan plan = make_plan(p);
  launch(finish_pieces<T>, p.batch * plan.pieces, kPieceThreads, finish_shared_bytes(p.restart), stream, p,
         plan.pieces, preconditioned);
}

template <typename T>
void correct_typed(const Solve& p, const void* z, void* stream) {
  const Plan plan = make_plan(p);
  launch(correct_pieces<T>, p.batch * plan.pieces, kPieceThreads, 0, stream, p, plan.pieces, z);
}

}  // namespace

int64_t scratch_bytes(const Solve& p) {
  if (empty(p)) return 0;
  const Plan plan = make_plan(p);
  SplitScratch scratch{};
  return plan.split() ? lay_out(p, plan, nullptr, scratch) : 0;
}

void begin(const Solve& p, const void* ax, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  (p.dtype == kFloat32 ? turn<float> : turn<double>)(p, ax, true, false, stream);
}

void step(const Solve& p, int32_t j, const void* w, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  const Plan plan = make_plan(p);
  (plan.split() ? launch_split_step : launch_block_step)(p, plan, j, w, stream);
}

void finish(const Solve& p, bool preconditioned, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  (p.dtype == kFloat32 ? finish_typed<float> : finish_typed<double>)(p, preconditioned, stream);
}

void correct(const Solve& p, const void* z, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  (p.dtype == kFloat32 ? correct_typed<float> : correct_typed<double>)(p, z, stream);
}

void close(const Solve& p, const void* ax, bool stop, void* stream) {
  if (empty(p)) return;
  const DeviceGuard guard(p.device);
  (p.dtype == kFloat32 ? turn<float> : turn<double>)(p, ax, false, stop, stream);
}

}  // namespace soae::cuda
