"""FGSM, PGD and what all attacks share: balls, random numbers, bookkeeping, refusals.

The oracles are linear classifiers, whose worst perturbation is known in closed form, and SciPy's distributions.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from soae_ext.attacks import FGSM, PGD, SOAE, AttackResult
from soae_ext.attacks.geometry import project, random_start, round_down
from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits, shipped_file
from soae_ext.models.small_cnn import load_checkpoint

SHAPE = (1, 5, 4)
N = 20
quick = settings(deadline=None, max_examples=20)


def linear(classes=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(N, classes, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, N, generator=generator, dtype=torch.float64))
        layer.bias.copy_(torch.randn(classes, generator=generator, dtype=torch.float64))
    return nn.Sequential(nn.Flatten(), layer)


def images(count, low=0.0, high=1.0, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)).to(dtype)


def small_net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(N, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)


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
        length = flat.abs().amax(1) if norm == "Linf" else torch.linalg.vector_norm(flat, dim=1)
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
        SOAE(eps, norm=norm, loss=loss, random_start=start, steps=steps, hvp="double-backward"),
    ):
        result = attack(model, x, y)
        assert_inside(x, result.x_adv, eps, norm)
        with torch.no_grad():
            logits = model(result.x_adv)
        assert torch.equal(result.success, logits.argmax(1) != y)
        torch.testing.assert_close(result.loss, Objective(model, loss)(result.x_adv, y).detach())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", [FGSM, PGD, SOAE])
def test_eps_zero_returns_the_images(attack, norm):
    model, x = small_net(), images(10, dtype=torch.float32)
    y = model(x).argmax(1)
    result = attack(0.0, norm=norm, random_start=True, early_stop=False)(model, x, y)
    assert torch.equal(result.x_adv, x)
    assert not result.success.any()
    assert (result.gradient_calls == 0).all()


def test_a_tensor_of_radii_is_one_attack_per_radius():
    model, x = small_net(), images(12, dtype=torch.float32)
    y = model(x).argmax(1)
    radii = torch.tensor([0.0, 0.02, 0.3]).repeat(4)
    together = PGD(radii, steps=5, seed=3)(model, x, y)
    for radius in (0.0, 0.02, 0.3):
        rows = (radii == torch.tensor(radius)).nonzero()[:, 0]
        alone = PGD(radii[rows], steps=5, seed=3)(model, x[rows], y[rows], index=rows)
        torch.testing.assert_close(alone.x_adv, together.x_adv[rows])
        assert_inside(x[rows], together.x_adv[rows], float(torch.tensor(radius)), "Linf")


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


# --- best iterate, early stop, cost ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 20), st.sampled_from(["Linf", "L2"]), st.booleans())
def test_more_steps_and_restarts_never_hurt(seed, norm, early_stop):
    model, x = small_net(seed), images(16, dtype=torch.float32, seed=seed)
    y = torch.arange(16) % 4
    common = {"norm": norm, "loss": "margin", "step_size": 0.15, "early_stop": early_stop, "seed": seed}
    last = torch.full((16,), -torch.inf)
    for steps in (1, 2, 4, 8):
        loss = PGD(0.2, steps=steps, **common)(model, x, y).loss
        assert bool((loss >= last - 1e-5).all())
        last = loss
    last = torch.full((16,), -torch.inf)
    for restarts in (1, 2, 3):
        loss = PGD(0.2, steps=2, restarts=restarts, **common)(model, x, y).loss
        assert bool((loss >= last - 1e-5).all())
        last = loss


def test_the_result_is_never_worse_than_the_image():
    """A step so long that it overshoots: the loss at its end is lower, the image itself is the best iterate."""

    class Bump(nn.Module):
        def forward(self, x):
            rise = (x.flatten(1) - 0.5).sum(1)
            return torch.stack([torch.zeros_like(rise), -1 + rise - 100 * rise**2], 1)

    x, y = torch.full((3, *SHAPE), 0.5), torch.zeros(3, dtype=torch.int64)
    result = FGSM(0.3)(Bump(), x, y)
    assert torch.equal(result.x_adv, x)


class Counting(nn.Module):
    """Counts the images that pass with and without a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model, self.with_gradient, self.without = model, 0, 0

    def forward(self, x):
        if torch.is_grad_enabled() and x.requires_grad:
            self.with_gradient += len(x)
        else:
            self.without += len(x)
        return self.model(x)


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("attack", [FGSM(0.1), PGD(0.1, steps=6), PGD(0.1, steps=3, restarts=3), FGSM(0.1, restarts=2)])
def test_every_image_that_passes_the_model_is_counted(attack, early_stop):
    model, x = Counting(small_net()), images(40, dtype=torch.float32)
    y = torch.arange(40) % 4
    result = dataclasses.replace(attack, early_stop=early_stop)(model, x, y)
    assert int(result.gradient_calls.sum()) == model.with_gradient
    assert int(result.forward_calls.sum()) == model.without
    assert result.gradient_calls.dtype == result.forward_calls.dtype == torch.int64


def test_fooled_images_stop_costing():
    model, x = small_net(), images(40, dtype=torch.float32)
    y = torch.arange(40) % 4
    wrong = model(x).argmax(1) != y
    assert wrong.any()
    result = PGD(0.5, steps=9, step_size=0.06, random_start=False)(model, x, y)
    assert (result.gradient_calls[wrong] == 0).all()
    assert torch.equal(result.x_adv[wrong], x[wrong])
    assert result.success[wrong].all()
    assert (result.gradient_calls[~result.success] == 9).all()
    fooled = result.success & ~wrong
    assert fooled.any()
    assert (result.gradient_calls[fooled] <= 9).all()
    assert (result.gradient_calls[fooled] < 9).any()


def test_saturated_cross_entropy_falls_back_to_the_margin():
    """Logits so far apart that the cross-entropy and its gradient are exactly zero."""
    base = linear(3, torch.float32)
    model = nn.Sequential(base, Scale(1e5))
    x = images(20, 0.4, 0.6, dtype=torch.float32)
    y = base(x).argmax(1)
    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Objective(model, "ce")(points, y).sum(), points)
    saturated = (gradient == 0).flatten(1).all(1)
    assert saturated.sum() >= 10
    for attack in (FGSM(0.3), PGD(0.3, steps=3, random_start=False), SOAE(0.3, steps=2, hvp="double-backward")):
        result = attack(model, x, y)
        assert result.success[saturated].all()
        assert (result.gradient_calls[saturated] >= 2).all()


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


# --- the model is left as it came -------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [FGSM(0.1), PGD(0.1, steps=2), SOAE(0.1, steps=2, hvp="double-backward")])
def test_the_model_is_attacked_in_eval_mode_and_restored(attack):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(N, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4))
    model.train()
    model[3].eval()
    model[1].weight.requires_grad_(False)
    seen = []
    model[2].register_forward_hook(lambda module, *_: seen.append(module.training))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    x, y = images(8, dtype=torch.float32), torch.arange(8) % 4
    attack(model, x, y)
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    assert len(model[2]._forward_hooks) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_model_is_restored_after_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        FGSM(0.1)(model, images(2), torch.zeros(2, dtype=torch.int64))
    assert model.training


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attacks_run_without_grad_mode(mode):
    model, y = small_net(), torch.arange(8) % 4
    expected = PGD(0.1, steps=2)(model, images(8, dtype=torch.float32), y)
    with mode():
        found = PGD(0.1, steps=2)(model, images(8, dtype=torch.float32), y)
    assert torch.equal(found.x_adv, expected.x_adv)


def test_inputs_are_not_written_to_and_not_aliased():
    model, x = small_net(), images(8, dtype=torch.float32).requires_grad_()
    y, copy = torch.arange(8) % 4, x.detach().clone()
    result = PGD(0.1)(model, x, y)
    assert torch.equal(x.detach(), copy)
    assert x.grad is None
    assert not result.x_adv.requires_grad
    assert result.x_adv.data_ptr() != x.data_ptr()


def test_no_images_give_an_empty_result():
    result = PGD(0.1)(small_net(), torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
    assert isinstance(result, AttackResult)
    assert result.x_adv.shape == (0, *SHAPE)
    assert result.success.shape == result.loss.shape == result.gradient_calls.shape == (0,)


# --- refusals ----------------------------------------------------------------------------------------------------

X, Y = torch.full((4, *SHAPE), 0.5), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "^eps: .*not negative"),
        ({"eps": float("nan")}, ValueError, "^eps: "),
        ({"eps": float("inf")}, ValueError, "^eps: "),
        ({"eps": "0.3"}, TypeError, "^eps: "),
        ({"eps": torch.tensor([0.1, -0.1])}, ValueError, "^eps: "),
        ({"eps": torch.tensor(0.1)}, ValueError, "^eps: .*shape"),
        ({"eps": torch.tensor([1, 2])}, ValueError, "^eps: "),
        ({"norm": "Linff"}, ValueError, "^norm: .*did you mean 'Linf'"),
        ({"norm": "l2"}, ValueError, "^norm: .*did you mean 'L2'"),
        ({"loss": "margins"}, ValueError, "^loss: .*did you mean 'margin'"),
        ({"steps": 0}, ValueError, "^steps: "),
        ({"steps": 2.0}, TypeError, "^steps: "),
        ({"step_size": 0.0}, ValueError, "^step_size: "),
        ({"restarts": 0}, ValueError, "^restarts: "),
        ({"seed": -1}, ValueError, "^seed: "),
        ({"batch_size": 0}, ValueError, "^batch_size: "),
    ],
)
def test_bad_options_are_refused_when_the_attack_is_made(options, error, message):
    with pytest.raises(error, match=message):
        PGD(**{"eps": 0.3, **options})


def test_fgsm_makes_one_step():
    with pytest.raises(ValueError, match=r"^steps: .*PGD"):
        FGSM(0.3, steps=2)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        ((X * 255).to(torch.uint8), Y, TypeError, r"^x: .*x\.float\(\) / 255"),
        (X.half(), Y, TypeError, "^x: "),
        (X.numpy(), Y, TypeError, "^x: "),
        (X + 0.6, Y, ValueError, r"^x: .*\[0, 1\]"),
        (X - 0.6, Y, ValueError, r"^x: .*\[0, 1\]"),
        (torch.full_like(X, torch.nan), Y, ValueError, r"^x: .*\[0, 1\]"),
        (X[0, 0, 0], Y, ValueError, r"^x: .*x\[None\]"),
        (X, Y.int(), TypeError, r"^y: .*y\.long\(\)"),
        (X, Y.float(), TypeError, "^y: .*int64"),
        (X, Y[:3], ValueError, r"^y: .*\(4,\)"),
        (X, Y - 1, ValueError, "^y: .*negative"),
        (X, Y + 4, ValueError, "^y: .*below the number of classes, 4"),
        (X, [0, 0, 0, 0], TypeError, "^y: "),
    ],
)
def test_bad_batches_are_refused_before_any_gradient(x, y, error, message):
    model = Counting(small_net())
    with pytest.raises(error, match=message):
        PGD(0.3, batch_size=2)(model, x, y)
    assert model.with_gradient == 0


def test_labels_of_later_batches_are_checked_before_the_first_is_attacked():
    model = Counting(small_net())
    with pytest.raises(ValueError, match=r"^y: "):
        PGD(0.3, batch_size=1)(model, X, torch.tensor([0, 1, 2, 9]))
    assert model.with_gradient == 0


def test_radii_must_match_the_batch():
    with pytest.raises(ValueError, match=r"^eps: .*\(4,\)"):
        PGD(torch.tensor([0.1, 0.2]))(small_net(), X, Y)


@pytest.mark.parametrize("index", [torch.arange(3), torch.arange(4).int(), torch.arange(4) - 1])
def test_bad_sample_numbers_are_refused(index):
    with pytest.raises(ValueError, match=r"^index: "):
        PGD(0.1)(small_net(), X, Y, index=index)


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match=r"^model: must map"):
        PGD(0.1)(nn.Identity(), X, Y)
    with pytest.raises(ValueError, match=r"^model: .*not finite"):
        PGD(0.1)(nn.Sequential(small_net(), Scale(float("nan"))), X, Y)
    with pytest.raises(ValueError, match=r"^loss: 'dlr' needs at least 3 classes"):
        PGD(0.1, loss="dlr")(linear(2, torch.float32), X, Y)
    with pytest.raises(ValueError, match=r"^loss: targeted 'dlr' needs at least 4 classes"):
        PGD(0.1, loss="dlr", targeted=True)(linear(3, torch.float32), X, Y)


def test_attacks_are_values():
    assert PGD(0.3, steps=3) == PGD(0.3, steps=3)
    assert PGD(0.3, steps=3) != PGD(0.3, steps=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PGD(0.3).eps = 0.1
    with pytest.raises(TypeError):
        PGD(0.3, "L2")


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
