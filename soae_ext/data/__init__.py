"""Images to attack: shipped digits, parquet files, image folders, saved datasets and datasets of the hub.

`load_data` takes them all by a short text. Every loader gives images as float32 in [0, 1] and labels as int64.
"""

from .images import ImageData
from .shipped import load_digits, shipped_file
from .specs import load_data, load_directory

__all__ = ["ImageData", "load_data", "load_digits", "load_directory", "shipped_file"]
