// One Arnoldi step of one system.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/vector.h"
#include "rules.h"

namespace soae::cpu {

// 2^exponent of what the basis holds, and its inverse.
template <typename T>
T stored_scale(const Solve& p) {
  return std::ldexp(T(1), p.basis_exponent);
}
template <typename T>
T stored_unit(const Solve& p) {
  return std::ldexp(T(1), -p.basis_exponent);
}

template <typename S>
S* basis_of(const Solve& p, int64_t system) {
  return static_cast<S*>(p.basis) + system * (p.restart + 1) * p.ld;
}

// Rows first..first+3 of a row-major matrix with `rows` rows, from column `offset` on.
template <typename S>
Panel<S> make_panel(const S* matrix, int64_t ld, int32_t first, int32_t rows, int64_t offset) {
  Panel<S> panel;
  for (int i = 0; i < kPanel; ++i) panel.row[i] = matrix + std::min(first + i, rows - 1) * ld + offset;
  return panel;
}

// The panel after the one that starts at row `first`, from column `offset` on, if the matrix has rows to read there and
// the panel is short enough to stay in the second-level cache until its turn comes.
template <typename S>
Ahead make_ahead(const S* matrix, int64_t ld, int32_t first, int32_t rows, int64_t offset) {
  constexpr int64_t kLongest = 131072;
  first += kPanel;
  Ahead ahead;
  ahead.wanted = first < rows && kPanel * ld * static_cast<int64_t>(sizeof(S)) <= kLongest;
  for (int i = 0; i < kPanel; ++i) {
    ahead.row[i] = reinterpret_cast<std::uintptr_t>(matrix + std::min(first + i, rows - 1) * ld + offset);
  }
  return ahead;
}

// scale * row as a new basis vector (zero-padded), and what was stored of it as the operator's next input.
template <typename T, typename S>
void write_vector(const Solve& p, S* basis_row, T* direction, const T* row, double scale, const Team& team) {
  const T to_store = static_cast<T>(scale) * stored_scale<T>(p), unit = stored_unit<T>(p);
  team.each([&](int64_t offset, int64_t count) {
    basis_loops<T, S>().append(basis_row + offset, direction + offset, row + offset, to_store, unit, count);
  });
  if (team.leader()) std::fill(basis_row + p.n, basis_row + p.ld, S{});
}

template <typename T>
void write_zeros(T* direction, const Team& team) {
  team.each([&](int64_t offset, int64_t count) { std::fill_n(direction + offset, count, T(0)); });
}

// Orthogonalises w against rows 0..j of the basis, four rows at a time: every pass over w subtracts one panel, which it
// finds in the cache, and multiplies with the next, which it brings there. The vector that is left is in team.row().
template <typename T, typename S>
void step_system(const Solve& p, int64_t system, int32_t j, const T* w, Team& team) {
  T* const direction = static_cast<T*>(p.direction) + system * p.n;
  if (p.systems[system].outcome != kActive) return write_zeros(direction, team);

  const BasisLoops<T, S>& loops = basis_loops<T, S>();
  S* const basis = basis_of<S>(p, system);
  const int32_t rows = j + 1;
  w += system * p.n;  // may be `direction`: nothing is written there until all of w was read
  double largest;
  team.max(1, &largest, [&](int64_t offset, int64_t count, double* out) {
    out[0] = vector_loops<T>().max_abs(w + offset, make_ahead(basis, p.ld, -kPanel, rows, offset), count);
  });
  if (!is_finite(largest)) {
    if (team.leader()) reject_column(p, system);
    return write_zeros(direction, team);
  }

  const int32_t exponent = scale_exponent(largest, p.dtype);
  const int32_t panels = (rows + kPanel - 1) / kPanel;
  const int32_t passes = panels * (p.orthogonalization == kCgs2 ? 2 : 1);
  T* const row = team.row<T>();
  double* const column = team.column();
  const auto panel_at = [&](int32_t pass, int64_t offset) {
    return make_panel(basis, p.ld, pass % panels * kPanel, rows, offset);
  };
  const auto ahead_of = [&](int32_t pass, int64_t offset) {
    return make_ahead(basis, p.ld, pass % panels * kPanel, rows, offset);
  };

  double sums[kPanel + 1];
  T h[kPanel];
  const T scale = std::ldexp(T(1), -exponent), unit = stored_unit<T>(p);
  team.sum(kPanel + 1, sums, [&](int64_t offset, int64_t count, double* out) {
    loops.scale_dot(row + offset, w + offset, scale, panel_at(0, offset), ahead_of(0, offset), out, count);
  });
  const double av = std::sqrt(sums[kPanel]);
  // Takes the panels of the passes begin..end-1 out of the row, whose products with the first of them are in `sums`.
  // Returns the norm of what is left.
  const auto subtract_panels = [&](int32_t begin, int32_t end) {
    for (int32_t pass = begin; pass < end; ++pass) {
      const int32_t first = pass % panels * kPanel;
      for (int i = 0; i < kPanel; ++i) {
        const bool present = first + i < rows;
        h[i] = present ? static_cast<T>(sums[i]) * unit : T(0);
        // What is subtracted is what is recorded, rounding included.
        if (present && team.leader()) column[first + i] = (pass < panels ? 0.0 : column[first + i]) + double(h[i]);
        h[i] *= unit;
      }
      if (pass + 1 < end) {
        team.sum(kPanel, sums, [&](int64_t offset, int64_t count, double* out) {
          loops.update_dot(row + offset, panel_at(pass, offset), h, panel_at(pass + 1, offset),
                           ahead_of(pass + 1, offset), out, count);
        });
      } else {
        team.sum(1, sums, [&](int64_t offset, int64_t count, double* out) {
          out[0] = loops.update_norm(row + offset, panel_at(pass, offset), h, count);
        });
      }
    }
    return std::sqrt(sums[0]);
  };
  double norm = subtract_panels(0, passes);
  if (passes == panels && norm < kCancellation * av) {
    team.sum(kPanel + 1, sums, [&](int64_t offset, int64_t count, double* out) {
      loops.scale_dot(row + offset, row + offset, T(1), panel_at(0, offset), ahead_of(0, offset), out, count);
    });
    norm = subtract_panels(panels, 2 * panels);
  }

  if (team.leader()) {
    for (int32_t i = 0; i < rows; ++i) column[i] = std::ldexp(column[i], exponent);
    append_column(p, system, j, column, std::ldexp(norm, exponent), std::ldexp(av, exponent));
  }
  team.wait();
  if (p.systems[system].outcome != kActive) return write_zeros(direction, team);
  write_vector(p, basis + (j + 1) * p.ld, direction, row, 1.0 / norm, team);
}

}  // namespace soae::cpu
