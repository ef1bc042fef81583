"""docs/performance.md and its pictures, from the JSON files of the benchmarks.

    python bench/performance.py            write them anew
    python bench/performance.py --check    only say whether they are what the JSON files give

Measures nothing. A section whose JSON file is missing says "not measured"; the targets are in bench/targets.json, and
the reason of a missed one beside it. Exit status: 0 done or up to date, 1 stale, 2 bad usage or an unreadable file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from reporting import decisions, gmres, others, scale, targets
from reporting.records import Results

from soae_ext.plots.style import save

BENCH = Path(__file__).resolve().parent
INTRODUCTION = """# Performance

Made by `python bench/performance.py` from [bench/results](../bench/results): rerun a benchmark and this script rather
than edit a number. Times are medians of timings taken in turns, with their 10–90 % range; each table has the command,
commit, date, hardware and threads above it. What was not measured says so."""


def document(results: Results, goals: list[targets.Target]) -> tuple[str, dict[str, Callable[[], Figure]]]:
    """The Markdown, and its pictures by name, drawn when they are called."""
    figures: dict[str, Callable[[], Figure]] = {}
    parts = [
        INTRODUCTION,
        targets.section(goals, results),
        gmres.section(results, figures),
        scale.section(results, figures),
        decisions.section(results),
        others.hvp(results),
        others.end_to_end(results),
        others.attacks(results),
        others.libraries(results),
        others.training(results),
        _sources(results),
    ]
    return "\n\n".join(parts) + "\n", figures


def _sources(results: Results) -> str:
    """Tells `--check` that a file changed also where the tables do not show it, as the pictures may."""
    lines = [f"{name} {digest}" for name, digest in sorted(results.digests.items())]
    return "\n".join(["<!-- made from (sha256):", *lines, "-->"])


def stale(output: Path, text: str) -> str | None:
    """Why the committed document is not `text`; `None` if it is, with all its pictures."""
    if not output.exists():
        return f"{output} does not exist"
    if output.read_text(encoding="utf-8") != text:
        return f"{output} is not what the JSON files give"
    for picture in re.findall(r"\]\((performance/[^)]+\.png)\)", text):
        if not (output.parent / picture).exists():
            return f"{output.parent / picture} is missing"
    return None


def write(output: Path, text: str, figures: dict[str, Callable[[], Figure]]) -> None:
    """The pictures first, so that the document never shows one that is not there; old ones are removed."""
    folder = output.parent / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in figures.items():
        save(draw(), folder / f"{name}.png")
    for old in folder.glob("*.png"):
        if old.stem not in figures:
            old.unlink()
    output.write_text(text, encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=BENCH / "results", help="folder of the JSON files")
    parser.add_argument("--targets", type=Path, default=BENCH / "targets.json", help="the goals and the reasons")
    parser.add_argument("--output", type=Path, default=BENCH.parent / "docs" / "performance.md", help="what to write")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if it is stale")
    options = parser.parse_args(words)
    if not options.results.is_dir():
        parser.error(f"--results: {options.results} is no folder")
    if not options.targets.is_file():
        parser.error(f"--targets: {options.targets} does not exist")
    try:
        text, figures = document(Results(options.results), targets.load(options.targets))
    except ValueError as error:
        parser.error(str(error))
    if options.check:
        why = stale(options.output, text)
        if why is not None:
            print(f"{why}: run python bench/performance.py", file=sys.stderr)
        return 0 if why is None else 1
    write(options.output, text, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
