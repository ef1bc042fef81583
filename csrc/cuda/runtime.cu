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

// Whether the GPU runs clusters of so many blocks of a kernel.
bool runs_clusters(const void* kernel, int threads, std::size_t shared, int blocks) {
  SOAE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  const LaunchConfig config(1, blocks, threads, shared, nullptr);
  int most = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&most, kernel, &config.config);
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error == cudaSuccess && most > 0;
}

// What `find` says of a device, asked once for each type of question.
template <typename Find>
int cached(int device, Find find) {
  static std::array<std::atomic<int>, 64> known{};  // 1 more than it is
  if (device < 0 || device >= static_cast<int>(known.size())) return find(device);
  std::atomic<int>& value = known[static_cast<std::size_t>(device)];
  if (value.load(std::memory_order_relaxed) == 0) value.store(find(device) + 1, std::memory_order_relaxed);
  return value.load(std::memory_order_relaxed) - 1;
}

}  // namespace

int multiprocessors(int device) {
  return cached(device, [](int d) { return attribute(cudaDevAttrMultiProcessorCount, d); });
}

int architecture(int device) {
  return cached(device, [](int d) {
    return 10 * attribute(cudaDevAttrComputeCapabilityMajor, d) + attribute(cudaDevAttrComputeCapabilityMinor, d);
  });
}

int most_shared_bytes(int device) {
  return cached(device, [](int d) { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, d); });
}

int largest_cluster_of(const void* kernel, int threads, std::size_t shared, int device) {
  return cached(device, [=](int d) {
    if (attribute(cudaDevAttrClusterLaunch, d) == 0) return 0;
    const DeviceGuard guard(d);
    for (const int blocks : {16, 8, 4, 2}) {
      if (runs_clusters(kernel, threads, shared, blocks)) return blocks;
    }
    return 0;
  });
}

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
  const int limit = most_shared_bytes(device);
  if (bytes > static_cast<std::size_t>(limit)) {
    throw std::runtime_error("soae_ext: restart is too large for this GPU: it needs " + std::to_string(bytes) +
                             " bytes of shared memory, " + std::to_string(limit) + " are there; lower restart");
  }
  SOAE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace soae::cuda
