"""SciPy: one system after the other.

Settings: `scipy.sparse.linalg.gmres(rtol, atol=0, restart, maxiter)`, where maxiter counts cycles. The operator is what
SciPy multiplies by fastest: a dense matrix as ndarray (BLAS), the stencil as CSR, diagonal + low rank as a
LinearOperator of two BLAS products. The iterations are counted in a first solve that is not timed, with the callback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import protocol
import scipy
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, gmres


class Runner:
    def __init__(self, variant: str) -> None:
        del variant

    def versions(self) -> dict[str, str]:
        return {"scipy": scipy.__version__, "numpy": np.__version__}

    def load(self, task: protocol.Task) -> None:
        self.task = task
        self.operators = [
            _operator(task.kind, {k: v[i] for k, v in task.arrays.items()}, task.b.shape[1]) for i in range(len(task.b))
        ]

    def _solve(self, rtol: float, **more: Any) -> list[tuple[np.ndarray, int]]:
        task = self.task
        options = {"rtol": rtol, "atol": 0.0, "restart": task.restart, "maxiter": task.cycles, **more}
        return [gmres(A, b, **options) for A, b in zip(self.operators, task.b, strict=True)]

    def prepare(self, rtol: float) -> tuple[Callable[[], Any], Callable[[Any], protocol.Answer]]:
        def unpack(results: list[tuple[np.ndarray, int]]) -> protocol.Answer:
            claimed: list[bool | None] = [info == 0 for _, info in results]
            return protocol.Answer(np.stack([x for x, _ in results]), claimed, self._count(rtol))

        return lambda: self._solve(rtol), unpack

    def _count(self, rtol: float) -> list[int]:
        task, counts = self.task, []
        options = {"rtol": rtol, "atol": 0.0, "restart": task.restart, "maxiter": task.cycles}
        for A, b in zip(self.operators, task.b, strict=True):
            norms: list[float] = []
            gmres(A, b, **options, callback=norms.append, callback_type="pr_norm")
            counts.append(len(norms))
        return counts


def _operator(kind: str, arrays: dict[str, np.ndarray], n: int) -> Any:
    if kind == "dense":
        return arrays["matrix"]
    if kind == "stencil":
        return _csr(arrays["weights"], n)
    diagonal, left, right = (arrays[key] for key in ("diagonal", "left", "right"))
    return LinearOperator((n, n), matvec=lambda v: diagonal * v + (right @ v) @ left, dtype=diagonal.dtype)


def _csr(weights: np.ndarray, n: int) -> Any:
    diagonals, offsets = protocol.stencil_diagonals(weights, n)
    matrix = sparse.diags_array(diagonals, offsets=offsets).tocsr()
    matrix.eliminate_zeros()
    return matrix


if __name__ == "__main__":
    protocol.serve(Runner)
