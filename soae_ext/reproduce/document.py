"""The result of a reproduction as one JSON document: the plan, filled with the cells that are finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..evaluation.document import strict
from . import paper
from .claims import claims
from .doubts import DOUBTS
from .folder import Folder
from .jobs import Job
from .plans import Block, Column, Row, Table

__all__ = ["compose"]

Document = dict[str, Any]

# What a reader wants of a cell; all of it is in its file.
_KEPT = (
    "robust",
    "images",
    "image_correct",
    "mean_loss",
    "gradients_per_image",
    "forwards_per_image",
    "krylov_dims",
    "psnr",
    "ssim",
    "seconds",
    "weights",
    "gradients",
    "steps",
    "objective",
    "epochs",
    "probe",
    "date",
    "processes",
)


def compose(tables: Iterable[Table], folder: Folder, facts: Mapping[str, object], left: Iterable[Job]) -> Document:
    """The document.

    Args:
        tables: the plan; what of it has no cell is null.
        folder: of the run; one that does not exist has no cells.
        facts: command, budget, scale and the rest about this call.
        left: jobs that were asked for and are not done.
    """
    found = [_table(table, folder) for table in tables]
    filled = {
        **facts,
        "left": [str(job) for job in left],
        "paper": paper.numbers()["source"],
        "tables": found,
        "doubts": list(DOUBTS),
    }
    document: Document = strict(filled)
    document["claims"] = [claim.as_json() for claim in claims(document)]
    return document


def _table(table: Table, folder: Folder) -> Document:
    return {
        "name": table.name,
        "title": table.title,
        "notes": table.notes,
        "blocks": [_block(table, block, folder) for block in table.blocks],
    }


def _block(table: Table, block: Block, folder: Folder) -> Document:
    return {
        "key": block.key,
        "title": block.title,
        "model": block.model,
        "eps": block.eps,
        "data": block.use.name,
        "training_images": block.use.train,
        "test_images": block.use.test,
        "epochs": block.recipe.epochs,
        "columns": [column.name for column in block.columns],
        "attacks": {column.name: column.attack for column in block.columns},
        "images": {column.name: column.images or block.use.test for column in block.columns},
        "paper_network": block.paper,
        "paper_dimensions": paper.dimensions(block.use.name) if block.dimensions else None,
        "rows": [
            *(_row(table, block, row, folder) for row in block.rows),
            *(_row(table, block, Row(name, None, ()), folder) for name in _unplanned(table, block)),
        ],
    }


def _unplanned(table: Table, block: Block) -> list[str]:
    """The paper's rows that the plan has no counterpart of."""
    planned = {row.name for row in block.rows}
    return [name for name in paper.rows(table.name, block.paper) if name not in planned]


def _row(table: Table, block: Block, row: Row, folder: Folder) -> Document:
    def cell(seed: int, column: Column | None = None, dimensions: bool = False) -> Document | None:
        return _compact(folder.read(Job(block, row, seed, column, dimensions).path(folder)))

    return {
        "name": row.name,
        "objective": row.objective,
        "epochs": row.epochs or block.recipe.epochs,
        "seeds": row.seeds,
        "training": None if row.seeds and row.objective is None else [cell(seed) for seed in row.seeds],
        "cells": {
            column.name: [cell(seed, column) if column in block.columns_of(row, seed) else None for seed in row.seeds]
            for column in block.columns
        },
        "dimensions": cell(row.seeds[0], dimensions=True) if block.dimensions and row.seeds else None,
        "paper": {
            column.name: paper.quality(block.use.name, column.paper)
            if table.name == "5"
            else paper.accuracy(table.name, block.paper, row.name, column.paper)
            for column in block.columns
        },
    }


def _compact(cell: Document | None) -> Document | None:
    if cell is None:
        return None
    if cell.get("kind") == "dimensions":
        return cell
    git = cell.get("git") or {}
    versions = cell.get("versions") or {}
    kept: Document = {name: cell[name] for name in _KEPT if name in cell}
    return {
        **kept,
        "commit": (git.get("soae_ext") or git.get("working_directory") or {}).get("commit"),
        "torch": versions.get("torch"),
        "threads": versions.get("threads"),
    }
