"""The restarted GMRES loop, the same for every backend: who is called when, and nothing else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from soae_ext._solver.graphs import StepGraph
from soae_ext._solver.operators import Checked, Compaction, Operator, Restrictable
from soae_ext._solver.workspace import Workspace

RUNNING = -1
ACTIVE = 0
# Narrowing an operator inside a cycle costs it about as much as two products, so fewer steps are not worth it.
_FEWEST_STEPS_LEFT = 3
BAD_COLUMN = 4

Callback = Callable[..., Any]


@dataclass(frozen=True)
class Problem:
    """One validated solve. `rtol`, `atol`: float or `(B,)` float64; `restart` is clamped to n already.

    With `keeps_hessenberg` an Arnoldi decomposition instead, which needs no tolerance and no end of a cycle. `sweep`
    takes all steps of a cycle at once, products included, and returns their number.
    """

    b: Tensor
    x0: Tensor | None
    A: Operator
    M: Operator | None
    rtol: float | Tensor
    atol: float | Tensor
    restart: int
    max_iters: int
    flexible: bool
    orthogonalization: str
    history: bool
    callback: Callback | None
    compact: bool
    workspace: Workspace
    keeps_hessenberg: bool = False
    sweep: Callable[[Engine], int] | None = None
    basis_dtype: torch.dtype | None = None

    @property
    def storage(self) -> torch.dtype:
        """What the Krylov basis is stored in."""
        return self.basis_dtype or self.b.dtype

    @property
    def compressed(self) -> bool:
        return self.storage != self.b.dtype

    @property
    def basis_exponent(self) -> int:
        """v is stored as v 2^exponent: about √n in float16, so that an average entry is near 1, far from underflow.

        Entries are at most 1, so what is stored stays in range up to 2^15.
        """
        return min((self.n.bit_length() - 1) // 2, 15) if self.storage == torch.float16 else 0

    @property
    def batch(self) -> int:
        return self.b.shape[0]

    @property
    def n(self) -> int:
        return self.b.numel() // self.batch

    @property
    def keeps_images(self) -> bool:
        """FGMRES: every z_j = M(v_j) is kept, since M may change between calls."""
        return self.flexible and self.M is not None


class Engine(Protocol):
    """The arithmetic of one solve. `csrc/gmres.h` says what each step does."""

    x: Tensor  # (B, *shape) best iterate
    direction: Tensor  # (B, *shape) what the operator receives next
    status: Tensor  # (B,) RUNNING or a Status
    outcome: Tensor  # (B,) ACTIVE while the system takes steps in this cycle
    iterations: Tensor  # (B,)
    residual: Tensor  # (B,) float64, true residual norm of x
    estimates: Tensor  # (B, restart) float64, of the cycle's steps
    capturable_step: Callable[[Tensor], None] | None  # for CUDA graphs: finds out by itself which step it is

    def start_from(self, x0: Tensor) -> None: ...
    def begin(self, ax: Tensor | None) -> None: ...
    def keep_image(self, j: int, z: Tensor) -> None: ...
    def make_room(self, j: int) -> bool: ...  # for the vector that step j appends; whether memory was added
    def step(self, j: int, w: Tensor) -> None: ...
    def post(self, slot: int) -> None: ...
    def idle(self, j: int, *, wait: bool) -> bool: ...
    def active_systems(self, j: int) -> Tensor | None: ...
    def finish(self) -> None: ...
    def correct(self, z: Tensor) -> None: ...
    def close(self, ax: Tensor, *, stop: bool) -> None: ...
    def running(self) -> int: ...


def _by_name(callback: Callback) -> bool:
    """Whether the callback takes its three values by name; otherwise they are passed in their order."""
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):
        return False
    if {"iteration", "residual_norm", "active"} <= set(signature.parameters):
        return True
    try:
        signature.bind(0, 0, 0)
    except TypeError:
        return True
    return False


class _Watcher:
    """Feeds the callback with the state after each sweep."""

    def __init__(self, callback: Callback, engine: Engine, dtype: torch.dtype) -> None:
        self.callback, self.engine, self.dtype = callback, engine, dtype
        self.by_name = _by_name(callback)
        self.current = engine.residual.clone()

    def start_cycle(self) -> None:
        self.current = self.engine.residual.clone()

    def stop_after(self, sweep: int, j: int) -> bool:
        estimate = self.engine.estimates[:, j]
        self.current = torch.where(estimate.isnan(), self.current, estimate)
        values = {
            "iteration": sweep,
            "residual_norm": self.current.to(self.dtype),
            "active": self.engine.outcome == ACTIVE,
        }
        return bool(self.callback(**values) if self.by_name else self.callback(*values.values()))


class _History:
    """Residual estimates per system, gathered cycle by cycle: systems advance at their own pace."""

    def __init__(self, engine: Engine, dtype: torch.dtype) -> None:
        self.engine, self.dtype = engine, dtype
        self.first = engine.residual.to(dtype, copy=True)
        self.cycles: list[tuple[Tensor, Tensor]] = []

    def add_cycle(self, iterations_before: Tensor) -> None:
        self.cycles.append((iterations_before, self.engine.estimates.clone()))

    def table(self) -> Tensor:
        """`(B, K+1)`, K the most iterations that a system spent; NaN after a system stopped."""
        batch = self.first.shape[0]
        longest = int(self.engine.iterations.max()) if batch else 0
        table = torch.full((batch, longest + 1), torch.nan, dtype=self.dtype, device=self.first.device)
        table[:, 0] = self.first
        for before, estimates in self.cycles:
            system, j = (~estimates.isnan()).nonzero(as_tuple=True)
            table[system, before[system] + j + 1] = estimates[system, j].to(self.dtype)
        return table


def run(problem: Problem, engine: Engine) -> tuple[int, Tensor | None]:
    """Solve. Returns the operator calls and the residual history; everything else is read off the engine."""
    loop = _Loop(problem, engine)
    loop.open()
    while engine.running():
        loop.cycle()
    return loop.calls, loop.history.table() if loop.history else None


class _Loop:
    def __init__(self, problem: Problem, engine: Engine) -> None:
        self.problem, self.engine = problem, engine
        self.calls = 0
        self.sweeps = 0
        self.history: _History | None = None
        self.watcher: _Watcher | None = None
        self.M = Checked("M", problem.M, problem.b) if problem.M is not None else None
        self.compaction: Compaction | None = None
        if problem.compact and callable(getattr(problem.A, "restrict", None)):
            self.compaction = Compaction(cast(Restrictable, problem.A), problem.b)
        self.A: Operator = self.compaction or Checked("A", problem.A, problem.b)
        self.graph: StepGraph | None = None
        alone = not (problem.callback or self.compaction or problem.keeps_images)
        if problem.workspace.graphs and engine.capturable_step and alone:
            self.graph = StepGraph(functools.partial(self.any_step, engine.capturable_step))

    def any_step(self, take: Callable[[Tensor], None]) -> None:
        if self.M:
            self.engine.direction.copy_(self.M(self.engine.direction))
        take(self.A(self.engine.direction))

    def step(self, j: int) -> None:
        engine = self.engine
        self.sweeps += 1
        if engine.make_room(j) and self.graph:
            self.graph.forget()
        if self.graph:
            self.calls += 1
            self.graph()
            return engine.post(j + 1)
        if self.M:
            z = self.M(engine.direction)
            if self.problem.keeps_images:
                engine.keep_image(j, z)
            engine.direction.copy_(z)  # A may overwrite its input, and expects it contiguous
        return engine.step(j, self.apply(engine.direction))

    def apply(self, v: Tensor) -> Tensor:
        self.calls += 1
        return self.A(v)

    def open(self) -> None:
        problem, engine = self.problem, self.engine
        if problem.x0 is None:
            engine.begin(None)
        else:
            engine.start_from(problem.x0)
            engine.begin(self.apply(engine.direction))
        if problem.history:
            self.history = _History(engine, problem.b.dtype)
        if problem.callback is not None:
            self.watcher = _Watcher(problem.callback, engine, problem.b.dtype)

    def cycle(self) -> None:
        engine = self.engine
        before = engine.iterations.clone() if self.history else None
        if self.watcher:
            self.watcher.start_cycle()
        if self.history or self.watcher:
            engine.estimates.fill_(torch.nan)
        if self.compaction:
            self.compaction.keep(engine.status == RUNNING, engine.running(), between_cycles=True)
        stop = self.sweep_until_idle()
        if self.history and before is not None:
            self.history.add_cycle(before)
        engine.finish()
        if self.M and not self.problem.keeps_images:
            engine.correct(self.M(engine.direction))
        if self.compaction:
            self.compaction.keep(engine.status == RUNNING, engine.running(), between_cycles=True)
        engine.close(self.apply(engine.direction), stop=stop)

    def sweep_until_idle(self) -> bool:
        """The Arnoldi steps of one cycle. Returns whether the callback asked to stop."""
        engine = self.engine
        if self.problem.sweep is not None:
            taken = self.problem.sweep(engine)
            self.calls += taken
            self.sweeps += taken
            return False
        for j in range(self.problem.restart):
            self.step(j)
            if self.watcher and self.watcher.stop_after(self.sweeps, j):
                return True
            if engine.idle(j, wait=self.watcher is not None):
                break
            if self.compaction and self.problem.restart - j > _FEWEST_STEPS_LEFT:
                active = engine.active_systems(j)
                if active is not None:
                    self.compaction.keep(active, int(active.sum()), between_cycles=False)
        return False
