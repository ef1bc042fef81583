// The contract between Python and the kernels: one struct that describes a solve, and the launchers that advance it.
//
// Python owns every array, and fills `Solve` once. Per cycle it then calls
//     step 0, step 1, ...  (after each operator call)   until no system is active,
//     finish               (back substitution, candidate = x + V y),
//     [correct]            (candidate = x + z where a preconditioner maps V y to z),
//     close                (true residual of the candidate, verdicts, first basis vector of the next cycle),
// with `begin` (initial residual, tolerances, verdicts, first basis vector) before the first cycle.
// With `hessenberg` set the same steps make an Arnoldi decomposition A V = V H instead: nothing is solved, a system
// ends by breakdown or a bad column alone, and finish, correct and close are not called.
// The launchers never allocate, never synchronise and touch no stream but the one they are given.
//
// Shapes below are row-major. B = batch, n = unknowns, m = restart; ld = n rounded up to a multiple of 128 bytes of what
// the rows are stored in.
//
// The basis may be stored in less than the working precision, times 2^basis_exponent. Arithmetic stays in the working
// precision, and what was stored, converted back, is the basis vector: the operator receives it, others are
// orthogonalised against it, and x is made of it. Rounding then enters A V = V H only as the error of each new column.
#pragma once

#include <cstdint>

namespace soae {

enum Dtype : int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 3 };

// kMgs: one sweep over the basis, panel by panel (classical inside a panel, modified between panels), or its equal in
// split-n kernels. kCgs2: every vector is orthogonalised twice.
enum Orthogonalization : int32_t { kMgs = 0, kCgs2 = 1 };

// Verdict on one system; the values of soae_ext.gmres.Status, and kRunning before there is one.
enum Status : int32_t {
  kRunning = -1,
  kConverged = 0,
  kMaxIters = 1,
  kStagnated = 2,
  kBreakdown = 3,
  kNonFinite = 4,
  kStopped = 5,
};

// Where one system stands in the current cycle. Only kActive systems take a step.
enum Outcome : int32_t {
  kActive = 0,     // still iterating
  kClaimed = 1,    // the residual estimate met the tolerance
  kExhausted = 2,  // spent its iterations
  kBroken = 3,     // breakdown, happy or not
  kBadColumn = 4,  // the operator returned something non-finite
  kFrozen = 5,     // has its verdict already
  kSaturated = 6,  // the cycle is over, a new one may help: R became numerically singular without a breakdown, or the
                   // estimate fell below what a basis in reduced precision can vouch for
};

// One record per system, 72 bytes; Python reads it through strided views (binding.cpp exports the offsets).
struct System {
  double tolerance;   // converged when the true residual norm is <= tolerance
  double residual;    // true residual norm of x
  double beta;        // norm of the cycle's first residual times 2^-scale
  double max_av;      // max ||A v_i|| of this cycle, a lower bound of R's largest singular value
  double max_pivot;   // max |R_ii| of this cycle
  int32_t scale;      // the cycle works on residuals times 2^-scale, so that no square over- or underflows
  int32_t status;     // Status
  int32_t outcome;    // Outcome
  int32_t length;     // columns of this cycle that enter the update
  int32_t iterations; // inner iterations spent, all cycles
  int32_t claimed;    // the previous cycle ended with a claim that its true residual refuted
  int32_t slow;       // consecutive full cycles that cut the residual by less than 0.1 %
  int32_t reserved;
};
static_assert(sizeof(System) == 72, "Python's view of System depends on its size");

constexpr int kBasisChunks = 128;

struct Solve {
  int64_t batch;
  int64_t n;
  int64_t ld;         // of the basis, in elements
  int64_t restart;
  int64_t max_iters;
  int32_t dtype;              // Dtype of all vectors, kFloat32 or kFloat64
  int32_t orthogonalization;  // Orthogonalization
  int32_t device;             // CUDA device index, ignored on the CPU
  int32_t threads;            // CPU threads, ignored on CUDA
  int32_t basis_dtype;        // Dtype: dtype, or kFloat16, kBfloat16, or kFloat32 under kFloat64
  int32_t basis_exponent;     // the basis holds v 2^basis_exponent, and so does update where it is the basis

  const void* b;        // (B, n)
  void* x;              // (B, n) best iterate so far
  void* candidate;      // (B, n) iterate at the end of the cycle
  void* direction;      // (B, n) what the operator receives next; zero rows for systems that are not active
  void* basis;          // (B, m+1, ld) V; entries n..ld-1 of a written row are zero; unless it is in chunks
  int32_t chunk_shift;  // CUDA: 0, or V is in chunks of 2^chunk_shift >= 8 rows, (B, rows, ld) each, the last one shorter;
                        // a chunk must be there when a step writes to it
  void* chunks[kBasisChunks];  // chunk 0 is `basis`
  const void* update;   // (B, update_rows, update_ld) what y multiplies: V, or Z of flexible GMRES, in dtype
  int64_t update_rows;
  int64_t update_ld;

  double* r;            // (B, m(m+1)/2) R by packed columns: column j starts at j(j+1)/2
  double* rotations;    // (B, m, 2) cosine, sine
  double* inverse;      // (B, m) state of the condition estimate of R
  double* g;            // (B, m+1) rotated right-hand side, times 2^-scale
  double* estimates;    // (B, m) residual estimate after each step of the cycle, absolute; only written by steps taken
  double* hessenberg;   // (B, m+1, m) H, or null for GMRES; zeroed by Python, step j writes column j
  const double* rtol;   // (B)
  const double* atol;   // (B)
  System* systems;      // (B)
  int32_t* active;      // (m+1) zeroed by Python before begin and close; [0] = systems running after begin/close,
                        // [j+1] = systems active after step j
  void* scratch;        // scratch_bytes(...), 256-byte aligned; content carries over between the launches of a cycle
};

#define SOAE_DECLARE_LAUNCHERS                                                                                    \
  int64_t scratch_bytes(const Solve& solve);                                                                      \
  /* ax: A x0 (B, n), or null when x0 is zero; x holds x0 */                                                      \
  void begin(const Solve& solve, const void* ax, void* stream);                                                   \
  /* w: A z_j (B, n), read only; may be the same memory as `direction`. CUDA: j = -1 is each system's own next */ \
  void step(const Solve& solve, int32_t j, const void* w, void* stream);                                          \
  /* candidate = direction = x + V y; preconditioned: direction = V y alone, candidate untouched */               \
  void finish(const Solve& solve, bool preconditioned, void* stream);                                             \
  /* candidate = direction = x + z, z (B, n) read only, may be the same memory as `direction` */                  \
  void correct(const Solve& solve, const void* z, void* stream);                                                  \
  /* ax: A candidate (B, n), may be the same memory as `direction`; stop: systems left become kStopped */         \
  void close(const Solve& solve, const void* ax, bool stop, void* stream);

namespace cpu {
SOAE_DECLARE_LAUNCHERS
}
namespace cuda {
SOAE_DECLARE_LAUNCHERS
}

#undef SOAE_DECLARE_LAUNCHERS

}  // namespace soae
