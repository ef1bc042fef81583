"""How a network is trained: every hyper-parameter but the objective, in one value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from ..attacks.checks import check_choice, check_count, check_positive

__all__ = ["Augmentation", "OptimizerName", "Precision", "Recipe", "ScheduleName"]

OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "cosine", "one-cycle"]
Augmentation = Literal["none", "crop-flip"]
Precision = Literal["32-true", "bf16-mixed"]

# How often a run is saved changes nothing in it, so a run may be continued with another habit.
_HABITS = ("checkpoint_steps", "checkpoint_seconds")


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of :func:`soae_ext.training.fit`.

    Fractions are of the whole training, counted in steps (updates of the parameters).

    Args:
        epochs: passes over the training images. Every pass is a new permutation of them, a function of (seed, epoch);
            the images left over after the last whole batch are not used in that pass.
        max_steps: end after so many steps, in the middle of an epoch if need be; schedules then span these.
        batch_size: images of one step, over all processes together; a multiple of their number.
        optimizer: `"sgd"`, `"adam"` or `"adamw"`, those of torch.
        lr: peak learning rate.
        momentum: of SGD; Adam's first beta.
        weight_decay: of all parameters; an L2 penalty for SGD and Adam, decoupled for AdamW.
        nesterov: of SGD.
        schedule: `"constant"`; `"step"`: multiplied by `factor` at every milestone; `"cosine"`: to 0; `"one-cycle"`:
            from lr / 25 up to lr and down to lr / 250,000, both along a cosine, as torch's OneCycleLR does it.
        milestones: fractions at which the learning rate of `"step"` falls.
        factor: by which it falls.
        warmup: fraction over which the learning rate rises; linearly from near 0, in one cycle as said above. `None` is
            0.3 for one cycle and none for the others.
        eps_warmup: fraction over which the radius of the objective's ball rises linearly from near 0, with the length
            of its steps. Small networks do not get off the ground on large balls without it.
        ema: decay of an exponential moving average of the parameters and of the statistics of batch normalisation,
            which is then what is validated and written as the result; 0 is none.
        augmentation: `"crop-flip"`: shifted by up to `padding` pixels, zeros coming in, and mirrored with probability
            1/2; for digits use `"none"`.
        padding: of the crops, in pixels.
        precision: `"bf16-mixed"` computes the network in bfloat16 where torch's autocast says so. Parameters, images,
            losses, products with the Hessian and the solver stay in single precision.
        channels_last: memory format of images and convolutions, faster on GPUs and on some CPUs.
        clip_gradient: largest 2-norm of the gradient of all parameters together; `None` does not limit it.
        validate_every: epochs between validations; the last one is always validated.
        log_every: steps between rows of the log.
        checkpoint_steps: save at least every so many steps; `None` leaves it to the clock.
        checkpoint_seconds: save at least every so many seconds. Every validation and the end are followed by a
            checkpoint anyway.
        seed: of the order of the images, the augmentation and the random numbers of the objective.

    Raises:
        ValueError, TypeError: a field is out of range; the message starts with its name.
    """

    epochs: int = 30
    max_steps: int | None = None
    batch_size: int = 128
    optimizer: OptimizerName = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: ScheduleName = "one-cycle"
    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    warmup: float | None = None
    eps_warmup: float = 0.0
    ema: float = 0.0
    augmentation: Augmentation = "none"
    padding: int = 4
    precision: Precision = "32-true"
    channels_last: bool = False
    clip_gradient: float | None = None
    validate_every: int = 1
    log_every: int = 50
    checkpoint_steps: int | None = None
    checkpoint_seconds: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("padding", 0), ("validate_every", 1), ("log_every", 1)):
            check_count(name, getattr(self, name), least)
        for name in ("max_steps", "checkpoint_steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1)
        check_count("seed", self.seed, 0)
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        check_choice("schedule", self.schedule, get_args(ScheduleName))
        check_choice("augmentation", self.augmentation, get_args(Augmentation))
        check_choice("precision", self.precision, get_args(Precision))
        check_positive("lr", self.lr)
        check_positive("factor", self.factor)
        check_positive("weight_decay", self.weight_decay, zero=True)
        check_positive("checkpoint_seconds", self.checkpoint_seconds, zero=True)
        if self.clip_gradient is not None:
            check_positive("clip_gradient", self.clip_gradient)
        for name in ("momentum", "ema", "eps_warmup"):
            _check_fraction(name, getattr(self, name))
        if self.warmup is not None:
            _check_fraction("warmup", self.warmup)
        for milestone in self.milestones:
            _check_fraction("milestones", milestone)
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov: belongs to SGD with momentum; leave it off, or use optimizer sgd")

    def steps(self, images: int) -> tuple[int, int]:
        """Steps of one epoch over so many images, and of the whole training.

        Raises:
            ValueError: there are fewer images than `batch_size`.
        """
        each = images // self.batch_size
        if each == 0:
            raise ValueError(f"batch_size: {self.batch_size} is more than the {images} training images there are")
        whole = self.epochs * each
        return each, whole if self.max_steps is None else min(whole, self.max_steps)

    def share(self, processes: int) -> int:
        """Images of one step for each of so many processes.

        Raises:
            ValueError: they cannot be shared equally.
        """
        if self.batch_size % processes:
            raise ValueError(
                f"batch_size: {self.batch_size} images cannot be shared equally between {processes} processes"
            )
        return self.batch_size // processes

    @property
    def result_options(self) -> dict[str, object]:
        """The fields that the trained network depends on."""
        return {name: value for name, value in asdict(self).items() if name not in _HABITS}


def _check_fraction(name: str, value: object) -> None:
    check_positive(name, value, zero=True)
    if not isinstance(value, int | float) or value >= 1:
        raise ValueError(f"{name}: must be at least 0 and below 1, got {value}")
