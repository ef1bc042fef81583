"""Charts of robust accuracy, curves, edges and features, from the parts of the JSON document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ..evaluation.series import Curve, Series
from .style import LIGHT, MARKERS, Theme, new_figure, style_axes

__all__ = ["accuracy_chart", "curve_chart", "edge_chart", "feature_chart"]

_WIDTH = 5.0


def accuracy_chart(document: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Bars of the clean accuracy, the robust accuracy under every attack and the worst case, with 95 % intervals.

    Args:
        document: with `clean`, `attacks` and, if there is one, `worst_case`, as `soae evaluate` writes it.
        theme: colours.
    """
    rows = [("clean", document["clean"]), *((each["name"], each["robust"]) for each in document["attacks"])]
    if document.get("worst_case"):
        rows.append(("worst case", document["worst_case"]))
    figure = new_figure(_WIDTH, 0.34 * len(rows) + 0.8, theme)
    axes = figure.subplots()
    style_axes(axes, theme, grid="x")
    for place, (name, value) in enumerate(rows):
        share, (low, high) = value["accuracy"], value["interval_95"]
        colour = {"clean": theme.lines[2], "worst case": theme.lines[1]}.get(name, theme.lines[0])
        axes.barh(place, share, color=colour, height=0.62)
        # Rounding may put an end of the interval of 0 or 1 on the wrong side.
        spread = [[max(0.0, share - low)], [max(0.0, high - share)]]
        axes.errorbar(share, place, xerr=spread, color=theme.text, capsize=3, linewidth=1.2)
        axes.text(min(high, 1) + 0.015, place, f"{100 * share:.1f} %", va="center", fontsize=9, color=theme.text)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(axis="y", labelcolor=theme.text)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("accuracy (95 % Wilson interval)")
    return figure


def curve_chart(curve: Curve, theme: Theme = LIGHT) -> Figure:
    """Robust accuracy with its 95 % band against the quantity of `curve`.

    The study of thresholds has two more panels, for the Krylov dimensions (mean, and largest dotted) and for the time;
    in the study of the difference step, dashed lines give the accuracy with exact products.
    """
    panels = 3 if curve.key == "threshold" else 1
    figure = new_figure(_WIDTH, 3.7 + 1.7 * (panels - 1), theme)
    heights = [2.2] + [1.0] * (panels - 1)
    grid = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=heights)
    axes = grid[:, 0]
    for panel in axes:
        style_axes(panel, theme)
        if curve.x_log:
            panel.set_xscale(
                "symlog" if _has_zero(curve) else "log", **({"linthresh": 1.0} if _has_zero(curve) else {})
            )
    for number, line in enumerate(curve.series):
        colour, marker = theme.lines[number % len(theme.lines)], MARKERS[number % len(MARKERS)]
        # Earlier lines have larger markers, so that one on top of another leaves it visible.
        size = max(3.5, 8.0 - 1.5 * number)
        axes[0].plot(line.x, line.y, color=colour, marker=marker, markersize=size, linewidth=1.6, label=line.name)
        if line.low is not None:
            _band(axes[0], line, colour)
        if "exact" in line.extra:
            axes[0].plot(line.x, line.extra["exact"], color=colour, linestyle="--", linewidth=1)
        if panels == 3:
            _cost_panels(axes[1], axes[2], line, colour, marker)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
    axes[0].set_ylim(*_limits(curve))
    if curve.key == "iterations":
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes[0].set_ylabel(curve.y_label)
    axes[-1].set_xlabel(curve.x_label)
    if panels == 3:
        axes[1].set_ylabel("Krylov dim. m")
        axes[2].set_ylabel("seconds")
        axes[1].set_ylim(bottom=0)
        axes[2].set_ylim(bottom=0)
    if curve.series:
        _legend(figure, axes[0], theme)
    return figure


def _band(axes: Axes, line: Series, colour: str) -> None:
    low, high = line.low or line.y, line.high or line.y
    if len(line.x) == 1:
        spread = [[max(0.0, line.y[0] - low[0])], [max(0.0, high[0] - line.y[0])]]
        axes.errorbar(line.x, line.y, yerr=spread, color=colour, capsize=3, linewidth=1.2)
    else:
        axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)


def _legend(figure: Figure, axes: Axes, theme: Theme) -> None:
    """Above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", fontsize=9, frameon=False, labelcolor=theme.text,
        ncols=min(len(labels), 4 if max(map(len, labels)) < 14 else 2),
    )  # fmt: skip


def _cost_panels(dims: Axes, seconds: Axes, line: Series, colour: str, marker: str) -> None:
    for column, style in (("krylov_mean", "-"), ("krylov_max", ":")):
        if column in line.extra:
            dims.plot(line.x, line.extra[column], color=colour, marker=marker, markersize=4, linestyle=style)
    if "seconds" in line.extra:
        seconds.plot(line.x, line.extra["seconds"], color=colour, marker=marker, markersize=4)


def _has_zero(curve: Curve) -> bool:
    return any(x <= 0 for line in curve.series for x in line.x)


def _limits(curve: Curve) -> tuple[float, float]:
    """All of the bands, and at least 20 points of accuracy, so that noise does not look like a difference."""
    values = [y for line in curve.series for y in (*line.y, *(line.low or ()), *line.extra.get("exact", ()))]
    lowest = min((y for y in values if math.isfinite(y)), default=0.0)
    return max(-0.02, min(0.8, math.floor(10 * lowest - 0.2) / 10)), 1.02


def edge_chart(statistics: Sequence[Mapping[str, Any]], theme: Theme = LIGHT) -> Figure:
    """Correlations of |d| with edge strength, and energy on the strongest edges, each with its 95 % interval.

    Args:
        statistics: as :meth:`soae_ext.evaluation.edges.EdgeStatistics.as_json` gives them.
        theme: colours.
    """
    figure = new_figure(_WIDTH, 0.42 * len(statistics) + 1.2, theme)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes in (left, right):
        style_axes(axes, theme, grid="x")
    for key, offset, marker, colour in (("pearson", -0.12, "o", 0), ("spearman", 0.12, "s", 1)):
        values = [each[key] for each in statistics]
        _intervals(left, values, offset, theme.lines[colour], marker, key.capitalize())
    left.axvline(0, color=theme.muted, linewidth=1)
    left.set_xlabel("correlation with edges", fontsize=9)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(4))
    _legend(figure, left, theme)
    _intervals(right, [each["edge_energy"] for each in statistics], 0, theme.lines[2], "o", "")
    for each in statistics[:1]:
        right.axvline(each["edge_energy"]["expected"], color=theme.muted, linestyle="--", linewidth=1)
    right.set_xlim(left=0)
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_xlabel("energy on strong edges\n(dashed: if spread evenly)", fontsize=9)
    left.set_yticks(range(len(statistics)), [str(each["name"]) for each in statistics])
    left.tick_params(axis="y", labelcolor=theme.text)
    left.set_ylim(len(statistics) - 0.5, -0.5)
    return figure


def feature_chart(statistics: Sequence[Mapping[str, Any]], theme: Theme = LIGHT) -> Figure:
    """Feature distortion of every attack with its 95 % interval, over all changed images and over those that fool.

    Args:
        statistics: as :meth:`soae_ext.evaluation.features.FeatureStatistics.as_json` gives them.
        theme: colours.
    """
    figure = new_figure(_WIDTH, 0.42 * len(statistics) + 1.0, theme)
    axes = figure.subplots()
    style_axes(axes, theme, grid="x")
    for key, offset, marker, colour, label in (
        ("distortion", -0.12, "o", 0, "all changed images"),
        ("fooled", 0.12, "s", 1, "images that fool the network"),
    ):
        _intervals(axes, [each[key] for each in statistics], offset, theme.lines[colour], marker, label)
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(statistics)), [str(each["name"]) for each in statistics])
    axes.tick_params(axis="y", labelcolor=theme.text)
    axes.set_ylim(len(statistics) - 0.5, -0.5)
    axes.set_xlabel("feature distortion |f(x') - f(x)| / |f(x)|")
    _legend(figure, axes, theme)
    return figure


def _intervals(
    axes: Axes, values: Sequence[Mapping[str, Any]], offset: float, colour: str, marker: str, label: str
) -> None:
    """A marker with its interval in every row that has a mean."""
    rows = [row for row, value in enumerate(values) if value["mean"] is not None]
    means = np.array([values[row]["mean"] for row in rows], dtype=float)
    bounds = np.array([values[row]["interval_95"] for row in rows], dtype=float).reshape(-1, 2)
    spread = np.maximum(0, np.stack([means - bounds[:, 0], bounds[:, 1] - means]))
    places = np.array(rows, dtype=float) + offset
    axes.errorbar(means, places, xerr=spread, fmt=marker, color=colour, markersize=5, capsize=3, label=label)
