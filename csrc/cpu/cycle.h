// The ends of a cycle, for one system: the first residual, the update of x, the true residual and the verdict.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/step.h"

namespace soae::cpu {

// Running systems continue along row / norm; the others feed zeros to the operator.
template <typename T, typename S>
void start_system(const Solve& p, int64_t system, const T* row, double norm, const Team& team) {
  T* const direction = static_cast<T*>(p.direction) + system * p.n;
  if (p.systems[system].status != kRunning) return write_zeros(direction, team);
  write_vector(p, basis_of<S>(p, system), direction, row, 1.0 / norm, team);
}

template <typename T, typename S>
void begin_system(const Solve& p, int64_t system, const T* ax, Team& team) {
  const T* const b = static_cast<const T*>(p.b) + system * p.n;
  T* const x = static_cast<T*>(p.x) + system * p.n;
  T* const row = team.row<T>();
  ax = ax ? ax + system * p.n : nullptr;

  double largest[3];  // of b, x, b - A x
  team.max(3, largest, [&](int64_t offset, int64_t count, double* out) {
    out[0] = vector_loops<T>().max_abs(b + offset, Ahead{}, count);
    if (!ax) {
      std::copy_n(b + offset, count, row + offset);
      out[1] = 0.0;
      out[2] = out[0];
      return;
    }
    vector_loops<T>().subtract(row + offset, b + offset, ax + offset, count);
    out[1] = vector_loops<T>().max_abs(x + offset, Ahead{}, count);
    out[2] = vector_loops<T>().max_abs(row + offset, Ahead{}, count);
  });
  Opening o{};
  o.b_finite = is_finite(largest[0]);
  o.b_zero = largest[0] == 0.0;
  o.x_finite = is_finite(largest[1]);
  o.r_finite = is_finite(largest[2]);
  if (o.b_finite && o.r_finite) {
    o.b_exponent = scale_exponent(largest[0], p.dtype);
    o.r_exponent = scale_exponent(largest[2], p.dtype);
    const T b_scale = std::ldexp(T(1), -o.b_exponent), r_scale = std::ldexp(T(1), -o.r_exponent);
    double squares[2];
    team.sum(2, squares, [&](int64_t offset, int64_t count, double* out) {
      vector_loops<T>().multiply(row + offset, row + offset, r_scale, count);
      out[0] = vector_loops<T>().sum_squares(b + offset, b_scale, count);
      out[1] = vector_loops<T>().sum_squares(row + offset, T(1), count);
    });
    o.b_norm = std::sqrt(squares[0]);
    o.r_norm = std::sqrt(squares[1]);
  }
  if (team.leader()) team.flag() = open_system(p, system, o);
  team.wait();
  if (team.flag()) write_zeros(x, team);
  start_system<T, S>(p, system, row, o.r_norm, team);
}

// U: what `update` is stored in.
template <typename T, typename U>
void finish_system(const Solve& p, int64_t system, bool preconditioned, Team& team) {
  const System& s = p.systems[system];
  T* const direction = static_cast<T*>(p.direction) + system * p.n;
  if (s.status != kRunning) return write_zeros(direction, team);

  double* const y = team.column();
  if (team.leader()) back_substitute(p, system, y);
  team.wait();
  const U* const update = static_cast<const U*>(p.update) + system * p.update_rows * p.update_ld;
  const T unit = updates_from_basis(p) ? stored_unit<T>(p) : T(1);
  const T* const x = static_cast<const T*>(p.x) + system * p.n;
  T* const candidate = static_cast<T*>(p.candidate) + system * p.n;
  T* const row = team.row<T>();
  team.each([&](int64_t offset, int64_t count) {
    std::fill_n(row + offset, count, T(0));
    for (int32_t first = 0; first < s.length; first += kPanel) {
      T coefficients[kPanel];
      for (int i = 0; i < kPanel; ++i) {
        coefficients[i] = first + i < s.length ? static_cast<T>(std::ldexp(y[first + i], s.scale)) * unit : T(0);
      }
      const Panel<U> panel = make_panel(update, p.update_ld, first, s.length, offset);
      basis_loops<T, U>().combine(row + offset, panel, coefficients, count);
    }
    if (preconditioned) {
      std::copy_n(row + offset, count, direction + offset);
    } else {
      vector_loops<T>().add_scaled(candidate + offset, direction + offset, x + offset, row + offset, T(1), count);
    }
  });
  team.wait();  // y belongs to the next system from here on
}

template <typename T>
void correct_system(const Solve& p, int64_t system, const T* z, const Team& team) {
  T* const direction = static_cast<T*>(p.direction) + system * p.n;
  if (p.systems[system].status != kRunning) return write_zeros(direction, team);
  const T* const x = static_cast<const T*>(p.x) + system * p.n;
  T* const candidate = static_cast<T*>(p.candidate) + system * p.n;
  z += system * p.n;
  team.each([&](int64_t offset, int64_t count) {
    vector_loops<T>().add_scaled(candidate + offset, direction + offset, x + offset, z + offset, T(1), count);
  });
}

template <typename T, typename S>
void close_system_with(const Solve& p, int64_t system, const T* ax, bool stop, Team& team) {
  System& s = p.systems[system];
  T* const direction = static_cast<T*>(p.direction) + system * p.n;
  if (s.status != kRunning) return write_zeros(direction, team);

  const T* const b = static_cast<const T*>(p.b) + system * p.n;
  T* const x = static_cast<T*>(p.x) + system * p.n;
  const T* const candidate = static_cast<const T*>(p.candidate) + system * p.n;
  T* const row = team.row<T>();
  ax += system * p.n;  // may be `direction`: nothing is written there until all of ax was read

  double largest[2];  // of the candidate and its residual
  team.max(2, largest, [&](int64_t offset, int64_t count, double* out) {
    vector_loops<T>().subtract(row + offset, b + offset, ax + offset, count);
    out[0] = vector_loops<T>().max_abs(candidate + offset, Ahead{}, count);
    out[1] = vector_loops<T>().max_abs(row + offset, Ahead{}, count);
  });
  int32_t exponent = 0;
  double norm = std::numeric_limits<double>::quiet_NaN();
  if (is_finite(largest[1])) {
    exponent = scale_exponent(largest[1], p.dtype);
    const T scale = std::ldexp(T(1), -exponent);
    double square;
    team.sum(1, &square, [&](int64_t offset, int64_t count, double* out) {
      vector_loops<T>().multiply(row + offset, row + offset, scale, count);
      out[0] = vector_loops<T>().sum_squares(row + offset, T(1), count);
    });
    norm = std::sqrt(square);
  }
  if (team.leader()) {
    const bool accept = close_system(p, system, std::ldexp(norm, exponent), is_finite(largest[0]), stop);
    team.flag() = accept;
    if (accept) {
      start_cycle(p, system, norm, exponent);
    } else {
      start_cycle(p, system, s.beta, s.scale);
    }
  }
  team.wait();
  if (team.flag()) {
    team.each([&](int64_t offset, int64_t count) { std::copy_n(candidate + offset, count, x + offset); });
    start_system<T, S>(p, system, row, norm, team);
  } else if (s.status == kRunning) {
    const S* const first = basis_of<S>(p, system);
    const T unit = stored_unit<T>(p);
    team.each([&](int64_t offset, int64_t count) {
      basis_loops<T, S>().restore(direction + offset, first + offset, unit, count);
    });
  } else {
    write_zeros(direction, team);
  }
}

}  // namespace soae::cpu
