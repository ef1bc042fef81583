"""Curvature products against closed forms, torch.func, torch.autograd.functional and explicit Hessians."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from soae_ext.hvp import gauss_newton_operator, hessian_operator
from soae_ext.models.resnet import resnet18

EXACT = ["double-backward", "traced"]
CLASSES = 4

Activation = Callable[[], nn.Module]


def small_net(activation: Activation, dtype: torch.dtype = torch.float64, *, pool: bool = True) -> nn.Sequential:
    """Convolution, batch norm, pooling and linear layers on 1 x 6 x 6 images, with statistics that matter."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        activation(),
        nn.MaxPool2d(2) if pool else nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(6),
        activation(),
        nn.Flatten(),
        nn.Linear(54, CLASSES),
    )
    norm = net[4]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.running_mean, std=0.3)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return net.to(dtype).eval()


def batch(size: int = 3, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and directions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(size, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (size,), generator=generator)
    v = torch.randn(size, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x.to(dtype), y, v.to(dtype)


def ce_of(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: cross_entropy(net(x), y, reduction="none")


def explicit_hessian(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B, n, n), one sample at a time by torch.autograd.functional."""
    blocks = []
    for image, label in zip(x, y, strict=True):

        def one(flat: Tensor, label: Tensor = label, shape: torch.Size = image.shape) -> Tensor:
            return cross_entropy(net(flat.reshape(1, *shape)), label[None])

        blocks.append(torch.autograd.functional.hessian(one, image.flatten()))
    return torch.stack(blocks)


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu-inplace": lambda: nn.ReLU(inplace=True),
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_product_gradient_and_loss_agree_with_the_explicit_hessian(activation: str, method: str) -> None:
    net, (x, y, v) = small_net(ACTIVATIONS[activation]), batch()
    operator = hessian_operator(ce_of(net), x, y, method=method)
    assert operator.method == method
    expected = (explicit_hessian(net, x, y) @ v.flatten(1)[..., None]).reshape(x.shape)
    torch.testing.assert_close(operator(v), expected, rtol=1e-10, atol=1e-12)

    leaf = x.clone().requires_grad_()
    losses = ce_of(net)(leaf, y)
    torch.testing.assert_close(operator.loss, losses.detach())
    torch.testing.assert_close(operator.gradient, torch.autograd.grad(losses.sum(), leaf)[0])


@pytest.mark.parametrize("method", EXACT)
def test_product_agrees_with_forward_over_reverse(method: str) -> None:
    net, (x, y, v) = small_net(nn.SiLU, pool=False), batch()
    gradient = torch.func.grad(lambda x: cross_entropy(net(x), y, reduction="sum"))
    expected = torch.func.jvp(gradient, (x,), (v,))[1]
    torch.testing.assert_close(hessian_operator(ce_of(net), x, y, method=method)(v), expected, rtol=1e-10, atol=1e-13)


def test_traced_equals_double_backward_on_a_resnet() -> None:
    torch.manual_seed(3)
    net = resnet18(width=4).eval()
    x, v = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    y = torch.tensor([1, 7])
    traced, eager = (hessian_operator(ce_of(net), x, y, method=method) for method in ("traced", "double-backward"))
    assert traced.method == "traced"
    rounding = 20 * torch.finfo(torch.float32).eps
    assert relative_error(traced(v), eager(v)) <= rounding
    assert relative_error(traced.gradient, eager.gradient) <= rounding


@pytest.mark.parametrize("method", EXACT)
def test_quadratic(method: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x, v = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    operator = hessian_operator(lambda x: ((x @ a) * x).sum(1) / 2 + x @ b, x, method=method)
    torch.testing.assert_close(operator(v), v @ (a + a.T) / 2)
    torch.testing.assert_close(operator.gradient, x @ (a + a.T) / 2 + b)


@pytest.mark.parametrize("method", EXACT)
def test_logistic_regression(method: str) -> None:
    """Hessian of log(1 + exp(-y w.x)) in x: s (1 - s) w w^T with s = sigmoid(w.x)."""
    torch.manual_seed(0)
    w, y = torch.randn(6, dtype=torch.float64), torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    x, v = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    operator = hessian_operator(lambda x, y: nn.functional.softplus(-y * (x @ w)), x, y, method=method)
    s = (x @ w).sigmoid()
    torch.testing.assert_close(operator(v), (s * (1 - s) * (v @ w))[:, None] * w)


@pytest.mark.parametrize("method", [*EXACT, "finite-difference"])
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda x: x.new_ones(len(x)), id="constant"),
        pytest.param(lambda x: x.sum(1), id="linear"),
        pytest.param(lambda x: x.abs().sum(1), id="piecewise-linear"),
        pytest.param(lambda x: x.detach().sum(1), id="detached"),
        pytest.param(lambda x: nn.Parameter(torch.ones(len(x), dtype=x.dtype)) * 2, id="only-a-parameter"),
    ],
)
def test_no_curvature_gives_zeros(loss: Callable[[Tensor], Tensor], method: str) -> None:
    x = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)
    operator = hessian_operator(loss, x, method=method)
    product = operator(torch.ones_like(x))
    assert product.shape == x.shape
    assert product.abs().max() <= 1e-9 * (method == "finite-difference")


@pytest.mark.parametrize("method", EXACT)
def test_vanishing_gradient_does_not_hide_the_curvature(method: str) -> None:
    x = torch.zeros(2, 3)
    v = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.0]])
    torch.testing.assert_close(hessian_operator(lambda x: x.square().sum(1), x, method=method)(v), 2 * v)


# Gauss-Newton


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gauss_newton_agrees_with_the_explicit_matrix(activation: str, method: str) -> None:
    net, (x, y, v) = small_net(ACTIVATIONS[activation]), batch()
    operator = gauss_newton_operator(net, y, x, method=method)
    jacobian = torch.stack([torch.func.jacrev(net)(image[None]).reshape(CLASSES, -1) for image in x])
    p = net(x).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = jacobian.mT @ middle @ jacobian @ v.flatten(1)[..., None]
    torch.testing.assert_close(operator(v), expected.reshape(x.shape).detach(), rtol=1e-10, atol=1e-13)
    exact = hessian_operator(ce_of(net), x, y)
    torch.testing.assert_close(operator.loss, exact.loss)
    torch.testing.assert_close(operator.gradient, exact.gradient)


def matrix_of(operator: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrices (B, n, n) of an operator, column by column."""
    n = torch.Size(shape[1:]).numel()
    columns = [operator(e.reshape(1, *shape[1:]).expand(shape)) for e in torch.eye(n, dtype=torch.float64)]
    return torch.stack([column.flatten(1) for column in columns], dim=2)


def test_relu_network_has_a_semidefinite_hessian_of_low_rank_equal_to_gauss_newton() -> None:
    net, (x, y, _) = small_net(nn.ReLU), batch()
    hessian = matrix_of(hessian_operator(ce_of(net), x, y), tuple(x.shape))
    gauss_newton = matrix_of(gauss_newton_operator(net, y, x), tuple(x.shape))
    torch.testing.assert_close(hessian, gauss_newton, rtol=1e-10, atol=1e-14)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert (eigenvalues >= -1e-12 * eigenvalues.abs().amax()).all()
    assert (torch.linalg.matrix_rank(hessian, rtol=1e-10) == CLASSES - 1).all()


def test_relu_newton_step_raises_the_true_logit_by_one_over_its_probability() -> None:
    """J (-H^+ g) = e_y / p_y up to a constant: the minimiser of the quadratic model denoises."""
    net, (x, y, _) = small_net(nn.ReLU), batch()
    operator = hessian_operator(ce_of(net), x, y)
    hessian = matrix_of(operator, tuple(x.shape))
    step = -(torch.linalg.pinv(hessian, rtol=1e-10, hermitian=True) @ operator.gradient.flatten(1)[..., None])
    jacobian = torch.stack([torch.func.jacrev(net)(image[None]).reshape(CLASSES, -1) for image in x]).detach()
    moved = (jacobian @ step)[..., 0]
    p = net(x).softmax(1).detach()
    expected = nn.functional.one_hot(y, CLASSES) / p.gather(1, y[:, None])
    difference = moved - expected
    torch.testing.assert_close(difference, difference.mean(1, keepdim=True).expand_as(difference), rtol=0, atol=1e-8)


# Finite differences


def test_one_sided_difference_in_single_precision_is_within_a_percent() -> None:
    net, (x, y, v) = small_net(nn.Softplus, torch.float32), batch(8, torch.float32)
    exact = hessian_operator(ce_of(net.double()), x.double(), y)(v.double())
    operator = hessian_operator(ce_of(net.float()), x, y, method="finite-difference", step=1e-3)
    errors = (operator(v) - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert errors.max() <= 1e-2


def test_central_difference_in_double_precision() -> None:
    net, (x, y, v) = small_net(nn.Softplus), batch()
    exact = hessian_operator(ce_of(net), x, y)(v)
    central = hessian_operator(ce_of(net), x, y, method="finite-difference", central=True)(v)
    one_sided = hessian_operator(ce_of(net), x, y, method="finite-difference")(v)
    assert relative_error(central, exact) <= 1e-5
    assert relative_error(central, exact) < relative_error(one_sided, exact) / 10


def test_default_step_grows_with_the_square_root_of_the_number_of_pixels() -> None:
    """For the loss x^3 on unit vectors the one-sided error is 3 h v^2 elementwise, so it shows h."""
    for n in (784, 4 * 784):
        x = torch.zeros(1, n, dtype=torch.float64)
        v = torch.full((1, n), n**-0.5, dtype=torch.float64)
        product = hessian_operator(lambda x: x.pow(3).sum(1), x, method="finite-difference")(v)
        h = 1e-3 * (n / 784) ** 0.5
        torch.testing.assert_close(product, 3 * h * v**2)


@pytest.mark.parametrize("central", [False, True])
def test_difference_divides_by_the_step_actually_taken(central: bool) -> None:
    """At x = 1000 single precision rounds a step of 1e-3 to multiples of 6e-5; a quadratic shows the quotient alone."""
    x = torch.full((1, 4), 1000.0)
    v = torch.tensor([[0.9, 0.0, 0.0, 0.0]])
    loss: Callable[[Tensor], Tensor] = lambda x: (x - 1000).square().sum(1) / 2  # noqa: E731 - exact near 1000
    product = hessian_operator(loss, x, method="finite-difference", step=1e-3, central=central)(v)
    assert ((x + 1e-3) - x)[0, 0].item() != pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(product, v, rtol=1e-6, atol=0)


def test_step_that_rounds_away_is_not_reported_as_zero_curvature() -> None:
    x = torch.full((2, 3), 1e6)
    product = hessian_operator(lambda x: x.square().sum(1), x, method="finite-difference", step=1e-4)(torch.ones(2, 3))
    assert product.isnan().all()


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1.0, 1e20, 1e37])
def test_difference_does_not_depend_on_the_length_of_the_direction(scale: float) -> None:
    net, (x, y, v) = small_net(nn.Softplus, torch.float32), batch(3, torch.float32)
    operator = hessian_operator(ce_of(net), x, y, method="finite-difference")
    unit = operator(v)
    torch.testing.assert_close((operator(v * scale).double() / scale).float(), unit, rtol=2e-3, atol=2e-4)


def test_difference_of_a_zero_direction_is_zero_and_leaves_the_others_alone() -> None:
    net, (x, y, v) = small_net(nn.Softplus), batch()
    operator = hessian_operator(ce_of(net), x, y, method="finite-difference")
    mixed = v.clone()
    mixed[1] = 0
    product = operator(mixed)
    assert (product[1] == 0).all()
    assert torch.equal(product[[0, 2]], operator(v)[[0, 2]])


# Rules that hold for every direction


NETS = {name: small_net(ACTIVATIONS[name]) for name in ("relu", "softplus")}
directions = st.integers(0, 2**31 - 1).map(lambda seed: batch(3, seed=seed))


@pytest.mark.parametrize("kind", ["traced", "double-backward", "gauss-newton"])
@pytest.mark.parametrize("net", NETS)
@settings(max_examples=15, deadline=None)
@given(first=directions, second=directions, a=st.floats(-100, 100), b=st.floats(-100, 100))
def test_linear_and_symmetric(
    kind: str, net: str, first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor], a: float, b: float
) -> None:
    x, y, v = first
    u = second[2]
    if kind == "gauss-newton":
        operator = gauss_newton_operator(NETS[net], y, x)
    else:
        operator = hessian_operator(ce_of(NETS[net]), x, y, method=kind)
    hv, hu = operator(v), operator(u)
    size = float(hv.norm() * abs(a) + hu.norm() * abs(b))
    torch.testing.assert_close(operator(a * v + b * u), a * hv + b * hu, rtol=0, atol=1e-12 * size)
    left, right = ((p * q).flatten(1).sum(1) for p, q in ((u, hv), (v, hu)))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * float(u.norm() * hv.norm() + v.norm() * hu.norm()))
    if kind == "gauss-newton" or net == "relu":
        assert ((v * hv).flatten(1).sum(1) >= -1e-14).all()


@pytest.mark.parametrize("method", [*EXACT, "finite-difference"])
@settings(max_examples=10, deadline=None)
@given(data=directions, poisoned=st.integers(0, 2), where=st.sampled_from(["x", "v"]))
def test_a_sample_that_is_not_finite_leaves_the_others_unchanged(
    method: str, data: tuple[Tensor, Tensor, Tensor], poisoned: int, where: str
) -> None:
    x, y, v = data
    clean = hessian_operator(ce_of(NETS["softplus"]), x, y, method=method)(v)
    bad_x, bad_v = x.clone(), v.clone()
    (bad_x if where == "x" else bad_v)[poisoned] = torch.nan
    product = hessian_operator(ce_of(NETS["softplus"]), bad_x, y, method=method)(bad_v)
    others = [i for i in range(3) if i != poisoned]
    assert product[poisoned].isnan().any()
    assert torch.equal(product[others], clean[others])


# The network of the benchmark


def test_resnet_shapes_modes_and_refusals() -> None:
    net = resnet18(num_classes=7, width=4)
    assert net.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert net(torch.rand(2, 3, 20, 20)).shape == (2, 7)
    assert sum(p.numel() for p in resnet18().parameters()) == 11_173_962  # the usual CIFAR ResNet-18
    assert not any(isinstance(module, nn.MaxPool2d) for module in net.modules())
    # normalisation is inside: a constant image of the mean colour becomes zero before the first convolution
    grey = net.mean.expand(1, 3, 8, 8)
    inputs: list[Tensor] = []
    net.conv1.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    net(grey)
    assert inputs[0].abs().max() <= 1e-6
    with pytest.raises(ValueError, match="activation: unknown 'elu'; choose one of 'relu', 'softplus', 'silu'"):
        resnet18(activation="elu")
    with pytest.raises(ValueError, match="must be at least 1"):
        resnet18(width=0)
