"""The HTML report of an evaluation, and its figures as files for other documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...plots import (
    accuracy_chart,
    curve_chart,
    edge_chart,
    feature_chart,
    feature_grid,
    image_grid,
    save,
)
from ..series import Curve
from .page import write_html
from .pictures import Pictures, collect_pictures

__all__ = ["Pictures", "collect_pictures", "save_figures", "write_html"]


def save_figures(document: Mapping[str, Any], pictures: Pictures, directory: Path) -> list[Path]:
    """Write the charts and grids of the report as PNG files, for documents that can only embed pictures.

    Args:
        document, pictures: as for :func:`write_html`.
        directory: an existing one.

    Returns:
        The files: `accuracy.png`, `examples.png`, `curve-eps.png` and so on; those that the document has data for.

    Raises:
        OSError: a file cannot be written.
    """
    figures = {"accuracy": accuracy_chart(document)}
    if len(pictures.rows) and pictures.adversarial:
        figures["examples"] = image_grid(pictures.images, pictures.labels, pictures.predictions, pictures.adversarial)
    for value in document.get("curves") or ():
        figures[f"curve-{value['key']}"] = curve_chart(Curve.from_json(value))
    if document.get("edges"):
        figures["edges"] = edge_chart(document["edges"])
    if document.get("features"):
        figures["features"] = feature_chart(document["features"]["attacks"])
    if pictures.maps:
        figures["feature-maps"] = feature_grid(pictures.images[:4], {n: m[:4] for n, m in pictures.maps.items()})
    files = []
    for name, figure in figures.items():
        files.append(directory / f"{name}.png")
        save(figure, files[-1])
    return files
