// The only door between the kernels and the compiler: nvcc, or the SIMT build that executes the same source on a CPU.
// Both sides define the same names in soae::cuda:
//   device  kWarp, thread_index, block_index, thread_count, block_barrier, shuffle, shuffle_xor, atomic_add, fence,
//           dynamic_shared<T>, the 16-byte accesses load_chunk, load_stream, store_chunk, load_coherent, and the
//           conversions of a pair of float16 numbers, unpack_float16, pack_float16;
//           of clusters: has_clusters, cluster_rank, cluster_size, cluster_barrier, open_mailbox, expect_bytes, send,
//           wait_for;
//           of copies to shared memory: has_async_copies, copy_chunk, commit_copies, wait_for_copies<k>, and
//           has_bulk_copies, copy_bulk, which use mailboxes
//   host    launch, launch_clusters, DeviceGuard, multiprocessors, most_shared_bytes, largest_cluster_of, architecture,
//           runtime_version, driver_version
#pragma once

#include <cstddef>
#include <cstdint>

namespace soae::cuda {

// Neighbouring numbers of a vector, all with one thread: 16 bytes, which move in one access, or a multiple of that.
template <typename T, int kCount = 16 / sizeof(T)>
struct Chunk {
  static constexpr int kSize = kCount;
  T a[kCount];
};

}  // namespace soae::cuda

#if defined(SOAE_SIMT)
#include "../simt/port_simt.h"
#else
#include "port_cuda.h"
#endif
