"""L1 balls: the projection against SciPy, the sparse step, the random start, and attacks on linear models by LP."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from soae_ext.attacks import FGSM, PGD
from soae_ext.attacks.geometry import project, random_perturbation, random_start, steepest_step
from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits
from soae_ext.models import digits_network
from tests.attack_cases import SHAPE, Counting, images, linear, small_net

quick = settings(deadline=None, max_examples=30)
SLACK = 1 - 2.0**-20


def nearest(x, moved, radius):
    """The projection by SciPy: bisection for the multiplier of the norm, whose root is bracketed."""
    p = moved - x
    room = np.where(p > 0, 1 - x, x)

    def shrunk(t):
        return np.minimum(np.maximum(np.abs(p) - t, 0), room)

    if shrunk(0.0).sum() <= radius:
        return x + np.sign(p) * shrunk(0.0)
    t = optimize.brentq(lambda t: shrunk(t).sum() - radius, 0, np.abs(p).max(), xtol=1e-15, rtol=1e-15, maxiter=500)
    return x + np.sign(p) * shrunk(t)


@quick
@given(st.integers(0, 10**6), st.floats(1e-3, 15), st.floats(0.01, 3), st.integers(1, 40))
def test_projection_against_a_root_finder(seed, radius, spread, n):
    generator = np.random.default_rng(seed)
    x = generator.uniform(0, 1, (4, n))
    x[0, ::2], x[1, ::3] = 0, 1
    moved = x + spread * generator.standard_normal((4, n))
    moved[2, : n // 2] = x[2, : n // 2] + 0.25  # ties
    eps = torch.full((4,), radius, dtype=torch.float64)
    found = project(torch.from_numpy(x), torch.from_numpy(moved), eps, "L1").numpy()
    expected = [nearest(*row, radius * SLACK) for row in zip(x, moved, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_projection_against_a_general_minimiser():
    """Nothing of the closed form: SLSQP on d = p - q with p, q >= 0."""
    generator = np.random.default_rng(0)
    for _ in range(6):
        x, n = generator.uniform(0, 1, 5), 5
        moved = x + generator.standard_normal(n)

        def distance(pq, moved=moved, x=x):
            difference = x + pq[:5] - pq[5:] - moved
            return difference @ difference

        bounds = [(0, 1 - v) for v in x] + [(0, v) for v in x]
        budget = {"type": "ineq", "fun": lambda pq: 0.7 - pq.sum()}
        solution = optimize.minimize(distance, np.zeros(10), bounds=bounds, constraints=budget, tol=1e-14).x
        found = project(torch.tensor(x)[None], torch.tensor(moved)[None], torch.tensor([0.7]).double(), "L1")[0]
        np.testing.assert_allclose(found.numpy(), x + solution[:5] - solution[5:], atol=2e-5)


@quick
@given(st.integers(0, 99), st.floats(1e-6, 30), st.sampled_from([torch.float32, torch.float64]))
def test_projection_is_inside_ball_and_box(seed, eps, dtype):
    x = images(6, dtype=dtype, seed=seed)
    x[0], x[1] = 0, 1
    moved = x + 2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    radius = torch.full((6,), eps, dtype=torch.float64).to(dtype)
    found = project(x, moved, radius, "L1")
    assert bool(((found >= 0) & (found <= 1)).all())
    for difference in (found - x, found.double() - x.double()):
        assert bool((difference.flatten(1).abs().sum(1) <= radius).all())
    # A point that is inside stays where it is, to rounding.
    torch.testing.assert_close(project(x, found, radius, "L1"), found, rtol=1e-6, atol=1e-7)


def test_large_images_in_single_precision():
    x = torch.rand(3, 3 * 224 * 224, generator=torch.Generator().manual_seed(0))
    moved = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = project(x, moved, torch.full((3,), 12.0), "L1")
    assert float((found - x).abs().sum(1).max()) <= 12
    assert float((found - x).abs().sum(1).min()) > 11.99


def test_the_step_moves_the_steepest_pixels_that_can_move():
    gradient = torch.zeros(3, 400)
    gradient[0, :6] = torch.tensor([5.0, -4.0, 3.0, -2.0, 1.5, 1.0])
    gradient[1, 7] = -1e-30
    points = torch.full((3, 400), 0.5)
    points[0, 0] = 1  # the steepest pixel of the first is at the border and would leave
    points[0, 1] = 1  # the next is at the border too, and turns away from it
    step = steepest_step(gradient, "L1", points)
    expected = torch.zeros(3, 400)
    expected[0, 1:5] = torch.tensor([-1.0, 1.0, -1.0, 1.0]) / 4
    expected[1, 7] = -1
    torch.testing.assert_close(step, expected)
    assert steepest_step(torch.tensor([[3.0, -4.0, 0.5]]), "L1").tolist() == [[0, -1, 0]]


def test_random_starts_are_uniform_in_the_ball():
    x, eps = torch.full((4000, 3), 0.5, dtype=torch.float64), torch.full((4000,), 0.25, dtype=torch.float64)
    index = torch.arange(4000)
    delta = random_perturbation(x, eps, "L1", 0, (0,), index) / 0.25
    assert stats.kstest(delta.abs().sum(1).numpy(), lambda r: r**3).pvalue > 1e-3
    # The share of a coordinate in the length is beta(1, 2), its sign a coin.
    for pixel in (delta.abs() / delta.abs().sum(1, keepdim=True)).T:
        assert stats.kstest(pixel.numpy(), stats.beta(1, 2).cdf).pvalue > 1e-3
    assert stats.binomtest(int((delta > 0).sum()), 12000).pvalue > 1e-3


@pytest.mark.parametrize("eps", [0.3, 2.0])
def test_pgd_finds_the_optimum_of_a_linear_program(eps):
    """On two linear classes the worst margin over ball and box is a linear program."""
    model, x = linear(2), images(12)
    y = model(x).argmax(1)
    weight = model[1].weight.detach().numpy()
    clean = Objective(model, "margin")(x, y).detach().numpy()
    attack = PGD(eps, norm="L1", loss="margin", steps=150, step_size=eps / 10, random_start=False, early_stop=False)
    found = attack(model, x, y).loss.numpy()
    for i in range(12):
        w, point = weight[1 - y[i]] - weight[y[i]], x[i].flatten().numpy()
        bounds = [(0, 1 - v) for v in point] + [(0, v) for v in point]
        solution = optimize.linprog(-np.r_[w, -w], A_ub=np.ones((1, 40)), b_ub=[eps], bounds=bounds)
        best = clean[i] - solution.fun
        assert best * (1 - 1e-5) - 0.04 * abs(best - clean[i]) <= found[i] <= best + 1e-9


@pytest.mark.parametrize("early_stop", [True, False])
def test_attacks_in_l1_count_every_pass_and_stay_inside(early_stop):
    for attack in (FGSM, PGD):
        model, x = Counting(small_net()), images(30, dtype=torch.float32)
        y = torch.arange(30) % 4
        result = attack(2.0, norm="L1", early_stop=early_stop)(model, x, y)
        assert int(result.gradient_calls.sum()) == model.with_gradient
        assert int(result.forward_calls.sum()) == model.without
        assert float((result.x_adv - x).abs().flatten(1).sum(1).max()) <= 2
        assert torch.equal(attack(0.0, norm="L1")(model, x, y).x_adv, x)


def test_more_effort_leaves_less_accuracy_on_digits():
    network, digits = digits_network(), load_digits().first(50)

    def left(attack):
        return int((~attack(network, digits.images, digits.labels).success).sum())

    accuracies = [left(FGSM(10, norm="L1")), left(PGD(10, norm="L1")), left(PGD(30, norm="L1", steps=40))]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[2]


def test_starts_do_not_depend_on_the_batch():
    x, eps = images(9, dtype=torch.float32), torch.full((9,), 2.0)
    whole = random_start(x, eps, "L1", 3, 1, torch.arange(9))
    assert torch.equal(random_start(x[4:], eps[4:], "L1", 3, 1, torch.arange(4, 9)), whole[4:])
    assert whole.shape == (9, *SHAPE)
