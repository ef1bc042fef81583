"""Pictures of adversarial images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ._files import replacing

__all__ = ["check_format", "image_grid", "pick", "save"]


def check_format(path: Path) -> None:
    """Raise `ValueError` unless the ending of `path` names a picture format that can be written."""
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"unknown picture format '{path.suffix}'; use .png, .pdf or .svg")


def image_grid(
    images: Tensor,
    labels: Tensor,
    clean_predictions: Tensor,
    adversarial: Mapping[str, tuple[Tensor, Tensor]],
) -> Figure:
    """One row per image: the image, then for each attack its perturbation and the adversarial image.

    Titles give the predicted class, in red where it is wrong. Perturbations are drawn from blue (darker) to red
    (brighter), all on one scale; of colour images the mean over the channels.

    Args:
        images: `(k, C, H, W)` in [0, 1], C = 1 or 3.
        labels: `(k,)`.
        clean_predictions: `(k,)`.
        adversarial: for each attack its images, like `images`, and the classes predicted on them.
    """
    rows, columns = len(images), 1 + 2 * len(adversarial)
    limit = max((float((moved - images).abs().max()) for moved, _ in adversarial.values()), default=0.0) or 1.0
    figure = Figure(figsize=(1.25 * columns + 0.7, 1.42 * rows + 0.75), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    heads = ["clean", *(head for name in adversarial for head in (f"{name}\nperturbation", f"{name}\nadversarial"))]
    shades = None
    for row in range(rows):
        label = int(labels[row])
        _draw(axes[row, 0], images[row], int(clean_predictions[row]), label)
        for column, (moved, predictions) in enumerate(adversarial.values()):
            difference = (moved[row] - images[row]).mean(0)
            pair = axes[row, 1 + 2 * column], axes[row, 2 + 2 * column]
            shades = pair[0].imshow(difference.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            _draw(pair[1], moved[row], int(predictions[row]), label)
    for axis, head in zip(axes[0], heads, strict=True):
        axis.annotate(head, (0.5, 1), (0, 17), "axes fraction", "offset points", ha="center", fontsize=9, weight="bold")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    if shades is not None:
        bar = figure.colorbar(shades, ax=axes, shrink=0.6, aspect=40, pad=0.01)
        bar.set_label("perturbation", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def _draw(axis: Axes, image: Tensor, prediction: int, label: int) -> None:
    channels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    axis.imshow(channels.numpy(), cmap="gray", vmin=0, vmax=1)
    wrong = prediction != label
    axis.set_title(f"{prediction} (is {label})" if wrong else str(prediction), fontsize=8, pad=3)
    axis.title.set_color("tab:red" if wrong else "black")


def pick(success: Tensor, count: int) -> Tensor:
    """Positions of up to `count` images to show: half of them fooled by some attack and half not, as far as there are.

    Args:
        success: `(attacks, n)` bool.
        count: images wanted.
    """
    fooled = success.any(0)
    groups = fooled.nonzero()[:, 0], (~fooled).nonzero()[:, 0]
    first = min(len(groups[0]), max(count // 2, count - len(groups[1])))
    return torch.cat([groups[0][:first], groups[1][: count - first]])


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path`, whole or not at all; the format follows from its ending."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=130)
