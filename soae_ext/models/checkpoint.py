"""Checkpoints: safetensors files with the parameters of a network and, as metadata, how to build it.

The metadata are `architecture` (a name that `load_model` takes) and `config` (its settings, as JSON), so that a file is
never loaded into a network that it does not belong to. Pickles are refused, never opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from .._files import replacing
from .._names import unknown_name
from .base import Classifier, family_of, known_names

__all__ = [
    "Metadata",
    "build_and_fill",
    "complete_config",
    "fill",
    "load_checkpoint",
    "read",
    "read_metadata",
    "save_checkpoint",
]

# The first bytes of what `torch.save` writes: a zip archive, or a bare pickle of protocol 2 and later.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_WRAPPERS = ("module.", "_orig_mod.")  # put before every name by torch.nn.DataParallel and torch.compile
_OLD_NAMES = {"small_cnn": "small-cnn"}

Metadata = tuple[str, dict[str, Any]]
"""Name and settings of an architecture."""


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], notes: Mapping[str, str] | None = None) -> None:
    """Write the parameters of `model` to `path` as safetensors; the file appears whole or not at all.

    Args:
        model: a network of one of the built-in architectures.
        path: the file to write or replace.
        notes: further metadata, e.g. the command that trained the network and the accuracies that were measured.

    Raises:
        TypeError: `model` is of no built-in architecture.
        OSError: `path` cannot be written.
    """
    if not isinstance(model, Classifier):
        raise TypeError(
            f"model: {type(model).__name__} is not a built-in architecture, so it could not be built again from the "
            "file; write its parameters with safetensors.torch.save_file"
        )
    metadata = {**(notes or {}), "architecture": model.architecture, "config": json.dumps(model.config)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(Path(path), durable=True) as temporary:
        temporary.write_bytes(serialize(tensors, metadata))


def load_checkpoint(path: str | os.PathLike[str]) -> Classifier:
    """The network that :func:`save_checkpoint` wrote to `path`, on the CPU, in float32 and in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle, is truncated or otherwise not safetensors, does not say which architecture it
            holds or holds another one, or holds parameters that are NaN or infinite.
    """
    path = Path(path)
    tensors, metadata = read(path)
    found = read_metadata(path, metadata)
    if found is None:
        raise ValueError(f"{path} does not name its architecture in its metadata: load_model takes it with the name")
    return build_and_fill(path, *found, tensors)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle, is truncated or otherwise not safetensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - a file is no dict
    except SafetensorError as error:
        # Not before: the length that a safetensors file begins with may look like the start of a pickle.
        with path.open("rb") as file:
            if file.read(4).startswith(_PICKLE_STARTS):
                raise ValueError(
                    f"{path} is a pickle, which can run code when it is opened: "
                    "save the parameters with safetensors.torch.save_file"
                ) from error
        raise ValueError(f"{path} is truncated or is not a safetensors file ({error})") from error


def read_metadata(path: Path, metadata: Mapping[str, str]) -> Metadata | None:
    """Name and settings of the architecture that a file says to hold; `None` if it names none.

    Raises:
        ValueError: an architecture that is not built in, or settings that are not a JSON object.
    """
    if "architecture" not in metadata:
        return None
    name = _OLD_NAMES.get(metadata["architecture"], metadata["architecture"])
    if family_of(name) is None:
        raise ValueError(f"{path} holds an architecture that is not built in: {unknown_name(name, known_names())}")
    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path} does not give the settings of its {name} in its metadata (config, a JSON object)")
    return name, config


def complete_config(path: Path, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file with the defaults of those that it does not give.

    Raises:
        ValueError: bad settings.
    """
    with torch.device("meta"):
        return _built(path, name, config).config


def build_and_fill(path: Path, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Classifier:
    """Build an architecture and give it the parameters of a file.

    Raises:
        ValueError: bad settings, or parameters that do not fit.
    """
    with torch.device("meta"):  # compares names and shapes before any memory is taken
        fitted = _fitted(path, name, _built(path, name, config), tensors)
    with torch.random.fork_rng(devices=[]):  # the initial parameters are thrown away
        model = _built(path, name, config)
    model.load_state_dict(fitted, strict=False)
    return model.eval()


def _built(path: Path, name: str, config: Mapping[str, Any]) -> Classifier:
    family = family_of(name)
    assert family is not None
    try:
        return family.build(name, config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} and the settings of {name} do not fit together: {error}") from error


def fill(path: Path, name: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give `model`, called `name` in messages, the parameters of a file.

    Raises:
        ValueError: names or shapes differ, or there are NaN or infinite parameters; `model` is then as it was.
    """
    model.load_state_dict(_fitted(path, name, model, tensors), strict=False)


def _fitted(path: Path, name: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names of `model`, checked."""
    expected = model.state_dict()
    given = _unwrapped(tensors, expected)
    unused = getattr(model, "unused_keys", None)
    if unused is not None:
        given = {key: tensor for key, tensor in given.items() if not key.startswith(unused)}
    # How many batches the statistics were taken over; files from elsewhere often lack it, and eval mode ignores it.
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in expected]
    changed = [
        f"{key} {tuple(tensor.shape)} instead of {tuple(expected[key].shape)}"
        for key, tensor in given.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    parts = [
        f"{what} {_some(keys)}"
        for what, keys in (("it lacks", missing), ("has the unknown", unknown), ("has", changed))
        if keys
    ]
    if parts:
        raise ValueError(f"{path} is of another architecture than {name}: {', '.join(parts)}")
    kinds = [key for key, tensor in given.items() if tensor.is_floating_point() != expected[key].is_floating_point()]
    if kinds:
        raise ValueError(f"{path} holds numbers of another kind than {name}: {_some(kinds)}")
    learned = {key for key, _ in model.named_parameters()}
    broken = [
        key
        for key, tensor in given.items()
        if (key in learned or "running_" in key) and not bool(tensor.float().isfinite().all())
    ]
    if broken:
        raise ValueError(f"{path} holds parameters that are NaN or infinite: {_some(broken)}")
    return given


def _unwrapped(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers put before every name, unless the model's own names have them."""
    given = dict(tensors)
    while prefix := next((one for one in _WRAPPERS if given and all(key.startswith(one) for key in given)), None):
        if all(key.startswith(prefix) for key in expected):
            break
        given = {key.removeprefix(prefix): tensor for key, tensor in given.items()}
    return given


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:3])
    return f"{shown} and {len(items) - 3} more" if len(items) > 3 else shown
