"""`soae attack`: attack a network and report what is left of its accuracy."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import torch
from matplotlib.figure import Figure
from tyro.conf import arg

from .._files import check_writable, replacing
from ..attacks import FGSM, PGD, SOAE, Attack
from ..attacks.checks import check_choice, check_count
from ..attacks.geometry import Norm
from ..attacks.soae import Direction
from ..data import ImageData, load_digits, load_directory
from ..evaluation import Clean, Measurement, Progress, Runner, table
from ..models.small_cnn import SmallCNN, digits_network, load_checkpoint
from ..plots import check_format, image_grid, pick, save
from .errors import CommandError, blaming

__all__ = ["AttackOptions", "run"]

_NAMES = ("FGSM", "PGD", "SOAE")
_STEPS = {"FGSM": 1, "PGD": 20, "SOAE": 10}
_DEFAULT_EPS = {"Linf": 0.3, "L2": 2.0}
_ROWS_IN_FIGURE = 8


@dataclass(frozen=True)
class AttackOptions:
    """Attack a digit classifier and print what is left of its accuracy.

    Without options: FGSM, PGD and the second-order attack SOAE on the network and the 1,000 MNIST test images that
    the package ships. Exit status: 0 done, 2 bad input, 130 interrupted.
    """

    attack: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = _NAMES
    """Attacks to run: FGSM, PGD, SOAE. A number of steps may follow the name: PGD-40."""
    eps: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: 0.3 in Linf, 2.0 in L2)")] = None
    """Radius of the ball of allowed perturbations, in pixel units; images span [0, 1]."""
    norm: Norm = "Linf"
    """Norm of the ball."""
    steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 20 for PGD, 10 for SOAE)")] = None
    """Iterations of PGD and SOAE. FGSM makes one."""
    direction: Direction = "ascent"
    """Direction of SOAE: +H^-1 g (ascent), -H^-1 g (paper: lowers the loss), or whichever ascends (auto)."""
    n: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Attack the first N images only."""
    data: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: the shipped digits)")] = None
    """Directory with the images: test-*.parquet with the columns image and label. Needs the datasets library."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the shipped network)")] = None
    """Network to attack, a safetensors file as examples/train_digits.py writes it."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, ..."""
    batch_size: int = 250
    """Images attacked at once."""
    seed: int = 0
    """Seed of the random starts."""
    output: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Write the configuration, the versions and the results here, as JSON."""
    figure: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Draw clean images, perturbations and adversarial images here (.png, .pdf, .svg)."""


def run(options: AttackOptions) -> int:
    """Run the command; the exit status.

    Raises:
        CommandError: bad input, before any work.
    """
    options = replace(options, eps=_DEFAULT_EPS[options.norm] if options.eps is None else options.eps)
    attacks = _attacks(options)
    _check_outputs(options)
    device = _device(options.device)
    model = _model(options.checkpoint)
    data = _data(options, model)

    with Progress(len(attacks) * len(data)) as bar:
        runner = Runner(model, device, options.batch_size)
        clean = runner.clean(data)
        runner.progress = bar
        measurements = [runner.run(f"attacks/{name}", name, attack, data) for name, attack in attacks.items()]
    print(f"{len(data)} images of {data.name}, {options.norm} eps = {options.eps:g}, seed {options.seed}\n")
    print(table(clean, measurements))
    if options.output:
        with replacing(options.output) as temporary:
            report = _report(options, attacks, data, clean, measurements)
            temporary.write_text(json.dumps(report, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")
    if options.figure:
        save(_figure(runner, data, measurements), options.figure)
    return 0


def _attacks(options: AttackOptions) -> dict[str, Attack]:
    """The attacks by the name that they are reported under."""
    if not options.attack:
        raise CommandError(f"--attack: name at least one of {', '.join(_NAMES)}")
    with blaming():
        check_count("batch_size", options.batch_size, 1)
        if options.steps is not None:
            check_count("steps", options.steps, 1)
        return dict(_attack(name, options) for name in options.attack)


def _attack(written: str, options: AttackOptions) -> tuple[str, Attack]:
    name, number = re.fullmatch(r"(.*?)(?:-(\d+))?", written, re.DOTALL).groups()  # type: ignore[union-attr]
    name = name.upper() if name.upper() in _NAMES else name
    check_choice("attack", name, _NAMES)
    if number and int(number) < 1:
        raise ValueError(f"attack: '{written}' makes no step")
    steps = int(number) if number else options.steps or _STEPS[name]
    norm, seed = options.norm, options.seed
    eps = _DEFAULT_EPS[norm] if options.eps is None else options.eps
    if name == "FGSM":
        if number and steps != 1:
            raise ValueError(f"attack: FGSM makes one step, got '{written}'; use PGD-{steps}")
        return name, FGSM(eps, norm=norm, seed=seed)
    if name == "PGD":
        return f"PGD-{steps}", PGD(eps, norm=norm, steps=steps, seed=seed)
    # The sign of a step is a corner of the Linf ball, but no steep direction of an L2 ball.
    normalize: Literal["sign", "L2"] = "sign" if norm == "Linf" else "L2"
    label = f"SOAE-{steps}" if options.direction == "ascent" else f"SOAE-{steps} ({options.direction})"
    return label, SOAE(eps, norm=norm, steps=steps, seed=seed, direction=options.direction, normalize=normalize)


def _check_outputs(options: AttackOptions) -> None:
    for option, path in (("--output", options.output), ("--figure", options.figure)):
        if path is not None:
            with blaming(option):
                check_writable(path)
    if options.figure is not None:
        if options.output is not None and options.figure.resolve() == options.output.resolve():
            raise CommandError(f"--figure: {options.figure} is the file of --output too; name another")
        with blaming("--figure"):
            check_format(options.figure)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CommandError(f"--device: unknown device '{name}'; use cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device: '{name}' is not supported; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device: cuda is not available here (run `soae doctor` to see why); use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"--device: there is no '{name}', only {torch.cuda.device_count()} CUDA device(s)")
    return device


def _model(checkpoint: Path | None) -> SmallCNN:
    with blaming("--checkpoint"):
        model = load_checkpoint(checkpoint) if checkpoint else digits_network()
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise ValueError(f"{checkpoint} holds parameters that are NaN or infinite")
    return model


def _data(options: AttackOptions, model: SmallCNN) -> ImageData:
    if options.n is not None:
        with blaming():
            check_count("n", options.n, 1)
    with blaming("--data"):
        data = load_directory(options.data) if options.data else load_digits()
        data.check(model.input_shape, model.classes)
    with blaming("--n"):
        return data.first(options.n)


def _report(
    options: AttackOptions,
    attacks: dict[str, Attack],
    data: ImageData,
    clean: Clean,
    measurements: list[Measurement],
) -> dict[str, object]:
    return {
        "command": "soae attack",
        "config": asdict(options),
        "data": {"name": data.name, "images": len(data), "shape": list(data.images.shape[1:])},
        "versions": _versions(),
        "clean": clean.as_json(),
        "attacks": [
            {**measurement.as_json(), "options": asdict(attacks[measurement.name])} for measurement in measurements
        ],
    }


def _versions() -> dict[str, str | int]:
    names = ("soae-ext", "torch", "numpy")
    found: dict[str, str | int] = {"python": platform.python_version(), "machine": platform.platform()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "threads": torch.get_num_threads()}


def _figure(runner: Runner, data: ImageData, measurements: list[Measurement]) -> Figure:
    rows = pick(torch.stack([measurement.success for measurement in measurements]), _ROWS_IN_FIGURE)
    images = data.images[rows]
    adversarial = {m.name: (m.x_adv[rows], runner.predict(m.x_adv[rows])) for m in measurements}
    return image_grid(images, data.labels[rows], runner.predict(images), adversarial)
