"""The curves of bench/scale.py."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from soae_ext.plots.style import LIGHT, MARKERS, new_figure, style_axes

from .records import (
    NONE,
    Record,
    Results,
    Row,
    ceilings,
    count,
    duration,
    factor,
    grid,
    header,
    look,
    not_measured,
    number,
    percent,
    spread,
)

Figures = dict[str, Callable[[], Figure]]
ALONE = "python bench/scale.py"
SHARED = "torchrun --nproc-per-node=K bench/scale.py"
NAMES = {"n": "Over the order n", "B": "Over the batch B", "m": "Over the restart m", "threads": "Over the threads"}


def section(results: Results, figures: Figures) -> str:
    parts = ["## Scaling"]
    for device, title in (("cpu", "### CPU"), ("gpu", "### GPU")):
        record = results.get("scale", device)
        if record is None:
            parts.append(f"{title}\n\n{not_measured(f'{ALONE} --output bench/results/scale_{device}.json')}")
        else:
            parts.append(f"{title}\n\n{_curves(record, device, figures)}")
    for device, title in (("cpu", "### Ranks of torch.distributed, CPU"), ("gpu", "### Ranks, one GPU each")):
        record = results.get("scale_ranks", device)
        if record is None:
            parts.append(f"{title}\n\n{not_measured(f'{SHARED} --output bench/results/scale_ranks_{device}.json')}")
        else:
            parts.append(f"{title}\n\n{_ranks(record, device, figures)}")
    return "\n\n".join(parts)


def points(record: Record, over: str) -> list[Row]:
    """Those that were measured."""
    return [
        point for curve in record.get("curves", []) if curve.get("over") == over
        for point in curve.get("points", []) if "seconds" in point
    ]  # fmt: skip


def _curves(record: Record, device: str, figures: Figures) -> str:
    text = (
        "A solve is one cycle of exactly m float32 steps. The operator (a diagonal and a low rank) is measured alone "
        "in the same turns; the columns after its share are without it. The basis is counted once a step and once for "
        "x; the share of the read bandwidth is left out where it fits the cache. The systems have condition 10⁴ and "
        "are far from solved after m steps; that their residuals are what the solver says was checked in float64."
    )
    parts = [f"{header(record, ALONE)} {ceilings(record.get('ceilings', {}))}\n\n{text}"]
    titles = [
        "B", "n", "m", "threads", "a solve (10–90 %)", "systems a second", "operator's share", "solver alone",
        "basis read, GB/s", "of read bandwidth", "largest residual / ‖b‖",
    ]  # fmt: skip
    for curve in record.get("curves", []):
        rows = [_point(point, len(titles)) for point in curve.get("points", [])]
        over = curve.get("over", NONE)
        parts.append(f"**{NAMES.get(over, over)}**\n\n{grid(titles, rows)}")
    if any(points(record, over) for over in NAMES):
        figures[f"scale_{device}"] = lambda: curves_figure(record)
        parts.append(f"![Systems a second over n, B, m and threads](performance/scale_{device}.png)")
    return "\n\n".join(parts)


def _point(point: Row, width: int) -> list[str]:
    where = [count(point.get(key)) for key in ("B", "n", "m", "threads")]
    if "seconds" not in point:
        return [*where, str(point.get("skipped", NONE)), *[NONE] * (width - 5)]
    return [
        *where, duration(point["seconds"]), spread(point.get("systems_per_second")),
        number(look(point, "operator_share.median"), 100, 2) + " %", duration(point.get("solver_seconds")),
        spread(point.get("basis_read_gbs")), percent(point.get("fraction_of_bandwidth")),
        number(look(point, "true_residual.max"), digits=2),
    ]  # fmt: skip


def curves_figure(record: Record) -> Figure:
    """One panel for each curve: systems a second, with the 10–90 % range."""
    shown = [over for over in NAMES if points(record, over)]
    figure = new_figure(3.6 * len(shown), 3.4, LIGHT)
    for axes, over in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        style_axes(axes, LIGHT)
        lines: dict[str, list[Row]] = {}
        for point in points(record, over):
            fixed = " ".join(f"{key}={point[key]}" for key in ("B", "n", "m") if key != over)
            lines.setdefault(fixed, []).append(point)
        for index, (name, line) in enumerate(lines.items()):
            _draw(axes, [point[over] for point in line], [point["systems_per_second"] for point in line], index, name)
        ticks = sorted({point[over] for point in points(record, over)})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks], rotation=45 if max(ticks) > 999 else 0)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(over)
        axes.set_ylabel("systems a second")
        axes.legend(frameon=False, fontsize=8, labelcolor=LIGHT.text)
    return figure


def _ranks(record: Record, device: str, figures: Figures) -> str:
    rows = record.get("rows", [])
    text = (
        "The systems are cut into one contiguous part for each rank; a barrier before every timing, the slowest rank "
        "counts, nothing is exchanged inside a solve. *strong*: so many systems altogether, *weak*: a rank. Verdicts "
        "and true residuals of all parts were held against those of the whole batch in one process first."
    )
    titles = [
        "", "ranks", "B", "n", "m", "a solve (10–90 %)", "systems a second", "of one rank's", "efficiency",
        "checked: systems, converged",
    ]  # fmt: skip
    parts = [f"{header(record, SHARED)}\n\n{text}\n\n{grid(titles, [_rank(row) for row in rows])}"]
    if any("seconds" in row for row in rows):
        figures[f"ranks_{device}"] = lambda: ranks_figure(rows)
        parts.append(f"![Speed over the ranks](performance/ranks_{device}.png)")
    return "\n\n".join(parts)


def _rank(row: Row) -> list[str]:
    where = [str(row.get("mode", NONE)), *(count(row.get(key)) for key in ("ranks", "B", "n", "m"))]
    if "seconds" not in row:
        return [*where, str(row.get("skipped", NONE)), *[NONE] * 4]
    return [
        *where, duration(row["seconds"]), spread(row.get("systems_per_second")), factor(row.get("speedup")),
        percent(row.get("efficiency")), f"{number(look(row, 'check.systems'))}, {number(look(row, 'check.converged'))}",
    ]  # fmt: skip


def ranks_figure(rows: list[Row]) -> Figure:
    """Systems a second in units of one rank's, and the ideal line."""
    figure = new_figure(5.0, 3.6, LIGHT)
    axes = figure.subplots()
    style_axes(axes, LIGHT)
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if "speedup" in row:
            name = f"{row['mode']}, n={row['n']}, " + (
                f"B={row['B']}" if row["mode"] == "strong" else f"{row['systems_per_rank']} systems a rank"
            )
            lines.setdefault(name, []).append(row)
    counts = sorted({row["ranks"] for line in lines.values() for row in line})
    axes.plot(counts, counts, color=LIGHT.muted, linestyle="--", linewidth=1, label="ideal")
    for index, (name, line) in enumerate(lines.items()):
        _draw(axes, [row["ranks"] for row in line], [row["speedup"] for row in line], index, name)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("ranks")
    axes.set_ylabel("systems a second / one rank's")
    axes.legend(frameon=False, fontsize=8, labelcolor=LIGHT.text)
    return figure


def _draw(axes: Axes, across: list[float], spreads: list[Row], index: int, name: str) -> None:
    middle = [value["median"] for value in spreads]
    ranges = [
        [max(0.0, value["median"] - value["p10"]) for value in spreads],
        [max(0.0, value["p90"] - value["median"]) for value in spreads],
    ]
    axes.errorbar(
        across, middle, yerr=ranges, marker=MARKERS[index % len(MARKERS)], color=LIGHT.lines[index % len(LIGHT.lines)],
        markersize=5, linewidth=1.2, label=name,
    )  # fmt: skip
