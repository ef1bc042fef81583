"""Print the tables of docs/results/attacks.md from the JSON files that the strength_*.py scripts wrote.

python bench/claims/strength_tables.py [equal_gradients whole_test_set iterations fd_step threshold quality edges]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from common import RESULTS
from strength_common import percent, points

Table = list[list[str]]
SHORT = {"relu-pgd": "ReLU", "silu-pgd": "SiLU"}


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def show(rows: Table) -> None:
    """As Markdown; the first row is the head, and all columns but the first hold numbers."""
    head, *body = rows
    for row in (head, ["---", *["---:"] * (len(head) - 1)], *body):
        print("| " + " | ".join(row) + " |")
    print()


def equal_gradients(name: str = "equal_gradients") -> None:
    for study in load(name)["studies"]:
        where = f"{SHORT[study['network']]}, {study['norm']} {study['eps']:g}, {study['gradients']} gradients"
        print(f"**{where}** (all attacks together: {percent(study['all_together'])})\n")
        rows = [["attack", "robust accuracy (95 %)", "other seeds", "gradients", "SOAE fools more, points (95 %)"]]
        for row in study["rows"]:
            seeds = ", ".join(f"{count / 10:.1f}" for count in row["other_seeds"])
            against = row.get("SOAE against it")
            pairing = points(against) if against else ""
            cost = f"{row['gradients_mean']:.1f} (≤ {row['gradients_max']})"
            rows.append([row["attack"], percent(row["robust"]), seeds, cost, pairing])
        show(rows)


def summary(name: str = "equal_gradients") -> None:
    """SOAE against the baselines only, one row for each network, ball and budget."""
    rivals = ["PGD", "PGD, random runs of 20", "APGD-CE", "APGD-DLR", "SOAE, no second-order step"]
    rows = [["network, ball", "gradients", "SOAE", *rivals]]
    for study in load(name)["studies"]:
        by_name = {row["attack"]: row for row in study["rows"]}
        ours = f"{100 * by_name['SOAE']['robust']['accuracy']:.1f} %"
        pairs = [points(by_name[rival]["SOAE against it"]) if rival in by_name else "not measured" for rival in rivals]
        where = f"{SHORT[study['network']]}, {study['norm']} {study['eps']:g}"
        rows.append([where, str(study["gradients"]), ours, *pairs])
    show(rows)


def iterations() -> None:
    studies = load("attack_curves_iterations")["iterations"]
    for study in studies:
        print(f"**{study['network']}, Linf {study['eps']:g}**, one run with the step size for T = 20\n")
        at = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20)
        rows = [["T", *map(str, at)]]
        for name, shares in study["trajectory"].items():
            rows.append([name, *(f"{100 * shares[t]:.1f}" for t in at)])
        show(rows)
        print(f"**{study['network']}, Linf {study['eps']:g}**, each T with its own step size\n")
        rows = [["T", "SOAE ascent", "SOAE paper", "PGD-T", "PGD, gradients of ascent", "ascent fools more, points"]]
        for each in study["own_step_size"]:
            ascent, paper, pgd = each["rows"]
            share = [f"{100 * row['robust']['accuracy']:.1f}" for row in (ascent, paper, pgd, ascent["equal"])]
            share[-1] += f" ({ascent['equal']['attack']})"
            rows.append([str(each["iterations"]), *share, points(ascent["against equal"])])
        show(rows)


def fd_step() -> None:
    series = load("attack_curves_fd_step")["fd_step"]["series"]
    rows = [["network", *(f"h = {h:g}" for h in series[0]["x"]), "exact", "± (95 %)"]]
    for line in series:
        wide = max((high - low) / 2 for low, high in zip(line["low"], line["high"], strict=True))
        numbers = [f"{100 * y:.1f}" for y in (*line["y"], line["extra"]["exact"][0], wide)]
        rows.append([line["name"], *numbers])
    show(rows)


def threshold() -> None:
    for study in load("attack_curves_threshold")["threshold"]:
        print(f"**{study['network']}, Linf {study['eps']:g}**\n")
        rows = [["products", "threshold", "robust accuracy (95 %)", "m mean", "m max", "gradients per image"]]
        for line in study["series"]:
            for k, tau in enumerate(line["x"]):
                share = f"{100 * line['y'][k]:.1f} % ({100 * line['low'][k]:.1f} to {100 * line['high'][k]:.1f})"
                extra = line["extra"]
                dims = [f"{extra['krylov_mean'][k]:.1f}", f"{extra['krylov_max'][k]:.0f}"]
                rows.append([line["name"], f"{tau:.2g}", share, *dims, f"{extra['gradients'][k]:.0f}"])
        show(rows)


def quality() -> None:
    for study in load("quality")["studies"]:
        print(f"**{study['network']}, the same radius, Linf {study['eps']:g}**\n")
        show(_quality(study["equal_radius"], radius=False))
        if "equal_success" in study:
            print(f"**{study['network']}, the smallest radius that fools 90 %**\n")
            show(_quality(study["equal_success"], radius=True))


def _quality(table: dict[str, Any], radius: bool) -> Table:
    rows = [
        [
            "attack",
            *(["radius"] if radius else []),
            "changed",
            "fooled",
            "PSNR dB (95 %)",
            "SSIM (95 %)",
            "PSNR + 48.13",
        ]
    ]
    for name, each in table.items():
        if each is None:
            rows.append([name, "does not fool 90 %", *[""] * 5])
            continue
        fooled = f"{100 * (1 - each['robust']['accuracy']):.1f} %"
        size = [f"{each['eps']:.3f}"] if radius else []
        psnr, ssim = each["psnr"], each["ssim"]
        if psnr is None:
            rows.append([name, *size, "0", fooled, "", "", ""])
            continue
        intervals = [psnr["interval_95"], ssim["interval_95"]]
        shown = [
            f"{psnr['mean']:.2f} ({intervals[0][0]:.2f} to {intervals[0][1]:.2f})",
            f"{ssim['mean']:.3f} ({intervals[1][0]:.3f} to {intervals[1][1]:.3f})",
            f"{psnr['mean'] + 48.13:.2f}",
        ]
        rows.append([name, *size, str(each["changed"]), fooled, *shown])
    return rows


def edges() -> None:
    for study in load("quality")["studies"]:
        print(f"**{study['network']}, Linf {study['eps']:g}**\n")
        rows = [
            ["attack", "Pearson (95 %)", "Spearman (95 %)", "energy on the strongest tenth", "at the radius", "images"]
        ]
        for each in study["edges"]:
            numbers = []
            for key, scale, digits in (("pearson", 1, 3), ("spearman", 1, 3), ("edge_energy", 100, 1)):
                value = each[key]
                if value["mean"] is None:
                    numbers.append("–")
                    continue
                low, high = value["interval_95"]
                texts = [f"{scale * number:.{digits}f}" for number in (value["mean"], low, high)]
                numbers.append(f"{texts[0]} ({texts[1]} to {texts[2]})")
            saturated = "–" if each["saturated"] is None else f"{100 * each['saturated']:.0f} %"
            rows.append([each["name"], *numbers, saturated, str(each["images"])])
        show(rows)


def main() -> None:
    tables: dict[str, Callable[[], None]] = {
        "summary": summary,
        "equal_gradients": equal_gradients,
        "whole_test_set": lambda: summary("equal_gradients_10000"),
        "iterations": iterations,
        "fd_step": fd_step,
        "threshold": threshold,
        "quality": quality,
        "edges": edges,
    }
    for name in sys.argv[1:] or tables:
        print(f"## {name}\n")
        tables[name]()


if __name__ == "__main__":
    main()
