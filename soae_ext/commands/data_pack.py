"""`soae data pack`: images of any source in one safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .._files import check_writable
from ..data import ImageData
from ..data.packed import save_packed
from .errors import CommandError, blaming
from .inputs import read_data

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Pack images into one safetensors file, which --data takes wherever it is asked for.

    The file holds the pixels as 8-bit levels, the labels and the names of the classes, split by split; it needs no
    further library and loads in a moment. Exit status: 0 done, 2 bad input, 130 interrupted.
    """

    data: Annotated[Positional[str], arg(metavar="SPEC")]
    """Images, as --data of the other commands takes them: mnist:DIR, cifar10:DIR, hub:NAME, a directory of parquet
    files or with one folder per class, photos@224."""
    output: Annotated[Path, arg(metavar="FILE.safetensors")]
    """The file to write."""
    split: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("train", "test")
    """Splits to pack."""
    n: Annotated[tuple[int, ...], arg(metavar="INT [INT ...]", help_behavior_hint="(default: all)")] = ()
    """Take the first images only: so many of each split, one number for each or one for all."""
    round: bool = False
    """Take the nearest of the 256 levels where pixels are finer, as after photos@224, instead of refusing them."""


def run(options: Options, line: str) -> int:
    """Run the command; the exit status.

    Args:
        options: of the command line.
        line: the command line, for the record.

    Raises:
        CommandError: bad input; nothing is written then.
    """
    if options.output.suffix != ".safetensors":
        raise CommandError(f"--output: must end in .safetensors, got {options.output}")
    with blaming("--output"):
        check_writable(options.output)
    counts = _counts(options)
    splits = {split: read_data(options.data, split, n, option="SPEC") for split, n in counts.items()}
    try:
        save_packed(splits, options.output, rounding=options.round)
    except ValueError as error:
        hint = "; allow it with --round" if "8 bits" in str(error) else ""
        raise CommandError(f"SPEC: {error}{hint}") from error
    except OSError as error:
        raise CommandError(f"--output: {error.strerror or error}") from error
    print(_summary(options.output, splits))
    return 0


def _counts(options: Options) -> dict[str, int | None]:
    """How many images to take of each split; `None` is all."""
    if not options.split:
        raise CommandError("--split: name at least one")
    if len(set(options.split)) < len(options.split):
        raise CommandError(f"--split: each only once, got {' '.join(options.split)}")
    if len(options.n) not in (0, 1, len(options.split)):
        raise CommandError(
            f"--n: one number for all splits or one for each of {len(options.split)}, got {len(options.n)}"
        )
    counts = options.n or (None,)
    return dict(zip(options.split, counts * len(options.split) if len(counts) == 1 else counts, strict=True))


def _summary(path: Path, splits: dict[str, ImageData]) -> str:
    parts = ", ".join(f"{split} {len(data):,}" for split, data in splits.items())
    first = next(iter(splits.values()))
    shape = " x ".join(map(str, first.images.shape[1:]))
    classes = f" of {len(first.classes)} classes" if first.classes else ""
    return f"{path}: {parts} images {shape}{classes}, {path.stat().st_size / 1e6:.1f} MB"
