"""Steps from one Krylov basis: what the quadratic model of the loss says once its products with H are paid for.

All functions take the gradient g `(B, *shape)` and the Arnoldi decomposition of (H, g), and call no operator. In the
basis V of the Krylov space the Hessian is the small symmetric matrix T = V'HV, so the model Q(d) = g'd + d'V T V'd / 2
costs two products with V. It equals the model of H itself for every d where the space is invariant, as it is after at
most C - 1 dimensions on a ReLU network with C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..krylov import Arnoldi
from .geometry import unit

__all__ = ["damped", "largest_curvature", "maximize_in_ball", "maximize_in_box"]

_Corner = Callable[[Tensor], Tensor]


def damped(space: Arnoldi, damping: float) -> Tensor:
    """(H + mu I)^-1 g in the space, with mu = `damping` times the largest |eigenvalue| of T, for each sample.

    mu towards infinity gives the direction of the gradient, mu = 0 that of +H^-1 g (Levenberg, 1944; Marquardt, 1963).
    """
    largest = torch.linalg.eigvalsh(_projected(space)).abs().amax(1)
    return space.solve(shift=-damping * largest)


def largest_curvature(space: Arnoldi) -> Tensor:
    """The Ritz vector of the largest eigenvalue of T, `(B, *shape)`, of unit length; zero where the space is empty.

    What the power method converges to, from the same products: it uses the whole Krylov space instead of its last
    vector. The sign is arbitrary.
    """
    projected = _projected(space)
    steps = projected.shape[1]
    # Rows of T beyond the dimension of the space would be eigenvalues 0.
    absent = torch.arange(steps, device=projected.device) >= space.dims[:, None]
    below = -2 * projected.flatten(1).abs().amax(1) * steps - 1
    projected.diagonal(dim1=1, dim2=2).add_(below[:, None] * absent)
    vectors = torch.linalg.eigh(projected).eigenvectors[:, :, -1]
    combined = _combine(space, vectors.masked_fill(absent, 0.0))
    return unit(combined.view(space.shape))


def maximize_in_box(space: Arnoldi, gradient: Tensor, low: Tensor, high: Tensor, iterations: int) -> Tensor:
    """Frank and Wolfe's method (1956) for max Q(d) over low <= d <= high, from d = 0, with gamma_k = 2 / (k + 2).

    Each iteration moves towards the corner s that g + V T V'd points to. As Q is convex wherever T has no negative
    eigenvalue, and a convex function is largest in a corner, the corner that the last iterate points to is a candidate
    too; the best of all candidates by the model is returned.

    Args:
        space: of (H, g).
        gradient: g `(B, *shape)`.
        low, high: `(B, *shape)`, low <= 0 <= high.
        iterations: at least 1.
    """
    low, high = low.flatten(1), high.flatten(1)

    def corner(slope: Tensor) -> Tensor:
        return torch.where(slope > 0, high, torch.where(slope < 0, low, torch.zeros_like(low)))

    return _frank_wolfe(space, gradient, corner, iterations)


def maximize_in_ball(space: Arnoldi, gradient: Tensor, radius: Tensor, iterations: int) -> Tensor:
    """As :func:`maximize_in_box` over |d|_2 <= radius `(B,)`; the corner is the point of the sphere along the slope."""
    return _frank_wolfe(space, gradient, lambda slope: radius[:, None] * unit(slope), iterations)


def _frank_wolfe(space: Arnoldi, gradient: Tensor, corner: _Corner, iterations: int) -> Tensor:
    projected = _projected(space).to(gradient.dtype)
    basis = space.basis[:, : projected.shape[1]]
    slope0 = gradient.flatten(1)

    def curved(step: Tensor) -> Tensor:
        """V T V'd."""
        inside = torch.bmm(torch.bmm(basis, step[:, :, None]).mT, projected)
        return torch.bmm(inside, basis)[:, 0]

    def value(step: Tensor, bent: Tensor) -> Tensor:
        return (step * (slope0 + bent / 2)).sum(1)

    with torch.autocast(gradient.device.type, enabled=False):
        step = best = torch.zeros_like(slope0)
        bent = torch.zeros_like(slope0)
        best_value = value(step, bent)
        for k in range(iterations + 1):
            vertex = corner(slope0 + bent)
            gamma = 2 / (k + 2) if k < iterations else 1.0
            step = step + gamma * (vertex - step)
            bent = curved(step)
            now = value(step, bent)
            better = now > best_value
            best = torch.where(better[:, None], step, best)
            best_value = torch.where(better, now, best_value)
    return best.view_as(gradient)


def _projected(space: Arnoldi) -> Tensor:
    """T `(B, m, m)` float64: the square part of the Hessenberg matrix, made symmetric; zero beyond dims."""
    square = space.hessenberg[:, :-1]
    return (square + square.mT) / 2


def _combine(space: Arnoldi, coefficients: Tensor) -> Tensor:
    basis = space.basis[:, : coefficients.shape[1]]
    with torch.autocast(basis.device.type, enabled=False):
        return torch.bmm(coefficients.to(basis.dtype)[:, None], basis)[:, 0]
