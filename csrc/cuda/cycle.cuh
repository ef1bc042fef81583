// The two ends of a cycle. Begin and close measure a residual, reach a verdict (rules.h) and write the first basis
// vector of the next cycle; finish and correct form the candidate. Measuring, deciding and applying are separate device
// functions: one kernel does all three where a block owns a system, three kernels where its vectors are cut in pieces.
#pragma once

#include "plan.h"
#include "reduce.cuh"
#include "stored.cuh"
#include "scratch.cuh"
#include "triangular.cuh"

namespace soae::cuda {

constexpr int kCycleThreads = 256;
using CycleReduce = BlockReduce<kCycleThreads, 1>;

// What a decision asks of those who hold the vectors.
enum Action : int32_t { kKeep = 0, kTakeCandidate = 1, kZeroX = 2, kNewBasis = 4 };

// The residual to measure: of x (begin) or of the candidate (close).
template <typename T, int kSize = Chunk<T>::kSize>
struct Residual {
  Vector<T, kSize> b, ax, iterate;
  bool has_ax;

  SOAE_DEVICE Residual(const Solve& p, int64_t system, const void* a_times, bool opening)
      : b(vector_of<T, kSize>(p, p.b, system)),
        ax(vector_of<T, kSize>(p, a_times != nullptr ? a_times : p.b, system)),
        iterate(vector_of<T, kSize>(p, opening ? p.x : p.candidate, system)),
        has_ax(a_times != nullptr) {}

  SOAE_DEVICE Chunk<T, kSize> load(int32_t chunk) const {
    Chunk<T, kSize> r = b.load(chunk);
    if (has_ax) {
      const Chunk<T, kSize> a = ax.load(chunk);
#pragma unroll
      for (int e = 0; e < kSize; ++e) r.a[e] -= a.a[e];
    }
    return r;
  }
};

// Norm of a vector, given chunk by chunk, as value * 2^exponent with squares that neither overflow nor underflow.
template <typename T, typename Load>
SOAE_DEVICE ScaledSquares measure_norm(int32_t first, int32_t last, int32_t dtype, CycleReduce& reduce,
                                       const Load& load) {
  T largest = T(0);
  for (int32_t at = first + thread_index(); at < last; at += kCycleThreads) largest = chunk_max(load(at), largest);
  const ScaledSquares empty = ScaledSquares::from_max(reduce.max(largest), dtype);
  const T factor = empty.finite() ? power_of_two<T>(-empty.power()) : T(0);
  T sum = T(0);
  for (int32_t at = first + thread_index(); at < last; at += kCycleThreads) {
    const Chunk<T> c = load(at);
#pragma unroll
    for (int e = 0; e < Chunk<T>::kSize; ++e) sum += (c.a[e] * factor) * (c.a[e] * factor);
  }
  return {empty.exponent, reduce.sum(sum)};
}

// What is known of the chunks [first, last) of a system: everything a verdict needs.
template <typename T>
SOAE_DEVICE Measured measure(const Solve& p, int64_t system, int32_t first, int32_t last, const void* ax, bool opening,
                             CycleReduce& reduce) {
  const Residual<T> residual(p, system, ax, opening);
  Measured m;
  m.r = measure_norm<T>(first, last, p.dtype, reduce, [&](int32_t at) { return residual.load(at); });
  m.b = opening ? measure_norm<T>(first, last, p.dtype, reduce, [&](int32_t at) { return residual.b.load(at); })
                : ScaledSquares::nothing();
  T largest = T(0);
  for (int32_t at = first + thread_index(); at < last; at += kCycleThreads) {
    largest = chunk_max(residual.iterate.load(at), largest);
  }
  m.iterate_max = reduce.max(largest);
  return m;
}

// The verdict on one system, by one thread. Returns what is to be done with its vectors.
SOAE_DEVICE int32_t decide(const Solve& p, int64_t system, const Measured& m, bool opening, bool stop) {
  System& s = p.systems[system];
  const double r_norm = m.r.finite() ? sqrt(m.r.squares) : NAN;
  int32_t action = kKeep;
  if (opening) {
    Opening o;
    o.b_finite = m.b.finite();
    o.b_zero = o.b_finite && m.b.zero();
    o.b_norm = o.b_finite ? sqrt(m.b.squares) : 0.0;
    o.b_exponent = m.b.power();
    o.x_finite = is_finite(m.iterate_max);
    o.r_finite = m.r.finite();
    o.r_norm = o.r_finite ? r_norm : 0.0;
    o.r_exponent = m.r.power();
    if (open_system(p, system, o)) action |= kZeroX;
    action |= kNewBasis;
  } else {
    const double norm = m.r.finite() ? ldexp(r_norm, m.r.power()) : NAN;
    const bool accept = close_system(p, system, norm, is_finite(m.iterate_max), stop);
    if (accept) action |= kTakeCandidate | kNewBasis;
    start_cycle(p, system, accept ? r_norm : s.beta, accept ? m.r.power() : s.scale);
  }
  if (s.outcome == kActive) atomic_add(&p.active[0], 1);
  return action;
}

// Carries the decision out on the chunks [first, last) of stored rows: x, the first basis row and the next direction.
template <typename T, typename S>
SOAE_DEVICE void apply(const Solve& p, int64_t system, int32_t first, int32_t last, const void* ax, bool opening,
                       int32_t action) {
  using Row = Stored<T, S>;
  const Row rows(p);
  const System& s = p.systems[system];
  const bool active = s.outcome == kActive;
  const Residual<T, Row::kSize> residual(p, system, ax, opening);
  const VectorFor<T, S> x = vector_of<T, Row::kSize>(p, p.x, system);
  const VectorFor<T, S> direction = vector_of<T, Row::kSize>(p, p.direction, system);
  S* row = basis_row<S>(p, system, 0);
  const T down = power_of_two<T>(-s.scale);
  const T to_store = static_cast<T>(1.0 / s.beta) * rows.scale;
  for (int32_t at = first + thread_index(); at < last; at += kCycleThreads) {
    typename Row::Values v{};
    if (active && (action & kNewBasis) != 0) {
      v = Row::scaled(Row::scaled(residual.load(at), down), to_store);
      v = rows.store(row, at, v);
    } else if (active) {
      v = Row::scaled(rows.unpack(Row::load(row, at)), rows.unit);
    }
    if ((action & kTakeCandidate) != 0) x.store(at, residual.iterate.load(at));
    if ((action & kZeroX) != 0) x.store(at, typename Row::Values{});
    direction.store(at, v);
  }
}

// Of 16 bytes of working numbers: chunks of a vector, padded like a row of the basis.
template <typename T>
SOAE_DEVICE int32_t vector_chunks(const Solve& p) {
  return static_cast<int32_t>(p.ld / Chunk<T>::kSize);
}

// begin and close, a block per system.
template <typename T, typename S>
SOAE_KERNEL(kCycleThreads, 1)
turn_cycle(SOAE_PARAM Solve p, const void* ax, bool opening, bool stop) {
  const int64_t system = block_index();
  if (!opening && p.systems[system].outcome == kFrozen) {
    return clear_vector(vector_of<T>(p, p.direction, system), 0, vector_chunks<T>(p));
  }
  CycleReduce reduce(dynamic_shared<double>());
  int32_t* action = reinterpret_cast<int32_t*>(dynamic_shared<double>() + CycleReduce::kDoubles);
  const Measured m = measure<T>(p, system, 0, vector_chunks<T>(p), ax, opening, reduce);
  if (thread_index() == 0) *action = decide(p, system, m, opening, stop);
  block_barrier();
  apply<T, S>(p, system, 0, row_chunks<S>(p), ax, opening, *action);
}

// begin and close, a block per piece: measure, decide, apply.
template <typename T>
SOAE_KERNEL(kCycleThreads, 1)
measure_pieces(SOAE_PARAM Solve p, SplitScratch scratch, const void* ax, bool opening, int32_t length) {
  const Piece piece = Piece::own(scratch.pieces, vector_chunks<T>(p), length);
  if (!opening && p.systems[piece.system].outcome == kFrozen) return;
  CycleReduce reduce(dynamic_shared<double>());
  const Measured m = measure<T>(p, piece.system, piece.first, piece.last, ax, opening, reduce);
  if (thread_index() == 0) scratch.store_measured(piece, m);
}

// One warp per system.
SOAE_KERNEL(kWarp, 1)
decide_systems(SOAE_PARAM Solve p, SplitScratch scratch, bool opening, bool stop) {
  const int64_t system = block_index();
  SplitState& state = scratch.state(system);
  if (opening && thread_index() == 0) state.arrived = 0;
  if (!opening && p.systems[system].outcome == kFrozen) {
    if (thread_index() == 0) state.action = kKeep;
    return;
  }
  const Measured m = scratch.combine_measured(system);
  if (thread_index() == 0) state.action = decide(p, system, m, opening, stop);
}

template <typename T, typename S>
SOAE_KERNEL(kCycleThreads, 1)
apply_pieces(SOAE_PARAM Solve p, SplitScratch scratch, const void* ax, bool opening) {
  const Piece piece = Piece::own(scratch.pieces, row_chunks<S>(p));
  apply<T, S>(p, piece.system, piece.first, piece.last, ax, opening, scratch.state(piece.system).action);
}

}  // namespace soae::cuda
