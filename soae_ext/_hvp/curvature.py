"""Curvature by automatic differentiation: a point goes in, the loss, its gradient and the product come out.

A ``Problem`` is evaluated with ordinary autograd; ``soae_ext._hvp.trace`` runs the same code once to compile it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

Product = Callable[[Tensor], Tensor]


class Problem(Protocol):
    """What is differentiated: the user's callable, and the autocast setting that it runs under."""

    @property
    def function(self) -> Callable[..., Tensor]: ...

    @property
    def autocast(self) -> Autocast: ...

    def losses(self, x: Tensor, *args: Any) -> Tensor:
        """Per-sample losses (B,), differentiable in x."""

    def expand(self, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Product]:
        """Losses (B,), gradient like ``x`` and the curvature product at ``x``, a leaf that requires grad."""


@contextmanager
def differentiable(device: torch.device) -> Iterator[None]:
    """Autograd on, whatever the caller switched off; autocast off, because casts belong to the loss alone."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Choose implementations that have a second derivative: fused attention and compiled modules have none."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@dataclass(frozen=True)
class Autocast:
    """The caller's autocast setting, which the loss is to run under."""

    device_type: str
    enabled: bool
    dtype: torch.dtype

    @staticmethod
    def current(device: torch.device) -> Autocast:
        enabled = torch.is_autocast_enabled(device.type)
        return Autocast(device.type, enabled, torch.get_autocast_dtype(device.type))

    def restore(self) -> torch.autocast:
        """A context with this setting and without the cache of cast weights, which would outlive a change of them."""
        if not self.enabled:
            return torch.autocast(self.device_type, enabled=False)
        return torch.autocast(self.device_type, self.dtype, cache_enabled=False)


def _derivative(outputs: Tensor, x: Tensor, weights: Tensor | None = None, *, create_graph: bool = False) -> Tensor:
    """Gradient of <outputs, weights>; zero where ``outputs`` does not depend on ``x``. Keeps the graph."""
    if not outputs.requires_grad:
        return torch.zeros_like(x)
    (result,) = torch.autograd.grad(
        outputs, x, weights, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return result


def checked_losses(losses: Any, x: Tensor, name: str = "loss") -> Tensor:
    """``losses`` itself if it is what the contract asks for."""
    if not isinstance(losses, Tensor):
        raise TypeError(f"{name} must return a tensor of shape (B,), got {type(losses).__name__}")
    if losses.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must return per-sample losses of shape (B,): use reduction='none' "
            f"(B = {x.shape[0]}, got shape {tuple(losses.shape)})"
        )
    if not losses.is_floating_point():
        raise TypeError(f"{name} must return floating-point losses, got {losses.dtype}")
    return losses


def gradient(problem: Problem, x: Tensor, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Losses (B,) and gradient at ``x``, both detached, by one forward and one backward pass."""
    with differentiable(x.device):
        x = x.detach().requires_grad_()
        losses = problem.losses(x, *args)
        if not losses.requires_grad:
            return losses.detach(), torch.zeros_like(x)
        (result,) = torch.autograd.grad(losses.sum(), x, allow_unused=True, materialize_grads=True)
    return losses.detach(), result


@dataclass(frozen=True)
class HessianProblem:
    """v -> H v with H the Hessian of each sample's loss, by differentiating <gradient, v> (Pearlmutter 1994)."""

    function: Callable[..., Tensor]
    autocast: Autocast

    def losses(self, x: Tensor, *args: Any) -> Tensor:
        with self.autocast.restore():
            return checked_losses(self.function(x, *args), x)

    def expand(self, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Product]:
        with _twice_differentiable():
            losses = self.losses(x, *args)
        slope = _derivative(losses.sum(), x, create_graph=True)
        return losses, slope, lambda v: _derivative(slope, x, v)


@dataclass(frozen=True)
class GaussNewtonProblem:
    """v -> J^T (diag(p) - p p^T) J v for cross-entropy of logits with Jacobian J and probabilities p.

    J v comes from differentiating the linear map u -> J^T u once more, so reverse mode alone is needed.
    """

    function: Callable[..., Tensor]
    autocast: Autocast

    def _logits(self, x: Tensor) -> Tensor:
        with self.autocast.restore():
            logits = self.function(x)
        if not isinstance(logits, Tensor):
            raise TypeError(f"logits_fn must return a tensor of shape (B, classes), got {type(logits).__name__}")
        if logits.dim() != 2 or logits.shape[0] != x.shape[0]:
            raise ValueError(f"logits_fn must return logits of shape (B, classes), got {tuple(logits.shape)}")
        return logits.to(torch.promote_types(logits.dtype, x.dtype))

    def losses(self, x: Tensor, *args: Any) -> Tensor:
        return cross_entropy(self._logits(x), args[0], reduction="none")

    def expand(self, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Product]:
        with _twice_differentiable():
            logits = self._logits(x)
        losses = cross_entropy(logits, args[0], reduction="none")
        slope = _derivative(losses.sum(), x)
        p = logits.detach().softmax(dim=1)
        u = torch.zeros_like(logits).requires_grad_()
        pulled_back = _derivative(logits, x, u, create_graph=True)

        def product(v: Tensor) -> Tensor:
            jv = _derivative(pulled_back, u, v)
            return _derivative(logits, x, p * (jv - (p * jv).sum(dim=1, keepdim=True)))

        return losses, slope, product
