"""What adversarial images do inside a network: activation maps of one layer and their distortion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._names import unknown_name
from .bootstrap import MeanInterval, bootstrap_mean

__all__ = ["FeatureAnalysis", "FeatureStatistics", "activation_maps", "choose_layer", "feature_analysis"]

# The chosen layer keeps an eighth of the resolution of the image, and as many pixels a side as make a picture.
_LEAST_PART = 8
_LEAST_SIDE = 7


@dataclass(frozen=True)
class FeatureStatistics:
    """Distortion |f(x') - f(x)| / |f(x)| of the features of one layer, in 2-norms, under one attack.

    Attributes:
        name: of the attack.
        distortion: over the images that the attack changed.
        fooled: over those of them that fool the network.
    """

    name: str
    distortion: MeanInterval
    fooled: MeanInterval

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "distortion": self.distortion.as_json(), "fooled": self.fooled.as_json()}


@dataclass(frozen=True)
class FeatureAnalysis:
    """Feature distortion under every attack; `layer` is the name of the module that gives the features."""

    layer: str
    attacks: list[FeatureStatistics]

    def as_json(self) -> dict[str, Any]:
        return {"layer": self.layer, "attacks": [each.as_json() for each in self.attacks]}


def choose_layer(model: nn.Module, images: Tensor) -> str:
    """Name of the last convolution whose output still has an eighth of the height and width of the images.

    Layers with fewer than 7 pixels a side are left out if there is any other.

    Args:
        model: maps images to logits.
        images: `(B, C, H, W)` on the device of the model; one is enough.

    Raises:
        ValueError: the network has no such convolution.
    """
    sizes: dict[str, tuple[int, int]] = {}
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        name = names[module]
        sizes.pop(name, None)  # the last call counts, in the order of the calls
        sizes[name] = (output.shape[-2], output.shape[-1])

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with _evaluating(model):
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    height, width = images.shape[-2:]
    fine = [name for name, (h, w) in sizes.items() if _LEAST_PART * h >= height and _LEAST_PART * w >= width]
    large = [name for name in fine if min(sizes[name]) >= _LEAST_SIDE]
    if not fine:
        raise ValueError("layer: the network has no convolution of an eighth of the resolution; name a module")
    return (large or fine)[-1]


def activation_maps(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Mean over the channels of the absolute activations of `layer`, `(B, h, w)`, on the CPU.

    Args:
        model: maps images to logits; run in eval mode.
        layer: name of a module whose output is `(B, c, h, w)`.
        images: `(B, C, H, W)` on the device of the model.

    Raises:
        ValueError: no such module, or its output has another form.
    """
    output = _features(model, layer, images)
    if output.ndim != 4:
        raise ValueError(f"layer: the output of {layer} has shape {tuple(output.shape)}, which is no map; name another")
    return output.abs().mean(1).float().cpu()


def feature_analysis(
    model: nn.Module,
    images: Tensor,
    adversarial: Mapping[str, Tensor],
    success: Mapping[str, Tensor],
    *,
    layer: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 100,
) -> FeatureAnalysis:
    """How far every attack moves the features of one layer.

    Args:
        model: maps images to logits; on `device`, run in eval mode.
        images: `(n, C, H, W)` on the CPU.
        adversarial: the images of each attack, like `images`, by its name.
        success: for each attack `(n,)` bool.
        layer: name of a module; `None` chooses with :func:`choose_layer`.
        device: where the model is.
        batch_size: images at once.

    Raises:
        ValueError: there is no image, or `layer` is no module that gives one tensor with a row per image.
    """
    if not len(images):
        raise ValueError("features: there is no image")
    layer = choose_layer(model, images[:1].to(device)) if layer is None else layer
    distortion: dict[str, list[Tensor]] = {name: [] for name in adversarial}
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        clean = _features(model, layer, images[part].to(device)).double().flatten(1)
        norms = clean.norm(dim=1)
        for name, moved in adversarial.items():
            features = _features(model, layer, moved[part].to(device)).double().flatten(1)
            ratio = (features - clean).norm(dim=1) / norms
            changed = (moved[part] != images[part]).flatten(1).any(1).to(ratio.device)
            distortion[name].append(torch.where(changed & (norms > 0), ratio, math.nan).cpu())
    result = []
    for name, parts in distortion.items():
        values = torch.cat(parts)
        chosen = values[success[name].cpu()]
        result.append(FeatureStatistics(name, bootstrap_mean(values.numpy()), bootstrap_mean(chosen.numpy())))
    return FeatureAnalysis(layer, result)


def _features(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Output of `layer`, one row per image; of its last call if there are several."""
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise ValueError(f"layer: {unknown_name(layer, tuple(name for name in modules if name))}")
    outputs: list[object] = []
    handle = modules[layer].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        with _evaluating(model):
            model(images)
    finally:
        handle.remove()
    output = outputs[-1] if outputs else None
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(images):
        raise ValueError(f"layer: {layer} gives no tensor with one row per image; name another module")
    return output


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode without gradients, and every module as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
