"""The contract of HessianOperator: refusals, modes, side effects, counts and restriction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from soae_ext.hvp import METHODS, HessianOperator, gauss_newton_operator, hessian_operator

Loss = Callable[..., Tensor]
EXACT = ["double-backward", "traced"]
FAST = [method for method in METHODS if method != "inductor"]  # whose first use takes seconds: test_hvp_inductor.py


def cubes(x: Tensor) -> Tensor:
    return x.pow(3).flatten(1).sum(1)


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.Dropout(), nn.Flatten(), nn.Linear(27, 4)]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(6, 1, 5, 5), torch.randint(4, (6,)), torch.randn(6, 1, 5, 5)


def ce_of(net: nn.Module) -> Loss:
    return lambda x, y: cross_entropy(net(x), y, reduction="none")


# Refusals


def refused(error: type[Exception], match: str, *args: Any, **options: Any) -> None:
    with pytest.raises(error, match=match):
        hessian_operator(*args, **options)


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (lambda x: x.square().sum(), ValueError),
        (lambda x: x.square(), ValueError),
        (lambda x: x.square().sum(1, keepdim=True), ValueError),
        (lambda x: x.square().sum(1)[:-1], ValueError),
        (lambda x: x.argmax(1), TypeError),
        (lambda x: [1.0, 2.0], TypeError),
    ],
)
def test_loss_that_is_not_per_sample_is_refused(loss: Loss, error: type[Exception], method: str) -> None:
    match = r"loss must return per-sample losses of shape \(B,\): use reduction='none'"
    refused(error, match if error is ValueError else "^loss must return", loss, torch.rand(3, 2), method=method)


def test_bad_points_are_refused() -> None:
    refused(TypeError, r"^x must be floating point, got torch.int64: use x.float\(\)", cubes, torch.ones(2, 2).long())
    refused(TypeError, "^x must be floating point, got torch.complex64", cubes, torch.ones(2, 2, dtype=torch.complex64))
    refused(TypeError, "^x must be a tensor", cubes, [[1.0]])
    refused(ValueError, r"^x must have shape.*add a batch dimension: x\[None\]", cubes, torch.rand(4))
    refused(ValueError, r"add a batch dimension", cubes, torch.tensor(1.0))
    refused(TypeError, "^loss must be callable, got Tensor", torch.rand(2), torch.rand(2, 2))


def test_bad_options_are_refused() -> None:
    x = torch.rand(2, 2)
    listed = "^method: unknown 'forward'; choose one of 'double-backward', 'finite-difference', 'traced'"
    refused(ValueError, listed, cubes, x, method="forward")
    for step in (0, 0.0, -1e-3, float("nan"), float("inf"), "small", True):
        refused(ValueError, "^step must be a positive number", cubes, x, method="finite-difference", step=step)
    for method in EXACT:
        refused(
            ValueError, "^step and central belong to method='finite-difference'", cubes, x, method=method, step=1e-3
        )
        refused(ValueError, "^step and central belong to", cubes, x, method=method, central=True)
    refused(ValueError, r"^x: finite differences need float32", cubes, x.half(), method="finite-difference")


@pytest.mark.parametrize("method", FAST)
def test_bad_directions_are_refused(method: str) -> None:
    operator = hessian_operator(cubes, torch.rand(2, 3), method=method)
    with pytest.raises(ValueError, match=r"^v must have the shape of x \(2, 3\), got \(2, 1, 3\): use v.reshape"):
        operator(torch.rand(2, 1, 3))
    with pytest.raises(TypeError, match=r"^v must have the dtype of x torch.float32, got torch.float64"):
        operator(torch.rand(2, 3).double())
    with pytest.raises(TypeError, match=r"^v must be a tensor"):
        operator([1.0])
    with pytest.raises(ValueError, match=r"^v must be on the device of x cpu, got meta"):
        operator(torch.empty(2, 3, device="meta"))
    assert operator.gradient_calls == 1


def test_bad_arguments_of_gauss_newton_are_refused(net: nn.Module, data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, _ = data

    def check(error: type[Exception], match: str, *args: Any, **options: Any) -> None:
        with pytest.raises(error, match=match):
            gauss_newton_operator(*args, **options)

    check(TypeError, "^y must be a tensor of int64 labels, got torch.float32", net, y.float(), x)
    check(ValueError, r"^y must have shape \(B,\) = \(6,\), got \(5,\)", net, y[:5], x)
    check(ValueError, "^y must not be negative", net, y - 4, x)
    check(ValueError, "^y must hold labels below the number of classes", net, y + 4, x)
    check(ValueError, r"^logits_fn must return logits of shape \(B, classes\)", lambda x: net(x).sum(1), y, x)
    check(TypeError, "^logits_fn must be callable", x, y, x)
    check(ValueError, "^method: unknown 'finite-difference'", net, y, x, method="finite-difference")


# Modes


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_in_every_grad_mode(mode: Any, method: str, net: nn.Module, data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, v = data
    expected = hessian_operator(ce_of(net), x, y, method=method)(v)
    with mode():
        operator = hessian_operator(ce_of(net), x.clone(), y.clone(), method=method)
        product = operator(v.clone())
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert torch.equal(product, expected)
    assert torch.equal(operator(v), expected)
    assert not product.requires_grad
    assert not product.is_inference()


@pytest.mark.parametrize("method", FAST)
def test_a_model_made_in_inference_mode_is_refused_in_one_line(method: str) -> None:
    with torch.inference_mode():
        weight = torch.rand(3, 3)
    with pytest.raises(RuntimeError, match=r"made under torch.inference_mode.*use torch.no_grad") as caught:
        hessian_operator(lambda x: (x @ weight).sin().sum(1), torch.rand(2, 3), method=method)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", FAST)
def test_autocast_runs_the_loss_alone(method: str, net: nn.Module, data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, v = data
    seen = []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits = net(x)
        seen.append(logits.dtype)
        return cross_entropy(logits.float(), y, reduction="none")

    plain = hessian_operator(ce_of(net), x, y)(v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        operator = hessian_operator(loss, x, y, method=method)
        inside = operator(v)
    assert set(seen) == {torch.bfloat16}
    assert inside.dtype == operator.gradient.dtype == torch.float32
    assert torch.equal(operator(v), inside)
    if method in EXACT:  # a difference of gradients that were rounded to 8 bits says little
        error = (inside - plain).norm() / plain.norm()
        assert 1e-6 < error < 0.1
    if method == "traced":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            eager = hessian_operator(loss, x, y, method="double-backward")(v)
        torch.testing.assert_close(inside, eager, rtol=1e-2, atol=1e-2 * float(eager.abs().max()))
        assert torch.equal(hessian_operator(ce_of(net), x, y)(v), plain)  # the setting is part of the trace's key


@pytest.mark.parametrize("method", FAST)
def test_autocast_does_not_reach_the_derivatives(method: str) -> None:
    torch.manual_seed(0)
    a, x, v = torch.rand(16, 16), torch.rand(2, 16), torch.rand(2, 16)

    def loss(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return (x @ a).sin().sum(1)

    plain = hessian_operator(loss, x, method=method)(v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hessian_operator(loss, x, method=method)(v), plain)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_points(dtype: torch.dtype, method: str) -> None:
    x = torch.rand(2, 3).to(dtype)
    product = hessian_operator(cubes, x, method=method)(torch.ones_like(x))
    torch.testing.assert_close(product, 6 * x, rtol=1e-2, atol=0)


@pytest.mark.parametrize("method", FAST)
def test_empty_batches(method: str) -> None:
    for shape in ((0, 3), (2, 0)):
        operator = hessian_operator(cubes, torch.rand(shape), method=method)
        assert operator(torch.rand(shape)).shape == operator.gradient.shape == shape
        assert operator.loss.shape == shape[:1]


@pytest.mark.parametrize("method", FAST)
def test_strides_of_point_and_direction_do_not_matter(method: str, data: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 4)).double()
    x, v = torch.rand(2, 2, 3, 4, 4, dtype=torch.float64)
    y = torch.tensor([1, 2])
    expected = hessian_operator(ce_of(net), x, y, method=method)(v)
    for layout in (
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
        lambda t: torch.stack([t, t], dim=-1)[..., 0],
    ):
        for point, direction in ((layout(x), v), (x, layout(v)), (layout(x), layout(v))):
            product = hessian_operator(ce_of(net), point, y, method=method)(direction)
            torch.testing.assert_close(product, expected, rtol=1e-6, atol=1e-9)
    expanded = v[:, :, :1, :1].expand_as(v)
    operator = hessian_operator(ce_of(net), x, y, method=method)
    torch.testing.assert_close(operator(expanded), operator(expanded.clone()), rtol=0, atol=0)


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True).eval()
    loss: Loss = lambda x: layer(x).pow(2)[..., 0].sum(1)  # noqa: E731 - with its type
    x, v = torch.rand(2, 2, 5, 8)
    traced, eager = (hessian_operator(loss, x, method=method)(v) for method in ("traced", "double-backward"))
    central = hessian_operator(
        lambda x: layer.double()(x).pow(2)[..., 0].sum(1), x.double(), method="finite-difference", central=True
    )(v.double())
    torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(traced.double(), central, rtol=1e-3, atol=1e-4)


# Side effects


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_nothing_else_changes(
    requires_grad: bool, method: str, net: nn.Sequential, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, y, v = data
    net[2].train()
    net.requires_grad_(requires_grad)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0) if requires_grad else None
    x.requires_grad_(requires_grad)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    copies = x.detach().clone(), y.clone(), v.clone()
    operator = hessian_operator(ce_of(net), x, y, method=method)
    operator(v)
    operator.restrict([0, 1])(v[:2])
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip((x, y, v), copies, strict=True))
    assert [module.training for module in net] == [False, False, True, False, False, False]
    for parameter in net.parameters():
        assert parameter.requires_grad == requires_grad
        assert parameter.grad is None if not requires_grad else bool((parameter.grad == 7.0).all())
    assert x.grad is None
    assert x.requires_grad == requires_grad


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda x: x.square().flatten(1).sum(1) / 2, id="identity"),
        pytest.param(lambda x: x.exp().flatten(1).sum(1), id="gradient-is-curvature"),
        pytest.param(lambda x: x.abs().flatten(1).sum(1), id="zero"),
    ],
)
def test_results_own_their_memory(loss: Loss, method: str) -> None:
    x, v = torch.rand(2, 3), torch.rand(2, 3)
    operator = hessian_operator(loss, x, method=method)
    kept, first = v.clone(), operator(v)
    expected = first.clone()
    first.fill_(5)
    operator.gradient.fill_(5)
    operator.loss.fill_(5)
    assert torch.equal(v, kept)
    assert torch.equal(operator(v), expected)


# Counts and restriction


@pytest.mark.parametrize(
    ("options", "cost"),
    [
        ({"method": "double-backward"}, 2),
        ({"method": "traced"}, 2),
        ({"method": "finite-difference"}, 1),
        ({"method": "finite-difference", "central": True}, 2),
    ],
)
def test_cost_in_gradients(options: dict[str, Any], cost: int) -> None:
    calls = []

    def loss(x: Tensor) -> Tensor:
        x.register_hook(lambda grad: calls.append(grad))
        return cubes(x)

    used = loss if options["method"] == "finite-difference" else cubes
    x, v = torch.rand(4, 3), torch.rand(4, 3)
    operator = hessian_operator(used, x, **options)
    assert operator.gradient_calls == 1
    operator(v)
    operator(v)
    assert operator.gradient_calls == 1 + 2 * cost
    assert len(calls) == (operator.gradient_calls if used is loss else 0)
    part = operator.restrict([0, 2])
    part.restrict([1])(v[:1])
    assert part.gradient_calls == 2 + cost
    assert operator.gradient_calls == 3 + 3 * cost


@pytest.mark.parametrize("method", FAST)
def test_operator_is_its_own_adjoint(method: str) -> None:
    operator = hessian_operator(cubes, torch.rand(2, 2), method=method)
    assert operator.adjoint is operator
    assert repr(operator) == f"HessianOperator(shape=(2, 2), dtype=torch.float32, method='{method}')"


INDICES: dict[str, Any] = {
    "list": [4, 1, 2],
    "positions": torch.tensor([5, 0]),
    "int32": torch.tensor([3], dtype=torch.int32),
    "repeated": torch.tensor([2, 2]),
    "mask": torch.tensor([True, False, True, True, False, True]),
    "all": torch.arange(6),
    "none": torch.tensor([], dtype=torch.int64),
    "empty list": [],
}


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("index", INDICES)
def test_restrict(index: str, method: str, net: nn.Module, data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, v = data
    x, v, net = x.double(), v.double(), net.double()
    weight = torch.rand(6, 1, dtype=torch.float64)

    def loss(x: Tensor, y: Tensor, weight: Tensor, shared: tuple[Tensor], state: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(net, state, (x,))
        assert shared[0].shape == (6, 4)
        return cross_entropy(logits + shared[0].mean(0), y, reduction="none") * weight[:, 0]

    # the shared tensors have leading dimension B too
    shared, state = (torch.rand(6, 4, dtype=torch.float64),), {"0.bias": torch.rand(3, dtype=torch.float64)}
    operator = hessian_operator(loss, x, y, weight, shared, state, method=method)
    whole = operator(v)
    part = operator.restrict(INDICES[index])
    rows = torch.as_tensor(INDICES[index])
    rows = rows if rows.dtype == torch.bool else rows.long()
    tolerance = {"rtol": 1e-6, "atol": 1e-8} if method == "finite-difference" else {"rtol": 1e-10, "atol": 1e-13}
    torch.testing.assert_close(part(v[rows]), whole[rows], **tolerance)
    torch.testing.assert_close(part.gradient, operator.gradient[rows])
    torch.testing.assert_close(part.loss, operator.loss[rows])


def test_restrict_refuses_what_it_cannot_do(data: tuple[Tensor, Tensor, Tensor]) -> None:
    operator = hessian_operator(cubes, data[0])
    for index in (torch.rand(2), torch.tensor([[0]]), torch.tensor([True, False]), torch.tensor(1)):
        with pytest.raises(TypeError, match=r"^index must be positions"):
            operator.restrict(index)
    for index in ([6], [-1], [0, 100]):
        with pytest.raises(ValueError, match=r"^index must lie in \[0, 6\)"):
            operator.restrict(index)
    coupled = hessian_operator(lambda x: (x - x.mean(0)).square().flatten(1).sum(1), data[0])
    with pytest.raises(ValueError, match=r"^restrict: the loss of the chosen samples differs"):
        coupled.restrict([0, 3])


def test_restricted_gauss_newton(net: nn.Module, data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, v = data
    operator = gauss_newton_operator(net.double(), y, x.double())
    assert isinstance(operator, HessianOperator)
    part = operator.restrict([3, 0])
    torch.testing.assert_close(part(v[[3, 0]].double()), operator(v.double())[[3, 0]], rtol=1e-10, atol=1e-14)
    assert operator.gradient_calls == 6
