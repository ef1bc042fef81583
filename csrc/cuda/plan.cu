#include "plan.h"

#include <atomic>

#include "choices.h"
#include "steps.h"

namespace soae::cuda {

namespace {

constexpr int kFirstWithCopies = 80;

std::atomic<int> forced_variant{-1}, forced_blocks{0};

struct Problem {
  const Solve& solve;
  VariantTable table;
  std::size_t row_bytes;
  int largest;  // cluster

  int64_t row_chunks() const { return static_cast<int64_t>(row_bytes / 16); }
  int32_t blocks_needed(int variant) const {
    return cuda::blocks_needed(table.variants[variant], row_chunks(), largest);
  }
  // Whether the GPU has what a ring takes.
  bool runs(int variant, int32_t blocks) const {
    if (!table.variants[variant].ring) return true;
    if (architecture(solve.device) < kFirstWithCopies) return false;
    return block_step_shared(solve, variant, blocks) <= static_cast<std::size_t>(most_shared_bytes(solve.device));
  }
};

// What was measured to be the fastest, if it can be run.
bool look_up(const Problem& q, Plan& plan) {
  const Solve& p = q.solve;
  const int here = architecture(p.device);
  for (const Choice& c : kChoices) {
    if (c.architecture != here || c.dtype != p.dtype || c.basis_dtype != p.basis_dtype) continue;
    if (p.n > c.most_unknowns || p.batch > c.most_systems) continue;
    plan.variant = c.variant;
    plan.blocks = c.blocks;
    if (c.variant >= q.table.count) return true;
    const int32_t needed = q.blocks_needed(c.variant);
    return needed > 0 && needed <= c.blocks && c.blocks <= std::max(1, q.largest) && q.runs(c.variant, c.blocks);
  }
  return false;
}

// By the model, which knows nothing of rings: that they win is for measurements to say.
void estimate(const Problem& q, Plan& plan) {
  const StepModel model(q.solve, q.row_bytes, multiprocessors(q.solve.device));
  plan.variant = q.table.count;
  plan.blocks = 1;
  double best = model.split();
  const auto consider = [&](int variant, int32_t blocks) {
    const double time = model.by_blocks(q.table.variants[variant], blocks);
    if (!(time < best)) return;
    best = time;
    plan.variant = variant;
    plan.blocks = blocks;
  };
  bool block_found = false;  // of the block variants, the smallest that holds the vector
  for (int variant = 0; variant < q.table.count; ++variant) {
    const int32_t needed = q.blocks_needed(variant);
    if (needed == 0 || (needed == 1 && block_found) || q.table.variants[variant].ring) continue;
    if (needed == 1) {
      block_found = true;
      consider(variant, 1);
      continue;
    }
    for (int32_t blocks = needed; blocks <= q.largest; blocks *= 2) consider(variant, blocks);
  }
}

void force(const Problem& q, Plan& plan) {
  plan.variant = std::min<int>(forced_variant, q.table.count);
  if (plan.variant == q.table.count) return;
  plan.blocks = q.blocks_needed(plan.variant);
  if (plan.blocks == 0) throw std::runtime_error("soae_ext: the forced kernel does not hold such vectors");
  if (q.table.variants[plan.variant].clusters) plan.blocks = std::max<int32_t>(plan.blocks, forced_blocks);
  if (!q.runs(plan.variant, plan.blocks)) {
    throw std::runtime_error("soae_ext: the forced kernel does not run on this GPU");
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
  blocks = plan.split ? plan.pieces : plan.blocks;
}

Plan make_plan(const Solve& p) {
  const Problem q{p, variant_table(bytes_of(p.dtype) / bytes_of(p.basis_dtype)),
                  static_cast<std::size_t>(p.ld) * bytes_of(p.basis_dtype), largest_cluster(p.device)};
  Plan plan{};
  plan.blocks = 1;
  plan.pieces = count_pieces(q.row_bytes);
  if (forced_variant >= 0) {
    force(q, plan);
  } else if (!look_up(q, plan)) {
    estimate(q, plan);
  }
  plan.split = plan.variant >= q.table.count;
  return plan;
}

}  // namespace soae::cuda
