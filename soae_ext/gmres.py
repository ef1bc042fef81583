"""Batched, matrix-free, restarted GMRES.

`gmres(A, b)` solves B independent systems A_i x_i = b_i at once, for an operator A that is applied to the whole batch.
Each system has its own Krylov space, tolerance, verdict and iteration count, and no system changes another's result.

The method is that of Saad & Schultz (SIAM J. Sci. Stat. Comput. 7, 1986), right-preconditioned, so that the residual it
minimises is that of the system itself. Convergence is only ever reported after the true residual b − A x was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from soae_ext._native import NativeEngine, choose, with_native_products
from soae_ext._solver.arguments import prepare
from soae_ext._solver.driver import Callback, Engine, Problem, run
from soae_ext._solver.operators import Operator
from soae_ext._solver.workspace import Workspace
from soae_ext.reference import ReferenceEngine

__all__ = ["GMRESResult", "Status", "Workspace", "gmres", "minres"]


class Status(IntEnum):
    """The verdict on one system."""

    CONVERGED = 0
    """Its true residual meets the tolerance."""
    MAX_ITERS = 1
    """It spent its iterations."""
    STAGNATED = 2
    """The estimate claimed convergence, the true residual did not, and the next cycle cut it by less than 2×; or two
    full cycles each cut it by less than 0.1 %."""
    BREAKDOWN = 3
    """A is singular on the Krylov space: x is the least-squares solution over the space that was built."""
    NON_FINITE = 4
    """b, x0 or the operator's output held a NaN or an infinity."""
    STOPPED = 5
    """The callback stopped the solve."""


@dataclass(frozen=True, eq=False, repr=False)
class GMRESResult:
    """What a solve returns. B systems; nothing here aliases the inputs or the workspace."""

    x: Tensor
    """Shape and dtype of b: of the start and all cycle ends, the one with the least true residual."""
    status: Tensor
    """`(B,)` int8, values of `Status`."""
    converged: Tensor
    """`(B,)` bool, `status == Status.CONVERGED`."""
    iterations: Tensor
    """`(B,)` int32, inner iterations that each system spent."""
    residual_norm: Tensor
    """`(B,)` in b's real dtype: ‖b_i − A x_i‖₂, measured, not estimated."""
    residual_history: Tensor | None
    """`(B, K+1)` in b's real dtype or `None`: absolute norms, column 0 the initial residual, column k the estimate
    after that system's k-th inner iteration, NaN after it stopped."""
    operator_calls: int
    """Calls of A on the batch, surplus ones included."""

    def __repr__(self) -> str:
        batch, done = self.converged.shape[0], int(self.converged.sum())
        most = int(self.iterations.max()) if batch else 0
        worst = float(self.residual_norm.max()) if batch else 0.0
        return (
            f"GMRESResult({done}/{batch} converged, at most {most} iterations, {self.operator_calls} operator calls, "
            f"largest residual {worst:.3g})"
        )

    def raise_for_status(self) -> GMRESResult:
        """Returns itself when every system converged, else raises `RuntimeError` naming how many failed and how."""
        if bool(self.converged.all()):
            return self
        counts = torch.bincount(self.status.to(torch.int64), minlength=len(Status)).tolist()
        failures = ", ".join(f"{counts[s]} {s.name}" for s in Status if s is not Status.CONVERGED and counts[s])
        first, total = int((~self.converged).nonzero()[0]), self.status.shape[0]
        raise RuntimeError(
            f"gmres: {total - counts[0]} of {total} systems did not converge ({failures}); "
            f"system {first} has residual norm {float(self.residual_norm[first]):.3g}"
        )


def gmres(
    A: Operator | Tensor,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    M: Operator | Tensor | None = None,
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 0.0,
    restart: int = 20,
    max_iters: int | None = None,
    flexible: bool = False,
    orthogonalization: str = "auto",
    basis_dtype: torch.dtype | None = None,
    history: bool = False,
    callback: Callback | None = None,
    workspace: Workspace | None = None,
    compact: bool = False,
    backend: str = "auto",
) -> GMRESResult:
    """Solve A_i x_i = b_i for a batch of B systems by restarted GMRES.

    Args:
        A: a callable `v -> A v` on the whole batch (it gets a contiguous scratch tensor of b's shape, which it may
            overwrite, and returns one of that shape, which is never written to nor kept), or a tensor: `(n, n)` shared
            by the batch or `(B, n, n)`, dense or sparse (COO, CSR). Called in the caller's grad mode.
        b: `(B, *shape)` float32 or float64, any strides, CPU or CUDA: B right-hand sides of n = prod(shape) unknowns.
        x0: like b, never written to; `None` is zero and saves one call of A.
        M: right preconditioner M ≈ A⁻¹, given like A.
        rtol, atol: float or `(B,)` tensor. System i is done when ‖b_i − A x_i‖ ≤ max(rtol·‖b_i‖, atol).
        restart: Krylov dimension of one cycle, clamped to n.
        max_iters: inner iterations that each system may spend; `None` is 10·restart; 0 only measures the residual.
        flexible: M may change from call to call (FGMRES); keeps restart more vectors per system.
        orthogonalization: `"mgs"`, one sweep of (panel-wise) modified Gram–Schmidt; `"cgs2"`, every vector is
            orthogonalised twice; `"auto"` is `"mgs"`.
        basis_dtype: storage type of the Krylov basis: `None` (b's own), `torch.float16` (times a power of two near √n),
            `torch.bfloat16`, or `torch.float32` for a float64 b. Arithmetic stays in b's dtype and A receives the
            stored vectors. A cycle ends where the storage has no more to give, a reduction of the residual by 2⁻¹⁰,
            2⁻⁷ or 2⁻²³, or less for an ill-conditioned A, and the next one continues from the true residual: less
            memory and traffic for more iterations, and the same tolerances as long as a cycle gains anything. No
            estimate claims convergence here, so `STAGNATED` means two idle cycles; `BREAKDOWN`, a space that was
            exhausted without any gain. With `flexible=True` the vectors M(v) are kept in b's dtype.
        history: keep every system's residual estimate after each of its inner iterations.
        callback: called after every sweep (one inner iteration of the batch) with `iteration` (sweeps so far),
            `residual_norm` `(B,)` and `active` `(B,)`, by name where it has parameters of these names, else in this
            order. Returning `True` stops the solve; x includes the steps done.
        workspace: scratch memory to reuse between solves.
        compact: drop finished systems from A's batch where A offers `A.restrict(index)`.
        backend: `"cuda"`, `"cpu"`, `"reference"` (pure PyTorch) or `"auto"`, the compiled one for b's device.

    Returns:
        `GMRESResult`. It never raises for a system that did not converge: see `status` and `raise_for_status()`.

    Raises:
        TypeError, ValueError: an argument is unusable; the message names it and the remedy. Nothing was done.
        RuntimeError: the backend is missing or does not fit b, or the workspace is in use.
        NotImplementedError: complex b, or gradients through the solve.
    """
    options: dict[str, Any] = {
        "M": M, "rtol": rtol, "atol": atol, "restart": restart, "max_iters": max_iters, "flexible": flexible,
        "orthogonalization": orthogonalization, "basis_dtype": basis_dtype, "history": history, "callback": callback,
        "compact": compact,
    }  # fmt: skip
    if torch.compiler.is_compiling():  # not traced into: the loop calls user code and branches on residuals
        disable: Callable[..., Callable[..., GMRESResult]] = torch.compiler.disable
        return disable(gmres)(A, b, x0, **options, workspace=workspace, backend=backend)
    scratch = Workspace() if workspace is None else workspace
    problem = prepare(A, b, x0, **options, workspace=scratch)
    chosen = choose(backend, b.device)
    if b.numel() == 0:
        return _empty(problem)
    with scratch.exclusive():
        problem = with_native_products(problem, chosen)
        engine: Engine = ReferenceEngine(problem) if chosen == "reference" else NativeEngine(problem, chosen)
        calls, table = run(problem, engine)
        return GMRESResult(
            x=engine.x,
            status=engine.status.to(torch.int8, copy=True),
            converged=engine.status == Status.CONVERGED,
            iterations=engine.iterations.to(torch.int32, copy=True),
            residual_norm=engine.residual.to(b.dtype, copy=True),
            residual_history=table,
            operator_calls=calls,
        )


def _empty(problem: Problem) -> GMRESResult:
    """No system, or systems without unknowns: solved."""
    b = problem.b
    zeros = torch.zeros(b.shape[0], dtype=b.dtype, device=b.device)
    return GMRESResult(
        x=torch.zeros_like(b, memory_format=torch.contiguous_format),
        status=zeros.to(torch.int8),
        converged=torch.ones_like(zeros, dtype=torch.bool),
        iterations=zeros.to(torch.int32),
        residual_norm=zeros,
        residual_history=zeros[:, None].clone() if problem.history else None,
        operator_calls=0,
    )


def minres(
    A: Operator | Tensor,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    shift: float | Tensor = 0.0,
    M: Operator | Tensor | None = None,
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 0.0,
    max_iters: int | None = None,
    history: bool = False,
    callback: Callable[..., Any] | None = None,
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> GMRESResult:
    """Symmetric systems (A − shift·I) x = b by short recurrences. Not available yet: raises `NotImplementedError`."""
    raise NotImplementedError("soae_ext.gmres.minres is not implemented: use gmres, which takes symmetric A as it is")
