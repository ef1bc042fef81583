"""Image classifiers that map images in [0, 1] to logits."""

from .resnet import ResNet18, resnet18
from .small_cnn import SmallCNN, digits_network, load_checkpoint

__all__ = ["ResNet18", "SmallCNN", "digits_network", "load_checkpoint", "resnet18"]
