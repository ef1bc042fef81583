// Which kernels were the fastest on which GPU: written by bench/choose_variants.py from the measurements in
// bench/results, the first row that fits counts. There is none yet: the model in plan.h decides.
#pragma once

#include <array>

#include "plan.h"

namespace soae::cuda {

constexpr std::array<Choice, 0> kChoices{};

}  // namespace soae::cuda
