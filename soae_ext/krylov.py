"""Batched Arnoldi decompositions, and what they answer without another product with A.

`arnoldi(A, v, steps=m)` builds for each of B systems an orthonormal basis v_1, …, v_{m+1} of the Krylov space of A and
v, with A V_m = V_{m+1} H (Arnoldi, Quart. Appl. Math. 9, 1951). For symmetric A the result solves shifted systems
(`Arnoldi.solve`) and trust-region problems (`Arnoldi.trust_region`) in that space, for any number of shifts and radii.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from soae_ext._krylov.arguments import ARNOLDI, finite, prepare
from soae_ext._krylov.process import ArnoldiEngine, build, collect, empty
from soae_ext._krylov.projected import Coefficients, least_squares, trust_region
from soae_ext._krylov.scaling import times_power
from soae_ext._native import NativeEngine, choose, with_native_products
from soae_ext._solver.operators import Operator
from soae_ext._solver.workspace import Workspace
from soae_ext.reference import ReferenceEngine

__all__ = ["Arnoldi", "Workspace", "arnoldi"]


@dataclass(frozen=True, eq=False, repr=False)
class Arnoldi:
    """A V_m = V_{m+1} H for B systems of n unknowns; nothing here aliases the inputs or the workspace.

    A system whose Krylov space is invariant after d < steps columns (a breakdown: h_{d+1,d} ≤ 16·eps·max_{i≤d} ‖A v_i‖,
    eps of v's dtype, or d = n) has dims = d, h_{d+1,d} = 0 exactly, and no v_{d+1}: its row is zero. A system whose
    operator returned something non-finite keeps the columns before, and the last vector that they lead to.
    """

    basis: Tensor
    """`(B, steps+1, n)` in v's dtype: row k is v_{k+1}. Zero beyond row dims, after a breakdown row dims as well."""
    hessenberg: Tensor
    """`(B, steps+1, steps)` float64: column j holds the coefficients of A v_{j+1}. Zero beyond dims columns."""
    dims: Tensor
    """`(B,)` int64: columns that were built; 0 for a v that is zero or not finite."""
    norm: Tensor
    """`(B,)` float64: ‖v‖ = norm · 2^norm_exponent, which may lie beyond the range of the dtype; 0 for a v that is not
    finite."""
    norm_exponent: Tensor
    """`(B,)` int64."""
    operator_calls: int
    """Calls of A on the batch."""
    shape: torch.Size
    """Of v: `(B, *shape)`."""

    def __repr__(self) -> str:
        batch, steps, n = self.dims.shape[0], self.hessenberg.shape[2], self.basis.shape[2]
        least, most = (int(self.dims.min()), int(self.dims.max())) if batch else (0, 0)
        return f"Arnoldi({batch} × n={n}, dims {least} to {most} of {steps}, {self.operator_calls} operator calls)"

    def solve(self, shift: float | Tensor = 0.0) -> Tensor:
        """The minimum-residual solution of (A − shift·I) x = v among the combinations of v_1, …, v_dims.

        No call of A. Exact when the space is invariant, and what GMRES started at zero has after dims iterations.

        Args:
            shift: float or `(B,)` tensor, finite.

        Returns:
            x, shape and dtype of v. Where the projected system is singular to working precision it is the shortest
            solution of its least-squares problem: singular values of at most 16·eps·max_j ‖A v_j‖ count as zero, eps of
            v's dtype, so that ‖x‖ ≤ ‖v‖/(16·eps·max_j ‖A v_j‖). Zero where v is zero or not finite.

        Raises:
            TypeError, ValueError: shift is no float or `(B,)` tensor, or not finite.
        """
        shifts = finite("Arnoldi.solve", "shift", shift, self.basis)
        if self.basis.numel() == 0:
            return self._combine(None)
        solution = least_squares(self.hessenberg, self.dims, shifts, torch.finfo(self.basis.dtype).eps)
        exponent = solution.exponent + self.norm_exponent
        return self._combine(Coefficients(solution.y * self.norm[:, None], exponent))

    def trust_region(self, radius: float | Tensor) -> Tensor:
        """argmax over ‖δ‖₂ ≤ radius of vᵀδ + ½ δᵀAδ among the combinations δ of v_1, …, v_dims, for symmetric A.

        No call of A. The maximum is global in the space, also for indefinite, singular and zero A, near the hard case
        to working accuracy. What is orthogonal to every A^k v is not in the space: v = 0 gives 0, and a maximiser that
        is orthogonal to v, as the eigenvector of the largest eigenvalue may be (the hard case of the full problem),
        cannot be seen. Of an A that is not symmetric, the symmetric part on the space counts.

        Args:
            radius: float or `(B,)` tensor, ≥ 0 and finite.

        Returns:
            δ, shape and dtype of v, with ‖δ‖₂ ≤ radius up to its rounding. Zero where v is zero or not finite.

        Raises:
            TypeError, ValueError: radius is no float or `(B,)` tensor, negative or not finite.
        """
        radii = finite("Arnoldi.trust_region", "radius", radius, self.basis, least=0.0)
        if self.basis.numel() == 0:
            return self._combine(None)
        return self._combine(trust_region(self.hessenberg, self.dims, self.norm, self.norm_exponent, radii), radii)

    def _combine(self, coefficients: Coefficients | None, radius: Tensor | None = None) -> Tensor:
        """V y 2^exponent like v, summed in float64; no longer than `radius`. Of nothing: zero."""
        basis = self.basis
        if coefficients is None:
            return torch.zeros(self.shape, dtype=basis.dtype, device=basis.device)
        y, exponent = coefficients
        total = torch.zeros(basis.shape[0], basis.shape[2], dtype=torch.float64, device=basis.device)
        for j in range(y.shape[1]):
            total += y[:, j, None] * basis[:, j]
        if radius is not None:  # the basis is orthonormal up to rounding errors alone
            length = times_power(torch.linalg.vector_norm(total, dim=1), exponent)
            total *= (radius / length).clamp(max=1.0).nan_to_num(1.0)[:, None]
        return times_power(total, exponent).to(basis.dtype).view(self.shape)


def arnoldi(
    A: Operator | Tensor,
    v: Tensor,
    *,
    steps: int,
    backend: str = "auto",
    workspace: Workspace | None = None,
) -> Arnoldi:
    """The Arnoldi decomposition of a batch of B systems: `steps` columns, or fewer where a Krylov space ends before.

    Every vector is orthogonalised twice against all others, so the basis is orthonormal to working precision, for
    symmetric A too (no short recurrence).

    Args:
        A: a callable `v -> A v` on the whole batch (it gets a contiguous scratch tensor of v's shape, which it may
            overwrite, and returns one of that shape, which is never written to nor kept), or a tensor: `(n, n)` shared
            by the batch or `(B, n, n)`, dense or sparse (COO, CSR). Finished systems are fed zeros, and what A returns
            for them is ignored. Called in the caller's grad mode.
        v: `(B, *shape)` float32 or float64, any strides, CPU or CUDA: B start vectors of n = prod(shape) entries.
        steps: columns to build, ≥ 1; more than n are never built.
        backend: `"cuda"`, `"cpu"`, `"reference"` (pure PyTorch) or `"auto"`, the compiled one for v's device.
        workspace: scratch memory to reuse between calls.

    Returns:
        `Arnoldi`. A was called as often as the longest system took columns; on CUDA, where the end is noticed late, up
        to twice more. A NaN or infinity in one system's v or product ends that system alone.

    Raises:
        TypeError, ValueError: an argument is unusable; the message names it and the remedy. Nothing was done.
        RuntimeError: the backend is missing or does not fit v, or the workspace is in use.
        NotImplementedError: complex v, or gradients through the decomposition.
    """
    if torch.compiler.is_compiling():  # not traced into: the loop calls user code and branches on results
        disable: Callable[..., Callable[..., Arnoldi]] = torch.compiler.disable
        return disable(arnoldi)(A, v, steps=steps, backend=backend, workspace=workspace)
    scratch = Workspace() if workspace is None else workspace
    problem = prepare(A, v, steps, scratch)
    chosen = choose(backend, v.device, ARNOLDI)
    if v.numel() == 0:
        return Arnoldi(**empty(problem, int(steps))._asdict(), shape=v.shape)
    with scratch.exclusive(ARNOLDI.function):
        problem = with_native_products(problem, chosen)
        engine: ArnoldiEngine = ReferenceEngine(problem) if chosen == "reference" else NativeEngine(problem, chosen)
        calls = build(problem, engine)
        return Arnoldi(**collect(engine, int(steps), calls)._asdict(), shape=v.shape)
