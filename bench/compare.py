"""GMRES of this project beside SciPy, JAX, Warp, CoLA, xitorch, CuPy and pure PyTorch, on the same batched problems.

    bench/setup_peers.sh                        installs the others, each into an environment of its own
    python bench/compare.py [--quick] [--output bench/results/compare_cpu.json] [--markdown FILE.md]
    python bench/compare.py --render bench/results/compare_cpu.json --markdown FILE.md

Every library runs in its own process with the same restart, tolerance, dtype, number of threads and limit on the
iterations, at the best setting that its documentation offers (bench/peers/*.py say which and why). The problems are
arrays made from a seed (bench/compare_gmres/problems.py), so all multiply by the same numbers.

The residual that counts is computed here, in float64, from the x that a library returns. If it misses the tolerance,
the library gets a tighter one, down to a hundredth, until its confirmed residual meets the problem's; the time is that
of the loosest that does. Timings are taken in turns. What a library says about its answer is compared with the truth
at the nominal tolerance, on these problems and on small ones that provoke wrong claims (bench/compare_gmres/traps.py).
Exit status: 0 done, 1 this project made a false claim of success, 2 bad usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small problems and few rounds")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="problems whose name holds one of these")
    parser.add_argument("--contenders", nargs="+", metavar="TEXT", help="contenders whose name holds one of these")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every library (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, help="timings of each (15, with --quick 5)")
    parser.add_argument("--no-traps", action="store_true", help="leave out the systems that provoke wrong claims")
    parser.add_argument(
        "--peers", type=Path, default=BENCH.parent / "build" / "peers", help="where setup_peers.sh put them"
    )
    parser.add_argument(
        "--log", type=Path, default=BENCH.parent / "build" / "compare.log", help="what the others print"
    )
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    parser.add_argument("--render", type=Path, metavar="JSON", help="measure nothing: make the tables of these results")
    options = parser.parse_args()
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.render and not options.render.exists():
        parser.error(f"--render: {options.render} does not exist")
    return options


def chosen(names: list[str], texts: list[str] | None) -> list[str]:
    return names if texts is None else [n for n in names if any(text.lower() in n.lower() for text in texts)]


def run(options: argparse.Namespace) -> dict[str, Any]:
    if hasattr(os, "sched_setaffinity"):  # JAX takes its number of threads from here; inherited by every runner
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    import measure
    import torch
    from compare_gmres import contenders, measurement, problems, traps

    torch.set_num_threads(options.threads)
    absent, present = {}, []
    for contender in contenders.CONTENDERS:
        why = contenders.missing(contender, options.peers, options.device)
        if why:
            absent[contender.name] = why
        elif contender.name == contenders.OURS or contender.name in chosen([contender.name], options.contenders):
            present.append(contender)
    for name, why in absent.items():
        print(f"{name}: {why}")
    record = measure.machine() | {
        "command": measure.command("bench/compare.py"),
        "device": options.device,
        "absent": absent,
        "settings": {"threads": options.threads, "rounds": options.rounds or (5 if options.quick else 15)},
        "problems": [], "traps": [], "versions": {},
    }  # fmt: skip
    options.log.parent.mkdir(parents=True, exist_ok=True)
    options.log.write_bytes(b"")
    with tempfile.TemporaryDirectory() as scratch:
        settings = measurement.Settings(
            options.peers, options.device, options.threads, Path(scratch), options.log, record["settings"]["rounds"]
        )
        for build in problems.QUICK if options.quick else problems.TIMED:
            problem = build()
            if chosen([problem.name], options.only):
                result = measurement.timed_problem(problem, present, settings)
                record["problems"].append(result)
                say(result)
        if not options.no_traps:
            made = [build() for build in traps.TRAPS]
            record["traps"], record["versions"] = measurement.trap_problems(made, present, settings)
    record["versions"] |= {
        row["contender"]: row["versions"] for p in record["problems"] for row in p["rows"] if "versions" in row
    }
    return record


def say(problem: dict[str, Any]) -> None:
    print(f"\n{problem['name']}", flush=True)
    for row in problem["rows"]:
        if "seconds" not in row:
            print(f"  {row['contender']:18} {row['error']}")
            continue
        spread = row["seconds"]
        state = "" if row["reached_goal"] else "  NOT REACHED"
        print(
            f"  {row['contender']:18} {1e3 * spread['median']:10.2f} ms "
            f"({1e3 * spread['p10']:.2f}–{1e3 * spread['p90']:.2f})  {row['ratio']['median']:7.2f}x"
            f"  residual {row['worst_residual'] or float('nan'):.1e}"
            f"  false success {row['false_success']}{state}",
            flush=True,
        )


def false_successes(record: dict[str, Any]) -> int:
    """Of this project."""
    from compare_gmres.contenders import OURS

    rows = [row for section in ("problems", "traps") for problem in record[section] for row in problem["rows"]]
    return sum(row.get("false_success", 0) for row in rows if row["contender"] == OURS)


def main() -> int:
    options = arguments()
    record = json.loads(options.render.read_text()) if options.render else run(options)
    from compare_gmres import tables

    if options.output and not options.render:
        import measure

        measure.write_json(options.output, record)
    explanations = json.loads((BENCH / "compare_gmres" / "explanations.json").read_text())
    document = tables.markdown(record, explanations)
    if options.markdown:
        options.markdown.write_text(document)
    else:
        print("\n" + document)
    return 1 if false_successes(record) else 0


if __name__ == "__main__":
    sys.exit(main())
