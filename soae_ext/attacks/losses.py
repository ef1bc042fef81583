"""What an attack maximises, as a function of the images and their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["LossName", "Model", "Objective", "cross_entropy", "is_fooled"]

LossName = Literal["ce", "margin", "dlr"]
Model = Callable[[Tensor], Tensor]

# Classes that a loss needs: DLR divides by a difference of sorted logits.
_CLASSES_NEEDED = {
    ("ce", False): 2,
    ("ce", True): 2,
    ("margin", False): 2,
    ("margin", True): 2,
    ("dlr", False): 3,
    ("dlr", True): 4,
}


@dataclass(frozen=True)
class Objective:
    """The per-sample loss that an attack maximises; equal objectives are interchangeable.

    With logits z, label y (the target t of a targeted attack) and z_1 >= z_2 >= ... the logits in order:

    | name | untargeted | targeted |
    |---|---|---|
    | `ce` | cross-entropy(z, y) | -cross-entropy(z, t) |
    | `margin` | m = max_{i != y} z_i - z_y | m = z_t - max_{i != t} z_i |
    | `dlr` | m / (z_1 - z_3 + 1e-12) | m / (z_1 - (z_3 + z_4) / 2 + 1e-12) |

    The margin is that of Carlini and Wagner (2017); DLR is the difference of logits ratio of Croce and Hein (2020).
    Its targeted form there sets the true class against the target; here, where the true class is not known, it is the
    strongest other class.
    """

    model: Model
    name: LossName
    targeted: bool = False

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Losses `(B,)` of images `(B, *shape)` with labels `(B,)`."""
        return self.of_logits(self.model(x), y)

    def of_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """Losses `(B,)` of logits `(B, C)` with labels `(B,)`, in single precision at least."""
        if logits.dtype in (torch.bfloat16, torch.float16):  # a network under autocast
            logits = logits.float()
        if self.name == "ce":
            loss = cross_entropy(logits, y)
            return -loss if self.targeted else loss
        label = y[:, None]
        others = logits.scatter(1, label, -torch.inf).amax(1)
        margin = others - logits.gather(1, label)[:, 0]
        if self.name == "dlr":
            ranked = logits.topk(4 if self.targeted else 3, dim=1).values
            floor = (ranked[:, 2] + ranked[:, 3]) / 2 if self.targeted else ranked[:, 2]
            margin = margin / (ranked[:, 0] - floor + 1e-12)
        return -margin if self.targeted else margin

    def check_classes(self, classes: int) -> None:
        """Raise `ValueError` if the loss is not defined for so few classes."""
        needed = _CLASSES_NEEDED[self.name, self.targeted]
        if classes < needed:
            kind = "targeted " if self.targeted else ""
            raise ValueError(f"loss: {kind}'{self.name}' needs at least {needed} classes, the model has {classes}")


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y as softplus(logsumexp_{k != y} z_k - z_y), `(B,)`.

    The usual form subtracts 1 from the probability of the label. Where the network is confident that cancels: the
    gradient loses its digits, or vanishes, and products with the Hessian no longer have the rank that they should. Here
    both keep their relative accuracy until they underflow.
    """
    label = y[:, None]
    others = logits.scatter(1, label, -torch.inf).logsumexp(1)
    return softplus(others - logits.gather(1, label)[:, 0], threshold=50.0)


def is_fooled(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Whether the predicted class is the target, or is not the label, `(B,)` bool. Logits that are NaN fool nobody."""
    hit = logits.argmax(1) == y
    return (hit if targeted else ~hit) & ~logits.isnan().any(1)
