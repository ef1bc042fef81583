"""What a cycle has to move at least, and what a solve may hold: the formulas behind rooflines and the memory guard."""

from __future__ import annotations

_ROW = 128  # bytes to which the solver rounds up a row of the basis


def step_bytes(batch: int, n: int, k: int, element: int = 4) -> int:
    """One step with k vectors in the basis: all of them and w read once, the new vector stored and handed on."""
    return batch * n * (element * k + 4 + element + 4)


def cycle_bytes(batch: int, n: int, m: int, element: int = 4, reads: float = 1.0) -> float:
    """A cycle of m steps that reads the basis `reads` times a step, with the update of x at its end."""
    return batch * n * (reads * element * m * (m + 1) / 2 + m * (4 + 2 * element) + 8)


def basis_read_bytes(batch: int, n: int, m: int, element: int = 4) -> int:
    """The part of a cycle that is reading the basis: k vectors in step k, and all m for x."""
    return batch * n * element * (m * (m + 1) // 2 + m)


def basis_bytes(batch: int, n: int, m: int, element: int = 4) -> int:
    """Memory of the basis itself, m + 1 vectors."""
    return batch * (m + 1) * _padded(n, element)


def solve_bytes(batch: int, n: int, m: int, element: int = 4) -> int:
    """The most that a solve holds, and the two vectors of every system beside it."""
    return batch * ((m + 12) * _padded(n, element) + 24 * (m + 1) ** 2)


def _padded(n: int, element: int) -> int:
    return -(-n * element // _ROW) * _ROW
