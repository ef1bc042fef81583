// The two ways of a panel of basis rows into the registers of a block: loaded when it is needed, or through a ring in
// shared memory that is filled ahead. Loads of 16 bytes keep as much in flight as there are registers for; where few
// blocks share a multiprocessor, a ring keeps more. Which way is the faster one is a matter of measurement (choices.h).
#pragma once

#include "plan.h"
#include "stored.cuh"

namespace soae::cuda {

template <typename T, typename S, int kThreads, int kChunks, int kPanel>
class LoadedPanels {
 public:
  using Panel = StoredTile<T, S, kThreads, kChunks>[kPanel];

  SOAE_DEVICE LoadedPanels(const Solve& p, int64_t system, const Span& own, void*)
      : p_(p), system_(system), own_(own) {}

  // Before each sweep over the rows [0, rows).
  SOAE_DEVICE void begin(int32_t) {}

  // The panel of the sweep that begins at `row`; rows from `rows` on are zero. Panels are loaded in their order.
  SOAE_DEVICE void load(Panel& v, int32_t row, int32_t rows) const {
    const S* panel = basis_row<S>(p_, system_, row);
#pragma unroll
    for (int q = 0; q < kPanel; ++q) v[q].load(panel + q * p_.ld, own_.first, row + q < rows ? own_.last : 0);
  }

  // Called when all threads of the block have loaded that panel.
  SOAE_DEVICE void next(int32_t, int32_t) {}

 private:
  const Solve& p_;
  int64_t system_;
  Span own_;
};

// kRingStages panels are on their way or waiting. Where the GPU has bulk copies (sm_90), one thread asks for a row at a
// time and a mailbox tells when a panel is there; else (sm_80) every thread copies the chunks that it will load.
template <typename T, typename S, int kThreads, int kChunks, int kPanel>
class RingedPanels {
 public:
  using Panel = StoredTile<T, S, kThreads, kChunks>[kPanel];
  static constexpr int kMailboxBytes = kRingStages * static_cast<int>(sizeof(uint64_t));

  // Of shared memory, for rows of so many chunks in this block.
  static SOAE_HD std::size_t bytes(int32_t chunks) {
    return static_cast<std::size_t>(kRingStages * kPanel) * static_cast<std::size_t>(chunks) * 16 + kMailboxBytes;
  }

  // For all threads of the block together. `shared`: bytes(own.each) bytes.
  SOAE_DEVICE RingedPanels(const Solve& p, int64_t system, const Span& own, void* shared)
      : p_(p), system_(system), own_(own), stages_(static_cast<S*>(shared)),
        boxes_(reinterpret_cast<uint64_t*>(stages_ + kRingStages * stage_size())) {
    if (!has_bulk_copies()) return;
    if (thread_index() == 0) {
#pragma unroll
      for (int i = 0; i < kRingStages; ++i) open_mailbox(boxes_ + i);
    }
    block_barrier();
  }

  SOAE_DEVICE void begin(int32_t rows) {
    for (int i = 0; i < kRingStages; ++i) fetch(i * kPanel, rows, stage(loaded_ + static_cast<uint32_t>(i)));
  }

  SOAE_DEVICE void load(Panel& v, int32_t row, int32_t rows) {
    if (has_bulk_copies()) {
      wait_for(boxes_ + stage(loaded_), static_cast<int>(loaded_ / kRingStages % 2));
    } else {
      wait_for_copies<kRingStages - 1>();
    }
    const S* const panel = stages_ + stage(loaded_) * stage_size();
#pragma unroll
    for (int q = 0; q < kPanel; ++q) {
      v[q].load_shared(panel + q * row_size(), row + q < rows ? own_.last - own_.first : 0);
    }
    ++loaded_;
  }

  // The panel's stage is free for the one that comes kRingStages later.
  SOAE_DEVICE void next(int32_t row, int32_t rows) { fetch(row + kRingStages * kPanel, rows, stage(loaded_ - 1)); }

 private:
  static SOAE_DEVICE int stage(uint32_t panel) { return static_cast<int>(panel % kRingStages); }
  SOAE_DEVICE int32_t row_size() const { return own_.each * Stored<T, S>::kSize; }
  SOAE_DEVICE int32_t stage_size() const { return kPanel * row_size(); }

  // Sends the panel at `row` on its way, if there is one; to wait for chunks every panel is a group, an empty one too.
  SOAE_DEVICE void fetch(int32_t row, int32_t rows, int to) {
    const int32_t count = rows - row < kPanel ? rows - row : kPanel;
    if (has_bulk_copies()) {
      if (count > 0 && thread_index() == 0) fetch_rows(row, count, to);
    } else {
      if (count > 0) fetch_chunks(row, count, to);
      commit_copies();
    }
  }

  SOAE_DEVICE void fetch_rows(int32_t row, int32_t count, int to) {
    const int bytes = (own_.last - own_.first) * 16;
    expect_bytes(boxes_ + to, count * bytes);
    if (bytes == 0) return;
    const S* const from = basis_row<S>(p_, system_, row) + own_.first * Stored<T, S>::kSize;
    for (int q = 0; q < count; ++q) {
      copy_bulk(stages_ + to * stage_size() + q * row_size(), from + q * p_.ld, bytes, boxes_ + to);
    }
  }

  SOAE_DEVICE void fetch_chunks(int32_t row, int32_t count, int to) {
    const S* const from = basis_row<S>(p_, system_, row) + own_.first * Stored<T, S>::kSize;
    for (int q = 0; q < count; ++q) {
      for (int32_t at = thread_index(); at < own_.last - own_.first; at += kThreads) {
        const int32_t element = at * Stored<T, S>::kSize;
        copy_chunk(stages_ + to * stage_size() + q * row_size() + element, from + q * p_.ld + element);
      }
    }
  }

  const Solve& p_;
  int64_t system_;
  Span own_;
  S* stages_;
  uint64_t* boxes_;
  uint32_t loaded_ = 0;  // panels, of all sweeps: they take the stages in turns
};

}  // namespace soae::cuda
