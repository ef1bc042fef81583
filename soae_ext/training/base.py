"""What every training objective shares: how it is called, what it returns and what it costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..attacks.checks import check_choice, check_count, check_images, check_labels, check_positive
from ..attacks.geometry import Norm, gaussian_noise
from ..attacks.losses import cross_entropy

__all__ = ["BallObjective", "Batch", "Cost", "StepResult", "TrainingObjective"]


@dataclass(frozen=True)
class Cost:
    """What one step costs for each image, in gradients.

    A backward pass counts 1 for every pass through the network that it goes back through: 1 for a gradient, the forward
    pass included, and 2 for an exact Hessian-vector product, which goes back through a forward and a backward pass, as
    everywhere in this package. Forward passes without a backward pass are not counted.

    Attributes:
        crafting: gradients with respect to the image, to make the example that is trained on; an upper bound where the
            solver may end early.
        update: gradients of the loss with respect to the parameters.
    """

    crafting: int
    update: int

    @property
    def total(self) -> int:
        """Crafting and update together."""
        return self.crafting + self.update


@dataclass(frozen=True, eq=False, repr=False)
class StepResult:
    """A loss to be minimised, and what was seen on the way; all but the loss is detached.

    Attributes:
        loss: scalar, the mean over the batch, differentiable with respect to the parameters of the model.
        gradients: `(B,)` int64, gradients spent on each image, update included (see :class:`Cost`).
        clean_correct: `(B,)` bool, whether the image itself was classified as its label; `None` if it was not looked
            at. Both of these are seen in the mode that the model is in, before the update.
        adversarial_correct: `(B,)` bool, whether the perturbed image was; `None` if there is none.
        krylov_dims: `(B, k)` int64, Krylov dimension of each of the attack's outer iterations, 0 where it took a
            gradient step; `None` if there are none.
    """

    loss: Tensor
    gradients: Tensor
    clean_correct: Tensor | None = None
    adversarial_correct: Tensor | None = None
    krylov_dims: Tensor | None = None

    def __repr__(self) -> str:
        return f"StepResult(loss={self.loss.item():.4g}, {int(self.gradients.sum())} gradients)"


@dataclass(frozen=True, eq=False)
class Batch:
    """The checked arguments of a step, and the model's outputs on images like them."""

    model: nn.Module
    x: Tensor
    y: Tensor
    seed: int
    index: Tensor
    largest_label: int

    def logits(self, images: Tensor) -> Tensor:
        """Logits `(B, classes)` of `images`, in single precision at least.

        Raises:
            ValueError: they have another shape, or a label is not below the number of classes.
        """
        logits = self.model(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"model: must map images {tuple(images.shape)} to logits ({len(images)}, classes), got {got}"
            )
        if self.largest_label >= logits.shape[1]:
            raise ValueError(
                f"y: labels must be below the number of classes, {logits.shape[1]}; got {self.largest_label}"
            )
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def losses(self, images: Tensor) -> Tensor:
        """Cross-entropies `(B,)` whose derivatives keep their digits where the network is confident."""
        return cross_entropy(self.logits(images), self.y)

    def correct(self, logits: Tensor) -> Tensor:
        """Whether the label has the largest logit, `(B,)` bool."""
        return logits.detach().argmax(1) == self.y

    def noise(self, sigma: float, stream: int) -> Tensor:
        """Normal numbers of standard deviation `sigma`, shaped like `x`; a `stream` for each draw of a step."""
        return gaussian_noise(self.x, sigma, self.seed, (stream,), self.index)[0]


@dataclass(frozen=True)
class TrainingObjective(ABC):
    """A loss of a model on a batch of images; `objective(model, x, y)` is a scalar to call `.backward()` on.

    Examples are crafted with the model in eval mode (statistics of batch normalisation are neither used from the batch
    nor updated), with parameters that need no gradient; then everything is as it was, module by module, and the loss is
    evaluated in the mode that the model came in. The model may be used under `torch.autocast`; images stay in single
    precision at least.

    Random numbers are functions of (seed, index) and of nothing else: a batch that is split between processes is
    trained on as a whole one would be. A layer that draws numbers of its own (dropout), and batch normalisation in
    train mode, which couples the images of a batch, are outside of this.
    """

    name: ClassVar[str]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0, index: Tensor | None = None) -> Tensor:
        """The loss alone: `step(...).loss`."""
        return self.step(model, x, y, seed=seed, index=index).loss

    def step(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0, index: Tensor | None = None) -> StepResult:
        """The loss of `model` on the images `x` with the labels `y`.

        Args:
            model: maps images `(B, C, H, W)` in [0, 1] to logits `(B, classes)`; normalisation belongs inside it.
            x: images `(B, C, H, W)`, float32 or float64, in [0, 1], B >= 1.
            y: labels `(B,)` int64.
            seed: of the random numbers, non-negative; another one for every step of training.
            index: position of each image in the whole batch, `(B,)` int64, where `x` is a part of it. `None` counts
                from 0.

        Raises:
            ValueError, TypeError: an argument is out of range, of the wrong shape or of the wrong type; the message
                starts with its name.
            FloatingPointError: examples cannot be crafted because the parameters are no longer finite.
        """
        check_images(x)
        check_labels(y, x)
        check_count("seed", seed, 0)
        if not len(x):
            raise ValueError("x: holds no images, and the mean loss of none is not defined")
        index = torch.arange(len(x)) if index is None else index
        if index.shape != (len(x),) or index.dtype != torch.int64 or int(index.min()) < 0:
            raise ValueError(f"index: must hold one non-negative int64 number per image, got {tuple(index.shape)}")
        return self._step(Batch(model, x.detach(), y, seed, index, int(y.max())))

    def scaled(self, factor: float) -> TrainingObjective:
        """This objective with `factor` > 0 times the radius and the step length, where it has them; else itself."""
        return self

    @abstractmethod
    def cost(self) -> Cost:
        """What a step costs for each image."""

    @abstractmethod
    def _step(self, batch: Batch) -> StepResult:
        """As :meth:`step`, with checked arguments."""

    def _spent(self, batch: Batch) -> Tensor:
        """Gradients spent on each image, `(B,)`, where the costs do not depend on the images."""
        return torch.full_like(batch.y, self.cost().total)


@dataclass(frozen=True)
class BallObjective(TrainingObjective):
    """Options of the objectives that look at a ball around each image.

    Args:
        eps: radius of the ball in pixel units (images span [0, 1]).
        norm: `"Linf"` or `"L2"`.
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2")

    eps: float
    _: KW_ONLY
    norm: Norm = "Linf"

    def __post_init__(self) -> None:
        check_positive("eps", self.eps, zero=True)
        check_choice("norm", self.norm, self.norms)

    def scaled(self, factor: float) -> TrainingObjective:
        return replace(self, eps=factor * self.eps)
