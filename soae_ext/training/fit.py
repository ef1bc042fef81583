"""Training a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..attacks import Attack
from ..data import ImageData
from .base import TrainingObjective
from .job import Job
from .loop import History, Outlets, Trainer, TrainingLog
from .processes import Processes, make_fabric
from .recipe import Recipe
from .run import RunDirectory
from .signals import StopSignals
from .sums import Row
from .validation import default_attack

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["History", "TrainingLog", "fit"]


def fit(
    model: nn.Module,
    train: ImageData,
    objective: TrainingObjective,
    recipe: Recipe = Recipe(),  # noqa: B008 - a frozen value
    *,
    validation: ImageData | None = None,
    attack: Attack | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
    log: TrainingLog | None = None,
    progress: Callable[[int, int, Row], None] | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> History:
    """Train `model` in place; in several processes, every one of them must call this with equal arguments.

    With equal seeds, batch size and threads the result is bitwise the same on the CPU, however often the run was
    killed and resumed. Several processes give what one gives up to rounding, but for layers that couple the images of
    a batch (batch normalisation takes its statistics in each process) or draw random numbers (dropout).

    With `run_dir`, SIGTERM and SIGINT end the run after the step at hand: it is saved, and `finished` is false.

    Args:
        model: maps images `(B, C, H, W)` in [0, 1] to logits. It is moved to the device of `fabric` and left there.
        train: the images to train on.
        objective: what is minimised.
        recipe: hyper-parameters.
        validation: images on which accuracies are measured after epochs; the best network is kept.
        attack: attacks them; `None` is PGD with 10 steps in the ball of the objective. Without a ball the best network
            is the one of the best clean accuracy.
        run_dir: where checkpoints and results go, see :mod:`soae_ext.training.run`; `None` keeps nothing.
        resume: go on with the run that `run_dir` holds. A model that starts otherwise than the run did is refused: call
            `torch.manual_seed` before it is made.
        fabric: devices and processes, see :func:`soae_ext.training.make_fabric`; `None` is the CPU, under `torchrun`
            that of all of its processes.
        log: gets the rows of the log, in the first process.
        progress: called in the first process after every step, with its number, that of all, and what was measured
            since the last row of the log.
        warn: called in the first process with a line about anything that was found damaged.

    Raises:
        ValueError, TypeError: bad arguments, before any work, or data that do not fit the network; `run_dir` holds
            something else. The message starts with the argument.
        ImportError: lightning-fabric is not installed.
        OSError: a file cannot be written; what was saved before is intact.
        FloatingPointError: loss or gradients are not finite; the parameters are as they were before that step, and so
            are the checkpoints.
    """
    processes = Processes(fabric or make_fabric(precision=recipe.precision))
    job = Job(model, train, objective, recipe, validation, attack or default_attack(objective))
    processes.agree(lambda: _check(job, processes, run_dir, resume))
    signals = StopSignals(enabled=run_dir is not None, impatient=processes.shard.world == 1)
    with ExitStack() as stack:
        outlets = Outlets(log=log, progress=progress) if processes.leader else Outlets()

        def open_directory() -> None:
            if run_dir is not None:
                opened = RunDirectory(run_dir, job.fingerprint(), resume=resume, warn=warn)
                outlets.directory = stack.enter_context(opened)

        processes.lead(open_directory)
        stack.enter_context(torch.random.fork_rng([processes.device] if processes.device.type == "cuda" else []))
        stack.enter_context(signals)
        return Trainer(job, processes, signals, outlets, run_dir).run()


def _check(job: Job, processes: Processes, run_dir: Path | None, resume: bool) -> None:
    job.check()
    job.recipe.share(processes.shard.world)
    if resume and run_dir is None:
        raise ValueError("resume: there is nothing to go on from without run_dir")
    precision = processes.fabric.strategy.precision.precision
    if precision != job.recipe.precision:
        raise ValueError(
            f"precision: the recipe says {job.recipe.precision}, but fabric computes in {precision}; "
            "make it by make_fabric(device, recipe.precision)"
        )
