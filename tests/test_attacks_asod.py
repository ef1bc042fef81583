"""ASOD against the formulas of its authors' code, transcribed to NumPy with hand-written gradients."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from soae_ext.attacks import ASOD, PGD
from soae_ext.attacks.geometry import gaussian_noise
from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits
from soae_ext.models import digits_network
from tests.attack_cases import SHAPE, Counting, N, images, small_net


class Network:
    """tanh network in NumPy: logits, and gradients by hand of cross-entropy and of -relu(z_y - max z_i + 50)."""

    def __init__(self, seed=0, hidden=12, classes=5):
        generator = np.random.default_rng(seed)
        self.w1, self.b1 = generator.normal(0, 0.5, (hidden, N)), generator.normal(0, 0.5, hidden)
        self.w2, self.b2 = generator.normal(0, 1, (classes, hidden)), generator.normal(0, 1, classes)

    def torch(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(N, 12), nn.Tanh(), nn.Linear(12, 5)).double()
        for parameter, value in zip(model.parameters(), (self.w1, self.b1, self.w2, self.b2), strict=True):
            parameter.data.copy_(torch.from_numpy(value))
        return model

    def logits(self, x):
        return np.tanh(x @ self.w1.T + self.b1) @ self.w2.T + self.b2

    def gradient(self, x, y, loss):
        hidden, rows = np.tanh(x @ self.w1.T + self.b1), np.arange(len(x))
        z = hidden @ self.w2.T + self.b2
        slope = np.zeros_like(z)
        if loss == "ce":
            slope = np.exp(z - z.max(1, keepdims=True))
            slope /= slope.sum(1, keepdims=True)
            slope[rows, y] -= 1
        else:
            others = z.copy()
            others[rows, y] = -np.inf
            rival = others.argmax(1)
            active = z[rows, y] - others.max(1) + 50 > 0
            slope[rows, rival] += active
            slope[rows, y] -= active
        return (slope @ self.w2 * (1 - hidden**2)) @ self.w1


def transcription(network, x, y, eps, norm, noises):
    """The iterates x_1..x_T before the final clip to [0, 1]; `noises` (T, 10, B, N)."""
    steps, adv, iterates = len(noises), x, []
    for noise in noises:
        total = sum(network.gradient(adv + draw, y, "ce" if norm == "Linf" else "cw") for draw in noise)
        if norm == "Linf":
            adv = np.clip(adv + eps / 10 * np.sign(total), x - eps, x + eps)
        else:
            adv = adv + 2.5 * eps / steps * total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-8)
            length = np.maximum(np.linalg.norm(adv - x, axis=1, keepdims=True), 1e-8)
            adv = x + np.clip(length, 0, eps) * (adv - x) / length
        iterates.append(adv)
    return iterates


@pytest.mark.parametrize(("norm", "eps", "sigma"), [("Linf", 0.3, 0.7), ("Linf", 8 / 255, 100 / 255), ("L2", 0.6, 0.7)])
def test_iterates_are_those_of_the_authors_formulas(norm, eps, sigma):
    network, x = Network(), images(9)
    model, flat = network.torch(), images(9).flatten(1).numpy()
    y = torch.from_numpy(network.logits(flat)).argmax(1)
    index, steps = torch.arange(9) + 40, 20
    noises = [gaussian_noise(x, sigma, 3, (0, step + 1), index, 10).flatten(2).numpy() for step in range(steps)]
    expected = transcription(network, flat, y.numpy(), eps, norm, noises)

    evaluated = []

    class Recording(nn.Module):
        def forward(self, points):
            if not points.requires_grad:
                evaluated.append(points.flatten(1).numpy().copy())
            return model(points)

    attack = ASOD(eps, norm=norm, sigma=sigma, seed=3, early_stop=False)
    result = attack(Recording(), x, y, index=index)
    # The first pass is of the images, the last of the result.
    for mine, theirs in zip(evaluated[1:-1], expected, strict=True):
        np.testing.assert_allclose(mine, np.clip(theirs, 0, 1), rtol=0, atol=1e-12 if norm == "Linf" else 2e-6)
    # What the iterates do outside of [0, 1] is part of the attack.
    assert (np.abs(expected[-1] - np.clip(expected[-1], 0, 1)) > 1e-3).any()
    last = Objective(model, attack.loss)(torch.from_numpy(np.clip(expected[-1], 0, 1)).reshape(x.shape), y).detach()
    assert bool((result.loss >= last - 1e-5).all() | result.success.all())


def test_the_best_iterate_is_at_least_the_authors_last():
    """On every image: fooled if the last iterate fools, else of no lower loss."""
    network, x = Network(3), images(40)
    model, flat = network.torch(), x.flatten(1).numpy()
    y = model(x).argmax(1)
    noises = [gaussian_noise(x, 0.7, 0, (0, step + 1), torch.arange(40), 10).flatten(2).numpy() for step in range(20)]
    last = np.clip(transcription(network, flat, y.numpy(), 0.1, "Linf", noises)[-1], 0, 1)
    fooled = torch.from_numpy(network.logits(last)).argmax(1) != y
    result = ASOD(0.1)(model, x, y)
    assert 0 < int(fooled.sum()) < 40
    assert bool((result.success | ~fooled).all())
    loss = Objective(model, "ce")(torch.from_numpy(last).reshape(x.shape), y).detach()
    assert bool((result.loss >= loss - 1e-9)[~result.success].all())


def test_the_margin_stops_pulling_at_the_confidence_of_the_authors():
    """Two classes 60 apart: the authors' loss is flat there, and the step of zero is replaced by none."""

    class Apart(nn.Module):
        def forward(self, x):
            rise = x.flatten(1).sum(1)
            return torch.stack([torch.zeros_like(rise), self.lead + rise], 1)

    x, y = torch.full((1, *SHAPE), 0.5), torch.zeros(1, dtype=torch.int64)
    for lead, moves in ((60.0, False), (-60.0, True)):
        model = Apart()
        model.lead = lead
        result = ASOD(0.1, norm="L2", early_stop=False, samples=1, sigma=0.0)(model, x, y)
        assert bool((result.x_adv != x).any()) == moves


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("options", [{}, {"norm": "L2"}, {"samples": 3, "restarts": 2}, {"random_start": True}])
def test_every_pass_is_counted(early_stop, options):
    model, x = Counting(small_net()), images(30, dtype=torch.float32)
    y = torch.arange(30) % 4
    result = ASOD(0.2, steps=4, early_stop=early_stop, **options)(model, x, y)
    assert int(result.gradient_calls.sum()) == model.with_gradient
    assert int(result.forward_calls.sum()) == model.without
    left = ~result.success
    assert (result.gradient_calls[left] == 4 * options.get("samples", 10) * options.get("restarts", 1)).all()
    if early_stop:
        assert bool((result.gradient_calls[result.success] < 40).any())


def test_noise_is_normal_and_a_function_of_seed_sample_and_step():
    x = torch.zeros(3, 2000, dtype=torch.float64)
    index = torch.tensor([5, 0, 9])
    noise = gaussian_noise(x, 0.7, 1, (0, 1), index, 4)
    assert noise.shape == (4, 3, 2000)
    assert stats.kstest(noise.flatten().numpy(), stats.norm(scale=0.7).cdf).pvalue > 1e-3
    assert torch.equal(gaussian_noise(x[1:], 0.7, 1, (0, 1), index[1:], 4), noise[:, 1:])
    others = [gaussian_noise(x, 0.7, seed, (0, step), index, 4) for seed, step in ((2, 1), (1, 2))]
    draws = torch.cat([noise.flatten(0, 1), *(other.flatten(0, 1) for other in others)])
    assert len(torch.unique(draws, dim=0)) == 36


def test_shards_change_nothing_but_rounding():
    network, digits = digits_network(), load_digits().first(20)
    attack = ASOD(0.3, steps=3, samples=2)
    whole = attack(network, digits.images, digits.labels)
    part = attack(network, digits.images[12:], digits.labels[12:], index=torch.arange(12, 20))
    torch.testing.assert_close(part.loss, whole.loss[12:], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_without_noise_and_away_from_the_box_it_is_pgd(norm):
    model, x = small_net(dtype=torch.float64), images(30, 0.4, 0.6)
    y, options = model(x).argmax(1), {"norm": norm, "loss": "ce", "step_size": 0.02, "steps": 8}
    plain = PGD(0.1, random_start=False, **options)(model, x, y)
    same = ASOD(0.1, sigma=0.0, samples=1, **options)(model, x, y)
    torch.testing.assert_close(same.x_adv, plain.x_adv, rtol=0, atol=1e-6)
    assert torch.equal(same.success, plain.success)


def test_noise_of_moderate_size_fools_digits():
    network, digits = digits_network(), load_digits().first(40)
    x, y = digits.images, digits.labels
    clean = int((network(x).argmax(1) == y).sum())
    assert int((~ASOD(0.4, steps=10, sigma=0.1)(network, x, y).success).sum()) < clean - 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sigma": -0.1}, ValueError, "^sigma: "),
        ({"sigma": "0.7"}, TypeError, "^sigma: "),
        ({"samples": 0}, ValueError, "^samples: "),
        ({"norm": "L1"}, ValueError, "^norm: .*choose from Linf, L2"),
        ({"loss": "cee"}, ValueError, "^loss: .*did you mean 'ce'"),
    ],
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=message):
        ASOD(0.1, **options)


def test_the_loss_follows_the_norm_unless_it_is_given():
    assert [ASOD(0.1).loss, ASOD(0.1, norm="L2").loss] == ["ce", "margin"]
    assert ASOD(0.1, norm="L2", loss="ce").loss == "ce"
