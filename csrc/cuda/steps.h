// One Arnoldi step by either family of kernels. Each has a translation unit of its own, to compile side by side.
#pragma once

#include "../gmres.h"
#include "plan.h"

namespace soae::cuda {

void launch_block_step(const Solve& p, const Plan& plan, int32_t j, const void* w, void* stream);
// Shared memory of a block of that kernel, with columns of the longest cycle.
std::size_t block_step_shared(const Solve& p, int variant, int32_t blocks);
void launch_split_step(const Solve& p, const Plan& plan, int32_t j, const void* w, void* stream);

}  // namespace soae::cuda
