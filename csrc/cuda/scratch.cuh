// What the kernels that cut vectors in pieces leave for each other in Solve::scratch. Every block stores its partial
// results at a place of its own, and one reader sums them in a fixed order in float64.
#pragma once

#include "plan.h"
#include "reduce.cuh"
#include "stored.cuh"

namespace soae::cuda {

// A sum of squares times 2^(-2 exponent). The exponent is a double so that it can be infinite: not finite.
struct ScaledSquares {
  static constexpr double kNothing = -4096.0;  // exponent of an all-zero vector, below that of any number
  double exponent, squares;

  static SOAE_DEVICE ScaledSquares nothing() { return {kNothing, 0.0}; }
  static SOAE_DEVICE ScaledSquares from_max(double largest, int32_t dtype) {
    if (!is_finite(largest)) return {largest, 0.0};
    return {largest > 0.0 ? static_cast<double>(scale_exponent(largest, dtype)) : kNothing, 0.0};
  }
  SOAE_DEVICE bool finite() const { return is_finite(exponent); }
  SOAE_DEVICE bool zero() const { return exponent == kNothing; }
  SOAE_DEVICE int32_t power() const { return finite() && !zero() ? static_cast<int32_t>(exponent) : 0; }
};

// What begin and close know of a system, or of a piece of it. b is measured by begin alone.
struct Measured {
  ScaledSquares r, b;
  double iterate_max;  // of x or the candidate; infinite where it is not finite
};

struct SplitState {
  double after;      // norm of the orthogonalised vector times 2^-exponent
  double before;     // norm of the operator's output times 2^-exponent
  int32_t exponent;  // power of two that the step works with
  int32_t arrived;   // blocks of the current launch that are done
  int32_t action;    // what decide asks of apply
  int32_t step;      // that the launches of a step are taking
};

struct Piece {
  int64_t system;
  int32_t index;
  int32_t first, last;  // chunks

  // The piece of the running block, of a vector of `chunks` chunks. A piece has `length` of them.
  static SOAE_DEVICE Piece own(int32_t pieces, int32_t chunks, int32_t length = kPieceChunks) {
    const int64_t block = block_index();
    Piece q;
    q.system = block / pieces;
    q.index = static_cast<int32_t>(block % pieces);
    q.first = q.index * length;
    q.last = q.first + length < chunks ? q.first + length : chunks;
    return q;
  }
};

// One thread holds one chunk of a piece.
template <typename T, typename S>
using PieceTile = TileFor<T, S, kPieceThreads, kPieceChunks / kPieceThreads>;
template <typename T, typename S>
using StoredPiece = StoredTile<T, S, kPieceThreads, kPieceChunks / kPieceThreads>;

struct SplitScratch {
  SplitState* states;     // (B)
  double* partials;       // (B, slots, pieces)
  double* coefficients;   // (B, 2, m): what the next sweep subtracts, and the column of H so far, times 2^-exponent
  double* lower;          // (B, m(m-1)/2) strict lower triangle of V^T V, by columns
  int64_t restart;
  int32_t slots;
  int32_t pieces;

  // Slots of a step: exponent, squares, then V^T w and v_j^T V. Slots of begin and close: the fields of Measured.
  enum Slot : int32_t { kExponent = 0, kSquares = 1, kDots = 2, kMeasuredB = 2, kIterate = 4, kMinimum = 5 };

  SOAE_DEVICE int32_t lower_dots() const { return kDots + static_cast<int32_t>(restart); }
  SOAE_DEVICE SplitState& state(int64_t system) const { return states[system]; }
  SOAE_DEVICE double* slot(int64_t system, int32_t which) const {
    return partials + (system * slots + which) * pieces;
  }
  SOAE_DEVICE double* next_sweep(int64_t system) const { return coefficients + system * 2 * restart; }
  SOAE_DEVICE double* column(int64_t system) const { return coefficients + (system * 2 + 1) * restart; }
  SOAE_DEVICE double* lower_of(int64_t system) const { return lower + system * (restart * (restart - 1) / 2); }

  // One warp: the sum of a slot over the pieces; weights null, or one factor per piece.
  SOAE_DEVICE double sum(int64_t system, int32_t which, const double* weights) const {
    const double* values = slot(system, which);
    double total = 0.0;
    for (int32_t i = lane_index(); i < pieces; i += kWarp) {
      const double value = load_coherent(values + i);
      total += weights != nullptr ? value * load_coherent(weights + i) : value;
    }
    return warp_sum(total);
  }

  SOAE_DEVICE double max(int64_t system, int32_t which) const {
    const double* values = slot(system, which);
    double largest = ScaledSquares::kNothing;
    for (int32_t i = lane_index(); i < pieces; i += kWarp) {
      const double value = load_coherent(values + i);
      largest = value > largest ? value : largest;
    }
    return warp_max(largest);
  }

  // One warp: the norm over all pieces from its two slots.
  SOAE_DEVICE ScaledSquares combine(int64_t system, int32_t exponents, int32_t squares) const {
    ScaledSquares all{max(system, exponents), 0.0};
    if (!all.finite()) return all;
    for (int32_t i = lane_index(); i < pieces; i += kWarp) {
      const double down = load_coherent(slot(system, exponents) + i) - all.exponent;
      all.squares += ldexp(load_coherent(slot(system, squares) + i), 2 * static_cast<int32_t>(down));
    }
    all.squares = warp_sum(all.squares);
    return all;
  }

  SOAE_DEVICE void store_measured(const Piece& q, const Measured& m) const {
    const double values[kMinimum] = {m.r.exponent, m.r.squares, m.b.exponent, m.b.squares, m.iterate_max};
    for (int32_t i = 0; i < kMinimum; ++i) slot(q.system, i)[q.index] = values[i];
  }

  SOAE_DEVICE Measured combine_measured(int64_t system) const {
    Measured m;
    m.r = combine(system, kExponent, kSquares);
    m.b = combine(system, kMeasuredB, kMeasuredB + 1);
    m.iterate_max = max(system, kIterate);
    return m;
  }
};

// Lays the scratch of a solve out from `base`; returns the bytes it takes.
inline int64_t lay_out(const Solve& p, const Plan& plan, void* base, SplitScratch& s) {
  const int64_t m = p.restart;
  s.restart = m;
  s.slots = static_cast<int32_t>(std::max<int64_t>(SplitScratch::kDots + 2 * m, SplitScratch::kMinimum));
  s.pieces = plan.pieces;

  const int64_t partials = p.batch * s.slots * s.pieces;
  const int64_t coefficients = p.batch * 2 * m;
  const int64_t lower = p.batch * (m * (m - 1) / 2);
  s.states = static_cast<SplitState*>(base);
  s.partials = reinterpret_cast<double*>(s.states + p.batch);
  s.coefficients = s.partials + partials;
  s.lower = s.coefficients + coefficients;
  return p.batch * static_cast<int64_t>(sizeof(SplitState)) +
         (partials + coefficients + lower) * static_cast<int64_t>(sizeof(double));
}

}  // namespace soae::cuda
