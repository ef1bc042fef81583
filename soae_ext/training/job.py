"""What a training run is made of: checked, and named so that another one is not mistaken for it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..attacks import Attack
from ..data import ImageData
from ..evaluation.store import digest
from ..models.base import Classifier
from .base import TrainingObjective
from .recipe import Recipe
from .schedule import ball_of

__all__ = ["Job"]


@dataclass(frozen=True, eq=False)
class Job:
    """The arguments of :func:`soae_ext.training.fit` that its result depends on."""

    model: nn.Module
    train: ImageData
    objective: TrainingObjective
    recipe: Recipe
    validation: ImageData | None = None
    attack: Attack | None = None

    def check(self) -> None:
        """Raise `ValueError` or `TypeError`, starting with the argument to blame, unless the parts fit together."""
        if not isinstance(self.objective, TrainingObjective):
            raise TypeError(f"objective: must be a TrainingObjective such as PGDTraining, got {self.objective!r}")
        model = self.model
        shape, classes = (model.input_shape, model.classes) if isinstance(model, Classifier) else (None, None)
        for name, data in (("train", self.train), ("validation", self.validation)):
            try:
                if data is not None:
                    data.check(shape, classes)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from error
        if self.validation is not None and self.validation.images.shape[1:] != self.train.images.shape[1:]:
            raise ValueError(
                f"validation: images {tuple(self.validation.images.shape[1:])}, but those to train on are "
                f"{tuple(self.train.images.shape[1:])}"
            )
        self.recipe.steps(len(self.train))
        if self.recipe.eps_warmup and ball_of(self.objective) is None:
            raise ValueError(f"eps_warmup: {self.objective.name} has no ball whose radius could grow; leave it 0")
        if self.attack is not None and isinstance(self.attack.eps, Tensor):
            raise ValueError("attack: validation has one radius for all images; give eps as a float")
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError("model: none of its parameters requires a gradient, so there is nothing to train")

    def fingerprint(self) -> dict[str, object]:
        """What the result depends on, name by name; taken before the first step."""
        model, state = self.model, self.model.state_dict()
        kind = f"{model.architecture} {model.config}" if isinstance(model, Classifier) else type(model).__qualname__
        return {
            "objective": repr(self.objective),
            **self.recipe.result_options,
            "model": kind,
            "layers": digest(str(model)),
            "weights": digest(*(part for name in sorted(state) for part in (name, state[name]))),
            "data": self.train.fingerprint,
            "validation": None if self.validation is None else self.validation.fingerprint,
            "attack": None if self.validation is None else repr(self.attack),
        }
