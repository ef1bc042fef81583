"""What every runner shares: a loop that reads commands from stdin and answers on stdout, one JSON object per line.

A runner is started in its library's own environment with the name of a variant, and defines a `Runner`. Problems come
and answers go as .npz files; nothing here needs more than NumPy.

    {"do": "hello"}                                            -> versions, variant, MiB held after the imports
    {"do": "load", "path": "problem.npz"}                      -> {}
    {"do": "solve", "rtol": 1e-5, "output": "x.npz"}           -> seconds, claimed, iterations; x goes to the file
    {"do": "time", "calls": 3}                                 -> seconds per call of the solve that was asked for last
    {"do": "memory"}                                           -> peak MiB of the process since the problem was loaded
    {"do": "quit"}

`claimed` holds, per system, what the library says: true (solved), false (not solved) or null (it says nothing).
`iterations` is one number per system, one for the batch, or null where the library does not tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass
class Task:
    """A problem as the file holds it. `cycles` is max_iters in restarts."""

    kind: str
    arrays: dict[str, np.ndarray]
    b: np.ndarray  # (B, n)
    restart: int
    max_iters: int

    @property
    def cycles(self) -> int:
        return -(-self.max_iters // self.restart)


@dataclass
class Answer:
    x: np.ndarray  # (B, n)
    claimed: list[bool | None]
    iterations: list[int] | int | None = None


class Runner(Protocol):
    """One library. `load` prepares the operator; `prepare` returns the call that is timed and waits for its result,
    and a function that turns what the call returned into an `Answer`."""

    def versions(self) -> dict[str, str]: ...
    def load(self, task: Task) -> None: ...
    def prepare(self, rtol: float) -> tuple[Callable[[], Any], Callable[[Any], Answer]]: ...


def read(path: str) -> Task:
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    settings = {key[4:]: arrays.pop(key).item() for key in list(arrays) if key.startswith("set_")}
    b = arrays.pop("b")
    return Task(settings["kind"], arrays, b, int(settings["restart"]), int(settings["max_iters"]))


def stencil_diagonals(weights: np.ndarray, n: int) -> tuple[list[np.ndarray], list[int]]:
    """Diagonals and their offsets of the five-point stencil; west and east end at the edges of the grid's rows."""
    g = round(n**0.5)
    c, w, e, north, south = weights
    inside = np.arange(1, n) % g != 0
    diagonals = [np.full(n, c), w * inside, e * inside, np.full(n - g, north), np.full(n - g, south)]
    return [each.astype(weights.dtype) for each in diagonals], [0, -1, 1, -g, g]


def _status(field: str) -> float:
    """MiB, from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def _forget_peak() -> None:
    """Start the peak anew, where the kernel lets us; otherwise it includes the imports."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class _Session:
    def __init__(self, make: Callable[[str], Runner], variant: str) -> None:
        self.variant = variant
        self.runner = make(variant)
        self.imported = _status("VmRSS")
        self.call: Callable[[], Any] = lambda: None

    def hello(self) -> dict[str, Any]:
        return {"versions": self.runner.versions(), "variant": self.variant, "imported_mib": self.imported}

    def load(self, path: str) -> dict[str, Any]:
        self.runner.load(read(path))
        _forget_peak()
        return {}

    def solve(self, rtol: float, output: str) -> dict[str, Any]:
        self.call, unpack = self.runner.prepare(rtol)
        start = time.perf_counter()
        raw = self.call()
        seconds = time.perf_counter() - start
        answer = unpack(raw)
        np.savez(output, x=answer.x)
        claimed = [None if c is None else bool(c) for c in answer.claimed]
        iterations = answer.iterations
        if iterations is not None and not isinstance(iterations, int):
            iterations = [int(i) for i in iterations]
        return {"seconds": seconds, "claimed": claimed, "iterations": iterations}

    def time(self, calls: int) -> dict[str, Any]:
        start = time.perf_counter()
        for _ in range(calls):
            self.call()
        return {"seconds": (time.perf_counter() - start) / calls}

    def memory(self) -> dict[str, Any]:
        return {"peak_mib": _status("VmHWM")}


def serve(make: Callable[[str], Runner]) -> None:
    """Answer until told to quit. A command that fails answers with the error and the loop goes on."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print do not disturb the answers
    warnings.simplefilter("default")
    session = _Session(make, sys.argv[1] if len(sys.argv) > 1 else "")
    for line in sys.stdin:
        command = json.loads(line)
        verb = command.pop("do")
        if verb == "quit":
            return
        try:
            reply = getattr(session, verb)(**command)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers)
