"""Hessian-vector products, attacks, training and the other libraries."""

from __future__ import annotations

import json
from pathlib import Path

from compare_gmres import tables

from .records import (
    NONE,
    Record,
    Results,
    Row,
    duration,
    factor,
    grid,
    header,
    look,
    not_measured,
    number,
    percent,
    spread,
    text,
)

TITLES = {"cpu": "### CPU", "gpu": "### GPU"}
EXPLANATIONS = Path(__file__).resolve().parents[1] / "compare_gmres" / "explanations.json"


def hvp(results: Results) -> str:
    """Times of a product by every method."""
    script = "python bench/bench_hvp.py"
    parts = ["## Hessian-vector products"]
    for device, title in TITLES.items():
        record = results.get("hvp", device)
        kind = {"cpu": "cpu", "gpu": "cuda"}[device]
        if record is None:
            parts.append(f"{title}\n\n{not_measured(f'{script} --output bench/results/hvp_{device}.json')}")
            continue
        rows = [
            [
                text(row.get("case")), text(row.get("impl")), duration(row.get("t_us"), 1e6),
                factor(row.get("ratio")), number(row.get("error"), digits=2),
            ]
            for row in record.get("rows", []) if row.get("device", "cpu") == kind
        ]  # fmt: skip
        titles = ["case", "method", "time (10–90 %)", "over double backward", "distance from it"]
        note = 'Rows "linearise" are the price of a new point, over that of double backward.'
        parts.append(f"{title}\n\n{header(record, script)} {note}\n\n{grid(titles, rows)}")
    return "\n\n".join(parts)


def end_to_end(results: Results) -> str:
    """SOAE against the paper's way, and what saves gradients."""
    script = "python bench/bench_attack_end_to_end.py"
    parts = ["## SOAE end to end, beside the paper's way"]
    for device, title in TITLES.items():
        record = results.get("attack_end_to_end", device)
        if record is None:
            command = f"{script} --output bench/results/attack_end_to_end_{device}.json"
            parts.append(f"{title}\n\n{not_measured(command)}")
            continue
        text_ = (
            "The same attack with equally many gradients of each image: batched, and one image at a time with NumPy's "
            "Arnoldi. Shares are operator / solver / rest."
        )
        titles = [
            "case", "this project", "its shares", "the paper's way", "its shares", "ratio (10–90 %)", "target",
            "gradients an image",
        ]  # fmt: skip
        cases = grid(titles, [_case(row) for row in record.get("cases", [])])
        parts.append(f"{title}\n\n{header(record, script)}\n\n{text_}\n\n{cases}")
        if record.get("gains"):
            parts.append(_gains(record["gains"]))
    return "\n\n".join(parts)


def _case(row: Row) -> list[str]:
    spent = row.get("gradients_per_image")
    return [
        text(row.get("name")), duration(look(row, "ours.seconds")), _shares(look(row, "ours.split")),
        duration(look(row, "papers_way.seconds")), _shares(look(row, "papers_way.split")),
        factor(row.get("ratio")), NONE if row.get("target") is None else f"≥ {number(row['target'])}×",
        f"{number(look(spent, 'ours'))} / {number(look(spent, 'papers_way'))}",
    ]  # fmt: skip


def _shares(split: object) -> str:
    seconds = [look(split, part) for part in ("operator", "solver", "rest")]
    if any(not isinstance(value, (int, float)) for value in seconds) or not sum(seconds) > 0:
        return NONE
    return " / ".join(f"{100 * value / sum(seconds):.0f} %" for value in seconds)


def _gains(gains: list[Row]) -> str:
    titles = ["what saves", "where", "times faster (10–90 %)", "gradients without", "with", "fooled without", "with"]
    rows = [
        [
            text(row.get("name")), text(row.get("what")), factor(row.get("ratio")),
            number(look(row, "gradients.without")), number(look(row, "gradients.with")),
            percent({"median": look(row, "fooled.without")}), percent({"median": look(row, "fooled.with")}),
        ]
        for row in gains
    ]  # fmt: skip
    return "Each with and without, all else equal:\n\n" + grid(titles, rows)


def attacks(results: Results) -> str:
    """FGSM and PGD of other libraries."""
    script = "python bench/bench_attacks.py"
    parts = ["## FGSM and PGD beside other libraries"]
    for device, title in TITLES.items():
        record = results.get("attacks", device)
        if record is None:
            parts.append(f"{title}\n\n{not_measured(f'{script} --output bench/results/attacks_{device}.json')}")
            continue
        rows = [
            [
                text(row.get("case")), text(row.get("attack")), text(row.get("library")),
                duration(row.get("ms"), 1e3), factor(row.get("ratio")), percent({"median": row.get("fooled")}),
            ]
            for row in record.get("rows", [])
        ]  # fmt: skip
        titles = ["case", "attack", "library", "time (10–90 %)", "time / this project's", "fooled"]
        told = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()) or NONE
        missing = "".join(f" {name} is not measured: {why}." for name, why in record.get("not_measured", {}).items())
        note = f"Versions: {told}.{missing} Below 1, the other library is faster."
        parts.append(f"{title}\n\n{header(record, script)} {note}\n\n{grid(titles, rows)}")
    return "\n\n".join(parts)


def libraries(results: Results) -> str:
    """What bench/compare.py renders, one level deeper."""
    parts = ["## GMRES of other libraries"]
    explanations = json.loads(EXPLANATIONS.read_text())
    for device, title in TITLES.items():
        record = results.get("compare", device)
        if record is None:
            command = f"python bench/compare.py --output bench/results/compare_{device}.json"
            parts.append(f"{title}\n\n{not_measured(command)}")
        else:
            parts.append(f"{title}\n\n{tables.markdown(record, explanations).rstrip()}")
    return "\n\n".join(parts)


def training(results: Results) -> str:
    """Adversarial examples for training, and whole steps."""
    script = "python bench/bench_training.py"
    parts = ["## Training"]
    for device, title in TITLES.items():
        record = results.get("training", device)
        if record is None:
            parts.append(f"{title}\n\n{not_measured(f'{script} --output bench/results/training_{device}.json')}")
            continue
        parts.append(f"{title}\n\n{header(record, script)}\n\n{_crafting(record)}\n\n{_steps(record)}")
    return "\n\n".join(parts)


def _crafting(record: Record) -> str:
    titles = ["case", "attack", "gradients", "time (10–90 %)", "PGD steps", "time of PGD", "time / PGD's"]
    return "Adversarial images of a batch, beside PGD of as many gradients:\n\n" + grid(titles, [
        [
            text(row.get("case")), text(row.get("attack")), number(row.get("gradients")),
            duration(row.get("ms"), 1e3), number(row.get("pgd_steps")), duration(row.get("pgd_ms"), 1e3),
            factor(row.get("ratio")),
        ]
        for row in record.get("crafting", [])
    ])  # fmt: skip


def _steps(record: Record) -> str:
    titles = ["case", "loop", "gradients", "images a second (10–90 %)", "speed / PGD-7's"]
    return "Whole steps of training:\n\n" + grid(titles, [
        [
            text(row.get("case")), text(row.get("loop")), number(row.get("gradients")),
            spread(row.get("images_per_second")), factor(row.get("ratio")),
        ]
        for row in record.get("steps", [])
    ])  # fmt: skip
