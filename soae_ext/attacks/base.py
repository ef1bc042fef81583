"""What every attack shares: its options, its result, and the way from images to a result."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from .checks import (
    check_choice,
    check_count,
    check_eps,
    check_images,
    check_labels,
    check_logits,
    check_positive,
)
from .geometry import Norm, per_sample, round_down
from .losses import LossName, Model, Objective, is_fooled
from .memory import available_bytes, gradient_bytes, largest_plan
from .task import Task

__all__ = ["Attack", "AttackResult", "attackable"]

# Image-sized tensors that an attack holds for each image: iterates, the best of them, steps and their projections in
# double precision.
_BUFFERS = 24


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """Adversarial images and what they cost.

    Attributes:
        x_adv: adversarial images, shape and dtype of `x`, inside [0, 1] and inside the ball: the best iterate of each.
        success: `(B,)` bool: the model, evaluated on `x_adv`, predicts another class than `y` (targeted: predicts `y`).
            Samples that were so from the start are included.
        loss: `(B,)` value of the attack's loss on `x_adv`, as in :class:`soae_ext.attacks.losses.Objective`.
        gradient_calls: `(B,)` int64 gradients spent on each sample while it was attacked. An exact Hessian-vector
            product counts 2, a one-sided difference 1, a central difference 2.
        forward_calls: `(B,)` int64 forward passes beyond those inside the gradients.
        krylov_dims: for `SOAE`, `(B, restarts * steps)` int64, with the numbers of its plan: the Krylov dimension of
            each outer iteration, restart after restart, 0 where the sample was no longer attacked and where the step
            followed the gradient; else `None`.
    """

    x_adv: Tensor
    success: Tensor
    loss: Tensor
    gradient_calls: Tensor
    forward_calls: Tensor
    krylov_dims: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"AttackResult({int(self.success.sum())} of {len(self.success)} fooled, "
            f"{int(self.gradient_calls.sum())} gradients)"
        )


@dataclass(frozen=True)
class Attack(ABC):
    """Options that every attack has; `attack(model, x, y)` runs it.

    Args:
        eps: radius of the ball in pixel units (images span [0, 1]); a float, or a tensor `(B,)` with one radius per
            sample. Samples with eps = 0 are returned unchanged.
        norm: `"Linf"`, `"L2"` or `"L1"`, of those in `norms` of the attack.
        steps: number of iterations.
        step_size: length of one step in `norm`, in pixel units; `None` is min(1, 2.5 / steps) * eps, per sample.
        loss: `"ce"`, `"margin"` or `"dlr"`, see :class:`soae_ext.attacks.losses.Objective`.
        targeted: `y` holds the class to reach instead of the class to leave.
        random_start: start at a random point of the ball instead of at the image; `None` is for SOAE to decide.
        restarts: runs on each sample not yet fooled. All but the first start at a random point.
        seed: of the random numbers, which are a function of (seed, sample index, restart) and of nothing else.
        batch_size: samples attacked at once; `None` is all, `"auto"` as many as the free memory allows (see
            :mod:`soae_ext.attacks.memory`; costs the first image one forward pass). Bounds the memory, changes nothing
            but rounding.
        early_stop: stop attacking a sample at its first iterate that fools the model. Without it every sample is
            attacked for all steps and its loss raised further.

    Under `torch.autocast` the network alone runs in the lower precision: `x_adv` keeps the dtype of `x`, losses are
    compared and steps taken in single precision at least. The signs of small gradients are rounding errors there, which
    weakens sign steps: to judge a network, attack it in the precision that it is used in, and in single precision.

    Raises:
        ValueError, TypeError: an option is out of range; the message names it and the remedy.
    """

    norms: ClassVar[tuple[str, ...]] = get_args(Norm)
    _least_steps: ClassVar[int] = 1

    eps: float | Tensor
    _: KW_ONLY
    norm: Norm = "Linf"
    steps: int = 1
    step_size: float | None = None
    loss: LossName = "ce"
    targeted: bool = False
    random_start: bool | None = False
    restarts: int = 1
    seed: int = 0
    batch_size: int | Literal["auto"] | None = None
    early_stop: bool = True

    def __post_init__(self) -> None:
        check_eps(self.eps)
        check_choice("norm", self.norm, self.norms)
        check_choice("loss", self.loss, get_args(LossName))
        check_count("steps", self.steps, self._least_steps)
        check_count("restarts", self.restarts, 1)
        check_count("seed", self.seed, 0)
        if isinstance(self.batch_size, str):
            check_choice("batch_size", self.batch_size, ("auto",))
        elif self.batch_size is not None:
            check_count("batch_size", self.batch_size, 1)
        if self.step_size is not None:
            check_positive("step_size", self.step_size)

    def __call__(self, model: Model, x: Tensor, y: Tensor, *, index: Tensor | None = None) -> AttackResult:
        """Attack `model` on the images `x` with the labels `y`.

        The model is attacked in eval mode and left, module by module, in the mode that it came in (with one
        `UserWarning` if it came in train mode and that makes a difference); its parameters, their gradients and its
        hooks are not touched.

        Args:
            model: maps images `(B, *shape)` in [0, 1] to logits `(B, C)`; normalisation belongs inside it.
            x: images `(B, *shape)`, float32 or float64, in [0, 1].
            y: labels `(B,)` int64 (targeted: the classes to reach).
            index: number of each sample in the whole data set, `(B,)` int64, where `x` is a part of it; keeps the
                random numbers independent of how the data is split. `None` counts from 0.

        Raises:
            ValueError, TypeError: an argument is out of range, of the wrong shape or of the wrong type, or the model
                does not return finite logits.
        """
        check_images(x)
        check_labels(y, x)
        eps = self._radii(x)
        index = torch.arange(len(x)) if index is None else index
        if index.shape != (len(x),) or index.dtype != torch.int64 or (len(index) and int(index.min()) < 0):
            raise ValueError(f"index: must hold one non-negative int64 number per image, got {tuple(index.shape)}")
        objective = Objective(model, self.loss, self.targeted)
        _warn_of_train_mode(model)
        # Images that came out of inference mode cannot be differentiated; a copy made outside of it can.
        with attackable(model), torch.inference_mode(False), torch.enable_grad():
            size = self._batch_size(model, x)
            parts = [
                self._attack_batch(objective, x[part].detach().clone(), y[part], eps[part], index[part], y)
                for part in (slice(start, start + size) for start in range(0, len(x), size))
            ]
        if self.batch_size == "auto" and parts:
            parts[0].forward_calls[0] += 1
        return _concatenate(parts, x)

    def _batch_size(self, model: Model, x: Tensor) -> int:
        """Samples attacked at once."""
        if self.batch_size != "auto" or not len(x):
            return self.batch_size if isinstance(self.batch_size, int) else max(len(x), 1)
        planned = min(available_bytes(x.device) // 2, largest_plan(x.device))
        return min(max(planned // self.bytes_per_image(model, x[:1]), 1), len(x))

    def bytes_per_image(self, model: Model, image: Tensor) -> int:
        """Memory in bytes that attacking one image takes at most, at least 1; costs one forward pass in eval mode.

        Args:
            model: maps images to logits.
            image: `(1, *shape)`, on the device of the model.
        """
        with attackable(model), torch.inference_mode(False):
            image = image.detach().clone()
            needed = self._bytes_per_image(gradient_bytes(model, image), image.numel() * image.element_size())
        return max(needed, 1)

    def _bytes_per_image(self, gradient: int, image: int) -> int:
        """Memory that attacking one image takes at most, from that of one gradient and that of the image alone."""
        return gradient + _BUFFERS * image

    def _radii(self, x: Tensor) -> Tensor:
        if not isinstance(self.eps, Tensor):
            radii = torch.full((len(x),), self.eps, dtype=torch.float64)
        elif self.eps.shape == (len(x),):
            radii = self.eps.detach()
        else:
            raise ValueError(f"eps: must hold one radius per image, shape ({len(x)},); got {tuple(self.eps.shape)}")
        return round_down(radii, x.dtype).to(x.device)

    def _attack_batch(
        self, objective: Objective, x: Tensor, y: Tensor, eps: Tensor, index: Tensor, all_labels: Tensor
    ) -> AttackResult:
        with torch.no_grad():
            logits = objective.model(x)
        check_logits(logits, x, all_labels, objective.model)
        objective.check_classes(logits.shape[1])
        self._check_fit(x, logits.shape[1])
        task = Task(objective, x, y, eps, index, logits, norm=self.norm, seed=self.seed, early_stop=self.early_stop)
        krylov_dims = self._run(task)
        with torch.no_grad():
            logits = objective.model(task.best)
            loss = objective.of_logits(logits, y)
        return AttackResult(
            x_adv=task.best,
            success=is_fooled(logits, y, self.targeted),
            loss=loss,
            gradient_calls=task.gradient_calls,
            forward_calls=task.forward_calls + 1,
            krylov_dims=krylov_dims,
        )

    def _check_fit(self, x: Tensor, classes: int) -> None:  # noqa: B027 - most attacks take any
        """Raise `ValueError` if the attack cannot be run on such images or on so few classes."""

    @abstractmethod
    def _run(self, task: Task) -> Tensor | None:
        """Spend the iterations of this attack on `task`; return the Krylov dimensions if there are any."""

    def _lengths(self, task: Task) -> Tensor:
        """Step lengths of the active samples, shaped to multiply their steps."""
        eps = task.eps[task.active]
        lengths = eps * min(1.0, 2.5 / self.steps) if self.step_size is None else torch.full_like(eps, self.step_size)
        return per_sample(lengths, task.x)


def _warn_of_train_mode(model: Model) -> None:
    if not isinstance(model, nn.Module):
        return
    modal = next((module for module in model.modules() if module.training and _is_modal(module)), None)
    if modal is not None:
        warnings.warn(
            f"model: came in train mode, where its {type(modal).__name__} computes something else; "
            "it is attacked in eval mode and left in train mode (model.eval() silences this)",
            UserWarning,
            stacklevel=3,
        )


def _is_modal(module: nn.Module) -> bool:
    """Whether the module computes something else in train mode than in eval mode."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.track_running_stats
    return isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU)


@contextmanager
def attackable(model: Model) -> Iterator[None]:
    """The model in eval mode and with parameters that need no gradient; everything as it was afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    parameters = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    needed = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        if isinstance(model, nn.Module):
            model.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in needed:
            parameter.requires_grad_(requires_grad)


def _concatenate(parts: list[AttackResult], x: Tensor) -> AttackResult:
    if not parts:
        count = torch.zeros(0, dtype=torch.int64, device=x.device)
        return AttackResult(x.clone(), count.bool(), x.new_zeros(0), count, count.clone())
    dims = [part.krylov_dims for part in parts if part.krylov_dims is not None]
    return AttackResult(
        x_adv=torch.cat([part.x_adv for part in parts]),
        success=torch.cat([part.success for part in parts]),
        loss=torch.cat([part.loss for part in parts]),
        gradient_calls=torch.cat([part.gradient_calls for part in parts]),
        forward_calls=torch.cat([part.forward_calls for part in parts]),
        krylov_dims=torch.cat(dims) if dims else None,
    )
