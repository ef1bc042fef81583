"""What every benchmark here shares: interleaved timing, the machine's ceilings, and the record of where it ran."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
Timed = Callable[[], object]


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "p10": quantile(values, 0.1), "p90": quantile(values, 0.9)}


def seconds_cpu(function: Timed, calls: int) -> float:
    """Of one call, on average."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def seconds_cuda(function: Timed, calls: int) -> float:
    """The same on the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def interleaved(
    functions: dict[str, Timed], *, cuda: bool, repeats: int, least_seconds: float
) -> dict[str, list[float]]:
    """Seconds per call, `repeats` of each, taken in turns so that a drift of the machine hits all alike.

    Each measurement repeats the call until it takes `least_seconds`; warm-up calls come first.
    """
    seconds = seconds_cuda if cuda else seconds_cpu
    calls = {}
    for name, function in functions.items():
        for _ in range(5 if cuda else 2):
            function()
        once = seconds(function, 3)
        calls[name] = max(1, min(1000, round(least_seconds / max(once, 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function, calls[name]))
    return times


def ratio(baseline: list[float], ours: list[float]) -> dict[str, float]:
    """Speed-up per interleaved round."""
    return spread([b / o for b, o in zip(baseline, ours, strict=True)])


def bandwidth(device: torch.device) -> dict[str, float]:
    """GB/s of reading (a sum over long rows) and of copying (read + write), on an array far larger than any cache."""
    rows = torch.ones(2**30 if device.type == "cuda" else 2**26, device=device).view(64, -1)  # 4 GiB, 256 MiB
    target = torch.empty_like(rows)
    times = interleaved(
        {"read": lambda: rows.sum(1), "copy": lambda: target.copy_(rows)},
        cuda=target.is_cuda, repeats=15, least_seconds=0.02,
    )  # fmt: skip
    return {
        "read_gbs": rows.nbytes / statistics.median(times["read"]) / 1e9,
        "copy_gbs": 2 * rows.nbytes / statistics.median(times["copy"]) / 1e9,
    }


def launch_costs() -> dict[str, float]:
    """µs of one tiny kernel, launched from the host and as a node of a CUDA graph of 100."""
    a = torch.zeros(32, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        a.add_(1)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(100):
            a.add_(1)
    times = interleaved({"eager": lambda: a.add_(1), "graph": graph.replay}, cuda=True, repeats=15, least_seconds=0.005)
    return {
        "eager_op_us": 1e6 * statistics.median(times["eager"]),
        "graph_node_us": 1e4 * statistics.median(times["graph"]),
    }


# Written by benchmarks that run one after the other; what they measured is elsewhere.
_RESULTS = (":(exclude,top)bench/results", ":(exclude,top)docs")


def _git(*arguments: str) -> str:
    here = Path(__file__).resolve().parent
    try:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Hardware, software, commit and date, as they go into every JSON file."""
    import soae_ext

    record: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", *_RESULTS)),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "build": soae_ext.build_info(),
        "cuda": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        record["cuda"] = {
            "name": properties.name,
            "sm": f"{properties.major}.{properties.minor}",
            "sms": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
            "runtime": torch.version.cuda,
        }
    return record


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="fewer and smaller cases, fewer repeats")
    made.add_argument("--threads", type=int, help="torch.set_num_threads before anything else")
    made.add_argument("--output", type=Path, help="write the rows and the machine as JSON")
    return made


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Set the threads that were asked for; the machine's record, its first line printed."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    record = machine()
    print(f"{record['cpu']}, {record['cores']} cores, {record['threads']} threads, torch {record['torch']}")
    return record


def command(script: str) -> str:
    """What was run, for the record: paths relative to this repository, others cut to their names."""
    root = Path(__file__).resolve().parents[1]
    words = []
    for word in sys.argv[1:]:
        path = Path(word)
        if path.is_absolute():
            word = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
        words.append(word)
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    start = "python" if processes is None else f"torchrun --nproc-per-node={processes}"
    return shlex.join([*start.split(), script, *words])


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Written beside its place and moved there, so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
