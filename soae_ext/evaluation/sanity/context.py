"""What the sanity checks get to see, and the attacks that several of them share."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...attacks import FGSM, PGD, Attack, AutoAttack
from ...attacks.geometry import Norm
from ...data import ImageData
from ..measure import Measurement
from .probes import RandomNoise

__all__ = ["Images", "Run", "SanityContext"]


class Run(Protocol):
    """`Runner.run`: attack all images of `data` and measure; `job` is unique."""

    def __call__(self, job: str, name: str, attack: Attack, data: ImageData) -> Measurement: ...


class Images(NamedTuple):
    """Images `(n, *shape)` and labels `(n,)` on the device, and their numbers in the data `(n,)` int64 on the CPU."""

    x: Tensor
    y: Tensor
    numbers: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class SanityContext:
    """The evaluation that is checked.

    Args:
        model: the network as it is attacked (`Runner.model`), in eval mode on `device`.
        data: all images of the evaluation, on the CPU.
        attacks: the attacks of the evaluation by their names.
        measurements: their results on `data`; those under names that are not in `attacks` are ignored.
        eps: radius of the ball.
        norm: of the ball.
        seed: of the random numbers of the checks.
        device: where `model` is.
        referee: run AutoAttack on all images.
        batch_size: images at once.
        run: attacks images and measures, resumably: `Runner.run`. In an evaluation of several processes it must be
            called by all of them, so all make the section.
        images: how many images the comparisons of attacks take, spread evenly over `data`; at most all.
        queries: of the black-box attack, for each image.
        network: `model` in full precision where `model` is a wrapper that casts; its copy in double precision is what
            the curvature is computed on. `None` is `model`.
        substitute: another network to attack, whose adversarial images `model` is tried on; `None`: a small one is
            trained on the answers of `model`.
    """

    model: nn.Module
    data: ImageData
    attacks: Mapping[str, Attack]
    measurements: Sequence[Measurement]
    eps: float
    norm: Norm
    seed: int
    device: torch.device
    referee: bool
    batch_size: int
    run: Run
    images: int = 128
    queries: int = 1000
    network: nn.Module | None = None
    substitute: nn.Module | None = None

    @cached_property
    def rows(self) -> Tensor:
        """Numbers of the images that attacks are compared on, `(k,)` int64: evenly spread, for data may be sorted."""
        return _spread(len(self.data), self.images)

    @cached_property
    def subset(self) -> ImageData:
        """Those images."""
        return self._take(self.rows)

    def _take(self, rows: Tensor) -> ImageData:
        name = f"{len(rows)} images of {self.data.name}"
        return replace(self.data, images=self.data.images[rows], labels=self.data.labels[rows], name=name)

    def few(self, count: int) -> Images:
        """At most `count` of the images, evenly spread."""
        rows = _spread(len(self.data), count)
        return Images(self.data.images[rows].to(self.device), self.data.labels[rows].to(self.device), rows)

    @cached_property
    def compared(self) -> Images:
        """`subset` on the device."""
        return self.few(self.images)

    @cached_property
    def results(self) -> dict[str, Measurement]:
        """The measurements by the name of their attack."""
        return {m.name: m for m in self.measurements if m.name in self.attacks}

    @cached_property
    def gradient_attacks(self) -> dict[str, Attack]:
        """The attacks of the evaluation that follow gradients alone: all but AutoAttack, which contains Square."""
        return {name: attack for name, attack in self.attacks.items() if not isinstance(attack, AutoAttack)}

    def fooled(self, name: str) -> Tensor:
        """Which images of `subset` an attack of the evaluation fools, `(k,)` bool."""
        return self.results[name].success[self.rows]

    @cached_property
    def white_box(self) -> Tensor:
        """Which images of `subset` some gradient attack fools, of the evaluation or `pgd`, `(k,)` bool."""
        fooled = [self.fooled(name) for name in self.gradient_attacks if name in self.results]
        return torch.stack([*fooled, self.pgd.success]).any(0)

    @cached_property
    def fgsm(self) -> Measurement:
        """One step from the image."""
        return self.probe("FGSM", FGSM(self.eps, norm=self.norm, seed=self.seed))

    @cached_property
    def pgd_attack(self) -> PGD:
        """20 steps on cross-entropy from one random start: the attack that others are held against."""
        return PGD(self.eps, norm=self.norm, steps=20, loss="ce", random_start=True, seed=self.seed)

    @cached_property
    def pgd(self) -> Measurement:
        """`pgd_attack` on `subset`."""
        return self.probe("PGD-20", self.pgd_attack)

    @cached_property
    def noise(self) -> Measurement:
        """One random point of the ball."""
        return self.probe("noise", RandomNoise(self.eps, norm=self.norm, seed=self.seed))

    @cached_property
    def square(self) -> Measurement:
        """The black-box attack.

        Raises:
            ImportError: pyautoattack is not installed.
        """
        attack = AutoAttack(
            self.eps, norm=self.norm, attacks=("square",), n_queries=self.queries, seed=self.seed, loss="margin"
        )
        return self.probe(f"Square-{self.queries}", attack)

    def probe(self, name: str, attack: Attack) -> Measurement:
        """Run an attack on `subset`."""
        return self.run(f"sanity/{name}", f"sanity: {name}", attack, self.subset)

    @cached_property
    def double(self) -> nn.Module:
        """A copy of the network in double precision, so that what a check finds is no rounding error.

        Raises:
            RuntimeError, TypeError: the network cannot be copied, or cannot compute in double precision.
        """
        model = copy.deepcopy(self.network or self.model).double().eval().requires_grad_(False)
        x = self.few(1).x.double()
        with torch.no_grad():
            logits = model(x)
        if logits.dtype != torch.float64:
            raise TypeError(f"the network does not compute in double precision: float64 images give {logits.dtype}")
        return model

    def logits(self, x: Tensor) -> Tensor:
        """Logits of images on the device, in parts of `batch_size`."""
        with torch.no_grad():
            return torch.cat([self.model(part) for part in torch.split(x, self.batch_size)])


def _spread(total: int, count: int) -> Tensor:
    count = min(total, count)
    return torch.arange(count) * total // max(count, 1)
