"""What was measured in training, as sums that can be added over steps and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from torch import Tensor

from .base import StepResult

__all__ = ["Row", "Sums"]

Row = dict[str, "float | int | None"]


@dataclass(frozen=True)
class Sums:
    """Sums over images; all are floats, and those of counts are exact below 2^53.

    Attributes:
        images: how many.
        loss: of the losses.
        clean_seen, clean_correct: clean images that were looked at, and of these the correct ones.
        robust_seen, robust_correct: the same of perturbed images.
        gradients: spent.
        krylov_seen, krylov: outer iterations with a Krylov space, and the sum of their dimensions.
        seconds: not a sum over processes, which work at the same time.
    """

    images: float = 0.0
    loss: float = 0.0
    clean_seen: float = 0.0
    clean_correct: float = 0.0
    robust_seen: float = 0.0
    robust_correct: float = 0.0
    gradients: float = 0.0
    krylov_seen: float = 0.0
    krylov: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, result: StepResult) -> Sums:
        """Of one step's result in one process."""
        count, dims = len(result.gradients), result.krylov_dims
        clean, robust = _counted(result.clean_correct), _counted(result.adversarial_correct)
        krylov = (0.0, 0.0) if dims is None else (float((dims > 0).sum()), float(dims.sum()))
        return cls(count, result.loss.item() * count, *clean, *robust, float(result.gradients.sum()), *krylov)

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(one + another for one, another in zip(self.values, other.values, strict=True)))

    @property
    def values(self) -> Sequence[float]:
        """The sums in the order of the fields."""
        return astuple(self)

    def row(self) -> Row:
        """Means by the names that the log has for them; `None` where nothing was seen."""
        return {
            "loss": _ratio(self.loss, self.images),
            "clean_accuracy": _ratio(self.clean_correct, self.clean_seen),
            "robust_accuracy": _ratio(self.robust_correct, self.robust_seen),
            "gradients_per_image": _ratio(self.gradients, self.images),
            "krylov_mean": _ratio(self.krylov, self.krylov_seen),
            "images_per_second": _ratio(self.images, self.seconds),
        }


def _counted(correct: Tensor | None) -> tuple[float, float]:
    return (0.0, 0.0) if correct is None else (float(len(correct)), float(correct.sum()))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
