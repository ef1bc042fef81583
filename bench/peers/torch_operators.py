"""The three operators in PyTorch, for the runners of this project, CoLA and xitorch: the same code for all of them."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from protocol import Task
from torch import Tensor

Product = Callable[[Tensor], Tensor]

DEVICE = torch.device(os.environ.get("COMPARE_DEVICE", "cpu"))


def set_threads() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(DEVICE)


def finish() -> None:
    """Wait for the GPU, where there is one at work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def operator(task: Task) -> Product:
    """v `(B, n)` -> A v `(B, n)`. Batched products in row form, which PyTorch runs fastest on the CPU."""
    arrays = {key: tensor(value) for key, value in task.arrays.items()}
    if task.kind == "stencil":
        # Which form is faster depends on the size: let it be measured.
        return _faster([_slices(arrays["weights"]), _sparse(arrays["weights"], task.b.shape[1])], tensor(task.b))
    return {"dense": _dense, "lowrank": _lowrank}[task.kind](arrays)


def _faster(products: list[Product], v: Tensor) -> Product:
    def seconds(product: Product) -> float:
        spent = []
        for _ in range(20):
            start = time.perf_counter()
            product(v)
            finish()
            spent.append(time.perf_counter() - start)
        return sorted(spent)[len(spent) // 2]

    return min(products, key=seconds)


def _dense(arrays: dict[str, Tensor]) -> Product:
    transposed = arrays["matrix"].mT
    return lambda v: torch.bmm(v[:, None], transposed)[:, 0]


def _lowrank(arrays: dict[str, Tensor]) -> Product:
    diagonal, left, right = arrays["diagonal"], arrays["left"], arrays["right"].mT
    if not bool(diagonal.any()):
        return lambda v: torch.bmm(torch.bmm(v[:, None], right), left)[:, 0]
    return lambda v: torch.bmm(torch.bmm(v[:, None], right), left)[:, 0].addcmul_(diagonal, v)


def _slices(weights: Tensor) -> Product:
    c, w, e, north, south = weights.T[:, :, None, None]

    def apply(v: Tensor) -> Tensor:
        g = round(v.shape[1] ** 0.5)
        u = v.view(-1, g, g)
        out = u * c
        out[:, :, 1:].addcmul_(u[:, :, :-1], w)
        out[:, :, :-1].addcmul_(u[:, :, 1:], e)
        out[:, 1:].addcmul_(u[:, :-1], north)
        out[:, :-1].addcmul_(u[:, 1:], south)
        return out.view_as(v)

    return apply


def _sparse(weights: Tensor, n: int) -> Product:
    """All systems as one block-diagonal matrix in CSR."""
    batch, g = weights.shape[0], round(n**0.5)
    at = torch.arange(n, device=weights.device)
    inside = [at >= 0, at % g > 0, at % g < g - 1, at >= g, at < n - g]  # centre, west, east, north, south
    rows = torch.cat([at[keep] for keep in inside])
    columns = torch.cat([at[keep] + step for keep, step in zip(inside, (0, -1, 1, -g, g), strict=True)])
    entries = torch.cat([weights[:, [k]].expand(batch, int(keep.sum())) for k, keep in enumerate(inside)], 1)
    block = n * torch.arange(batch, device=weights.device)[:, None]
    index = torch.stack([(block + rows).flatten(), (block + columns).flatten()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "CSR support is in beta"
        matrix = torch.sparse_coo_tensor(index, entries.flatten(), (batch * n, batch * n)).to_sparse_csr()
    return lambda v: (matrix @ v.reshape(-1)).view_as(v)
