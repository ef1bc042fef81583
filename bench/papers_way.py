"""The attack as the paper describes it, one image at a time: difference products, NumPy Arnoldi, triangular solve.

The baseline of bench_attack_end_to_end.py, at its best: the network's parameters need no gradient, arrays are shared
between PyTorch and NumPy without copies, and the Krylov basis is a matrix whose rows are contiguous.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass
class Spent:
    """Seconds in gradients, in the solver and in all, and gradients of all images together."""

    operator: float = 0.0
    solver: float = 0.0
    total: float = 0.0
    gradients: int = 0

    def split(self) -> dict[str, float]:
        rest = self.total - self.operator - self.solver
        return {"operator": self.operator, "solver": self.solver, "rest": rest}


def attack(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int, dimensions: int, fd_step: float
) -> tuple[Tensor, Spent]:
    """`steps` sign steps along +H^-1 g of the cross-entropy, each from a Krylov space of `dimensions`.

    The sign is that of SOAE's default, so that both do the same: the paper's own lowers the loss.

    Args:
        x, y: images `(B, C, H, W)` in [0, 1] and labels `(B,)`.
        eps: radius of the Linf ball; a step is min(1, 2.5 / steps) eps long.
        fd_step: h of the differences (g(x + h v) - g(x)) / h.

    Returns:
        Adversarial images like `x`, and what they cost: 1 + `dimensions` gradients for each step.
    """
    spent = Spent()
    start = time.perf_counter()
    length = eps * min(1.0, 2.5 / steps)
    results = []
    for image, label in zip(x, y, strict=True):
        point = image[None].clone()
        for _ in range(steps):
            direction = _newton(model, point, label[None], dimensions, fd_step, spent)
            moved = point + length * torch.from_numpy(np.sign(direction)).view_as(point)
            point = torch.clamp(torch.clamp(moved, image - eps, image + eps), 0, 1)
        results.append(point)
    adversarial = torch.cat(results)
    spent.total = time.perf_counter() - start
    return adversarial, spent


def _newton(
    model: nn.Module, point: Tensor, label: Tensor, dimensions: int, fd_step: float, spent: Spent
) -> np.ndarray:
    """The solution of H d = g in K_m(H, g)."""

    def gradient(at: Tensor) -> np.ndarray:
        began = time.perf_counter()
        leaf = at.requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model(leaf), label), leaf)
        spent.operator += time.perf_counter() - began
        spent.gradients += 1
        return slope.numpy().ravel()

    g = gradient(point.clone())

    def product(v: np.ndarray) -> np.ndarray:
        return (gradient(point + fd_step * torch.from_numpy(v).view_as(point)) - g) / np.float32(fd_step)

    before, began = spent.operator, time.perf_counter()
    solution = _gmres(product, g, dimensions)
    spent.solver += time.perf_counter() - began - (spent.operator - before)
    return solution


def _gmres(product: Callable[[np.ndarray], np.ndarray], b: np.ndarray, dimensions: int) -> np.ndarray:
    """GMRES from zero, without restart: Arnoldi by modified Gram-Schmidt, Givens rotations, back substitution."""
    basis = np.zeros((dimensions + 1, b.size), b.dtype)
    triangle, rotations = np.zeros((dimensions, dimensions)), []
    beta = float(np.linalg.norm(b))
    if beta == 0:
        return b
    basis[0] = b / np.float32(beta)
    right = [beta]
    used = dimensions
    for j in range(dimensions):
        w = product(basis[j])
        column = np.zeros(j + 2)
        for i in range(j + 1):
            column[i] = basis[i] @ w
            w -= np.float32(column[i]) * basis[i]
        column[j + 1] = np.linalg.norm(w)
        if column[j + 1] > 0:
            basis[j + 1] = w / np.float32(column[j + 1])
        for i, (c, s) in enumerate(rotations):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        radius = float(np.hypot(column[j], column[j + 1]))
        if radius == 0:
            used = j
            break
        c, s = column[j] / radius, column[j + 1] / radius
        rotations.append((c, s))
        triangle[: j + 1, j] = column[: j + 1]
        triangle[j, j] = radius
        right[j:] = [c * right[j], -s * right[j]]
    y = np.zeros(used)
    for i in reversed(range(used)):
        y[i] = (right[i] - triangle[i, i + 1 : used] @ y[i + 1 :]) / triangle[i, i]
    return y.astype(b.dtype) @ basis[:used]
