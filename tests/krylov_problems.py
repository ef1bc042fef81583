"""Symmetric systems for the Krylov tests, and what dense float64 arithmetic says about them."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from tests.problems import vectors


def with_spectrum(values: Tensor | list[float], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A symmetric `(n, n)` matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q, _ = torch.linalg.qr(vectors(len(values), len(values), seed=seed))
    a = q @ torch.diag(values) @ q.mT
    return ((a + a.mT) / 2).to(dtype)


def symmetric(batch: int, n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Indefinite `(batch, n, n)`, eigenvalues in about [-2, 2]."""
    a = vectors(batch, n, n, seed=seed)
    return ((a + a.mT) / (2 * n) ** 0.5).to(dtype)


def numpy64(t: Tensor) -> np.ndarray:
    return t.detach().double().cpu().numpy()


def krylov_space(a: np.ndarray, v: np.ndarray, steps: int) -> np.ndarray:
    """Orthonormal columns, by Gram–Schmidt done three times."""
    q = [v / np.linalg.norm(v)]
    while len(q) < steps:
        w = a @ q[-1]
        for _ in range(3):
            for u in q:
                w = w - (u @ w) * u
        q.append(w / np.linalg.norm(w))
    return np.stack(q, 1)


def model_value(a: np.ndarray, v: np.ndarray, delta: np.ndarray) -> float:
    """vᵀδ + ½ δᵀAδ."""
    return float(v @ delta + delta @ a @ delta / 2)


def dense_trust_region(a: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """argmax of vᵀδ + ½ δᵀAδ over ‖δ‖ ≤ radius in the whole space, by eigenvalues and SciPy's brentq; for v that has a
    part in the eigenspace of the largest eigenvalue, however small, or a maximum inside."""
    values, q = np.linalg.eigh(a)
    c = q.T @ v
    if values[-1] < 0:
        inside = -c / values
        if np.linalg.norm(inside) <= radius:
            return q @ inside
    gaps = values[-1] - values

    def excess(log_t: float) -> float:
        return float(np.log(np.linalg.norm(c / (np.exp(log_t) + gaps)) / radius))

    low, high = np.log(np.abs(c[-1]) / radius) - 1, np.log(np.linalg.norm(c) / radius) + 1
    t = np.exp(scipy.optimize.brentq(excess, low, high, xtol=1e-15, rtol=1e-15))
    return q @ (c / (t + gaps))
