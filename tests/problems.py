"""Systems to solve, and what SciPy says about them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor


def matrices(batch: int, n: int, seed: int, *, shift: float = 4.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Nonsymmetric, well conditioned `(batch, n, n)`: eigenvalues in a disc around `shift`."""
    noise = torch.randn(batch, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise / n**0.5 + shift * torch.eye(n, dtype=torch.float64)).to(dtype)


def vectors(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tight(dtype: torch.dtype) -> float:
    """A relative tolerance that the dtype reaches without effort."""
    return 1e-5 if dtype == torch.float32 else 1e-10


def residual(A: Tensor, x: Tensor, b: Tensor) -> Tensor:
    """‖b_i − A_i x_i‖ in float64."""
    batch = b.shape[0]
    Ax = torch.matmul(A.double().cpu(), x.double().cpu().reshape(batch, -1, 1))[..., 0]
    return (b.double().cpu().reshape(batch, -1) - Ax).norm(dim=1)


def scipy_gmres(A: Tensor, b: Tensor, *, rtol: float, restart: int, maxiter: int = 100) -> tuple[np.ndarray, int]:
    """SciPy's answer to one system and the inner iterations it took. `maxiter` counts cycles."""
    norms: list[float] = []
    x, _ = scipy.sparse.linalg.gmres(
        A.double().cpu().numpy(),
        b.double().cpu().numpy(),
        rtol=rtol,
        restart=restart,
        maxiter=maxiter,
        callback=norms.append,
        callback_type="pr_norm",
    )
    return x, len(norms)


def counting(operator: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[tuple[int, ...]]]:
    """`operator`, and the list that each of its calls appends the input's shape to."""
    calls: list[tuple[int, ...]] = []

    def counted(v: Tensor) -> Tensor:
        calls.append(tuple(v.shape))
        return operator(v)

    return counted, calls


def times(A: Tensor) -> Callable[[Tensor], Tensor]:
    """`(B, n, n)` as a callable on `(B, *shape)`, system by system: no system's numbers touch another's."""

    def apply(v: Tensor) -> Tensor:
        flat = v.reshape(v.shape[0], -1)
        return torch.stack([a @ row for a, row in zip(A, flat, strict=True)]).view(v.shape)

    return apply
