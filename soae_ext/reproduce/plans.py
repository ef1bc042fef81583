"""What a table at a budget consists of: networks, data, rows (objectives), columns (attacks), seeds. Values alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from ..attacks import Attack, AutoAttack
from ..attacks.names import parse_attack
from ..training import TrainingObjective
from ..training.names import parse_objective
from ..training.recipe import Recipe
from ..training.schedule import ball_of

__all__ = ["BUDGETS", "TABLES", "Block", "Budget", "Column", "Row", "Table", "TableName", "Use", "scaled"]

Budget = Literal["cpu", "gpu", "paper"]
BUDGETS: tuple[Budget, ...] = ("cpu", "gpu", "paper")
TableName = Literal["1", "2", "3", "4", "5", "equal-gradients", "single-step"]
TABLES: tuple[TableName, ...] = ("1", "2", "3", "4", "5", "equal-gradients", "single-step")

# A rehearsal cuts batches to multiples of this, so that 2, 4 or 8 processes can share them.
_SHARED = 8


@dataclass(frozen=True)
class Use:
    """Which images of a data set are used.

    Attributes:
        name: `mnist`, `cifar10`, `imagenet-sample` or `imagenet100`; where they are is said on the command line.
        train: training images, the first so many with those held out; `None` is all.
        held_out: of them, for the validation after an epoch.
        test: test images that are attacked, the first so many; `None` is all.
        test_split: what the split of the test images is called.
    """

    name: str
    train: int | None = None
    held_out: int = 1000
    test: int | None = None
    test_split: str = "test"


@dataclass(frozen=True)
class Row:
    """How a network is trained.

    Attributes:
        name: as the tables show it; the paper's names where the paper has the row.
        objective: as :func:`soae_ext.training.names.parse_objective` takes it; `None` for a network that comes trained.
        seeds: one training for each.
        epochs: instead of those of the recipe.
    """

    name: str
    objective: str | None
    seeds: tuple[int, ...] = (0,)
    epochs: int | None = None


@dataclass(frozen=True)
class Column:
    """What is measured of a network.

    Attributes:
        name: as the tables show it.
        attack: as :func:`soae_ext.attacks.names.parse_attack` takes it; `None` measures the clean accuracy.
        paper: the paper's column that it stands for; `None`: the paper has none.
        images: the first so many of the test images; `None` is all of them.
        every_seed: measure the networks of all seeds, not of the first alone.
    """

    name: str
    attack: str | None
    paper: str | None = None
    images: int | None = None
    every_seed: bool = True


@dataclass(frozen=True)
class Block:
    """One network on one data set: the rows and columns of a table, or of a part of it.

    Attributes:
        key: names its files; blocks of one key in several tables share their trainings and measurements.
        title: for the reader.
        model: as :func:`soae_ext.models.load_model` takes it.
        use: the images.
        eps: radius of the Linf ball of training and attacks.
        recipe: of the training; its seed is that of the row.
        rows, columns: of the table.
        batch_size: images attacked at once.
        paper: the paper's block that it stands beside, `"ResNet18"`; `None`: the paper has none.
        probe: measure FGSM after every epoch too, beside the PGD of the validation.
        dimensions: count Krylov dimensions on so many test images instead of measuring columns; 0 does not.
    """

    key: str
    title: str
    model: str
    use: Use
    eps: float
    recipe: Recipe
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    batch_size: int = 250
    paper: str | None = None
    probe: bool = False
    dimensions: int = 0

    def objective(self, row: Row) -> TrainingObjective | None:
        """What the row minimises, in the ball of the block; `None` for a network that comes trained."""
        return None if row.objective is None else parse_objective(row.objective, eps=self.eps)[1]

    def attack(self, column: Column) -> Attack | None:
        """The attack of a column, in the ball of the block, with seed 0; `None` for the clean accuracy."""
        return None if column.attack is None else parse_attack(column.attack, self.eps, seed=0)[1]

    def recipe_of(self, row: Row, seed: int) -> Recipe:
        """The recipe for one training; without a ball there is no radius that could grow."""
        objective = self.objective(row)
        warmup = self.recipe.eps_warmup if objective is not None and ball_of(objective) is not None else 0.0
        return replace(self.recipe, seed=seed, epochs=row.epochs or self.recipe.epochs, eps_warmup=warmup)

    def columns_of(self, row: Row, seed: int) -> tuple[Column, ...]:
        """What is measured of the network of one row and seed."""
        return tuple(column for column in self.columns if column.every_seed or seed == row.seeds[0])


@dataclass(frozen=True)
class Table:
    """One table, or one study of ours.

    Attributes:
        name: as `--table` takes it.
        title: for the reader.
        blocks: its parts.
        notes: what a reader must know of the plan.
    """

    name: TableName
    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = field(default=())


def scaled(tables: Iterable[Table], scale: float) -> list[Table]:
    """The tables as a rehearsal: `scale` times the images, epochs, and steps and queries of AutoAttack.

    At least 16 training images, 8 for the validation, 4 test images, one epoch, and of AutoAttack 5 steps and 20
    queries are left; batches are cut to what the training images fill twice.

    Args:
        scale: in (0, 1]; 1 changes nothing.

    Raises:
        ValueError: it is out of range.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale: must be above 0 and at most 1, got {scale:g}")
    if scale == 1:
        return list(tables)
    return [replace(table, blocks=tuple(_scaled_block(block, scale) for block in table.blocks)) for table in tables]


# What there is of each data set, where a plan takes all: training and test images.
_ALL = {"mnist": (60000, 10000), "cifar10": (50000, 10000), "imagenet100": (95000, 5000), "imagenet-sample": (0, 1000)}


def _scaled_block(block: Block, scale: float) -> Block:
    train, test = _ALL[block.use.name]
    trained = max(16, round(scale * ((block.use.train or train) - block.use.held_out)))
    held_out = max(8, round(scale * block.use.held_out))
    images = max(4, round(scale * (block.use.test or test)))
    batch = min(block.recipe.batch_size, max(_SHARED, trained // 2 // _SHARED * _SHARED))
    recipe = replace(block.recipe, batch_size=batch, epochs=max(1, round(scale * block.recipe.epochs)))
    rows = (replace(row, epochs=row.epochs and max(1, round(scale * row.epochs))) for row in block.rows)
    return replace(
        block,
        use=replace(block.use, train=trained + held_out, held_out=held_out, test=images),
        recipe=recipe,
        rows=tuple(rows),
        columns=tuple(_scaled_column(block, column, scale, images) for column in block.columns),
        dimensions=block.dimensions and min(images, block.dimensions),
    )


def _scaled_column(block: Block, column: Column, scale: float, images: int) -> Column:
    attack, spec = block.attack(column), column.attack
    if isinstance(attack, AutoAttack):
        steps, queries = max(5, round(scale * attack.steps)), max(20, round(scale * attack.n_queries))
        spec = f"AutoAttack:steps={steps},n_queries={queries}"
    return replace(column, attack=spec, images=column.images and min(images, column.images))
