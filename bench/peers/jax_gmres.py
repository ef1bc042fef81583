"""JAX: `jax.scipy.sparse.linalg.gmres` of one system under `vmap`, jitted as a whole, warm.

Variants: the two values of `solve_method`. "batched", the default, solves the least-squares problem once per restart
and does not end a restart early; "incremental" rotates as it goes and does. (In JAX 0.10.2 its early end leaves the
residual's entry of the rotated right-hand side in the triangular solve, whose unused rows are those of the identity: x
gets an error as large as the tolerance, and the residual can stall above it.) Settings: tol, atol=0, restart, and
maxiter, which counts restarts. The operator's arrays are arguments of the jitted function, not constants, and its
low-rank products are written as multiply-and-sum.
The result is waited for with `block_until_ready`. `info` is documented as a placeholder; it is 0 unless x holds a NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import protocol
from jax.scipy.sparse.linalg import gmres


class Runner:
    def __init__(self, variant: str) -> None:
        self.method = variant
        jax.devices()  # start the backend, so that it counts as part of the imports

    def versions(self) -> dict[str, str]:
        return {"jax": jax.__version__, "device": jax.devices()[0].platform}

    def load(self, task: protocol.Task) -> None:
        jax.config.update("jax_enable_x64", task.b.dtype == np.float64)
        self.task = task
        self.arrays = {key: jnp.asarray(value) for key, value in task.arrays.items()}
        self.b = jnp.asarray(task.b)
        self.warm = False

    def prepare(self, rtol: float) -> tuple[Callable[[], Any], Callable[[Any], protocol.Answer]]:
        solve = _compiled(self.task.kind, self.task.restart, self.task.cycles, self.method)
        tolerance = jnp.asarray(rtol, self.b.dtype)
        if not self.warm:  # compiles; the tolerance is an argument, so that another one does not compile again
            jax.block_until_ready(solve(self.arrays, self.b, tolerance))
            self.warm = True

        def unpack(result: tuple[jax.Array, jax.Array]) -> protocol.Answer:
            return protocol.Answer(np.asarray(result[0]), [info == 0 for info in np.asarray(result[1])])

        return lambda: jax.block_until_ready(solve(self.arrays, self.b, tolerance)), unpack


@functools.cache
def _compiled(kind: str, restart: int, cycles: int, method: str) -> Callable[..., Any]:
    """The jitted batch solver; JAX keeps one program per shape and dtype."""
    product = {"dense": _dense, "lowrank": _lowrank, "stencil": _stencil}[kind]

    def one(arrays: dict[str, jax.Array], b: jax.Array, tol: jax.Array) -> tuple[jax.Array, jax.Array]:
        return gmres(
            lambda v: product(arrays, v), b, tol=tol, atol=0.0, restart=restart, maxiter=cycles, solve_method=method
        )

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None)))


def _dense(arrays: dict[str, jax.Array], v: jax.Array) -> jax.Array:
    return arrays["matrix"] @ v


def _lowrank(arrays: dict[str, jax.Array], v: jax.Array) -> jax.Array:
    inner = (arrays["right"] * v).sum(1)
    return arrays["diagonal"] * v + (arrays["left"] * inner[:, None]).sum(0)


def _stencil(arrays: dict[str, jax.Array], v: jax.Array) -> jax.Array:
    g = round(v.shape[0] ** 0.5)
    u = jnp.pad(v.reshape(g, g), 1)
    c, w, e, north, south = arrays["weights"]
    out = c * u[1:-1, 1:-1] + w * u[1:-1, :-2] + e * u[1:-1, 2:] + north * u[:-2, 1:-1] + south * u[2:, 1:-1]
    return out.reshape(-1)


if __name__ == "__main__":
    protocol.serve(Runner)
