// Executes CUDA kernels on the CPU, thread by thread: every CUDA thread is a fiber that runs until it meets a barrier
// or a shuffle. For tests only. The blocks of a launch run one after another, their threads in the order of the
// schedule, so that a missing barrier gives results that differ between schedules; the blocks of a cluster run side by
// side. A barrier that not all threads reach is a std::runtime_error. Shared memory is an allocation of the exact size, filled with 0xFF bytes (NaN) before
// each block, so that AddressSanitizer sees an access beyond it, and a test the use of what was never written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "../gmres.h"

namespace soae::simt {

constexpr int kWarp = 32;

// "in-order", "reversed" or "shuffled": the order of the threads of a block and of the blocks of a launch.
void set_schedule(const std::string& name, std::uint64_t seed);

// What the GPU is said to have.
void set_multiprocessors(int count);
int multiprocessors();

// The largest cluster that the GPU is said to run; 0 is one without clusters and bulk copies.
void set_largest_cluster(int blocks);
int largest_cluster();

// Shared memory that a block may have, of a GPU with bulk copies (sm_90) or without (sm_86).
int most_shared_bytes();

// Runs one thread of every block, `threads` per block, with `shared` bytes of dynamic shared memory each, in clusters
// of so many blocks.
void launch(const std::function<void()>& thread, std::int64_t blocks, int threads, std::size_t shared, int cluster);

// ---- called by the running thread -----------------------------------------------------------------------------------

struct Position {
  std::int64_t block;
  int thread;
  int threads;
  int rank;     // of the block in its cluster
  int cluster;  // blocks
  unsigned char* shared;
};
const Position& position();

// The line tells barriers apart: threads of a block that wait at different ones are an error.
void barrier(const char* file, int line);

// The same for all threads of a cluster.
void cluster_barrier(const char* file, int line);

// `at`, an address in this block's shared memory, in that of the block `rank` of the cluster.
void* remote(void* at, int rank);

// A mailbox in shared memory, as an mbarrier is: a phase ends when the one arrival was made and all bytes that it
// announced have come. wait_for returns when the phase of this parity has ended.
void open_mailbox(std::uint64_t* box);
void expect_bytes(std::uint64_t* box, int bytes);
void deliver(std::uint64_t* box, int bytes);
void wait_for(const std::uint64_t* box, int parity);

// Copies that go on beside the arithmetic: `bytes` bytes to the account of a mailbox, or 16 bytes into the last group of
// the running thread. They arrive when a thread waits for them and no other can run; the destination holds 0xFF bytes until
// then: a read that comes too early sees NaN, and so does whoever still needed what was there before.
void copy_bulk(void* to, const void* from, int bytes, std::uint64_t* box);
void copy_chunk(void* to, const void* from);
void commit_copies();
void wait_for_copies(int pending);

// All lanes of the warp leave 8 bytes; returns what `lane` left.
std::uint64_t exchange(std::uint64_t value, int lane);

// Runs a small kernel with a defect and returns how many of its results are wrong: "correct", "missing-barrier",
// "divergent-barrier", "divergent-shuffle", "unaligned", "out-of-bounds"; or reductions without one over clusters:
// "cluster-2", "cluster-16"; or copies to shared memory: "copies", "copies-by-chunks", and with a defect
// "copies-unawaited", "copies-by-chunks-unawaited", "copies-refilled-early", "copies-left".
int self_test(const std::string& name);

// Where the kernels look for row `row` of a system's basis, in elements.
std::int64_t basis_offset(const Solve& solve, std::int64_t system, std::int64_t row);

}  // namespace soae::simt
