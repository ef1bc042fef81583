"""Curvature from the Jacobian of the logits, against products by automatic differentiation and closed forms."""

import pytest
import torch
from torch import nn

from soae_ext.attacks import SOAE
from soae_ext.attacks.losses import Objective
from soae_ext.gmres import gmres
from soae_ext.hvp import gauss_newton_operator, hessian_operator, jacobian_operator
from tests.attack_cases import Counting

CLASSES, N = 5, 48


def network(activation=nn.ReLU, seed=0, classes=CLASSES, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(N, 32), activation(), nn.Linear(32, 24), activation(), nn.Linear(24, classes)
    ).to(dtype)


def batch(count=7, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.rand(count, 3, 4, 4, dtype=dtype), torch.randint(CLASSES, (count,))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_on_a_relu_network_it_is_the_hessian(loss, targeted):
    model, (x, y) = network(), batch()
    objective = Objective(model, loss, targeted)
    ours = jacobian_operator(model, objective.of_logits, y, x)
    exact = hessian_operator(objective, x, y, method="double-backward")
    torch.testing.assert_close(ours.loss, exact.loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.gradient, exact.gradient, rtol=1e-10, atol=1e-14)
    v = torch.randn_like(x)
    assert loss == "margin" or exact(v).abs().max() > 1e-4
    torch.testing.assert_close(ours(v), exact(v), rtol=1e-9, atol=1e-14)


def test_on_a_smooth_network_it_is_the_gauss_newton_matrix():
    model, (x, y) = network(nn.Softplus), batch()
    ours = jacobian_operator(model, Objective(model, "ce").of_logits, y, x)
    v = torch.randn_like(x)
    torch.testing.assert_close(ours(v), gauss_newton_operator(model, y, x)(v), rtol=1e-9, atol=1e-15)
    assert (ours(v) - hessian_operator(Objective(model, "ce"), x, y)(v)).abs().max() > 1e-4


def test_its_rows_are_the_derivatives_of_the_logit_differences():
    model, (x, y) = network(nn.Tanh), batch(3)
    ours = jacobian_operator(model, Objective(model, "ce").of_logits, y, x)
    whole = torch.func.vmap(torch.func.jacrev(lambda image: model(image[None])[0]))(x).flatten(2)
    for sample in range(3):
        for k in range(CLASSES - 1):
            expected = whole[sample, (y[sample] + 1 + k) % CLASSES] - whole[sample, y[sample]]
            torch.testing.assert_close(ours.jacobian[sample, k], expected, rtol=1e-10, atol=1e-14)


def test_the_newton_step_has_its_closed_form():
    """J (H^+ g) lowers the logit of the label by 1 / p_y against every other one (design of the attack)."""
    model, (x, y) = network(), batch()
    ours = jacobian_operator(model, Objective(model, "ce").of_logits, y, x)
    solution = gmres(ours, ours.gradient, rtol=1e-12, restart=CLASSES).x
    moved = torch.bmm(ours.jacobian, solution.flatten(1)[:, :, None])[:, :, 0]
    certain = model(x).softmax(1).gather(1, y[:, None])
    torch.testing.assert_close(moved, (1 / certain).expand_as(moved), rtol=1e-6, atol=0)


def test_single_precision_is_accurate_where_the_network_is_certain():
    model, (x, _) = network(), batch()
    model[-1].weight.data *= 700
    y = model(x).argmax(1)
    assert model(x).softmax(1).amax(1).max() > 1 - 1e-9
    v = torch.randn_like(x)
    exact = jacobian_operator(model, Objective(model, "ce").of_logits, y, x)(v)
    single = model.float()
    ours = jacobian_operator(single, Objective(single, "ce").of_logits, y, x.float())(v.float())
    error = (ours - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert error.max() < 1e-3


def test_it_costs_a_backward_pass_for_each_class_but_one():
    model, (x, y) = network(), batch()
    counting = Counting(model)
    ours = jacobian_operator(counting, Objective(counting, "ce").of_logits, y, x)
    ours(torch.randn_like(x))
    part = ours.restrict(torch.tensor([4, 1]))
    torch.testing.assert_close(part(x[[4, 1]]), ours(x)[[4, 1]])
    assert counting.with_gradient + counting.without == len(x)
    assert ours.gradient_calls == CLASSES - 1
    assert ours.adjoint is ours


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"loss": lambda z, y: z.gather(1, y[:, None])[:, 0]},
            ValueError,
            "^loss must depend on differences of logits",
        ),
        ({"y": torch.full((7,), 9)}, ValueError, "^y must hold labels below the number of classes, 5"),
        ({"y": torch.zeros(7)}, TypeError, "^y must be a tensor of int64 labels"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, ValueError, r"^y must have shape \(B,\) = \(7,\)"),
        ({"logits_fn": lambda x: x.sum()}, ValueError, "^logits_fn must return logits of shape"),
        ({"x": torch.zeros(7, 48, dtype=torch.int64)}, TypeError, "^x must be floating point"),
    ],
)
def test_bad_arguments(change, error, message):
    model, (x, y) = network(), batch()
    arguments = {"logits_fn": model, "loss": Objective(model, "ce").of_logits, "y": y, "x": x, **change}
    with pytest.raises(error, match=message):
        jacobian_operator(**arguments)


def test_a_bad_direction():
    model, (x, y) = network(), batch()
    ours = jacobian_operator(model, Objective(model, "ce").of_logits, y, x)
    with pytest.raises(ValueError, match=r"^v must be like the images"):
        ours(x[:2])
    with pytest.raises(ValueError, match=r"^v must be like the images"):
        ours(x.float())
    with pytest.raises(TypeError, match=r"^v must be like the images"):
        ours(3.0)


# --- in the attack ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["ascent", "paper", "auto", "damped", "trust-region", "frank-wolfe", "power"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_attack_makes_the_same_images_for_fewer_gradients(direction, norm):
    model, (x, y) = network(), batch(12)
    y = model(x).argmax(1)
    options = {"norm": norm, "steps": 2, "direction": direction, "max_dim": 4, "early_stop": False}
    exact = SOAE(0.2, **options)(model, x, y)
    ours = SOAE(0.2, hvp="jacobian", classes=CLASSES, **options)(model, x, y)
    torch.testing.assert_close(ours.x_adv, exact.x_adv, rtol=0, atol=1e-6)
    assert (ours.gradient_calls == 2 * (CLASSES - 1)).all()
    assert (exact.gradient_calls > ours.gradient_calls).any()


def test_the_budget_counts_the_classes():
    attack = SOAE(0.1, gradients=40, hvp="jacobian", classes=10)
    assert attack.step_cost == 9
    plan = attack.plan()
    assert plan.restarts * plan.steps + 8 <= 40
    model, (x, _) = network(classes=10), batch()
    result = attack(model, x, model(x).argmax(1))
    assert int(result.gradient_calls.max()) <= 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hvp": "jacobian"}, "^classes: give the number of classes with hvp='jacobian'"),
        ({"classes": 10}, "^classes: give the number of classes with hvp='jacobian'"),
        ({"hvp": "jacobian", "classes": 1}, "^classes: must be at least 2"),
        ({"hvp": "jacobian", "classes": 10, "fd_step": 1e-3}, "^fd_step: "),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SOAE(0.1, steps=1, **options)


def test_another_number_of_classes_than_the_model_has():
    model, (x, y) = network(), batch()
    with pytest.raises(ValueError, match=r"^classes: 10, but the model has 5"):
        SOAE(0.1, steps=1, hvp="jacobian", classes=10)(model, x, y)
