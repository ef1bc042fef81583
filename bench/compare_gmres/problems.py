"""Batched linear systems that every library can be handed: arrays in a file, not code.

A problem is one of three operators with a right-hand side, B systems of n unknowns each:

* ``lowrank``  A_i v = d_i * v + U_iᵀ (V_i v), arrays ``diagonal (B, n)``, ``left (B, r, n)``, ``right (B, r, n)``;
* ``stencil``  the five-point stencil on a g x g grid with zero boundary, array ``weights (B, 5)``: centre, west, east,
  north, south (n = g², rows of the grid are contiguous);
* ``dense``    ``matrix (B, n, n)``.

Everything comes from a seed. The Hessians of the shipped network are exported in the lowrank form: the network is
piecewise linear in its input, so the Hessian of the cross-entropy is Jᵀ (diag p - p pᵀ) J exactly, with J the (10, n)
Jacobian of the logits (Schraudolph, Neural Computation 14, 2002), and a square root of the inner matrix makes it
Fᵀ F with nine rows. Every library then multiplies by the same F; none needs PyTorch or the network for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Problem:
    """B systems, what is asked of the solver, and why the problem is here."""

    name: str
    kind: str  # "lowrank", "stencil" or "dense"
    arrays: dict[str, Array]
    b: Array  # (B, n)
    rtol: float
    restart: int
    max_iters: int
    text: str
    hidden: dict[str, Array] = field(default_factory=dict)  # not handed to the solvers

    @property
    def batch(self) -> int:
        return int(self.b.shape[0])

    @property
    def n(self) -> int:
        return int(self.b.shape[1])

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name, "kind": self.kind, "B": self.batch, "n": self.n, "dtype": str(self.b.dtype),
            "rtol": self.rtol, "restart": self.restart, "max_iters": self.max_iters, "text": self.text,
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """The file that the runners read (bench/peers/protocol.py)."""
        settings = {"rtol": self.rtol, "restart": self.restart, "max_iters": self.max_iters, "kind": self.kind}
        np.savez(path, b=self.b, **self.arrays, **{f"set_{k}": np.asarray(v) for k, v in settings.items()})


def apply(kind: str, arrays: dict[str, Array], v: Array) -> Array:
    """A_i v_i in v's dtype, `(B, n)`. The oracle: plain NumPy, shared with no runner."""
    if kind == "dense":
        return np.einsum("bij,bj->bi", arrays["matrix"], v)
    if kind == "lowrank":
        inner = np.einsum("brn,bn->br", arrays["right"], v)
        return np.asarray(arrays["diagonal"] * v + np.einsum("brn,br->bn", arrays["left"], inner))
    if kind == "stencil":
        batch, n = v.shape
        g = round(n**0.5)
        u = np.pad(v.reshape(batch, g, g), ((0, 0), (1, 1), (1, 1)))
        c, w, e, north, south = arrays["weights"].T[:, :, None, None]
        out = c * u[:, 1:-1, 1:-1] + w * u[:, 1:-1, :-2] + e * u[:, 1:-1, 2:]
        return np.asarray(out + north * u[:, :-2, 1:-1] + south * u[:, 2:, 1:-1]).reshape(batch, n)
    raise ValueError(f"kind: unknown {kind!r}")


# --- the problems of the timed table ----------------------------------------------------------------------------------


def diagonal_lowrank(batch: int, n: int, dtype: str, *, rtol: float, rank: int = 8, seed: int = 0) -> Problem:
    """Diagonals in [0.3, 3] and `rank` outliers of up to 30 in random directions, nonsymmetric."""
    rng = np.random.default_rng(seed)
    left, right = (rng.standard_normal((batch, rank, n)) / n**0.5 for _ in range(2))
    size = np.linspace(3.0, 30.0, rank)[:, None] ** 0.5
    arrays = {
        "diagonal": 10 ** rng.uniform(-0.5, 0.5, (batch, n)),
        "left": size * (left + right),
        "right": size * right,
    }
    return _cast(
        f"diagonal + rank {rank}", "lowrank", arrays, rng.standard_normal((batch, n)), dtype, rtol=rtol, restart=20,
        max_iters=400, text="cheap operator, clustered spectrum with a few outliers",
    )  # fmt: skip


def poisson(batch: int, grid: int, dtype: str, *, rtol: float, restart: int, seed: int = 0) -> Problem:
    """-a u_xx - u_yy = f with another anisotropy a in [0.5, 2] per system, not preconditioned."""
    rng = np.random.default_rng(seed)
    a = 2 ** rng.uniform(-1, 1, batch)
    weights = np.stack([2 * a + 2, -a, -a, -np.ones(batch), -np.ones(batch)], 1)
    return _cast(
        "Poisson", "stencil", {"weights": weights}, rng.standard_normal((batch, grid * grid)), dtype, rtol=rtol,
        restart=restart, max_iters=100 * restart, text="cheap operator, many iterations and restarts",
    )  # fmt: skip


def convection(batch: int, grid: int, dtype: str, *, rtol: float, seed: int = 0) -> Problem:
    """An implicit step of convection and diffusion, central differences: nonsymmetric, well conditioned."""
    rng = np.random.default_rng(seed)
    tau, cx, cy = rng.uniform(1, 4, batch), rng.uniform(-0.8, 0.8, batch), rng.uniform(-0.8, 0.8, batch)
    weights = np.stack([1 + 4 * tau, -tau * (1 + cx), -tau * (1 - cx), -tau * (1 + cy), -tau * (1 - cy)], 1)
    return _cast(
        "convection-diffusion", "stencil", {"weights": weights}, rng.standard_normal((batch, grid * grid)), dtype,
        rtol=rtol, restart=20, max_iters=400, text="cheap nonsymmetric operator, few iterations",
    )  # fmt: skip


def random_nonsymmetric(batch: int, n: int, dtype: str, *, rtol: float, seed: int = 0) -> Problem:
    """1.5 I + G / sqrt(n): eigenvalues in a disc around 1.5."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((batch, n, n)) / n**0.5 + 1.5 * np.eye(n)
    return _cast(
        "random nonsymmetric", "dense", {"matrix": matrix}, rng.standard_normal((batch, n)), dtype, rtol=rtol,
        restart=30, max_iters=600, text="the dense products dominate",
    )  # fmt: skip


def hessian(batch: int, dtype: str, *, rtol: float, damping: float = 0.0) -> Problem:
    """(H_i + damping · ‖H_i‖₂ I) x = gradient, at the first images of the shipped digits, for the shipped network."""
    factor, gradient = hessian_factors(batch)
    largest = np.array([np.linalg.norm(f, 2) ** 2 for f in factor])
    diagonal = np.broadcast_to((damping * largest)[:, None], gradient.shape)
    name = "network Hessian" + (f", damped by {damping:g} of its norm" if damping else "")
    return _cast(
        name, "lowrank", {"diagonal": diagonal, "left": factor, "right": factor}, gradient, dtype, rtol=rtol,
        restart=20, max_iters=400, text="rank 9 + mu I" if damping else "rank 9: ends by itself after few iterations",
    )  # fmt: skip


def hessian_factors(batch: int) -> tuple[Array, Array]:
    """F `(B, 9, 784)` with H_i = F_iᵀ F_i, and the gradients `(B, 784)`, float64. See the module's text."""
    import torch

    from soae_ext.data import load_digits
    from soae_ext.models import digits_network

    model, data = digits_network().double(), load_digits()
    x = data.images[:batch].double().requires_grad_()
    logits = model(x)
    rows = [torch.autograd.grad(logits[:, c].sum(), x, retain_graph=True)[0].flatten(1) for c in range(logits.shape[1])]
    jacobian = torch.stack(rows, 1)  # (B, 10, n)
    p = logits.softmax(1).detach()
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    root = (
        values.clamp(min=0).sqrt()[:, 1:, None] * vectors.mT[:, 1:]
    )  # the first eigenvalue is 0, of the vector of ones
    difference = p - torch.nn.functional.one_hot(data.labels[:batch], p.shape[1])
    gradient = torch.bmm(difference[:, None], jacobian)[:, 0]
    return torch.bmm(root, jacobian).numpy(), gradient.numpy()


def _cast(
    name: str, kind: str, arrays: dict[str, Array], b: Array, dtype: str, *, rtol: float, restart: int, max_iters: int,
    text: str,
) -> Problem:  # fmt: skip
    """All arrays contiguous in `dtype`; the name completed by the size."""
    precise = {key: np.ascontiguousarray(value, dtype) for key, value in arrays.items()}
    full = f"{name}, B={b.shape[0]}, n={b.shape[1]}, {dtype}"
    return Problem(full, kind, precise, np.ascontiguousarray(b, dtype), rtol, restart, max_iters, text)


Build = Callable[[], Problem]

TIMED: list[Build] = [
    lambda: diagonal_lowrank(1, 784, "float32", rtol=1e-5),
    lambda: diagonal_lowrank(64, 784, "float32", rtol=1e-5),
    lambda: diagonal_lowrank(64, 784, "float64", rtol=1e-10),
    lambda: diagonal_lowrank(64, 3072, "float32", rtol=1e-5),
    lambda: diagonal_lowrank(1, 150528, "float32", rtol=1e-5),
    lambda: poisson(16, 32, "float64", rtol=1e-6, restart=40),
    lambda: convection(4, 128, "float64", rtol=1e-8),
    lambda: random_nonsymmetric(64, 256, "float32", rtol=1e-5),
    lambda: random_nonsymmetric(1, 2000, "float64", rtol=1e-8),
    lambda: hessian(64, "float64", rtol=1e-6),
    lambda: hessian(64, "float32", rtol=1e-4, damping=1e-3),
]
QUICK: list[Build] = [
    lambda: diagonal_lowrank(8, 256, "float32", rtol=1e-5),
    lambda: poisson(4, 16, "float64", rtol=1e-6, restart=40),
    lambda: random_nonsymmetric(8, 64, "float32", rtol=1e-5),
    lambda: hessian(8, "float64", rtol=1e-6),
]
