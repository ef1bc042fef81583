"""AutoAttack against a direct call of its authors' code: results, and every pass put down to its image."""

import contextlib
import dataclasses
import io
import sys
import warnings

import pytest
import torch
from torch import nn

from soae_ext.attacks import PGD, AutoAttack
from soae_ext.attacks import autoattack as module
from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits
from soae_ext.models import digits_network
from tests.attack_cases import SHAPE, N, images, linear, small_net

code = pytest.importorskip("pyautoattack")
EPS = {"Linf": 0.325, "L2": 3.3, "L1": 14.0}


@pytest.fixture(scope="module")
def network():
    return digits_network()


@pytest.fixture(scope="module")
def digits():
    return load_digits().first(20)


@pytest.fixture(autouse=True)
def global_generator():
    """The authors' code seeds it; other tests should not see that."""
    with torch.random.fork_rng():
        yield


def direct(model, x, y, norm, version, steps, queries, seed=0, eps=None):
    """The authors' own evaluation with fewer iterations: who is fooled, and the images."""
    attack = code.AutoAttack(model, norm=norm, eps=EPS[norm] if eps is None else eps, version=version, seed=seed)
    for apgd in (attack.apgd, attack.apgd_targeted):
        apgd.n_iter = apgd.n_iter_orig = steps
        apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = (max(int(part * steps), 1) for part in (0.22, 0.06, 0.03))
    attack.fab.n_iter, attack.square.n_queries = steps, queries
    x_adv, _ = attack.run_standard_evaluation(x, y)
    return model(x_adv).argmax(1) != y, x_adv


@pytest.mark.parametrize(
    ("norm", "version"),
    [
        *[("Linf", version) for version in ("standard", "plus", "rand")],
        *[(norm, "standard") for norm in ("L2", "L1")],
        *[pytest.param(norm, version, marks=pytest.mark.slow) for norm in ("L2", "L1") for version in ("plus", "rand")],
    ],
)
def test_the_same_images_are_fooled_as_by_the_authors_evaluation(network, digits, norm, version):
    x, y = digits.images[:14], digits.labels[:14]
    fooled, x_adv = direct(network, x, y, norm, version, steps=4, queries=20, seed=3)
    result = AutoAttack(EPS[norm], norm=norm, version=version, steps=4, n_queries=20, seed=3)(network, x, y)
    assert torch.equal(result.success, fooled)
    assert version != "standard" or 0 < int(fooled.sum()) < 14
    torch.testing.assert_close(result.x_adv[fooled], x_adv[fooled], rtol=0, atol=1e-5)


class Batches(nn.Module):
    """Logs each pass: the batch's size, whether it was made with a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model, self.log, self.backward = model, [], 0

    def forward(self, x):
        logits = self.model(x)
        self.log.append((len(x), logits.requires_grad))
        if logits.requires_grad:
            logits.register_hook(lambda g: self.count(len(g)))
        return logits

    def count(self, images):
        self.backward += images


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_every_pass_is_counted(network, digits, norm, version):
    model = Batches(network)
    attack = AutoAttack(EPS[norm], norm=norm, version=version, steps=3, n_queries=7)
    result = attack(model, digits.images[:8], digits.labels[:8])
    assert int(result.gradient_calls.sum()) == model.backward
    assert int(result.forward_calls.sum()) == sum(size for size, slope in model.log if not slope)


@pytest.mark.parametrize("attacks", [("apgd-ce",), ("apgd-t",), ("fab",), ("fab-t",), ("square",)])
def test_each_pass_is_put_down_to_its_image(network, digits, attacks):
    """The cost of an image in a batch of three is its cost alone, where the random numbers allow it to be compared:
    at a radius that fools all at once or nobody."""
    x, y = digits.images[:3], digits.labels[:3]
    for eps in (1e-4, 0.9):
        attack = AutoAttack(eps, attacks=attacks, steps=4, n_queries=9)
        together = attack(network, x, y)
        alone = [attack(network, x[i : i + 1], y[i : i + 1]) for i in range(3)]
        for name in ("gradient_calls", "forward_calls", "success"):
            assert torch.equal(getattr(together, name), torch.cat([getattr(part, name) for part in alone])), (eps, name)


def test_costs_differ_image_by_image():
    """FAB makes the same iterations with each image, Square and APGD-T leave out who is fooled."""
    model, x = small_net(), images(24, dtype=torch.float32)
    y = model(x).argmax(1)
    result = AutoAttack(0.2, attacks=("apgd-t", "square"), steps=4, n_queries=30)(model, x, y)
    assert 3 < int(result.success.sum()) < 24
    left = ~result.success
    # Per target: the start, 4 steps; the clean pass, 3 targets' logits, the checks after 2 attacks, Square, the result.
    assert (result.gradient_calls[left] == 3 * 5).all()
    assert (result.forward_calls[left] == 1 + 3 + 2 + 31 + 1).all()
    assert (result.gradient_calls[result.success] <= 15).all()
    assert (result.gradient_calls[result.success] < 15).any()


def test_what_fab_leaves_out_is_not_put_down_to_it():
    """A network that changes its mind after the first pass: FAB attacks only what it then classifies correctly."""

    class Fickle(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.passes = model, 0

        def forward(self, x):
            self.passes += 1
            logits = self.model(x)
            return torch.cat([-logits[:2], logits[2:]]) if self.passes in (2, 3) else logits

    x = images(6, dtype=torch.float32)
    y = small_net()(x).argmax(1)
    result = AutoAttack(1e-4, attacks=("fab",), steps=5)(Fickle(small_net()), x, y)
    assert not result.success.any()
    assert result.gradient_calls.tolist() == [0, 0, *[5 * 4] * 4]


def test_logits_that_belong_to_the_network_are_not_written_to():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.arange(12.0).reshape(3, 4)

        def forward(self, x):
            return self.table[: len(x)]

    model = Table()
    AutoAttack(0.1, attacks=("square",), n_queries=3)(model, images(3, dtype=torch.float32), torch.full((3,), 3))
    assert torch.equal(model.table, torch.arange(12.0).reshape(3, 4))


def test_fooled_images_are_left_out_of_the_next_attack():
    model, x = Batches(small_net()), images(24, dtype=torch.float32)
    y = small_net()(x).argmax(1)
    AutoAttack(0.1, attacks=("apgd-ce", "fab-t"), steps=4)(model, x, y)
    with_gradient = [size for size, slope in model.log if slope]
    assert with_gradient[0] == 24
    assert with_gradient[-1] < 24
    assert with_gradient == sorted(with_gradient, reverse=True)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_results_are_in_the_ball_and_reported_as_they_are(network, digits, norm):
    x, y, eps = digits.images, digits.labels, EPS[norm]
    result = AutoAttack(eps, norm=norm, steps=4, n_queries=20, loss="margin")(network, x, y)
    delta = (result.x_adv - x).flatten(1)
    length = {"Linf": delta.abs().amax(1), "L2": delta.norm(dim=1), "L1": delta.abs().sum(1)}[norm]
    assert length.max() <= eps
    assert bool(((result.x_adv >= 0) & (result.x_adv <= 1)).all())
    with torch.no_grad():
        assert torch.equal(result.success, network(result.x_adv).argmax(1) != y)
    torch.testing.assert_close(result.loss, Objective(network, "margin")(result.x_adv, y).detach())


def test_radii_are_grouped(network, digits):
    x, y = digits.images[:9], digits.labels[:9]
    radii = torch.tensor([0.0, 0.1, 0.36]).repeat(3)
    options = {"steps": 3, "n_queries": 10}
    together = AutoAttack(radii, **options)(network, x, y)
    for radius in (0.0, 0.1, 0.36):
        rows = radii == torch.tensor(radius)
        alone = AutoAttack(radii[rows], **options)(network, x[rows], y[rows])
        assert torch.equal(alone.success, together.success[rows])
        torch.testing.assert_close(alone.x_adv, together.x_adv[rows])
        assert torch.equal(alone.gradient_calls, together.gradient_calls[rows])
    assert torch.equal(together.x_adv[radii == 0], x[radii == 0])


@pytest.mark.parametrize(("classes", "version"), [(2, ("apgd-ce", "fab-t", "square")), (3, None), (5, None)])
def test_few_classes(classes, version):
    """Nine target classes are an IndexError in the authors' code for fewer than ten."""
    model, x = linear(classes, torch.float32), images(12, 0.4, 0.6, dtype=torch.float32)
    y = model(x).argmax(1)
    if classes == 3:
        with pytest.raises(ValueError, match=r"^attacks: .*apgd-t needs at least 4 classes.*'apgd-ce', 'fab-t'"):
            AutoAttack(0.2)(model, x, y)
        return
    result = AutoAttack(0.3, attacks=version, steps=4, n_queries=10)(model, x, y)
    assert result.success.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(N,), (4, 5), SHAPE, (1, 1, 4, 5)])
def test_images_of_any_shape_and_precision(dtype, shape):
    model, x = small_net(dtype=dtype), images(8, dtype=dtype).reshape(8, *shape)
    y = model(x).argmax(1)
    result = AutoAttack(0.3, steps=3, n_queries=5)(model, x, y)
    assert result.x_adv.shape == x.shape
    assert result.x_adv.dtype == dtype
    assert result.success.any()
    assert (result.x_adv - x).abs().max() <= 0.3


def test_square_tiles_as_the_authors_code_does():
    """The sizes that are refused are those on which the authors' L2 Square fails."""
    for height in (4, 5, 9, 14, 19, 24, 28, 32, 34):
        for width in (height, height + 3):
            attack = code.square.SquareAttack(lambda x: x.flatten(1)[:, :3].clone(), norm="L2", n_queries=1, eps=1.0)
            x = torch.rand(2, 1, height, width)
            attack.init_hyperparam(x)
            try:
                attack.attack_single_run(x, torch.zeros(2, dtype=torch.int64))
                works = True
            except (RuntimeError, ZeroDivisionError):
                works = False
            assert module._square_fits(height, width, "L2") == works, (height, width)


def test_images_that_square_cannot_tile_are_refused():
    class Logits(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4]

    x, y = torch.rand(2, 1, 24, 24), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^attacks: .*24 x 24; use attacks=\('apgd-ce', 'apgd-t', 'fab-t'\)"):
        AutoAttack(0.5, norm="L2")(Logits(), x, y)


# --- what is left behind -----------------------------------------------------------------------------------------


def test_nothing_is_left_behind(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(digits_network(), nn.BatchNorm1d(10))
    x, y = digits.images[:8].clone(), digits.labels[:8]
    torch.manual_seed(77)
    state, trace, parameters = torch.get_rng_state(), sys.gettrace(), [p.clone() for p in model.parameters()]
    out, err = io.StringIO(), io.StringIO()
    attack = AutoAttack(0.3, version="plus", steps=2, n_queries=4)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        attack(model.train(), x, y)
    assert (out.getvalue(), err.getvalue()) == ("", "")
    assert [str(w.message)[:25] for w in said] == ["model: came in train mode"]
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.gettrace() is trace
    assert torch.equal(x, digits.images[:8])
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), parameters, strict=True))
    assert list(tmp_path.iterdir()) == []


def test_the_global_generator_and_its_state_do_not_matter(network, digits):
    x, y = digits.images[:6], digits.labels[:6]
    attack = AutoAttack(0.3, steps=2, n_queries=5, seed=4)
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        results.append(attack(network, x, y))
    assert torch.equal(results[0].x_adv, results[1].x_adv)
    assert not torch.equal(dataclasses.replace(attack, seed=5)(network, x, y).x_adv, results[0].x_adv)


def test_no_weaker_than_pgd(network, digits):
    x, y = digits.images, digits.labels
    pgd = PGD(0.33, steps=20)(network, x, y).success
    full = AutoAttack(0.33, steps=20, n_queries=50)(network, x, y).success
    assert int(full.sum()) >= int(pgd.sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "standart"}, "^version: .*did you mean 'standard'"),
        ({"attacks": ("apgd",)}, "^attacks: .*choose from apgd-ce"),
        ({"attacks": "square"}, "^attacks: must be a tuple"),
        ({"attacks": ()}, "^attacks: must be a tuple"),
        ({"n_queries": 0}, "^n_queries: "),
        ({"step_size": 0.1}, "^step_size: .*version"),
        ({"targeted": True}, "^targeted: .*version"),
        ({"restarts": 2}, "^restarts: .*version"),
        ({"early_stop": False}, "^early_stop: .*version"),
        ({"random_start": False}, "^random_start: .*version"),
        ({"norm": "L1", "steps": 2}, "^steps: .*at least 3"),
    ],
)
def test_options_are_refused_when_the_attack_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(0.3, **options)


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r'pip install "soae-ext\[full\]"'):
        AutoAttack(0.3)
