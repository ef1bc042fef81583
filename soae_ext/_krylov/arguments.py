"""Every check of the arguments of soae_ext.krylov, before any work: one error that names argument and remedy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from soae_ext._solver.arguments import check_batch, check_workspace, count, real
from soae_ext._solver.caller import Caller
from soae_ext._solver.driver import Problem
from soae_ext._solver.operators import Operator, as_operator
from soae_ext._solver.workspace import Workspace

ARNOLDI = Caller("arnoldi", "v")


def prepare(A: Operator | Tensor, v: Tensor, steps: int, workspace: Workspace) -> Problem:
    """The validated problem; its `restart` is `steps` clamped to n.

    Raises `TypeError`, `ValueError`, `RuntimeError` or `NotImplementedError`.
    """
    check_batch(ARNOLDI, v)
    check_workspace(ARNOLDI, workspace)
    columns = min(count(ARNOLDI, "steps", steps, least=1), max(math.prod(v.shape[1:]), 1))
    return Problem(
        b=v.detach(),
        x0=None,
        A=as_operator("A", A, v, ARNOLDI),
        M=None,
        rtol=0.0,
        atol=0.0,
        restart=columns,
        max_iters=columns,
        flexible=False,
        orthogonalization="cgs2",
        history=False,
        callback=None,
        compact=False,
        workspace=workspace,
        keeps_hessenberg=True,
    )


def finite(function: str, name: str, value: float | Tensor, like: Tensor, *, least: float | None = None) -> Tensor:
    """`value`, a float or a `(B,)` tensor, as `(B,)` float64 on `like`'s device; finite, and at least `least`."""
    number = real(Caller(function, "v"), name, value, like)
    numbers = torch.as_tensor(number, dtype=torch.float64, device=like.device).expand(like.shape[0])
    low = -math.inf if least is None else least
    if not bool((numbers.isfinite() & (numbers >= low)).all()):
        bound = "" if least is None else f" and >= {least:g}"
        raise ValueError(f"{function}: {name}: every value must be finite{bound}, got {value}")
    return numbers
