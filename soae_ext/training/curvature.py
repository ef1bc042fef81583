"""Gradients and Hessian-vector products with respect to the images that a loss can be differentiated through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Product", "hessian_product", "image_gradient", "product_cost", "second_derivatives", "update_cost"]

Product = Literal["finite-difference", "double-backward"]
Losses = Callable[[Tensor], Tensor]


@contextmanager
def second_derivatives(x: Tensor) -> Iterator[None]:
    """Autograd on, also where the value alone is asked for, and autocast off.

    A difference of two gradients that a network computed in half precision has no digits left.
    """
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        yield


def image_gradient(losses: Tensor, points: Tensor) -> Tensor:
    """The gradient of each of `losses` `(B,)` at its image in `points`, with its graph: differentiate it at will."""
    gradient: Tensor
    (gradient,) = torch.autograd.grad(losses.sum(), points, create_graph=True)
    return gradient


def hessian_product(losses: Losses, points: Tensor, gradient: Tensor, v: Tensor, h: float, method: Product) -> Tensor:
    """H v for the Hessian H of each sample's loss at its image, with its graph.

    Args:
        losses: images `(B, *shape)` -> losses `(B,)`.
        points: the images, which require a gradient.
        gradient: what :func:`image_gradient` gave there.
        v: `(B, *shape)`, a constant.
        h: length of the step in multiples of `v`.
        method: `"finite-difference"` is [g(x + h v) - g(x)] / h, `"double-backward"` the exact product.
    """
    if method == "finite-difference":
        moved = (points.detach() + h * v).requires_grad_(True)
        return (image_gradient(losses(moved), moved) - gradient) / h
    product: Tensor
    (product,) = torch.autograd.grad(gradient, points, v, create_graph=True)
    return product


def product_cost(method: Product) -> int:
    """Gradients that a product costs."""
    return 1 if method == "finite-difference" else 2


def update_cost(method: Product) -> int:
    """Gradients that a gradient, a product and the derivative of a function of both cost.

    The last goes back through all four passes before it: two forward and two backward passes, or a forward and a
    backward pass and the two passes of the exact product.
    """
    return 1 + product_cost(method) + 4
