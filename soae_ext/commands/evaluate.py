"""`soae evaluate`: a checkpoint, data and attacks; everything that is to be said of them, in one document."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import torch
from torch import nn
from tyro.conf import arg

import soae_ext

from .._files import check_writable
from ..attacks import Attack
from ..attacks.checks import check_count
from ..attacks.geometry import Norm
from ..attacks.names import ATTACKS
from ..data import ImageData
from ..evaluation import FailedElsewhere, Precision, Progress, Runner, Shard, Store, table
from ..evaluation.features import activation_maps
from ..evaluation.quality import metrics_version
from ..evaluation.study import Study, make_study
from ..models.base import family_of
from .curves import choose_curves
from .errors import CommandError, blaming
from .inputs import (
    DEFAULT_ATTACKS,
    Number,
    attacking,
    choose_batch_size,
    choose_device,
    default_eps,
    fit,
    parse_attacks,
    read_data,
    read_model,
    threads,
    uses_eval_mode,
)
from .outputs import Outputs, check_directory, write_outputs

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Evaluate a classifier under several attacks: per-example worst case, curves, analyses and sanity checks.

    Without options: FGSM, and with 100 gradients for each image PGD, APGD and the second-order attack SOAE, on the
    network and the 1,000 MNIST test images that the package ships, in a few minutes. With --output FILE.json, FILE.md
    and FILE.html (pictures, one file, readable without a network) are written beside it; until they are, the results of
    every batch are kept in FILE.json.parts, and an interrupted run continues when the same command is run again. The
    folder is removed at the end.
    `torchrun --nproc-per-node=2 -m soae_ext.cli -- evaluate ...` shares the batches between processes.
    Exit status: 0 done, 2 bad input, 130 interrupted.
    """

    model: Annotated[str, arg(metavar="SPEC", help_behavior_hint="(default: digits, the shipped network)")] = "digits"
    """Network: digits, small-cnn, resnet18, wrn-28-4, wrn-34-10, efficientnet-lite0, or pkg.module:factory; options
    as in resnet18:silu,width=16."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Parameters of the network, a safetensors file."""
    data: Annotated[str, arg(metavar="SPEC", help_behavior_hint="(default: digits, which are shipped)")] = "digits"
    """Images: mnist:DIR, cifar10:DIR, imagenet-sample:DIR, hub:NAME, a parquet file, or a directory of parquet files
    or with one folder per class."""
    split: str = "test"
    """Split of the data."""
    n: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Take the first N images only."""
    attack: Annotated[tuple[str, ...], arg(metavar="SPEC [SPEC ...]")] = DEFAULT_ATTACKS
    """Attacks: NAME[-STEPS][:key=value,...] with NAME of FGSM, PGD, APGD, ASOD, SOAE, AutoAttack and the options of its
    class as keys: PGD-100:loss=dlr,restarts=4, SOAE:gradients=40, SOAE-4:direction=paper, AutoAttack:version=rand."""
    eps: Annotated[
        Number | None,
        arg(metavar="FLOAT", help_behavior_hint="(default: grey images 0.3, L2 2, L1 10; colour 8/255, L2 0.5, L1 12)"),
    ] = None
    """Radius of the ball of allowed perturbations, in pixel units; images span [0, 1]. May be written 8/255."""
    norm: Norm = "Linf"
    """Norm of the ball."""
    seed: int = 0
    """Seed of all random numbers."""
    batch_size: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: 250, fewer for large networks)")
    ] = None
    """Images attacked at once."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, ..."""
    precision: Precision = "fp32"
    """fp32, or bf16: autocast inside the network."""
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: torch's)")] = None
    """CPU threads of each process."""
    curves: Annotated[tuple[str, ...], arg(metavar="KEY [KEY ...]")] = ("quick",)
    """none, quick (few points, at most 200 images) or full; keys beside them choose among the curves: eps, gradients,
    iterations, fd_step, threshold."""
    compare: Annotated[tuple[str, ...], arg(metavar="NAME=CHECKPOINT [...]")] = ()
    """Further networks of the same kind for the curve against the difference step, e.g. pgd=pgd.safetensors."""
    referee: bool = False
    """Run AutoAttack on all images as the referee of the sanity section."""
    sanity: bool = True
    """Run the sanity checks. They take about 2,000 gradients and forward passes for each of 128 images, which is hours
    for a large network on a CPU."""
    examples: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 8, of large images 4)")] = None
    """Images shown in the HTML report."""
    layer: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: chosen by its resolution)")] = None
    """Module of the network whose feature maps the report shows, e.g. features.2."""
    figures: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: none)")] = None
    """Write the charts and picture grids of the report here too, as PNG; the directory is made if need be."""
    output: Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: none)")] = None
    """Write everything here as JSON, and FILE.md and FILE.html beside it."""
    fresh: bool = False
    """Drop what an earlier, interrupted run with the same output left behind."""


def run(options: Options, line: str) -> int:
    """Run the command; the exit status.

    Args:
        options: of the command line.
        line: the command line, for the record.

    Raises:
        CommandError: bad input, before any work; a full disk or an attack that does not fit, when it is found.
    """
    shard = Shard.from_environment()
    try:
        with shard.together(), threads(options.threads):
            return _run(options, line, shard)
    except FailedElsewhere as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        if options.output is not None and shard.leader:
            print("soae evaluate: interrupted; the same command continues where it was", file=sys.stderr)
        raise


def _run(options: Options, line: str, shard: Shard) -> int:
    outputs = _check(options)
    device = choose_device(options.device, shard.local_rank)
    model = read_model(options.model, options.checkpoint)
    data = read_data(options.data, options.split, options.n)
    classes = fit(model, data)
    if options.layer is not None:
        with blaming():
            activation_maps(model, options.layer, data.images[:1])
    others = _others(options, data)
    eps = default_eps(options.norm, data.images.shape[1]) if options.eps is None else options.eps
    attacks = parse_attacks(options.attack, eps, norm=options.norm, seed=options.seed)
    curves = choose_curves(options.curves, attacks, data, compared=bool(others))

    with Progress(shown=shard.leader) as bar, attacking():
        size = choose_batch_size(options.batch_size, model, attacks.values(), data, device)
        runner = Runner(model, device, size, None, shard, options.precision, bar)
        runner.store = _store(options, outputs, runner, others, attacks, data)
        study = make_study(
            runner,
            data,
            attacks,
            curves=(curves.keys, curves.preset, data.first(curves.images)),
            others=others,
            network=_label(options),
            eps=eps,
            norm=options.norm,
            seed=options.seed,
            referee=options.referee,
            sanity=options.sanity,
            layer=options.layer,
        )
    study.notes[:0] = [*_notes(options, runner), *curves.notes]
    if not shard.leader:
        return 0
    config = {**asdict(options), "eps": eps, "batch_size": runner.batch_size}
    config.pop("fresh")
    _print(options, eps, data, study)
    if outputs is not None:
        document = {
            "command": line,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "config": config,
            "model": _model_entry(options, model, runner, classes),
            **study.as_json(attacks, data),
        }
        with blaming("--output"):
            write_outputs(document, study, runner, data, outputs, examples=options.examples, figures=options.figures)
            if runner.store:
                runner.store.remove()
        print(f"\nWritten: {outputs.json}, {outputs.markdown} and {outputs.html}")
        if options.figures is not None:
            print(f"Figures: {options.figures}")
    return 0


def _check(options: Options) -> Outputs | None:
    """Everything that can be said of the options alone; the files to write."""
    if not options.attack:
        raise CommandError(f"--attack: name at least one of {', '.join(ATTACKS)}")
    with blaming():
        if options.batch_size is not None:
            check_count("batch_size", options.batch_size, 1)
        if options.examples is not None:
            check_count("examples", options.examples, 1)
    if options.referee and not options.sanity:
        raise CommandError("--referee: is part of the sanity section; leave out --no-sanity")
    eps = default_eps(options.norm) if options.eps is None else options.eps
    attacks = parse_attacks(options.attack, eps, norm=options.norm, seed=options.seed)
    choose_curves(options.curves, attacks, None, compared=bool(options.compare))
    if options.output is None:
        if options.fresh:
            raise CommandError("--fresh: without --output nothing is kept of an earlier run; name the output")
        for name, value in (("examples", options.examples), ("layer", options.layer), ("figures", options.figures)):
            if value is not None:
                raise CommandError(f"--{name}: shows in the report; name its --output")
        return None
    if options.output.suffix != ".json":
        raise CommandError(f"--output: must end in .json, got {options.output}; the .md and .html stand beside it")
    if options.figures is not None:
        with blaming("--figures"):
            check_directory(options.figures)
    outputs = Outputs.beside(options.output)
    with blaming("--output"):
        for path in (outputs.json, outputs.markdown, outputs.html):
            check_writable(path)
    return outputs


def _others(options: Options, data: ImageData) -> dict[str, nn.Module]:
    """The further networks by name."""
    others: dict[str, nn.Module] = {}
    for text in options.compare:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise CommandError(f"--compare: expected NAME=CHECKPOINT, got '{text}'")
        if name in others or name == _label(options):
            raise CommandError(f"--compare: the name '{name}' is taken; choose another")
        others[name] = read_model(options.model, Path(path), option="--compare")
        fit(others[name], data, option="--compare")
    return others


def _store(
    options: Options,
    outputs: Outputs | None,
    runner: Runner,
    others: Mapping[str, nn.Module],
    attacks: Mapping[str, Attack],
    data: ImageData,
) -> Store | None:
    """The folder of the run's results; of several processes the first makes it."""
    if outputs is None:
        return None
    # What changes a number, or which numbers there are. How many processes share the work changes none.
    fingerprint: dict[str, str | int | float | None] = {
        "soae-ext": soae_ext.__version__,
        "torch": str(torch.__version__),
        "torchmetrics": metrics_version(),
        "model": options.model,
        "weights": runner.fingerprint,
        "data": data.fingerprint,
        **{name: str(attack) for name, attack in attacks.items()},
        "batch_size": runner.batch_size,
        "device": runner.device.type,
        "precision": options.precision,
        "threads": torch.get_num_threads(),
        "seed": options.seed,
        "curves": " ".join(options.curves),
        "referee": options.referee,
        **{f"compare {name}": replace(runner, model=model).fingerprint for name, model in others.items()},
    }
    with blaming("--output"):
        for turn in (True, False):
            if runner.shard.leader is turn:
                store = Store(outputs.parts, fingerprint, fresh=options.fresh and turn)
            runner.shard.gather(None)
    return store


def _label(options: Options) -> str:
    """What the network is called."""
    return f"{options.model} ({options.checkpoint.name})" if options.checkpoint else options.model


def _notes(options: Options, runner: Runner) -> list[str]:
    notes = []
    modal = uses_eval_mode(runner.network)
    name = options.model.partition(":")[0]
    if modal and name != "digits" and family_of(name) is None:
        notes.append(
            f"The network has modules of the types {', '.join(modal)}. It was evaluated in eval mode, whatever mode "
            f"{options.model} left it in."
        )
    if metrics_version() is None:
        notes.append("PSNR and SSIM were not measured: the torchmetrics library is not installed.")
    if options.precision == "bf16":
        notes.append("The network ran under bfloat16 autocast; its gradients are coarser than in single precision.")
    return notes


def _model_entry(options: Options, model: nn.Module, runner: Runner, classes: int) -> dict[str, object]:
    return {
        "name": _label(options),
        "spec": options.model,
        "checkpoint": options.checkpoint,
        "class": type(model).__name__,
        "classes": classes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": runner.fingerprint,
    }


def _print(options: Options, eps: float, data: ImageData, study: Study) -> None:
    print(f"{len(data)} images of {data.name}, {options.norm} eps = {eps:g}, seed {options.seed}\n")
    print(table(study.clean, study.measurements, study.worst, quality=metrics_version() is not None))
    failed = [check for check in study.sanity if check.verdict == "fail"]
    counts = {verdict: sum(check.verdict == verdict for check in study.sanity) for verdict in ("pass", "fail")}
    if options.sanity:
        print(f"\nSanity checks: {counts['pass']} pass, {counts['fail']} fail")
    for check in failed:
        print(f"  FAIL {check.name}: {check.value} (limit {check.limit}). {check.text}")
    for note in study.notes:
        print(f"Note: {note}", file=sys.stderr)
