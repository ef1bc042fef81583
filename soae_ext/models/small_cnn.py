"""A small convolutional classifier for 28x28 grey images, and its checkpoint format.

The checkpoint is a safetensors file: the parameters, and as metadata the architecture with its widths, so that a
file is never loaded into a network that it does not belong to. Pickled checkpoints are refused, never opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from .._files import replacing
from .._names import unknown_name
from ..data import shipped_file

__all__ = ["SmallCNN", "digits_network", "load_checkpoint", "save_checkpoint"]

ARCHITECTURE = "small_cnn"
# The first bytes of what `torch.save` writes: a zip archive, or a bare pickle of protocol 2 and later.
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "softplus": nn.Softplus, "silu": nn.SiLU}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class SmallCNN(nn.Module):
    """Two strided 4x4 convolutions and two fully connected layers, with an activation in between.

    Maps images `(B, 1, 28, 28)` with values in [0, 1] to logits `(B, 10)`. The pixels enter as they are: there is no
    normalisation, no batch statistics and no randomness, so train and eval mode compute the same function.

    Args:
        channels: output channels of the two convolutions.
        hidden: width of the hidden fully connected layer.
        activation: `"relu"`, or `"silu"` or `"softplus"` for logits with curvature of their own.

    Raises:
        ValueError: unknown activation.
    """

    input_shape = (1, 28, 28)
    classes = 10

    def __init__(self, channels: tuple[int, int] = (24, 48), hidden: int = 96, activation: str = "relu") -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation: {unknown_name(activation, tuple(_ACTIVATIONS))}")
        act = _ACTIVATIONS[activation]
        self.activation = activation
        self.channels = channels
        self.hidden = hidden
        self.features = nn.Sequential(
            nn.Conv2d(1, channels[0], 4, stride=2, padding=1),
            act(),
            nn.Conv2d(channels[0], channels[1], 4, stride=2, padding=1),
            act(),
        )
        self.classifier = nn.Sequential(nn.Linear(49 * channels[1], hidden), act(), nn.Linear(hidden, self.classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def save_checkpoint(model: SmallCNN, path: str | os.PathLike[str], notes: Mapping[str, str] | None = None) -> None:
    """Write the parameters of `model` to `path` as safetensors; the file appears whole or not at all.

    Args:
        model: the network.
        path: the file to write or replace.
        notes: further metadata, e.g. the command that trained the network and the accuracies that were measured.

    Raises:
        OSError: `path` cannot be written.
    """
    path = Path(path)
    metadata = {
        **(notes or {}),
        "architecture": ARCHITECTURE,
        "config": json.dumps(
            {"channels": list(model.channels), "hidden": model.hidden, "activation": model.activation}
        ),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(serialize(tensors, metadata))


def load_checkpoint(path: str | os.PathLike[str]) -> SmallCNN:
    """The network that :func:`save_checkpoint` wrote to `path`, on the CPU and in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle, is truncated or otherwise not safetensors, or holds another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with path.open("rb") as file:
        if file.read(4).startswith(_PICKLE_STARTS):
            raise ValueError(
                f"{path} is a pickle, which can run code when it is opened: "
                "save the parameters with safetensors.torch.save_file"
            )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or is not a safetensors file ({error})") from error
    model = _build(path, metadata)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} holds parameters of another network than its metadata says") from error
    return model.eval()


def digits_network() -> SmallCNN:
    """The PGD-trained digit network that the package ships (see `assets/README.md`), in eval mode."""
    return load_checkpoint(shipped_file("digits_cnn.safetensors"))


def _build(path: Path, metadata: Mapping[str, str]) -> SmallCNN:
    architecture = metadata.get("architecture", "not named")
    if architecture != ARCHITECTURE:
        raise ValueError(f"{path} is of another architecture: expected '{ARCHITECTURE}', its metadata: {architecture}")
    try:
        config = json.loads(metadata["config"])
        first, second = (int(width) for width in config["channels"])
        return SmallCNN((first, second), int(config["hidden"]), str(config.get("activation", "relu")))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not give the widths of the network in its metadata") from error
