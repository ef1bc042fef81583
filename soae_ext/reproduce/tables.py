"""The document as sections of text and tables, which Markdown and HTML then write each in its way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..evaluation import wilson_interval
from .claims import shown
from .studies import equal_gradients, findings, overfitting

__all__ = ["NOT_MEASURED", "Grid", "Section", "accuracy_text", "sections"]

Document = dict[str, Any]
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Grid:
    """A table: its caption, head and rows of cells. Columns in `text` hold running text."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: tuple[int, ...] = ()


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, bullets and tables, in this order."""

    title: str
    paragraphs: tuple[str, ...] = ()
    bullets: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()


def sections(document: Document) -> list[Section]:
    """All of the document that is for readers."""
    return [
        _summary(document),
        *(_table(table) for table in document["tables"]),
        *_claims(document),
        Section(
            "What is implausible in the paper's numbers",
            ("The paper's values stand beside ours because a reader looks for them, not because they are a target.",),
            tuple(document["doubts"]),
        ),
        _setup(document),
    ]


def _summary(document: Document) -> Section:
    left = f"{len(document['left'])} cells of this command are not measured yet. " if document["left"] else ""
    return Section(
        "What is shown",
        (
            *_rehearsal(document),
            f"Budget {document['budget']}. {left}Accuracies are of the network after the last step of its training, on "
            "the first test images; the best epoch is not picked. In a cell: our mean over the seeds, in brackets "
            "Wilson's 95 % interval for one network with that many correct images, the smallest and the largest of the "
            "seeds where there are several, and the paper's value. All attacks and trainings of one block share one "
            "Linf radius.",
        ),
    )


def accuracy_text(cells: Sequence[Document | None], share: float | None) -> str:
    """A cell: mean, interval, spread, and the paper's number if there is one.

    Args:
        cells: of each seed, `None` where not measured.
        share: the paper's, in [0, 1].
    """
    found = [cell for cell in cells if cell is not None]
    paper = "" if share is None else f"; paper {100 * share:.2f} %"
    if not found:
        return NOT_MEASURED + paper
    shares = [cell["robust"]["accuracy"] for cell in found]
    n = found[0]["images"]
    low, high = wilson_interval(round(fmean(shares) * n), n)
    spread = f", {len(found)} seeds {_percent(min(shares))} to {_percent(max(shares))}" if len(found) > 1 else ""
    return f"{_percent(fmean(shares))} % ({_percent(low)} to {_percent(high)}){spread}{paper}"


def _table(table: Document) -> Section:
    makers = {"4": _dimensions, "5": _quality, "equal-gradients": _equal, "single-step": _single}
    make = makers.get(table["name"], _accuracies)
    grids = tuple(grid for block in table["blocks"] for grid in make(block))
    return Section(table["title"], tuple(table["notes"]), (), grids)


def _accuracies(block: Document) -> Iterator[Grid]:
    columns = block["columns"]
    images = block["images"]
    heads = [f"{name}, {images[name]} images" if images[name] else name for name in columns]
    rows = [
        [row["name"], _cost(row), *(accuracy_text(row["cells"][name], row["paper"][name]) for name in columns)]
        for row in block["rows"]
    ]
    caption = f"{block['title']}, eps {_radius(block['eps'])}: robust accuracy"
    if block["paper_network"]:
        caption += f"; the paper's {block['paper_network']} beside it"
    yield Grid(caption, ["training", "gradients", *heads], rows)
    yield Grid(f"{block['title']}: cost of the attacks", ["attack", "as", "gradients", "seconds"], _costs(block), (1,))


def _cost(row: Document) -> str:
    """Gradients for an image in each epoch, crafting and update, of the training."""
    if row["training"] is None:
        return "comes trained"
    done = [cell for cell in row["training"] if cell]
    if not done:
        return NOT_MEASURED
    gradients = fmean(cell["gradients_per_image"] for cell in done)
    minutes = fmean(cell["seconds"] for cell in done) / 60
    return f"{gradients:.1f} in each epoch, epochs: {row['epochs']}, {minutes:.1f} min"


def _costs(block: Document) -> list[list[str]]:
    rows = []
    for name in block["columns"]:
        spec = block["attacks"][name]
        done = [cell for row in block["rows"] for cell in row["cells"][name] if cell]
        gradients = [cell["gradients_per_image"] for cell in done if "gradients_per_image" in cell]
        seconds = [cell["seconds"] for cell in done if "seconds" in cell]
        if spec is not None:
            told = [f"{min(v):.1f} to {max(v):.1f}" if v else NOT_MEASURED for v in (gradients, seconds)]
            rows.append([name, f"`{spec}`", *told])
    return rows


def _dimensions(block: Document) -> Iterator[Grid]:
    rows: list[list[str]] = []
    thresholds: list[float] = []
    for row in block["rows"]:
        found = row["dimensions"]
        if not found:
            rows.append([f"{row['name']}, {NOT_MEASURED}", *[NOT_MEASURED] * 5])
            continue
        thresholds = found["thresholds"]
        for way, entry in found.items():
            if isinstance(entry, dict) and "cap" in entry:
                rows.append([f"{row['name']}, {way}", *(_m(each, entry["cap"]) for each in entry["thresholds"])])
    rows.append(["the paper", *map(str, block["paper_dimensions"])])
    head = [f"{value:.0e}" for value in thresholds or (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)]
    yield Grid(f"{block['title']}: mean m (largest), by the threshold on the relative residual", ["", *head], rows)


def _m(entry: Document, cap: int) -> str:
    if entry["largest"] is None:
        return f"more than {cap}"
    short = "" if entry["reached"] == entry["systems"] else f", {entry['reached']} of {entry['systems']} within {cap}"
    return f"{entry['mean']:.1f} ({entry['largest']}{short})"


def _quality(block: Document) -> Iterator[Grid]:
    rows = []
    for row in block["rows"]:
        for name in block["columns"]:
            cell, paper = (row["cells"][name] or [None])[0], row["paper"][name]
            known = cell is not None and cell.get("psnr") is not None
            psnr, ssim = (f"{cell['psnr']:.2f}", f"{cell['ssim']:.3f}") if known and cell else (NOT_MEASURED,) * 2
            left = accuracy_text([cell], None)
            rows.append([f"{row['name']}, {name}", psnr, ssim, left, *(map(str, paper) if paper else ("", ""))])
    head = ["network, attack", "PSNR in dB", "SSIM", "accuracy left", "PSNR, paper", "SSIM, paper"]
    yield Grid(f"{block['title']}, eps {_radius(block['eps'])}", head, rows)


def _equal(block: Document) -> Iterator[Grid]:
    compared = {row.name: row for row in equal_gradients(block)}
    rows = []
    for row in block["rows"]:
        found = compared[row["name"]]
        differences = [
            NOT_MEASURED if value is None else shown(value) for value in (found.against_pgd, found.against_control)
        ]
        if row["name"] == "PGD":
            differences[0] = "-"
        if row["name"] in ("PGD", "the same schedule, no curvature"):
            differences[1] = "-"
        rows.append(
            [
                row["name"],
                _cost(row),
                *(accuracy_text(row["cells"][name], None) for name in block["columns"]),
                *differences,
            ]
        )
    head = ["crafting", "gradients", *block["columns"], "minus PGD training", "minus the same without curvature"]
    yield Grid(f"{block['title']}; differences under APGD-100, paired, 95 %", head, rows)


def _single(block: Document) -> Iterator[Grid]:
    yield next(_accuracies(block))
    epochs = max((len(run.pgd) for run in overfitting(block)), default=0)
    runs = overfitting(block)
    rows = [
        [
            f"{run.name}, seed {run.seed}",
            *(f"{_percent(p)} / {_percent(f)}" for p, f in zip(run.pgd, run.fgsm, strict=True)),
            *[""] * (epochs - len(run.pgd)),
        ]
        for run in runs
    ]
    if not rows:
        rows = [[row["name"], NOT_MEASURED] for row in block["rows"]]
    head = ["PGD-10 / FGSM on held-out images, %", *(f"epoch {k + 1}" for k in range(max(epochs, 1)))]
    yield Grid(f"{block['title']}: course of the training", head, rows)


def _rehearsal(document: Document) -> tuple[str, ...]:
    scale = document["scale"]
    if scale == 1:
        return ()
    return (f"**A rehearsal at scale {scale:g}**: images, epochs and AutoAttack are cut; the numbers mean nothing.",)


def _claims(document: Document) -> Iterator[Section]:
    rows = [
        [claim["claim"], claim["verdict"], "; ".join(claim["evidence"]) or NOT_MEASURED] for claim in document["claims"]
    ]
    yield Section(
        "Which of the paper's claims hold here",
        (
            *_rehearsal(document),
            "A claim holds where every measured comparison says so with its 95 % interval (paired, on the same "
            "images), does not hold where one says the contrary with its interval, and is undecided otherwise. "
            "Intervals are for these networks; how much another seed would change is shown by the seeds above.",
        ),
        tuple(findings(document)),
        (Grid("The claims, in the order of the paper", ["claim", "verdict", "numbers"], rows, (1, 2)),),
    )


def _setup(document: Document) -> Section:
    facts = {**document["hardware"], **document["versions"]}
    commits = {name: found["commit"] for name, found in document["git"].items()}
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in {**commits, **facts}.items() if value is not None]
    seconds = sum(cell["seconds"] for cell in _cells(document) if cell.get("seconds"))
    return Section(
        "Setup",
        (
            f"`{document['command']}`",
            f"{document['date']}; trainings and attacks of these tables took {seconds / 60:.1f} minutes together.",
        ),
        tuple(lines),
    )


def _cells(document: Document) -> Iterator[Document]:
    """Every finished cell once: tables may share blocks."""
    seen: set[tuple[object, ...]] = set()
    for table in document["tables"]:
        for block in table["blocks"]:
            for row in block["rows"]:
                for name, cells in [("", row["training"] or ()), *row["cells"].items()]:
                    for place, cell in enumerate(cells):
                        key = (block["key"], row["name"], name, place)
                        if cell and key not in seen:
                            seen.add(key)
                            yield cell


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _radius(eps: float) -> str:
    levels = round(255 * eps, 6)
    return f"{levels:g}/255" if levels == int(levels) else f"{eps:g}"
