"""Networks of the user's own, by import path."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from typing import Any

from torch import nn

__all__ = ["import_model", "is_import_path"]

_PATH = r"[^\W\d]\w*(\.[^\W\d]\w*)*"


def is_import_path(text: str) -> bool:
    """Whether `text` reads `pkg.module:factory`."""
    return re.fullmatch(f"{_PATH}:{_PATH}", text) is not None


def import_model(path: str) -> nn.Module:
    """The network that `pkg.module:factory` gives: `factory()`, or `factory` itself if it is a network.

    The working directory is put first on the module search path if it is not on it, and stays there: a network
    may import more when it runs.

    Raises:
        ImportError: the module cannot be found, fails while it is imported, or has no such attribute.
        TypeError: the attribute is not callable, or gives no `torch.nn.Module`.
        ValueError: the factory raises an error.
    """
    module_name, _, attribute = path.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    found: Any = _module(module_name)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ImportError(f"{path}: there is no '{attribute}' in the module {module_name}")
        found = getattr(found, name)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise TypeError(f"{path} is not callable but {type(found).__name__}: name a function that returns the network")
    try:
        model = found()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}() fails with {_described(error)}") from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"{path}() gives {type(model).__name__}, not a torch.nn.Module")
    return model


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name + ".").startswith(error.name + "."):
            raise ImportError(
                f"there is no module '{error.name}' in {os.getcwd()} or among the installed packages"
            ) from error
        raise ImportError(f"importing {name} fails with {_described(error)}") from error
    except (Exception, SystemExit) as error:
        raise ImportError(f"importing {name} fails with {_described(error)}") from error


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
