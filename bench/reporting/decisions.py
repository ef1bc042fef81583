"""The decisions of the CUDA part as pairs: what a model says of them, and what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from gpu_decisions import VARIANTS

from .records import Results, Row, duration, grid, header, look, not_measured, number, text

SCRIPT = "python bench/gpu_decisions.py"
# A panel of four rows of 3,072 floats on its way to one multiprocessor, and the chain of latencies between two panels.
TRANSFER_US, CHAIN_US = 1.5, 0.9
LAUNCH_US, NODE_US = 5.0, 1.3  # of a kernel by itself, and in a graph
PRODUCT = (582, 242, 3.11, 2.0)  # kernels and forward passes of a ResNet-18's product: double backward, traced

MODEL = [
    ("loads or a ring", "B=128, n=3,072, one block on a multiprocessor", (TRANSFER_US + CHAIN_US) / TRANSFER_US,
     "the ring hides the latency between panels"),
    ("panels of 4 or 8 rows", "B=128, n=3,072, loads", (TRANSFER_US + CHAIN_US) / (TRANSFER_US + CHAIN_US / 2),
     "half the reductions"),
    ("split-n or a cluster", "n=150,528, B large", 2.0, "two reads of the basis, one"),
    ("split-n or a block", "n <= 12,288, B large", 2.0, "two reads of the basis, one"),
    ("launches or a graph", "a step of two kernels, small", LAUNCH_US / NODE_US, "5 µs a launch, 1.3 µs a node"),
    ("double backward or traced", "ResNet-18, B=128", PRODUCT[2] / PRODUCT[3],
     f"{PRODUCT[0]} and {PRODUCT[1]} kernels; {PRODUCT[2]} and {PRODUCT[3]} forward passes"),
]  # fmt: skip


def section(results: Results) -> str:
    """Model and measurement of each decision."""
    record = results.get("decisions", "gpu")
    titles = ["decision", "where", "second over first", "why"]
    model = grid(titles, [[what, where, f"{ratio:.2g}×", why] for what, where, ratio, why in MODEL])
    parts = [
        "## Decisions of the CUDA part",
        "Each decision is a pair that one run measures in turns; the kernels of a solve are then those of "
        "`csrc/cuda/choices.h`, which `bench/choose_variants.py` writes from the same file. Where nothing was measured "
        "a model decides, which takes no rings.",
        "### Model",
        "Computed, not measured: how many times faster the second way should be.",
        model,
        "### Measured",
    ]
    if record is None:
        parts.append(not_measured(f"{SCRIPT} --output bench/results/decisions_gpu.json"))
        return "\n\n".join(parts)
    rows = [*_pairs_of_steps(record.get("rows", [])), *_other_pairs(record.get("rows", []))]
    measured = grid(["decision", "where", "first (10–90 %)", "second (10–90 %)", "second over first", "planned"], rows)
    return "\n\n".join([*parts, header(record, SCRIPT), measured])


def _pairs_of_steps(rows: list[Row]) -> Iterator[list[str]]:
    shapes: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("decision") == "step":
            shapes[row["dtype"], row["basis_dtype"], row["B"], row["n"], row["k"]].append(row)
    for (dtype, basis, B, n, k), found in shapes.items():
        stored = dtype if basis == dtype else f"{dtype}, {basis} basis"
        planned = next((row for row in found if row.get("planned")), None)
        for what, first, second in pairs(found):
            taken = "first" if first is planned else "second" if second is planned else "neither"
            yield _line(what, f"B={B} n={n:,} k={k} {stored}", first["us"], second["us"], taken)


def pairs(rows: list[Row]) -> Iterator[tuple[str, Row, Row]]:
    """The pairs among the steps of one shape: (decision, first, second)."""
    table = VARIANTS[{("float32", "float16"): 2}.get((rows[0]["dtype"], rows[0]["basis_dtype"]), 1)]
    split = next((row for row in rows if row["variant"] == len(table)), None)
    kernels = [(table[row["variant"]], row) for row in rows if row["variant"] < len(table)]
    for first, row in kernels:
        for second, other in kernels:
            if row["blocks"] == other["blocks"] and second == first._replace(ring=True) and not first.ring:
                yield "loads or a ring", row, other
            if second == first._replace(panel=2 * first.panel):
                yield "panels of 4 or 8 rows", row, other
    for what, clusters in (("split-n or a cluster", True), ("split-n or a block", False)):
        best = _fastest([row for variant, row in kernels if variant.clusters == clusters])
        if split is not None and best is not None:
            yield what, split, best


def _fastest(rows: list[Row]) -> Row | None:
    return min(rows, key=lambda row: float(row["us"]["median"]), default=None)


def _other_pairs(rows: list[Row]) -> Iterator[list[str]]:
    for row in rows:
        us = row.get("us", {})
        if row.get("decision") == "graph":
            where = f"a solve of B={row['B']} n={row['n']:,}"
            yield _line("launches or a graph", where, us.get("launches"), us.get("replays"), "-")
        elif row.get("decision") == "product":
            where = f"{text(row.get('network'))} B={row['B']}"
            first = us.get("double backward")
            for name in ("traced", "traced, replayed", "inductor", "inductor, replayed"):
                yield _line(f"double backward or {name}", where, first, us.get(name), "-")


def _line(what: str, where: str, first: Any, second: Any, taken: str) -> list[str]:
    before, after = look(first, "median"), look(second, "median")
    ratio = number(before / after) + "×" if before and after else "–"
    return [what, where, duration(first, 1e6), duration(second, 1e6), ratio, taken]
