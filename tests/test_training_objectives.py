"""What every objective promises: costs, random numbers, the state of the model, precision."""

import copy
import warnings

import pytest
import torch
from torch import nn

from soae_ext.attacks import PGD, SOAE
from soae_ext.training import (
    SCORPIO,
    SOAR,
    SOAT,
    STN,
    TRADES,
    ASODTraining,
    Cost,
    PGDTraining,
    Standard,
    StepResult,
)
from tests.attack_cases import images, small_net
from tests.training_cases import OBJECTIVES, label, labels, normalised, parameter_gradient, tiny

every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=label)


def single(model):
    return copy.deepcopy(model).float()


# --- what a step returns ------------------------------------------------------------------------------------------


@every_objective
def test_a_step_describes_what_the_call_returns(objective):
    model, x, y = tiny(), images(7), labels(7)
    result = objective.step(model, x, y, seed=2)
    assert isinstance(result, StepResult)
    assert result.loss.shape == ()
    assert result.loss.requires_grad
    assert torch.equal(result.loss, objective(model, x, y, seed=2))
    assert result.gradients.shape == (7,)
    assert result.gradients.dtype == torch.int64
    for correct in (result.clean_correct, result.adversarial_correct):
        assert correct is None or (correct.shape, correct.dtype) == ((7,), torch.bool)
    looked_at = result.clean_correct is not None, result.adversarial_correct is not None
    expected = {"Standard": (True, False), "TRADES": (True, True), "STN": (True, False), "SCORPIO": (True, False)}
    assert looked_at == expected.get(objective.name, (False, True))
    if result.clean_correct is not None:
        assert torch.equal(result.clean_correct, model(x).argmax(1) == y)
    assert (result.krylov_dims is not None) == isinstance(objective, SOAT)
    assert repr(result).startswith("StepResult(loss=")


@every_objective
def test_the_value_can_be_had_without_gradients(objective):
    model, x, y = tiny(), images(7), labels(7)
    expected = objective(model, x, y)
    with torch.no_grad():
        torch.testing.assert_close(objective(model, x, y).detach(), expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 5])
def test_adversarial_accuracy_is_that_of_the_example_that_is_trained_on(steps):
    model, x, seen = tiny(), images(40), []
    y = model(x).argmax(1)
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    result = PGDTraining(0.1, steps=steps, random_start=False).step(model, x, y)
    handle.remove()
    assert torch.equal(result.adversarial_correct, model(seen[-1]).argmax(1) == y)
    assert 0 < int(result.adversarial_correct.sum()) < 40


# --- costs --------------------------------------------------------------------------------------------------------


class Passes(nn.Module):
    """Counts the images of the backward passes that go back through a pass of the network, forward or backward."""

    def __init__(self, model):
        super().__init__()
        self.model, self.crafting, self.update = model, 0, 0

    def forward(self, x):
        hidden = self.model[:-1](x)
        kind = "update" if next(self.model.parameters()).requires_grad else "crafting"
        return self.model[-1](Marker.apply(hidden, self, kind))


class Marker(torch.autograd.Function):
    """The identity; every derivative of it, of whatever order, is counted."""

    @staticmethod
    def forward(ctx, x, counter, kind):
        ctx.counter, ctx.kind = counter, kind
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        setattr(ctx.counter, ctx.kind, getattr(ctx.counter, ctx.kind) + len(gradient))
        return Marker.apply(gradient, ctx.counter, ctx.kind), None, None


@every_objective
def test_costs_are_what_is_spent(objective):
    counter, x, y = Passes(tiny()), images(7), labels(7)
    result = objective.step(counter, x, y)
    result.loss.backward()
    cost = objective.cost()
    assert counter.crafting + counter.update == int(result.gradients.sum())
    assert counter.update == 7 * cost.update
    if isinstance(objective, SOAT) and not objective.attack.gradients:  # a solve may end early
        assert 0 < counter.crafting <= 7 * cost.crafting
    else:
        assert counter.crafting == 7 * cost.crafting
    assert cost.total == cost.crafting + cost.update


@pytest.mark.parametrize(
    ("objective", "crafting", "update"),
    [
        (Standard(), 0, 1),
        (PGDTraining(0.3), 7, 1),
        (TRADES(0.3), 10, 2),
        (SOAR(0.3), 1, 6),
        (SOAR(0.3, hvp="double-backward"), 1, 7),
        (STN(), 0, 2),
        (SCORPIO(0.3), 3, 6),
        (SCORPIO(0.3, steps=2, hvp="double-backward"), 3, 7),
        (SOAT(0.3), 10, 1),
        (SOAT.paper(0.3), 48, 1),
        (SOAT(attack=SOAE(0.3, steps=4, restarts=2, max_dim=3)), 72, 1),
        (ASODTraining(0.3), 200, 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_costs_of_the_settings_that_are_documented(objective, crafting, update):
    assert objective.cost() == Cost(crafting, update)


# --- random numbers -----------------------------------------------------------------------------------------------


@every_objective
def test_a_batch_in_parts_is_the_whole_batch(objective):
    model, x, y = tiny(), images(12), labels(12)
    whole = objective.step(model, x, y, seed=4)
    gradient = parameter_gradient(model, whole.loss)
    parts = [
        objective.step(model, x[rows], y[rows], seed=4, index=torch.arange(12)[rows])
        for rows in (slice(0, 6), slice(6, 12))
    ]
    torch.testing.assert_close((parts[0].loss + parts[1].loss) / 2, whole.loss, rtol=1e-9, atol=1e-9)
    halves = [parameter_gradient(model, part.loss) for part in parts]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, gradient, rtol=1e-7, atol=1e-9)
    assert torch.equal(torch.cat([part.gradients for part in parts]), whole.gradients)


@every_objective
def test_random_numbers_follow_seed_and_index_and_touch_no_generator(objective):
    model, x, y = tiny(), images(6), labels(6)
    before = torch.get_rng_state()
    losses = [float(objective(model, x, y, seed=seed, index=index).detach()) for seed, index in CALLS]
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1]
    if isinstance(objective, Standard | SCORPIO):  # nothing random in these
        assert len(set(losses)) == 1
    else:
        assert len(set(losses)) == 3


CALLS = [(1, None), (1, torch.arange(6)), (2, None), (1, torch.arange(6) + 6)]


# --- the state of the model ---------------------------------------------------------------------------------------


def state(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    )


@every_objective
def test_crafting_leaves_no_trace_and_the_loss_is_that_of_the_mode_that_the_model_came_in(objective):
    model, x, y = normalised(), images(16, dtype=torch.float32), labels(16)
    reference = copy.deepcopy(model)
    before, weights = state(model), copy.deepcopy(dict(model.named_parameters()))
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach()) if module.training else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = objective.step(model, x, y)
    handle.remove()
    assert state(model)[:2] == before[:2]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    # Only the passes of the loss were made in train mode, and only they changed the statistics.
    assert len(seen) == {"Standard": 1, "TRADES": 2, "STN": 2, "SOAR": 2, "SCORPIO": 2}.get(objective.name, 1) - (
        getattr(objective, "hvp", "") == "double-backward"
    )
    for images_of_a_pass in seen:
        reference(images_of_a_pass)
    for mine, theirs in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
    result.loss.backward()
    assert [p.grad is not None for p in model.parameters()] == [p.requires_grad for p in model.parameters()]


def test_examples_are_crafted_in_eval_mode():
    """What PGD training trains on is what an attack finds on the same network in eval mode."""
    model, x, y = normalised().double(), images(16), labels(16)
    model(x)  # statistics other than the initial ones
    settled = copy.deepcopy(model).eval()
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach()) if module.training else None
    )
    PGDTraining(0.1, steps=1, random_start=False)(model, x, y)
    handle.remove()
    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(settled(point), y), point)
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-12)


def test_state_is_restored_after_an_error():
    class Failing(nn.Module):
        def forward(self, x):
            if x.requires_grad:
                raise RuntimeError("out of memory")
            return x

    model = nn.Sequential(normalised(), Failing())
    before = state(model)
    for objective in (PGDTraining(0.1), TRADES(0.1), SOAT(0.1)):
        with pytest.raises(RuntimeError, match="out of memory"):
            objective(model, images(16, dtype=torch.float32), labels(16))
        assert state(model)[:2] == before[:2]


# --- precision ----------------------------------------------------------------------------------------------------


@every_objective
def test_under_autocast_the_network_alone_is_in_lower_precision(objective):
    model, x, y = single(tiny()), images(32, dtype=torch.float32), labels(32)
    exact = objective.step(model, x, y)
    expected = parameter_gradient(model, exact.loss)
    with torch.autocast("cpu", torch.bfloat16):
        result = objective.step(model, x, y)
    assert result.loss.dtype == torch.float32
    result.loss.backward()  # reaches every weight: no copy of one was kept from the crafting
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert bool(gradient.isfinite().all())
    assert float(torch.cosine_similarity(gradient, expected, dim=0)) > 0.95
    torch.testing.assert_close(result.loss, exact.loss, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("objective", [Standard(), STN(0.0, gamma=0.0), TRADES(0.1, beta=0.0)], ids=label)
def test_losses_are_taken_of_logits_in_single_precision(objective):
    """Where bfloat16 would round the loss to 3 digits, and the loss of confident images to none."""
    model, x = single(tiny()), images(8, dtype=torch.float32)
    model[3].weight.data.mul_(4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        assert logits.dtype == torch.bfloat16
        y = logits.argmax(1)
        loss = objective(model, x, y)
    expected = nn.functional.cross_entropy(logits.double(), y)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_examples_are_crafted_on_losses_in_single_precision():
    seen = []

    class Recording(PGDTraining):
        def _ascend(self, losses, x, start):
            seen.append(losses(x).dtype)
            return x

    with torch.autocast("cpu", torch.bfloat16):
        Recording(0.1)(single(tiny()), images(8, dtype=torch.float32), labels(8))
    assert seen == [torch.float32]


@pytest.mark.parametrize("objective", [SOAR(0.05), SCORPIO(0.1)], ids=label)
def test_differences_of_gradients_are_taken_in_single_precision(objective):
    model, x, y = single(tiny()), images(8, dtype=torch.float32), labels(8)
    exact = objective(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(objective(model, x, y), exact, rtol=1e-6, atol=0)


# --- the point of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [PGDTraining(0.1), TRADES(0.1), SOAR(0.05), SCORPIO(0.1), SOAT(0.1), SOAT(attack=SOAE(0.1, steps=2))],
    ids=label,
)
def test_training_on_it_lowers_the_robust_loss_of_plain_training(objective):
    generator = torch.Generator().manual_seed(0)
    centres = 0.5 + 0.12 * (torch.rand(3, 1, 5, 4, generator=generator) - 0.5).sign()
    y = labels(180)
    x = (centres[y] + 0.2 * torch.randn(180, 1, 5, 4, generator=generator)).clamp(0, 1)

    def trained(objective):
        model = small_net(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        for step in range(60):
            rows = torch.randint(0, 120, (32,), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            objective(model, x[rows], y[rows], seed=step).backward()
            optimizer.step()
        return model

    plain, robust = (
        PGD(0.1, early_stop=False)(trained(o), x[120:], y[120:]).loss.mean() for o in (Standard(), objective)
    )
    assert float(robust) < 0.9 * float(plain)


def test_the_default_examples_of_soat_raise_the_loss():
    model, x, y = tiny(), images(40), labels(40)
    clean = Standard()(model, x, y)
    assert bool(SOAT(0.1)(model, x, y) > 1.2 * clean)
    assert bool(SOAT.paper(0.1)(model, x, y) > clean)
