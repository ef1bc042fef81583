"""Compiled products: when a loss is traced again and when not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from soae_ext._hvp import linearize
from soae_ext.hvp import HessianOperator, hessian_operator
from tests.hvp_cases import Counting, batch, ce_of, check, empty_trace_cache, net_of, traces_of


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    with empty_trace_cache():
        yield


# What may change without tracing again


def test_new_points_and_labels() -> None:
    net = net_of()
    loss = Counting(lambda x, y: cross_entropy(net(x), y, reduction="none"))
    x, y, v = batch()
    hessian_operator(loss, x, y)
    for seed in (2, 3):
        x, y, v = batch(seed=seed)
        expected = hessian_operator(loss.loss, x, y, method="double-backward")(v)
        assert traces_of(loss, lambda x=x, y=y: hessian_operator(loss, x, y)) == 0
        assert torch.equal(hessian_operator(loss, x, y)(v), expected)


def step_of_optimizer(net: nn.Module) -> None:
    net[0].weight.grad = torch.ones_like(net[0].weight)
    torch.optim.SGD(net.parameters(), lr=0.3).step()
    net.zero_grad()


def rebind_parameter(net: nn.Module) -> None:
    net[0].weight = nn.Parameter(torch.rand_like(net[0].weight))


def rebind_buffer(net: nn.Module) -> None:
    net[2].running_mean = torch.rand_like(net[2].running_mean)


def assign_data(net: nn.Module) -> None:
    net[0].weight.data = torch.rand_like(net[0].weight)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "optimizer step": step_of_optimizer,
    "load_state_dict": lambda net: net.load_state_dict(net_of(5).state_dict()),
    "load_state_dict, assign": lambda net: net.load_state_dict(net_of(5).state_dict(), assign=True),
    "data assigned": assign_data,
    "parameter replaced": rebind_parameter,
    "buffer replaced": rebind_buffer,
    "layer replaced": lambda net: net.register_module("0", nn.Conv2d(2, 4, 3).double().eval()),
    "frozen": lambda net: net.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_new_weights_of_a_module_that_the_loss_closes_over(change: str) -> None:
    net = net_of()
    loss = Counting(lambda x, y: cross_entropy(net(x), y, reduction="none"))
    x, y, v = batch()
    before = hessian_operator(loss, x, y)(v)
    CHANGES[change](net)
    assert traces_of(loss, lambda: hessian_operator(loss, x, y)) == 0
    after = check(loss, x, y, v=v)(v)
    assert torch.equal(before, after) == (change == "frozen")


def test_new_weights_in_the_arguments() -> None:
    net = net_of()

    @Counting
    def loss(x: Tensor, y: Tensor, state: dict[str, Tensor], scale: tuple[Tensor]) -> Tensor:
        return cross_entropy(torch.func.functional_call(net, state, (x,)), y, reduction="none") * scale[0]

    x, y, _ = batch()
    for seed in range(3):
        state, scale = dict(net_of(seed).named_parameters()), (torch.tensor(1.0 + seed, dtype=torch.float64),)
        used = traces_of(loss, lambda state=state, scale=scale: hessian_operator(loss, x, y, state, scale))
        assert (used == 0) == (seed > 0)
        check(loss, x, y, state, scale)


def test_a_lambda_written_anew_and_labels_that_it_closes_over() -> None:
    net, calls = net_of(), 0

    def operator(x: Tensor, y: Tensor) -> HessianOperator:
        def loss(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return cross_entropy(net(x), y, reduction="none")

        return hessian_operator(loss, x)

    x, y, v = batch()
    operator(x, y)
    calls = 0
    product = operator(x, (y + 1) % 3)(v)
    assert calls == 0
    expected = hessian_operator(lambda x, y: cross_entropy(net(x), y, reduction="none"), x, (y + 1) % 3)(v)
    assert torch.equal(product, expected)


def test_a_model_of_the_same_kind_and_a_log_kept_by_the_loss() -> None:
    log: list[torch.Size] = []

    def operator(net: nn.Module) -> HessianOperator:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            log.append(x.shape)
            return cross_entropy(net(x), y, reduction="none")

        return hessian_operator(loss, x, y)

    x, y, v = batch()
    operator(net_of(0))
    log.clear()
    product = operator(net_of(7))(v)
    assert not log
    torch.testing.assert_close(product, check(ce_of(net_of(7)), x, y)(v))


def test_bound_methods_see_the_state_of_their_object() -> None:
    class Attack:
        def __init__(self, model: nn.Module, temperature: float) -> None:
            self.model, self.temperature, self.epoch = model, temperature, 0

        def scale(self) -> float:
            return 1 / self.temperature

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(self.model(x) * self.scale(), y, reduction="none")

    x, y, _ = batch()
    attack = Attack(net_of(), 1.0)
    check(attack.loss, x, y)
    count = len(linearize._cache.entries)
    attack.model, attack.epoch = net_of(3), 1
    check(attack.loss, x, y)
    assert len(linearize._cache.entries) == count
    attack.temperature = 5.0
    check(attack.loss, x, y)
    assert len(linearize._cache.entries) == count + 1


# What must not be served from an old trace


GLOBAL_SCALE = 1.0


def test_constants_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The penalty vanishes with its slope at the centre, so neither loss nor gradient shows its weight."""
    x, *_ = batch()
    weight = 1.0
    centre = x.clone()

    def closed_over(x: Tensor) -> Tensor:
        return weight * (x - centre).square().flatten(1).sum(1)

    def global_scale(x: Tensor) -> Tensor:
        return GLOBAL_SCALE * (x - centre).square().flatten(1).sum(1)

    def argument(x: Tensor, weight: float) -> Tensor:
        return weight * (x - centre).square().flatten(1).sum(1)

    for scale in (1.0, 6.0, 1.0):
        weight = scale
        monkeypatch.setitem(globals(), "GLOBAL_SCALE", scale)
        v = torch.rand_like(x)
        for operator in (
            hessian_operator(closed_over, x),
            hessian_operator(global_scale, x),
            hessian_operator(argument, x, scale),
        ):
            torch.testing.assert_close(operator(v), 2 * scale * v)


MODULE_CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "attribute": lambda net: setattr(net[1], "beta", 4.0),
    "other layer": lambda net: net.register_module("1", nn.Tanh()),
    "hook": lambda net: net[0].register_forward_hook(lambda module, inputs, output: output * 3),
    "forward replaced": lambda net: setattr(net[1], "forward", torch.sin),
    "dtype of the weights": lambda net: net[0].float(),
}


@pytest.mark.parametrize("change", MODULE_CHANGES)
def test_changes_of_a_module(change: str) -> None:
    net = net_of()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        features = net[0](x.to(net[0].weight.dtype)).double()
        return cross_entropy(
            net[1:](net[1](features)[:, :, :4, :4].repeat(1, 1, 2, 2)[:, :, :4, :4]), y, reduction="none"
        )

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(net(x), y, reduction="none")

    used = loss if change == "dtype of the weights" else plain
    x, y, v = batch()
    before = check(used, x, y, v=v)(v)
    MODULE_CHANGES[change](net)
    assert not torch.equal(check(used, x, y, v=v)(v), before)


def test_train_and_eval_mode_are_told_apart() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square() if self.training else x.sin()

    gate = Gate()
    for mode in (False, True, False):
        gate.train(mode)
        check(lambda x: gate(x).flatten(1).sum(1), batch()[0])


def test_a_tensor_that_is_both_closed_over_and_an_argument() -> None:
    weight = torch.rand(6, dtype=torch.float64)

    def loss(x: Tensor, scale: Tensor) -> Tensor:
        return (weight * scale * x.square()).flatten(1).sum(1)

    x, *_ = batch()
    check(loss, x, weight)
    check(loss, x, torch.rand(6, dtype=torch.float64))


def test_models_of_different_kinds_under_one_lambda() -> None:
    x, y, _ = batch()
    for activation in (nn.Softplus, nn.Tanh, nn.ReLU, nn.Softplus):
        check(ce_of(net_of(0, activation)), x, y)
    assert len(linearize._cache.entries) == 3


def test_shapes_dtypes_and_layouts_have_their_own_traces() -> None:
    net = net_of()
    x, y, _ = batch()
    check(ce_of(net), x, y)
    check(ce_of(net), x.to(memory_format=torch.channels_last), y)
    check(ce_of(net), x.transpose(2, 3), y)
    check(lambda x, y: cross_entropy(net(x.double()), y, reduction="none"), x.float(), y)
    check(lambda x, w: (w * x.square()).flatten(1).sum(1), x, torch.rand(4, 1, 6, 6).double().transpose(2, 3))
    check(lambda x, w: (w * x.square()).flatten(1).sum(1), x, torch.rand(6, 6).double())


def test_weights_changed_under_a_living_operator_are_an_error() -> None:
    net = net_of()
    x, y, v = batch()
    operator = hessian_operator(ce_of(net), x, y)
    operator(v)
    step_of_optimizer(net)
    with pytest.raises(RuntimeError, match=r"changed in place after the operator was built.*build a new operator"):
        operator(v)


def test_point_changed_under_a_living_operator_does_not_matter() -> None:
    x, _, v = batch()
    for method in ("traced", "double-backward", "finite-difference"):
        operator = hessian_operator(lambda x: x.pow(3).flatten(1).sum(1), x, method=method)
        expected = operator(v)
        x += 1
        assert torch.equal(operator(v), expected)


# Batch sizes


def test_a_shrinking_batch_meets_few_traces() -> None:
    net = net_of()
    loss = Counting(ce_of(net))
    x, y, v = batch(8)
    for size in range(8, 0, -1):
        operator = hessian_operator(loss, x[:size], y[:size])
        expected = hessian_operator(loss.loss, x[:size], y[:size], method="double-backward")
        torch.testing.assert_close(operator(v[:size]), expected(v[:size]), rtol=1e-12, atol=1e-14)
        assert operator.loss.shape == (size,)
        assert operator.gradient.shape == x[:size].shape
    assert len(linearize._cache.entries) <= 5
    assert traces_of(loss, lambda: [hessian_operator(loss, x[:n], y[:n]) for n in range(1, 9)]) == 0


def test_a_loss_that_couples_samples_is_never_padded() -> None:
    def loss(x: Tensor) -> Tensor:
        return (x.square().flatten(1).sum(1)) * x.mean()

    x, *_ = batch(8)
    for size in (8, 7, 6):
        check(loss, x[:size])


def test_a_shared_argument_of_leading_dimension_b_does_not_break_other_sizes() -> None:
    def loss(x: Tensor, a: Tensor) -> Tensor:
        return ((x @ a) * x).sum(1)

    a = torch.rand(6, 6, dtype=torch.float64)
    for size in (6, 5, 4, 6):
        check(loss, torch.rand(size, 6, dtype=torch.float64), a)


# Memory


def test_the_cache_keeps_no_weights_and_no_data_alive() -> None:
    net = net_of()
    x, y, v = batch()
    operator = hessian_operator(ce_of(net), x, y)
    operator(v)
    watched = [weakref.ref(t) for t in (x, y, v, net, *net.parameters(), *net.buffers())]
    assert len(linearize._cache.entries) == 1
    del net, x, y, v, operator
    gc.collect()
    assert not any(ref() is not None for ref in watched)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearize, "_LARGEST_CACHE", 3)
    loss = Counting(lambda x: x.pow(3).sum(1))
    for n in range(1, 7):
        hessian_operator(loss, torch.rand(2, n))
    assert len(linearize._cache.entries) == 3
    assert traces_of(loss, lambda: [hessian_operator(loss, torch.rand(2, n)) for n in (4, 5, 6)]) == 0
    assert traces_of(loss, lambda: hessian_operator(loss, torch.rand(2, 1))) > 0


def test_a_constant_that_keeps_changing_is_named_in_a_warning() -> None:
    def use(times: int) -> None:
        for i in range(times):
            weight = float(i)
            hessian_operator(lambda x: weight * x.square().sum(1), torch.rand(2, 3))  # noqa: B023 - used at once

    with pytest.warns(UserWarning, match=r"has been compiled 8 times .*'loss.weight' keeps changing"):
        use(12)
