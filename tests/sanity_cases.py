"""Evaluations to check, and networks and attacks that are wrong in a known way."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from soae_ext.attacks import FGSM, PGD, SOAE, Attack, AttackResult
from soae_ext.data import load_digits
from soae_ext.evaluation import Runner
from soae_ext.evaluation.sanity import SanityContext
from soae_ext.models import digits_network


def context(model=None, attacks=None, *, eps=0.2, norm="Linf", n=48, **options):
    """The evaluation of `attacks` on `n` shipped digits; `model` is the shipped network unless given."""
    model = digits_network() if model is None else model
    normalize = "sign" if norm == "Linf" else "L2"
    if attacks is None:
        attacks = {"PGD-5": PGD(eps, norm=norm, steps=5), "SOAE-2": SOAE(eps, norm=norm, steps=2, normalize=normalize)}
    data = load_digits().first(n)
    runner = Runner(model, batch_size=32)
    measurements = [runner.run(f"attacks/{name}", name, attack, data) for name, attack in attacks.items()]
    fields = {
        "model": runner.model,
        "data": data,
        "attacks": attacks,
        "measurements": measurements,
        "eps": eps,
        "norm": norm,
        "seed": 0,
        "device": runner.device,
        "referee": False,
        "batch_size": 32,
        "run": runner.run,
        "images": n,
        "queries": 150,
    }
    return SanityContext(**{**fields, **options})


def altered(context, name, **changes):
    """The evaluation with other numbers in the measurement of one attack."""
    measurements = [dataclasses.replace(m, **changes) if m.name == name else m for m in context.measurements]
    return dataclasses.replace(context, measurements=measurements)


class Wrapped(nn.Module):
    """A network between a change of its images and a change of its logits."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.model, self.before, self.after = digits_network(), before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def quantised():
    """Pixels are rounded to black and white: the gradient is zero."""
    return Wrapped(before=lambda x: (x > 0.5).to(x.dtype)).eval()


def stretched():
    """Dark and bright pixels are cut off: where an image is black or white its gradient is zero, a little off not."""
    return Wrapped(before=lambda x: ((x - 0.1) / 0.8).clamp(0, 1)).eval()


def confident(factor=1000.0):
    """Logits so large that cross-entropy saturates in single precision."""
    return Wrapped(after=lambda z: z * factor).eval()


def drowned():
    """A large number goes through the logits and takes their last digits with it."""
    return Wrapped(after=lambda z: (z + 1e8) - 1e8).eval()


def rough():
    """A fine ripple on every logit, high enough to hide where the loss rises, too low to change many classes."""
    waves = torch.randn(10, 784, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Rough(Wrapped):
        def forward(self, x):
            return self.model(x) + (4e3 * x.flatten(1) @ waves.to(x.dtype).T).sin()

    return Rough().eval()


class Mixing(Wrapped):
    """Logits that depend on the other images of the batch."""

    def forward(self, x):
        z = self.model(x)
        return z - 5 * z.mean(0, keepdim=True)


class Random(Wrapped):
    def forward(self, x):
        z = self.model(x)
        return z + 0.1 * torch.randn_like(z)


class _OneWay(torch.autograd.Function):
    """The identity with a gradient that is no derivative: it weights the pixels."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        weights = torch.linspace(0, 1, gradient[0].numel(), dtype=gradient.dtype).reshape(gradient.shape[1:])
        return gradient * weights


def one_way():
    """Written with a wrong backward pass."""
    return Wrapped(before=_OneWay.apply).eval()


@dataclass(frozen=True)
class Lazy(PGD):
    """Returns the images as they are."""

    def _run(self, task):
        return None


@dataclass(frozen=True)
class Careless(PGD):
    """Returns the last iterate of the last restart, right or not."""

    def _run(self, task):
        super()._run(task)
        task.best = task.current.clone()


@dataclass(frozen=True)
class Escaping(PGD):
    """Forgets the ball."""

    def __call__(self, model, x, y, *, index=None):
        result = super().__call__(model, x, y, index=index)
        return _with(result, x_adv=(result.x_adv + 0.1).clamp(0, 1))


@dataclass(frozen=True)
class Forgetful(PGD):
    """Leaves the network in eval mode."""

    def __call__(self, model, x, y, *, index=None):
        model.eval()
        return super().__call__(model, x, y, index=index)


class Unseeded(PGD):
    def __call__(self, model, x, y, *, index=None):
        seed = int(torch.randint(2**31, (1,)))
        return PGD(self.eps, steps=self.steps, seed=seed)(model, x, y, index=index)


def _with(result, **changes):
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(AttackResult)}
    return AttackResult(**{**fields, **changes})


__all__ = ["FGSM", "PGD", "SOAE", "Attack", "altered", "context"]
