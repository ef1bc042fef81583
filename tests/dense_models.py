"""Quadratic models given by dense matrices, and what NumPy makes of them."""

import numpy as np
import torch


def symmetric(batch, n, seed=0, eigenvalues=None):
    """Random symmetric matrices `(batch, n, n)`; with given eigenvalues `(n,)`, or normal ones."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((batch, n, n)))[0]
    values = rng.standard_normal((batch, n)) if eigenvalues is None else np.asarray(eigenvalues, dtype=float)
    h = q * np.broadcast_to(values, (batch, n))[:, None] @ q.transpose(0, 2, 1)
    return (h + h.transpose(0, 2, 1)) / 2


def vectors(batch, n, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, n)))


def model_value(h, g, d):
    return float(g @ d + d @ h @ d / 2)


def frank_wolfe(h, g, corner, iterations):
    """Frank and Wolfe's iterates from zero on the dense model, and the corner that the last one points to."""
    d, candidates = np.zeros_like(g), [np.zeros_like(g)]
    for k in range(iterations):
        d = d + 2 / (k + 2) * (corner(g + h @ d) - d)
        candidates.append(d)
    return [*candidates, corner(g + h @ d)]
