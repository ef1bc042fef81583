"""Figures: images under attack, and charts of what was measured, and of training runs."""

from .charts import accuracy_chart, curve_chart, edge_chart, feature_chart
from .images import feature_grid, image_grid, pick
from .style import DARK, LIGHT, Theme, check_format, save
from .training import training_chart

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "accuracy_chart",
    "check_format",
    "curve_chart",
    "edge_chart",
    "feature_chart",
    "feature_grid",
    "image_grid",
    "pick",
    "save",
    "training_chart",
]
