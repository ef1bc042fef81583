"""Pictures of adversarial images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .style import LIGHT, new_figure

__all__ = ["feature_grid", "image_grid", "pick"]


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
    figure = new_figure(1.25 * columns + 0.7, 1.42 * rows + 0.75, LIGHT)
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
    _show(axis, image)
    wrong = prediction != label
    axis.set_title(f"{prediction} (is {label})" if wrong else str(prediction), fontsize=8, pad=3)
    axis.title.set_color("tab:red" if wrong else "black")


def _show(axis: Axes, image: Tensor) -> None:
    channels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    axis.imshow(channels.numpy(), cmap="gray", vmin=0, vmax=1)


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


def feature_grid(images: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """One row per image: the image, then the activation map of each kind of input, all of a row on one scale.

    Args:
        images: the clean images, `(k, C, H, W)` in [0, 1], C = 1 or 3.
        maps: for each kind of input (`"clean"`, and the names of the attacks) `(k, h, w)`, at least 0.
    """
    rows, columns = len(images), 1 + len(maps)
    figure = new_figure(1.25 * columns, 1.3 * rows + 0.3, LIGHT)
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        _show(axes[row, 0], images[row])
        largest = max((float(each[row].max()) for each in maps.values()), default=0.0) or 1.0
        for column, each in enumerate(maps.values(), start=1):
            axes[row, column].imshow(each[row].numpy(), cmap="viridis", vmin=0, vmax=largest)
    for axis, head in zip(axes[0], ("image", *maps), strict=True):
        axis.set_title(head, fontsize=9, weight="bold")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure
