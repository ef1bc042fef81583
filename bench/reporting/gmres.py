"""One step and one solve beside PyTorch, the roofline, and the model that stands in for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench_gmres import BEYOND_CACHE, SETS
from matplotlib.figure import Figure
from scaling.model import basis_bytes, cycle_bytes, step_bytes

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
    percent,
)

SCRIPT = "python bench/bench_gmres.py"
MODEL_GBS = 4300.0  # of an H200, assumed where nothing was measured
CYCLES = [
    (1, 784, 20), (128, 784, 20), (128, 784, 100), (1024, 784, 250), (64, 3072, 20), (128, 3072, 5), (128, 3072, 20),
    (128, 3072, 100), (128, 3072, 250), (1024, 3072, 20), (1024, 3072, 250), (1, 150528, 20), (1, 150528, 250),
    (16, 150528, 250),
]  # fmt: skip


def derived(row: Row, record: Record) -> Row:
    """The row with `basis_bytes` and, for a GPU, what the targets ask for beyond what is stored."""
    made = dict(row)
    if all(isinstance(row.get(key), (int, float)) for key in ("B", "n", "k")):
        made["basis_bytes"] = row["B"] * row["n"] * row["k"] * (2 if "16" in str(row.get("basis_dtype")) else 4)
    ours, graphed = look(row, f"us.{row.get('ours')}.median"), look(row, "us.fused graph.median")
    copy = look(record, "cuda_ceilings.copy_gbs")
    if row.get("device", "cpu") == "cpu" and SETS * made.get("basis_bytes", 0) <= BEYOND_CACHE:
        made.pop("fraction_of_bandwidth", None)  # older files have it for bases that fit the cache, too
    if ours and copy and row.get("bytes"):
        made["copy_fraction"] = row["bytes"] / (1e-6 * ours) / (1e9 * copy)
    if graphed:
        made["graphed_us"] = graphed
        cgs2 = look(row, "us.smart graph.median")
        if cgs2:
            made["over_graphed_cgs2"] = cgs2 / graphed
    return made


def rows_of(record: Record | None, device: str) -> list[Row]:
    if record is None:
        return []
    return [derived(row, record) for row in record.get("rows", []) if row.get("device", "cpu") == device]


def section(results: Results, figures: dict[str, Callable[[], Figure]]) -> str:
    cpu, gpu = results.get("gmres", "cpu"), results.get("gmres", "gpu")
    parts = ["## One step and one solve", _measured(cpu, "cpu", "### CPU")]
    if cpu is not None and look(cpu, "cpu_ceilings.read_gbs"):
        figures["roofline_cpu"] = lambda: roofline(
            rows_of(cpu, "cpu"), cpu["cpu_ceilings"]["read_gbs"], "read bandwidth of the same run"
        )
        parts.append(
            "![Time of a step against the bytes that it must move, and the read bandwidth of the same run]"
            "(performance/roofline_cpu.png)\n\nA step that read its basis once at the read bandwidth of the same run "
            "would lie on the line. The small bases at the left fit the cache, which is faster, but there a call takes "
            "time of its own."
        )
    parts += [_measured(gpu, "cuda", "### GPU"), _model(results, gpu)]
    copy = look(gpu, "cuda_ceilings.copy_gbs")
    label = f"model: {MODEL_GBS:,.0f} GB/s, assumed for an H200" if copy is None else "copy bandwidth of the same run"
    figures["roofline_gpu"] = lambda: roofline(rows_of(gpu, "cuda"), copy or MODEL_GBS, label)
    state = "no GPU was measured: the line is a model" if gpu is None else "measured steps and the copy bandwidth"
    parts.append(f"![Roofline of a step on a GPU; {state}](performance/roofline_gpu.png)")
    return "\n\n".join(parts)


def _measured(record: Record | None, device: str, title: str) -> str:
    if record is None:
        what = "bench/gpu_check.sh OUT_DIR" if device == "cuda" else f"{SCRIPT} --output bench/results/gmres_cpu.json"
        return f"{title}\n\n{not_measured(what)}"
    ceiling = ceilings(record.get(f"{device}_ceilings", {}))
    titles = [
        "", "B", "n", "k", "this project", "best of PyTorch", "which", "ratio (10–90 %)",
        "of copy bandwidth" if device == "cuda" else "of read bandwidth", "ratio at full bandwidth",
    ]  # fmt: skip
    text = (
        "float32, against the fastest pure-PyTorch form of the same work (*textbook*: modified Gram–Schmidt, *smart*: "
        "classical Gram–Schmidt twice as batched products); `k` is the number of basis vectors of a step, and the "
        "restart of a solve. The share of bandwidth counts one read of the basis and is left out where "
        "the basis fits the cache; the last column divides the ratio by it: more is not to be had without reading "
        "less."
    )
    rows = [_row(row, device) for row in rows_of(record, device)]
    return f"{title}\n\n{header(record, SCRIPT)} {ceiling}\n\n{text}\n\n{grid(titles, rows)}"


def _row(row: Row, device: str) -> list[str]:
    us: dict[str, Any] = row.get("us", {})
    share: Any = {"median": row.get("copy_fraction")} if device == "cuda" else row.get("fraction_of_bandwidth")
    ratio, part, bound = look(row, "ratio.median"), look(share, "median"), NONE
    if ratio and part and "fraction_of_bandwidth" in row:  # elsewhere the basis is in the cache, and no bound
        bound = f"{ratio / part:.2g}×"
    level = str(row.get("level", NONE)) + (f", {row['basis_dtype']} basis" if row.get("basis_dtype") else "")
    return [
        level + ("" if row.get("comparable", True) else " (not comparable)"),
        count(row.get("B")), count(row.get("n")), count(row.get("k")),
        duration(us.get(row.get("ours", "")), 1e6), duration(us.get(row.get("baseline", "")), 1e6),
        str(row.get("baseline", NONE)), factor(row.get("ratio")), percent(share), bound,
    ]  # fmt: skip


def _model(results: Results, gpu: Record | None) -> str:
    scale = results.get("scale", "gpu")
    found = {
        (point.get("B"), point.get("n"), point.get("m")): point.get("solver_seconds")
        for curve in (scale or {}).get("curves", []) for point in curve.get("points", [])
    }  # fmt: skip
    copy = look(gpu, "cuda_ceilings.copy_gbs") or look(scale, "ceilings.copy_gbs")
    source = "assumed for an H200" if copy is None else "the copy bandwidth measured on this GPU"
    rate = 1e9 * (copy or MODEL_GBS)

    def model(shape: tuple[int, int, int], element: int, reads: float) -> str:
        return duration({"median": cycle_bytes(*shape, element, reads) / rate})

    rows = []
    for shape in CYCLES:
        measured = found.get(shape)
        rows.append(
            [
                *(f"{size:,}" for size in shape), f"{basis_bytes(*shape) / 2**20:,.1f} MiB", model(shape, 4, 1),
                model(shape, 2, 1), model(shape, 4, 4),
                "not measured" if measured is None else duration(measured),
            ]
        )  # fmt: skip
    text = (
        "The columns *model* are computed, not measured: the bytes of a cycle of m steps, B·n·[r·s·m(m+1)/2 + m(4+2s) "
        f"+ 8], over {rate / 1e9:,.0f} GB/s ({source}), without launches. r is how often a step reads the basis (this "
        "project's once, classical Gram–Schmidt twice by batched products four times), s the bytes of an element of "
        "the basis. A GPU's L2 can hold the smallest of these bases and be faster. Measured: `bench/scale.py` on a "
        "GPU, operator subtracted."
    )
    titles = [
        "B", "n", "m", "basis", "model: fp32, 1 read", "model: 16 bit, 1 read", "model: fp32, 4 reads", "measured",
    ]  # fmt: skip
    above = "" if scale is None else header(scale, "python bench/scale.py") + "\n\n"
    return f"### GPU: a cycle, model and measurement\n\n{above}{text}\n\n{grid(titles, rows)}"


def roofline(rows: list[Row], gbs: float, label: str) -> Figure:
    """Time of a step over the bytes that it has to move; the line is `gbs`."""
    figure = new_figure(6.4, 4.0, LIGHT)
    axes = figure.subplots()
    style_axes(axes, LIGHT)
    steps = [row for row in rows if row.get("level") == "step" and row.get("bytes") and look(row, "us")]
    sizes = [row["bytes"] for row in steps] or [step_bytes(*shape) for shape in CYCLES]
    ends = [min(sizes) / 2, 2 * max(sizes)]
    axes.plot(ends, [1e6 * size / (1e9 * gbs) for size in ends], color=LIGHT.text, linewidth=1.4, label=label)
    if not steps:
        axes.set_title("not measured", fontsize=10)
    for index, name in enumerate(("ours", "baseline")):
        points = [(row["bytes"], row["us"][row[name]]) for row in steps if row.get(name) in row["us"]]
        if not points:
            continue
        middle = [us["median"] for _, us in points]
        low = [us["median"] - us["p10"] for _, us in points]
        high = [us["p90"] - us["median"] for _, us in points]
        axes.errorbar(
            [size for size, _ in points], middle, yerr=[low, high], fmt=MARKERS[index], color=LIGHT.lines[index],
            markersize=5, linewidth=1, label=("this project, measured", "best of PyTorch, measured")[index],
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("bytes that a step has to move (basis and w read once)")
    axes.set_ylabel("µs of a step")
    axes.legend(frameon=False, fontsize=9, labelcolor=LIGHT.text)
    return figure
