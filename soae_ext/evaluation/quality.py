"""How far adversarial images are from their originals, image by image."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

__all__ = ["distances", "metrics_version", "psnr_and_ssim"]


def distances(images: Tensor, changed: Tensor) -> dict[str, Tensor]:
    """`"linf"` and `"l2"` distances `(n,)` between two stacks of images `(n, C, H, W)`, float64, in pixel units."""
    difference = (changed.double() - images.double()).flatten(1)
    return {"linf": difference.abs().amax(1), "l2": torch.linalg.vector_norm(difference, dim=1)}


def metrics_version() -> str | None:
    """Version of `torchmetrics`; `None` if it is not installed."""
    try:
        return version("torchmetrics")
    except PackageNotFoundError:
        return None


def psnr_and_ssim(images: Tensor, changed: Tensor) -> dict[str, Tensor]:
    """`"psnr"` in dB and `"ssim"`, `(n,)` float64, of `changed` against `images` `(n, C, H, W)` in [0, 1].

    By the `torchmetrics` library with a data range of 1: PSNR = 10 log10(1 / mean square), infinite for an unchanged
    image; SSIM with Gaussian windows of width 1.5 (Wang et al., 2004), NaN for images of fewer than 6 pixels a side,
    which no such window fits. Empty if `torchmetrics` is not installed.
    """
    if metrics_version() is None:
        return {}
    metrics: Any = import_module("torchmetrics.functional.image")
    psnr = metrics.peak_signal_noise_ratio(changed, images, data_range=1.0, reduction="none", dim=(1, 2, 3))
    if min(images.shape[-2:]) < 6:
        ssim = torch.full((len(images),), torch.nan)
    else:
        ssim = metrics.structural_similarity_index_measure(changed, images, data_range=1.0, reduction="none")
    return {"psnr": psnr.double().reshape(-1), "ssim": ssim.double().reshape(-1)}
