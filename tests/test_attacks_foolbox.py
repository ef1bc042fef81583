"""FGSM and PGD against foolbox: the same iterates from the same start, as many fooled from random starts.

foolbox returns the last iterate, the attacks here the best one.
"""

import copy

import pytest
import torch
from torch import nn

from soae_ext.attacks import FGSM, PGD
from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits
from soae_ext.models import digits_network

foolbox = pytest.importorskip("foolbox")
EPS = {"Linf": 0.33, "L2": 3.0}
THEIRS = {
    "Linf": (foolbox.attacks.LinfFastGradientAttack, foolbox.attacks.LinfProjectedGradientDescentAttack),
    "L2": (foolbox.attacks.L2FastGradientAttack, foolbox.attacks.L2ProjectedGradientDescentAttack),
}


@pytest.fixture(scope="module")
def network():
    return digits_network()


@pytest.fixture(scope="module")
def digits():
    return load_digits().first(40)


class Recording(nn.Module):
    """Keeps the images that pass with a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        return self.model(x)


def run(attack, model, x, y, eps, target=None):
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
    criterion = foolbox.criteria.Misclassification(y) if target is None else foolbox.TargetedMisclassification(target)
    return attack(wrapped, x, criterion, epsilons=eps)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fgsm(network, digits, norm):
    """In double precision: in single, the gradient of their cross-entropy has few digits where the network is sure."""
    network = copy.deepcopy(network).double()
    x, y, eps = digits.images.double(), digits.labels, EPS[norm]
    theirs, _, fooled = run(THEIRS[norm][0](), network, x, y, eps)
    ours = FGSM(eps, norm=norm, early_stop=False)(network, x, y)
    loss = Objective(network, "ce")(theirs, y).detach()
    clean = Objective(network, "ce")(x, y).detach()
    moved = loss > clean
    assert moved.sum() > 30
    torch.testing.assert_close(ours.x_adv[moved], theirs[moved], rtol=0, atol=1e-5)
    assert torch.equal(ours.success[moved], fooled[moved])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd_iterates(network, digits, norm, targeted):
    """Early iterates agree to rounding: later ones of a sign step may differ where a gradient is almost zero."""
    x, y, eps = digits.images, digits.labels, EPS[norm]
    target = (y + 1) % 10 if targeted else None
    theirs, ours = Recording(network).double(), Recording(network)
    x = x.double()
    attack = THEIRS[norm][1](abs_stepsize=eps / 8, steps=10, random_start=False)
    last, _, fooled = run(attack, theirs, x, y, eps, target)
    options = {"steps": 10, "step_size": eps / 8, "random_start": False, "early_stop": False, "targeted": targeted}
    result = PGD(eps, norm=norm, **options)(ours, x, target if targeted else y)
    network.float()
    assert len(ours.seen) == len(theirs.seen) == 10
    tolerance = 1e-12 if norm == "Linf" else 1e-5
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)
    assert (last - x).abs().max() > 0.1
    # Ours is the best iterate: whoever is fooled at the last one is fooled.
    assert bool((result.success | ~fooled).all())


def margin(z, y):
    others = z.scatter(1, y[:, None], -torch.inf).amax(1)
    return others - z.gather(1, y[:, None])[:, 0]


def dlr(z, y):
    ranked = z.sort(dim=1, descending=True).values
    return margin(z, y) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


@pytest.mark.parametrize("loss", [margin, dlr])
def test_pgd_on_other_losses(network, digits, loss):
    """foolbox lets a subclass replace the loss."""

    class Replaced(foolbox.attacks.LinfProjectedGradientDescentAttack):
        def get_loss_fn(self, model, labels):
            return lambda inputs: astensor(loss(model(inputs).raw, labels.raw).sum())

    astensor = pytest.importorskip("eagerpy").astensor
    x, y, eps = digits.images.double(), digits.labels, EPS["Linf"]
    theirs, ours = Recording(network).double(), Recording(network)
    run(Replaced(abs_stepsize=eps / 8, steps=6, random_start=False), theirs, x, y, eps)
    options = {"steps": 6, "step_size": eps / 8, "random_start": False, "early_stop": False}
    PGD(eps, loss=loss.__name__, **options)(ours, x, y)
    network.float()
    # The pixels of an image whose label is third have no gradient on DLR; ours then follow the margin.
    alike = torch.stack([(network(p.float()).topk(2).indices == y[:, None]).any(1) for p in theirs.seen]).all(0)
    assert alike.sum() > 35
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        torch.testing.assert_close(mine[alike], other[alike], rtol=0, atol=1e-12)


def test_sparse_descent_in_l1(network, digits):
    """The steps, in a ball and box that stop none of them: foolbox 3.3.4 projects to points outside of the L1 ball."""
    x, y = 0.3 + 0.4 * digits.images.double(), digits.labels
    attack = foolbox.attacks.SparseL1DescentAttack(abs_stepsize=0.3, steps=6)
    theirs, ours = Recording(network).double(), Recording(network)
    run(attack, theirs, x, y, 9.0)
    PGD(9.0, norm="L1", steps=6, step_size=0.3, random_start=False, early_stop=False)(ours, x, y)
    network.float()
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    moved = (ours.seen[-1] != x).flatten(1).sum(1)
    assert bool(((moved >= 8) & (moved <= 40)).all())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_robust_accuracy_from_random_starts(network, digits, norm):
    """Equal steps and step sizes: as many are fooled, within what other random numbers do."""
    x, y, eps = digits.images, digits.labels, EPS[norm]
    attack = THEIRS[norm][1](rel_stepsize=0.125, steps=20, random_start=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, fooled = run(attack, network, x, y, eps)
    ours = PGD(eps, norm=norm, steps=20, step_size=eps / 8)(network, x, y).success
    assert int(ours.sum()) >= int(fooled.sum()) - 2
    assert int(ours.sum()) <= int(fooled.sum()) + 8
    assert 2 < int(fooled.sum()) < 40
