"""Small systems that provoke false success and false failure: what a library says about them is held against the truth.

All are dense, 8 systems of 32 unknowns, restart 20 and at most 100 iterations, so that every library compiles once.
"""

from __future__ import annotations

import numpy as np

from .problems import Array, Build, Problem

_B, _N = 8, 32


def _problem(name: str, matrix: Array, b: Array, text: str, *, dtype: str = "float64", rtol: float = 1e-8) -> Problem:
    arrays = {"matrix": np.ascontiguousarray(matrix, dtype)}
    return Problem(f"{name}, {dtype}", "dense", arrays, np.ascontiguousarray(b, dtype), rtol, 20, 100, text)


def _regular(rng: np.random.Generator) -> Array:
    """Well conditioned, nonsymmetric: solved by everyone."""
    return np.asarray(rng.standard_normal((_B, _N, _N)) / _N**0.5 + 2.5 * np.eye(_N))


def _orthogonal(rng: np.random.Generator) -> Array:
    return np.linalg.qr(rng.standard_normal((_B, _N, _N))).Q


def _rhs(rng: np.random.Generator) -> Array:
    return rng.standard_normal((_B, _N))


def _deficient(rng: np.random.Generator) -> Array:
    """Symmetric with eigenvalues in [1, 10] and four zeros."""
    q, values = _orthogonal(rng), np.linspace(1.0, 10.0, _N)
    values[:4] = 0
    return np.asarray((q * values) @ q.transpose(0, 2, 1))


def _cyclic_shift() -> Array:
    return np.roll(np.eye(_N), 1, axis=0)[None].repeat(_B, 0)


def singular_inconsistent() -> Problem:
    rng = np.random.default_rng(1)
    return _problem("singular, no solution", _deficient(rng), _rhs(rng), "b has a part outside the range of A")


def singular_consistent() -> Problem:
    rng = np.random.default_rng(2)
    A = _deficient(rng)
    b = np.einsum("bij,bj->bi", A, _rhs(rng))
    return _problem("singular, consistent", A, b, "b is in the range of A: there is a solution, and GMRES finds it")


def nilpotent() -> Problem:
    A = np.diag(np.ones(_N - 1), -1)[None].repeat(_B, 0)
    start = np.arange(_B) * 4  # the Krylov space ends after 32, 28, ... 4 steps
    return _problem("nilpotent shift", A, np.eye(_N)[start], "no solution; the Arnoldi process breaks down in between")


def cyclic() -> Problem:
    return _problem(
        "cyclic shift", _cyclic_shift(), np.eye(_N)[:_B], "solvable, but the residual does not move before step 32"
    )


def nearly_cyclic() -> Problem:
    rng = np.random.default_rng(3)
    A = _cyclic_shift() + 0.02 * rng.standard_normal((_B, _N, _N)) / _N**0.5
    return _problem("nearly a cyclic shift", A, np.eye(_N)[:_B], "near-stagnation in every cycle")


def happy_breakdown() -> Problem:
    rng = np.random.default_rng(4)
    u, v = rng.standard_normal((2, _B, _N, 2)) / _N**0.5
    return _problem("identity + rank 2", np.eye(_N) + u @ v.transpose(0, 2, 1), _rhs(rng), "exact after three steps")


def zero_rhs() -> Problem:
    rng = np.random.default_rng(5)
    b = _rhs(rng)
    b[::2] = 0
    return _problem("zero right-hand sides", _regular(rng), b, "every second system has b = 0, x = 0")


def mixed_norms() -> Problem:
    rng = np.random.default_rng(6)
    scale = 10.0 ** np.linspace(-9, 9, _B)[:, None]
    return _problem("right-hand sides of 1e-9 to 1e9", _regular(rng), scale * _rhs(rng), "a tolerance for every system")


def tiny_matrix() -> Problem:
    rng = np.random.default_rng(7)
    return _problem("matrices of size 1e-18", 1e-18 * _regular(rng), _rhs(rng), "regular but for the scale")


def tiny_rhs() -> Problem:
    rng = np.random.default_rng(8)
    return _problem(
        "right-hand sides of 1e-12", _regular(rng), 1e-12 * _rhs(rng), "regular but for the scale", dtype="float32",
        rtol=1e-4,
    )  # fmt: skip


def huge_rhs() -> Problem:
    rng = np.random.default_rng(9)
    return _problem(
        "right-hand sides of 1e25", _regular(rng), 1e25 * _rhs(rng), "squares overflow", dtype="float32", rtol=1e-4
    )


def too_tight() -> Problem:
    rng = np.random.default_rng(10)
    return _problem(
        "tolerance 1e-9", _regular(rng), _rhs(rng), "below what the dtype holds", dtype="float32", rtol=1e-9
    )


def ill_conditioned() -> Problem:
    rng = np.random.default_rng(11)
    q = _orthogonal(rng)
    A = (q * np.geomspace(1e-5, 1, _N)) @ _orthogonal(rng)
    b = np.einsum("bij,bj->bi", A, _rhs(rng))
    return _problem("condition 1e5", A, b, "the estimate parts from the residual", dtype="float32", rtol=1e-6)


def too_few() -> Problem:
    rng = np.random.default_rng(12)
    q, values = _orthogonal(rng), np.geomspace(1e-4, 1, _N) * np.where(np.arange(_N) % 2, 1, -1)
    return _problem("indefinite, condition 1e4", (q * values) @ q.transpose(0, 2, 1), _rhs(rng), "restart stalls it")


def nan_matrix() -> Problem:
    rng = np.random.default_rng(13)
    A = _regular(rng)
    A[3, 5, 7] = np.nan
    return _problem("a NaN in one matrix", A, _rhs(rng), "seven regular systems beside it")


def infinite_rhs() -> Problem:
    rng = np.random.default_rng(14)
    b = _rhs(rng)
    b[2, 9] = np.inf
    return _problem("an infinity in one right-hand side", _regular(rng), b, "seven regular systems beside it")


TRAPS: list[Build] = [
    singular_inconsistent, singular_consistent, nilpotent, cyclic, nearly_cyclic, happy_breakdown, zero_rhs,
    mixed_norms, tiny_matrix, tiny_rhs, huge_rhs, too_tight, ill_conditioned, too_few, nan_matrix, infinite_rhs,
]  # fmt: skip
