#include "cpu/vector.h"

namespace soae::cpu {

namespace {

enum class Level { kBaseline, kV3, kV4 };

Level detect() {
#if defined(SOAE_X86_64_LEVELS)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? Level::kV4 : v3 ? Level::kV3 : Level::kBaseline;
#else
  return Level::kBaseline;
#endif
}

const Level level = detect();

}  // namespace

const LoopSet& loop_set() {
#if defined(SOAE_X86_64_LEVELS)
  if (level == Level::kV4) return x86_64_v4::kLoops;
  if (level == Level::kV3) return x86_64_v3::kLoops;
#endif
  return baseline::kLoops;
}

}  // namespace soae::cpu
