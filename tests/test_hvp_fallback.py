"""Losses that cannot be compiled, and convolutions that never compute a weight gradient."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, one_hot

from soae_ext._hvp import fingerprint
from soae_ext._hvp.input_conv import input_only_convolutions
from soae_ext.hvp import gauss_newton_operator, hessian_operator
from tests.hvp_cases import Counting, Loss, batch, ce_of, check, empty_trace_cache, net_of, traces_of


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    with empty_trace_cache():
        yield


def data_dependent(net: nn.Module) -> Loss:
    return lambda x, y: cross_entropy(net(x) if x.mean() > 0 else -net(x), y, reduction="none")


def masked(net: nn.Module) -> Loss:
    return lambda x, y: cross_entropy(net(x), y, reduction="none") + torch.stack([i[i > 0.5].sum() for i in x])


def through_numpy(net: nn.Module) -> Loss:
    return lambda x, y: (net(x) * torch.from_numpy(np.eye(3)[y.numpy()])).square().sum(1)


def inferred_classes(net: nn.Module) -> Loss:
    return lambda x, y: (net(x).softmax(1) * one_hot(y, 3)).sum(1)


UNTRACEABLE = {
    "branch": (data_dependent, "values of a tensor"),
    "mask": (masked, "shape depends on the values"),
    "numpy": (through_numpy, "reads the values of a tensor"),
    "one_hot": (inferred_classes, "values of a tensor"),
}


@pytest.mark.parametrize("case", UNTRACEABLE)
def test_fallback_is_exact_and_warns_once(case: str) -> None:
    build, reason = UNTRACEABLE[case]
    loss = build(net_of())
    for seed in range(3):
        x, y, v = batch(seed=seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check(loss, x, y, v=v, method="input-only")
        messages = [str(w.message) for w in caught if w.category is UserWarning]
        assert len(messages) == (seed == 0)
        assert all("cannot be compiled" in m and reason in m for m in messages)


def test_batch_norm_in_training_mode_is_named_and_updated_once() -> None:
    net, x, y = net_of().train(), *batch()[:2]
    twin = copy.deepcopy(net)
    with pytest.warns(UserWarning, match=r"cannot be compiled.*call model.eval\(\)"):
        operator = hessian_operator(ce_of(net), x, y)
    assert operator.method == "input-only"
    twin(x)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(net.get_buffer(name), buffer)
    assert net.training


def test_random_losses_keep_one_draw_and_the_stream_of_random_numbers() -> None:
    def loss(x: Tensor) -> Tensor:
        return dropout(x, 0.5).pow(3).flatten(1).sum(1)

    x, _, v = batch()
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="draws random numbers"):
        operator = hessian_operator(loss, x)
    torch.manual_seed(0)
    assert torch.equal(operator(v), hessian_operator(loss, x, method="double-backward")(v))
    assert torch.equal(operator(v), operator(v))


def test_a_loss_with_hidden_state_is_noticed_while_it_is_traced() -> None:
    values = iter(range(1, 1000))

    def loss(x: Tensor) -> Tensor:
        return next(values) * x.square().flatten(1).sum(1)

    with pytest.warns(UserWarning, match="same losses twice"):
        assert hessian_operator(loss, batch()[0]).method == "input-only"


def test_a_loss_that_reaches_too_much_is_not_walked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_MOST_OBJECTS", 5)
    x, y, _ = batch()
    with pytest.warns(UserWarning, match="reaches more than 5 Python objects"):
        assert hessian_operator(ce_of(net_of()), x, y).method == "input-only"


def test_errors_of_the_loss_come_through_unchanged() -> None:
    def loss(x: Tensor) -> Tensor:
        raise KeyError("mine")

    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            hessian_operator(loss, batch()[0])


def test_gauss_newton_is_compiled_and_falls_back_too() -> None:
    net = net_of()
    x, y, v = batch()
    expected = gauss_newton_operator(net, y, x, method="double-backward")(v)
    calls = Counting(net)
    assert torch.equal(gauss_newton_operator(calls, y, x)(v), expected)
    assert traces_of(calls, lambda: gauss_newton_operator(calls, y, x)) == 0
    with pytest.warns(UserWarning, match="cannot be compiled"):
        operator = gauss_newton_operator(lambda x: net(x) if x.mean() > 0 else -net(x), y, x)
    torch.testing.assert_close(operator(v), expected, rtol=1e-12, atol=1e-14)


# Convolutions without weight gradients


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "2d": (nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 0), dilation=2), (2, 4, 9, 8)),
    "2d grouped": (nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 7, 7)),
    "2d same": (nn.Conv2d(4, 8, 3, padding="same"), (2, 4, 7, 7)),
    "2d circular": (nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), (2, 4, 7, 7)),
    "3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "1d transposed": (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    "2d transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 5)),
    "3d transposed": (nn.ConvTranspose3d(2, 3, 2, dilation=2), (2, 2, 3, 3, 3)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_input_only_convolution_has_the_derivatives_of_the_ordinary_one(kind: str) -> None:
    torch.manual_seed(0)
    layer, shape = CONVOLUTIONS[kind]
    layer = layer.double()
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    with input_only_convolutions(x):
        out = layer(x)
    assert torch.equal(out, layer(x))

    def third_order(out: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]
        return first, second, torch.autograd.grad(second.sum(), x)[0]

    for ours, theirs in zip(third_order(out), third_order(layer(x)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_input_only_convolution_leaves_weights_that_depend_on_the_input_alone() -> None:
    net = net_of()

    def loss(x: Tensor) -> Tensor:  # each image is a filter of the others, and x decides nothing else
        assert x.mean() > 0
        return nn.functional.conv2d(net[0](x), x[:, :1].mean(0, keepdim=True)[:, :, :2, :2].repeat(1, 4, 1, 1)).sum(
            (1, 2, 3)
        )

    with pytest.warns(UserWarning, match="cannot be compiled"):
        check(loss, batch()[0], method="input-only")
