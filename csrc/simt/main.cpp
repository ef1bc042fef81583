// Whole solves with every variant of the kernels, in one executable: built with AddressSanitizer and UBSan it shows
// what the module cannot, an access beyond an array or beyond the shared memory that a kernel asked for. Every array is
// an allocation of its own and of the exact size. Exits non-zero on a finding. With the argument "out-of-bounds" it
// makes one, to show that it would be found.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "../cuda/plan.h"
#include "../gmres.h"
#include "simt.h"

namespace {

using soae::Solve;
using soae::System;

// n values whose bytes are all 0xFF: NaN, or -1.
template <typename T>
std::vector<T> poisoned(std::int64_t n) {
  std::vector<T> v(static_cast<std::size_t>(n));
  if (n > 0) std::memset(v.data(), 0xff, sizeof(T) * v.size());
  return v;
}

// The last system of a batch: b, and what the operator does to it.
enum class Odd { kNone, kZero, kNanColumn, kLowRank };

template <typename T>
struct Case {
  std::int64_t batch, n, restart;
  soae::Orthogonalization orthogonalization;
  bool with_x0, preconditioned;
  Odd odd;
  bool arnoldi;  // a decomposition instead of a solve

  // diagonal plus shift; nothing but the first two elements where the rank is low
  void apply(const std::vector<T>& v, std::vector<T>& w, std::int64_t call) const {
    for (std::int64_t s = 0; s < batch; ++s) {
      const bool last = s == batch - 1;
      for (std::int64_t i = 0; i < n; ++i) {
        const std::size_t at = static_cast<std::size_t>(s * n + i);
        const std::size_t before = static_cast<std::size_t>(s * n + (i + n - 1) % n);
        w[at] = (T(2) + T(i % 7) / T(8)) * v[at] + T(0.25) * v[before];
        if (last && odd == Odd::kLowRank) w[at] = i < 2 ? T(i + 1) * v[at] : T(0);
        if (last && odd == Odd::kNanColumn && call == 2) w[at] = std::numeric_limits<T>::quiet_NaN();
      }
    }
  }

  // Returns what is wrong, or null.
  const char* check_decomposition(const std::vector<System>& systems, const std::vector<double>& hessenberg) const {
    for (std::int64_t s = 0; s < batch; ++s) {
      const System& system = systems[static_cast<std::size_t>(s)];
      const bool last = s == batch - 1;
      std::int64_t expected = restart;
      if (last && odd == Odd::kZero) expected = 0;
      if (last && odd == Odd::kNanColumn) expected = 2;
      if (system.length != expected) return "a decomposition has another number of columns";
      for (std::int64_t j = 0; j < restart; ++j) {
        const double below = hessenberg[static_cast<std::size_t>((s * (restart + 1) + j + 1) * restart + j)];
        const bool written = j < expected && !(system.outcome == soae::kBroken && j + 1 == expected);
        if ((below > 0.0) != written) return "a subdiagonal of H is wrong";
      }
    }
    return nullptr;
  }

  // Returns what is wrong, or null.
  const char* run() const {
    const std::int64_t granule = 128 / static_cast<std::int64_t>(sizeof(T));
    Solve p{};
    p.batch = batch;
    p.n = n;
    p.ld = (n + granule - 1) / granule * granule;
    p.restart = restart;
    p.max_iters = 40;
    p.dtype = sizeof(T) == 4 ? soae::kFloat32 : soae::kFloat64;
    p.basis_dtype = p.dtype;
    p.orthogonalization = orthogonalization;

    std::vector<T> b(static_cast<std::size_t>(batch * n)), x(b.size(), with_x0 ? T(0.125) : T(0)), w(b.size());
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = T(1) + T(i % 11) / T(16);
    if (odd == Odd::kZero) std::fill(b.end() - n, b.end(), T(0));
    std::vector<T> candidate = poisoned<T>(batch * n), direction = poisoned<T>(batch * n);
    std::vector<T> basis = poisoned<T>(batch * (restart + 1) * p.ld);
    std::vector<double> r = poisoned<double>(batch * restart * (restart + 1) / 2);
    std::vector<double> rotations = poisoned<double>(batch * restart * 2), inverse = poisoned<double>(batch * restart);
    std::vector<double> g = poisoned<double>(batch * (restart + 1)), estimates = poisoned<double>(batch * restart);
    std::vector<double> hessenberg(arnoldi ? static_cast<std::size_t>(batch * (restart + 1) * restart) : 0, 0.0);
    const std::vector<double> rtol(static_cast<std::size_t>(batch), 1e-2), atol(rtol.size(), 0.0);
    std::vector<System> systems = poisoned<System>(batch);
    std::vector<std::int32_t> active(static_cast<std::size_t>(restart + 1), 0);
    p.b = b.data();
    p.x = x.data();
    p.candidate = candidate.data();
    p.direction = direction.data();
    p.basis = basis.data();
    p.update = basis.data();
    p.update_rows = restart + 1;
    p.update_ld = p.ld;
    p.r = r.data();
    p.rotations = rotations.data();
    p.inverse = inverse.data();
    p.g = g.data();
    p.estimates = estimates.data();
    p.hessenberg = arnoldi ? hessenberg.data() : nullptr;
    p.rtol = rtol.data();
    p.atol = atol.data();
    p.systems = systems.data();
    p.active = active.data();
    std::vector<unsigned char> scratch = poisoned<unsigned char>(soae::cuda::scratch_bytes(p));
    p.scratch = scratch.data();

    std::int64_t calls = 0;
    if (arnoldi) {
      soae::cuda::begin(p, nullptr, nullptr);
      for (std::int32_t j = 0; j < restart && active[static_cast<std::size_t>(j)] > 0; ++j) {
        apply(direction, w, calls++);
        soae::cuda::step(p, j, w.data(), nullptr);
      }
      return check_decomposition(systems, hessenberg);
    }
    if (with_x0) apply(x, w, -1);
    soae::cuda::begin(p, with_x0 ? w.data() : nullptr, nullptr);
    while (active[0] > 0) {
      for (std::int32_t j = 0; j < restart; ++j) {
        apply(direction, w, calls++);
        soae::cuda::step(p, j, w.data(), nullptr);
        if (active[static_cast<std::size_t>(j) + 1] == 0) break;
      }
      soae::cuda::finish(p, preconditioned, nullptr);
      if (preconditioned) soae::cuda::correct(p, direction.data(), nullptr);
      apply(direction, w, calls++);
      std::fill(active.begin(), active.end(), 0);
      soae::cuda::close(p, w.data(), false, nullptr);
    }

    apply(x, w, -1);
    for (std::int64_t s = 0; s < batch; ++s) {
      const bool last = s == batch - 1;
      const std::int32_t status = systems[static_cast<std::size_t>(s)].status;
      if (last && odd == Odd::kNanColumn && status != soae::kNonFinite) return "a NaN column was not noticed";
      if (last && odd == Odd::kLowRank && status != soae::kBreakdown) return "a breakdown was not noticed";
      if (last && (odd == Odd::kNanColumn || odd == Odd::kLowRank)) continue;
      if (status != soae::kConverged) return "a system did not converge";
      double left = 0.0, whole = 0.0;
      for (std::size_t i = static_cast<std::size_t>(s * n); i < static_cast<std::size_t>((s + 1) * n); ++i) {
        left += std::pow(static_cast<double>(b[i]) - static_cast<double>(w[i]), 2);
        whole += std::pow(static_cast<double>(b[i]), 2);
      }
      if (std::sqrt(left) > 1.1e-2 * std::sqrt(whole)) return "a residual is larger than was said";
    }
    return nullptr;
  }
};

template <typename T>
int run_cases() {
  int failures = 0;
  const char* const dtype = sizeof(T) == 4 ? "float32" : "float64";
  const soae::cuda::VariantTable table = soae::cuda::variant_table(1);
  for (int variant = 0; variant <= table.count; ++variant) {
    const bool split = variant == table.count;
    soae::cuda::force_variant(variant, 0);
    const soae::cuda::Variant& block = table.variants[split ? 0 : variant];
    const int blocks = block.clusters ? 2 : 1;
    const std::int64_t capacity = split ? 2 * soae::cuda::kPieceChunks : blocks * block.threads * block.chunks;
    const std::int64_t full = capacity * 16 / static_cast<std::int64_t>(sizeof(T));
    for (const std::int64_t n : {std::int64_t(1), std::int64_t(7), full - 3, full}) {
      for (const bool twice : {false, true}) {
        const bool usual = n > 7;
        const Odd odd = !usual ? Odd::kZero : n == full ? Odd::kLowRank : Odd::kNanColumn;
        const std::int64_t restart = std::min<std::int64_t>(n, 3);
        for (const bool arnoldi : {false, true}) {
          if (arnoldi && !twice) continue;
          const Case<T> c{2, n, restart, twice ? soae::kCgs2 : soae::kMgs, twice, !twice, odd, arnoldi};
          soae::simt::set_schedule(twice ? "shuffled" : "reversed", 7);
          const char* const wrong = c.run();
          if (wrong == nullptr) continue;
          std::printf("%s, variant %d, n = %lld, %s%s: %s\n", dtype, variant, static_cast<long long>(n),
                      twice ? "cgs2" : "mgs", arnoldi ? ", decomposition" : "", wrong);
          ++failures;
        }
      }
    }
  }
  return failures;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    std::printf("%d wrong\n", soae::simt::self_test(argv[1]));
    return 0;
  }
  const int failures = run_cases<float>() + run_cases<double>();
  std::printf(failures == 0 ? "all solves are right\n" : "%d solves are wrong\n", failures);
  return failures == 0 ? 0 : 1;
}
