"""The frame of a page: head, contents, sections, footer."""

from __future__ import annotations

from collections.abc import Sequence

from .markup import Markup, element, join
from .style import CSS

__all__ = ["Part", "layout"]

# Key, title and content of a section.
Part = tuple[str, str, Sequence[Markup | None]]


def layout(title: str, lead: str | None, parts: Sequence[Part]) -> Markup:
    """A whole HTML page that needs no network and runs no scripts.

    Args:
        title: of the page.
        lead: a line below it; `None` leaves it out.
        parts: the sections; their keys are the anchors that the contents link to.
    """
    links = (element("li", element("a", name, href=f"#{key}")) for key, name, _ in parts)
    navigation = element(
        "nav", element("h2", "Contents", id="contents"), element("ol", *links), aria_labelledby="contents"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Without an icon of its own, a browser would ask the server for one.
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(CSS)),
    )
    body = element(
        "body",
        element("a", "Skip to the results", href="#main", class_="skip"),
        element(
            "div",
            element("header", element("h1", title), lead and element("p", lead, class_="lead")),
            navigation,
            element("main", *(_section(*part) for part in parts), id="main"),
            element("footer", "Written by soae_ext. This file needs no network and runs no scripts."),
            class_="layout",
        ),
    )
    return join([Markup("<!doctype html>\n"), element("html", head, body, lang="en"), Markup("\n")])


def _section(key: str, title: str, content: Sequence[Markup | None]) -> Markup:
    return element("section", element("h2", title, id=f"{key}-title"), *content, id=key, aria_labelledby=f"{key}-title")
