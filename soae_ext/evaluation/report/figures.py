"""The sections of the report that show pictures: examples, perturbations, edges, curves and feature maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...plots import curve_chart, edge_chart, feature_chart
from ..edges import CONTROL
from ..series import Curve
from .markup import Markup, element, join, scrolling, table
from .pictures import Pictures, chart, describe, picture

__all__ = ["curves", "edges", "examples", "features", "perturbations"]

Document = Mapping[str, Any]

_COLUMNS = {
    "steps": ("steps", 0),
    "gradients": ("gradients", 1),
    "krylov_mean": ("mean m", 2),
    "krylov_max": ("max m", 0),
    "seconds": ("seconds", 1),
    "exact": ("exact products", None),
}


def examples(shown: Pictures) -> Markup | None:
    """For every chosen image: the image, and of every attack the perturbation and the adversarial image."""
    if not len(shown.rows) or not shown.adversarial:
        return None
    limit = max(float((moved - shown.images).abs().max()) for moved, _ in shown.adversarial.values())
    head = element(
        "tr",
        element("th", "image", scope="col"),
        element("th", "clean", scope="col"),
        *(element("th", name, scope="colgroup", colspan=2, class_="pair") for name in shown.adversarial),
    )
    rows = [_example(shown, place, limit) for place in range(len(shown.rows))]
    grid = element(
        "table",
        element("thead", head),
        element("tbody", *rows),
        class_="grid",
    )
    fooled = sum(
        any(int(predictions[place]) != int(label) for _, predictions in shown.adversarial.values())
        for place, label in enumerate(shown.labels)
    )
    told = f"{fooled} of these {len(shown.rows)} images are misclassified under some attack. "
    if limit == 0:
        legend = element("p", told, "No attack changed any of them.")
    else:
        legend = element(
            "p",
            told,
            "Below each image: the class that the network predicts, red where it is wrong. Perturbations (mean over "
            f"the channels) from −{limit:.3g} ",
            element("span", class_="scale diverging", role="img", aria_label="blue to red"),
            f" to +{limit:.3g}, the same scale for all. The images were chosen by whether they were fooled, not by how "
            "they look.",
            class_="muted",
        )
    return join([legend, scrolling(grid, "Images, perturbations and adversarial images")])


def _example(shown: Pictures, place: int, limit: float) -> Markup:
    index, label, image = int(shown.rows[place]), int(shown.labels[place]), shown.images[place]
    name = shown.class_name(label)
    cells = [element("td", _predicted(shown, image, int(shown.predictions[place]), label, f"image {index}, clean"))]
    for attack, (moved, predictions) in shown.adversarial.items():
        difference = (moved[place] - image).mean(0)
        alt = f"perturbation by {attack} of image {index}"
        drawn = picture(difference, alt, colours="RdBu_r", low=-limit, high=limit, class_=_size(shown))
        adversarial = f"image {index} under {attack}"
        cells.append(element("td", drawn, class_="pair"))
        cells.append(element("td", _predicted(shown, moved[place], int(predictions[place]), label, adversarial)))
    return element("tr", element("th", f"no. {index}: {name}", scope="row"), *cells)


def _predicted(shown: Pictures, image: Tensor, prediction: int, label: int, what: str) -> Markup:
    name, wrong = shown.class_name(prediction), prediction != label
    alt = f"{what}, predicted {name}" + (f", is {shown.class_name(label)}" if wrong else "")
    return join([picture(image, alt, class_=_size(shown)), element("span", name, class_="wrong" if wrong else None)])


def _size(shown: Pictures) -> str | None:
    return "fine" if shown.fine else None


def perturbations(shown: Pictures) -> Markup | None:
    """Where each attack changes the images, on average."""
    if not shown.mean_magnitude:
        return None
    largest = max(float(each.max()) for each in shown.mean_magnitude.values())
    told = element(
        "p",
        "Mean of |d| over all images, pixel by pixel, from 0 ",
        element("span", class_="scale heat", role="img", aria_label="black to yellow"),
        f" to {largest:.3g}.",
        class_="muted",
    )
    cells = [
        element("td", picture(each, f"mean perturbation of {name}", colours="magma", high=largest, class_=_size(shown)))
        for name, each in shown.mean_magnitude.items()
    ]
    grid = element(
        "table",
        element("thead", element("tr", *(element("th", name, scope="col") for name in shown.mean_magnitude))),
        element("tbody", element("tr", *cells)),
        class_="grid",
    )
    return join([told, scrolling(grid, "Mean magnitude of the perturbations")])


def edges(document: Document, shown: Pictures) -> Markup | None:
    """Correlation of the perturbations with the edges of the images."""
    statistics: Sequence[Mapping[str, Any]] = document.get("edges") or ()
    if not statistics:
        return None
    means = {each["name"]: _mean(each["pearson"], 2) or "not defined" for each in statistics}
    drawn = chart(lambda theme: edge_chart(statistics, theme), f"Correlation with edges. {describe(means)}")
    rows: list[list[str | None]] = [
        [
            each["name"],
            _with_interval(each["pearson"], 3),
            _with_interval(each["spearman"], 3),
            _with_interval(each["edge_energy"], 1, 100),
            None if each["saturated"] is None else f"{100 * each['saturated']:.0f} %",
            f"{each['images']:,}",
        ]
        for each in statistics
    ]
    expected = 100 * statistics[0]["edge_energy"]["expected"]
    body = table(
        "Over the pixels of each image, averaged over the images that the attack changed; 95 % bootstrap intervals",
        [
            "attack",
            "Pearson",
            "Spearman",
            f"% of energy on {expected:.1f} % strongest edges",
            "changed pixels at the radius",
            "images",
        ],
        rows,
    )
    told = [
        "Edges are the magnitude of the Sobel gradient; |d| is the perturbation’s size at a pixel. A perturbation that "
        f"knows nothing of edges has correlation 0 and {expected:.1f} % of its energy on the strongest tenth of them.",
        *_saturation(statistics),
    ]
    paragraphs = [element("p", line) for line in told]
    return join([*paragraphs, element("figure", drawn), body, _edge_pictures(shown)])


def _saturation(statistics: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    flat = [each["name"] for each in statistics if (each["saturated"] or 0) > 0.5 and each["name"] != CONTROL]
    if flat:
        yield (
            f"{', '.join(flat)}: most changed pixels sit at the radius, as steps along signs put them there, and "
            "|d| is nearly constant and can follow an edge only where the range [0, 1] of the pixels clips it. What "
            f"clipping alone makes is the line “{CONTROL}”, random signs of the same size: only a difference from that "
            "line says something about an attack."
        )


def _edge_pictures(shown: Pictures) -> Markup | None:
    """Edges of some images and |d| of every attack beside them."""
    if not len(shown.rows) or not shown.adversarial:
        return None
    rows = []
    for place in range(min(4, len(shown.rows))):
        index, image = int(shown.rows[place]), shown.images[place]
        cells = [
            element("td", picture(image, f"image {index}", class_=_size(shown))),
            element("td", _map(shown, shown.edges[place], f"edges of image {index}")),
        ]
        for name, (moved, _) in shown.adversarial.items():
            size = (moved[place] - image).square().mean(0).sqrt()
            cells.append(element("td", _map(shown, size, f"magnitude of the perturbation by {name} of image {index}")))
        rows.append(element("tr", element("th", f"no. {index}", scope="row"), *cells))
    titles = ["", "image", "edges", *(f"|d| {name}" for name in shown.adversarial)]
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    caption = "Edges and magnitudes of perturbations, each picture on its own scale from 0"
    grid = element("table", element("thead", head), element("tbody", *rows), class_="grid")
    return scrolling(grid, caption)


def _map(shown: Pictures, values: Tensor, alt: str) -> Markup:
    return picture(values, alt, colours="magma", high=float(values.max()), class_=_size(shown))


def curves(document: Document) -> Markup | None:
    """All curves, each with its numbers behind it."""
    found = [Curve.from_json(each) for each in document.get("curves") or ()]
    if not found:
        return None
    links = (element("li", element("a", curve.title, href=f"#curve-{curve.key}")) for curve in found)
    drawn = element("div", *(_curve(curve) for curve in found), class_="charts")
    return join([element("ul", *links), drawn])


def _curve(curve: Curve) -> Markup:
    ends = {line.name: f"{_share(line.y[0])} to {_share(line.y[-1])}" for line in curve.series if line.x}
    alt = f"{curve.title}, from the smallest to the largest {curve.x_label}. {describe(ends)}"
    extra = [key for key in _COLUMNS if any(key in line.extra for line in curve.series)]
    if curve.key == "gradients":
        extra.remove("gradients")
    rows: list[list[str | None]] = []
    for line in curve.series:
        for place, x in enumerate(line.x):
            share = _share(line.y[place])
            if line.low is not None and line.high is not None:
                share += f" ({100 * line.low[place]:.1f} to {100 * line.high[place]:.1f})"
            columns = [line.extra[key][place] if key in line.extra else math.nan for key in extra]
            rows.append([line.name, f"{x:.4g}", share, *(_cell(key, v) for key, v in zip(extra, columns, strict=True))])
    head = ["", curve.x_label, f"{curve.y_label} (95 %)", *(_COLUMNS[key][0] for key in extra)]
    numbers = element("details", element("summary", "Numbers"), table(curve.title, head, rows))
    caption = element("figcaption", element("strong", curve.title), curve.note)
    drawn = chart(lambda theme: curve_chart(curve, theme), alt)
    return element("figure", caption, drawn, numbers, id=f"curve-{curve.key}")


def _cell(key: str, value: float) -> str | None:
    digits = _COLUMNS[key][1]
    if not math.isfinite(value):
        return None
    return _share(value) if digits is None else f"{value:,.{digits}f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def features(document: Document, shown: Pictures) -> Markup | None:
    """Activation maps of one layer, and how far the attacks move its features."""
    analysis = document.get("features")
    if not analysis or not analysis.get("attacks"):
        return None
    statistics = analysis["attacks"]
    means = {each["name"]: _mean(each["distortion"], 3) or "not defined" for each in statistics}
    drawn = chart(lambda theme: feature_chart(statistics, theme), f"Feature distortion. {describe(means)}")
    rows: list[list[str | None]] = [
        [each["name"], *_distortion(each["distortion"]), *_distortion(each["fooled"])] for each in statistics
    ]
    body = table(
        "Distortion |f(x') – f(x)| / |f(x)| of the features, mean over images with 95 % bootstrap interval",
        ["attack", "changed images", "number", "images that fool", "number"],
        rows,
    )
    told = element(
        "p", "f is the output of the module ", element("code", str(analysis["layer"])), "; norms are 2-norms."
    )
    return join([told, element("figure", drawn), body, _feature_maps(shown)])


def _distortion(value: Mapping[str, Any]) -> list[str | None]:
    return [_with_interval(value, 3), f"{value['count']:,}"]


def _feature_maps(shown: Pictures) -> Markup | None:
    if not shown.maps:
        return None
    rows = []
    for place in range(min(4, len(shown.rows))):
        index = int(shown.rows[place])
        largest = max(float(each[place].max()) for each in shown.maps.values())
        cells = [
            element(
                "td",
                picture(
                    each[place],
                    f"activation map of image {index}, {name}",
                    colours="viridis",
                    high=largest,
                    class_=_size(shown),
                ),
            )
            for name, each in shown.maps.items()
        ]
        first = element("td", picture(shown.images[place], f"image {index}", class_=_size(shown)))
        rows.append(element("tr", element("th", f"no. {index}", scope="row"), first, *cells))
    head = element("tr", *(element("th", title, scope="col") for title in ("", "image", *shown.maps)))
    caption = (
        "Activation maps, mean over the channels of the absolute values; a row has one scale from 0 to its largest"
    )
    grid = element("table", element("thead", head), element("tbody", *rows), class_="grid")
    return scrolling(grid, caption)


def _mean(value: Mapping[str, Any], digits: int) -> str | None:
    return None if value["mean"] is None else f"{value['mean']:.{digits}f}"


def _with_interval(value: Mapping[str, Any], digits: int, scale: float = 1) -> str | None:
    if value["mean"] is None:
        return None
    low, high = value["interval_95"]
    return f"{scale * value['mean']:.{digits}f} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"
