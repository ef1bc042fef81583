"""Wide residual networks in their CIFAR form (Zagoruyko & Komodakis 2016, without dropout).

The blocks and the names of the parameters are those of the WRN-34-10 that TRADES and later work on adversarial
training use, so their published parameters load. That network takes pixels as they are: `normalization="none"`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from .base import Classifier, Family, activation_type, check_sizes, register, statistics

__all__ = ["WideResNet", "wide_resnet"]


class _Block(nn.Module):
    """Pre-activation block: norm, activation, 3x3 convolution, twice. Where the number of channels changes, the
    shortcut is a 1x1 convolution of the activated input."""

    def __init__(self, in_planes: int, planes: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.act1 = activation()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.act2 = activation()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(in_planes, planes, 1, stride, bias=False) if in_planes != planes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.bn1(x))
        out = self.conv2(self.act2(self.bn2(self.conv1(activated))))
        result: Tensor = out + (x if self.convShortcut is None else self.convShortcut(activated))
        return result


class _Stage(nn.Module):
    """Blocks of equal width, the first of which strides."""

    def __init__(self, blocks: int, in_planes: int, planes: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(_Block(planes if i else in_planes, planes, 1 if i else stride, activation) for i in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


class WideResNet(Classifier):
    """WRN-depth-widen: 3x3 stem, three stages of (depth - 4) / 6 blocks, mean over the pixels, linear layer.

    Maps images `(B, 3, H, W)` with values in [0, 1] to logits `(B, classes)`; the normalisation is inside.

    Raises:
        ValueError: a depth that is not 6 k + 4, or a bad size, activation or normalisation.
    """

    unused_keys: ClassVar[str | None] = "sub_block1."

    def __init__(
        self,
        depth: int,
        widen: int,
        classes: int = 10,
        width: int = 16,
        activation: str = "relu",
        normalization: str = "cifar10",
    ) -> None:
        super().__init__()
        check_sizes(depth=depth, widen=widen, classes=classes, width=width)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(
                f"depth: a wide residual network has 6 k + 4 layers (10, 16, 22, 28, 34, ...), got {depth}"
            )
        act = activation_type(activation)
        self.architecture = f"wrn-{depth}-{widen}"
        mean, std = statistics(normalization)
        self.input_shape = (len(mean), None, None)
        self.classes = classes
        self.config = {"classes": classes, "width": width, "activation": activation, "normalization": normalization}
        blocks = (depth - 4) // 6
        planes = [width, width * widen, 2 * width * widen, 4 * width * widen]
        self.normalize_by(mean, std)
        self.conv1 = nn.Conv2d(len(mean), planes[0], 3, padding=1, bias=False)
        self.block1 = _Stage(blocks, planes[0], planes[1], 1, act)
        self.block2 = _Stage(blocks, planes[1], planes[2], 2, act)
        self.block3 = _Stage(blocks, planes[2], planes[3], 2, act)
        self.bn1 = nn.BatchNorm2d(planes[3])
        self.act1 = act()
        self.fc = nn.Linear(planes[3], classes)
        for module in self.modules():  # He et al. 2015, by fan-out
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(self.normalize(x)))))
        logits: Tensor = self.fc(self.act1(self.bn1(out)).mean(dim=(2, 3)))
        return logits


def wide_resnet(
    depth: int,
    widen: int,
    num_classes: int = 10,
    width: int = 16,
    activation: str = "relu",
    normalization: str = "cifar10",
) -> WideResNet:
    """Build a randomly initialised CIFAR-form WRN-`depth`-`widen`.

    `width` is the number of channels of the stem (16 is the standard; WRN-34-10 has 46.2 million parameters),
    `activation` is `"relu"`, `"silu"` or `"softplus"`, `normalization` `"cifar10"`, `"imagenet"`, `"none"` or,
    for grey images, `"mnist"`.

    Raises:
        ValueError: as `WideResNet`.
    """
    return WideResNet(depth, widen, num_classes, width, activation, normalization)


def _build(name: str, settings: Mapping[str, Any]) -> WideResNet:
    depth, widen = (int(number) for number in re.findall(r"\d+", name))
    return WideResNet(depth, widen, **settings)


register(
    Family(
        pattern=r"wrn-\d{1,3}-\d{1,2}",
        names=("wrn-28-4", "wrn-34-10"),
        options=("activation", "width", "classes", "normalization"),
        build=_build,
    )
)
