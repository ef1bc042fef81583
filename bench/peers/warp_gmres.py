"""NVIDIA Warp: `warp.optim.linear.gmres`, batched through `batch_offsets`.

Settings: the pre-allocated functor (`run=False`), restart, tol, atol=0, maxiter; `check_every=restart`, the least there
is: Warp always runs whole restarts. On a GPU `use_cuda_graph=True`, the default. The operator is one kernel per product
(two for low rank), one thread per unknown. Warp tells one iteration count and one residual, the largest of the batch,
with the largest tolerance; solved is taken to mean residual <= tolerance, for all systems alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import protocol
import warp as wp
from warp.optim.linear import LinearOperator, gmres

wp.config.quiet = True


class Runner:
    def __init__(self, variant: str) -> None:
        del variant
        wp.init()
        self.device = wp.get_device(os.environ.get("COMPARE_DEVICE", "cpu"))

    def versions(self) -> dict[str, str]:
        return {"warp-lang": wp.__version__, "device": str(self.device)}

    def load(self, task: protocol.Task) -> None:
        self.task, self.shape = task, task.b.shape
        self.scalar = wp.float32 if task.b.dtype == np.float32 else wp.float64
        self.arrays = {key: self._array(value) for key, value in task.arrays.items()}
        self.b = self._array(task.b.reshape(-1))
        self.x = wp.zeros_like(self.b)

    def _array(self, value: np.ndarray) -> Any:
        return wp.array(value, dtype=self.scalar, device=self.device)

    def prepare(self, rtol: float) -> tuple[Callable[[], Any], Callable[[Any], protocol.Answer]]:
        task, (batch, n) = self.task, self.shape
        offsets = wp.array(np.arange(batch + 1, dtype=np.int32) * n, dtype=int, device=self.device)
        operator = LinearOperator(
            (batch * n, batch * n), self.scalar, self.device, self._matvec(), batch_offsets=offsets, max_batch_length=n
        )
        functor = gmres(
            operator, self.b, self.x, tol=rtol, atol=0.0, restart=task.restart, maxiter=task.max_iters,
            check_every=task.restart, run=False,
        )  # fmt: skip

        def call() -> tuple[int, float, float]:
            self.x.zero_()  # it is also the initial guess
            result = functor()
            wp.synchronize_device(self.device)
            return result

        def unpack(result: tuple[int, float, float]) -> protocol.Answer:
            iterations, residual, tolerance = result
            claimed: list[bool | None] = [residual <= tolerance] * batch
            return protocol.Answer(self.x.numpy().reshape(batch, n), claimed, int(iterations))

        return call, unpack

    def _matvec(self) -> Callable[..., None]:
        batch, n = self.shape
        arrays, scalar, device = self.arrays, self.scalar, self.device
        if self.task.kind == "dense":

            def dense(x: Any, y: Any, z: Any, alpha: float, beta: float) -> None:
                wp.launch(_dense, (batch, n), [arrays["matrix"], x, y, z, scalar(alpha), scalar(beta)], device=device)

            return dense
        if self.task.kind == "stencil":
            g = round(n**0.5)

            def stencil(x: Any, y: Any, z: Any, alpha: float, beta: float) -> None:
                inputs = [arrays["weights"], x, y, z, scalar(alpha), scalar(beta), g]
                wp.launch(_stencil, (batch, g, g), inputs, device=device)

            return stencil
        rank = arrays["left"].shape[1]
        inner = wp.zeros((batch, rank), dtype=scalar, device=device)

        def lowrank(x: Any, y: Any, z: Any, alpha: float, beta: float) -> None:
            wp.launch(_inner, (batch, rank), [arrays["right"], x, inner], device=device)
            inputs = [arrays["diagonal"], arrays["left"], inner, x, y, z, scalar(alpha), scalar(beta)]
            wp.launch(_outer, (batch, n), inputs, device=device)

        return lowrank


@wp.kernel
def _dense(
    A: wp.array3d(dtype=Any), x: wp.array(dtype=Any), y: wp.array(dtype=Any), z: wp.array(dtype=Any), alpha: Any,
    beta: Any,
):  # fmt: skip
    i, row = wp.tid()
    n = A.shape[1]
    s = type(alpha)(0)
    for k in range(n):
        s += A[i, row, k] * x[i * n + k]
    z[i * n + row] = alpha * s + beta * y[i * n + row]


@wp.kernel
def _inner(right: wp.array3d(dtype=Any), x: wp.array(dtype=Any), inner: wp.array2d(dtype=Any)):
    i, r = wp.tid()
    n = right.shape[2]
    s = inner.dtype(0)
    for k in range(n):
        s += right[i, r, k] * x[i * n + k]
    inner[i, r] = s


@wp.kernel
def _outer(
    diagonal: wp.array2d(dtype=Any), left: wp.array3d(dtype=Any), inner: wp.array2d(dtype=Any),
    x: wp.array(dtype=Any), y: wp.array(dtype=Any), z: wp.array(dtype=Any), alpha: Any, beta: Any,
):  # fmt: skip
    i, k = wp.tid()
    at = i * left.shape[2] + k
    s = diagonal[i, k] * x[at]
    for r in range(left.shape[1]):
        s += left[i, r, k] * inner[i, r]
    z[at] = alpha * s + beta * y[at]


@wp.kernel
def _stencil(
    weights: wp.array2d(dtype=Any), x: wp.array(dtype=Any), y: wp.array(dtype=Any), z: wp.array(dtype=Any), alpha: Any,
    beta: Any, g: int,
):  # fmt: skip
    i, row, column = wp.tid()
    at = (i * g + row) * g + column
    s = weights[i, 0] * x[at]
    if column > 0:
        s += weights[i, 1] * x[at - 1]
    if column < g - 1:
        s += weights[i, 2] * x[at + 1]
    if row > 0:
        s += weights[i, 3] * x[at - g]
    if row < g - 1:
        s += weights[i, 4] * x[at + g]
    z[at] = alpha * s + beta * y[at]


if __name__ == "__main__":
    protocol.serve(Runner)
