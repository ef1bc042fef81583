"""The report as one HTML file that needs nothing else: no network, no script, no second file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..._files import replacing
from ..document import strict
from . import figures, sections
from .layout import layout
from .markup import Markup
from .pictures import Pictures

__all__ = ["page", "write_html"]

Document = Mapping[str, Any]


def write_html(document: Document, pictures: Pictures, path: Path) -> None:
    """Write the report to `path`, whole or not at all.

    Args:
        document: as `soae evaluate` writes it as JSON. `clean` and `attacks` must be there; a section whose part is
            missing is left out.
        pictures: what is shown of the images.
        path: the file to write or replace.

    Raises:
        OSError: `path` cannot be written.
    """
    text = page(document, pictures)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(document: Document, pictures: Pictures) -> Markup:
    """The HTML of the report."""
    document = strict(document)
    parts: list[tuple[str, str, Markup | None]] = [
        ("summary", "Summary", sections.summary(document)),
        ("results", "Results", sections.results(document)),
        ("notes", "What to keep in mind", sections.notes(document)),
        ("worst-case", "Worst case", sections.worst_case(document)),
        ("sanity", "Sanity checks", sections.sanity(document)),
        ("examples", "Examples", figures.examples(pictures)),
        ("perturbations", "Perturbations", figures.perturbations(pictures)),
        ("curves", "Curves", figures.curves(document)),
        ("edges", "Edges", figures.edges(document, pictures)),
        ("features", "Features", figures.features(document, pictures)),
        ("setup", "Setup", sections.setup(document)),
    ]
    title, lead = _title(document)
    return layout(title, lead, [(key, name, [body]) for key, name, body in parts if body is not None])


def _title(document: Document) -> tuple[str, str]:
    """Heading, and a line with network, data and radius."""
    model = document.get("model")
    name = model.get("name") or model.get("spec") if isinstance(model, Mapping) else model
    title = f"Robustness of {name}" if name else "Robustness evaluation"
    data, config = document.get("data") or {}, document.get("config") or {}
    facts = [
        f"{data['images']:,} images of {data.get('name', 'unnamed data')}" if "images" in data else None,
        f"{config.get('norm', 'Linf')} eps = {config['eps']:.4g}" if isinstance(config.get("eps"), float) else None,
        f"seed {config['seed']}" if "seed" in config else None,
        f"{len(document['attacks'])} attacks",
        str(document["date"]).replace("T", " ").replace("+00:00", " UTC") if "date" in document else None,
    ]
    return title, " · ".join(fact for fact in facts if fact)
