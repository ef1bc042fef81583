"""Markdown from the JSON of bench/compare.py."""

from __future__ import annotations

from typing import Any

from .contenders import OURS

Row = dict[str, Any]


def markdown(record: dict[str, Any], explanations: dict[str, dict[str, str]]) -> str:
    """The whole document: where it ran, the summary, the timed rows, the claims. `explanations[problem][contender]`
    says why a contender is faster; a lost row without one says so."""
    parts = [_where(record), _summary(record), _timed(record, explanations), _traps(record), _versions(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def lost(problem: Row) -> list[Row]:
    """Rows that reached the goal and are faster than this project's, by the medians; fastest first."""
    ours = _row(problem, OURS)
    if ours is None or "seconds" not in ours:
        return []
    ours_reached = ours["reached_goal"]
    faster = [
        row for row in problem["rows"]
        if row["contender"] != OURS and row.get("reached_goal") and "seconds" in row
        and (not ours_reached or row["seconds"]["median"] < ours["seconds"]["median"])
    ]  # fmt: skip
    return sorted(faster, key=lambda row: row["seconds"]["median"])


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def seconds(spread: dict[str, float], *, full: bool = True) -> str:
    """The median, and in its unit the 10-90 % range."""
    unit, scale = next(
        ((u, s) for u, s in (("s", 1.0), ("ms", 1e3)) if spread["median"] * s >= 1), ("µs", 1e6)
    )  # fmt: skip
    median, low, high = (f"{spread[q] * scale:.3g}" for q in ("median", "p10", "p90"))
    return f"{median} {unit} ({low}–{high})" if full else f"{median} {unit}"


def _row(problem: Row, contender: str) -> Row | None:
    return next((row for row in problem["rows"] if row["contender"] == contender), None)


def _names(record: dict[str, Any], section: str) -> list[str]:
    seen: dict[str, None] = {}
    for problem in record[section]:
        seen.update(dict.fromkeys(row["contender"] for row in problem["rows"]))
    return list(seen)


def _where(record: dict[str, Any]) -> str:
    gpu = f", {record['cuda']['name']}" if record["device"] == "cuda" and record.get("cuda") else ""
    dirty = ", with uncommitted changes" if record["dirty"] else ""
    return (
        f"`{record['command']}` on {record['cpu']}{gpu}, "
        f"{record['settings']['threads']} thread{'s' if record['settings']['threads'] > 1 else ''}, "
        f"commit {record['git'][:10]}{dirty}, {record['date'][:10]}. Times are medians of up to "
        f"{record['settings']['rounds']} rounds in turns, with their 10-90 % range."
    )


def _summary(record: dict[str, Any]) -> str:
    """How many times slower than this project each contender is; in brackets if it missed the tolerance."""
    names = [name for name in _names(record, "problems") if name != OURS]
    rows = []
    for problem in record["problems"]:
        ours = _row(problem, OURS)
        cells = [problem["name"], seconds(ours["seconds"], full=False) if ours and "seconds" in ours else "–"]
        for name in names:
            row = _row(problem, name)
            if row is None or "ratio" not in row:
                cells.append("–")
                continue
            ratio = f"{row['ratio']['median']:.3g}×"
            if not row["reached_goal"]:
                cells.append(f"({ratio})")
            else:
                cells.append(f"**{ratio}**" if row["ratio"]["median"] < 1 else ratio)
        rows.append(cells)
    total = len(record["problems"])
    fastest = sum(not lost(problem) for problem in record["problems"])
    text = (
        f"This project is the fastest on {fastest} of {total} problems. Time of the others in units of its own, for "
        "the same confirmed residual; bold where another is faster, in brackets where it never met the tolerance."
    )
    return text + "\n\n" + table(["problem", OURS, *names], rows) if rows else ""


def _timed(record: dict[str, Any], explanations: dict[str, dict[str, str]]) -> str:
    header = [
        "library", "time (10–90 %)", "× this project", "iterations (most)", "tolerance given",
        "worst residual / tolerance", "false success", "false failure", "peak memory (imports)", "remark",
    ]  # fmt: skip
    parts = []
    for problem in record["problems"]:
        faster = {row["contender"] for row in lost(problem)}
        rows = [_cells(problem, row, row["contender"] in faster, explanations) for row in problem["rows"]]
        goal = f"rtol {problem['rtol']:g}, restart {problem['restart']}, at most {problem['max_iters']} iterations"
        parts.append(f"**{problem['name']}** ({goal}; {problem['text']})\n\n" + table(header, rows))
    return "\n\n".join(parts)


def _cells(problem: Row, row: Row, faster: bool, explanations: dict[str, dict[str, str]]) -> list[str]:
    if "reached_goal" not in row:
        return [row["contender"], *["–"] * 8, row["error"] or "no answer"]
    time, remarks = seconds(row["seconds"]) if "seconds" in row else "–", []
    if not row["reached_goal"]:
        remarks.append("never meets the tolerance")
    if faster:
        why = explanations.get(problem["name"], {}).get(row["contender"])
        remarks.append("faster: " + (why or "not explained yet"))
    if row["error"]:
        remarks.append(row["error"])
    worst = row["worst_residual"]
    return [
        row["contender"], time, f"{row['ratio']['median']:.3g}×" if "ratio" in row else "–", _iterations(row),
        f"{row['factor'] * problem['rtol']:.1g}", "–" if worst is None else f"{worst / problem['rtol']:.2g}",
        *_claims(row),
        f"{row['peak_mib']:.0f} MiB ({row['imported_mib']:.0f})" if "peak_mib" in row else "–", "; ".join(remarks),
    ]  # fmt: skip


def _iterations(row: Row) -> str:
    told = row.get("iterations")
    if told is None:
        return "not told"
    return f"{told['max']:.0f}" if told["mean"] == told["max"] else f"{told['mean']:.1f} ({told['max']:.0f})"


def _claims(row: Row) -> tuple[str, str]:
    if row["silent"] == row["systems"]:
        return "claims nothing", "claims nothing"
    return f"{row['false_success']} of {row['systems']}", f"{row['false_failure']} of {row['systems']}"


def _traps(record: dict[str, Any]) -> str:
    """False successes and, after a slash, false failures; and how many systems were solved."""
    if not record["traps"]:
        return ""
    names, rows = _names(record, "traps"), []
    totals = dict.fromkeys(names, (0, 0, 0, 0))
    for problem in record["traps"]:
        cells = [f"{problem['name']}: {problem['text']}"]
        for name in names:
            row = _row(problem, name)
            cells.append("–" if row is None else _trap_cell(row))
            if row is not None and row["error"] is None:
                keys = ("reached", "false_success", "false_failure", "silent")
                counts = zip(totals[name], (row[key] for key in keys), strict=True)
                a, b, c, d = (total + n for total, n in counts)
                totals[name] = (a, b, c, d)
        rows.append(cells)
    last = ["**all**"]
    for name in names:
        reached, success, failure, silent = totals[name]
        last.append(f"**{reached}**, silent" if silent else f"**{reached}, {success}, {failure}**")
    text = (
        "Systems that provoke wrong claims, 8 in each row: how many were solved (true residual in float64), how many "
        "were called solved but are not (*false success*), how many were called unsolved but are solved (*false "
        "failure*). A library with one status for the batch (Warp, xitorch) is counted for every system of it; JAX "
        "documents its `info` as a placeholder, and it is 0 unless x holds a NaN."
    )
    return text + "\n\n" + table(["systems: solved, false success, false failure", *names], [*rows, last])


def _trap_cell(row: Row) -> str:
    if row["error"] is not None:
        return f"raises {row['error'].split(':')[0]}"
    if row["silent"] == row["systems"]:
        return f"{row['reached']}, silent"
    success = f"**{row['false_success']}**" if row["false_success"] else "0"
    return f"{row['reached']}, {success}, {row['false_failure']}"


def _versions(record: dict[str, Any]) -> str:
    told: dict[str, str] = {}
    for versions in record["versions"].values():
        told |= {library: version for library, version in versions.items() if library != "device"}
    lines = ["Versions: " + ", ".join(f"{library} {version}" for library, version in told.items()) + "."]
    lines += [f"{name}: {reason}." for name, reason in record["absent"].items()]
    return "\n".join(lines)
