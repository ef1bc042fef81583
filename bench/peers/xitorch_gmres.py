"""xitorch: `xitorch.linalg.solve(method="gmres")`, batched.

Settings: rtol, atol=0 (its default, 1e-8, is absolute), max_niter. It has no restart: max_niter is the number of
iterations that the others may spend in all, at most n. posdef=True, whether or not it is true: with False it would
solve the normal equations. It forms x and measures the true residual after every
iteration. All that it tells is a `ConvergenceWarning` for the whole batch; solved is taken to mean that there was none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import protocol
import torch
import torch_operators
import xitorch
import xitorch.linalg
from xitorch._utils.exceptions import ConvergenceWarning


class _Batched(xitorch.LinearOperator):
    def __init__(
        self, apply: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        super().__init__(shape=shape, is_hermitian=False, dtype=dtype, device=torch_operators.DEVICE)
        self.apply = apply

    def _mv(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply(x)

    def _mm(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply(x[..., 0])[..., None]

    def _getparamnames(self, prefix: str = "") -> list[str]:
        return []


class Runner:
    def __init__(self, variant: str) -> None:
        del variant
        torch_operators.set_threads()

    def versions(self) -> dict[str, str]:
        return {"xitorch": version("xitorch"), "torch": torch.__version__}

    def load(self, task: protocol.Task) -> None:
        batch, n = task.b.shape
        self.task, self.b = task, torch_operators.tensor(task.b)
        self.A = _Batched(torch_operators.operator(task), (batch, n, n), self.b.dtype)

    def prepare(self, rtol: float) -> tuple[Callable[[], Any], Callable[[Any], protocol.Answer]]:
        def unpack(result: tuple[torch.Tensor, bool]) -> protocol.Answer:
            x, solved = result
            claimed: list[bool | None] = [solved] * len(x)
            return protocol.Answer(x.cpu().numpy(), claimed)

        return lambda: self._solve(rtol), unpack

    @torch.no_grad()
    def _solve(self, rtol: float) -> tuple[torch.Tensor, bool]:
        most = min(self.task.max_iters, self.b.shape[1])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = xitorch.linalg.solve(
                self.A, self.b[..., None], method="gmres", rtol=rtol, atol=0.0, max_niter=most, posdef=True
            )
        torch_operators.finish()
        return x[..., 0], not any(issubclass(w.category, ConvergenceWarning) for w in caught)


if __name__ == "__main__":
    protocol.serve(Runner)
