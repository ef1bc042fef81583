"""Balls, steps and random starts.

An adversarial image must lie in the ball around its image *as the user computes the distance*, so rounding is always
towards the image: no pixel ends further from it than the perturbation said. Linf distances are then within eps
exactly, in single and in double precision; for L2 and L1 the radius is reduced by 2^-20 of itself, which covers the
rounding of a norm that is summed in single precision.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Norm",
    "gaussian_noise",
    "linf_box",
    "per_sample",
    "project",
    "random_perturbation",
    "random_start",
    "round_down",
    "steepest_step",
    "unit",
]

Norm = Literal["Linf", "L2", "L1"]

# Of the radius, for the rounding of a sum in single precision.
_SLACK = 2.0**-20
# Part of the pixels that a steepest step in L1 leaves where they are.
_L1_SPARSITY = 0.99


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """`values` `(B,)` shaped to broadcast against `like` `(B, *shape)`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def round_down(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Non-negative `values` in `dtype`, never larger than they were."""
    rounded = values.to(dtype)
    return torch.where(rounded.double() > values.double(), torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)


def project(x: Tensor, moved: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """The point of the eps-ball around `x` and of the box [0, 1] that `moved` is projected to.

    Linf and L1: the nearest point of the intersection. L2: first onto the ball, then onto the box; as `x` lies in the
    box, the second never leaves the ball.

    Args:
        x: images `(B, *shape)` in [0, 1].
        moved: points `(B, *shape)`.
        eps: radii `(B,)`, in the dtype of `x`.
        norm: `"Linf"`, `"L2"` or `"L1"`.
    """
    if norm == "Linf":
        low, high = linf_box(x, eps)
        return moved.maximum(low).minimum(high)
    perturbation = moved - x
    if norm == "L1":
        perturbation = _onto_l1_ball(x, perturbation, eps.double() * (1 - _SLACK))
    else:
        length = per_sample(torch.linalg.vector_norm(perturbation.double().flatten(1), dim=1), x)
        allowed = per_sample(eps, x).double() * (1 - _SLACK)
        perturbation = torch.where(length > allowed, perturbation * (allowed / length).to(x.dtype), perturbation)
    return _add_towards(x, perturbation).clamp(0, 1)


def linf_box(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of each pixel within [0, 1] and `eps` `(B,)` of the image `x`, each like `x`."""
    radius = per_sample(eps, x)
    return _add_towards(x, -radius).clamp_min(0), _add_towards(x, radius).clamp_max(1)


def _onto_l1_ball(x: Tensor, perturbation: Tensor, radius: Tensor) -> Tensor:
    """The nearest d to `perturbation` with |d|_1 <= radius `(B,)` and x + d in [0, 1].

    It is sign(p) * clamp(|p| - t, 0, c), where c is what the box leaves and t >= 0 the least that meets the radius
    (Croce and Hein, 2021). The norm of d falls in t, linearly between the 2n points |p_i| and |p_i| - c_i: they are
    sorted, the norm at each is a cumulative sum, and t is interpolated. In double precision.
    """
    p, centre = perturbation.double().flatten(1), x.double().flatten(1)
    length = p.abs()
    room = torch.where(p > 0, 1 - centre, centre)
    shrink = torch.zeros_like(radius)
    over = torch.minimum(length, room).sum(1) > radius
    if bool(over.any()):
        shrink[over] = _l1_shrinkage(length[over], room[over], radius[over])
    projected = p.sign() * torch.minimum((length - shrink[:, None]).clamp_min(0), room)
    return projected.to(x.dtype).reshape(x.shape)


def _l1_shrinkage(length: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """The t of :func:`_onto_l1_ball`, `(B,)`, for samples whose norm at t = 0 is above the radius."""
    n = length.shape[1]
    points, order = torch.cat([length, (length - room).clamp_min(0)], 1).sort(dim=1, descending=True)
    # Below |p_i| entry i grows as t falls, below |p_i| - c_i it no longer does.
    growing = torch.where(order < n, 1.0, -1.0).to(length.dtype).cumsum(1)
    norms = ((points[:, :-1] - points[:, 1:]) * growing[:, :-1]).cumsum(1)
    last = torch.searchsorted(norms, radius[:, None]).clamp_max(2 * n - 2)
    excess = norms.gather(1, last) - radius[:, None]
    found = points.gather(1, last + 1) + excess / growing.gather(1, last).clamp_min(1)
    return found[:, 0]


def _add_towards(x: Tensor, perturbation: Tensor) -> Tensor:
    """x + perturbation, rounded so that no entry is further from x than the perturbation is long."""
    total = x + perturbation
    # The difference of two single-precision numbers is exact in double precision, or errs far below one unit there.
    too_far = (total.double() - x.double()).abs() > perturbation.double().abs()
    return torch.where(too_far, torch.nextafter(total, x), total)


def steepest_step(gradient: Tensor, norm: Norm, points: Tensor | None = None) -> Tensor:
    """The step of unit length in `norm` along which a linear function with this gradient rises most.

    In L1 that step moves a single pixel, which the box soon stops. The step there is the one of sparse descent (Tramer
    and Boneh, 2019): equally far in the 1 % of the pixels (at least one) where the gradient is largest, not counting
    pixels of `points` that lie on the border of [0, 1] and would leave it.

    Args:
        gradient: `(B, *shape)`.
        norm: `"Linf"`, `"L2"` or `"L1"`.
        points: where the step starts, `(B, *shape)`; only L1 looks at it. `None` is away from the border.
    """
    if norm == "Linf":
        return gradient.sign()
    return unit(gradient) if norm == "L2" else _sparse_step(gradient, points)


def _sparse_step(gradient: Tensor, points: Tensor | None) -> Tensor:
    if points is not None:
        stuck = ((points <= 0) & (gradient < 0)) | ((points >= 1) & (gradient > 0))
        gradient = torch.where(stuck, torch.zeros_like(gradient), gradient)
    size = gradient.flatten(1).abs()
    kept = size.shape[1] - math.ceil(_L1_SPARSITY * (size.shape[1] - 1))
    least = per_sample(size.topk(kept, dim=1).values[:, -1], gradient)
    step = torch.where(gradient.abs() >= least, gradient.sign(), torch.zeros_like(gradient))
    return step / per_sample(step.flatten(1).abs().sum(1).clamp_min(1), gradient)


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
        norm: `"Linf"`, `"L2"` or `"L1"`.
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
        elif norm == "L1":
            # n of n + 1 exponential numbers, divided by the sum of all, are uniform in the simplex.
            lengths = generator.standard_exponential(n + 1)
            row[:] = lengths[:n] / lengths.sum() * generator.choice((-1.0, 1.0), n)
        else:
            direction = generator.standard_normal(n)
            # The radius of a uniform point of an n-ball is the n-th root of a uniform number.
            row[:] = direction * (generator.random() ** (1 / n) / np.linalg.norm(direction))
    return per_sample(eps, x) * torch.from_numpy(noise).to(device=x.device, dtype=x.dtype).reshape(x.shape)


def gaussian_noise(
    x: Tensor, sigma: float, seed: int, stream: tuple[int, ...], index: Tensor, draws: int = 1
) -> Tensor:
    """Independent normal numbers of standard deviation `sigma`, `(draws, B, *shape)`.

    Arguments as in :func:`random_perturbation`, and like there every sample has a generator of its own.
    """
    noise = np.empty((draws, len(x), x.shape[1:].numel()))
    for position, number in enumerate(index.tolist()):
        generator = np.random.default_rng((seed, number, *stream))
        noise[:, position] = generator.standard_normal(noise[:, position].shape)
    return sigma * torch.from_numpy(noise).to(device=x.device, dtype=x.dtype).reshape(draws, *x.shape)
