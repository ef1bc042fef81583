// The small per-system arithmetic of GMRES and the verdicts, shared by every backend: Givens rotations, the breakdown
// rule, back substitution, and what a true residual means. One thread per system runs these, all in float64.
#pragma once

#include <cmath>
#include <cstdint>

#include "gmres.h"

#if defined(__CUDACC__)
#define SOAE_HD __host__ __device__ inline
#else
#define SOAE_HD inline
#endif

namespace soae {

SOAE_HD double working_eps(int32_t dtype) { return dtype == kFloat32 ? 1.1920928955078125e-07 : 2.220446049250313e-16; }

// Breakdown and singular pivots: relative to the largest seen, never absolute.
SOAE_HD double negligible(int32_t dtype) { return 16.0 * working_eps(dtype); }

// Whether what y multiplies is the basis, and not Z of flexible GMRES.
SOAE_HD bool updates_from_basis(const Solve& p) { return p.update == p.basis; }
SOAE_HD int32_t update_dtype(const Solve& p) { return updates_from_basis(p) ? p.basis_dtype : p.dtype; }

// Twice the unit roundoff of a basis in reduced precision: relative to the residual that a cycle starts from, no
// estimate below this means anything. 0 for a basis in the working precision.
SOAE_HD double storage_eps(const Solve& p) {
  if (p.basis_dtype == p.dtype) return 0.0;
  return p.basis_dtype == kFloat16 ? 0x1p-10 : p.basis_dtype == kBfloat16 ? 0x1p-7 : 0x1p-23;
}

// One sweep over the basis leaves errors of about eps ||w|| in every direction of it. Where the vector that is left is
// smaller than this times ||w||, they would no longer be small beside it, and the sweep is repeated.
constexpr double kCancellation = 1.0 / 128.0;

SOAE_HD bool is_finite(double a) { return a - a == 0.0; }

// Exponent e such that max_abs * 2^-e is near 1. Kept in a range where 2^-e is a normal number of the working
// precision: what remains of the range after that is harmless when squared.
SOAE_HD int32_t scale_exponent(double max_abs, int32_t dtype) {
  if (!(max_abs > 0.0)) return 0;
  int e = 0;
  frexp(max_abs, &e);
  const int limit = dtype == kFloat32 ? 120 : 1000;
  return e < -limit ? -limit : e > limit ? limit : e;
}

SOAE_HD int64_t packed_column(int64_t j) { return j * (j + 1) / 2; }

// c, s, r with [c s; -s c] [a; b] = [r; 0] and r >= 0. a = b = 0 gives the identity.
SOAE_HD void make_rotation(double a, double b, double& c, double& s, double& r) {
  r = hypot(a, b);
  c = r > 0.0 ? a / r : 1.0;
  s = r > 0.0 ? b / r : 0.0;
}

// The smallest singular value of R, estimated from one column to the next (incremental condition estimation: Bischof,
// SIAM J. Matrix Anal. Appl. 11, 1990). x: k entries with R' x = d, |d| = 1 and |x| as large as could be had, k+1 after
// the call. column: R's new column above the diagonal; pivot > 0: on it.
SOAE_HD double smallest_singular_value(double* x, int32_t k, const double* column, double pivot) {
  double alpha = 0.0, squares = 0.0;
  for (int32_t i = 0; i < k; ++i) {
    alpha += column[i] * x[i];
    squares += (pivot * x[i]) * (pivot * x[i]);
  }
  // The new x is (s x, (c - s alpha) / pivot) with s^2 + c^2 = 1: the longest, by a 2 x 2 eigenproblem.
  const double p = squares + alpha * alpha;
  const double half = 0.5 * (p - 1.0), root = hypot(half, alpha);
  double s = p >= 1.0 ? half + root : -alpha;
  double c = p >= 1.0 ? -alpha : root - half;
  const double norm = hypot(s, c);
  s = norm > 0.0 ? s / norm : 0.0;
  c = norm > 0.0 ? c / norm : 1.0;
  for (int32_t i = 0; i < k; ++i) x[i] *= s;
  x[k] = (c - s * alpha) / pivot;
  return pivot / sqrt(0.5 * (p + 1.0) + root);
}

// Ends step j of one system of an Arnoldi decomposition: stores the column of H, and decides whether a next vector is
// left. n orthogonal vectors leave none, whatever their rounding errors look like. After a breakdown h_{j+1,j} is zero:
// the space is invariant, and there is no vector that it could multiply.
SOAE_HD void record_column(const Solve& p, int64_t system, int32_t j, const double* column, double next, double av) {
  System& s = p.systems[system];
  if (!is_finite(av)) {  // the norm of finite numbers, beyond the range of float64
    s.outcome = kBadColumn;
    return;
  }
  double* h = p.hessenberg + system * (p.restart + 1) * p.restart + j;
  s.max_av = fmax(s.max_av, av);
  const bool breakdown = next <= negligible(p.dtype) * s.max_av || j + 1 >= p.n;
  for (int32_t i = 0; i <= j; ++i) h[i * p.restart] = column[i];
  h[(j + 1) * p.restart] = breakdown ? 0.0 : next;
  s.iterations += 1;
  s.length = j + 1;
  if (breakdown) s.outcome = kBroken;
}

// y (length entries, row-oriented back substitution R y = g).
SOAE_HD void back_substitute(const Solve& p, int64_t system, double* y) {
  const System& s = p.systems[system];
  const double* r = p.r + system * packed_column(p.restart);
  const double* g = p.g + system * (p.restart + 1);
  for (int32_t i = 0; i < s.length; ++i) y[i] = g[i];
  for (int32_t j = s.length - 1; j >= 0; --j) {
    const double* column = r + packed_column(j);
    y[j] /= column[j];
    for (int32_t i = 0; i < j; ++i) y[i] -= column[i] * y[j];
  }
}

// The norm of (h_{i+1,i} y_i): times the unit roundoff of the basis, what rounding its vectors has put between A V y and
// V H y. y: room for `length` entries.
SOAE_HD double rounded_away(const Solve& p, int64_t system, double* y) {
  if (storage_eps(p) == 0.0) return 0.0;
  back_substitute(p, system, y);
  const double* r = p.r + system * packed_column(p.restart);
  const double* rotations = p.rotations + system * p.restart * 2;
  double squares = 0.0;
  for (int32_t i = 0; i < p.systems[system].length; ++i) {
    const double term = rotations[2 * i + 1] * r[packed_column(i) + i] * y[i];
    squares += term * term;
  }
  return sqrt(squares);
}

// A basis of rounded vectors spans another space than the residual's own, and makes the estimate wrong by what was
// rounded away. So neither a small estimate nor an exhausted space is the last word: the cycle ends, and the next one
// continues from the true residual, as iterative refinement does. It also ends where the next vector would consist of
// rounding errors. Only a space that ended without any gain has broken down.
SOAE_HD int32_t distrust(const Solve& p, const System& s, double estimate, double next) {
  const double eps = storage_eps(p);
  if (eps == 0.0) return s.outcome;
  if (s.outcome == kBroken) return estimate > 0.999 * s.beta ? kBroken : kSaturated;
  const bool spent = estimate <= eps * s.beta || next <= eps * s.max_av;
  return s.outcome == kClaimed || (s.outcome == kActive && spent) ? kSaturated : s.outcome;
}

// Ends step j of one system. column: h_{0..j,j}, overwritten; next: h_{j+1,j} = norm of the orthogonalised vector;
// av: ||A v_j||. Stores R's column, the rotation, the new right-hand side and the estimate, and decides the outcome.
SOAE_HD void append_column(const Solve& p, int64_t system, int32_t j, double* column, double next, double av) {
  if (p.hessenberg != nullptr) return record_column(p, system, j, column, next, av);
  System& s = p.systems[system];
  double* rotations = p.rotations + system * p.restart * 2;
  double* g = p.g + system * (p.restart + 1);
  double* r = p.r + system * packed_column(p.restart) + packed_column(j);

  for (int32_t i = 0; i < j; ++i) {
    const double c = rotations[2 * i], sn = rotations[2 * i + 1];
    const double upper = c * column[i] + sn * column[i + 1];
    column[i + 1] = c * column[i + 1] - sn * column[i];
    r[i] = upper;
  }
  double c, sn, pivot;
  make_rotation(column[j], next, c, sn, pivot);

  s.iterations += 1;
  s.max_av = fmax(s.max_av, av);
  const bool breakdown = next <= negligible(p.dtype) * s.max_av;
  const bool singular = pivot <= negligible(p.dtype) * fmax(s.max_pivot, pivot);
  double estimate = fabs(g[j]);
  if (singular ||
      smallest_singular_value(p.inverse + system * p.restart, j, r, pivot) <= negligible(p.dtype) * s.max_av) {
    // y_j = 0: the column is left out and the estimate stays what it was before it.
    s.outcome = breakdown || singular ? kBroken : kSaturated;
  } else {
    r[j] = pivot;
    rotations[2 * j] = c;
    rotations[2 * j + 1] = sn;
    g[j + 1] = -sn * g[j];
    g[j] = c * g[j];
    estimate = fabs(g[j + 1]);
    s.max_pivot = fmax(s.max_pivot, pivot);
    s.length = j + 1;
    if (breakdown) {
      s.outcome = kBroken;
    } else if (ldexp(estimate, s.scale) <= s.tolerance) {
      s.outcome = kClaimed;
    }
  }
  s.outcome = distrust(p, s, estimate, next);
  if (s.outcome == kActive && s.iterations >= p.max_iters) s.outcome = kExhausted;
  const bool last = s.outcome != kActive || j + 1 == p.restart;
  // A cycle that gains nothing leaves x alone: its y would be noise in directions that A maps to nearly nothing.
  if (last && estimate > 0.999 * s.beta) s.length = 0;
  // Nor does a cycle go so far that what was rounded away of its basis outweighs what it gains.
  while (last && storage_eps(p) * rounded_away(p, system, column) > s.beta) s.length -= 1;
  p.estimates[system * p.restart + j] = ldexp(estimate, s.scale);
}

// The operator returned something non-finite: what the cycle has so far is kept.
SOAE_HD void reject_column(const Solve& p, int64_t system) { p.systems[system].outcome = kBadColumn; }

// Makes a system ready for its next cycle, or freezes it. beta, scale: the norm of its residual is beta 2^scale.
SOAE_HD void start_cycle(const Solve& p, int64_t system, double beta, int32_t scale) {
  System& s = p.systems[system];
  s.beta = beta;
  s.scale = scale;
  s.max_av = 0.0;
  s.max_pivot = 0.0;
  s.length = 0;
  s.outcome = s.status == kRunning ? kActive : kFrozen;
  p.g[system * (p.restart + 1)] = beta;
}

// What `begin` measured of one system. Norms are scaled: the norm is value * 2^exponent.
struct Opening {
  double b_norm;
  int32_t b_exponent;
  double r_norm;        // of b - A x0
  int32_t r_exponent;
  bool b_finite;
  bool b_zero;
  bool x_finite;
  bool r_finite;
};

// The first verdict. Returns whether x must be set to zero. The caller fills the rest of the cycle's start.
SOAE_HD bool open_system(const Solve& p, int64_t system, const Opening& o) {
  System& s = p.systems[system];
  s.iterations = 0;
  s.claimed = 0;
  s.slow = 0;
  s.tolerance = fmax(ldexp(p.rtol[system] * o.b_norm, o.b_exponent), p.atol[system]);
  bool zero_x = false;
  if (o.b_zero) {
    s.status = kConverged;
    s.residual = 0.0;
    zero_x = true;
  } else if (!o.b_finite || !o.x_finite || !o.r_finite) {
    s.status = kNonFinite;
    s.residual = NAN;
    zero_x = !o.x_finite;
  } else {
    s.residual = ldexp(o.r_norm, o.r_exponent);
    s.status = s.residual <= s.tolerance ? kConverged : p.max_iters == 0 ? kMaxIters : kRunning;
  }
  start_cycle(p, system, o.r_norm, o.r_exponent);
  return zero_x;
}

// The verdict at the end of a cycle, for a system that was running. norm: true residual norm of the candidate (NaN when
// the operator returned something non-finite). Returns whether the candidate replaces x. The caller then calls
// start_cycle: with the candidate's residual if it was accepted, else with the old beta and scale (and the old V_0).
SOAE_HD bool close_system(const Solve& p, int64_t system, double norm, bool candidate_finite, bool stop) {
  System& s = p.systems[system];
  const double before = s.residual;
  const bool measured = is_finite(norm) && candidate_finite;
  if (s.outcome == kBadColumn) {
    const bool accept = s.length > 0 && candidate_finite && !(norm >= before);
    if (accept) s.residual = norm;
    s.status = s.residual <= s.tolerance ? kConverged : kNonFinite;
    return accept;
  }
  const bool accept = measured && norm < before;
  if (accept) s.residual = norm;
  const bool full = (s.outcome == kActive && !stop) || s.outcome == kSaturated;
  const bool refuted = s.claimed != 0 && !stop && s.outcome != kExhausted;  // a cycle cut short proves nothing
  s.claimed = s.outcome == kClaimed;
  s.slow = full && s.residual > 0.999 * before ? s.slow + 1 : 0;
  if (s.residual <= s.tolerance) {
    s.status = kConverged;
  } else if (!measured) {
    s.status = kNonFinite;
  } else if (s.outcome == kBroken) {
    s.status = kBreakdown;
  } else if ((refuted && s.residual > 0.5 * before) || s.slow >= 2) {
    s.status = kStagnated;
  } else if (s.iterations >= p.max_iters) {
    s.status = kMaxIters;
  } else if (stop) {
    s.status = kStopped;
  }
  return accept;
}

}  // namespace soae
