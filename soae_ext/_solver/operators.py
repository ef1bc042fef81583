"""What the solver multiplies by: callables and matrices brought into one form, checked at every call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from soae_ext._solver.caller import GMRES, Caller

Operator = Callable[[Tensor], Tensor]


class Restrictable(Protocol):
    """An operator that can be narrowed to some of its systems, such as `soae_ext.hvp.HessianOperator`."""

    def __call__(self, v: Tensor) -> Tensor: ...

    def restrict(self, index: Tensor) -> Operator: ...


def as_operator(name: str, operator: Operator | Tensor, like: Tensor, caller: Caller = GMRES) -> Operator:
    """`operator` as a callable on the whole batch.

    A tensor `(n, n)` is shared by the batch, `(B, n, n)` holds one matrix per system; dense, or sparse COO or CSR.
    Raises `TypeError` or `ValueError` naming the argument when it cannot work on tensors like `like` `(B, *shape)`.
    """
    if not isinstance(operator, Tensor):
        if not callable(operator):
            hint = ": use torch.from_numpy" if type(operator).__module__ == "numpy" else ""
            kind = type(operator).__name__
            raise TypeError(f"{caller.function}: {name}: expected a callable or a tensor, got {kind}{hint}")
        return operator
    _check_matrix(name, operator, like, caller)
    matrix = operator.detach()
    if matrix.layout == torch.strided:
        return Dense(matrix, like.shape)
    return _Sparse(matrix, like.shape)


def _check_matrix(name: str, matrix: Tensor, like: Tensor, caller: Caller) -> None:
    where, b = f"{caller.function}: {name}", caller.batch
    batch, n = like.shape[0], math.prod(like.shape[1:])
    if tuple(matrix.shape) not in ((n, n), (batch, n, n)):
        raise ValueError(
            f"{where}: a tensor must have shape ({n}, {n}), shared by the batch, or ({batch}, {n}, {n}), one per "
            f"system, for {b} of shape {tuple(like.shape)}; got {tuple(matrix.shape)}"
        )
    if matrix.dtype != like.dtype:
        raise TypeError(f"{where}: dtype {matrix.dtype} differs from {b}'s {like.dtype}: convert with .to({b}.dtype)")
    if matrix.device != like.device:
        raise ValueError(f"{where}: on {matrix.device} while {b} is on {like.device}: move it with .to({b}.device)")
    if matrix.layout not in (torch.strided, torch.sparse_coo, torch.sparse_csr):
        raise ValueError(f"{where}: layout {matrix.layout} is not supported: use dense, COO or CSR")
    if matrix.layout != torch.strided and matrix.dense_dim() > 0:
        raise ValueError(f"{where}: a hybrid sparse tensor is not supported: use {name}.to_dense().to_sparse()")
    if name == "A" and matrix.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{where}: gradients through the solve are not implemented: pass {name}.detach() or call it under "
            "torch.no_grad()"
        )


class Dense:
    """Products with a dense matrix by torch."""

    def __init__(self, matrix: Tensor, shape: torch.Size) -> None:
        self.matrix = matrix
        # Row form (v Aᵀ): on the CPU torch runs it several times faster than the column form A v.
        self.transposed = matrix.mT
        self.shape = shape

    def __call__(self, v: Tensor) -> Tensor:
        flat = v.reshape(self.shape[0], -1)
        with torch.autocast(v.device.type, enabled=False):  # a matrix means the precision that it has
            return self.product(flat)

    def product(self, flat: Tensor) -> Tensor:
        if self.transposed.ndim == 2:
            return (flat @ self.transposed).view(self.shape)
        return torch.bmm(flat[:, None], self.transposed).view(self.shape)


class _Sparse:
    def __init__(self, matrix: Tensor, shape: torch.Size) -> None:
        self.shape = shape
        self.blocks = matrix.ndim == 3
        self.matrix = _block_diagonal(matrix) if self.blocks else matrix

    def __call__(self, v: Tensor) -> Tensor:
        columns = v.reshape(-1, 1) if self.blocks else v.reshape(self.shape[0], -1).T
        with torch.autocast(v.device.type, enabled=False):
            return (self.matrix @ columns).T.reshape(self.shape)


def _block_diagonal(matrix: Tensor) -> Tensor:
    """`(B, n, n)` sparse as one `(B n, B n)` CSR matrix: one product for the whole batch."""
    batch, n, _ = matrix.shape
    if matrix.layout == torch.sparse_csr:
        counts = matrix.crow_indices()[:, -1:].cumsum(0)
        starts = torch.cat([counts.new_zeros(1, 1), counts[:-1]])
        rows = (matrix.crow_indices()[:, :-1] + starts).flatten()
        crow = torch.cat([rows, counts[-1]])
        columns = (matrix.col_indices() + n * torch.arange(batch, device=rows.device)[:, None]).flatten()
        return torch.sparse_csr_tensor(crow, columns, matrix.values().flatten(), (batch * n, batch * n))
    coo = matrix.coalesce()
    block, row, column = coo.indices()
    index = torch.stack([block * n + row, block * n + column])
    return torch.sparse_coo_tensor(index, coo.values(), (batch * n, batch * n)).coalesce().to_sparse_csr()


class Checked:
    """Calls a user's operator and vets what it returns, once per call and cheaply."""

    def __init__(self, name: str, operator: Operator, like: Tensor, caller: Caller = GMRES) -> None:
        self.name, self.operator = name, operator
        self.where, self.batch = f"{caller.function}: {name}", caller.batch
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device

    def __call__(self, v: Tensor) -> Tensor:
        out = self.operator(v.detach())  # a tensor of its own: flags that the operator sets on it stay with it
        if not isinstance(out, Tensor) or out.layout != torch.strided:
            kind = out.layout if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"{self.where}: must return a dense tensor, returned {kind}")
        if out.shape != self.shape:
            raise ValueError(
                f"{self.where}: must return a tensor of {self.batch}'s shape {tuple(self.shape)}, got "
                f"{tuple(out.shape)}"
            )
        if out.dtype != self.dtype or out.device != self.device:
            raise TypeError(
                f"{self.where}: must return {self.dtype} on {self.device} like {self.batch}, returned {out.dtype} on "
                f"{out.device}: convert the result inside {self.name}"
            )
        return out.detach()


class Compaction:
    """Drops finished systems from the operator's batch through `A.restrict(index)`.

    Narrowing may cost the operator as much as a product or two, so inside a cycle it happens only once half of the
    batch is done; between cycles always.
    """

    def __init__(self, operator: Restrictable, like: Tensor) -> None:
        self.operator, self.like = operator, like
        self.full = Checked("A", operator, like)
        self.index: Tensor | None = None
        self.narrowed: Operator = self.full
        self.size = like.shape[0]

    def keep(self, wanted: Tensor, count: int, *, between_cycles: bool) -> None:
        """Serve the systems `wanted` `(B,)` bool, `count` of them, from the next call on."""
        if between_cycles and count == self.size:
            return
        if not between_cycles and (count == 0 or count > self.size // 2):
            return
        self.size = count
        if count == self.like.shape[0]:
            self.index, self.narrowed = None, self.full
            return
        index = wanted.nonzero().flatten()
        if index.device != self.like.device:  # by way of pinned memory, so that nobody waits
            index = index.pin_memory().to(self.like.device, non_blocking=True)
        self.index = index
        restricted = self.operator.restrict(self.index)
        self.narrowed = Checked("A.restrict(index)", restricted, self.like[:count])

    def __call__(self, v: Tensor) -> Tensor:
        if self.index is None:
            return self.narrowed(v)
        return torch.zeros_like(self.like).index_copy_(0, self.index, self.narrowed(v[self.index]))
