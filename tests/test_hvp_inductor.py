"""Products that torch.compile fuses: the same numbers, reused for new points, labels and weights."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.nn.functional import cross_entropy

from soae_ext.hvp import gauss_newton_operator, hessian_operator
from tests.hvp_cases import batch, empty_trace_cache, net_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU")


@pytest.fixture(autouse=True)
def _fresh():
    with empty_trace_cache():
        yield


def test_the_product_is_that_of_the_trace_at_every_point_and_for_every_weight():
    model = net_of()
    loss = lambda x, y: cross_entropy(model(x), y, reduction="none")  # noqa: E731
    for seed in (1, 2):
        x, y, v = batch(seed=seed)
        fused, traced = (hessian_operator(loss, x, y, method=m) for m in ("inductor", "traced"))
        assert fused.method == "inductor"
        torch.testing.assert_close(fused.gradient, traced.gradient, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(fused.loss, traced.loss, rtol=1e-10, atol=1e-12)
        for _ in range(2):
            torch.testing.assert_close(fused(v), traced(v), rtol=1e-9, atol=1e-12)
        assert fused.gradient_calls == traced.gradient_calls == 5
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)


def test_the_gauss_newton_product_too():
    model = net_of()
    x, y, v = batch()
    fused, traced = (gauss_newton_operator(model, y, x, method=m) for m in ("inductor", "traced"))
    torch.testing.assert_close(fused(v), traced(v), rtol=1e-9, atol=1e-12)


def test_a_loss_that_cannot_be_traced_falls_back():
    x, _, v = batch()

    def loss(x):
        return x.flatten(1).pow(3).sum(1) * (1.0 if float(x.detach().sum()) > 0 else 2.0)

    with pytest.warns(UserWarning, match="cannot be compiled"):
        operator = hessian_operator(loss, x, method="inductor")
    assert operator.method == "input-only"
    torch.testing.assert_close(operator(v), 6 * x * v)
