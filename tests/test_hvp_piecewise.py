"""`is_piecewise_linear` and what SOAE makes of it; autograd's Hessian is the oracle of every `True`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from soae_ext.attacks import SOAE
from soae_ext.hvp import gauss_newton_operator, hessian_operator, is_piecewise_linear
from soae_ext.models import digits_network, load_model

SHAPE = (2, 8, 8)


def smooth_but_for(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), activation, nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, groups=2),
        activation, nn.AvgPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6, 12), activation, nn.Linear(12, 5),
    ).double().eval()  # fmt: skip


class Function(nn.Module):
    """A small network around a function of the features."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.function, self.first, self.last = function, nn.Linear(128, 12), nn.Linear(12, 5)
        self.double().eval()

    def forward(self, x):
        return self.last(self.function(self.first(x.flatten(1))))


def written_into_a_buffer(h):
    buffer = torch.zeros_like(h)
    buffer.add_(h)
    return buffer * buffer


def written_into_a_view(h):
    buffer = torch.zeros_like(h)
    buffer[:, :6] += h[:, :6]
    return buffer * h


PIECEWISE = {
    "relu": F.relu, "leaky": F.leaky_relu, "relu6": F.relu6, "abs": torch.abs, "clamp": lambda h: h.clamp(-0.1, 0.3),
    "maxout": lambda h: torch.maximum(h, h.roll(1, 1)), "residual": lambda h: h + F.relu(-2 * h) / 3,
    "in place": lambda h: F.relu(h.neg().add_(0.1), inplace=True), "max": lambda h: h + h.max(1, keepdim=True).values,
    "mixing": lambda h: h @ torch.ones(12, 12, dtype=h.dtype) - h.mean(1, keepdim=True),
    "pieces": lambda h: torch.cat([h[:, :3].neg(), h[:, 3:]], 1), "prelu": lambda h: F.prelu(h, h.new_full((1,), 0.2)),
}  # fmt: skip
CURVED = {
    "square": lambda h: h * h, "sigmoid": torch.sigmoid, "silu": F.silu, "gelu": F.gelu, "softplus": F.softplus,
    "tanh": torch.tanh, "layer norm": lambda h: F.layer_norm(h, (12,)), "softmax": lambda h: h.softmax(1),
    "gate": lambda h: h * F.relu(h), "norm": lambda h: h / h.norm(dim=1, keepdim=True), "reciprocal": lambda h: 1 / h,
    "outer": lambda h: (h[:, :, None] @ h[:, None, :]).sum(2), "power": lambda h: h**2, "buffer": written_into_a_buffer,
    "view": written_into_a_view, "matrix": lambda h: F.linear(h, h[:12].expand(12, 12)),
}  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [*(Function(f) for f in PIECEWISE.values()), smooth_but_for(nn.ReLU()), smooth_but_for(nn.LeakyReLU(0.1))],
    ids=[*PIECEWISE, "convolutional relu", "convolutional leaky"],
)
def test_a_proof_holds(model):
    """Where the answer is yes autograd's Hessian of the loss is its Gauss-Newton part."""
    torch.manual_seed(2)
    x, y, v = torch.rand(6, *SHAPE).double(), torch.arange(6) % 5, torch.randn(6, *SHAPE).double()
    assert is_piecewise_linear(model, x)
    loss = lambda x, y: F.cross_entropy(model(x), y, reduction="none")  # noqa: E731
    whole = hessian_operator(loss, x, y, method="double-backward")(v)
    part = gauss_newton_operator(model, y, x, method="double-backward")(v)
    assert float(whole.abs().max()) > 1e-6
    torch.testing.assert_close(whole, part, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("function", CURVED.values(), ids=CURVED)
def test_what_bends_is_never_taken_for_piecewise_linear(function):
    assert not is_piecewise_linear(Function(function), torch.rand(12, *SHAPE).double())


def test_train_mode_and_functions_that_cannot_be_traced_are_not():
    x = torch.rand(4, *SHAPE).double()
    assert not is_piecewise_linear(smooth_but_for(nn.ReLU()).train(), x)
    assert not is_piecewise_linear(lambda x: x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1), x)
    assert not is_piecewise_linear(lambda x: F.dropout(x.flatten(1), 0.5, training=True), x)


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        ("small-cnn", (1, 28, 28), True), ("small-cnn:silu", (1, 28, 28), False), ("wrn-10-1", (3, 32, 32), True),
        ("resnet18:width=4", (3, 32, 32), True), ("resnet18:width=4,activation=softplus", (3, 32, 32), False),
    ],
)  # fmt: skip
def test_the_networks_of_the_package(spec, shape, expected):
    assert is_piecewise_linear(load_model(spec).eval(), torch.rand(2, *shape)) is expected


def test_the_attack_takes_the_jacobian_where_it_wins(small_data):
    x, y = small_data
    options = {"steps": 2, "max_dim": 5, "early_stop": False}
    relu = digits_network()
    auto = SOAE(0.2, hvp="auto", **options)(relu, x, y)
    direct = SOAE(0.2, hvp="jacobian", classes=10, **options)(relu, x, y)
    assert torch.equal(auto.x_adv, direct.x_adv)
    assert torch.equal(auto.gradient_calls, direct.gradient_calls)
    assert torch.equal(auto.krylov_dims, direct.krylov_dims)
    assert (auto.forward_calls - direct.forward_calls).tolist() == [1] + [0] * (len(x) - 1)


@pytest.mark.parametrize(
    ("spec", "options"),
    [("small-cnn", {"max_dim": 2}), ("small-cnn:silu", {"max_dim": 5}), ("small-cnn", {"second_order_steps": 0})],
)
def test_and_products_elsewhere(small_data, spec, options):
    x, y = small_data
    torch.manual_seed(0)
    model = load_model(spec)
    auto, traced = (SOAE(0.2, steps=2, early_stop=False, hvp=h, **options)(model, x, y) for h in ("auto", "traced"))
    assert torch.equal(auto.x_adv, traced.x_adv)
    assert torch.equal(auto.gradient_calls, traced.gradient_calls)


def test_a_budget_is_not_exceeded(small_data):
    x, y = small_data
    attack = SOAE(0.2, gradients=40, max_dim=6, second_order_steps=2, hvp="auto", early_stop=False)
    result = attack(digits_network(), x, y)
    assert int(result.gradient_calls.max()) <= 40
    plan = attack.plan()
    assert result.krylov_dims.shape == (len(x), plan.restarts * plan.steps)


@pytest.fixture
def small_data():
    from soae_ext.data import load_digits

    data = load_digits().first(12)
    return data.images, data.labels
