// The end of a cycle: x + V y from one read of V, and the same with a preconditioner's z in its place. Pieces of a
// system are independent here, so both families of kernels share these.
#pragma once

#include "plan.h"
#include "rows.cuh"
#include "scratch.cuh"
#include "triangular.cuh"

namespace soae::cuda {

// w += sum of factors[i] V_i over the rows [0, rows).
template <typename T>
SOAE_DEVICE void add_rows(PieceTile<T>& w, const T* factors, int32_t rows, const T* basis, int64_t ld, int32_t first,
                          int32_t chunks) {
  for (int32_t row = 0; row < rows; row += kPieceRows) {
    PieceTile<T> v[kPieceRows];
#pragma unroll
    for (int q = 0; q < kPieceRows; ++q) v[q].load_basis(basis + (row + q) * ld, first, row + q < rows ? chunks : 0);
#pragma unroll
    for (int q = 0; q < kPieceRows; ++q) w.add(row + q < rows ? factors[row + q] : T(0), v[q]);
  }
}

inline std::size_t finish_shared_bytes(int64_t restart) {
  return static_cast<std::size_t>(restart) * 2 * sizeof(double);
}

// R y = g, then candidate = direction = x + V y (direction = V y alone where a preconditioner follows). Every piece
// solves the triangle for itself.
template <typename T>
SOAE_KERNEL(kPieceThreads, 2)
finish_pieces(SOAE_PARAM Solve p, int32_t pieces, bool preconditioned) {
  const Piece piece = Piece::own<T>(p, pieces);
  const int64_t system = piece.system;
  const int32_t first = piece.first;
  const System& s = p.systems[system];
  const Vector<T> direction = vector_of<T>(p, p.direction, system);
  PieceTile<T> sum;
  sum.clear();
  if (s.outcome == kFrozen) return sum.store(direction, first);

  const int32_t length = s.length;
  double* y = dynamic_shared<double>();
  T* factors = reinterpret_cast<T*>(y + p.restart);
  const double* g = p.g + system * (p.restart + 1);
  for (int32_t i = thread_index(); i < length; i += kPieceThreads) y[i] = g[length - 1 - i];
  block_barrier();
  substitute(length, y, ReversedUpper{p.r + system * packed_column(p.restart), length - 1});
  for (int32_t i = thread_index(); i < length; i += kPieceThreads) {
    factors[i] = static_cast<T>(ldexp(y[length - 1 - i], s.scale));
  }
  block_barrier();

  const T* rows = static_cast<const T*>(p.update) + update_offset(p, system, 0);
  add_rows(sum, factors, length, rows, p.ld, first, row_chunks<T>(p));
  if (!preconditioned) {
    PieceTile<T> x;
    x.load(vector_of<T>(p, p.x, system), first);
    sum.add(T(1), x);
    sum.store(vector_of<T>(p, p.candidate, system), first);
  }
  sum.store(direction, first);
}

// candidate = direction = x + z.
template <typename T>
SOAE_KERNEL(kPieceThreads, 2)
correct_pieces(SOAE_PARAM Solve p, int32_t pieces, const void* z) {
  const Piece piece = Piece::own<T>(p, pieces);
  const int64_t system = piece.system;
  const int32_t first = piece.first;
  const Vector<T> direction = vector_of<T>(p, p.direction, system);
  PieceTile<T> sum, x;
  sum.clear();
  if (p.systems[system].outcome == kFrozen) return sum.store(direction, first);
  sum.load(vector_of<T>(p, z, system), first);
  x.load(vector_of<T>(p, p.x, system), first);
  sum.add(T(1), x);
  sum.store(vector_of<T>(p, p.candidate, system), first);
  sum.store(direction, first);
}

}  // namespace soae::cuda
