// One Arnoldi step with the vectors of a system cut in pieces, a block each. Modified Gram-Schmidt in its inverse
// compact WY form: with r = V^T w and L the strict lower triangle of V^T V, the coefficients h solve (I + L) h = r.
// One read of V yields r and the row of L that the last vector adds, a second one subtracts V h:
//     kMgs    dots, update, normalize               2 reads of V, 3 launches
//     kCgs2   dots, project, update, normalize      3 reads of V from memory, 4 launches; so too for a rounded basis
// project subtracts V h and measures V^T of what is left while its piece of V is still in the cache.
// The block of a system that arrives last in a launch ends that launch's work on the system.
#pragma once

#include "plan.h"
#include "reduce.cuh"
#include "scratch.cuh"
#include "triangular.cuh"
#include "update.cuh"

namespace soae::cuda {

constexpr int kPieceWarps = kPieceThreads / kWarp;
using SplitReduce = BlockReduce<kPieceThreads, 1>;

// Shared memory of the kernels below, in doubles: reductions, partial dot products, one flag, one column.
struct SplitShared {
  static constexpr int kGroup = 32;  // rows between two barriers
  static constexpr int kHalf = kPieceWarps * 2 * kGroup;
  static constexpr int kDots = SplitReduce::kDoubles;
  static constexpr int kFlag = kDots + 2 * kHalf;
  static constexpr int kColumn = kFlag + 2;

  static std::size_t bytes(int64_t restart) {
    return (static_cast<std::size_t>(kColumn) + static_cast<std::size_t>(restart)) * sizeof(double);
  }
};

// Whether this block is the last of its system to arrive. What the others stored before is visible to it.
SOAE_DEVICE bool arrive_last(SplitState& state, int32_t blocks) {
  int32_t* flag = reinterpret_cast<int32_t*>(dynamic_shared<double>() + SplitShared::kFlag);
  fence();
  block_barrier();
  if (thread_index() == 0) {
    *flag = atomic_add(&state.arrived, 1) == blocks - 1;
    if (*flag != 0) state.arrived = 0;
  }
  block_barrier();
  fence();
  return *flag != 0;
}

// Partial V_i^T w into the slots of V^T w for the rows [0, rows); kLower: also V_i^T last into the slots of L, for the
// rows before the last one. Each warp leaves its sums of 32 rows in shared memory, then threads add the warps up.
template <typename T, typename S, bool kLower>
SOAE_DEVICE void store_dots(const PieceTile<T, S>& w, const PieceTile<T, S>& last, const Solve& p,
                            const SplitScratch& scratch, const Piece& piece, int32_t rows) {
  constexpr int kRows = kPieceRows<T, S>;
  constexpr int kGroup = SplitShared::kGroup;
  constexpr int kLanesPerRow = kWarp / kRows;
  static_assert(kGroup % kRows == 0, "a group is a number of panels");
  const int32_t chunks = row_chunks<S>(p);
  const Stored<T, S> stored(p);
  const int writer = lane_index() % kLanesPerRow == 0 ? lane_index() / kLanesPerRow : -1;

  for (int32_t group = 0; group < rows; group += kGroup) {
    double* half = dynamic_shared<double>() + SplitShared::kDots + (group / kGroup % 2) * SplitShared::kHalf;
    double* mine = half + warp_index() * 2 * kGroup;
    for (int32_t row = group; row < rows && row < group + kGroup; row += kRows) {
      const S* panel = basis_row<S>(p, piece.system, row);
      StoredPiece<T, S> v[kRows];
#pragma unroll
      for (int q = 0; q < kRows; ++q) {
        v[q].load(panel + q * p.ld, piece.first, row + q < rows ? chunks : 0);
      }
      T dots[kRows];
#pragma unroll
      for (int q = 0; q < kRows; ++q) dots[q] = v[q].dot(w, stored);
      const T with_w = warp_sum_rows(dots);
      if (writer >= 0) mine[row - group + writer] = static_cast<double>(with_w * stored.unit);
      if constexpr (kLower) {
#pragma unroll
        for (int q = 0; q < kRows; ++q) dots[q] = v[q].dot(last, stored);
        const T with_last = warp_sum_rows(dots);
        if (writer >= 0) mine[kGroup + row - group + writer] = static_cast<double>(with_last * stored.unit);
      }
    }
    block_barrier();
    const int32_t row = group + thread_index() % kGroup;
    const bool lower = thread_index() >= kGroup;
    if (thread_index() < (kLower ? 2 : 1) * kGroup && row < rows - (lower ? 1 : 0)) {
      double total = 0.0;
#pragma unroll
      for (int i = 0; i < kPieceWarps; ++i) total += half[i * 2 * kGroup + thread_index()];
      scratch.slot(piece.system, (lower ? scratch.lower_dots() : SplitScratch::kDots) + row)[piece.index] = total;
    }
  }
}

// The last block of `dots`: one exponent for the whole vector, then the coefficients in float64.
SOAE_DEVICE void solve_coefficients(const Solve& p, const SplitScratch& scratch, int64_t system, int32_t j) {
  double* column = dynamic_shared<double>() + SplitShared::kColumn;
  SplitState& state = scratch.state(system);
  const ScaledSquares all = scratch.combine(system, SplitScratch::kExponent, SplitScratch::kSquares);
  if (!all.finite()) {
    if (thread_index() == 0) reject_column(p, system);
    return;
  }
  block_barrier();  // all warps have read the exponents: they make way for factors
  double* weights = scratch.slot(system, SplitScratch::kExponent);
  for (int32_t i = thread_index(); i < scratch.pieces; i += kPieceThreads) {
    weights[i] = ldexp(1.0, static_cast<int32_t>(load_coherent(weights + i) - all.exponent));
  }
  if (thread_index() == 0) {
    state.step = j;
    state.exponent = all.power();
    state.before = sqrt(all.squares);
  }
  fence();
  block_barrier();

  const UnitLower lower{scratch.lower_of(system), scratch.restart};
  for (int32_t row = warp_index(); row <= j; row += kPieceWarps) {
    const double dot = scratch.sum(system, SplitScratch::kDots + row, weights);
    if (lane_index() == 0) column[row] = dot;
    if (row == j) continue;
    const double gram = scratch.sum(system, scratch.lower_dots() + row, nullptr);
    if (lane_index() == 0) lower.below(j, row) = gram;
  }
  fence();
  block_barrier();
  substitute(j + 1, column, lower);
  for (int32_t i = thread_index(); i <= j; i += kPieceThreads) {
    scratch.next_sweep(system)[i] = column[i];
    scratch.column(system)[i] = column[i];
  }
}

template <typename T, typename S>
SOAE_KERNEL(kPieceThreads, 2)
split_dots(SOAE_PARAM Solve p, SplitScratch scratch, int32_t j, const T* operator_output) {
  const Piece piece = Piece::own(scratch.pieces, row_chunks<S>(p));
  if (p.systems[piece.system].outcome != kActive) return;
  j = step_index(p, piece.system, j);
  SplitReduce reduce(dynamic_shared<double>());
  PieceTile<T, S> w;
  w.load(vector_of<T, Stored<T, S>::kSize>(p, operator_output, piece.system), piece.first);
  const ScaledSquares own = ScaledSquares::from_max(reduce.max(w.max_magnitude()), p.dtype);
  w.scale(own.finite() ? power_of_two<T>(-own.power()) : T(0));
  const double squares = reduce.sum(w.dot(w));
  if (thread_index() == 0) {
    scratch.slot(piece.system, SplitScratch::kExponent)[piece.index] = own.exponent;
    scratch.slot(piece.system, SplitScratch::kSquares)[piece.index] = squares;
  }
  const Stored<T, S> stored(p);
  StoredPiece<T, S> row;
  row.load(basis_row<S>(p, piece.system, j), piece.first, row_chunks<S>(p));
  PieceTile<T, S> last;
  row.unpack_to(last, stored);
  last.scale(stored.unit);
  store_dots<T, S, true>(w, last, p, scratch, piece, j + 1);

  if (arrive_last(scratch.state(piece.system), scratch.pieces)) solve_coefficients(p, scratch, piece.system, j);
}

// w times 2^-exponent minus V h, from the operator's output, or from where project left it: in the memory of the
// direction, which may be that of the operator's output too. Every thread stores only where it has loaded.
template <typename T, typename S>
SOAE_DEVICE void subtract(PieceTile<T, S>& w, const Solve& p, const SplitScratch& scratch, const Piece& piece,
                          int32_t j, const T* operator_output) {
  const int64_t system = piece.system;
  constexpr int kSize = Stored<T, S>::kSize;
  if (operator_output != nullptr) {
    w.load(vector_of<T, kSize>(p, operator_output, system), piece.first);
    w.scale(power_of_two<T>(-scratch.state(system).exponent));
  } else {
    w.load(vector_of<T, kSize>(p, p.direction, system), piece.first);
  }
  T* factors = reinterpret_cast<T*>(dynamic_shared<double>() + SplitShared::kColumn);
  const Stored<T, S> stored(p);
  for (int32_t i = thread_index(); i <= j; i += kPieceThreads) {
    factors[i] = static_cast<T>(-scratch.next_sweep(system)[i]) * stored.unit;
  }
  block_barrier();
  const auto row_at = [&](int32_t row) -> const S* { return basis_row<S>(p, system, row); };
  add_rows<T, S>(w, stored, factors, j + 1, row_at, p.ld, piece.first, row_chunks<S>(p));
  w.store(vector_of<T, kSize>(p, p.direction, system), piece.first);
}

// kCgs2, between its two sweeps.
template <typename T, typename S>
SOAE_KERNEL(kPieceThreads, 2)
split_project(SOAE_PARAM Solve p, SplitScratch scratch, const T* operator_output) {
  const Piece piece = Piece::own(scratch.pieces, row_chunks<S>(p));
  if (p.systems[piece.system].outcome != kActive) return;
  const int32_t j = scratch.state(piece.system).step;
  PieceTile<T, S> w;
  subtract<T, S>(w, p, scratch, piece, j, operator_output);
  store_dots<T, S, false>(w, w, p, scratch, piece, j + 1);

  if (!arrive_last(scratch.state(piece.system), scratch.pieces)) return;
  for (int32_t row = warp_index(); row <= j; row += kPieceWarps) {
    const double dot = scratch.sum(piece.system, SplitScratch::kDots + row, nullptr);
    if (lane_index() == 0) {
      scratch.next_sweep(piece.system)[row] = dot;
      scratch.column(piece.system)[row] += dot;
    }
  }
}

// The last sweep, the norm of what is left, and the verdict. operator_output is null after project.
template <typename T, typename S>
SOAE_KERNEL(kPieceThreads, 2)
split_update(SOAE_PARAM Solve p, SplitScratch scratch, const T* operator_output) {
  const Piece piece = Piece::own(scratch.pieces, row_chunks<S>(p));
  if (p.systems[piece.system].outcome != kActive) return;
  const int32_t j = scratch.state(piece.system).step;
  SplitReduce reduce(dynamic_shared<double>());
  PieceTile<T, S> w;
  subtract<T, S>(w, p, scratch, piece, j, operator_output);
  const double squares = reduce.sum(w.dot(w));
  if (thread_index() == 0) scratch.slot(piece.system, SplitScratch::kSquares)[piece.index] = squares;

  SplitState& state = scratch.state(piece.system);
  if (!arrive_last(state, scratch.pieces)) return;
  double* column = dynamic_shared<double>() + SplitShared::kColumn;
  for (int32_t i = thread_index(); i <= j; i += kPieceThreads) {
    column[i] = ldexp(scratch.column(piece.system)[i], state.exponent);
  }
  const double after = sqrt(scratch.sum(piece.system, SplitScratch::kSquares, nullptr));
  block_barrier();
  if (thread_index() == 0) {
    state.after = after;
    append_column(p, piece.system, j, column, ldexp(after, state.exponent), ldexp(state.before, state.exponent));
    if (p.systems[piece.system].outcome == kActive) atomic_add(&p.active[j + 1], 1);
  }
}

// The next basis vector and direction.
template <typename T, typename S>
SOAE_KERNEL(kPieceThreads, 2)
split_normalize(SOAE_PARAM Solve p, SplitScratch scratch) {
  const Piece piece = Piece::own(scratch.pieces, row_chunks<S>(p));
  using Row = Stored<T, S>;
  const Row rows(p);
  const VectorFor<T, S> direction = vector_of<T, Row::kSize>(p, p.direction, piece.system);
  if (p.systems[piece.system].outcome != kActive) return clear_vector(direction, piece.first, piece.last);
  const SplitState& state = scratch.state(piece.system);
  const T to_store = static_cast<T>(1.0 / state.after) * rows.scale;
  S* row = basis_row<S>(p, piece.system, state.step + 1);
  for (int32_t at = piece.first + thread_index(); at < piece.last; at += kPieceThreads) {
    direction.store(at, rows.store(row, at, Row::scaled(direction.load(at), to_store)));
  }
}

}  // namespace soae::cuda
