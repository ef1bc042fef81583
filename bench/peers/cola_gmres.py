"""CoLA: `cola.linalg.inverse.gmres`, all systems at once as columns with a Krylov space each.

CoLA takes one operator for many right-hand sides; applied to the columns it may as well be another matrix for each
column, which makes it a batched solver. It has no restart and does not test residuals (its Arnoldi process ends at
an invariant subspace), so this runner does what its user would have to: cycles of `max_iters=restart` from the last x,
until b - A x, computed in PyTorch, meets the tolerance; systems that met it keep their x. `tol` is given the same
value. CoLA itself makes no statement about convergence.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import protocol
import torch
import torch_operators
from cola.linalg.inverse.gmres import gmres
from cola.ops import LinearOperator


class _Columns(LinearOperator):
    """Column i of the (n, B) argument is multiplied by the matrix of system i."""

    def __init__(self, apply: Callable[[torch.Tensor], torch.Tensor], n: int, dtype: torch.dtype) -> None:
        super().__init__(dtype, (n, n))
        self.device = torch_operators.DEVICE
        self.apply = apply

    def _matmat(self, X: torch.Tensor) -> torch.Tensor:
        return self.apply(X.T.contiguous()).T


class Runner:
    def __init__(self, variant: str) -> None:
        del variant
        torch_operators.set_threads()

    def versions(self) -> dict[str, str]:
        return {"cola-ml": version("cola-ml"), "torch": torch.__version__}

    def load(self, task: protocol.Task) -> None:
        self.task, self.b = task, torch_operators.tensor(task.b)
        self.apply = torch_operators.operator(task)
        self.A = _Columns(self.apply, task.b.shape[1], self.b.dtype)

    def prepare(self, rtol: float) -> tuple[Callable[[], Any], Callable[[Any], protocol.Answer]]:
        def unpack(result: tuple[torch.Tensor, int]) -> protocol.Answer:
            x, iterations = result
            return protocol.Answer(x.cpu().numpy(), [None] * len(x), iterations)

        return lambda: self._solve(rtol), unpack

    @torch.no_grad()
    def _solve(self, rtol: float) -> tuple[torch.Tensor, int]:
        task, b, x, iterations = self.task, self.b, torch.zeros_like(self.b), 0
        restart = min(task.restart, b.shape[1])
        limit = rtol * b.norm(dim=1)
        todo = torch.ones_like(limit, dtype=torch.bool)
        for _ in range(task.cycles):
            new, _ = gmres(self.A, b.T, x0=x.T, max_iters=restart, tol=rtol)
            x = torch.where(todo[:, None], new.T, x)
            iterations += restart
            todo = (b - self.apply(x)).norm(dim=1) > limit
            if not bool(todo.any()):
                break
        torch_operators.finish()
        return x, iterations


if __name__ == "__main__":
    protocol.serve(Runner)
