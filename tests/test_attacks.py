"""FGSM, PGD and what all attacks share: losses, balls and random numbers.

The oracles are linear classifiers, whose worst perturbation is known in closed form, and SciPy's distributions.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from soae_ext.attacks import APGD, ASOD, FGSM, PGD, SOAE
from soae_ext.attacks.geometry import project, random_start, round_down
from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits, shipped_file
from soae_ext.models.small_cnn import load_checkpoint
from tests.attack_cases import SHAPE, images, linear, small_net

quick = settings(deadline=None, max_examples=20)


@pytest.fixture(scope="module")
def digits():
    return load_digits().first(60)


@pytest.fixture(scope="module")
def network():
    return load_checkpoint(shipped_file("digits_cnn.safetensors"))


# --- closed forms on linear classifiers ---------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("make", [FGSM, lambda eps, **o: PGD(eps, steps=25, step_size=eps, **o)])
def test_two_classes_reach_the_dual_norm_bound(norm, make):
    """The largest margin over an eps-ball is margin(x) + eps * |w|_dual, as long as the box is not in the way."""
    model, x = linear(2), images(30, 0.3, 0.7)
    y = model(x).argmax(1)
    eps = 0.05
    result = make(eps, norm=norm, loss="margin", early_stop=False)(model, x, y)
    weight = model[1].weight.detach()
    w = weight[1] - weight[0]
    rise = eps * (w.abs().sum() if norm == "Linf" else w.norm())
    clean = Objective(model, "margin")(x, y).detach()
    torch.testing.assert_close(result.loss, clean + rise, rtol=1e-5, atol=1e-7)
    assert torch.equal(result.success, result.loss > 0)


def test_linf_bound_with_the_box_in_the_way():
    """Per pixel the best move is to the end of [max(0, x - eps), min(1, x + eps)] that w points to."""
    model, x = linear(2), images(30)
    y = model(x).argmax(1)
    weight = model[1].weight.detach()
    eps = 0.4
    for label in (0, 1):
        w = (weight[1 - label] - weight[label]).reshape(SHAPE)
        best = torch.where(w > 0, (x + eps).clamp(max=1), (x - eps).clamp(min=0))[y == label]
        result = FGSM(eps, early_stop=False)(model, x[y == label], y[y == label])
        torch.testing.assert_close(result.x_adv, best, rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_success_is_decided_by_the_distance_to_the_boundary(norm):
    model, x = linear(2), images(60, 0.4, 0.6)
    weight = model[1].weight.detach()
    with torch.no_grad():
        model[1].bias.copy_(-weight.sum(1) / 2)  # the boundary passes through the middle of the images
    y = model(x).argmax(1)
    w = weight[1] - weight[0]
    margin = -Objective(model, "margin")(x, y).detach()
    distance = margin / (w.abs().sum() if norm == "Linf" else w.norm())
    eps = float(distance.sort().values[29:31].mean())
    for attack in (FGSM(eps, norm=norm), PGD(eps, norm=norm, steps=20, step_size=eps)):
        assert torch.equal(attack(model, x, y).success, distance < eps)


def test_targeted_reaches_the_class_of_a_linear_model():
    model, x = linear(4), images(20, 0.4, 0.6)
    target = (model(x).argmax(1) + 1) % 4
    for loss in ("ce", "margin", "dlr"):
        result = PGD(0.4, targeted=True, loss=loss, steps=30)(model, x, target)
        assert torch.equal(result.success, model(result.x_adv).argmax(1) == target)
        assert result.success.float().mean() > 0.9


def test_losses_against_numpy():
    logits = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 6
    z, ranked = logits.numpy(), np.sort(logits.numpy(), axis=1)[:, ::-1]
    own = z[np.arange(50), y]
    others = np.array([np.delete(row, label).max() for row, label in zip(z, y, strict=True)])
    entropy = np.log(np.exp(z).sum(1)) - own
    top = ranked[:, 0]
    expected = {
        ("ce", False): entropy,
        ("ce", True): -entropy,
        ("margin", False): others - own,
        ("margin", True): own - others,
        ("dlr", False): (others - own) / (top - ranked[:, 2] + 1e-12),
        ("dlr", True): (own - others) / (top - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12),
    }
    for (name, targeted), values in expected.items():
        found = Objective(nn.Identity(), name, targeted)(logits, y)
        np.testing.assert_allclose(found.numpy(), values, rtol=1e-12, atol=1e-12)


# --- ball, box, eps = 0 ------------------------------------------------------------------------------------------


def assert_inside(x, x_adv, eps, norm):
    """As a user would compute it, in the tensors' own precision and in double precision."""
    assert x_adv.dtype == x.dtype
    assert x_adv.shape == x.shape
    assert bool(((x_adv >= 0) & (x_adv <= 1)).all())
    for difference in (x_adv - x, x_adv.double() - x.double()):
        flat = difference.flatten(1)
        length = torch.linalg.vector_norm(flat, ord={"Linf": torch.inf, "L2": 2, "L1": 1}[norm], dim=1)
        assert float(length.max()) <= eps


eps_values = st.one_of(st.floats(1e-6, 1.5), st.sampled_from([0.3, 8 / 255, 0.1, 1.0, 1e-8]))


@quick
@given(eps_values, st.sampled_from(["Linf", "L2"]), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_projection_is_inside_ball_and_box(eps, norm, dtype, seed):
    x = images(8, dtype=dtype, seed=seed)
    x[0], x[1] = 0, 1
    generator = torch.Generator().manual_seed(seed)
    moved = x + 2 * eps * torch.randn(x.shape, generator=generator, dtype=dtype)
    radius = torch.full((8,), eps, dtype=torch.float64)
    assert_inside(x, project(x, moved, round_down(radius, dtype), norm), eps, norm)


@pytest.mark.parametrize("n", [3 * 32 * 32, 3 * 224 * 224])
def test_l2_ball_of_large_images_in_single_precision(n):
    x = torch.rand(4, n, generator=torch.Generator().manual_seed(0))
    for eps in (0.5, 3.0):
        moved = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        assert_inside(x, project(x, moved, torch.full((4,), eps), "L2"), eps, "L2")


@pytest.mark.parametrize("n", [7, 784])
def test_l2_ball_where_no_rounding_towards_the_image_helps(n):
    """Around a black image every perturbation is exact; only the radius leaves room for the rounding of the norm."""
    x, moved = torch.zeros(300, n), torch.rand(300, n, generator=torch.Generator().manual_seed(0))
    for eps in (1e-6, 0.1, 0.5, 1.0):
        assert_inside(x, project(x, moved, torch.full((300,), eps), "L2"), float(torch.tensor(eps)), "L2")


@quick
@given(
    eps_values,
    st.sampled_from(["Linf", "L2"]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["ce", "margin", "dlr"]),
    st.booleans(),
    st.integers(1, 4),
)
def test_attacks_stay_inside_and_report_what_they_return(eps, norm, dtype, loss, start, steps):
    model, x = small_net(dtype=dtype), images(12, dtype=dtype)
    y = torch.arange(12) % 4
    for attack in (
        FGSM(eps, norm=norm, loss=loss, random_start=start),
        PGD(eps, norm=norm, loss=loss, random_start=start, steps=steps, restarts=2),
        APGD(eps, norm=norm, loss=loss, random_start=start, steps=steps, targets=2),
        ASOD(eps, norm=norm, loss=loss, random_start=start, steps=steps, samples=2),
        SOAE(eps, norm=norm, loss=loss, random_start=start, steps=steps, hvp="double-backward"),
    ):
        result = attack(model, x, y)
        assert_inside(x, result.x_adv, eps, norm)
        with torch.no_grad():
            logits = model(result.x_adv)
        assert torch.equal(result.success, logits.argmax(1) != y)
        torch.testing.assert_close(result.loss, Objective(model, loss)(result.x_adv, y).detach())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", [FGSM, PGD, APGD, ASOD, SOAE])
def test_eps_zero_returns_the_images(attack, norm):
    model, x = small_net(), images(10, dtype=torch.float32)
    y = model(x).argmax(1)
    result = attack(0.0, norm=norm, random_start=True, early_stop=False)(model, x, y)
    assert torch.equal(result.x_adv, x)
    assert not result.success.any()
    assert (result.gradient_calls == 0).all()


@pytest.mark.parametrize(("attack", "norm"), [(attack, n) for attack in (PGD, APGD, ASOD) for n in attack.norms])
def test_a_tensor_of_radii_is_one_attack_per_radius(attack, norm):
    model, x = small_net(), images(12, dtype=torch.float32)
    y = model(x).argmax(1)
    radii = torch.tensor([0.0, 0.02, 0.3]).repeat(4)
    together = attack(radii, norm=norm, steps=5, seed=3)(model, x, y)
    for radius in (0.0, 0.02, 0.3):
        rows = (radii == torch.tensor(radius)).nonzero()[:, 0]
        alone = attack(radii[rows], norm=norm, steps=5, seed=3)(model, x[rows], y[rows], index=rows)
        torch.testing.assert_close(alone.x_adv, together.x_adv[rows])
        assert_inside(x[rows], together.x_adv[rows], float(torch.tensor(radius)), norm)


# --- random numbers ----------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 2**40), st.integers(0, 5), st.sampled_from(["Linf", "L2"]), st.integers(1, 9))
def test_random_starts_do_not_depend_on_the_batch(seed, restart, norm, size):
    x, eps = images(9, dtype=torch.float32), torch.linspace(0.01, 0.5, 9)
    index = torch.arange(9) + 1000
    whole = random_start(x, eps, norm, seed, restart, index)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(size))
    for rows in order.split(size):
        assert torch.equal(random_start(x[rows], eps[rows], norm, seed, restart, index[rows]), whole[rows])


def test_random_starts_differ_by_seed_sample_and_restart():
    x, eps = torch.full((2, *SHAPE), 0.5), torch.full((2,), 0.4)
    index = torch.arange(2)
    starts = [random_start(x, eps, "Linf", seed, restart, index) for seed in (0, 1) for restart in (0, 1)]
    points = torch.cat(starts)
    assert len(torch.unique(points.flatten(1), dim=0)) == 8


def test_random_starts_are_uniform_in_the_ball():
    x, eps = torch.full((4000, 3), 0.5, dtype=torch.float64), torch.full((4000,), 0.25, dtype=torch.float64)
    index = torch.arange(4000)
    linf = random_start(x, eps, "Linf", 0, 0, index) - x
    for pixel in linf.T:
        assert stats.kstest(pixel.numpy(), stats.uniform(-0.25, 0.5).cdf).pvalue > 1e-3
    l2 = random_start(x, eps, "L2", 0, 0, index) - x
    assert stats.kstest((l2.norm(dim=1) / 0.25).numpy(), lambda r: r**3).pvalue > 1e-3
    # A coordinate of a uniform direction in three dimensions is uniform (Archimedes).
    for pixel in (l2 / l2.norm(dim=1, keepdim=True)).T:
        assert stats.kstest(pixel.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_batch_size_and_shards_change_nothing_but_rounding(network, digits):
    x, y = digits.images[:30], digits.labels[:30]
    whole = PGD(0.3, steps=5, seed=7)(network, x, y)
    chunked = PGD(0.3, steps=5, seed=7, batch_size=7)(network, x, y)
    shard = PGD(0.3, steps=5, seed=7)(network, x[20:], y[20:], index=torch.arange(20, 30))
    torch.testing.assert_close(chunked.loss, whole.loss, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(shard.loss, whole.loss[20:], rtol=1e-3, atol=1e-5)
    assert torch.equal(chunked.success, whole.success)


def test_equal_seeds_give_equal_results(network, digits):
    x, y = digits.images[:20], digits.labels[:20]
    first, second = (PGD(0.3, steps=3, seed=5)(network, x, y) for _ in range(2))
    assert torch.equal(first.x_adv, second.x_adv)
    assert not torch.equal(first.x_adv, PGD(0.3, steps=3, seed=6)(network, x, y).x_adv)


# --- the shipped digits ------------------------------------------------------------------------------------------


def test_more_effort_leaves_less_accuracy_on_digits(network, digits):
    x, y = digits.images, digits.labels
    clean = int((network(x).argmax(1) == y).sum())

    def left(attack):
        return int((~attack(network, x, y).success).sum())

    fgsm, few, many = left(FGSM(0.3)), left(PGD(0.3, steps=4)), left(PGD(0.3, steps=12, restarts=2))
    assert clean >= fgsm >= many
    assert few >= many
    by_radius = [left(PGD(eps, steps=5)) for eps in (0.0, 0.2, 0.35, 1.0)]
    assert by_radius == sorted(by_radius, reverse=True)
    assert by_radius[0] == clean
    assert by_radius[-1] == 0
