"""`soae attack`: attack a network and report what is left of its accuracy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from matplotlib.figure import Figure
from tyro.conf import arg

from .._files import check_writable
from ..attacks import Attack
from ..attacks.checks import check_count
from ..attacks.geometry import Norm
from ..attacks.names import ATTACKS
from ..attacks.soae import Direction
from ..data import ImageData
from ..evaluation import Clean, Measurement, Progress, Runner, table
from ..evaluation.document import attack_options, write_json
from ..evaluation.provenance import versions
from ..plots import check_format, image_grid, pick, save
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
)

__all__ = ["Options", "run"]

_ROWS_IN_FIGURE = 8


@dataclass(frozen=True)
class Options:
    """Attack an image classifier and print what is left of its accuracy.

    Without options: FGSM, and with 100 gradients for each image PGD, APGD and the second-order attack SOAE, on the
    network and the 1,000 MNIST test images that the package ships, in about a minute. Exit status: 0 done, 2 bad
    input, 130 interrupted.
    """

    attack: Annotated[tuple[str, ...], arg(metavar="SPEC [SPEC ...]")] = DEFAULT_ATTACKS
    """Attacks to run: FGSM, PGD, APGD, ASOD, SOAE, AutoAttack. A number of steps may follow the name, and options of
    the attack's class: PGD-40, PGD-100:loss=dlr,restarts=4, SOAE:gradients=40, SOAE-4:direction=paper."""
    eps: Annotated[
        Number | None, arg(metavar="FLOAT", help_behavior_hint="(default: 0.3 in Linf, 2.0 in L2; colour: 8/255, 0.5)")
    ] = None
    """Radius of the ball of allowed perturbations, in pixel units; images span [0, 1]. May be written 8/255."""
    norm: Norm = "Linf"
    """Norm of the ball."""
    steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as --attack says)")] = None
    """Iterations of PGD, APGD and SOAE, or of those attacks in --attack whose SPEC names no number. FGSM makes one."""
    direction: Annotated[Direction | None, arg(help_behavior_hint="(default: as the class SOAE)")] = None
    """Direction of SOAE: +H^-1 g (ascent), -H^-1 g (paper: lowers the loss), whichever ascends (auto), ..."""
    n: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Attack the first N images only."""
    data: Annotated[str, arg(metavar="SPEC", help_behavior_hint="(default: digits, which are shipped)")] = "digits"
    """Images: a directory with parquet files (columns image and label) or one folder per class, mnist:DIR,
    cifar10:DIR or hub:NAME. All but the shipped ones need the datasets library."""
    model: Annotated[str, arg(metavar="SPEC", help_behavior_hint="(default: digits, the shipped network)")] = "digits"
    """Network: digits, small-cnn, resnet18, wrn-28-4, wrn-34-10, efficientnet-lite0, or pkg.module:factory."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Parameters of the network, a safetensors file as examples/train_digits.py writes it."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, ..."""
    batch_size: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: 250, fewer for large networks)")
    ] = None
    """Images attacked at once."""
    seed: int = 0
    """Seed of the random starts."""
    output: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Write the configuration, the versions and the results here, as JSON."""
    figure: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Draw clean images, perturbations and adversarial images here (.png, .pdf, .svg)."""


def run(options: Options, line: str) -> int:
    """Run the command; the exit status.

    Args:
        options: of the command line.
        line: the command line, for the record.

    Raises:
        CommandError: bad input, before any work.
    """
    _attacks(options, default_eps(options.norm))
    _check_outputs(options)
    device = choose_device(options.device)
    model = read_model(options.model, options.checkpoint)
    data = read_data(options.data, "test", options.n)
    fit(model, data)
    eps = default_eps(options.norm, data.images.shape[1]) if options.eps is None else options.eps
    attacks = _attacks(options, eps)

    with attacking():
        runner = Runner(model, device, choose_batch_size(options.batch_size, model, attacks.values(), data, device))
        clean = runner.clean(data)
        with Progress(len(attacks) * len(data)) as runner.progress:
            measurements = [runner.run(f"attacks/{name}", name, attack, data) for name, attack in attacks.items()]
    print(f"{len(data)} images of {data.name}, {options.norm} eps = {eps:g}, seed {options.seed}\n")
    print(table(clean, measurements))
    if options.output:
        config = {**asdict(options), "eps": eps, "batch_size": runner.batch_size}
        with blaming("--output"):
            write_json(_report(line, config, attacks, data, clean, measurements), options.output)
    if options.figure:
        with blaming("--figure"):
            save(_figure(runner, data, measurements), options.figure)
    return 0


def _attacks(options: Options, eps: float) -> dict[str, Attack]:
    """The attacks by the name that they are reported under."""
    if not options.attack:
        raise CommandError(f"--attack: name at least one of {', '.join(ATTACKS)}")
    with blaming():
        if options.batch_size is not None:
            check_count("batch_size", options.batch_size, 1)
        if options.steps is not None:
            check_count("steps", options.steps, 1)
    eps = eps if options.eps is None else options.eps
    shared = {"norm": options.norm, "seed": options.seed, "steps": options.steps, "direction": options.direction}
    specs = options.attack
    if options.steps is not None and specs == DEFAULT_ATTACKS:
        specs = tuple(spec.partition("-")[0] for spec in specs)  # without the numbers that --steps replaces
    attacks = parse_attacks(specs, eps, **shared)
    if options.direction is None:
        return attacks
    return {
        f"{name} ({options.direction})" if hasattr(attack, "direction") and "direction=" not in name else name: attack
        for name, attack in attacks.items()
    }


def _check_outputs(options: Options) -> None:
    for option, path in (("--output", options.output), ("--figure", options.figure)):
        if path is not None:
            with blaming(option):
                check_writable(path)
    if options.figure is not None:
        if options.output is not None and options.figure.resolve() == options.output.resolve():
            raise CommandError(f"--figure: {options.figure} is the file of --output too; name another")
        with blaming("--figure"):
            check_format(options.figure)


def _report(
    line: str,
    config: dict[str, object],
    attacks: dict[str, Attack],
    data: ImageData,
    clean: Clean,
    measurements: list[Measurement],
) -> dict[str, object]:
    return {
        "command": line,
        "config": config,
        "data": {"name": data.name, "images": len(data), "shape": list(data.images.shape[1:])},
        "versions": versions(),
        "clean": clean.as_json(),
        "attacks": [{**m.as_json(), "options": attack_options(attacks[m.name])} for m in measurements],
    }


def _figure(runner: Runner, data: ImageData, measurements: list[Measurement]) -> Figure:
    rows = pick(torch.stack([measurement.success for measurement in measurements]), _ROWS_IN_FIGURE)
    images = data.images[rows]
    adversarial = {m.name: (m.x_adv[rows], runner.predict(m.x_adv[rows])) for m in measurements}
    return image_grid(images, data.labels[rows], runner.predict(images), adversarial)
