"""Writes csrc/cuda/choices.h, the kernels of the plan, from what bench/gpu_decisions.py measured on GPUs.

    python bench/choose_variants.py bench/results/decisions_*.json [--check]

For every GPU architecture, dtype and size of vector that was measured the fastest variant at each batch becomes a row;
batches and sizes between two measurements take the next larger one, beyond the largest the model in plan.h decides.
`--check` writes nothing and fails if the file is not what the measurements say.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "choices.h"
HEAD = """// Which kernels were the fastest on which GPU: written by bench/choose_variants.py from the measurements in
// bench/results, the first row that fits counts. {note}
#pragma once

#include <array>

#include "plan.h"

namespace soae::cuda {{

constexpr std::array<Choice, {count}> kChoices{{{rows}}};

}}  // namespace soae::cuda
"""


def choices(documents: list[dict[str, Any]]) -> list[tuple[int, str, str, int, int, int, int]]:
    """(architecture, dtype, basis_dtype, most unknowns, most systems, variant, blocks), as they are looked up."""
    times: dict[tuple[int, str, str, int, int], dict[tuple[int, int], list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for document in documents:
        architecture = round(10 * float(document["machine"]["cuda"]["sm"]))
        for row in document["rows"]:
            if row["decision"] == "step":
                key = (architecture, row["dtype"], row["basis_dtype"], row["n"], row["B"])
                times[key][row["variant"], row["blocks"]].append(row["us"]["median"])
    found = []
    for key, of_variant in sorted(times.items()):
        most = max(len(values) for values in of_variant.values())
        # Lengths of the basis weigh alike: the geometric mean of the times, of the variants that ran at all of them.
        whole = {v: values for v, values in of_variant.items() if len(values) == most}
        variant, blocks = min(whole, key=lambda v: statistics.geometric_mean(whole[v]))
        found.append((*key, variant, max(blocks, 1)))
    return found


def render(documents: list[dict[str, Any]]) -> str:
    rows = [
        f"    {{{architecture}, k{dtype.capitalize()}, k{basis.capitalize()}, {n}, {batch}, {variant}, {blocks}}},\n"
        for architecture, dtype, basis, n, batch, variant, blocks in choices(documents)
    ]
    names = sorted({document["machine"]["cuda"]["name"] for document in documents})
    note = f"Measured on {', '.join(names)}." if rows else "There is none yet: the model in plan.h decides."
    return HEAD.format(note=note, count=len(rows), rows="{\n" + "".join(rows) + "}" if rows else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", help="JSON files of bench/gpu_decisions.py")
    parser.add_argument("--check", action="store_true", help="fail if the file is not up to date")
    options = parser.parse_args()
    text = render([json.loads(path.read_text()) for path in options.results])
    if options.check:
        return 0 if TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
