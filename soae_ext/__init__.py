"""Batched, matrix-free GMRES for PyTorch, and second-order adversarial examples built on it.

`from soae_ext.gmres import gmres`. This module only says what was built; importing it needs torch and numpy alone.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch  # noqa: F401  before the compiled module, so that both share torch's OpenMP runtime

__all__ = ["__version__", "build_info"]
__version__ = "0.1.0"

try:
    from soae_ext import _C

    _import_error: str | None = None
except ImportError as error:
    _import_error = str(error)
    warnings.warn(
        f"soae_ext has no usable compiled module ({error}), so everything runs through the slower pure-PyTorch "
        "reference. Remedy: run `pip install .` (or `pip install -e .` to work on the source) where setup.py is.",
        RuntimeWarning,
        stacklevel=2,
    )


def build_info() -> dict[str, Any]:
    """What was compiled: `version`, `cuda` (13000 for 13.0, or None), `archs` and `compiler` (None: nothing was)."""
    if _import_error is not None:
        return {"version": __version__, "cuda": None, "archs": [], "compiler": None}
    return dict(_C.build_info())
