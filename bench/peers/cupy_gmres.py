"""CuPy, on GPUs: `cupyx.scipy.sparse.linalg.gmres`, one system after the other.

Settings: the relative tolerance, atol=0, restart, maxiter, which counts inner iterations and is rounded up to whole
restarts; the small least-squares problems are solved on the host. Operators as for SciPy: dense arrays, CSR, or two
products. CuPy tells convergence only through `info`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
import protocol
from cupyx.scipy import sparse
from cupyx.scipy.sparse.linalg import LinearOperator, gmres

# The name of the relative tolerance changed with CuPy 14.
_TOLERANCE = "rtol" if "rtol" in inspect.signature(gmres).parameters else "tol"


class Runner:
    def __init__(self, variant: str) -> None:
        del variant
        cupy.cuda.Device().use()

    def versions(self) -> dict[str, str]:
        return {"cupy": cupy.__version__}

    def load(self, task: protocol.Task) -> None:
        self.task, self.b = task, cupy.asarray(task.b)
        arrays = {key: cupy.asarray(value) for key, value in task.arrays.items()}
        n = task.b.shape[1]
        self.operators = [_operator(task.kind, {k: v[i] for k, v in arrays.items()}, n) for i in range(len(task.b))]

    def prepare(self, rtol: float) -> tuple[Callable[[], Any], Callable[[Any], protocol.Answer]]:
        task = self.task
        options = {_TOLERANCE: rtol, "atol": 0.0, "restart": task.restart, "maxiter": task.restart * task.cycles}

        def call() -> list[tuple[Any, int]]:
            results = [gmres(A, b, **options) for A, b in zip(self.operators, self.b, strict=True)]
            cupy.cuda.Device().synchronize()
            return results

        def unpack(results: list[tuple[Any, int]]) -> protocol.Answer:
            x = np.stack([cupy.asnumpy(x) for x, _ in results])
            return protocol.Answer(x, [info == 0 for _, info in results])

        return call, unpack


def _operator(kind: str, arrays: dict[str, Any], n: int) -> Any:
    if kind == "dense":
        return arrays["matrix"]
    if kind == "stencil":
        return _csr(cupy.asnumpy(arrays["weights"]), n)
    diagonal, left, right = (arrays[key] for key in ("diagonal", "left", "right"))
    return LinearOperator((n, n), matvec=lambda v: diagonal * v + (right @ v) @ left, dtype=diagonal.dtype)


def _csr(weights: np.ndarray, n: int) -> Any:
    diagonals, offsets = protocol.stencil_diagonals(weights, n)
    matrix = sparse.diags([cupy.asarray(each) for each in diagonals], offsets=offsets, format="csr")
    matrix.eliminate_zeros()
    return matrix


if __name__ == "__main__":
    protocol.serve(Runner)
