"""The paper's claims, and the questions that it leaves, answered from measured cells alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..evaluation import paired_difference

__all__ = ["Claim", "Difference", "Verdict", "claims", "constant", "correctness", "pooled_difference", "shown"]

Document = dict[str, Any]
Verdict = Literal["holds", "does not hold", "undecided", "not measured"]
# A difference of two accuracies with its 95 % interval.
Difference = tuple[float, float, float]

_MODES = ("SOAE, paper, -H^-1 g", "SOAE, paper, +H^-1 g", "SOAE, best")
_REFEREE = "AutoAttack"
_CHANCE = 0.1  # of ten classes; no network that was trained on more comes near


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Attributes:
        text: what is claimed, and where.
        verdict: `"holds"`: every measured comparison says so with its 95 % interval; `"does not hold"`: one says the
            contrary with its interval; `"undecided"`: neither; `"not measured"`: there is no comparison.
        evidence: the numbers.
    """

    text: str
    verdict: Verdict
    evidence: tuple[str, ...]

    def as_json(self) -> Document:
        """Plain values."""
        return {"claim": self.text, "verdict": self.verdict, "evidence": list(self.evidence)}


def claims(document: Document) -> list[Claim]:
    """All claims, in the order of the paper."""
    judges: tuple[Callable[[Document], Iterator[Claim]], ...] = (_attack_claims, _defence_claims, _table_claims)
    return [claim for judge in judges for claim in judge(document)]


def correctness(cell: Document | None) -> Tensor | None:
    """`(n,)` bool: which images a measured cell has as correctly classified."""
    return None if cell is None else torch.tensor([sign == "1" for sign in cell["image_correct"]])


def constant(row: Document) -> bool:
    """Whether training ended at a network that gives one class to every image.

    No attack changes an answer then, and the clean accuracy is that of guessing: nothing about an attack or a defence
    can be seen, and the claims leave the row out.
    """
    found = {name: cells[0] for name, cells in row["cells"].items() if cells and cells[0]}
    clean = found.pop("clean", None)
    if clean is None or not found or clean["robust"]["accuracy"] > 2 * _CHANCE:
        return False
    return all(clean["image_correct"].startswith(cell["image_correct"]) for cell in found.values())


def pooled_difference(first: Sequence[Document | None], second: Sequence[Document | None]) -> Difference | None:
    """Accuracy of `first` minus that of `second` over the seeds that both have, on the images that both have.

    Images of several seeds are taken for different ones, so the interval holds for these networks: it does not say how
    much another seed would change.
    """
    pairs = []
    for one, other in zip(map(correctness, first), map(correctness, second), strict=False):
        if one is not None and other is not None:
            n = min(len(one), len(other))
            pairs.append((one[:n], other[:n]))
    if not pairs:
        return None
    return paired_difference(torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs]))


def shown(difference: Difference) -> str:
    """A difference in points."""
    return "{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * value for value in difference))


def _verdict(differences: Sequence[Difference]) -> Verdict:
    """Of the claim that all differences are below zero."""
    if not differences:
        return "not measured"
    if any(low > 0 for _, low, _ in differences):
        return "does not hold"
    return "holds" if all(high < 0 for _, _, high in differences) else "undecided"


def _blocks(document: Document, *names: str) -> Iterator[Document]:
    for table in document["tables"]:
        if table["name"] in names:
            yield from table["blocks"]


def _compared(
    document: Document, rows: Callable[[str], bool], first: str, second: str
) -> tuple[list[Difference], list[str]]:
    """Two columns of Tables I to III in all rows that count: first minus second, on the same networks."""
    differences, evidence = [], []
    for block in _blocks(document, "1", "2", "3"):
        for row in block["rows"]:
            cells = row["cells"]
            found = pooled_difference(cells.get(first) or (), cells.get(second) or ())
            if found is not None and rows(row["name"]) and not constant(row):
                differences.append(found)
                evidence.append(f"{block['title']}, {row['name']}: {first} minus {second} {shown(found)}")
    return differences, evidence


def _attack_claims(document: Document) -> Iterator[Claim]:
    texts = {
        "PGD-20": "SOAE leaves less accuracy than PGD with 20 steps on adversarially trained networks (section IV-B)",
        "ASOD": "SOAE leaves less accuracy than ASOD on adversarially trained networks (section IV-B)",
        _REFEREE: "SOAE outperforms all other attacks, AutoAttack too, but on SOAR (section IV-B)",
        "APGD-100": "not in the paper: SOAE leaves less accuracy than APGD with as many gradients as SOAE, best",
    }
    for rival, text in texts.items():
        for mode in _MODES:
            if rival == "APGD-100" and mode != "SOAE, best":
                continue
            rows = _trained if rival != _REFEREE else lambda name: _trained(name) and name != "SOAR"
            differences, evidence = _compared(document, rows, mode, rival)
            yield Claim(f"{text}: {mode}", _verdict(differences), tuple(evidence))


def _trained(name: str) -> bool:
    return name != "STD"


def _rows_compared(document: Document, column: str, rival: str) -> tuple[list[Difference], list[str]]:
    """Row `rival` minus row SOAT in one column of Tables I to III."""
    differences, evidence = [], []
    for block in _blocks(document, "1", "2", "3"):
        rows = {row["name"]: row["cells"] for row in block["rows"] if not constant(row)}
        if "SOAT" in rows and rival in rows:
            found = pooled_difference(rows[rival].get(column) or (), rows["SOAT"].get(column) or ())
            if found is not None:
                differences.append(found)
                evidence.append(f"{block['title']}, {column}: {rival} minus SOAT {shown(found)}")
    return differences, evidence


def _defence_claims(document: Document) -> Iterator[Claim]:
    columns = {
        "PGD-20": "SOAT is more robust than PGD training under PGD (Tables I to III)",
        _REFEREE: "SOAT is more robust than PGD training under AutoAttack (Tables II and III)",
        "SOAE, best": "SOAT is more robust than PGD training under SOAE (section IV-B)",
    }
    for column, text in columns.items():
        differences, evidence = _rows_compared(document, column, "PGD")
        yield Claim(text, _verdict(differences), tuple(evidence))
    every: list[Difference] = []
    lines: list[str] = []
    for rival in ("PGD", "TRADES", "SOAR", "STN", "SCORPIO"):
        differences, evidence = _rows_compared(document, _REFEREE, rival)
        every += differences
        lines += evidence
    yield Claim(
        'SOAT is "state of the art" of the seven rows under AutoAttack (section IV-B)', _verdict(every), tuple(lines)
    )


def _table_claims(document: Document) -> Iterator[Claim]:
    """Table IV way by way: which system, and by which products, the paper does not say."""
    found: dict[str, list[tuple[bool | None, str]]] = {"one image, exact products": []}
    for block in _blocks(document, "4"):
        for row in block["rows"]:
            for way, entry in (row["dimensions"] or {}).items():
                if isinstance(entry, dict) and "cap" in entry:
                    judged = _as_many(entry, min(block["paper_dimensions"]))
                    told = f"{block['title']}, {row['name']}: {_most(entry)}, the paper {_range(block)}"
                    found.setdefault(way, []).append((judged, told))
    for way, entries in found.items():
        verdict: Verdict = "undecided"
        if not entries:
            verdict = "not measured"
        elif any(judged is False for judged, _ in entries):
            verdict = "does not hold"
        elif all(judged for judged, _ in entries):
            verdict = "holds"
        text = f"m is as large as in Table IV, at some threshold of 1e-5 to 1e-1: {way}"
        yield Claim(text, verdict, tuple(told for _, told in entries))
    yield from _quality_claims(document)


def _as_many(entry: Document, least: int) -> bool | None:
    """Whether m reaches `least` at some threshold; `None` where the solve was cut before it could."""
    largest = max((each["largest"] or 0 for each in entry["thresholds"]), default=0)
    cut = any(each["reached"] < each["systems"] for each in entry["thresholds"])
    if largest >= least or (cut and entry["cap"] >= least):
        return True
    return None if cut else False


def _most(entry: Document) -> str:
    largest = max((each["largest"] or 0 for each in entry["thresholds"]), default=0)
    cut = any(each["reached"] < each["systems"] for each in entry["thresholds"])
    if not largest:
        return f"m of more than {entry['cap']}"
    return f"m of {largest} at most" + (f" where it ends, more than {entry['cap']} elsewhere" if cut else "")


def _range(block: Document) -> str:
    return f"{min(block['paper_dimensions'])} to {max(block['paper_dimensions'])}"


def _quality_claims(document: Document) -> Iterator[Claim]:
    """SOAE against the others, mode by mode: which has the best mean, and what it leaves of the accuracy."""
    for mode in _MODES:
        wins, lines = [], []
        for block in _blocks(document, "5"):
            for row in block["rows"]:
                cells = {name: values[0] for name, values in row["cells"].items() if values and values[0]}
                values = {name: cell for name, cell in cells.items() if cell.get("psnr") is not None}
                rivals = [cell for name, cell in values.items() if name not in _MODES]
                if mode not in values or not rivals:
                    continue
                ours = values[mode]
                wins.append(all(ours["psnr"] > cell["psnr"] and ours["ssim"] > cell["ssim"] for cell in rivals))
                told = ", ".join(
                    f"{name} {cell['psnr']:.1f} dB, {cell['ssim']:.2f} ({100 * cell['robust']['accuracy']:.1f} % left)"
                    for name, cell in values.items()
                    if name == mode or name not in _MODES
                )
                lines.append(f"{block['title']}, {row['name']}: {told}")
        verdict: Verdict = "not measured" if not wins else "holds" if all(wins) else "does not hold"
        yield Claim(f"SOAE has the best PSNR and SSIM of all attacks (Table V): {mode}", verdict, tuple(lines))
