// port.h for nvcc. Include port.h, not this.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define SOAE_KERNEL(threads, min_blocks) __global__ void __launch_bounds__(threads, min_blocks)
#define SOAE_DEVICE __device__ __forceinline__
#define SOAE_PARAM const __grid_constant__

// Throws std::runtime_error with the call, the place and, where there is one, the remedy; clears the sticky error.
#define SOAE_CUDA_CHECK(call)                                                            \
  do {                                                                                   \
    const cudaError_t soae_error = (call);                                               \
    if (soae_error != cudaSuccess) ::soae::cuda::fail(soae_error, #call, __FILE__, __LINE__); \
  } while (false)

namespace soae::cuda {

// ---- device ---------------------------------------------------------------------------------------------------------

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

SOAE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SOAE_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
SOAE_DEVICE int64_t block_index() { return static_cast<int64_t>(blockIdx.x); }

SOAE_DEVICE void block_barrier() { __syncthreads(); }
SOAE_DEVICE void fence() { __threadfence(); }

// ---- blocks of a cluster (sm_90 and later; elsewhere never called, and compiled to nothing)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SOAE_CLUSTERS 1
#endif

SOAE_DEVICE constexpr bool has_clusters() {
#if defined(SOAE_CLUSTERS)
  return true;
#else
  return false;
#endif
}
SOAE_DEVICE int cluster_rank() {
  uint32_t rank = 0;
#if defined(SOAE_CLUSTERS)
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}
SOAE_DEVICE int cluster_size() {
  uint32_t size = 1;
#if defined(SOAE_CLUSTERS)
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return static_cast<int>(size);
}
// For all threads of the cluster; what they wrote before, all of them see afterwards.
SOAE_DEVICE void cluster_barrier() {
#if defined(SOAE_CLUSTERS)
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

SOAE_DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// A mailbox is an mbarrier in shared memory. A phase ends when the one arrival was made and all bytes that it announced
// have come. By one thread, and before a cluster_barrier:
SOAE_DEVICE void open_mailbox(uint64_t* box) {
#if defined(SOAE_CLUSTERS)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(shared_address(box))
               : "memory");
#endif
}
// The arrival. By one thread.
SOAE_DEVICE void expect_bytes(uint64_t* box, int bytes) {
#if defined(SOAE_CLUSTERS)
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(box)), "r"(bytes)
               : "memory");
#endif
}
// Returns when the phase of this parity has ended; what was sent is there.
SOAE_DEVICE void wait_for(const uint64_t* box, int parity) {
#if defined(SOAE_CLUSTERS)
  uint32_t ended = 0;
  while (ended == 0) {
    asm volatile(
        "{\n"
        "  .reg .pred p;\n"
        "  mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "  selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(ended)
        : "r"(shared_address(box)), "r"(parity)
        : "memory");
  }
#endif
}
// Puts `value` into `slot` of the block `rank`, and 8 bytes to the account of its mailbox `box`; both addresses are those
// in this block.
SOAE_DEVICE void send(double value, double* slot, uint64_t* box, int rank) {
#if defined(SOAE_CLUSTERS)
  asm volatile(
      "{\n"
      "  .reg .b32 slot, box;\n"
      "  mapa.shared::cluster.u32 slot, %0, %2;\n"
      "  mapa.shared::cluster.u32 box, %1, %2;\n"
      "  st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [slot], %3, [box];\n"
      "}" ::"r"(shared_address(slot)),
      "r"(shared_address(box)), "r"(rank), "l"(__double_as_longlong(value))
      : "memory");
#endif
}

// ---- copies from global to shared memory that go on beside the arithmetic (sm_80 and later; in bulk, sm_90 and later)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define SOAE_ASYNC_COPIES 1
#endif

SOAE_DEVICE constexpr bool has_async_copies() {
#if defined(SOAE_ASYNC_COPIES)
  return true;
#else
  return false;
#endif
}
SOAE_DEVICE constexpr bool has_bulk_copies() { return has_clusters(); }

// `bytes` bytes, a multiple of 16 as both addresses are; they go to the account of the mailbox. By one thread.
SOAE_DEVICE void copy_bulk(void* to, const void* from, int bytes, uint64_t* box) {
#if defined(SOAE_CLUSTERS)
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(box))
               : "memory");
#endif
}
// 16 bytes, for the running thread's own use.
SOAE_DEVICE void copy_chunk(void* to, const void* from) {
#if defined(SOAE_ASYNC_COPIES)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from))
               : "memory");
#endif
}
// The chunks that the thread asked for since the last call are a group.
SOAE_DEVICE void commit_copies() {
#if defined(SOAE_ASYNC_COPIES)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Returns when all groups but the kPending last ones are there.
template <int kPending>
SOAE_DEVICE void wait_for_copies() {
#if defined(SOAE_ASYNC_COPIES)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Called by whole warps only.
template <typename T>
SOAE_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <typename T>
SOAE_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

SOAE_DEVICE int32_t atomic_add(int32_t* at, int32_t value) { return atomicAdd(at, value); }

template <typename T>
SOAE_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char soae_dynamic_shared[];
  return reinterpret_cast<T*>(soae_dynamic_shared);
}

SOAE_DEVICE Chunk<float> load_chunk(const float* at) {
  const float4 v = *reinterpret_cast<const float4*>(at);
  return {{v.x, v.y, v.z, v.w}};
}
SOAE_DEVICE Chunk<double> load_chunk(const double* at) {
  const double2 v = *reinterpret_cast<const double2*>(at);
  return {{v.x, v.y}};
}

SOAE_DEVICE Chunk<uint32_t> load_chunk(const uint32_t* at) {
  const uint4 v = *reinterpret_cast<const uint4*>(at);
  return {{v.x, v.y, v.z, v.w}};
}

SOAE_DEVICE void store_chunk(float* at, const Chunk<float>& c) {
  *reinterpret_cast<float4*>(at) = make_float4(c.a[0], c.a[1], c.a[2], c.a[3]);
}
SOAE_DEVICE void store_chunk(double* at, const Chunk<double>& c) {
  *reinterpret_cast<double2*>(at) = make_double2(c.a[0], c.a[1]);
}
SOAE_DEVICE void store_chunk(uint32_t* at, const Chunk<uint32_t>& c) {
  *reinterpret_cast<uint4*>(at) = make_uint4(c.a[0], c.a[1], c.a[2], c.a[3]);
}

// Streamed read of memory that the running kernel does not write; zero where not valid. Predicated rather than
// branched, so that the compiler issues a whole panel of loads back to back; not volatile, for the same reason.
SOAE_DEVICE Chunk<float> load_stream(const float* at, bool valid) {
  Chunk<float> c;
  asm("{\n"
      "  .reg .pred p;\n"
      "  setp.ne.s32 p, %5, 0;\n"
      "  mov.f32 %0, 0f00000000;\n"
      "  mov.f32 %1, 0f00000000;\n"
      "  mov.f32 %2, 0f00000000;\n"
      "  mov.f32 %3, 0f00000000;\n"
      "  @p ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=f"(c.a[0]), "=f"(c.a[1]), "=f"(c.a[2]), "=f"(c.a[3])
      : "l"(at), "r"(static_cast<int>(valid)));
  return c;
}
SOAE_DEVICE Chunk<double> load_stream(const double* at, bool valid) {
  Chunk<double> c;
  asm("{\n"
      "  .reg .pred p;\n"
      "  setp.ne.s32 p, %3, 0;\n"
      "  mov.f64 %0, 0d0000000000000000;\n"
      "  mov.f64 %1, 0d0000000000000000;\n"
      "  @p ld.global.nc.L1::no_allocate.v2.f64 {%0, %1}, [%2];\n"
      "}"
      : "=d"(c.a[0]), "=d"(c.a[1])
      : "l"(at), "r"(static_cast<int>(valid)));
  return c;
}
SOAE_DEVICE Chunk<uint32_t> load_stream(const uint32_t* at, bool valid) {
  Chunk<uint32_t> c;
  asm("{\n"
      "  .reg .pred p;\n"
      "  setp.ne.s32 p, %5, 0;\n"
      "  mov.u32 %0, 0;\n"
      "  mov.u32 %1, 0;\n"
      "  mov.u32 %2, 0;\n"
      "  mov.u32 %3, 0;\n"
      "  @p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=r"(c.a[0]), "=r"(c.a[1]), "=r"(c.a[2]), "=r"(c.a[3])
      : "l"(at), "r"(static_cast<int>(valid)));
  return c;
}

SOAE_DEVICE void unpack_float16(uint32_t pair, float& low, float& high) {
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&pair));
  low = both.x;
  high = both.y;
}
SOAE_DEVICE uint32_t pack_float16(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Reads what another block of the same launch wrote, from the cache that all blocks share.
SOAE_DEVICE double load_coherent(const double* at) { return __ldcg(at); }

// ---- host -----------------------------------------------------------------------------------------------------------

[[noreturn]] void fail(cudaError_t error, const char* call, const char* file, int line);
int multiprocessors(int device);  // cached
int architecture(int device);     // 90 for sm_90, cached
int most_shared_bytes(int device);  // that a block may have, cached
// Blocks of the largest cluster of `kernel` that the GPU runs, 0 where there are no clusters; cached: ask for one kernel.
int largest_cluster_of(const void* kernel, int threads, std::size_t shared, int device);
int runtime_version();
int driver_version();
// Lets a kernel use more dynamic shared memory than every GPU grants unasked.
void allow_shared(const void* kernel, std::size_t bytes);

// Makes `device` current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    SOAE_CUDA_CHECK(cudaGetDevice(&previous_));
    if (previous_ == device) return;
    SOAE_CUDA_CHECK(cudaSetDevice(device));
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) static_cast<void>(cudaSetDevice(previous_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// Clusters of `blocks` blocks each, as the runtime wants it described.
struct LaunchConfig {
  cudaLaunchAttribute cluster{};
  cudaLaunchConfig_t config{};

  LaunchConfig(int64_t clusters, int blocks, int threads, std::size_t shared, void* stream) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.gridDim = dim3(static_cast<unsigned>(clusters * blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &cluster;
    config.numAttrs = blocks > 1 ? 1 : 0;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
};

template <typename... Params, typename... Args>
void launch_clusters(void (*kernel)(Params...), int64_t clusters, int blocks, int threads, std::size_t shared,
                     void* stream, const Args&... args) {
  constexpr std::size_t kSharedUnasked = 48 * 1024;
  constexpr int kPortableCluster = 8;
  const void* const function = reinterpret_cast<const void*>(kernel);
  if (shared > kSharedUnasked) allow_shared(function, shared);
  if (blocks > kPortableCluster) {
    SOAE_CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  if (clusters * blocks > INT32_MAX) {
    throw std::runtime_error("soae_ext: too many systems for one launch: split the batch");
  }
  const LaunchConfig config(clusters, blocks, threads, shared, stream);
  SOAE_CUDA_CHECK(cudaLaunchKernelEx(&config.config, kernel, Params(args)...));
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), int64_t blocks, int threads, std::size_t shared, void* stream,
            const Args&... args) {
  launch_clusters(kernel, blocks, 1, threads, shared, stream, args...);
}

}  // namespace soae::cuda
