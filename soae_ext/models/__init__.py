"""Image classifiers that map images in [0, 1] to logits, and their checkpoints."""

from .base import Classifier
from .checkpoint import load_checkpoint, save_checkpoint
from .efficientnet import EfficientNetLite0, efficientnet_lite0
from .fitness import check_model
from .resnet import ResNet18, resnet18
from .small_cnn import SmallCNN, digits_network
from .specs import load_model, needs_checkpoint
from .wide_resnet import WideResNet, wide_resnet

__all__ = [
    "Classifier",
    "EfficientNetLite0",
    "ResNet18",
    "SmallCNN",
    "WideResNet",
    "check_model",
    "digits_network",
    "efficientnet_lite0",
    "load_checkpoint",
    "load_model",
    "needs_checkpoint",
    "resnet18",
    "save_checkpoint",
    "wide_resnet",
]
