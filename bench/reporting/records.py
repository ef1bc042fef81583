"""The JSON files of the benchmarks, and how their numbers are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compare_gmres.tables import table

Record = dict[str, Any]
Row = dict[str, Any]
NONE = "–"
DEVICES = {"cpu": ("cpu",), "gpu": ("gpu", "cuda")}  # and what their files end in


class Results:
    """The folder of results; remembers which files were read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}

    def get(self, name: str, device: str) -> Record | None:
        """`name`_`device`.json, `None` if there is none.

        Raises:
            ValueError: it is no JSON object.
        """
        for ending in DEVICES[device]:
            path = self.folder / f"{name}_{ending}.json"
            if not path.exists():
                continue
            content = path.read_bytes()
            try:
                record = json.loads(content)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: {error}: run its benchmark again") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}: not a JSON object: run its benchmark again")
            self.digests[path.name] = hashlib.sha256(content).hexdigest()
            return record
        return None


def look(row: Any, path: str) -> Any:
    """What lies at "a.b.c", `None` if there is nothing."""
    for key in path.split("."):
        if not isinstance(row, dict):
            return None
        row = row.get(key)
    return row


def header(record: Record, script: str) -> str:
    """Command, commit, date, hardware and threads, above every table."""
    machine = record["machine"] if isinstance(record.get("machine"), dict) else record
    command = f"`{record['command']}`" if record.get("command") else f"`{script}` (its options were not recorded)"
    hardware = f"{machine.get('cpu', 'processor not recorded')}, {machine.get('cores', NONE)} cores"
    if record.get("device") != "cpu" and look(machine, "cuda.name"):
        hardware += f"; {machine['cuda']['name']}"
    threads = record.get("threads_per_rank") or look(record, "settings.threads") or machine.get("threads", NONE)
    dirty = " with uncommitted changes" if machine.get("dirty") else ""
    return (
        f"{command}, commit {str(machine.get('git', 'not recorded'))[:10]}{dirty}, "
        f"{str(machine.get('date', 'date not recorded'))[:10]}; {hardware}; threads: {threads}"
        f"{' a rank' if 'threads_per_rank' in record else ''}; torch {machine.get('torch', NONE)}."
    )


def not_measured(command: str) -> str:
    return f"**Not measured.** `{command}` measures it."


def spread(value: Any, unit: str = "", scale: float = 1.0, digits: int = 3) -> str:
    """Median and 10–90 % range."""
    median, low, high = (number(look(value, key), scale, digits) for key in ("median", "p10", "p90"))
    if median == NONE:
        return NONE
    alone = NONE in (low, high) or low == median == high  # the latter: a baseline over itself
    return f"{median}{unit}" if alone else f"{median}{unit} ({low}–{high})"


def number(value: Any, scale: float = 1.0, digits: int = 3) -> str:
    """So many significant digits, thousands separated, never an exponent."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NONE
    scaled = value * scale
    if abs(scaled) >= 10 ** (digits - 1):
        return f"{scaled:,.0f}"
    return f"{scaled:.{digits}g}" if abs(scaled) >= 1e-4 or scaled == 0 else f"{scaled:.1e}"


def factor(value: Any) -> str:
    return spread(value, "×", digits=3)


def percent(value: Any) -> str:
    return spread(value, " %", 100, digits=2)


def duration(value: Any, per_second: float = 1.0) -> str:
    """In s, ms or µs, of seconds or of units of which `per_second` make one."""
    median = look(value, "median")
    if not isinstance(median, (int, float)):
        return NONE
    seconds = median / per_second
    unit, scale = next(((u, s) for u, s in ((" s", 1.0), (" ms", 1e3)) if seconds * s >= 1), (" µs", 1e6))
    return spread(value, unit, scale / per_second)


def count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NONE


def ceilings(found: Record) -> str:
    """ "read 32.6 GB/s, copy 31.4 GB/s", from `read_gbs` and `copy_gbs`."""
    told = []
    for name, value in found.items():
        what, _, unit = name.rpartition("_")
        told.append(f"{what.replace('_', ' ')} {number(value)} {({'gbs': 'GB/s', 'us': 'µs'}).get(unit, unit)}")
    return f"Ceilings of the same run: {', '.join(told)}." if told else ""


def text(value: Any) -> str:
    return NONE if value is None else str(value)


def grid(titles: list[str], rows: Iterable[list[str]]) -> str:
    made = list(rows)
    return table(titles, made) if made else "The file has no rows."
