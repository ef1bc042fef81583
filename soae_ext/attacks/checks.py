"""Bad input is refused before any work, in one line that names the argument and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._names import unknown_name

__all__ = ["check_choice", "check_count", "check_eps", "check_images", "check_labels", "check_logits", "check_positive"]


def check_choice(argument: str, value: object, choices: Sequence[str]) -> None:
    """Raise `ValueError`, with the nearest valid name, unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument}: {unknown_name(value, choices)}")


def check_count(argument: str, value: object, least: int) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{argument}: must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{argument}: must be at least {least}, got {value}")


def check_positive(argument: str, value: object, *, zero: bool = False) -> None:
    """Raise unless `value` is a finite number above zero (or zero, if `zero`)."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{argument}: must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{argument}: must be finite and {'not negative' if zero else 'positive'}, got {value}")


def check_eps(eps: object) -> None:
    """Raise unless `eps` is a radius, or a tensor `(B,)` of radii."""
    if not isinstance(eps, Tensor):
        check_positive("eps", eps, zero=True)
        return
    if eps.ndim != 1 or not eps.is_floating_point():
        raise ValueError(f"eps: a tensor must hold one float per image, shape (B,); got {tuple(eps.shape)} {eps.dtype}")
    if not bool((eps.isfinite() & (eps >= 0)).all()):
        raise ValueError("eps: must be finite and not negative for every sample")


def check_images(x: object) -> None:
    """Raise unless `x` holds floating-point images `(B, *shape)` with values in [0, 1]."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: must be a tensor of images, got {type(x).__name__}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: must be float32 or float64 in [0, 1], got {x.dtype}; for 8-bit images use x.float() / 255")
    if x.ndim < 2:
        raise ValueError(f"x: must have a batch dimension, got shape {tuple(x.shape)}; for one image use x[None]")
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        low, high = x.min().item(), x.max().item()
        raise ValueError(
            f"x: images must lie in [0, 1], these span [{low:.4g}, {high:.4g}]; "
            "scale them, and normalise inside the model"
        )


def check_labels(y: object, x: Tensor) -> None:
    """Raise unless `y` is one non-negative int64 label for each image in `x`, on the same device."""
    if not isinstance(y, Tensor):
        raise TypeError(f"y: must be a tensor of labels, got {type(y).__name__}")
    if y.dtype != torch.int64:
        raise TypeError(f"y: labels must be int64, got {y.dtype}; use y.long()")
    if y.shape != (len(x),):
        raise ValueError(f"y: must hold one label per image, shape ({len(x)},); got {tuple(y.shape)}")
    if y.device != x.device:
        raise ValueError(f"y: is on {y.device}, x is on {x.device}; move one of them")
    if y.numel() and y.min() < 0:
        raise ValueError(f"y: labels must not be negative, got {int(y.min())}")


def check_logits(logits: object, x: Tensor, y: Tensor, model: object) -> None:
    """Raise unless what `model` made of `x` are finite logits `(B, C)`, and every label in `y` is below C."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: must map images {tuple(x.shape)} to logits ({len(x)}, classes), got {got}")
    if not bool(logits.isfinite().all()):
        broken = [name for name, p in _parameters(model) if not bool(p.isfinite().all())]
        reason = f"its parameter '{broken[0]}' is not finite" if broken else "though its parameters are: it overflows"
        raise ValueError(f"model: its logits on the unperturbed images are not finite, {reason}; check its weights")
    if int(y.max()) >= logits.shape[1]:
        raise ValueError(f"y: labels must be below the number of classes, {logits.shape[1]}; got {int(y.max())}")


def _parameters(model: object) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()] if isinstance(model, nn.Module) else []
