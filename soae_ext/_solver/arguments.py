"""Every check of a solve's arguments, before any work: one error that names the argument and the remedy."""

from __future__ import annotations

import math
import operator
from typing import NoReturn

import torch
from torch import Tensor

from soae_ext._solver.caller import GMRES, Caller
from soae_ext._solver.driver import Callback, Problem
from soae_ext._solver.operators import Operator, as_operator
from soae_ext._solver.workspace import Workspace

_REAL = (torch.float32, torch.float64)
_ORTHOGONALIZATIONS = {"auto": "mgs", "mgs": "mgs", "cgs2": "cgs2"}
_HALVES = (torch.float16, torch.bfloat16)
_COUNT_LIMIT = 2**31 - 1  # iteration counts are int32


def prepare(
    A: Operator | Tensor,
    b: Tensor,
    x0: Tensor | None,
    *,
    M: Operator | Tensor | None,
    rtol: float | Tensor,
    atol: float | Tensor,
    restart: int,
    max_iters: int | None,
    flexible: bool,
    orthogonalization: str,
    basis_dtype: torch.dtype | None,
    history: bool,
    callback: Callback | None,
    workspace: Workspace,
    compact: bool,
) -> Problem:
    """The validated problem. Raises `TypeError`, `ValueError` or `NotImplementedError`."""
    check_batch(GMRES, b)
    if x0 is not None:
        _check_x0(x0, b)
    _check_basis_dtype(basis_dtype, b)
    if not isinstance(orthogonalization, str) or orthogonalization not in _ORTHOGONALIZATIONS:
        names = ", ".join(map(repr, _ORTHOGONALIZATIONS))
        _refuse("orthogonalization", f"unknown {orthogonalization!r}: use one of {names}")
    if callback is not None and not callable(callback):
        raise TypeError(f"gmres: callback: expected a callable or None, got {type(callback).__name__}")
    check_workspace(GMRES, workspace)
    cycle = count(GMRES, "restart", restart, least=1)
    return Problem(
        b=b.detach(),
        x0=None if x0 is None else x0.detach(),
        A=as_operator("A", A, b),
        M=None if M is None else as_operator("M", M, b),
        rtol=_tolerance("rtol", rtol, b),
        atol=_tolerance("atol", atol, b),
        restart=min(cycle, max(math.prod(b.shape[1:]), 1)),
        max_iters=min(10 * cycle if max_iters is None else count(GMRES, "max_iters", max_iters, least=0), _COUNT_LIMIT),
        flexible=bool(flexible),
        orthogonalization=_ORTHOGONALIZATIONS[orthogonalization],
        history=bool(history),
        callback=callback,
        compact=bool(compact),
        workspace=workspace,
        basis_dtype=basis_dtype,
    )


def _refuse(name: str, why: str) -> NoReturn:
    raise ValueError(f"gmres: {name}: {why}")


def check_batch(caller: Caller, b: Tensor) -> None:
    """Refuses what is not a dense, real `(B, *shape)` tensor with memory of its own and without a gradient."""
    function, name = caller
    if not isinstance(b, Tensor):
        raise TypeError(
            f"{function}: {name}: expected a tensor (B, *shape), got {type(b).__name__}: use torch.as_tensor"
        )
    if b.layout != torch.strided:
        raise ValueError(f"{function}: {name}: expected a dense tensor, got layout {b.layout}: use {name}.to_dense()")
    if not _has_memory(b):
        raise RuntimeError(
            f"{function}: {name}: has no storage (inside vmap or a function transform, on meta, or a fake tensor): "
            f"call {function} outside vmap, it is batched already, and with real tensors"
        )
    if b.ndim < 2:
        raise ValueError(
            f"{function}: {name}: expected (B, *shape), got shape {tuple(b.shape)}: add a batch dimension: {name}[None]"
        )
    if b.dtype.is_complex:
        raise NotImplementedError(
            f"{function}: {name}: complex systems are not implemented: use the real form of twice the size"
        )
    if b.dtype not in _REAL:
        raise TypeError(f"{function}: {name}: expected float32 or float64, got {b.dtype}: convert with {name}.float()")
    if b.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{function}: {name}: gradients through the solve are not implemented: pass {name}.detach() or call it "
            "under torch.no_grad()"
        )


def check_workspace(caller: Caller, workspace: Workspace) -> None:
    if not isinstance(workspace, Workspace):
        raise TypeError(f"{caller.function}: workspace: expected a Workspace() or None, got {type(workspace).__name__}")


def _has_memory(t: Tensor) -> bool:
    try:
        return t.numel() == 0 or t.data_ptr() != 0
    except RuntimeError:
        return False


def _check_x0(x0: Tensor, b: Tensor) -> None:
    if not isinstance(x0, Tensor):
        raise TypeError(f"gmres: x0: expected a tensor like b or None, got {type(x0).__name__}")
    if x0.shape != b.shape:
        _refuse(
            "x0", f"shape {tuple(x0.shape)} differs from b's {tuple(b.shape)}: use x0.expand_as(b) or x0.view_as(b)"
        )
    if x0.dtype != b.dtype:
        raise TypeError(f"gmres: x0: dtype {x0.dtype} differs from b's {b.dtype}: convert with x0.to(b.dtype)")
    if x0.device != b.device:
        _refuse("x0", f"on {x0.device} while b is on {b.device}: move it with x0.to(b.device)")
    if x0.layout != torch.strided:
        _refuse("x0", f"expected a dense tensor, got layout {x0.layout}: use x0.to_dense()")


def _check_basis_dtype(basis_dtype: torch.dtype | None, b: Tensor) -> None:
    if basis_dtype is None or basis_dtype in _HALVES or basis_dtype == b.dtype:
        return
    if basis_dtype == torch.float64:
        _refuse("basis_dtype", "torch.float64 is wider than b's torch.float32: use None, or convert b with b.double()")
    if basis_dtype != torch.float32:
        _refuse(
            "basis_dtype",
            f"unknown {basis_dtype!r}: use None, which stores the basis in b's dtype, torch.float16, torch.bfloat16, "
            "or torch.float32 for a float64 b",
        )


def _tolerance(name: str, value: float | Tensor, b: Tensor) -> float | Tensor:
    number = real(GMRES, name, value, b)
    if isinstance(number, Tensor):
        if not bool((number >= 0).all()):
            _refuse(name, "negative or NaN: every tolerance must be >= 0")
    elif not number >= 0:
        _refuse(name, f"{value} is negative or NaN: it must be >= 0")
    return number


def real(caller: Caller, name: str, value: float | Tensor, b: Tensor) -> float | Tensor:
    """A real number for all systems of `b`, or `(B,)` float64 on its device, one for each."""
    if isinstance(value, Tensor):
        if value.dtype.is_complex or value.dtype == torch.bool:
            raise TypeError(
                f"{caller.function}: {name}: expected real numbers, got {value.dtype}: convert with .float()"
            )
        if value.ndim > 0:
            if value.shape != b.shape[:1]:
                raise ValueError(
                    f"{caller.function}: {name}: expected a float or a tensor ({b.shape[0]},), got shape "
                    f"{tuple(value.shape)}"
                )
            return value.detach().to(b.device, torch.float64)
        value = float(value)
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        return float(value)
    except OverflowError:  # an integer beyond every float
        return math.inf
    except (TypeError, ValueError):
        raise TypeError(
            f"{caller.function}: {name}: expected a float, or a (B,) tensor for one each, got {type(value).__name__}"
        ) from None


def count(caller: Caller, name: str, value: int, *, least: int) -> int:
    """`value` as an `int`, at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{caller.function}: {name}: expected an integer, got {type(value).__name__}")
    if number < least:
        raise ValueError(f"{caller.function}: {name}: {number} is too small: it must be >= {least}")
    return number
