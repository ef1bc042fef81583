"""HTML elements whose text is escaped by construction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Markup", "element", "join", "scrolling", "table"]

_VOID = frozenset({"img", "link", "meta", "source"})


class Markup(str):
    """Text that is HTML already. Any other string is escaped where it enters an element."""

    __slots__ = ()


def element(tag: str, *content: str | None, **attributes: str | int | bool | None) -> Markup:
    """`<tag attributes>content</tag>`.

    Args:
        tag: name of the element.
        content: children, escaped unless they are `Markup`; `None` is left out.
        attributes: values are escaped; `None` and `False` leave the attribute out, `True` writes it without a value.
            A trailing underscore is dropped (`class_`), other underscores become hyphens.
    """
    written = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        written.append(f" {name}" if value is True else f' {name}="{escape(str(value), quote=True)}"')
    opening = f"<{tag}{''.join(written)}>"
    return Markup(opening if tag in _VOID else f"{opening}{join(content)}</{tag}>")


def join(content: Iterable[str | None]) -> Markup:
    """The parts one after the other; what is not `Markup` is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in content if part is not None))


def scrolling(content: Markup, caption: str) -> Markup:
    """`caption`, and below it `content` in a box that scrolls where the page is too narrow, reachable by keyboard."""
    box = element("div", content, class_="scroll", role="region", aria_label=caption, tabindex=0)
    return join([element("p", caption, class_="caption"), box])


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str | None]],
    *,
    footer: Sequence[str | None] | None = None,
    text_columns: Iterable[int] = (),
) -> Markup:
    """A table whose first column names the rows; missing cells show a dash.

    Args:
        caption: what the table holds.
        head: names of the columns.
        rows: cells, as many as there are columns.
        footer: a last row that stands out.
        text_columns: columns besides the first that hold running text and are aligned to the left.
    """
    left = set(text_columns)

    def line(cells: Sequence[str | None], **attributes: str) -> Markup:
        first, *others = ("–" if cell is None else cell for cell in cells)
        rest = (
            element("td", cell, class_="text" if place in left else None) for place, cell in enumerate(others, start=1)
        )
        return element("tr", element("th", first, scope="row"), *rest, **attributes)

    titles = (element("th", name, scope="col", class_="text" if n in left else None) for n, name in enumerate(head))
    parts = [
        element("thead", element("tr", *titles)),
        element("tbody", *(line(row) for row in rows)),
    ]
    if footer is not None:
        parts.append(element("tfoot", line(footer)))
    return scrolling(element("table", *parts, class_="prose" if left else None), caption)
