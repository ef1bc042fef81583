"""The pictures of a report: which images are shown, what the network makes of them, and their encoding."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor, nn

from ...data import ImageData
from ...plots import DARK, LIGHT, Theme, pick
from ..edges import edge_map, magnitude
from ..features import activation_maps
from ..measure import Measurement
from .markup import Markup, element

__all__ = ["Pictures", "chart", "collect_pictures", "picture"]

# Images of more pixels a side are shown larger, and fewer of them.
_FINE = 64


@dataclass(frozen=True, eq=False)
class Pictures:
    """What a report shows of some images and of all perturbations. Tensors are on the CPU.

    Attributes:
        rows: `(k,)` positions of the shown images in the data.
        images: `(k, C, H, W)` in [0, 1].
        labels, predictions: `(k,)`, the latter on the clean images.
        adversarial: for each attack its images, like `images`, and the predictions on them.
        edges: `(k, H, W)` Sobel magnitudes of the images.
        mean_magnitude: for each attack `(H, W)`, |d| averaged over all images of the data.
        maps: activation maps `(k, h, w)` of the clean images and of each attack's; empty if not wanted.
        layer: the module that the maps are of.
        classes: names of the classes; empty if not known.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor
    predictions: Tensor
    adversarial: dict[str, tuple[Tensor, Tensor]]
    edges: Tensor
    mean_magnitude: dict[str, Tensor]
    maps: dict[str, Tensor] = field(default_factory=dict)
    layer: str = ""
    classes: Sequence[str] = ()

    def class_name(self, number: Tensor | int) -> str:
        number = int(number)
        return str(self.classes[number]) if number < len(self.classes) else str(number)

    @property
    def fine(self) -> bool:
        """Whether the images have many pixels."""
        return max(self.images.shape[-2:]) > _FINE


def collect_pictures(
    model: nn.Module,
    data: ImageData,
    measurements: Sequence[Measurement],
    *,
    device: torch.device | str = "cpu",
    layer: str | None = None,
    count: int | None = None,
) -> Pictures:
    """Choose images, half of them fooled by some attack and half not, as far as there are, and look at them.

    Args:
        model: on `device`.
        data: the images, on the CPU.
        measurements: of the attacks on them; those that kept no images are left out.
        device: where the model is.
        layer: name of the module whose activation maps are wanted; `None` draws none.
        count: images to show; `None` is 8, or 4 of images with more than 64 pixels a side.

    Raises:
        ValueError: `layer` is no module with maps.
    """
    shown = [m for m in measurements if len(m.x_adv) == len(data)]
    count = count or (4 if max(data.images.shape[-2:]) > _FINE else 8)
    success = torch.stack([m.success for m in shown]) if shown else torch.zeros(1, len(data), dtype=torch.bool)
    rows = pick(success, count)
    images = data.images[rows]

    def predict(batch: Tensor) -> Tensor:
        with torch.no_grad():
            classes: Tensor = model(batch.to(device)).argmax(1)
        return classes.cpu()

    moved = {m.name: m.x_adv[rows] for m in shown}
    maps = {}
    if layer is not None:
        maps = {name: activation_maps(model, layer, x.to(device)) for name, x in {"clean": images, **moved}.items()}
    return Pictures(
        rows=rows,
        images=images,
        labels=data.labels[rows],
        predictions=predict(images),
        adversarial={name: (x, predict(x)) for name, x in moved.items()},
        edges=edge_map(images),
        mean_magnitude={m.name: magnitude(data.images, m.x_adv).mean(0) for m in shown},
        maps=maps,
        layer=layer or "",
        classes=tuple(getattr(data, "classes", None) or ()),
    )


def picture(
    image: Tensor,
    alt: str,
    *,
    colours: str = "gray",
    low: float = 0.0,
    high: float = 1.0,
    class_: str | None = None,
) -> Markup:
    """An `img` element that holds its picture, pixel for pixel, as PNG.

    Args:
        image: `(H, W)`, drawn with the colour map `colours` from `low` to `high`; or `(C, H, W)`: colours in [0, 1] if
            C = 3, else the mean over the channels.
        alt: what it shows, for readers who cannot see it.
        colours: name of a colour map.
        low, high: ends of the colour map.
        class_: of the element.
    """
    values = image.float()
    if values.ndim == 3:
        values = values.permute(1, 2, 0).clamp(0, 1) if len(values) == 3 else values.mean(0)
    buffer = BytesIO()
    imsave(buffer, values.numpy(), format="png", cmap=colours, vmin=low, vmax=high if high > low else low + 1)
    height, width = image.shape[-2:]
    source = _uri("image/png", buffer.getvalue())
    return element("img", src=source, alt=alt, width=width, height=height, class_=class_)


def chart(draw: Callable[[Theme], Figure], alt: str) -> Markup:
    """A `picture` element with a chart for light and one for dark pages, as SVG.

    Args:
        draw: makes the figure in the colours of a theme.
        alt: what it shows, for readers who cannot see it.
    """
    light, dark = (_svg(draw(theme)) for theme in (LIGHT, DARK))
    return element(
        "picture",
        element("source", srcset=_uri("image/svg+xml", dark), media="(prefers-color-scheme: dark)"),
        element("img", src=_uri("image/svg+xml", light), alt=alt),
    )


def _svg(figure: Figure) -> bytes:
    buffer = BytesIO()
    # Without a date and with a fixed salt, equal figures give equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "soae"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def describe(values: Mapping[str, str]) -> str:
    """`a: 1, b: 2` for an alternative text."""
    return ", ".join(f"{name}: {value}" for name, value in values.items())
