"""Curvature from the Jacobian of the logits itself: for few classes all of it is cheaper than a few products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from soae_ext._hvp.curvature import Autocast, differentiable

__all__ = ["JacobianOperator", "LossOfLogits"]

LossOfLogits = Callable[[Tensor, Tensor], Tensor]


class JacobianOperator:
    """v -> D' S D v, with the Jacobian D of the logit differences w_k = z_k - z_y, k != y, and S = d2 loss / dw2.

    The Gauss-Newton matrix of a loss that depends on differences of logits alone; where the logits are piecewise linear
    in the image it is the Hessian. D is held in memory, (C - 1) n numbers for each image, and a product is two small
    matrix products without a pass through the network. Differences instead of the logits keep the digits that
    cross-entropy loses where the network is sure of its label. Made by :func:`soae_ext.hvp.jacobian_operator`.

    Attributes:
        gradient: `(B, *shape)`, D' ds: gradient of each sample's loss.
        loss: `(B,)`.
        jacobian: `(B, C - 1, n)`, D. Row k is class (y + 1 + k) mod C.
        curvature: `(B, C - 1, C - 1)` float64, S.
        method: `"jacobian"`.
        gradient_calls: backward passes, C - 1; products and `restrict` cost none.
    """

    method = "jacobian"

    def __init__(self, loss: Tensor, gradient: Tensor, jacobian: Tensor, curvature: Tensor, calls: int) -> None:
        self.loss, self.gradient, self.jacobian, self.curvature = loss, gradient, jacobian, curvature
        self.gradient_calls = calls

    @property
    def adjoint(self) -> JacobianOperator:
        """The operator itself: curvature matrices are symmetric."""
        return self

    def __call__(self, v: Tensor) -> Tensor:
        """The product with `v` `(B, *shape)`.

        Raises:
            ValueError, TypeError: `v` has another shape, dtype or device than the images.
        """
        x = self.gradient
        if not isinstance(v, Tensor) or v.shape != x.shape or v.dtype != x.dtype or v.device != x.device:
            got = f"{tuple(v.shape)} {v.dtype} on {v.device}" if isinstance(v, Tensor) else type(v).__name__
            raise (ValueError if isinstance(v, Tensor) else TypeError)(
                f"v must be like the images, {tuple(x.shape)} {x.dtype} on {x.device}, got {got}"
            )
        with torch.no_grad(), torch.autocast(v.device.type, enabled=False):
            along = torch.bmm(self.jacobian, v.reshape(len(v), -1, 1)).double()
            bent = torch.bmm(self.curvature, along).to(v.dtype)
            return torch.bmm(bent.mT, self.jacobian).reshape(v.shape)

    def restrict(self, index: Tensor | Sequence[int]) -> JacobianOperator:
        """The operator on the samples `index`: positions `(k,)`, or a mask `(B,)` of dtype bool."""
        rows = torch.as_tensor(index, device=self.loss.device)
        return JacobianOperator(self.loss[rows], self.gradient[rows], self.jacobian[rows], self.curvature[rows], 0)

    def __repr__(self) -> str:
        return f"JacobianOperator(shape={tuple(self.gradient.shape)}, dtype={self.gradient.dtype})"


def build(logits_fn: Callable[[Tensor], Tensor], loss: LossOfLogits, y: Tensor, x: Tensor) -> JacobianOperator:
    """The operator at `x`, with checked labels; errors as :func:`soae_ext.hvp.jacobian_operator` says."""
    autocast = Autocast.current(x.device)
    with differentiable(x.device):
        points = x.detach().clone().requires_grad_()
        with autocast.restore():
            logits = logits_fn(points)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"logits_fn must return logits of shape (B, classes) = ({len(x)}, C), got {got}")
        classes = logits.shape[1]
        if classes < 2 or (y.numel() and int(y.max()) >= classes):
            raise ValueError(f"y must hold labels below the number of classes, {classes}, of at least 2 classes")
        others = (y[:, None] + 1 + torch.arange(classes - 1, device=y.device)) % classes
        jacobian = _differences(logits, points, others, y)
        losses, slope, curvature = _expanded(loss, logits.detach().double(), y)
    slope = slope.gather(1, others)
    curvature = curvature.gather(1, others[:, :, None].expand(-1, -1, classes))
    curvature = curvature.gather(2, others[:, None, :].expand(-1, classes - 1, -1))
    gradient = torch.bmm(slope.to(x.dtype)[:, None], jacobian).view(x.shape)
    return JacobianOperator(losses.to(x.dtype), gradient, jacobian, curvature, classes - 1)


def _differences(logits: Tensor, points: Tensor, others: Tensor, y: Tensor) -> Tensor:
    """d (z_k - z_y) / dx for the classes `others` `(B, C - 1)`, `(B, C - 1, n)`, by one backward pass for each."""
    flat = points.shape[1:].numel()
    if not logits.requires_grad:
        return points.new_zeros(*others.shape, flat)
    weights = torch.zeros(others.shape[1], *logits.shape, dtype=logits.dtype, device=logits.device)
    weights.scatter_(2, others.mT[:, :, None], 1.0).scatter_(2, y.expand(len(weights), -1)[:, :, None], -1.0)
    rows = [
        torch.autograd.grad(logits, points, weight, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        for weight in weights
    ]
    return torch.stack(rows, 1).flatten(2)


def _expanded(loss: LossOfLogits, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses `(B,)`, their gradients `(B, C)` and Hessians `(B, C, C)` with respect to float64 logits."""
    logits.requires_grad_()
    losses = loss(logits, y)
    (slope,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    size = slope.detach().abs().sum(1)
    if bool((slope.detach().sum(1).abs() > 1e-9 * size).any()):
        raise ValueError("loss must depend on differences of logits alone, as cross-entropy and margins do")
    columns = [torch.zeros_like(logits)] * logits.shape[1]
    if slope.requires_grad:
        columns = [
            torch.autograd.grad(column.sum(), logits, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for column in slope.unbind(1)
        ]
    return losses.detach(), slope.detach(), torch.stack(columns, 1)
