"""Contenders side by side: solve, confirm, then time in turns."""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import numpy as np

from .confirm import Confirmation, confirm
from .contenders import OURS, Contender, Peer, PeerError
from .problems import Problem

FACTORS = (1.0, 0.3, 0.1, 0.03, 0.01)
"""What the tolerance is multiplied by until the confirmed residual meets it: a library may measure something else."""


@dataclass(frozen=True)
class Settings:
    peers: Path
    device: str
    threads: int
    scratch: Path  # problem and answer files
    log: Path  # what the runners print
    rounds: int = 15
    least_seconds: float = 0.02  # one timing repeats the solve until it takes that long
    budget: float = 2.0  # seconds of timing per contender and problem: slow ones take part in fewer rounds
    limit: float = 20.0  # seconds that one solve may take


@dataclass
class Entry:
    """One contender's part in one problem."""

    contender: Contender
    peer: Peer
    nominal: Confirmation | None = None  # at the tolerance itself: this is where the claims are counted
    best: Confirmation | None = None  # at the loosest tolerance that reached the goal, or the nominal one
    factor: float | None = None
    iterations: list[int] | int | None = None
    once: float = 0.0
    times: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def reached(self) -> bool:
        return self.best is not None and self.best.all_reached


def start(contenders: list[Contender], settings: Settings, stack: ExitStack) -> list[Entry]:
    """All processes at once; they import their libraries side by side."""
    entries = []
    for contender in contenders:
        peer = Peer(contender, settings.peers, settings.device, settings.threads, settings.log)
        entries.append(Entry(contender, stack.enter_context(peer)))
    for entry in entries:
        attempt(entry, lambda e: e.facts.update(e.peer.ask("hello", limit=120)))
    return entries


def attempt(entry: Entry, action: Any) -> None:
    """An error ends this contender's part and nobody else's."""
    if entry.error is None:
        try:
            action(entry)
        except PeerError as error:
            entry.error = str(error)
            print(f"  {entry.contender.name}: {error}", file=sys.stderr)


def solve(entry: Entry, problem: Problem, factor: float, settings: Settings) -> Confirmation:
    output = settings.scratch / "answer.npz"
    reply = entry.peer.ask("solve", settings.limit, rtol=factor * problem.rtol, output=str(output))
    with np.load(output) as stored:
        found = confirm(problem, stored["x"], reply["claimed"])
    entry.iterations, entry.factor, entry.once = reply["iterations"], factor, reply["seconds"]
    return found


def reach(entry: Entry, problem: Problem, settings: Settings) -> None:
    """The loosest tolerance at which every confirmed residual meets the problem's; the nominal one if none does.

    One that needs longer than a quarter of the time limit is not asked again.
    """
    for factor in FACTORS:
        found = solve(entry, problem, factor, settings)
        entry.nominal = entry.nominal or found
        entry.best = found
        if found.all_reached or entry.once > settings.limit / 4:
            break
    if not found.all_reached and entry.factor != 1.0:
        entry.best = solve(entry, problem, 1.0, settings)


def time_in_turns(entries: list[Entry], settings: Settings) -> None:
    """`rounds` timings of each, in turns, so that a drift of the machine hits all alike."""
    calls, rounds = {}, {}
    for entry in entries:
        attempt(entry, lambda e: setattr(e, "once", _seconds(e, 1, settings)))
        calls[id(entry)] = max(1, min(1000, round(settings.least_seconds / max(entry.once, 1e-7))))
        spent = max(entry.once * calls[id(entry)], 1e-7)
        fewest = min(3, settings.rounds) if spent < settings.budget else 1
        rounds[id(entry)] = max(fewest, min(settings.rounds, int(settings.budget / spent)))
    for turn in range(settings.rounds):
        for entry in entries:
            if turn < rounds[id(entry)]:
                count = calls[id(entry)]
                attempt(entry, lambda e, n=count: e.times.append(_seconds(e, n, settings)))


def _seconds(entry: Entry, calls: int, settings: Settings) -> float:
    return float(entry.peer.ask("time", 2 * settings.limit, calls=calls)["seconds"])


def timed_problem(problem: Problem, contenders: list[Contender], settings: Settings) -> dict[str, Any]:
    """One problem for every contender, each in a fresh process."""
    file = settings.scratch / "problem.npz"
    problem.save(file)
    with ExitStack() as stack:
        entries = start(contenders, settings, stack)
        for entry in entries:
            attempt(entry, lambda e: e.peer.ask("load", settings.limit, path=str(file)))
            attempt(entry, lambda e: reach(e, problem, settings))
        time_in_turns([e for e in entries if e.error is None], settings)
        for entry in entries:
            attempt(entry, lambda e: e.facts.update(e.peer.ask("memory")))
        ours = next((e for e in entries if e.contender.name == OURS), None)
        return problem.describe() | {"rows": [_timed_row(entry, ours) for entry in entries]}


def _timed_row(entry: Entry, ours: Entry | None) -> dict[str, Any]:
    row: dict[str, Any] = {"contender": entry.contender.name, "error": entry.error, **entry.facts}
    if entry.nominal is None or entry.best is None:
        return row
    row |= entry.nominal.counts()
    row |= {
        "reached_goal": entry.reached, "factor": entry.factor, "iterations": _iterations(entry.iterations),
        "worst_residual": entry.best.counts()["worst_residual"],
    }  # fmt: skip
    if entry.times:
        row |= {"seconds": measure.spread(entry.times), "rounds": len(entry.times)}
        if ours is not None and ours.times:
            # pairs of the same round; a contender without a time of its own round is left out
            row["ratio"] = measure.spread([t / o for t, o in zip(entry.times, ours.times, strict=False)])
    return row


def _iterations(told: list[int] | int | None) -> dict[str, float] | None:
    """One number for the batch counts for every system."""
    if told is None:
        return None
    counts = [told] if isinstance(told, int) else told
    return {"mean": statistics.fmean(counts), "max": max(counts)}


def trap_problems(
    problems: list[Problem], contenders: list[Contender], settings: Settings
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """Claims against the truth, one process per contender for all of them; and the versions that every peer tells."""
    results = [problem.describe() | {"rows": []} for problem in problems]
    versions = {}
    file = settings.scratch / "problem.npz"
    with ExitStack() as stack:
        entries = start(contenders, settings, stack)
        for entry in entries:
            versions[entry.contender.name] = entry.facts.get("versions", {})
        for problem, result in zip(problems, results, strict=True):
            problem.save(file)
            for entry in entries:
                result["rows"].append(_trap_row(entry, problem, settings, file))
    return results, versions


def _trap_row(entry: Entry, problem: Problem, settings: Settings, file: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"contender": entry.contender.name, "error": None}
    try:
        entry.peer.ask("load", settings.limit, path=str(file))
        row |= solve(entry, problem, 1.0, settings).counts()
        row["iterations"] = _iterations(entry.iterations)
    except PeerError as error:  # an exception of the library is an answer too: it claims nothing
        row["error"] = str(error)
    return row
