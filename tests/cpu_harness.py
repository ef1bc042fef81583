"""Drives the CPU launchers of csrc/gmres.h directly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from soae_ext import _native
from tests.kernel_harness import KernelSolve, Operator, poisoned

_C: Any = _native.extension
GUARD = 4096


class CpuSolve(KernelSolve):
    """The same on csrc/cpu, with a number of threads, and a guard behind the scratch memory."""

    def __init__(self, b: torch.Tensor, *, threads: int = 1, **options: Any) -> None:
        super().__init__(SimpleNamespace(cuda=_C.cpu, SYSTEM=_C.SYSTEM, Solve=_C.Solve), b, **options)
        self.solve.threads = threads
        self.scratch_bytes = _C.cpu.scratch_bytes(self.solve)
        raw = poisoned(self.scratch_bytes + GUARD + 256, dtype=torch.uint8, device=b.device)
        self.scratch = raw[-raw.data_ptr() % 256 :]
        self.solve.scratch = self.scratch.data_ptr()

    def check_guard(self) -> None:
        assert (self.scratch[self.scratch_bytes :] == 0xFF).all(), "wrote behind the scratch memory"


def matvec(A: torch.Tensor) -> Operator:
    return lambda v: torch.matmul(A, v.unsqueeze(-1)).squeeze(-1)


def diagonal(n: int, dtype: torch.dtype) -> Operator:
    d = torch.linspace(1.0, 3.0, n, dtype=dtype)
    return lambda v: d * v
