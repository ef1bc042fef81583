// port.h for the SIMT build. Include port.h, not this.
#pragma once

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../storage.h"
#include "simt.h"

#define SOAE_KERNEL(threads, min_blocks) inline void
#define SOAE_DEVICE inline
#define SOAE_PARAM const

namespace soae::cuda {

// ---- device ---------------------------------------------------------------------------------------------------------

constexpr int kWarp = simt::kWarp;

inline int thread_index() { return simt::position().thread; }
inline int thread_count() { return simt::position().threads; }
inline std::int64_t block_index() { return simt::position().block; }

inline void block_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::barrier(file, line);
}
inline void fence() {}

constexpr bool has_clusters() { return true; }
inline int cluster_rank() { return simt::position().rank; }
inline int cluster_size() { return simt::position().cluster; }
inline void cluster_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::cluster_barrier(file, line);
}
inline void open_mailbox(std::uint64_t* box) { simt::open_mailbox(box); }
inline void expect_bytes(std::uint64_t* box, int bytes) { simt::expect_bytes(box, bytes); }
inline void wait_for(const std::uint64_t* box, int parity) { simt::wait_for(box, parity); }
inline void send(double value, double* slot, std::uint64_t* box, int rank) {
  *static_cast<double*>(simt::remote(slot, rank)) = value;
  simt::deliver(static_cast<std::uint64_t*>(simt::remote(box, rank)), sizeof(double));
}

// On a GPU a 16-byte access to an unaligned address is a fault.
inline void require_aligned(const void* at) {
  if (reinterpret_cast<std::uintptr_t>(at) % 16 == 0) return;
  throw std::runtime_error("16-byte access to an unaligned address");
}

constexpr bool has_async_copies() { return true; }
inline bool has_bulk_copies() { return simt::largest_cluster() > 0; }
inline void copy_bulk(void* to, const void* from, int bytes, std::uint64_t* box) {
  require_aligned(to);
  require_aligned(from);
  if (bytes <= 0 || bytes % 16 != 0) throw std::runtime_error("bulk copy of a size that is no multiple of 16 bytes");
  simt::copy_bulk(to, from, bytes, box);
}
inline void copy_chunk(void* to, const void* from) {
  require_aligned(to);
  require_aligned(from);
  simt::copy_chunk(to, from);
}
inline void commit_copies() { simt::commit_copies(); }
template <int kPending>
void wait_for_copies() {
  simt::wait_for_copies(kPending);
}

template <typename T>
T shuffle(T value, int lane) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t), "a shuffle moves at most 8 bytes");
  std::uint64_t sent = 0;
  std::memcpy(&sent, &value, sizeof(T));
  const std::uint64_t received = simt::exchange(sent, lane);
  std::memcpy(&value, &received, sizeof(T));
  return value;
}
template <typename T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, thread_index() % kWarp ^ mask);
}

inline std::int32_t atomic_add(std::int32_t* at, std::int32_t value) {
  const std::int32_t old = *at;
  *at += value;
  return old;
}

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(simt::position().shared);
}

template <typename T>
Chunk<T> load_chunk(const T* at) {
  require_aligned(at);
  Chunk<T> c;
  std::memcpy(c.a, at, sizeof(c.a));
  return c;
}
template <typename T>
Chunk<T> load_stream(const T* at, bool valid) {
  return valid ? load_chunk(at) : Chunk<T>{};
}
template <typename T>
void store_chunk(T* at, const Chunk<T>& c) {
  require_aligned(at);
  std::memcpy(at, c.a, sizeof(c.a));
}

inline void unpack_float16(std::uint32_t pair, float& low, float& high) {
  low = to_float(Float16{static_cast<std::uint16_t>(pair)});
  high = to_float(Float16{static_cast<std::uint16_t>(pair >> 16)});
}
inline std::uint32_t pack_float16(float low, float high) {
  return to_float16(low).bits | static_cast<std::uint32_t>(to_float16(high).bits) << 16;
}

inline double load_coherent(const double* at) { return *at; }

// ---- host -----------------------------------------------------------------------------------------------------------

inline int multiprocessors(int) { return simt::multiprocessors(); }
inline int largest_cluster_of(const void*, int, std::size_t, int) { return simt::largest_cluster(); }
inline int most_shared_bytes(int) { return simt::most_shared_bytes(); }
int architecture(int device);

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

template <typename... Params, typename... Args>
void launch_clusters(void (*kernel)(Params...), std::int64_t clusters, int blocks, int threads, std::size_t shared, void*,
                     const Args&... args) {
  simt::launch([&] { kernel(static_cast<Params>(args)...); }, clusters * blocks, threads, shared, blocks);
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), std::int64_t blocks, int threads, std::size_t shared, void* stream,
            const Args&... args) {
  launch_clusters(kernel, blocks, 1, threads, shared, stream, args...);
}

}  // namespace soae::cuda
