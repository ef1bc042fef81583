// Kernels with one defect each, to show that the executor finds it.
#include <stdexcept>
#include <vector>

#include "../cuda/port.h"
#include "../cuda/rows.cuh"

namespace soae::simt {

namespace {

using namespace soae::cuda;

enum class Defect { kNone, kMissingBarrier, kDivergentBarrier, kDivergentShuffle, kUnaligned, kOutOfBounds };

// Every thread leaves its index in shared memory and reads its neighbour's.
void rotate(Defect defect, int32_t* out) {
  int32_t* shared = dynamic_shared<int32_t>();
  const int t = thread_index();
  shared[defect == Defect::kOutOfBounds ? t + 1 : t] = t;
  if (defect == Defect::kDivergentBarrier && t % 2 == 0) {
    block_barrier();
  } else if (defect == Defect::kDivergentShuffle && t == 0) {
    block_barrier();
  } else if (defect == Defect::kDivergentShuffle) {
    shuffle(t, 0);
  } else if (defect != Defect::kMissingBarrier) {
    block_barrier();
  }
  out[t] = shared[(t + 1) % thread_count()];
  if (defect == Defect::kUnaligned) load_chunk(reinterpret_cast<const float*>(shared + 1));
}

Defect defect_of(const std::string& name) {
  if (name == "correct") return Defect::kNone;
  if (name == "missing-barrier") return Defect::kMissingBarrier;
  if (name == "divergent-barrier") return Defect::kDivergentBarrier;
  if (name == "divergent-shuffle") return Defect::kDivergentShuffle;
  if (name == "unaligned") return Defect::kUnaligned;
  if (name == "out-of-bounds") return Defect::kOutOfBounds;
  throw std::invalid_argument("self_test: no defect is called " + name);
}

}  // namespace

int self_test(const std::string& name) {
  constexpr int kThreads = 2 * kWarp;
  std::vector<int32_t> out(kThreads);
  cuda::launch(rotate, 1, kThreads, kThreads * sizeof(int32_t), nullptr, defect_of(name), out.data());
  int wrong = 0;
  for (int t = 0; t < kThreads; ++t) wrong += out[static_cast<std::size_t>(t)] != (t + 1) % kThreads;
  return wrong;
}

std::int64_t basis_offset(const Solve& solve, std::int64_t system, std::int64_t row) {
  return cuda::basis_offset(solve, system, row);
}

}  // namespace soae::simt
