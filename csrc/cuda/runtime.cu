// The host side of port_cuda.h: errors with their remedy, and what is asked of the runtime.
#include <array>
#include <atomic>
#include <cstring>

#include "port.h"

namespace soae::cuda {

namespace {

std::string dotted(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

std::string remedy(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      return "; the driver supports CUDA " + dotted(driver_version()) + ", soae_ext was built with CUDA " +
             dotted(runtime_version()) + ": update the driver, or reinstall soae_ext with an older CUDA toolkit";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidDeviceFunction:
      return "; soae_ext holds no kernel for this GPU: reinstall on this machine with "
             "SOAE_CUDA=on SOAE_CUDA_ARCH=native pip install --force-reinstall --no-cache-dir .";
    default:
      return "";
  }
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  SOAE_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

}  // namespace

void fail(cudaError_t error, const char* call, const char* file, int line) {
  static_cast<void>(cudaGetLastError());
  const char* slash = std::strrchr(file, '/');
  throw std::runtime_error(std::string("soae_ext: ") + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
                           ") in " + call + " at " + (slash != nullptr ? slash + 1 : file) + ":" +
                           std::to_string(line) + remedy(error));
}

namespace {

__global__ void nothing() {}

// Whether a cluster of so many blocks, one to a multiprocessor, fits this GPU.
bool runs_cluster(int blocks) {
  SOAE_CUDA_CHECK(cudaFuncSetAttribute(nothing, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(1024);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int most = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&most, nothing, &config);
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error == cudaSuccess && most > 0;
}

int find_largest_cluster(int device) {
  if (attribute(cudaDevAttrClusterLaunch, device) == 0) return 0;
  for (const int blocks : {16, 8, 4, 2}) {
    if (runs_cluster(blocks)) return blocks;
  }
  return 0;
}

int find_multiprocessors(int device) { return attribute(cudaDevAttrMultiProcessorCount, device); }

int find_architecture(int device) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
         attribute(cudaDevAttrComputeCapabilityMinor, device);
}

// What `find` says of a device, asked once.
template <int (*find)(int)>
int cached(int device) {
  static std::array<std::atomic<int>, 64> known{};  // 1 more than it is
  if (device < 0 || device >= static_cast<int>(known.size())) return find(device);
  std::atomic<int>& value = known[static_cast<std::size_t>(device)];
  if (value.load(std::memory_order_relaxed) == 0) value.store(find(device) + 1, std::memory_order_relaxed);
  return value.load(std::memory_order_relaxed) - 1;
}

}  // namespace

int multiprocessors(int device) { return cached<find_multiprocessors>(device); }
int largest_cluster(int device) { return cached<find_largest_cluster>(device); }
int architecture(int device) { return cached<find_architecture>(device); }

int runtime_version() {
  int version = 0;
  SOAE_CUDA_CHECK(cudaRuntimeGetVersion(&version));
  return version;
}

// 0 where there is no driver.
int driver_version() {
  int version = 0;
  SOAE_CUDA_CHECK(cudaDriverGetVersion(&version));
  return version;
}

void allow_shared(const void* kernel, std::size_t bytes) {
  int device = 0;
  SOAE_CUDA_CHECK(cudaGetDevice(&device));
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (bytes > static_cast<std::size_t>(limit)) {
    throw std::runtime_error("soae_ext: restart is too large for this GPU: it needs " + std::to_string(bytes) +
                             " bytes of shared memory, " + std::to_string(limit) + " are there; lower restart");
  }
  SOAE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace soae::cuda
