"""Table IV: the Krylov dimension at which a residual is small enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.losses import cross_entropy
from ..data import ImageData
from ..evaluation.bootstrap import bootstrap_mean
from ..gmres import gmres
from ..hvp import hessian_operator

__all__ = ["THRESHOLDS", "krylov_dimensions"]

# On the residual, relative to |g|. Those of the paper are lost in its text.
THRESHOLDS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
# Largest dimension of a single system, where more than C - 1 is rounding, and of a batch as one system.
_SINGLE, _JOINED = 40, 100
# A basis of the joined system is held to so many float32 numbers, 512 MiB.
_NUMBERS = 2**27


def krylov_dimensions(model: nn.Module, data: ImageData, device: torch.device) -> dict[str, Any]:
    """m of H d = g by GMRES without restarts, from zero, for every threshold in four ways.

    m is the first dimension whose residual estimate is at most threshold * |g|. H is the Hessian of the cross-entropy
    with respect to the image, in single precision: of one image, or of all images taken for one system of order
    n_images * n_pixels; with exact products, or with one-sided differences.

    Args:
        model: in eval mode, on `device`.
        data: all of its images are used, at once.
    """
    x, y = data.images.to(device), data.labels.to(device)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(images), labels)

    joined = max(1, min(_JOINED, _NUMBERS // x.numel() - 1))
    return {
        "images": len(x),
        "thresholds": list(THRESHOLDS),
        "one image, exact products": _ways(loss, x, y, "traced", False, _SINGLE),
        "one image, differences": _ways(loss, x, y, "finite-difference", False, _SINGLE),
        "the images as one system, exact products": _ways(loss, x, y, "traced", True, joined),
        "the images as one system, differences": _ways(loss, x, y, "finite-difference", True, joined),
    }


def _ways(
    loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, products: str, joined: bool, cap: int
) -> dict[str, Any]:
    H = hessian_operator(loss, x, y, method=products)
    A: Callable[[Tensor], Tensor] = H
    b = H.gradient
    if joined:
        A, b = (lambda v: H(v.view_as(x)).reshape(1, -1)), b.reshape(1, -1)
    result = gmres(A, b, rtol=min(THRESHOLDS), restart=cap, max_iters=cap, history=True)
    history = result.residual_history
    assert history is not None
    entries = []
    for threshold in THRESHOLDS:
        met = (history <= threshold * history[:, :1]).cpu()
        m = torch.where(met.any(1), met.int().argmax(1).double(), torch.nan)
        reached = m[~m.isnan()]
        entries.append(
            {
                "threshold": threshold,
                "reached": len(reached),
                "systems": len(m),
                "largest": int(reached.max()) if len(reached) else None,
                **bootstrap_mean(m.numpy()).as_json(),
            }
        )
    return {"cap": cap, "thresholds": entries}
