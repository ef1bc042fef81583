"""The evaluation as Markdown, for issues, pull requests and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._files import replacing
from .document import strict

__all__ = ["markdown", "pipe_table", "write_markdown"]

Document = Mapping[str, Any]


def write_markdown(document: Document, cells: Sequence[Sequence[str]], path: Path) -> None:
    """Write :func:`markdown` to `path`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    text = markdown(document, cells)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown(document: Document, cells: Sequence[Sequence[str]]) -> str:
    """The document as text; everything in it but the arrays per image.

    Args:
        document: see :mod:`soae_ext.evaluation.document`.
        cells: head and rows of the table of attacks, see :func:`soae_ext.evaluation.table.cells`.
    """
    document = strict(document)
    config, data = document["config"], document["data"]
    parts = [
        f"# Robustness of {document['model']['name']}",
        f"{data['images']} images of {data['name']}, {config['norm']} eps = {config['eps']:.6g}, "
        f"seed {config['seed']}, {document['date']}.",
        pipe_table(cells),
        "Accuracies with Wilson's 95 % interval; gradients and forwards per image (an exact Hessian-vector product "
        "counts as 2 gradients); PSNR in dB and SSIM over the changed images; seconds added up over the batches.",
        *_worst_case(document),
        *_bullets("Notes", document.get("notes") or ()),
        *_sanity(document),
        *(_curve(curve) for curve in document.get("curves") or ()),
        *_edges(document),
        *_features(document),
        *_setup(document),
    ]
    return "\n\n".join(parts) + "\n"


def pipe_table(rows: Iterable[Sequence[str]]) -> str:
    """A table of head and rows, the first column to the left and the others to the right."""
    head, *rest = ([_cell(value) for value in row] for row in rows)
    rule = [":--", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rest))


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def _bullets(title: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return [f"## {title}", "\n".join(f"- {line}" for line in lines)] if lines else []


def _worst_case(document: Document) -> list[str]:
    worst = document["worst_case"]
    rows = [
        [name, str(count), str(worst["only_by"][name])]
        for name, count in sorted(worst["broken_by"].items(), key=lambda pair: -pair[1])
    ]
    told = f"Of the {document['clean']['correct']} images that are classified correctly without attack:"
    return ["## Worst case", told, pipe_table([["broken by", "images", "by no other attack"], *rows])] if rows else []


def _sanity(document: Document) -> list[str]:
    columns = ("verdict", "group", "name", "value", "limit", "text")
    rows = [[check[column] for column in columns] for check in document.get("sanity") or ()]
    head = ["verdict", "group", "check", "value", "limit", "meaning"]
    return ["## Sanity checks", pipe_table([head, *rows])] if rows else []


def _curve(curve: Document) -> str:
    columns = list(dict.fromkeys(name for line in curve["series"] for name in line["extra"]))
    rows = [["", curve["x_label"], "robust accuracy (95 % interval)", *(name.replace("_", " ") for name in columns)]]
    for line in curve["series"]:
        for place, x in enumerate(line["x"]):
            share = _percent(line["y"][place])
            if line["low"] is not None and line["high"] is not None:
                share += f" ({_percent(line['low'][place])} to {_percent(line['high'][place])})"
            extra = [_number(line["extra"][name][place]) if name in line["extra"] else "-" for name in columns]
            rows.append([line["name"], _number(x), share, *extra])
    return "\n\n".join(part for part in (f"## {curve['title']}", curve.get("note", ""), pipe_table(rows)) if part)


def _edges(document: Document) -> list[str]:
    rows = [
        [each["name"], *(_interval(each[key]) for key in ("pearson", "spearman", "edge_energy")), str(each["images"])]
        for each in document.get("edges") or ()
    ]
    head = ["", "Pearson", "Spearman", "share of energy on the strongest edges", "images"]
    return ["## Perturbations on edges", pipe_table([head, *rows])] if rows else []


def _features(document: Document) -> list[str]:
    features = document.get("features")
    if not features:
        return []
    rows = [[each["name"], _interval(each["distortion"]), _interval(each["fooled"])] for each in features["attacks"]]
    told = f"Distortion |f(x') - f(x)| / |f(x)| of the output f of `{features['layer']}`."
    return ["## Features", told, pipe_table([["", "changed images", "images that fool"], *rows])]


def _setup(document: Document) -> list[str]:
    facts = {**document["hardware"], **document["versions"]}
    git = [f"{name}: {found['commit']}" for name, found in document["git"].items()]
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if value is not None]
    return ["## Setup", f"    {document['command']}", "\n".join(f"- {line}" for line in [*git, *lines])]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _interval(value: Document) -> str:
    bounds = value.get("interval_95")
    mean = _number(value.get("mean"))
    return f"{mean} ({_number(bounds[0])} to {_number(bounds[1])})" if bounds else mean
