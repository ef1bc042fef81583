"""Where perturbations lie: correlation of their magnitude with the edges of the images.

For an Linf attack whose steps are signs, |d| is the radius at nearly every pixel and can follow an edge only where the
box [0, 1] clips it or where the gradient is zero. `saturated` says how much of the perturbation that is, and the
control, random signs of the same size clipped in the same way, what correlation clipping alone makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from .bootstrap import MeanInterval, bootstrap_mean

__all__ = [
    "CONTROL",
    "EdgeStatistics",
    "correlation",
    "edge_analysis",
    "edge_map",
    "magnitude",
    "ranks",
    "strongest_share",
]

CONTROL = "random (control)"
# A pixel with at least this part of the largest magnitude of its image is at the radius.
_AT_RADIUS = 0.99

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EdgeStatistics:
    """One attack's perturbations against the edges of the images.

    Attributes:
        name: of the attack.
        pearson, spearman: correlation over the pixels of one image, averaged over the images. Not defined where the
            image was not perturbed or |d| is constant.
        edge_energy: part of |d|^2 on the tenth of the pixels with the strongest edges; a perturbation that knows
            nothing of edges has `expected`.
        expected: the number of these pixels divided by the number of pixels.
        saturated: part of the changed pixels whose |d| is at least 99 % of the largest of their image, averaged.
        images: perturbed images.
    """

    name: str
    pearson: MeanInterval
    spearman: MeanInterval
    edge_energy: MeanInterval
    expected: float
    saturated: float | None
    images: int

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pearson": self.pearson.as_json(),
            "spearman": self.spearman.as_json(),
            "edge_energy": {**self.edge_energy.as_json(), "expected": self.expected},
            "saturated": self.saturated,
            "images": self.images,
        }


def edge_map(images: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient of the mean over the channels, borders replicated.

    Args:
        images: `(n, C, H, W)`.

    Returns:
        `(n, H, W)` in the dtype of `images`.
    """
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=images.dtype)
    kernels = torch.stack([kernel, kernel.T])[:, None].to(images.device)
    gradients = conv2d(pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), kernels)
    return gradients.square().sum(1).sqrt()


def magnitude(images: Tensor, moved: Tensor) -> Tensor:
    """|d| per pixel, `(n, H, W)` float64: the root mean square over the channels of `moved - images`."""
    return (moved.double() - images.double()).square().mean(1).sqrt()


def strongest_share(weights: Floats, edges: Floats, part: float = 0.1) -> tuple[Floats, float]:
    """Share of the sum of `weights` that lies on the pixels with the strongest edges.

    Pixels that tie for the last place share it evenly, so that a constant weight gives the expectation exactly.

    Args:
        weights: `(n, pixels)`, at least 0.
        edges: like `weights`.
        part: of the pixels.

    Returns:
        The share of each image, NaN where all weights are zero, and the share of the pixels.
    """
    pixels = weights.shape[1]
    count = min(pixels, max(1, round(part * pixels)))
    last = np.partition(edges, pixels - count, axis=1)[:, pixels - count, None]
    above, tied = edges > last, edges == last
    places = (count - above.sum(1)) / tied.sum(1)
    total = weights.sum(1)
    inside = (weights * above).sum(1) + places * (weights * tied).sum(1)
    return np.divide(inside, total, out=np.full(len(total), np.nan), where=total > 0), count / pixels


def edge_analysis(
    images: Tensor, adversarial: Mapping[str, Tensor], norm: str = "Linf", seed: int = 0
) -> list[EdgeStatistics]:
    """Statistics of every attack, and last of the control, named `CONTROL`.

    The control is random noise as large as the largest perturbation of that image by any attack, clipped to [0, 1]:
    random signs of that largest change of a pixel (`norm="Linf"`), else normally distributed and of that 2-norm.

    Args:
        images: `(n, C, H, W)` in [0, 1], on the CPU.
        adversarial: the images of each attack, like `images`, by its name.
        norm: of the attacks.
        seed: of the control.

    Raises:
        ValueError: there is no image, or an attack's images have another shape.
    """
    if not len(images):
        raise ValueError("edges: there is no image")
    for name, moved in adversarial.items():
        if moved.shape != images.shape:
            raise ValueError(f"edges: the images of {name} have shape {tuple(moved.shape)}, not {tuple(images.shape)}")
    edges = _levels(edge_map(images.double()))
    moved_by = {**adversarial, CONTROL: _control(images, adversarial, norm, seed)} if adversarial else {}
    return [_statistics(name, _levels(magnitude(images, moved)), edges) for name, moved in moved_by.items()]


def _statistics(name: str, delta: Floats, edges: Floats) -> EdgeStatistics:
    energy, expected = strongest_share(delta**2, edges)
    largest = delta.max(1)
    moved = largest > 0
    at_radius = (delta >= _AT_RADIUS * largest[:, None])[moved].sum(1) / (delta > 0)[moved].sum(1)
    return EdgeStatistics(
        name=name,
        pearson=bootstrap_mean(correlation(delta, edges)),
        spearman=bootstrap_mean(correlation(ranks(delta), ranks(edges))),
        edge_energy=bootstrap_mean(energy),
        expected=expected,
        saturated=float(at_radius.mean()) if len(at_radius) else None,
        images=int(moved.sum()),
    )


def correlation(a: Floats, b: Floats) -> Floats:
    """Pearson's correlation of the rows of `a` and `b`, `(n, pixels)`; NaN where a row is constant."""
    varies = (a.max(1) > a.min(1)) & (b.max(1) > b.min(1))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    result: Floats = np.divide((a * b).sum(1), norms, out=np.full(len(a), np.nan), where=varies)
    return result


def ranks(values: Floats) -> Floats:
    """Ranks within each row of `(n, pixels)`, from 1; ties share the mean of their ranks."""
    result = np.empty_like(values)
    for row, value in enumerate(values):
        _, inverse, counts = np.unique(value, return_inverse=True, return_counts=True)
        result[row] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return result


def _control(images: Tensor, adversarial: Mapping[str, Tensor], norm: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    sizes = []
    for moved in adversarial.values():
        delta = (moved.double() - images.double()).flatten(1)
        sizes.append(delta.abs().amax(1) if norm == "Linf" else torch.linalg.vector_norm(delta, dim=1))
    size = torch.stack(sizes).amax(0).reshape(-1, 1, 1, 1)
    shape = noise.sign() if norm == "Linf" else noise / torch.linalg.vector_norm(noise, dim=(1, 2, 3), keepdim=True)
    return (images.double() + size * shape).clamp(0, 1)


def _levels(maps: Tensor) -> Floats:
    """`(n, pixels)` rounded to a millionth: the rounding error in (x + d) - x must not put pixels into an order."""
    return np.asarray(maps.flatten(1).numpy().round(6), dtype=np.float64)
