// The only door between the kernels and the compiler: nvcc, or the SIMT build that executes the same source on a CPU.
// Both sides define the same names in soae::cuda:
//   device  kWarp, thread_index, block_index, thread_count, block_barrier, shuffle, shuffle_xor, atomic_add, fence,
//           dynamic_shared<T>, and the 16-byte accesses load_chunk, load_stream, store_chunk, load_coherent;
//           of clusters has_clusters, cluster_rank, cluster_size, cluster_barrier, open_mailbox, expect_bytes, send, wait_for
//   host    launch, launch_clusters, DeviceGuard, multiprocessors, largest_cluster, architecture, runtime_version, driver_version
#pragma once

#include <cstddef>
#include <cstdint>

namespace soae::cuda {

// 16 bytes of a vector: what one thread moves in one access.
template <typename T>
struct Chunk {
  static constexpr int kSize = 16 / sizeof(T);
  T a[kSize];
};

}  // namespace soae::cuda

#if defined(SOAE_SIMT)
#include "../simt/port_simt.h"
#else
#include "port_cuda.h"
#endif
