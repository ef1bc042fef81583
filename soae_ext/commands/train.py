"""`soae train`: train a classifier, plainly or against adversarial examples, without ever losing work."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
from torch import nn
from tyro.conf import arg

from .._files import check_writable
from .._names import unknown_name
from ..attacks import Attack
from ..attacks.checks import check_count
from ..attacks.geometry import Norm
from ..data import ImageData, load_data
from ..evaluation import FailedElsewhere
from ..evaluation.document import data_entry, write_json
from ..evaluation.provenance import git_commits, hardware, versions
from ..models import load_model
from ..training import TrainingObjective
from ..training.console import Console
from ..training.fit import History, fit
from ..training.log import RunLog
from ..training.names import parse_objective
from ..training.presets import PRESETS
from ..training.processes import Processes, make_fabric
from ..training.recipe import Recipe
from ..training.schedule import ball_of
from .errors import CommandError, blaming, reason
from .inputs import Number, default_eps, parse_attacks, read_data, threads
from .inputs import fit as check_fit

__all__ = ["Options", "defaults", "run"]

_HELD_OUT = 1000


@dataclass(frozen=True)
class Options:
    """Train an image classifier, plainly, against adversarial examples or with a regulariser.

    The run directory keeps checkpoints, the log (CSV, JSON lines, TensorBoard) and the networks best.safetensors and
    model.safetensors, which --checkpoint of the other commands takes. Whatever ends the run, the same command with
    --resume continues it. With --preset NAME, --help shows the values of the preset.
    `torchrun --nproc-per-node=2 -m soae_ext.cli -- train ...` shares every batch between processes.
    Exit status: 0 done, or stopped by SIGTERM or Ctrl-C and saved; 1 loss not finite; 2 bad input.
    """

    preset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: none)")] = None
    """Start from the options of paper-mnist, paper-cifar10, paper-imagenet100, mnist-cpu or cifar10-gpu; those that are
    given beside it change it."""
    objective: Annotated[str, arg(metavar="SPEC")] = "PGD"
    """Standard, PGD, TRADES, SOAR, STN, SCORPIO, SOAT, SOAT-paper or ASOD; a number of steps and options may follow, as
    in PGD-10, TRADES:beta=1, SOAT:gradients=20."""
    eps: Annotated[
        Number | None,
        arg(metavar="FLOAT", help_behavior_hint="(default: grey images 0.3, L2 2, L1 10; colour 8/255, L2 0.5, L1 12)"),
    ] = None
    """Radius of the ball of the objective and of the validation, in pixel units. May be written 8/255."""
    norm: Norm = "Linf"
    """Norm of the ball."""
    model: Annotated[str, arg(metavar="SPEC")] = "small-cnn"
    """Network: small-cnn, resnet18, wrn-28-4, wrn-34-10, or pkg.module:factory; options as in
    resnet18:silu,width=16."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: random parameters)")] = None
    """Parameters to start from, a safetensors file."""
    data: Annotated[str, arg(metavar="SPEC")] = "mnist"
    """Images: mnist:DIR, cifar10:DIR, hub:NAME, a file of `soae data pack`, a parquet file, or a directory of parquet
    files or with one folder per class."""
    split: str = "train"
    """Split to train on."""
    n: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Take the first N images only."""
    validate: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 1000, of few images a tenth)")] = (
        None
    )
    """Images to validate on after an epoch; 0: none."""
    validation_split: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: held out of the images to train on)")
    ] = None
    """Split that they are the first images of. Beware: the best network is chosen by them, so its accuracy on them is
    no measure of it."""
    attack: Annotated[str, arg(metavar="SPEC")] = "PGD-10"
    """Attack of the validation, as --attack of `soae evaluate`."""
    recipe: Annotated[Recipe, arg(name="")] = Recipe()  # noqa: RUF009 - a frozen value
    run_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(required)")] = None
    """Directory of the run; made if need be. One that holds another run, or anything else, is refused."""
    resume: bool = False
    """Continue the run that the directory holds; begin it if there is none."""
    output: Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: none)")] = None
    """Write the configuration, the versions and the rows of all epochs here, as JSON."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: torch's)")] = None
    """CPU threads of each process."""
    tensorboard: bool = True
    """Write event files too, if TensorBoard is installed."""


def defaults(words: Sequence[str]) -> Options:
    """What `words` change: the options of the preset that they name, if they name one.

    Raises:
        CommandError: there is no such preset.
    """
    given = [word.removeprefix("--preset=") for word in words if word.startswith("--preset=")]
    given += [value for word, value in pairwise(words) if word == "--preset"]
    if not given or given[-1].startswith("--"):
        return Options()
    if given[-1] not in PRESETS:
        raise CommandError(f"--preset: {unknown_name(given[-1], tuple(PRESETS))}")
    return replace(Options(), **vars(PRESETS[given[-1]]))


def run(options: Options, line: str) -> int:
    """Run the command; the exit status.

    Args:
        options: of the command line.
        line: the command line, for the record.

    Raises:
        CommandError: bad input, before anything is written; a full disk, when it is found.
    """
    _check(options)
    try:
        with blaming():
            processes = Processes(make_fabric(options.device, options.recipe.precision))
    except CommandError as error:
        if isinstance(error.__cause__, ImportError):
            raise CommandError(str(error.__cause__)) from error
        raise
    try:
        with processes.shard.together(), threads(options.threads):
            return _run(options, line, processes)
    except FailedElsewhere as error:
        raise CommandError(str(error)) from error
    except FloatingPointError as error:
        if processes.leader:
            print(f"soae train: {error}", file=sys.stderr)
        return 1


def _check(options: Options) -> None:
    """Everything that can be said of the options alone."""
    if options.run_dir is None:
        raise CommandError("--run-dir: name the directory that the run is kept in")
    if options.output is not None:
        if options.output.suffix != ".json":
            raise CommandError(f"--output: must end in .json, got {options.output}")
        with blaming("--output"):
            check_writable(options.output)
    with blaming():
        if options.validate is not None:
            check_count("validate", options.validate, 0)
        if options.n is not None:
            check_count("n", options.n, 1)
        if options.threads is not None:
            check_count("threads", options.threads, 1)
    _problem(options, channels=1)


def _run(options: Options, line: str, processes: Processes) -> int:
    directory = options.run_dir
    assert directory is not None
    train, validation = _read(options)
    objective, attack, eps, norm = _problem(options, channels=train.images.shape[1])
    options = _without_needless_warmup(options, objective)
    model = _start(options)
    classes = check_fit(model, train)
    if validation is not None:
        check_fit(model, validation, option="--validation-split")
    epochs = options.recipe.epochs
    with RunLog(directory, tensorboard=options.tensorboard) as log, Console(log, epochs) as console, _working():
        history = fit(
            model,
            train,
            objective,
            options.recipe,
            validation=validation,
            attack=attack,
            run_dir=directory,
            resume=options.resume,
            fabric=processes.fabric,
            log=console,
            progress=console.progress,
            warn=lambda text: print(f"soae train: {text}", file=sys.stderr),
        )
    if processes.leader:
        ball = {"eps": eps, "norm": norm}
        if options.output is not None:
            with blaming("--output"):
                write_json(
                    _document(line, asdict(options) | ball, history, train, validation, classes, processes),
                    options.output,
                )
        _conclude(options, eps, norm, history)
    return 0


def _read(options: Options) -> tuple[ImageData, ImageData | None]:
    """The images to train on, and those to validate on."""
    data = read_data(options.data, options.split, options.n)
    count = options.validate
    if options.validation_split is not None:
        if count == 0:
            raise CommandError("--validation-split: is for --validate, which is 0")
        with blaming("--validation-split"):
            found = load_data(options.data, options.validation_split)
        with blaming("--validate"):
            return data, found.first(min(_HELD_OUT, len(found)) if count is None else count)
    count = min(_HELD_OUT, len(data) // 10) if count is None else count
    if count == 0:
        return data, None
    try:
        return data.hold_out(count)
    except ValueError as error:
        raise CommandError(f"--validate: {str(error).removeprefix('count: ')}") from error


def _problem(options: Options, channels: int) -> tuple[TrainingObjective, Attack, float, Norm]:
    """The objective, the attack of the validation in the ball of the objective, and radius and norm of that."""
    eps = default_eps(options.norm, channels) if options.eps is None else options.eps
    if options.preset is not None and options.norm != "Linf" and eps == PRESETS[options.preset].eps:
        eps = default_eps(options.norm, channels)  # the preset's is of a Linf ball
    with blaming():
        _, objective = parse_objective(options.objective, eps=eps, norm=options.norm)
    radius, norm = ball_of(objective) or (eps, options.norm)
    (attack,) = parse_attacks([options.attack], radius, norm=norm, seed=options.recipe.seed).values()
    return objective, attack, radius, norm


def _without_needless_warmup(options: Options, objective: TrainingObjective) -> Options:
    """The options without the growing radius of a preset, where the chosen objective has no ball."""
    if options.preset is None or ball_of(objective) is not None:
        return options
    if options.recipe.eps_warmup != PRESETS[options.preset].recipe.eps_warmup:
        return options  # it was asked for: that is an error
    return replace(options, recipe=replace(options.recipe, eps_warmup=0.0))


def _start(options: Options) -> nn.Module:
    """The network before its first step, equal in all processes and whenever the run is continued."""
    torch.manual_seed(options.recipe.seed)
    with blaming("--model" if options.checkpoint is None else "--checkpoint"):
        return load_model(options.model, options.checkpoint)


@contextmanager
def _working() -> Iterator[None]:
    """A block of training: what goes wrong in it is blamed on the option that it comes from."""
    options = {"train": "--data", "x": "--data", "y": "--data", "validation": "--validation-split"}
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CommandError("--batch-size: a step does not fit into the GPU's memory; lower it") from error
    except OSError as error:
        raise CommandError(f"--run-dir: {reason(error)}") from error
    except (TypeError, ValueError) as error:
        argument, _, text = reason(error).partition(": ")
        known = {each.name for each in (*fields(Options), *fields(Recipe))}
        if argument not in known | options.keys():  # what the network itself says
            argument, text = "model", reason(error)
        raise CommandError(f"{options.get(argument, '--' + argument.replace('_', '-'))}: {text}") from error


def _conclude(options: Options, eps: float, norm: Norm, history: History) -> None:
    """Say where the run stands and what to do with it."""
    assert options.run_dir is not None
    if not history.finished:
        text = f"stopped after step {history.step} of {history.steps} and saved"
        print(f"soae train: {text}; the same command with --resume continues", file=sys.stderr)
        return
    print(f"\n{options.run_dir / 'model.safetensors'}: the network after the last step")
    if history.best is not None:
        measured = "clean" if history.epochs[-1]["robust_accuracy"] is None else "robust"
        print(
            f"{options.run_dir / 'best.safetensors'}: that of the best {measured} accuracy on the validation images, "
            f"{100 * history.best.accuracy:.1f} % after epoch {history.best.epoch}"
        )
    name = "model" if history.best is None else "best"
    words = [
        "--model",
        options.model,
        "--checkpoint",
        str(options.run_dir / f"{name}.safetensors"),
        "--data",
        options.data,
    ]
    words += ["--eps", str(eps), *([] if norm == "Linf" else ["--norm", norm])]
    print(f"Evaluate it: {shlex.join(['soae', 'evaluate', *words])}")


def _document(
    line: str,
    config: dict[str, object],
    history: History,
    train: ImageData,
    validation: ImageData | None,
    classes: int,
    processes: Processes,
) -> dict[str, object]:
    """What `--output` holds."""
    model = history.model
    return {
        "command": line,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": config,
        "model": {
            "spec": config["model"],
            "class": type(model).__name__,
            "classes": classes,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "data": data_entry(train),
        "validation": None if validation is None else data_entry(validation),
        "versions": versions(),
        "git": git_commits(),
        "hardware": hardware(processes.device),
        "processes": processes.shard.world,
        "finished": history.finished,
        "step": history.step,
        "steps": history.steps,
        "best": None if history.best is None else asdict(history.best),
        "epochs": history.epochs,
    }
