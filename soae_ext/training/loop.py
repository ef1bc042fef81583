"""The training loop: steps, validations and checkpoints, the same in every process."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..data import ImageData
from .batches import Batches
from .ema import MovingAverage
from .job import Job
from .processes import Processes
from .recipe import Recipe
from .run import Best, RunDirectory
from .schedule import learning_rate, radius_factor
from .signals import StopSignals
from .state import Learner, Progress
from .sums import Row, Sums
from .validation import validate

__all__ = ["History", "Outlets", "Trainer", "TrainingLog"]


class TrainingLog(Protocol):
    """What :func:`soae_ext.training.fit` asks of a log; :class:`soae_ext.training.log.RunLog` is one."""

    def step(self, row: Row) -> None:
        """Add a row about training batches."""

    def epoch(self, row: Row) -> None:
        """Add a row about an epoch and its validation."""

    def rewind(self, step: int, *, epochs: int) -> None:
        """Drop the rows about later steps, and about later epochs."""

    def sync(self) -> None:
        """Wait until all rows are on the disk."""


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """What became of a run.

    Attributes:
        model: the trained network, or its moving average, in eval mode.
        epochs: a row for every epoch since the start of the run, with the columns of the log.
        step, steps: updates made, and those of the whole training.
        finished: whether all of them were made, and validated; otherwise a signal stopped the run, which was saved.
        best: the best validation in the directory of the run; without a directory, of this call.
    """

    model: nn.Module
    epochs: list[Row]
    step: int
    steps: int
    finished: bool
    best: Best | None

    def __repr__(self) -> str:
        return f"History(step {self.step} of {self.steps}, {'finished' if self.finished else 'stopped'}, {self.best})"


@dataclass
class Outlets:
    """Where a run goes; only the first process has any of them.

    Attributes:
        directory: of checkpoints and results.
        log: gets rows.
        progress: called after every step with its number, that of all, and the means since the last row.
    """

    directory: RunDirectory | None = None
    log: TrainingLog | None = None
    progress: Callable[[int, int, Row], None] | None = None


@dataclass(eq=False)
class Trainer:
    """One call of :func:`soae_ext.training.fit`.

    Every process has one, and all do the same: what one of them knows alone (a failure, a signal, the time) is told to
    all at every step, before anything is changed.
    """

    job: Job
    processes: Processes
    signals: StopSignals
    outlets: Outlets = field(default_factory=Outlets)
    run_dir: Path | None = None

    def __post_init__(self) -> None:
        job, processes = self.job, self.processes
        recipe = self.recipe = job.recipe
        self.batches = Batches(job.train, recipe, processes.device, processes.shard.rank, processes.shard.world)
        self.per_epoch, self.steps = recipe.steps(len(job.train))
        job.model.to(processes.device)
        if recipe.channels_last:
            job.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        processes.equalize(job.model)
        self.parameters = [parameter for parameter in job.model.parameters() if parameter.requires_grad]
        average = MovingAverage(job.model, recipe.ema) if recipe.ema else None
        self.learner = Learner(job.model, make_optimizer(self.parameters, recipe), average)
        self.progress = Progress()
        self.best: Best | None = None
        self.saved_at = time.monotonic()
        self.saved_step: int | None = None  # of the newest checkpoint

    def run(self) -> History:
        """Train until all steps are made or a signal asks to stop."""
        self._restore()
        going = True
        while going and not self.finished:
            if self._between_epochs():
                going = self._end_epoch()
                self._save()
                continue
            stop, due = self._step()
            going = not stop
            # A checkpoint that is due at the end of an epoch is written after the validation, unless there is no time.
            if stop or (due and not self._between_epochs()):
                self._save()
        self.job.model.eval()
        if self.finished:
            self.processes.lead(self._write_result)
        progress = self.progress
        return History(self.learner.result, progress.epochs, progress.step, self.steps, self.finished, self.best)

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1; 0 before the first."""
        return -(-self.progress.step // self.per_epoch)

    @property
    def finished(self) -> bool:
        """Whether all steps were made, and the last epoch was ended."""
        return self.progress.step == self.steps and len(self.progress.epochs) == self.epoch

    def _between_epochs(self) -> bool:
        """Whether the last step was the last of an epoch that was not ended yet."""
        step = self.progress.step
        return (step % self.per_epoch == 0 or step == self.steps) and len(self.progress.epochs) < self.epoch

    # Steps

    def _step(self) -> tuple[bool, bool]:
        """Make one update; whether a signal asks to stop, and whether a checkpoint is due.

        Raises, in all processes:
            FloatingPointError: the loss or its gradient is not finite; nothing was changed.
            Exception: whatever the objective raised in one of them.
        """
        start, step = time.perf_counter(), self.progress.step
        sums, stop, due = self._meet()
        self._check(sums.loss, "the loss")
        self.processes.average([*self._gradients(), *self.job.model.buffers()])
        rate = self._update(step)
        self.progress.add(replace(sums, seconds=time.perf_counter() - start))
        self._report(rate)
        every = self.recipe.checkpoint_steps
        return stop, due or (every is not None and self.progress.step % every == 0)

    def _meet(self) -> tuple[Sums, bool, bool]:
        """Gradients of this process's part of the batch; the sums of all, and whether one of them wants to stop."""
        failure: Exception | None = None
        sums = Sums()
        try:
            sums = self._backward()
        except Exception as error:
            failure = error
        due = self.processes.leader and time.monotonic() - self.saved_at >= self.recipe.checkpoint_seconds
        flags = (float(failure is not None), float(self.signals.received), float(due))
        failed, stop, anyone_due, *values = self.processes.sum([*flags, *sums.values])
        if failed:
            if isinstance(failure, FloatingPointError):
                failure = self._diverged(str(failure))
            self.processes.agree(lambda: _fail(failure))
        return Sums(*values), stop > 0, anyone_due > 0

    def _backward(self) -> Sums:
        progress, model = self.progress, self.job.model
        batch = self.batches[progress.step]
        objective = self.job.objective.scaled(radius_factor(self.recipe, progress.step, self.steps))
        torch.manual_seed(batch.layers_seed)
        model.train()
        self.learner.optimizer.zero_grad(set_to_none=True)
        with self.processes.fabric.autocast():
            result = objective.step(model, batch.images, batch.labels, seed=batch.seed, index=batch.index)
        torch.autograd.backward(result.loss)
        return Sums.of(result)

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def _update(self, step: int) -> float:
        """Move the parameters along their gradients; the learning rate."""
        norm = get_total_norm(self._gradients())
        self._check(norm.item(), "the gradient's norm")
        if self.recipe.clip_gradient is not None:
            clip_grads_with_norm_(self.parameters, self.recipe.clip_gradient, norm)
        rate = learning_rate(self.recipe, step, self.steps)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = rate
        self.learner.optimizer.step()
        if self.learner.average is not None:
            self.learner.average.update(self.job.model, step + 1)
        return rate

    def _check(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise self._diverged(f"{what} is {value} in step {self.progress.step + 1}")

    def _diverged(self, what: str) -> FloatingPointError:
        """What happened, what to do, and what is kept."""
        text = f"{what}: begin another run with a smaller lr, or clip_gradient"
        if self.run_dir is not None and self.saved_step is not None:
            best = "" if self.best is None else "best.safetensors, which it may start from, and "
            text += f"; {self.run_dir} keeps {best}the state of step {self.saved_step}"
        return FloatingPointError(text)

    # Log

    def _report(self, rate: float) -> None:
        """Tell the first process's outlets about the last step."""
        progress, outlets = self.progress, self.outlets
        row = self._row(progress.row, rate)
        due = progress.step % self.recipe.log_every == 0
        if outlets.progress:
            outlets.progress(progress.step, self.steps, row)
        if due:
            self.processes.lead(lambda: outlets.log.step(row) if outlets.log else None)
            progress.row = Sums()

    def _row(self, sums: Sums, rate: float) -> Row:
        progress = self.progress
        position: Row = {"step": progress.step, "epoch": self.epoch, "lr": rate}
        return {**position, **sums.row(), "gradients": progress.gradients, "seconds": progress.seconds}

    # Epochs

    def _end_epoch(self) -> bool:
        """Validate, log, and keep the network if it is the best; false if a signal came first."""
        progress, validation = self.progress, self.job.validation
        last, turn = progress.step == self.steps, self.epoch % self.recipe.validate_every == 0
        clean, robust = None, None
        if validation is not None and (last or turn):
            found = self._validate(validation)
            if found is None:
                return False
            clean, robust = found
        rate = learning_rate(self.recipe, progress.step - 1, self.steps)
        row = {**self._row(progress.epoch, rate), "clean_accuracy": clean, "robust_accuracy": robust}
        progress.epochs.append(row)
        progress.epoch = Sums()
        self.processes.lead(lambda: self.outlets.log.epoch(row) if self.outlets.log else None)
        if clean is not None:
            self._compare(clean if robust is None else robust)
        return True

    def _validate(self, data: ImageData) -> tuple[float, float | None] | None:
        try:
            return self._validated(data)
        except FloatingPointError as error:
            raise self._diverged(str(error)) from error

    def _validated(self, data: ImageData) -> tuple[float, float | None] | None:
        return validate(
            self.learner.result,
            data,
            self.job.attack,
            self.processes,
            batch_size=self.batches.share,
            stopped=lambda: self.signals.received,
        )

    def _compare(self, accuracy: float) -> None:
        """Keep the network if it is better than the best so far."""
        if self.best is not None and accuracy <= self.best.accuracy:
            return
        best = self.best = Best(self.progress.step, self.epoch, accuracy)

        def write() -> None:
            if self.outlets.directory:
                self.outlets.directory.save_best(self.learner.result, best, self._notes())

        self.processes.lead(write)

    # Files

    def _restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        directory, log = self.outlets.directory, self.outlets.log
        found, self.best = self.processes.lead(
            lambda: (directory.newest(), directory.best()) if directory else (None, None)
        )
        if found is not None:
            tensors, numbers, self.progress = found
            self.learner.restore(tensors, numbers)
            self.saved_step = self.progress.step
        progress = self.progress
        self.processes.lead(lambda: log.rewind(progress.step, epochs=len(progress.epochs)) if log else None)

    def _save(self) -> None:
        """Write a checkpoint; what the log says so far is on the disk before."""
        log, directory = self.outlets.log, self.outlets.directory

        def write() -> None:
            if directory:
                if log:
                    log.sync()
                directory.save(self.learner, self.progress)

        self.processes.lead(write)
        self.saved_at = time.monotonic()
        if self.run_dir is not None:
            self.saved_step = self.progress.step

    def _write_result(self) -> None:
        if self.outlets.directory:
            self.outlets.directory.save_result(self.learner.result, self._notes())

    def _notes(self) -> dict[str, str]:
        """What a file of weights says about where they come from."""
        job, row = self.job, self.progress.epochs[-1]
        notes = {
            "objective": repr(job.objective),
            "data": job.train.name,
            "recipe": json.dumps(job.recipe.result_options),
            "step": str(self.progress.step),
            "attack": repr(job.attack),
        }
        measured = {name: repr(row[name]) for name in ("clean_accuracy", "robust_accuracy") if row[name] is not None}
        return {**notes, **measured}


def make_optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe; its learning rate is set at every step."""
    lr, decay, betas = recipe.lr, recipe.weight_decay, (recipe.momentum, 0.999)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, recipe.momentum, weight_decay=decay, nesterov=recipe.nesterov)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr, betas, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr, betas, weight_decay=decay)


def _fail(failure: Exception | None) -> None:
    if failure is not None:
        raise failure
