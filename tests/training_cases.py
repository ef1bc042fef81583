"""Objectives, networks and helpers that the tests of training share."""

import torch
from torch import nn

from soae_ext.attacks import ASOD, SOAE
from soae_ext.training import SCORPIO, SOAR, SOAT, STN, TRADES, ASODTraining, PGDTraining, Standard
from tests.attack_cases import SHAPE, N

SOLVED = SOAE(0.1, steps=2, direction="auto", max_dim=3, random_start=True, hvp="double-backward")

OBJECTIVES = [
    Standard(),
    PGDTraining(0.1, steps=3),
    PGDTraining(0.4, norm="L2", steps=3, step_size=0.2),
    TRADES(0.1, steps=3),
    TRADES(0.4, norm="L2", steps=2, beta=1.0),
    SOAR(0.05),
    SOAR(0.4, norm="L2", hvp="double-backward"),
    STN(0.2),
    STN(0.2, target="logits"),
    SCORPIO(0.1),
    SCORPIO(0.4, norm="L2", steps=2, hvp="double-backward"),
    SOAT(0.1),
    SOAT(0.4, norm="L2"),
    SOAT(attack=SOLVED),
    SOAT.paper(0.1, max_dim=3),
    ASODTraining(attack=ASOD(0.1, steps=2, samples=2, sigma=0.1)),
]


def label(objective):
    options = [getattr(objective, "norm", ""), getattr(objective, "hvp", ""), getattr(objective, "target", "")]
    if isinstance(objective, SOAT):
        options.append(objective.attack.direction)
    return "-".join([objective.name, *filter(None, options)])


def tiny(seed=0, classes=3):
    """A smooth network in double precision, small enough for dense Hessians and finite differences."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(N, 6), nn.Tanh(), nn.Linear(6, classes)).double()
    with torch.no_grad():
        net[1].weight.mul_(3)
        net[3].weight.mul_(3)
    return net


def normalised(seed=0):
    """Batch normalisation and, frozen in eval mode, a second one; one parameter that is not trained."""
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(N, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3)]
    net = nn.Sequential(*layers).train()
    net[4].eval()
    net[5].bias.requires_grad_(False)
    return net


def parameter_gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def labels(count, classes=3, seed=5):
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


__all__ = ["OBJECTIVES", "SHAPE", "SOLVED", "N", "label", "labels", "normalised", "parameter_gradient", "tiny"]
