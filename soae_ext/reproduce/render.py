"""Sections as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .._files import replacing
from ..evaluation.markdown import pipe_table
from ..evaluation.report.layout import layout
from ..evaluation.report.markup import Markup, element, join, table
from .tables import Section

__all__ = ["html", "markdown", "write_text"]

_TITLE = "The tables of the paper, reproduced"


def markdown(sections: Sequence[Section]) -> str:
    """The sections as Markdown."""
    parts = [f"# {_TITLE}"]
    for section in sections:
        parts += [f"## {section.title}", *section.paragraphs]
        if section.bullets:
            parts.append("\n".join(f"- {line}" for line in section.bullets))
        for grid in section.grids:
            parts += [f"**{grid.caption}**", pipe_table([grid.head, *grid.rows])]
    return "\n\n".join(parts) + "\n"


def html(sections: Sequence[Section]) -> Markup:
    """The sections as a page that needs no network and runs no scripts."""
    return layout(_TITLE, None, [(f"section-{i}", each.title, _content(each)) for i, each in enumerate(sections)])


def _content(section: Section) -> list[Markup | None]:
    lines = (element("li", _inline(line)) for line in section.bullets)
    return [
        *(element("p", _inline(text)) for text in section.paragraphs),
        element("ul", *lines) if section.bullets else None,
        *(
            table(
                grid.caption.replace("`", ""),
                [head.replace("`", "") for head in grid.head],
                [[_inline(cell) for cell in row] for row in grid.rows],
                text_columns=grid.text,
            )
            for grid in section.grids
        ),
    ]


def write_text(text: str, path: Path) -> None:
    """Write `text` to `path`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _inline(text: str) -> Markup:
    """Text with Markdown's `code` and **bold** as elements."""
    parts = []
    for piece in re.split(r"(`[^`]+`|\*\*.+?\*\*)", text):
        if piece.startswith("`") and piece.endswith("`") and len(piece) > 2:
            parts.append(element("code", piece[1:-1]))
        elif piece.startswith("**") and len(piece) > 4:
            parts.append(element("strong", piece[2:-2]))
        else:
            parts.append(join([piece]))
    return join(parts)
