"""Losses and checks that the tests of compiled curvature products share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from soae_ext._hvp import linearize
from soae_ext.hvp import HessianOperator, hessian_operator

Loss = Callable[..., Tensor]


@contextmanager
def empty_trace_cache() -> Iterator[None]:
    """No traces at the start; a warning that a test does not expect is an error."""
    linearize._cache.entries = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
    linearize._cache.entries = []


class Counting:
    """Counts how often the Python code of a loss runs: compiled products do not run it."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.calls = 0

    def __call__(self, *args: Any) -> Tensor:
        self.calls += 1
        return self.loss(*args)


def net_of(seed: int = 0, activation: type[nn.Module] = nn.Softplus) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3), activation(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), activation(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).double().eval()


def batch(size: int = 4, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    x, v = torch.rand(2, size, 2, 6, 6, dtype=torch.float64)
    return x, torch.randint(3, (size,)), v


def check(loss: Loss, x: Tensor, *args: Any, v: Tensor | None = None, method: str = "traced") -> HessianOperator:
    """The default operator, after comparing it with plain double backward."""
    v = torch.rand_like(x) if v is None else v
    operator = hessian_operator(loss, x, *args)
    expected = hessian_operator(loss, x, *args, method="double-backward")
    torch.testing.assert_close(operator(v), expected(v), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(operator.gradient, expected.gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(operator.loss, expected.loss, rtol=1e-12, atol=1e-14)
    assert operator.method == method
    return operator


def traces_of(loss: Counting, use: Callable[[], object]) -> int:
    """How often ``use`` ran the loss in Python."""
    before = loss.calls
    use()
    return loss.calls - before


def ce_of(net: nn.Module) -> Loss:
    return lambda x, y: cross_entropy(net(x), y, reduction="none")
