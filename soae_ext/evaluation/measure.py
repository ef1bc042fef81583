"""What is measured of an attack on a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .accuracy import Accuracy

__all__ = ["Clean", "Measurement", "WorstCase", "finite_mean", "worst_case"]


class Clean(NamedTuple):
    """The network on the unperturbed images: accuracy, mean cross-entropy, and `(n,)` bool which are correct."""

    accuracy: Accuracy
    loss: float
    correct: Tensor

    def as_json(self) -> dict[str, object]:
        return {**self.accuracy.as_json(), "mean_loss": self.loss if math.isfinite(self.loss) else None}


@dataclass(frozen=True, eq=False)
class Measurement:
    """One attack on one data set of n images. Tensors are on the CPU.

    Attributes:
        name: of the attack.
        robust: accuracy on the adversarial images.
        loss: mean of the attack's loss on them. An attack that stops at the first success does not raise it further.
        gradients, forwards: mean per image.
        krylov_mean, krylov_max: over the solves that were made; `None` without any.
        seconds: time spent on the batches, added up (also over processes).
        x_adv: the adversarial images, `(n, C, H, W)`; `(0, C, H, W)` where they were not kept.
        success: `(n,)` bool: misclassified, whether by the attack or from the start.
        losses: `(n,)` float64.
        gradient_calls, forward_calls: `(n,)` int64.
        krylov_dims: `(n, iterations)` int64, 0 where an image was no longer attacked; `None` for other attacks.
        linf, l2: `(n,)` float64, distances between image and adversarial image.
        psnr, ssim: `(n,)` float64, see :func:`soae_ext.evaluation.quality.psnr_and_ssim`; `None` without torchmetrics.
    """

    name: str
    robust: Accuracy
    loss: float
    gradients: float
    forwards: float
    krylov_mean: float | None
    krylov_max: int | None
    seconds: float
    x_adv: Tensor
    success: Tensor
    losses: Tensor
    gradient_calls: Tensor
    forward_calls: Tensor
    krylov_dims: Tensor | None
    linf: Tensor
    l2: Tensor
    psnr: Tensor | None
    ssim: Tensor | None

    @classmethod
    def of_batches(cls, name: str, batches: Sequence[Mapping[str, Tensor]]) -> Measurement:
        """Put together what :class:`soae_ext.evaluation.runner.Runner` keeps of each batch, in the order of images."""
        merged = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        dims = merged.get("krylov_dims")
        solves = torch.zeros(0) if dims is None else dims[dims > 0].double()
        success = merged["success"]
        return cls(
            name=name,
            robust=Accuracy(int((~success).sum()), len(success)),
            loss=merged["losses"].mean().item(),
            gradients=merged["gradient_calls"].double().mean().item(),
            forwards=merged["forward_calls"].double().mean().item(),
            krylov_mean=solves.mean().item() if len(solves) else None,
            krylov_max=int(solves.max()) if len(solves) else None,
            seconds=merged["seconds"].sum().item(),
            x_adv=merged["x_adv"],
            success=success,
            losses=merged["losses"],
            gradient_calls=merged["gradient_calls"],
            forward_calls=merged["forward_calls"],
            krylov_dims=dims,
            linf=merged["linf"],
            l2=merged["l2"],
            psnr=merged.get("psnr"),
            ssim=merged.get("ssim"),
        )

    @property
    def changed(self) -> Tensor:
        """`(n,)` bool: images that the attack changed. One that is wrong from the start comes back as it was."""
        return self.linf > 0

    @property
    def mean_psnr(self) -> float | None:
        """In dB, over the changed images."""
        return None if self.psnr is None else finite_mean(self.psnr[self.changed])

    @property
    def mean_ssim(self) -> float | None:
        """Over the changed images."""
        return None if self.ssim is None else finite_mean(self.ssim[self.changed])

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "robust": self.robust.as_json(),
            "mean_loss": self.loss if math.isfinite(self.loss) else None,
            "gradients_per_image": self.gradients,
            "forwards_per_image": self.forwards,
            "krylov_dims": None if self.krylov_mean is None else {"mean": self.krylov_mean, "max": self.krylov_max},
            "psnr": self.mean_psnr,
            "ssim": self.mean_ssim,
            "linf_max": self.linf.max().item(),
            "l2_mean": finite_mean(self.l2[self.changed]),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False)
class WorstCase:
    """All attacks together: an image counts as robust if it is classified correctly clean and under every attack.

    Attributes:
        robust: accuracy.
        correct: `(n,)` bool.
        broken_by: for each attack, how many of the images that are correct without attack it breaks.
        only_by: how many of them no other attack breaks.
    """

    robust: Accuracy
    correct: Tensor
    broken_by: dict[str, int]
    only_by: dict[str, int]

    def as_json(self) -> dict[str, object]:
        return {**self.robust.as_json(), "broken_by": self.broken_by, "only_by": self.only_by}


def worst_case(clean: Clean, measurements: Sequence[Measurement]) -> WorstCase:
    """The per-example worst case over the attacks."""
    broken = {m.name: m.success & clean.correct for m in measurements}
    times = torch.stack(list(broken.values())).sum(0) if broken else torch.zeros_like(clean.correct, dtype=torch.int64)
    correct = clean.correct & (times == 0)
    return WorstCase(
        robust=Accuracy(int(correct.sum()), len(correct)),
        correct=correct,
        broken_by={name: int(mask.sum()) for name, mask in broken.items()},
        only_by={name: int((mask & (times == 1)).sum()) for name, mask in broken.items()},
    )


def finite_mean(values: Tensor) -> float | None:
    """Mean of the finite ones among `values`; `None` if there are none."""
    finite = values[values.isfinite()]
    return finite.mean().item() if len(finite) else None
