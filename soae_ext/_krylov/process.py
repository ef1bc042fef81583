"""The Arnoldi process on any backend: who is called when, and what is taken out of the engine's memory."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from soae_ext._krylov.arguments import ARNOLDI
from soae_ext._solver.driver import ACTIVE, BAD_COLUMN, Problem
from soae_ext._solver.operators import Checked


class ArnoldiEngine(Protocol):
    """The arithmetic of one decomposition, m columns at most. `csrc/gmres.h` says what each step does."""

    direction: Tensor  # (B, *shape) what the operator receives next
    basis: Tensor  # (B, m+1, n) rows beyond those that were written may hold anything
    hessenberg: Tensor  # (B, m+1, m) float64, zero where it was not written; not scratch memory
    outcome: Tensor  # (B,) ACTIVE while the system takes steps
    length: Tensor  # (B,) columns that were built
    beta: Tensor  # (B,) float64; the norm of v is beta 2^scale
    scale: Tensor  # (B,)

    def begin(self, ax: Tensor | None) -> None: ...
    def step(self, j: int, w: Tensor) -> None: ...
    def idle(self, j: int, *, wait: bool) -> bool: ...
    def running(self) -> int: ...


class Decomposition(NamedTuple):
    """What `soae_ext.krylov.Arnoldi` holds; shapes are there."""

    basis: Tensor
    hessenberg: Tensor
    dims: Tensor
    norm: Tensor
    norm_exponent: Tensor
    operator_calls: int


def build(problem: Problem, engine: ArnoldiEngine) -> int:
    """Takes steps until every system is finished or has all its columns. Returns the calls of A."""
    apply = Checked("A", problem.A, problem.b, ARNOLDI)
    engine.begin(None)
    if engine.running() == 0:
        return 0
    for j in range(problem.restart):
        engine.step(j, apply(engine.direction))
        if engine.idle(j, wait=False):
            return j + 1
    return problem.restart


def collect(engine: ArnoldiEngine, steps: int, calls: int) -> Decomposition:
    """Copies everything out of the workspace, zero beyond dims, into arrays for `steps` columns."""
    batch, rows, n = engine.basis.shape
    dims = engine.length.to(torch.int64, copy=True)
    # After dims columns there is one vector more, unless the space turned out invariant or was never started.
    vectors = dims + ((engine.outcome == ACTIVE) | (engine.outcome == BAD_COLUMN))
    written = torch.arange(rows, device=dims.device) < vectors[:, None]
    basis = torch.empty(batch, steps + 1, n, dtype=engine.basis.dtype, device=dims.device)
    basis[:, rows:] = 0
    basis[:, :rows].copy_(engine.basis).masked_fill_(~written[:, :, None], 0)
    more = steps + 1 - rows
    return Decomposition(
        basis=basis,
        hessenberg=torch.nn.functional.pad(engine.hessenberg, (0, more, 0, more)) if more else engine.hessenberg,
        dims=dims,
        norm=engine.beta.clone(),
        norm_exponent=engine.scale.to(torch.int64, copy=True),
        operator_calls=calls,
    )


def empty(problem: Problem, steps: int) -> Decomposition:
    """Of no system, or of systems without unknowns."""
    v = problem.b
    batch, n = v.shape[0], math.prod(v.shape[1:])
    numbers = torch.zeros(batch, dtype=torch.float64, device=v.device)
    return Decomposition(
        basis=torch.zeros(batch, steps + 1, n, dtype=v.dtype, device=v.device),
        hessenberg=numbers.new_zeros(batch, steps + 1, steps),
        dims=numbers.to(torch.int64),
        norm=numbers,
        norm_exponent=numbers.to(torch.int64),
        operator_calls=0,
    )
