#include "plan.h"

#include <atomic>

#include "choices.h"

namespace soae::cuda {

namespace {

std::atomic<int> forced_variant{-1}, forced_blocks{0};

// What was measured to be the fastest, if it can be run.
bool look_up(const Solve& p, int64_t row_chunks, int largest, Plan& plan) {
  const int here = architecture(p.device);
  for (const Choice& c : kChoices) {
    if (c.architecture != here || c.dtype != p.dtype || p.n > c.most_unknowns || p.batch > c.most_systems) continue;
    plan.variant = c.variant;
    plan.blocks = c.blocks;
    if (plan.split()) return true;
    const int32_t needed = blocks_needed(kVariants[c.variant], row_chunks, largest);
    return needed > 0 && needed <= c.blocks && c.blocks <= std::max(1, largest);
  }
  return false;
}

void estimate(const Solve& p, int64_t row_chunks, int largest, Plan& plan) {
  const StepModel model(p, row_chunks, multiprocessors(p.device));
  plan.variant = kSplit;
  plan.blocks = 1;
  double best = model.split();
  const auto consider = [&](int variant, int32_t blocks) {
    const double time = model.by_blocks(kVariants[variant], blocks);
    if (!(time < best)) return;
    best = time;
    plan.variant = variant;
    plan.blocks = blocks;
  };
  bool block_found = false;  // of the block variants, the smallest that holds the vector
  for (int variant = 0; variant < kVariantCount; ++variant) {
    const int32_t needed = blocks_needed(kVariants[variant], row_chunks, largest);
    if (needed == 0 || (needed == 1 && block_found)) continue;
    if (needed == 1) {
      block_found = true;
      consider(variant, 1);
      continue;
    }
    for (int32_t blocks = needed; blocks <= largest; blocks *= 2) consider(variant, blocks);
  }
}

}  // namespace

void force_variant(int variant, int blocks) {
  forced_variant = variant;
  forced_blocks = blocks;
}

void describe_plan(const Solve& p, int& variant, int& blocks) {
  const Plan plan = make_plan(p);
  variant = plan.variant;
  blocks = plan.split() ? plan.pieces : plan.blocks;
}

Plan choose_plan(const Solve& p, int64_t row_chunks) {
  const int largest = largest_cluster(p.device);
  Plan plan{};
  plan.blocks = 1;
  if (forced_variant >= 0) {
    plan.variant = forced_variant;
    if (plan.split()) return plan;
    const Variant& variant = kVariants[plan.variant];
    plan.blocks = blocks_needed(variant, row_chunks, largest);
    if (plan.blocks == 0) throw std::runtime_error("soae_ext: the forced kernel does not hold such vectors");
    if (variant.clusters) plan.blocks = std::max<int32_t>(plan.blocks, forced_blocks);
    return plan;
  }
  if (!look_up(p, row_chunks, largest, plan)) estimate(p, row_chunks, largest, plan);
  return plan;
}

}  // namespace soae::cuda
