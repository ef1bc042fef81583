"""Systems of known spectrum whose products cost little beside the solver."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soae_ext.gmres import GMRESResult, Workspace, gmres

CORNER = 32  # unknowns that the low-rank part couples
HARD = 1e4  # condition number: the residual estimate of an easier system would underflow within 250 steps
EASY = 4.0  # of every second system where verdicts are to differ


@dataclass(frozen=True)
class Shape:
    batch: int
    n: int
    m: int

    def __str__(self) -> str:
        return f"B={self.batch} n={self.n} m={self.m}"


class Systems:
    """A_i = diag(d_i) + u u^T, random right-hand sides; the systems `part` of those that `shape` and a seed make.

    u is a unit vector over the first `CORNER` unknowns, where d_i is 1: so the eigenvalues are the other entries of
    d_i, log-uniform between 1/condition and 1, and 1 and 2. The condition is `HARD`; `mixed` makes every second
    system `EASY`. A product is one multiplication by the diagonal and what little u takes, in elementwise operations
    (a matrix product would wake all threads for it), written into a buffer that is kept.
    """

    def __init__(self, shape: Shape, device: torch.device, *, part: slice = slice(None), mixed: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        corner = min(CORNER, shape.n // 2)
        b = torch.randn(shape.batch, shape.n, generator=generator)
        condition = torch.full((shape.batch, 1), HARD)
        if mixed:
            condition[::2] = EASY
        diagonal = condition ** (torch.rand(shape.batch, shape.n, generator=generator) - 1)
        diagonal[:, :corner] = 1.0
        u = torch.randn(corner, generator=generator, dtype=torch.float64)
        self.n, self.m = shape.n, shape.m
        self.b, self.diagonal = b[part].to(device), diagonal[part].to(device)
        self.u64 = (u / u.norm()).to(device)
        self.u = self.u64.float()
        self.product = torch.empty_like(self.b)
        self.corner = self.product[:, :corner]

    def __call__(self, v: Tensor) -> Tensor:
        torch.mul(v, self.diagonal, out=self.product)
        self.corner.addcmul_((v[:, : len(self.u)] * self.u).sum(1, keepdim=True), self.u)
        return self.product

    def solve(self, workspace: Workspace, **options: Any) -> GMRESResult:
        """One cycle of exactly m steps, unless `options` say otherwise."""
        chosen: dict[str, Any] = {"rtol": 0.0, "restart": self.m, "max_iters": self.m, "workspace": workspace} | options
        return gmres(self, self.b, **chosen)

    def products(self, calls: int) -> None:
        """As many products as a solve makes."""
        for _ in range(calls):
            self(self.b)

    def relative_residuals(self, x: Tensor) -> Tensor:
        """||b - A x|| / ||b|| of every system, in float64."""
        found = []
        for b, d, x_i in zip(*(t.split(64) for t in (self.b, self.diagonal, x)), strict=True):
            b, x_i = b.double(), x_i.double()
            residual = b - d.double() * x_i
            corner = len(self.u64)
            residual[:, :corner] -= torch.outer(x_i[:, :corner] @ self.u64, self.u64)
            found.append(residual.norm(dim=1) / b.norm(dim=1))
        return torch.cat(found)

    def confirm(self, result: GMRESResult) -> dict[str, float]:
        """Stop the run unless the residuals that the solver tells are those of its x."""
        true = self.relative_residuals(result.x)
        told = result.residual_norm.double() / self.b.double().norm(dim=1)
        if not bool(((true - told).abs() <= 1e-2 * true + 1e-5).all()):
            raise SystemExit(f"the solver's residuals are not those of its x: {told.tolist()}, {true.tolist()}")
        return {"median": float(true.median()), "max": float(true.max())}


@functools.cache
def shared_workspace() -> Workspace:
    """One for all: timings are taken in turns, so memory is that of the largest solve."""
    return Workspace()
