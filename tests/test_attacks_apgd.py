"""APGD iterate by iterate against the authors' code, and what this implementation adds to it."""

import pytest
import torch
from torch import nn

from soae_ext.attacks import APGD
from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits
from soae_ext.models import digits_network
from tests.attack_cases import SHAPE, Counting, N, images, linear, small_net


class Recording(nn.Module):
    """Keeps the batches of images that pass with a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        if x.requires_grad and torch.is_grad_enabled():
            self.seen.append(x.detach().clone())
        return self.model(x)


def smooth_net(classes=6):
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(N, 24), nn.Tanh(), nn.Linear(24, classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / parameter.shape[-1] ** 0.5)
    return model


def authors(code, model, x, y, norm, eps, steps, loss="ce", target=None):
    """The iterates of the authors' APGD from the images themselves; they evaluate one more than they need."""
    kind = code.autoattack.APGDAttack if target is None else code.autoattack.APGDAttack_targeted
    attack = kind(model, n_iter=steps, norm=norm, eps=eps)
    if target is None:
        attack.loss = loss
    else:
        attack.y_target = target
    attack.init_hyperparam(x)
    attack.attack_single_run(x, y, x_init=x)


@pytest.fixture
def double():
    """The authors' code in double precision: it makes its own tensors in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("norm", "loss", "eps"), [("Linf", "ce", 0.12), ("Linf", "dlr", 0.12), ("L2", "ce", 0.5), ("L2", "dlr", 0.1)]
)
def test_iterates_are_those_of_the_authors_code(norm, loss, eps):
    code = pytest.importorskip("pyautoattack")
    x, model, steps = images(12), smooth_net(), 60
    y = model(x).argmax(1)
    theirs, ours = Recording(model), Recording(model)
    authors(code, theirs, x, y, norm, eps, steps, loss)
    APGD(eps, norm=norm, loss=loss, steps=steps, random_start=False, early_stop=False)(ours, x, y)
    assert len(ours.seen) == steps
    assert len(theirs.seen) == steps + 1
    # DLR is constant where the label is third, and a step along its gradient is along rounding errors.
    steered = torch.ones(12, dtype=torch.bool)
    if (norm, loss) == ("L2", "dlr"):
        steered = torch.stack([(model(p).topk(2).indices == y[:, None]).any(1) for p in theirs.seen]).all(0)
    assert steered.sum() >= 10
    for mine, other in zip(ours.seen, theirs.seen, strict=False):
        torch.testing.assert_close(mine[steered], other[steered], rtol=0, atol=1e-14 if norm == "Linf" else 1e-5)
    # The step size was halved on the way: the last moves are much shorter than the first.
    assert (ours.seen[-1] - ours.seen[-2]).abs().max() < 0.2 * (ours.seen[1] - ours.seen[0]).abs().max()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.2)])
def test_iterates_towards_a_class_are_those_of_the_authors_code(norm, eps):
    code = pytest.importorskip("pyautoattack")
    x, model, steps = images(8), smooth_net(), 30
    logits = model(x).detach()
    y = logits.argmax(1)
    theirs, ours = Recording(model), Recording(model)
    authors(code, theirs, x, y, norm, eps, steps, target=logits.sort(dim=1)[1][:, -2])
    APGD(eps, norm=norm, loss="dlr", targets=1, steps=steps, random_start=False, early_stop=False)(ours, x, y)
    for mine, other in zip(ours.seen, theirs.seen, strict=False):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-14 if norm == "Linf" else 1e-5)
    assert (ours.seen[-1] - x).abs().max() > 0.05


def test_checkpoints_are_those_of_the_paper():
    """100 steps: checks after 22, 41, 57, 70, 80, 87, 93 and 99 steps (Croce and Hein, section 3)."""
    from soae_ext.attacks import apgd

    checked = []

    class Spy(apgd._Climb):
        def _check(self, window):
            checked.append(window)
            super()._check(window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apgd, "_Climb", Spy)
        APGD(0.01, early_stop=False)(small_net(), images(2, dtype=torch.float32), torch.zeros(2, dtype=torch.int64))
    ends = torch.tensor(checked).cumsum(0).tolist()
    assert ends == [22, 41, 57, 70, 80, 87, 93, 99]


def test_a_rising_loss_keeps_the_step_and_an_oscillating_one_halves_it():
    """On a linear model the corner of the ball is reached in one step and the loss rises no more."""
    from soae_ext.attacks import apgd

    kept = []

    class Spy(apgd._Climb):
        def _check(self, window):
            super()._check(window)
            kept.append(self.step.clone())

    model, x = linear(2), images(4, 0.4, 0.6)
    y = model(x).argmax(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apgd, "_Climb", Spy)
        APGD(0.1, loss="margin", random_start=False, early_stop=False)(model, x, y)
        rising = APGD(0.1, loss="margin", random_start=False, early_stop=False, step_size=1e-4)
        rising(model, x, y)
    torch.testing.assert_close(kept[0], torch.full((4,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(kept[8], torch.full((4,), 1e-4, dtype=torch.float64))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_optimum_of_a_linear_model(norm):
    model, x = linear(2), images(20, 0.3, 0.7)
    y = model(x).argmax(1)
    result = APGD(0.05, norm=norm, loss="margin", steps=40, early_stop=False)(model, x, y)
    weight = model[1].weight.detach()
    w = weight[1] - weight[0]
    rise = 0.05 * (w.abs().sum() if norm == "Linf" else w.norm())
    clean = Objective(model, "margin")(x, y).detach()
    torch.testing.assert_close(result.loss, clean + rise, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("options", [{}, {"restarts": 2}, {"targets": 3, "loss": "dlr"}, {"targets": 2, "loss": "ce"}])
def test_cost_is_one_gradient_per_step_of_images_not_fooled(early_stop, options):
    model, x = Counting(small_net()), images(30, dtype=torch.float32)
    y = small_net()(x).argmax(1)
    result = APGD(0.1, steps=9, early_stop=early_stop, **options)(model, x, y)
    assert int(result.gradient_calls.sum()) == model.with_gradient
    assert int(result.forward_calls.sum()) == model.without
    runs = options.get("targets", 1) * options.get("restarts", 1)
    assert (result.gradient_calls[~result.success] == 9 * runs).all()
    if early_stop:
        assert result.success.any()
        assert (result.gradient_calls[result.success] < 9 * runs).any()


def test_every_target_class_is_tried():
    """Only the class that is least likely at first can be reached: its logit alone depends on the image."""

    class OneWay(nn.Module):
        def forward(self, x):
            rise = 30 * (x.flatten(1) - 0.5).mean(1)
            zero = torch.zeros_like(rise)
            return torch.stack([zero + 1, zero + 0.5, zero, rise - 2], 1)

    x, y = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    options = {"steps": 5, "random_start": False, "loss": "margin"}
    assert not APGD(0.3, targets=2, **options)(OneWay(), x, y).success.any()
    assert APGD(0.3, targets=3, **options)(OneWay(), x, y).success.all()


def test_random_starts_lie_on_the_surface_of_the_ball():
    model = Recording(small_net())
    x, y = torch.full((6, *SHAPE), 0.5), torch.arange(6) % 4
    for norm, length in (("Linf", lambda d: d.abs().amax(1)), ("L2", lambda d: d.norm(dim=1))):
        model.seen.clear()
        APGD(0.1, norm=norm, steps=1, early_stop=False)(model, x, y)
        torch.testing.assert_close(length((model.seen[0] - x).flatten(1)), torch.full((6,), 0.1), rtol=1e-5, atol=0)


def test_as_strong_as_the_authors_on_digits():
    code = pytest.importorskip("pyautoattack")
    network, digits = digits_network(), load_digits().first(100)
    x, y = digits.images, digits.labels
    for norm, eps in (("Linf", 0.31), ("L2", 2.2)):
        attack = code.autoattack.APGDAttack(network, n_iter=30, norm=norm, eps=eps, seed=0)
        with torch.random.fork_rng():
            theirs = (network(attack.perturb(x, y)).argmax(1) != y).sum()
        ours = APGD(eps, norm=norm, steps=30)(network, x, y).success.sum()
        assert abs(int(ours) - int(theirs)) <= 6
        assert 10 < int(ours) < 90


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        ({"targets": 0}, 6, "^targets: must be at least 1"),
        ({"targets": 3, "targeted": True}, 6, "^targets: .*targeted"),
        ({"targets": 6}, 6, "^targets: the model has 5 other classes, got 6"),
        ({"targets": 2, "loss": "dlr"}, 3, "^loss: .*4 classes.*use 'margin'"),
        ({"norm": "L1"}, 6, "^norm: .*choose from Linf, L2"),
    ],
)
def test_refusals(options, classes, message):
    with pytest.raises(ValueError, match=message):
        APGD(0.1, **options)(smooth_net(classes), images(2, dtype=torch.float32), torch.zeros(2, dtype=torch.int64))
