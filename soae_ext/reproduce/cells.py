"""Making cells: a training by `fit`, a measurement by the evaluation's runner."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import ImageData, load_data
from ..evaluation import Runner, Store
from ..evaluation.document import attack_options, data_entry
from ..evaluation.provenance import git_commits, hardware, versions
from ..models import check_model, load_model
from ..training import fit
from ..training.log import RunLog
from ..training.processes import Processes
from .dimensions import krylov_dimensions
from .folder import Folder
from .jobs import Job
from .limit import Limit, LimitedProgress
from .plans import Use
from .probe import Probe

__all__ = ["Stopped", "Worker", "read_images"]


class Stopped(Exception):
    """A training was asked to stop, by a signal or because the time is used; it is saved."""


def read_images(sources: Mapping[str, str], name: str, split: str, n: int | None) -> ImageData:
    """The first `n` images of a split, or all.

    Raises:
        ValueError: they cannot be read; the message starts with `data`.
    """
    try:
        return load_data(sources[name], split, n)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"data: {name} ({split}): {error}") from error


@dataclass(eq=False)
class Worker:
    """Makes cells in a run directory; in several processes, every one of them must make the same ones.

    Args:
        folder: of the run, claimed.
        sources: data set -> how :func:`soae_ext.data.load_data` finds it.
        processes: device and processes.
        limit: when to stop.
        warn: called with a line about anything damaged that was found.
    """

    folder: Folder
    sources: Mapping[str, str]
    processes: Processes
    limit: Limit
    warn: Callable[[str], None]
    _data: dict[tuple[str, str], tuple[int | None, ImageData]] = field(default_factory=dict)
    _network: tuple[Path, nn.Module] | None = None

    def make(self, job: Job) -> None:
        """Make one cell and keep it.

        Raises:
            OutOfTime, Stopped: the limit is reached, or a signal came; what was done is kept.
            ValueError, TypeError: data or network do not fit; the message starts with the argument to blame.
            OSError: data cannot be read, or the directory cannot be written.
            FloatingPointError: the training diverged.
        """
        if job.training:
            cell = self._train(job)
        elif job.dimensions:
            cell = self._dimensions(job)
        else:
            cell = self._measure(job)
        if self.processes.leader:
            self.folder.write(job.path(self.folder), {"plan": job.plan, **cell, **self._provenance()})
        self.processes.shard.gather(None)

    def _train(self, job: Job) -> dict[str, Any]:
        block, row, seed = job.block, job.row, job.seed
        train, validation = self._training_data(block.use)
        objective = block.objective(row)
        assert objective is not None
        torch.manual_seed(seed)
        model = load_model(block.model)
        directory = self.folder.training(block.key, row.name, seed)
        directory.mkdir(parents=True, exist_ok=True)
        probe_file = self.folder.probe(block.key, row.name, seed)
        with RunLog(directory, tensorboard=False) as log:
            history = fit(
                model,
                train,
                objective,
                block.recipe_of(row, seed),
                validation=validation,
                run_dir=directory,
                resume=True,
                fabric=self.processes.fabric,
                log=Probe(log, model, block.eps, validation, self.processes.device, probe_file) if block.probe else log,
                progress=lambda *_: self.limit.end_training(),
                warn=self.warn,
            )
        if not history.finished:
            raise Stopped
        last = history.epochs[-1]
        return {
            "kind": "training",
            "objective": {"spec": row.objective, "options": repr(objective), **asdict(objective.cost())},
            "recipe": block.recipe_of(row, seed).result_options,
            "epochs": history.epochs,
            "probe": json.loads(probe_file.read_text(encoding="utf-8")) if block.probe else None,
            "steps": history.steps,
            "gradients": last["gradients"],
            "gradients_per_image": last["gradients_per_image"],
            "seconds": last["seconds"],
            "network": str((directory / "model.safetensors").relative_to(self.folder.directory)),
            "data": data_entry(train),
            "validation": data_entry(validation),
        }

    def _measure(self, job: Job) -> dict[str, Any]:
        assert job.column is not None
        attack = job.block.attack(job.column)
        data = self._test_data(job.block.use).first(job.column.images)
        path = job.path(self.folder)
        limit = self.limit if self.processes.shard.world == 1 else None
        with LimitedProgress(limit, shown=self.processes.leader) as bar:
            runner = self._runner(job, data)
            runner.progress, runner.store = bar, self._store(job, path)
            if attack is None:
                clean = runner.clean(data)
                found: dict[str, Any] = {"robust": clean.accuracy.as_json(), "mean_loss": clean.loss}
                correct = clean.correct
            else:
                measured = runner.run("attack", job.column.name, attack, data, images=False)
                found = {"options": attack_options(attack), **measured.as_json()}
                correct = ~measured.success
            if runner.store is not None and self.processes.leader:
                runner.store.remove()
        return {
            "kind": "accuracy",
            "attack": job.column.attack,
            **found,
            "images": len(data),
            "image_correct": "".join("1" if each else "0" for each in correct.tolist()),
            "weights": runner.fingerprint,
            "data": data_entry(data),
        }

    def _dimensions(self, job: Job) -> dict[str, Any]:
        data = self._test_data(job.block.use).first(job.block.dimensions)
        runner = self._runner(job, data)
        found = krylov_dimensions(runner.model, data, self.processes.device) if self.processes.leader else {}
        return {"kind": "dimensions", **found, "weights": runner.fingerprint, "data": data_entry(data)}

    def _runner(self, job: Job, data: ImageData) -> Runner:
        model = self._trained(job)
        check_model(model, data)
        return Runner(model, self.processes.device, job.block.batch_size, None, self.processes.shard)

    def _trained(self, job: Job) -> nn.Module:
        """The network of the row, kept for the next cell of it."""
        if job.row.objective is None:
            path, checkpoint = Path(job.block.model), None
        else:
            path = checkpoint = self.folder.training(job.block.key, job.row.name, job.seed) / "model.safetensors"
            training = Job(job.block, job.row, job.seed)
            if self.folder.read(training.path(self.folder)) is None:
                raise ValueError(f"rows: {training} is not finished; take its row in")
        if self._network is None or self._network[0] != path:
            self._network = path, load_model(job.block.model, checkpoint)
        return self._network[1]

    def _store(self, job: Job, path: Path) -> Store:
        """Where the batches of a measurement are kept; made by the first process."""
        shard = self.processes.shard
        for turn in (True, False):
            if shard.leader is turn:
                store = Store(self.folder.parts(path), {"cell": str(job), "plan": job.plan})
            shard.gather(None)
        return store

    # Data

    def _training_data(self, use: Use) -> tuple[ImageData, ImageData]:
        whole = self._load(use.name, "train", use.train)
        return whole.hold_out(use.held_out)

    def _test_data(self, use: Use) -> ImageData:
        return self._load(use.name, use.test_split, use.test)

    def _load(self, name: str, split: str, n: int | None) -> ImageData:
        """The first `n` images of a split, which is decoded once, as far as it was asked for; always the same ones."""
        kept = self._data.get((name, split))
        if kept is None or (kept[0] is not None and (n is None or kept[0] < n)):
            kept = self._data[name, split] = n, read_images(self.sources, name, split, n)
        images = kept[1].first(n)
        said = f"the {'' if n is None else f'first {n} '}images of {name} ({split})"
        self.processes.lead(lambda: self.folder.check_data(said, images.fingerprint))
        return images

    def _provenance(self) -> dict[str, Any]:
        return {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "git": git_commits(),
            "versions": versions(),
            "hardware": hardware(self.processes.device),
            "processes": self.processes.shard.world,
        }
