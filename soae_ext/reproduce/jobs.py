"""What there is to do, in which order, and what is done already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.store import digest
from .folder import Folder
from .plans import Block, Column, Row, Table

__all__ = ["TRAINING", "Choice", "Job", "jobs", "pending"]

# Names of the cells that are no columns.
TRAINING, DIMENSIONS = "training", "Krylov dimensions"


@dataclass(frozen=True)
class Job:
    """One cell: a training (`column` is `None`), a measurement of a column, or of Krylov dimensions."""

    block: Block
    row: Row
    seed: int
    column: Column | None = None
    dimensions: bool = False

    @property
    def name(self) -> str:
        """Of the cell, among those of its row and seed."""
        if self.dimensions:
            return DIMENSIONS
        return TRAINING if self.column is None else self.column.name

    @property
    def training(self) -> bool:
        """Whether the cell is a training."""
        return self.column is None and not self.dimensions

    def __str__(self) -> str:
        return f"{self.block.key}, {self.row.name}, seed {self.seed}: {self.name}"

    def path(self, folder: Folder) -> Path:
        """The file of the cell."""
        return folder.path(self.block.key, self.row.name, self.seed, self.name)

    @property
    def plan(self) -> str:
        """Digest of all that the plan says of the cell; the data come from outside of it."""
        block, row = self.block, self.row
        training = (block.model, row.objective, block.eps, block.use.name, block.use.train, block.use.held_out)
        parts: list[object] = [training, block.recipe_of(row, self.seed).result_options, block.probe]
        if not self.training:
            parts += [block.use.test, block.use.test_split]
        if self.dimensions:
            parts.append(block.dimensions)
        elif self.column is not None:
            parts += [self.column.attack, self.column.images, block.batch_size]
        return digest(*parts)


@dataclass(frozen=True)
class Choice:
    """Rows, columns and networks to work on, and how many seeds; empty is all."""

    rows: frozenset[str] = field(default_factory=frozenset)
    columns: frozenset[str] = field(default_factory=frozenset)
    networks: frozenset[str] = field(default_factory=frozenset)
    seeds: int | None = None

    def takes(self, job: Job) -> bool:
        """Whether the job is among them; trainings are whatever the columns."""
        return (
            (not self.networks or job.block.key in self.networks)
            and (not self.rows or job.row.name in self.rows)
            and (not self.columns or job.training or job.name in self.columns)
            and (self.seeds is None or job.row.seeds.index(job.seed) < self.seeds)
        )


def jobs(tables: Iterable[Table], choice: Choice) -> list[Job]:
    """All cells in the order of the work: every table with its first seed before any second one.

    A cell that several tables show is there once.
    """
    found: dict[tuple[str, str, int, str], Job] = {}
    for place, table in _rounds(list(tables)):
        for block in table.blocks:
            for row in block.rows:
                if place < len(row.seeds):
                    for job in _of_network(block, row, row.seeds[place]):
                        if choice.takes(job):
                            found.setdefault((block.key, row.name, job.seed, job.name), job)
    return list(found.values())


def pending(work: Iterable[Job], folder: Folder) -> list[Job]:
    """The jobs whose cells are not there yet.

    Raises:
        ValueError: a cell was made by another plan; the message starts with `run_dir`.
    """
    left = []
    for job in work:
        cell = folder.read(job.path(folder))
        if cell is None:
            left.append(job)
        elif cell.get("plan") != job.plan:
            raise ValueError(f"run_dir: {job.path(folder)} was made by another plan: name another directory")
    return left


def _rounds(tables: list[Table]) -> Iterator[tuple[int, Table]]:
    most = max((len(row.seeds) for table in tables for block in table.blocks for row in block.rows), default=0)
    return ((place, table) for place in range(most) for table in tables)


def _of_network(block: Block, row: Row, seed: int) -> Iterator[Job]:
    if row.objective is not None:
        yield Job(block, row, seed)
    for column in block.columns_of(row, seed):
        yield Job(block, row, seed, column)
    if block.dimensions:
        yield Job(block, row, seed, dimensions=True)
