// The launchers of gmres.h for the CPU: choose the types, share the systems out, count who is left.
#include "gmres.h"

#include "cpu/cycle.h"
#include "cpu/parallel.h"
#include "cpu/step.h"
#include "dispatch.h"

namespace soae::cpu {

namespace {

int32_t count_active(const Solve& p) {
  int32_t count = 0;
  for (int64_t system = 0; system < p.batch; ++system) count += p.systems[system].outcome == kActive;
  return count;
}

}  // namespace

int64_t scratch_bytes(const Solve& p) {
  const Layout layout = make_layout(p);
  return layout.teams * layout.team_bytes;
}

void begin(const Solve& p, const void* ax, void*) {
  dispatch(p.dtype, p.basis_dtype, [&](auto type, auto stored) {
    using T = decltype(type);
    using S = decltype(stored);
    for_each_system(p, 6 * p.n, [&](int64_t system, Team& team) {
      begin_system<T, S>(p, system, static_cast<const T*>(ax), team);
    });
  });
  p.active[0] = count_active(p);
}

void step(const Solve& p, int32_t j, const void* w, void*) {
  dispatch(p.dtype, p.basis_dtype, [&](auto type, auto stored) {
    using T = decltype(type);
    using S = decltype(stored);
    for_each_system(p, (j + 4) * p.n, [&](int64_t system, Team& team) {
      step_system<T, S>(p, system, j, static_cast<const T*>(w), team);
    });
  });
  p.active[j + 1] = count_active(p);
}

void finish(const Solve& p, bool preconditioned, void*) {
  dispatch(p.dtype, update_dtype(p), [&](auto type, auto stored) {
    using T = decltype(type);
    using U = decltype(stored);
    for_each_system(p, (p.restart + 4) * p.n, [&](int64_t system, Team& team) {
      finish_system<T, U>(p, system, preconditioned, team);
    });
  });
}

void correct(const Solve& p, const void* z, void*) {
  dispatch(p.dtype, p.dtype, [&](auto type, auto) {
    using T = decltype(type);
    for_each_system(p, 4 * p.n, [&](int64_t system, Team& team) {
      correct_system(p, system, static_cast<const T*>(z), team);
    });
  });
}

void close(const Solve& p, const void* ax, bool stop, void*) {
  dispatch(p.dtype, p.basis_dtype, [&](auto type, auto stored) {
    using T = decltype(type);
    using S = decltype(stored);
    for_each_system(p, 6 * p.n, [&](int64_t system, Team& team) {
      close_system_with<T, S>(p, system, static_cast<const T*>(ax), stop, team);
    });
  });
  p.active[0] = count_active(p);
}

}  // namespace soae::cpu
