"""What the commands that attack a network share: its options' types, and the way from options to objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn
from tyro.constructors import PrimitiveConstructorSpec

from ..attacks import Attack
from ..attacks.base import _is_modal
from ..attacks.checks import check_count
from ..attacks.memory import largest_plan
from ..attacks.names import number, parse_attack
from ..data import ImageData, load_data
from ..models import check_model, load_model, needs_checkpoint
from .errors import CommandError, blaming, reason

__all__ = [
    "DEFAULT_ATTACKS",
    "Number",
    "attacking",
    "choose_batch_size",
    "choose_device",
    "default_eps",
    "fit",
    "parse_attacks",
    "read_data",
    "read_model",
    "threads",
    "uses_eval_mode",
]

# A number that may be written as a fraction: 8/255.
Number = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda words: number(words[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [str(value)],
    ),
]

# Apart from the single step, all with as many gradients for each image: the budget of SOAE.
DEFAULT_ATTACKS = ("FGSM", "PGD-100", "APGD-100", "SOAE")

# Radii that are common in the literature: for grey images those of MNIST, for colour images those of CIFAR-10.
_GREY = {"Linf": 0.3, "L2": 2.0, "L1": 10.0}
_COLOUR = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}
# Images attacked at once where the plan of the memory has room for them.
_BATCH = 250


def default_eps(norm: str, channels: int = 1) -> float:
    """The radius where none is given."""
    return (_GREY if channels == 1 else _COLOUR)[norm]


def parse_attacks(specs: Sequence[str], eps: float, **defaults: Any) -> dict[str, Attack]:
    """The attacks by the name that they are reported under; see :func:`soae_ext.attacks.names.parse_attack`.

    Raises:
        CommandError: an attack or an option that all share is wrong, or an attack is named twice.
    """
    attacks: dict[str, Attack] = {}
    for spec in specs:
        with blaming():
            name, attack = parse_attack(spec, eps, **defaults)
        if name in attacks:
            raise CommandError(f"--attack: {name} is named twice")
        attacks[name] = attack
    return attacks


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`; of several processes on one machine, each has a GPU of its own behind `cuda`."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CommandError(f"--device: unknown device '{name}'; use cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device: '{name}' is not supported; use cpu or cuda")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise CommandError("--device: cuda is not available here (run `soae doctor` to see why); use --device cpu")
    if device.index is None:
        device = torch.device("cuda", local_rank)
    if (device.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"--device: there is no '{device}', only {torch.cuda.device_count()} CUDA device(s)")
    return device


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """A block in which torch computes with `count` CPU threads; `None` leaves them as they are."""
    before = torch.get_num_threads()
    if count is not None:
        with blaming():
            check_count("threads", count, 1)
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_model(spec: str, checkpoint: Path | None, *, option: str = "--checkpoint") -> nn.Module:
    """The network, on the CPU.

    Args:
        spec: see :func:`soae_ext.models.load_model`.
        checkpoint: its parameters; `None` for a network that comes with them.
        option: the option to blame for the file.
    """
    with blaming("--model"):
        untrained = needs_checkpoint(spec)
    if untrained and checkpoint is None:
        raise CommandError(f"--checkpoint: {spec} has no trained parameters of its own; name their safetensors file")
    with blaming(option if checkpoint else "--model"):
        return load_model(spec, checkpoint)


def read_data(spec: str, split: str, n: int | None, *, option: str = "--data") -> ImageData:
    """The first `n` images of `split`, or all; of a large source only these are decoded.

    Raises:
        CommandError: naming `--n`, or `option`.
    """
    if n is not None:
        with blaming():
            check_count("n", n, 1)
    try:
        with blaming(option):
            return load_data(spec, split, n)
    except CommandError as error:
        # That there are fewer images is found where they are read.
        _, found, text = str(error).rpartition("must be between 1 and")
        if not found:
            raise
        raise CommandError(f"--n: must be between 1 and{text}") from error


def fit(model: nn.Module, data: ImageData, *, option: str = "--data") -> int:
    """The number of classes, if the network takes these images and knows these labels.

    Raises:
        CommandError: naming `option`.
    """
    with blaming(option):
        return check_model(model, data)


def choose_batch_size(
    given: int | None, model: nn.Module, attacks: Iterable[Attack], data: ImageData, device: torch.device
) -> int:
    """`given`, or as many images as the most demanding attack has room for by plan, at most 250.

    The plan is a constant of the machine (:func:`soae_ext.attacks.memory.largest_plan`), so the same command makes the
    same batches again.
    """
    if given is not None:
        return given
    model.to(device)
    image = data.images[:1].to(device)
    needed = max(attack.bytes_per_image(model, image) for attack in attacks)
    return max(1, min(_BATCH, largest_plan(device) // needed))


def uses_eval_mode(model: nn.Module) -> list[str]:
    """Names of the types of the modules in `model` that compute something else in train mode."""
    return sorted({type(module).__name__ for module in model.modules() if _is_modal(module)})


@contextmanager
def attacking() -> Iterator[None]:
    """A block of work on the network: what goes wrong in it is blamed on the option that it comes from."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CommandError("--batch-size: these batches do not fit into the GPU's memory; lower it") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise CommandError("--batch-size: these batches do not fit into memory; lower it") from error
    except OSError as error:
        raise CommandError(f"--output: {reason(error)}") from error
    except (TypeError, ValueError) as error:
        argument, _, text = reason(error).partition(": ")
        option = {"x": "--data", "y": "--data"}.get(argument, "--" + argument.replace("_", "-"))
        raise CommandError(f"{option}: {text}") from error
