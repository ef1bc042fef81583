"""Balls, steps and random starts.

An adversarial image must lie in the ball around its image *as the user computes the distance*, so rounding is always
towards the image: no pixel ends further from it than the perturbation said. Linf distances are then within eps
exactly, in single and in double precision; for L2 the radius is reduced by 2^-20 of itself, which covers the rounding
of a norm that is summed in single precision.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Norm",
    "per_sample",
    "project",
    "random_perturbation",
    "random_start",
    "round_down",
    "steepest_step",
    "unit",
]

Norm = Literal["Linf", "L2"]

_L2_SLACK = 2.0**-20


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """`values` `(B,)` shaped to broadcast against `like` `(B, *shape)`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def round_down(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Non-negative `values` in `dtype`, never larger than they were."""
    rounded = values.to(dtype)
    return torch.where(rounded.double() > values.double(), torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)


def project(x: Tensor, moved: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """The point of the eps-ball around `x` and of the box [0, 1] that `moved` is projected to.

    First onto the ball, then onto the box; as `x` lies in the box, the second never leaves the ball.

    Args:
        x: images `(B, *shape)` in [0, 1].
        moved: points `(B, *shape)`.
        eps: radii `(B,)`, in the dtype of `x`.
        norm: `"Linf"` or `"L2"`.
    """
    perturbation = moved - x
    radius = per_sample(eps, x)
    if norm == "Linf":
        perturbation = torch.minimum(torch.maximum(perturbation, -radius), radius)
    else:
        length = per_sample(torch.linalg.vector_norm(perturbation.double().flatten(1), dim=1), x)
        allowed = radius.double() * (1 - _L2_SLACK)
        perturbation = torch.where(length > allowed, perturbation * (allowed / length).to(x.dtype), perturbation)
    return _add_towards(x, perturbation).clamp(0, 1)


def _add_towards(x: Tensor, perturbation: Tensor) -> Tensor:
    """x + perturbation, rounded so that no entry is further from x than the perturbation is long."""
    total = x + perturbation
    # The difference of two single-precision numbers is exact in double precision, or errs far below one unit there.
    too_far = (total.double() - x.double()).abs() > perturbation.double().abs()
    return torch.where(too_far, torch.nextafter(total, x), total)


def steepest_step(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of unit length in `norm` along which a linear function with this gradient rises most."""
    return gradient.sign() if norm == "Linf" else unit(gradient)


def unit(vectors: Tensor) -> Tensor:
    """`vectors` `(B, *shape)` scaled to unit 2-norm; zero stays zero. Squares neither overflow nor underflow."""
    largest = per_sample(vectors.flatten(1).abs().amax(1), vectors)
    scaled = torch.where(largest > 0, vectors / largest, torch.zeros_like(vectors))
    length = per_sample(torch.linalg.vector_norm(scaled.flatten(1), dim=1), vectors)
    return scaled / length.clamp_min(1)


def random_start(x: Tensor, eps: Tensor, norm: Norm, seed: int, restart: int, index: Tensor) -> Tensor:
    """Points drawn uniformly from the eps-ball around each image, moved into the box [0, 1].

    Arguments as in :func:`random_perturbation` and :func:`project`; the numbers are those of (seed, index, restart).
    """
    return project(x, x + random_perturbation(x, eps, norm, seed, (restart,), index), eps, norm)


def random_perturbation(
    x: Tensor, eps: Tensor, norm: Norm, seed: int, stream: tuple[int, ...], index: Tensor
) -> Tensor:
    """Perturbations `(B, *shape)` drawn uniformly from the eps-ball around zero.

    Every sample has a generator of its own, seeded with (seed, its index, *stream): the numbers do not depend on the
    batch that a sample comes in, nor on the device.

    Args:
        x: images `(B, *shape)`; only shape, dtype and device matter.
        eps: radii `(B,)`, in the dtype of `x`.
        norm: `"Linf"` or `"L2"`.
        seed: non-negative.
        stream: distinguishes draws for one sample, non-negative.
        index: number of each sample in the whole data set, `(B,)` int64, non-negative.
    """
    n = x.shape[1:].numel()
    noise = np.empty((len(x), n))
    for row, number in zip(noise, index.tolist(), strict=True):
        generator = np.random.default_rng((seed, number, *stream))
        if norm == "Linf":
            row[:] = generator.uniform(-1, 1, n)
        else:
            direction = generator.standard_normal(n)
            # The radius of a uniform point of an n-ball is the n-th root of a uniform number.
            row[:] = direction * (generator.random() ** (1 / n) / np.linalg.norm(direction))
    return per_sample(eps, x) * torch.from_numpy(noise).to(device=x.device, dtype=x.dtype).reshape(x.shape)
