"""Whether a network and data fit together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data import ImageData

__all__ = ["check_model"]


def check_model(model: nn.Module, data: ImageData) -> int:
    """Run `model` on the first image of `data` and check all labels against what it gives; its number of classes.

    The model is run in eval mode, on the device of its parameters, and left in the mode that it came in.

    Raises:
        TypeError: the images or labels are of the wrong type, or the model gives no tensor.
        ValueError: the model cannot take images of this shape or does not give finite logits `(1, classes)`; pixels
            outside [0, 1]; labels that the model does not know.
    """
    data.check(getattr(model, "input_shape", None))
    logits = _logits(model, data.images[:1])
    shape = tuple(data.images.shape[1:])
    if logits.ndim != 2 or len(logits) != 1:
        raise ValueError(f"the model must map images (B, *{shape}) to logits (B, classes), got {tuple(logits.shape)}")
    if not bool(logits.isfinite().all()):
        raise ValueError("the logits of the first image are not finite; check the weights of the model")
    classes = logits.shape[1]
    data.check(classes=classes)
    return classes


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    first = next(model.parameters(), None)
    if first is not None:
        images = images.to(first.device, first.dtype)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            logits = model.eval()(images)
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the model cannot take images {tuple(images.shape[1:])}: {type(error).__name__}: {reason}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model must give a tensor of logits, got {type(logits).__name__}")
    return logits
