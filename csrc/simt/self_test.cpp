// Kernels with one defect each, to show that the executor finds it.
#include <stdexcept>
#include <vector>

#include "../cuda/cluster_reduce.cuh"
#include "../cuda/port.h"
#include "../cuda/rows.cuh"

namespace soae::simt {

namespace {

using namespace soae::cuda;

enum class Defect { kNone, kMissingBarrier, kDivergentBarrier, kDivergentShuffle, kUnaligned, kOutOfBounds };
enum class CopyDefect { kNone, kUnawaited, kEarlyRefill, kLeft };

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

// Every thread's results of reductions in turns over a cluster, `rounds` of each.
void reduce_in_cluster(int rounds, double* out) {
  constexpr int kRows = 4;
  ClusterReduce<2 * kWarp, kRows> reduce(dynamic_shared<double>());
  const int64_t at = block_index() * thread_count() + thread_index();
  const int me = cluster_rank() * thread_count() + thread_index();
  double total = 0.0;
  for (int i = 1; i <= rounds; ++i) {
    double rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = (r + 1) * me * i;
    reduce.sum_rows(rows);
    for (int r = 0; r < kRows; ++r) total += (r + 1) * rows[r];
    total += reduce.sum(me * i) + reduce.max(me * i);
  }
  out[at] = total;
}

int self_test_of_clusters(int blocks) {
  constexpr int kThreads = 2 * kWarp, kClusters = 3, kRounds = 5;
  constexpr std::size_t kShared = ClusterReduce<kThreads, 4>::kDoubles * sizeof(double);
  const int members = blocks * kThreads;
  std::vector<double> out(static_cast<std::size_t>(kClusters * members), -1.0);
  cuda::launch_clusters(reduce_in_cluster, kClusters, blocks, kThreads, kShared, nullptr, kRounds, out.data());
  const double sum = 0.5 * members * (members - 1);
  const double expected = (kRounds * (kRounds + 1) / 2) * ((1 + 4 + 9 + 16) * sum + sum + members - 1);
  int wrong = 0;
  for (const double value : out) wrong += value != expected;
  return wrong;
}

// Two warps read, number by number, what copies bring one after the other to the same place; `by_chunks`: each thread
// its own 16 bytes.
void read_copies(CopyDefect defect, bool by_chunks, const float* from, float* out) {
  constexpr int kCopies = 3;
  float* const place = dynamic_shared<float>();
  uint64_t* const box = reinterpret_cast<uint64_t*>(place + 4 * thread_count());
  const int t = thread_index();
  if (t == 0) open_mailbox(box);
  block_barrier();
  const auto fetch = [&](int i) {
    const float* const source = from + i * 4 * thread_count();
    if (by_chunks) {
      cuda::copy_chunk(place + 4 * t, source + 4 * t);
      cuda::commit_copies();
    } else if (t == 0) {
      const int bytes = 16 * thread_count();
      expect_bytes(box, bytes);
      cuda::copy_bulk(place, source, bytes, box);
    }
  };
  float sum = 0.0f;
  fetch(0);
  for (int i = 0; i < kCopies; ++i) {
    if (defect != CopyDefect::kUnawaited && by_chunks) cuda::wait_for_copies<0>();
    if (defect != CopyDefect::kUnawaited && !by_chunks) wait_for(box, i % 2);
    for (int e = 0; e < 4; ++e) sum += place[4 * t + e];
    if (defect != CopyDefect::kEarlyRefill) block_barrier();
    if (i + 1 < kCopies || defect == CopyDefect::kLeft) fetch(i + 1);
  }
  out[t] = sum;
}

int self_test_of_copies(CopyDefect defect, bool by_chunks) {
  constexpr int kThreads = 2 * kWarp, kNumbers = 4 * kThreads;
  std::vector<float> from(4 * kNumbers + 4), out(kThreads, -1.0f);
  float* const aligned = from.data() + (16 - reinterpret_cast<std::uintptr_t>(from.data()) % 16) % 16 / sizeof(float);
  for (int i = 0; i < 4 * kNumbers; ++i) aligned[i] = static_cast<float>(i);
  cuda::launch(read_copies, 1, kThreads, kNumbers * sizeof(float) + sizeof(uint64_t), nullptr, defect, by_chunks,
               static_cast<const float*>(aligned), out.data());
  int wrong = 0;
  for (int t = 0; t < kThreads; ++t) {
    float sum = 0.0f;
    for (int i = 0; i < 3; ++i) {
      for (int e = 0; e < 4; ++e) sum += static_cast<float>(i * kNumbers + 4 * t + e);
    }
    wrong += out[static_cast<std::size_t>(t)] != sum;
  }
  return wrong;
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
  if (name == "cluster-2") return self_test_of_clusters(2);
  if (name == "cluster-16") return self_test_of_clusters(16);
  if (name == "copies") return self_test_of_copies(CopyDefect::kNone, false);
  if (name == "copies-by-chunks") return self_test_of_copies(CopyDefect::kNone, true);
  if (name == "copies-unawaited") return self_test_of_copies(CopyDefect::kUnawaited, false);
  if (name == "copies-by-chunks-unawaited") return self_test_of_copies(CopyDefect::kUnawaited, true);
  if (name == "copies-refilled-early") return self_test_of_copies(CopyDefect::kEarlyRefill, false);
  if (name == "copies-left") return self_test_of_copies(CopyDefect::kLeft, false);
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
