"""The files that `soae evaluate` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._files import check_writable
from ..data import ImageData
from ..evaluation import Runner
from ..evaluation.document import write_json
from ..evaluation.markdown import write_markdown
from ..evaluation.report import collect_pictures, save_figures, write_html
from ..evaluation.study import Study
from ..evaluation.table import cells

__all__ = ["Outputs", "check_directory", "write_outputs"]


@dataclass(frozen=True)
class Outputs:
    """The document as JSON, Markdown and HTML, and the folder of an unfinished run."""

    json: Path
    markdown: Path
    html: Path
    parts: Path

    @classmethod
    def beside(cls, path: Path) -> Outputs:
        """`path` and the others beside it."""
        return cls(path, path.with_suffix(".md"), path.with_suffix(".html"), path.with_name(path.name + ".parts"))


def check_directory(path: Path) -> None:
    """Raise `OSError` if files cannot be written into `path`, a directory that is there or can be made."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is no directory")
    check_writable(path / "accuracy.png" if path.is_dir() else path)


def write_outputs(
    document: Mapping[str, Any],
    study: Study,
    runner: Runner,
    data: ImageData,
    outputs: Outputs,
    *,
    examples: int | None = None,
    figures: Path | None = None,
) -> None:
    """Write the three files, each whole or not at all; the JSON last, so that its presence means that all are there.

    With `figures`, a directory that is made if need be, the charts and grids of the report are written there as PNG.

    Raises:
        OSError: a file cannot be written.
    """
    layer = study.features.layer if study.features else None
    pictures = collect_pictures(
        runner.model, data, study.measurements, device=runner.device, layer=layer, count=examples
    )
    rows = cells(
        study.clean, study.measurements, study.worst, quality=any(m.psnr is not None for m in study.measurements)
    )
    write_html(document, pictures, outputs.html)
    write_markdown(document, rows, outputs.markdown)
    if figures is not None:
        figures.mkdir(exist_ok=True)
        save_figures(document, pictures, figures)
    write_json(document, outputs.json)
