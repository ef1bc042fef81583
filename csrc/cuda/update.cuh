// The end of a cycle: x + V y from one read of V, and the same with a preconditioner's z in its place. Pieces of a
// system are independent here, so both families of kernels share these.
#pragma once

#include "plan.h"
#include "scratch.cuh"
#include "triangular.cuh"

namespace soae::cuda {

// w += sum of factors[i] times stored row i over the rows [0, rows); row_at(i) is where row i begins.
template <typename T, typename S, typename RowAt>
SOAE_DEVICE void add_rows(PieceTile<T, S>& w, const Stored<T, S>& stored, const T* factors, int32_t rows,
                          const RowAt& row_at, int64_t ld, int32_t first, int32_t chunks) {
  constexpr int kRows = kPieceRows<T, S>;
  for (int32_t row = 0; row < rows; row += kRows) {
    const S* panel = row_at(row);
    StoredPiece<T, S> v[kRows];
#pragma unroll
    for (int q = 0; q < kRows; ++q) v[q].load(panel + q * ld, first, row + q < rows ? chunks : 0);
#pragma unroll
    for (int q = 0; q < kRows; ++q) v[q].add_to(w, row + q < rows ? factors[row + q] : T(0), stored);
  }
}

inline std::size_t finish_shared_bytes(int64_t restart) {
  return static_cast<std::size_t>(restart) * 2 * sizeof(double);
}

// R y = g, then candidate = direction = x + V y (direction = V y alone where a preconditioner follows). Every piece
// solves the triangle for itself.
template <typename T, typename U>
SOAE_KERNEL(kPieceThreads, 2)
finish_pieces(SOAE_PARAM Solve p, int32_t pieces, bool preconditioned) {
  constexpr int kSize = Stored<T, U>::kSize;
  const int32_t chunks = static_cast<int32_t>(p.update_ld / kSize);
  const Piece piece = Piece::own(pieces, chunks);
  const int64_t system = piece.system;
  const int32_t first = piece.first;
  const System& s = p.systems[system];
  const VectorFor<T, U> direction = vector_of<T, kSize>(p, p.direction, system);
  PieceTile<T, U> sum;
  sum.clear();
  if (s.outcome == kFrozen) return sum.store(direction, first);

  const int32_t length = s.length;
  double* y = dynamic_shared<double>();
  T* factors = reinterpret_cast<T*>(y + p.restart);
  const double* g = p.g + system * (p.restart + 1);
  for (int32_t i = thread_index(); i < length; i += kPieceThreads) y[i] = g[length - 1 - i];
  block_barrier();
  const Stored<T, U> stored(p, update_dtype(p));
  substitute(length, y, ReversedUpper{p.r + system * packed_column(p.restart), length - 1});
  for (int32_t i = thread_index(); i < length; i += kPieceThreads) {
    factors[i] = static_cast<T>(ldexp(y[length - 1 - i], s.scale)) * stored.unit;
  }
  block_barrier();

  const auto row_at = [&](int32_t row) -> const U* {
    if (updates_from_basis(p)) return basis_row<U>(p, system, row);
    return static_cast<const U*>(p.update) + update_offset(p, system, row);
  };
  add_rows<T, U>(sum, stored, factors, length, row_at, p.update_ld, first, chunks);
  if (!preconditioned) {
    PieceTile<T, U> x;
    x.load(vector_of<T, kSize>(p, p.x, system), first);
    sum.add(T(1), x);
    sum.store(vector_of<T, kSize>(p, p.candidate, system), first);
  }
  sum.store(direction, first);
}

// candidate = direction = x + z.
template <typename T>
SOAE_KERNEL(kPieceThreads, 2)
correct_pieces(SOAE_PARAM Solve p, int32_t pieces, const void* z) {
  const Piece piece = Piece::own(pieces, pieces * kPieceChunks);
  const int64_t system = piece.system;
  const int32_t first = piece.first;
  const Vector<T> direction = vector_of<T>(p, p.direction, system);
  PieceTile<T, T> sum, x;
  sum.clear();
  if (p.systems[system].outcome == kFrozen) return sum.store(direction, first);
  sum.load(vector_of<T>(p, z, system), first);
  x.load(vector_of<T>(p, p.x, system), first);
  sum.add(T(1), x);
  sum.store(vector_of<T>(p, p.candidate, system), first);
  sum.store(direction, first);
}

}  // namespace soae::cuda
