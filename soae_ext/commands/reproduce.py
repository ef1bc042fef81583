"""`soae reproduce`: the paper's tables, measured; every cell is kept as soon as it is finished."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import torch
from tyro.conf import arg

import soae_ext

from .._files import check_writable
from .._names import unknown_name
from ..attacks.checks import check_count
from ..evaluation import FailedElsewhere, Shard
from ..evaluation.document import write_json
from ..evaluation.provenance import git_commits, hardware, versions
from ..models import load_model
from ..reproduce.budgets import make_table
from ..reproduce.cells import Stopped, Worker, read_images
from ..reproduce.document import compose
from ..reproduce.folder import Folder
from ..reproduce.jobs import Choice, Job, jobs, pending
from ..reproduce.limit import Limit, OutOfTime
from ..reproduce.plans import TABLES, Budget, Table, scaled
from ..reproduce.render import html, markdown, write_text
from ..reproduce.tables import sections
from ..training.processes import Processes, make_fabric
from .errors import CommandError, blaming, reason
from .inputs import Number, choose_device, threads
from .outputs import Outputs

__all__ = ["Options", "run"]

_DATA = ("mnist", "cifar10", "imagenet-sample", "imagenet100")
# Data sets that `soae_ext.data.load_data` knows by name; the pictures of the other are made 224 pixels wide.
_NAMED = ("mnist", "cifar10", "imagenet-sample")


@dataclass(frozen=True)
class Options:
    """Measure the tables of the paper: train the rows, attack the columns, and say which of its claims hold.

    Every training and every measurement is kept in the run directory when it is finished. Whatever ends a run, the same
    command continues it, with the same numbers; more tables may be added to a directory later. With --output,
    FILE.json, FILE.md and FILE.html show what there is, beside the paper's numbers.
    `torchrun --nproc-per-node=2 -m soae_ext.cli -- reproduce ...` shares trainings and attacks between processes.
    Exit status: 0 done, or stopped by --minutes; 1 a training diverged; 2 bad input; 130 stopped by SIGTERM or Ctrl-C.
    """

    table: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="(required)")] = ()
    """1 to 5, equal-gradients, single-step, or all."""
    budget: Budget = "cpu"
    """cpu: small networks, hours; gpu: ResNet-18; paper: the paper's settings, for a cluster."""
    run_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(required)")] = None
    """Directory of the run; made if need be. One that holds another run, or anything else, is refused."""
    data: Annotated[
        tuple[str, ...], arg(metavar="DIR | NAME=SPEC [...]", help_behavior_hint="(default: folder SOAE_DATA_DIR)")
    ] = ()
    """Folder that holds mnist/, cifar10/, imagenet-sample/ and imagenet100/, or NAME.safetensors of `soae data pack`;
    or single data sets, mnist=mnist.safetensors."""
    minutes: Annotated[Number | None, arg(metavar="FLOAT", help_behavior_hint="(default: until all is done)")] = None
    """Stop after so many minutes, at the next batch of an attack or step of a training. 0 only writes what there is."""
    seeds: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: those of the plan)")] = None
    """Train and measure the first so many seeds of every row only."""
    rows: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="(default: all)")] = ()
    """Work on these rows only: STD PGD SOAT ..., as the tables call them."""
    columns: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="(default: all)")] = ()
    """Work on these columns only: clean FGSM PGD-20 AutoAttack ..."""
    networks: Annotated[tuple[str, ...], arg(metavar="KEY [KEY ...]", help_behavior_hint="(default: all)")] = ()
    """Work on these networks only: mnist-small-cnn ..., as the folders in DIR/cells are called."""
    scale: Number = 1.0
    """Rehearse: so many times the images, the epochs, and the steps and queries of AutoAttack. The result says so."""
    output: Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: none)")] = None
    """Write the tables here as JSON, and FILE.md and FILE.html beside it."""
    device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: that of the budget)")] = None
    """Where to work: cpu, cuda, cuda:1, ..."""
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: torch's)")] = None
    """CPU threads of each process."""


def run(options: Options, line: str) -> int:
    """Run the command; the exit status.

    Args:
        options: of the command line.
        line: the command line, for the record.

    Raises:
        CommandError: bad input, before any work; a full disk, when it is found.
    """
    tables, outputs = _check(options)
    shard = Shard.from_environment()
    try:
        with shard.together(), threads(options.threads), _terminable():
            return _run(options, line, tables, outputs, shard)
    except FailedElsewhere as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        if shard.leader:
            print("soae reproduce: interrupted; the same command continues", file=sys.stderr)
        raise


def _run(options: Options, line: str, tables: list[Table], outputs: Outputs | None, shard: Shard) -> int:
    assert options.run_dir is not None
    device = options.device or ("cpu" if options.budget == "cpu" else "cuda")
    folder = Folder(options.run_dir)
    fingerprint = _fingerprint(options, device)
    with blaming():
        folder.check(fingerprint)
        work = jobs(tables, _choice(options, tables))
        left = pending(work, folder)
    status = 0
    if left and options.minutes != 0:
        status = _work(options, left, folder, fingerprint, device, shard)
        left = pending(work, folder)
    if shard.leader:
        _report(options, line, tables, outputs, folder, left, device)
    return status


def _work(
    options: Options, left: list[Job], folder: Folder, fingerprint: dict[str, object], device: str, shard: Shard
) -> int:
    """Make cells until all are there, the time is used or a signal comes; the exit status."""
    sources = _sources(options.data)
    limit = Limit(options.minutes)
    _check_work(left, sources, device, shard)
    precisions = {job.block.recipe.precision for job in left if job.row.objective is not None} or {"32-true"}
    (precision,) = precisions  # a budget computes in one
    with blaming():
        processes = Processes(make_fabric(device, precision))
        processes.lead(lambda: folder.claim(fingerprint))
    worker = Worker(folder, sources, processes, limit, lambda text: print(f"soae reproduce: {text}", file=sys.stderr))
    diverged: set[tuple[str, str, int]] = set()
    for number, job in enumerate(left):
        network = (job.block.key, job.row.name, job.seed)
        if network in diverged:
            continue
        if any(shard.gather(limit.over)):
            return 1 if diverged else 0
        if shard.leader:
            print(f"{number + 1}/{len(left)}  {job}", flush=True)
        try:
            with _working():
                worker.make(job)
        except OutOfTime:
            return 1 if diverged else 0
        except Stopped:
            if any(shard.gather(limit.over)):  # clocks differ, and all processes must leave the same way
                return 1 if diverged else 0
            raise KeyboardInterrupt from None
        except FloatingPointError as error:
            diverged.add(network)
            if shard.leader:
                print(f"soae reproduce: {job}: {error}", file=sys.stderr)
    return 1 if diverged else 0


def _report(
    options: Options,
    line: str,
    tables: list[Table],
    outputs: Outputs | None,
    folder: Folder,
    left: Sequence[Job],
    device: str,
) -> None:
    """Write the files, and say what is left."""
    config = {name: value for name, value in asdict(options).items() if name not in ("run_dir", "output")}
    facts: dict[str, Any] = {
        "command": line,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "budget": options.budget,
        "scale": options.scale,
        "config": config,
        "versions": versions(),
        "git": git_commits(),
        "hardware": hardware(torch.device(device if torch.cuda.is_available() else "cpu")),
    }
    if outputs is not None:
        document = compose(tables, folder, facts, left)
        with blaming("--output"):
            shown = sections(document)
            write_text(html(shown), outputs.html)
            write_text(markdown(shown), outputs.markdown)
            write_json(document, outputs.json)
        print(f"Written: {outputs.json}, {outputs.markdown} and {outputs.html}")
    if left:
        print(f"{len(left)} cells are left, the next is {left[0]}; the same command continues")
    else:
        print("Every cell is measured")


def _check(options: Options) -> tuple[list[Table], Outputs | None]:
    """Everything that can be said of the options alone: the plan, and the files to write."""
    if options.run_dir is None:
        raise CommandError("--run-dir: name the directory that the cells are kept in")
    tables = _tables(options)
    for name, value in (("seeds", options.seeds), ("threads", options.threads)):
        if value is not None:
            with blaming():
                check_count(name, value, 1)
    if options.minutes is not None and not 0 <= options.minutes < float("inf"):
        raise CommandError(f"--minutes: must be at least 0, got {options.minutes:g}")
    _choice(options, tables)
    _sources(options.data)
    if options.output is None:
        return tables, None
    if options.output.suffix != ".json":
        raise CommandError(f"--output: must end in .json, got {options.output}; the .md and .html stand beside it")
    outputs = Outputs.beside(options.output)
    with blaming("--output"):
        for path in (outputs.json, outputs.markdown, outputs.html):
            check_writable(path)
    return tables, outputs


def _tables(options: Options) -> list[Table]:
    if not options.table:
        raise CommandError(f"--table: name at least one of {', '.join(TABLES)}, or all")
    for name in options.table:
        if name != "all" and name not in TABLES:
            raise CommandError(f"--table: {unknown_name(name, (*TABLES, 'all'))}")
    chosen = [name for name in TABLES if name in options.table or "all" in options.table]
    with blaming():
        return scaled([make_table(name, options.budget) for name in chosen], options.scale)


def _choice(options: Options, tables: Sequence[Table]) -> Choice:
    blocks = [block for table in tables for block in table.blocks]
    known = {
        "rows": {row.name for block in blocks for row in block.rows},
        "columns": {column.name for block in blocks for column in block.columns},
        "networks": {block.key for block in blocks},
    }
    for option, names in known.items():
        for name in getattr(options, option):
            if name not in names:
                raise CommandError(f"--{option}: {unknown_name(name, sorted(names))}")
    return Choice(frozenset(options.rows), frozenset(options.columns), frozenset(options.networks), options.seeds)


def _sources(words: Sequence[str]) -> dict[str, str]:
    """Where each data set is, as `load_data` takes it."""
    sources = {name: name for name in _NAMED} | {"imagenet100": "imagenet100@224"}
    for word in words:
        name, equals, spec = word.partition("=")
        if equals and name in _DATA:
            sources[name] = spec
            continue
        if not Path(word).is_dir():
            raise CommandError(f"--data: {word} is neither a directory nor NAME=SPEC with NAME of {', '.join(_DATA)}")
        for known in _DATA:
            packed = Path(word, f"{known}.safetensors")
            if packed.is_file():
                sources[known] = str(packed)
            elif Path(word, known).is_dir():
                sources[known] = f"{known}:{word}" if known in _NAMED else f"{Path(word, known)}@224"
    return sources


def _check_work(left: Sequence[Job], sources: dict[str, str], device: str, shard: Shard) -> None:
    """Find before any work what would stop it: no such device or data, packages that are missing."""
    choose_device(device, shard.local_rank)
    with blaming():
        needed = {(job.block.use.name, "train") for job in left if job.training}
        needed |= {(job.block.use.name, job.block.use.test_split) for job in left if not job.training}
        for name, split in sorted(needed):
            read_images(sources, name, split, 1)
        for job in left:
            if job.column is not None:
                job.block.attack(job.column)
    with blaming("--networks"):
        for spec in {job.block.model for job in left if job.row.objective is None}:
            load_model(spec)


def _fingerprint(options: Options, device: str) -> dict[str, object]:
    """What all cells of a run directory share, besides their own plans."""
    return {
        "soae-ext": soae_ext.__version__,
        "torch": str(torch.__version__),
        "budget": options.budget,
        "scale": options.scale,
        "device": device.partition(":")[0],
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _terminable() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does; trainings in it save first."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _working() -> Iterator[None]:
    """A block of work: what goes wrong in it is blamed on the option that it comes from."""
    options = {"train": "--data", "x": "--data", "y": "--data", "validation": "--data", "model": "--networks"}
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CommandError("--networks: these batches do not fit into the GPU's memory; use a larger GPU") from error
    except OSError as error:
        raise CommandError(f"--run-dir: {reason(error)}") from error
    except (ImportError, TypeError, ValueError) as error:
        argument, _, text = reason(error).partition(": ")
        known = ("data", "run_dir", "rows")
        option = options.get(argument, "--" + argument.replace("_", "-") if argument in known else None)
        raise CommandError(f"{option}: {text}" if option else f"--networks: {reason(error)}") from error
