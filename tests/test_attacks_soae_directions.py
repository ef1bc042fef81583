"""The directions of one Krylov basis as steps of SOAE: against dense models, their cost, and what holds for all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn

from soae_ext.attacks import PGD, SOAE
from soae_ext.attacks import soae as soae_module
from soae_ext.attacks.geometry import project
from soae_ext.attacks.task import Task
from tests.attack_cases import SHAPE, N, Quadratic, images, linear, smooth_net
from tests.dense_models import frank_wolfe, model_value, symmetric, vectors

NEW = ("damped", "power", "trust-region", "frank-wolfe")


def quadratic(values, seed=0):
    h = torch.from_numpy(symmetric(1, N, seed=seed, eigenvalues=values)[0])
    return Quadratic(vectors(1, N)[0], h), h.numpy()


def one_step(model, direction, norm, x, length, **options):
    y = torch.zeros(len(x), dtype=torch.int64)
    attack = SOAE(
        0.45, norm=norm, steps=1, loss="margin", direction=direction, max_dim=N, step_size=length, early_stop=False,
        normalize="identity", **options,
    )  # fmt: skip
    return (attack(model, x, y).x_adv - x).flatten(1).numpy()


def trust_region(h, g, radius):
    """The maximiser of g'd + d'Hd/2 over a ball by the secular equation: d = (s I - H)^-1 g with |d| = radius."""
    values, q = np.linalg.eigh(h)
    c = q.T @ g

    def length(s):
        return np.linalg.norm(c / (s - values))

    top = values.max()
    if top < 0 and length(0.0) <= radius:
        return q @ (c / -values)
    floor = max(top, 0.0)
    low, high = floor + 1e-12 * (1 + abs(floor)), floor + np.linalg.norm(g) / radius + 1
    s = brentq(lambda s: 1 / length(s) - 1 / radius, low, high, xtol=1e-14, rtol=1e-14)
    return q @ (c / (s - values))


@pytest.mark.parametrize("values", [np.linspace(0.5, 9, N), np.linspace(-8, 6, N), np.linspace(-90, -60, N)])
def test_the_trust_region_step_of_soae_against_the_secular_equation(values):
    model, h = quadratic(values)
    x = images(4, 0.45, 0.55)
    moved = one_step(model, "trust-region", "L2", x, 0.07)
    for i in range(4):
        g = model.g.numpy() + h @ (x[i].flatten().numpy() - 0.5)
        expected = trust_region(h, g, 0.07)
        np.testing.assert_allclose(moved[i], expected, rtol=0, atol=1e-8)
        assert model_value(h, g, expected) > model_value(h, g, 0.07 * g / np.linalg.norm(g))
    # In the Linf ball of radius a, the L2 ball of radius a sqrt(n), brought to its sign.
    in_linf = replace(
        SOAE(0.4, steps=1, loss="margin", direction="trust-region", max_dim=N, early_stop=False), step_size=0.02
    )(model, x, torch.zeros(4, dtype=torch.int64)).x_adv
    g = model.g.numpy() + h @ (x[0].flatten().numpy() - 0.5)
    expected = 0.02 * np.sign(trust_region(h, g, 0.02 * N**0.5))
    np.testing.assert_allclose((in_linf[0] - x[0]).flatten().numpy(), expected, rtol=0, atol=1e-9)


def test_the_power_step_of_soae_ascends_along_the_leading_eigenvector():
    model, h = quadratic(np.linspace(-8, 6, N))
    x = images(8, 0.45, 0.55)
    moved = one_step(model, "power", "L2", x, 0.05)
    top = np.linalg.eigh(h)[1][:, -1]
    for i in range(8):
        g = model.g.numpy() + h @ (x[i].flatten().numpy() - 0.5)
        np.testing.assert_allclose(moved[i], 0.05 * np.sign(g @ top) * top, rtol=0, atol=1e-8)
    # Turned round with the gradient, whatever sign the eigenvector comes with.
    back = one_step(Quadratic(-model.g, model.h), "power", "L2", 1 - x, 0.05)
    np.testing.assert_allclose(back, -moved, rtol=0, atol=1e-8)


def test_the_damped_step_of_soae_and_where_it_would_descend():
    model, h = quadratic(np.linspace(-3, 6, N))
    x, g = torch.full((1, *SHAPE), 0.5, dtype=torch.float64), model.g.numpy()
    expected = np.linalg.solve(h + 0.75 * 6 * np.eye(N), g)
    np.testing.assert_allclose(one_step(model, "damped", "Linf", x, 0.01, damping=0.75)[0], 0.01 * expected, atol=1e-9)
    model, h = quadratic(np.linspace(-9, -2, N))
    assert g @ np.linalg.solve(h, g) < 0
    np.testing.assert_allclose(one_step(model, "damped", "Linf", x, 0.01, damping=0.0)[0], 0.01 * g, atol=1e-9)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_frank_wolfe_step_of_soae_is_that_of_the_dense_model_and_feasible(norm):
    """Some pixels near the border of the box, a step longer than the ball allows."""
    model, h = quadratic(np.linspace(0.5, 9, N))
    x, length = images(4, 0.3, 0.7), 0.1
    x[:, 0, 0], x[:, 0, 1] = 0.02, 0.97
    moved = one_step(model, "frank-wolfe", norm, x, length, inner_steps=6)
    for i in range(4):
        pixels = x[i].flatten().numpy()
        g = model.g.numpy() + h @ (pixels - 0.5)
        low, high = np.maximum(-length, -pixels), np.minimum(length, 1 - pixels)

        def corner(slope, low=low, high=high):
            return length * slope / np.linalg.norm(slope) if norm == "L2" else np.where(slope > 0, high, low)

        expected = max(frank_wolfe(h, g, corner, 6), key=lambda d, g=g: model_value(h, g, d))
        np.testing.assert_allclose(moved[i], np.clip(pixels + expected, 0, 1) - pixels, rtol=0, atol=1e-8)


def test_every_frank_wolfe_step_is_feasible(monkeypatch):
    """Nothing is left to the projection: the step that the model was maximised over is the step that is made."""
    seen = []
    real = Task.move

    def move(self, step):
        rows = self.active
        wanted = self.current[rows] + step
        seen.append(float((project(self.x[rows], wanted, self.eps[rows], "Linf") - wanted).abs().max()))
        real(self, step)

    monkeypatch.setattr(Task, "move", move)
    x = images(6)
    SOAE(0.15, direction="frank-wolfe", steps=4, early_stop=False)(smooth_net(), x, smooth_net()(x).argmax(1))
    assert len(seen) == 4
    assert max(seen) < 1e-12


@pytest.mark.parametrize("direction", [*NEW, "ascent", "paper", "auto"])
@pytest.mark.parametrize("hvp", ["traced", "double-backward", "finite-difference"])
def test_the_cost_is_one_gradient_and_the_products_that_were_made(monkeypatch, direction, hvp):
    """Counted per image: a finished system is fed zeros. Inner iterations make none."""
    made = torch.zeros(5, dtype=torch.int64)
    real = soae_module.hessian_operator

    def counting(*args, **options):
        operator = real(*args, **options)

        class Counted:
            gradient = operator.gradient

            def __call__(self, v):
                made.add_(v.flatten(1).any(1))
                return operator(v)

        return Counted()

    monkeypatch.setattr(soae_module, "hessian_operator", counting)
    net, x = smooth_net(), images(5)
    y = net(x).argmax(1)
    attack = SOAE(0.1, steps=2, direction=direction, hvp=hvp, max_dim=4, early_stop=False)
    cost = 1 if hvp == "finite-difference" else 2
    for inner in (1, 30):
        made.zero_()
        result = replace(attack, inner_steps=inner)(net, x, y)
        assert torch.equal(result.gradient_calls, 2 + cost * made)
        checks = result.krylov_dims.sum(1) + (result.krylov_dims > 0).sum(1) * (direction not in NEW)
        assert torch.equal(made, checks)


@pytest.mark.parametrize("direction", NEW)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_curvature_every_direction_is_the_gradient(direction, norm, dtype):
    net, x = linear(dtype=dtype), images(6, dtype=dtype)
    y = net(x).argmax(1)
    options = {"norm": norm, "steps": 3, "loss": "margin", "early_stop": False}
    first = PGD(0.1, random_start=False, **options)(net, x, y)
    second = SOAE(0.1, direction=direction, normalize="sign" if norm == "Linf" else "L2", **options)(net, x, y)
    torch.testing.assert_close(second.x_adv, first.x_adv, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)


class Flat(nn.Module):
    def forward(self, x):
        return x.new_tensor([1.0, 0.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1]


FLAT = Flat()


@pytest.mark.parametrize("direction", NEW)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_gradient_of_zero_leaves_the_image(direction, norm):
    net, x = FLAT, images(3)
    for budget in ({"steps": 2}, {"random_start": False}):
        result = SOAE(0.2, norm=norm, direction=direction, **budget)(net, x, torch.zeros(3, dtype=torch.int64))
        assert torch.equal(result.x_adv, x)
        assert not result.success.any()


@pytest.mark.parametrize("direction", NEW)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_batches_and_radii_are_those_of_each_image(direction, norm):
    net, x = smooth_net(), images(7)
    y = net(x).argmax(1)
    eps = torch.tensor([0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5], dtype=torch.float64)
    attack = SOAE(eps, norm=norm, direction=direction, steps=3, max_dim=4, early_stop=False, random_start=True)
    whole = attack(net, x, y)
    for i, radius in enumerate(eps.tolist()):
        alone = replace(attack, eps=radius)(net, x[i : i + 1], y[i : i + 1], index=torch.tensor([i]))
        torch.testing.assert_close(alone.x_adv[0], whole.x_adv[i], rtol=0, atol=1e-9)
        assert torch.equal(alone.gradient_calls[0], whole.gradient_calls[i])
    assert torch.equal(whole.x_adv[0], x[0])


@given(
    st.sampled_from(NEW), st.sampled_from(["Linf", "L2"]), st.sampled_from([torch.float32, torch.float64]),
    st.floats(0.001, 0.6), st.integers(1, 3), st.integers(0, 20), st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_results_lie_in_ball_and_box_and_do_not_lose(direction, norm, dtype, eps, steps, seed, start):
    net, x = smooth_net(seed % 3, dtype), images(4, dtype=dtype, seed=seed)
    y = net(x).argmax(1)
    attack = SOAE(eps, norm=norm, direction=direction, steps=steps, random_start=start, hvp="double-backward")
    result = attack(net, x, y)
    distance = torch.linalg.vector_norm((result.x_adv - x).flatten(1), ord=torch.inf if norm == "Linf" else 2, dim=1)
    assert float(distance.max()) <= eps
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    assert result.x_adv.dtype == dtype
    clean = nn.functional.cross_entropy(net(x), y, reduction="none")
    assert (result.success | (result.loss >= clean * (1 - 1e-5))).all()
    assert result.krylov_dims.shape == (4, steps)
    assert x.shape[1:] == SHAPE
