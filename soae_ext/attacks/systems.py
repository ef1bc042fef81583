"""The systems of a second-order step, each solved in one Krylov space until residual or subdiagonal are small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..gmres import Workspace, gmres
from ..reference import orthogonalize_mgs

__all__ = ["solve_to_residual", "solve_to_subdiagonal"]


def solve_to_residual(
    operator: Callable[[Tensor], Tensor],
    b: Tensor,
    start: Tensor | None,
    max_dim: int,
    threshold: float,
    workspace: Workspace,
) -> tuple[Tensor, Tensor]:
    """Minimise |b - A x| over start + K_m(A, r_0), where m is the first with a residual of at most threshold |b|.

    Arguments and results as of :func:`solve_to_subdiagonal`. The operator is called once more for the true residual,
    and of start and solution the better one by it is returned.
    """

    def whole_cycle(iteration: int, residual_norm: Tensor, active: Tensor) -> bool:
        # Where products are differences the true residual may refute the end of a solve: no other cycle is begun.
        return iteration >= max_dim or not bool(active.any())

    result = gmres(
        operator, b, start,
        restart=max_dim, rtol=threshold, max_iters=max_dim, callback=whole_cycle, workspace=workspace,
    )  # fmt: skip
    return result.x, result.iterations.long()


def solve_to_subdiagonal(
    operator: Callable[[Tensor], Tensor], b: Tensor, start: Tensor | None, max_dim: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Minimise |b - A x| over start + K_m(A, r_0), where m is the first j with h_{j+1,j} < threshold.

    The subdiagonal h_{j+1,j} = |A v_j - its projection on v_1..v_j| says how much of A v_j the Krylov space does not
    hold yet, in the units of A (v_j has unit length); it does not bound the residual.

    Args:
        operator: v -> A v on the whole batch.
        b: right-hand sides `(B, *shape)`.
        start: x_0 like `b`; `None` is zero.
        max_dim: largest m.
        threshold: on the subdiagonal.

    Returns:
        The solutions, like `b`, and m `(B,)` int64; a system with r_0 = 0 has m = 0.
    """
    residual = (b if start is None else b - operator(start)).flatten(1)
    beta = torch.linalg.vector_norm(residual, dim=1)
    active = beta > 0
    basis = residual.new_zeros(len(b), max_dim + 1, residual.shape[1])
    basis[:, 0] = torch.where(active[:, None], residual / beta[:, None], torch.zeros_like(residual))
    hessenberg = residual.new_zeros(len(b), max_dim + 1, max_dim)
    dims = torch.zeros_like(active, dtype=torch.int64)
    for j in range(max_dim):
        product = operator(basis[:, j].reshape(b.shape)).flatten(1)
        rest, column = orthogonalize_mgs(basis, j, product)
        subdiagonal = torch.linalg.vector_norm(rest, dim=1)
        entries = torch.cat([column, subdiagonal[:, None]], 1)
        hessenberg[:, : j + 2, j] = torch.where(active[:, None], entries, torch.zeros_like(entries))
        dims += active
        active = active & (subdiagonal >= threshold) & (subdiagonal > 0)
        if not bool(active.any()):
            break
        basis[:, j + 1] = torch.where(active[:, None], rest / subdiagonal[:, None], torch.zeros_like(rest))
    # Columns beyond a system's own m are zero; the pseudo-inverse leaves them out.
    coordinates = torch.linalg.pinv(hessenberg.double())[:, :, 0] * beta.double()[:, None]
    step = torch.einsum("bm,bmn->bn", coordinates.to(b.dtype), basis[:, :max_dim]).reshape(b.shape)
    return (step if start is None else start + step), dims
