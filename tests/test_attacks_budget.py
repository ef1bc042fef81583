"""SOAE with a budget of gradients: never exceeded, spent as `plan()` says, reproducible; and its memory."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from soae_ext.attacks import PGD, SOAE, memory
from soae_ext.attacks.losses import Objective
from soae_ext.attacks.soae import Plan
from tests.attack_cases import SHAPE, N, images, linear, small_net, smooth_net

DIRECTIONS = ("ascent", "paper", "auto", "damped", "trust-region", "frank-wolfe", "power")
SOLVES = ("ascent", "paper", "auto")
HVP = ("traced", "double-backward", "finite-difference")


class Saturated(nn.Module):
    """Logits so large that the cross-entropy has no gradient."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return 1e6 * self.net(x)


NETWORKS = {"relu": small_net(dtype=torch.float64), "smooth": smooth_net(), "saturated": Saturated(smooth_net())}


def cost_of_a_step(direction, hvp, threshold_on, delta0, max_dim):
    """Gradients of a second-order step: one, and 2 (1 by differences) for each product, see the class."""
    products = max_dim
    if direction in SOLVES:
        products += (threshold_on == "residual") + (delta0 == "random")
    return 1 + products * (1 if hvp == "finite-difference" else 2)


def made_or_refused(**options):
    try:
        return SOAE(0.05, **options), ""
    except ValueError as error:
        return None, str(error)


# --- the budget ---------------------------------------------------------------------------------------------------


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_no_image_costs_more_than_the_budget(data):
    direction, hvp = data.draw(st.sampled_from(DIRECTIONS)), data.draw(st.sampled_from(HVP[1:]))
    options = {
        "direction": direction,
        "hvp": hvp,
        "threshold_on": data.draw(st.sampled_from(["residual", "subdiagonal"])),
        "delta0": data.draw(st.sampled_from(["zero", "random"])) if direction in SOLVES else "zero",
        "loss": data.draw(st.sampled_from(["ce", "margin", "dlr"])),
        "norm": data.draw(st.sampled_from(["Linf", "L2"])),
        "max_dim": data.draw(st.sampled_from([None, 1, 4])),
        "second_order_steps": data.draw(st.sampled_from([None, 0, 1, 3, "all"])),
        "early_stop": data.draw(st.booleans()),
        "threshold": data.draw(st.sampled_from([1e-8, 1e-1])),
    }
    budget = data.draw(st.integers(1, 130))
    net = NETWORKS[data.draw(st.sampled_from(sorted(NETWORKS)))]
    plain = direction == "paper"
    max_dim = options["max_dim"] or (5 if plain else 2)
    step = cost_of_a_step(direction, hvp, options["threshold_on"], options["delta0"], max_dim)
    second = options["second_order_steps"]
    if second is None:
        second = 1 if direction in ("ascent", "auto") else "all"
    attack, reason = made_or_refused(gradients=budget, **options)
    if attack is None:
        assert reason.startswith(f"gradients: {budget} are too few for second-order steps of {step} gradients")
        # What pays for one run of one step is never refused.
        assert second == 3 or budget < (step if second in (1, "all") else 1)
        return
    plan = attack.plan()
    first_order = plan.restarts * plan.steps - plan.second_order_steps
    assert plan.restarts * plan.steps >= 1
    assert plan.second_order_steps * step + first_order <= budget
    if second != "all":
        assert plan.second_order_steps == second
        assert budget - (plan.second_order_steps * step + first_order) < plan.restarts
    else:
        assert first_order == 0
    x = images(5, seed=data.draw(st.integers(0, 5)))
    result = attack(net, x, net(x).argmax(1).roll(data.draw(st.integers(0, 1))))
    assert int(result.gradient_calls.max()) <= budget
    assert result.krylov_dims.shape == (5, plan.restarts * plan.steps)
    assert int(result.krylov_dims.max()) <= max_dim
    assert (result.krylov_dims[:, plan.second_order_steps :] == 0).all()


def test_the_last_iterate_counts_when_vanishing_gradients_use_the_budget_up():
    """Where the cross-entropy saturates, a step takes the gradient of the margin as well: half as many are made."""
    net, x = NETWORKS["saturated"], images(6)
    y = net(x).argmax(1)
    last = torch.zeros(6, dtype=torch.bool)
    for step_size in (1e-4, 2e-3, 4e-3, 8e-3, 1.6e-2):
        options = {"second_order_steps": 0, "step_size": step_size, "schedule": "constant"}
        attack = SOAE(0.3, gradients=12, random_start=False, **options)
        assert attack.plan()[:2] == (1, 12)
        result = attack(net, x, y)
        five, six = (SOAE(0.3, steps=steps, **options)(net, x, y) for steps in (5, 6))
        assert torch.equal(result.x_adv, six.x_adv)
        assert torch.equal(result.gradient_calls, six.gradient_calls)
        assert (result.gradient_calls[~six.success] == 12).all()
        last |= six.success & ~five.success
    assert last.any()


def test_all_of_it_is_spent_on_images_that_stay_robust_but_for_what_does_not_make_a_step_of_each_run():
    net, x = NETWORKS["smooth"], images(6)
    y = net(x).argmax(1)
    for gradients, spent in ((20, 20), (100, 96), (400, 386)):
        attack = SOAE(0.001, gradients=gradients, early_stop=False, threshold=0.0)
        assert attack(net, x, y).gradient_calls.tolist() == [spent] * 6


# --- the plan -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # restarts, steps, second-order steps, random start, rotated losses, schedule, largest dimension
        ({}, Plan(5, 18, 1, True, True, "linear", 2)),
        ({"direction": "auto"}, Plan(5, 18, 1, True, True, "linear", 2)),
        ({"gradients": 20}, Plan(1, 14, 1, True, True, "linear", 2)),
        ({"gradients": 40}, Plan(2, 17, 1, True, True, "linear", 2)),
        ({"gradients": 400}, Plan(20, 19, 1, True, True, "linear", 2)),
        ({"gradients": 4000}, Plan(20, 199, 1, True, True, "linear", 2)),
        ({"gradients": 7}, Plan(1, 1, 1, True, True, "linear", 2)),
        ({"hvp": "finite-difference"}, Plan(5, 19, 1, True, True, "linear", 2)),
        ({"direction": "trust-region"}, Plan(5, 4, 20, True, True, "linear", 2)),
        ({"direction": "frank-wolfe", "hvp": "finite-difference"}, Plan(5, 6, 30, True, True, "linear", 2)),
        ({"direction": "damped", "second_order_steps": 2}, Plan(5, 18, 2, True, True, "linear", 2)),
        ({"direction": "paper"}, Plan(5, 1, 5, False, False, "constant", 5)),
        ({"second_order_steps": 0, "schedule": "constant"}, Plan(5, 20, 0, True, True, "constant", 2)),
        ({"steps": 4}, Plan(1, 4, 4, False, False, "constant", 5)),
        ({"steps": 4, "restarts": 3, "second_order_steps": 5}, Plan(3, 4, 5, False, False, "constant", 5)),
        ({"steps": 2, "second_order_steps": 9}, Plan(1, 2, 2, False, False, "constant", 5)),
        (
            {"steps": 4, "random_start": True, "rotate_loss": True, "schedule": "linear", "max_dim": 3},
            Plan(1, 4, 4, True, True, "linear", 3),
        ),
        (
            {"random_start": False, "rotate_loss": False, "schedule": "constant", "max_dim": 1},
            Plan(5, 19, 1, False, False, "constant", 1),
        ),
    ],
)
def test_the_plan(options, expected):
    assert SOAE(0.3, **options).plan() == expected


def test_the_budget_and_the_plain_attack():
    assert SOAE(0.3).budget == 100
    assert SOAE(0.3, gradients=40).budget == 40
    four = SOAE(0.3, steps=4)
    assert four.budget is None
    assert four.plain() is four
    budget = SOAE(0.3, gradients=40, direction="auto", seed=3)
    assert budget.plain() == SOAE(0.3, steps=10, direction="auto", seed=3, second_order_steps="all")
    assert budget.plain(2).plan() == Plan(1, 2, 2, False, False, "constant", 5)
    assert replace(budget, second_order_steps=1).plain().plan().second_order_steps == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradients": 6}, "^gradients: 6 are too few for second-order steps of 7 gradients each; raise it, or lower"),
        ({"gradients": 12, "direction": "paper"}, "^gradients: 12 are too few for second-order steps of 13 gradients"),
        ({"gradients": 20, "second_order_steps": 3}, "^gradients: 20 are too few"),
        ({"gradients": 0}, "^gradients: must be at least 1"),
        ({"gradients": 40, "steps": 4}, "^gradients: a budget decides on the steps; leave out steps=4"),
        ({"restarts": 2}, "^restarts: a budget decides on them; give steps as well"),
        ({"gradients": 40, "restarts": 2}, "^restarts: a budget decides on them; give steps as well"),
        ({"schedule": "cosine"}, "^schedule: unknown name 'cosine'"),
        ({"second_order_steps": "some"}, "^second_order_steps: unknown name 'some'"),
        ({"second_order_steps": -1}, "^second_order_steps: must be at least 0"),
        ({"damping": -1.0}, "^damping: "),
        ({"inner_steps": 0}, "^inner_steps: must be at least 1"),
        ({"delta0": "random", "direction": "power"}, "^delta0: direction='power' solves no system"),
        ({"direction": "frank-wolfe", "norm": "L1"}, "^direction: 'frank-wolfe' needs norm Linf or L2"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        SOAE(0.3, **options)


# --- what the runs do ---------------------------------------------------------------------------------------------


def test_the_schedules_and_the_first_order_steps_are_those_of_the_gradient():
    """Without second-order steps and rotation it is PGD, from the same random starts, with steps that get shorter."""
    net, x = NETWORKS["smooth"], images(6)
    y = net(x).argmax(1)
    constant = SOAE(0.2, steps=8, second_order_steps=0, random_start=True, restarts=2, early_stop=False, seed=4)
    pgd = PGD(0.2, steps=8, restarts=2, early_stop=False, seed=4)
    torch.testing.assert_close(constant(net, x, y).x_adv, pgd(net, x, y).x_adv, rtol=0, atol=1e-12)
    lengths = []
    real = SOAE._length

    class Watched(SOAE):
        def _length(self, task, step, plan):
            lengths.append((step, real(self, task, step, plan)))
            return lengths[-1][1]

    eps = torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    Watched(eps, gradients=30, early_stop=False)(net, x, y)
    steps = SOAE(0.1, gradients=30).plan().steps
    assert [step for step, _ in lengths] == list(range(steps)) * 2
    for step, length in lengths:
        torch.testing.assert_close(length, eps * (1 - step / steps))
    lengths.clear()
    Watched(eps, gradients=20, step_size=0.4, early_stop=False)(net, x, y)
    assert all((length == 0.4 * (1 - step / 14)).all() for step, length in lengths)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_every_second_run_climbs_the_other_loss_and_the_own_loss_decides(loss):
    net, x = NETWORKS["smooth"], images(24)
    y = net(x).argmax(1)
    other = "margin" if loss == "ce" else "ce"
    common = {"random_start": True, "early_stop": False, "seed": 1}
    first = SOAE(0.06, steps=5, second_order_steps=0, loss=loss, **common)
    both = replace(first, restarts=2, rotate_loss=True)(net, x, y)
    # The second run alone, on the other loss: one of two restarts of an attack on it.
    pair = SOAE(0.06, steps=5, second_order_steps=0, loss=other, restarts=2, **common)
    objective = Objective(net, loss)
    candidates = [first(net, x, y).x_adv, *second_run(pair, net, x, y)]
    losses = torch.stack([objective(each, y).detach() for each in candidates])
    fooled = torch.stack([net(each).argmax(1) != y for each in candidates])
    best = torch.where(fooled, losses, losses - 1e9).argmax(0)
    expected = torch.stack(candidates)[best, torch.arange(24)]
    torch.testing.assert_close(both.x_adv, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(both.loss, objective(both.x_adv, y).detach(), rtol=1e-9, atol=0)
    assert len({int(b == 0) for b in best}) == 2  # either run wins somewhere


def second_run(attack, net, x, y):
    """All points that the second restart of an attack looks at."""
    seen = []

    class Noting(nn.Module):
        def forward(self, images):
            seen.append(images.detach().clone())
            return net(images)

    attack(Noting(), x, y)
    # Before: the image, and a gradient at each of 5 steps and the last point of the first run; after: the result.
    return seen[7:13]


def test_rotation_is_no_part_of_plain_runs():
    net, x = NETWORKS["smooth"], images(6)
    y = net(x).argmax(1)
    attack = SOAE(0.2, steps=3, restarts=2, early_stop=False)
    assert not torch.equal(attack(net, x, y).x_adv, replace(attack, rotate_loss=True)(net, x, y).x_adv)
    assert torch.equal(attack(net, x, y).x_adv, replace(attack, rotate_loss=False)(net, x, y).x_adv)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_random_numbers_do_not_depend_on_how_the_data_are_split(direction):
    net, x = NETWORKS["smooth"], images(7)
    y = net(x).argmax(1)
    delta0 = "random" if direction in SOLVES else "zero"
    attack = SOAE(0.1, gradients=45, direction=direction, delta0=delta0, seed=2, max_dim=2)
    whole = attack(net, x, y)
    for size in (1, 3):
        split = replace(attack, batch_size=size)(net, x, y)
        torch.testing.assert_close(split.x_adv, whole.x_adv, rtol=0, atol=1e-8)
        assert torch.equal(split.gradient_calls, whole.gradient_calls)
        assert torch.equal(split.krylov_dims, whole.krylov_dims)
    rows = torch.tensor([5, 2])
    some = attack(net, x[rows], y[rows], index=rows)
    torch.testing.assert_close(some.x_adv, whole.x_adv[rows], rtol=0, atol=1e-8)
    assert not torch.equal(replace(attack, seed=3)(net, x, y).x_adv, whole.x_adv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_results_lie_in_ball_and_box(norm, dtype):
    net, x = smooth_net(dtype=dtype), images(9, dtype=dtype)
    y = net(x).argmax(1)
    eps = {"Linf": 0.2, "L2": 0.6, "L1": 1.5}[norm]
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    result = SOAE(eps, norm=norm, gradients=60)(net, x, y)
    assert float(torch.linalg.vector_norm((result.x_adv - x).flatten(1), ord=order, dim=1).max()) <= eps
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    assert result.x_adv.dtype == dtype
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)
    assert result.success.any()


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "graphs", "vectors"),
    [
        ({}, 2, 2 * 3),
        ({"steps": 2}, 2, 2 * 6),
        ({"steps": 2, "max_dim": 9, "hvp": "double-backward"}, 2, 2 * 10),
        ({"direction": "power", "hvp": "finite-difference"}, 1, 2 * 3),
    ],
)
def test_automatic_batches_plan_for_the_krylov_basis_and_the_graph_of_the_gradient(
    monkeypatch, options, graphs, vectors
):
    net, x = small_net(), images(30, dtype=torch.float32)
    y = net(x).argmax(1)
    needed = graphs * memory.gradient_bytes(net, x[:1]) + (24 + vectors) * 4 * N
    monkeypatch.setattr("soae_ext.attacks.base.available_bytes", lambda device: 2 * 7 * needed + 5)
    sizes = []
    real = SOAE._attack_batch
    monkeypatch.setattr(
        SOAE, "_attack_batch", lambda self, o, x, *rest: sizes.append(len(x)) or real(self, o, x, *rest)
    )
    attack = SOAE(0.1, batch_size="auto", **options)
    found = attack(net, x, y)
    assert sizes == [7, 7, 7, 7, 2]
    whole = replace(attack, batch_size=None)(net, x, y)
    assert torch.equal(found.success, whole.success)


def test_linear_models_cost_one_product_for_each_second_order_step():
    """The space of a model without curvature ends at once; what is saved is not spent otherwise."""
    net, x = linear(), images(4)
    result = SOAE(0.001, gradients=30, loss="margin", rotate_loss=False, threshold_on="subdiagonal", early_stop=False)(
        net, x, net(x).argmax(1)
    )
    assert result.krylov_dims.sum(1).tolist() == [1] * 4
    assert result.gradient_calls.tolist() == [30 - 2] * 4
    assert x.shape[1:] == SHAPE
