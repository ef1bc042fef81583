"""Data by a short text, as it is given on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .decode import collect, resize
from .images import ImageData
from .packed import load_packed
from .shipped import load_digits
from .sources import hub_rows, import_library, is_saved_dataset, parquet_rows, picture_rows, quiet, saved_rows

__all__ = ["load_data", "load_directory"]

# Data that have a name, and what the hub calls them.
_NAMED = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10", "imagenet-sample": None}
_DATA_DIR = "SOAE_DATA_DIR"
_OFFLINE = "download its parquet files where there is a network, and give their directory instead"


def load_data(spec: str, split: str = "test", n: int | None = None, *, size: int | None = None) -> ImageData:
    """Labelled images from one of many sources.

    | `spec` | meaning |
    |---|---|
    | `digits` | the 1,000 MNIST test images that the package ships |
    | `mnist:DIR`, `cifar10:DIR`, `imagenet-sample:DIR` | parquet files in DIR, or in its sub-folder of that name |
    | `mnist`, `cifar10`, `imagenet-sample` | the same in the folder that `SOAE_DATA_DIR` names; without it, the hub |
    | `hub:NAME`, `hub:NAME:CONFIGURATION` | a dataset of the hub, read in a stream |
    | a file `*.parquet`, or a directory of them | `{split}-*.parquet`, `{split}.parquet` or `{split}/*.parquet` |
    | a file `*.safetensors` | what :func:`soae_ext.data.packed.save_packed` (`soae data pack`) wrote |
    | a directory written by `save_to_disk` | a dataset of the `datasets` library |
    | a directory with one folder per class | PNG, JPEG and other pictures, taken from the classes in turns |
    | any of these with `@SIZE` at its end | as with the argument `size`: `photos@224` |

    The columns of a dataset are `image` or `img` and `label`, `labels` or `fine_label`. 8-bit pixels are divided by
    255, 16-bit pixels by 65535; floating-point pixels are taken as they are. The order is always the same, and of a
    large source only the first `n` images are decoded.

    Args:
        spec: see above.
        split: `"test"`, `"train"`, ...
        n: take the first `n` images only; `None` takes all.
        size: scale the shorter side of every image to `size` (bicubic) and keep the centre, `size` x `size`.

    Raises:
        ImportError: the `datasets` library, which all but `digits` and `*.safetensors` need, is not installed.
        OSError: no such file, directory or split; the hub cannot be reached.
        ValueError: a file or a row (named in the message) cannot be used, the images differ in shape, there are fewer
            than `n`, or `n` or `size` is below 1.
    """
    for argument, value in (("n", n), ("size", size)):
        if value is not None and value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")
    spec, size = _with_size(spec, size)
    data = _load(spec, split, n, size)
    return data if size is None else replace(data, name=f"{data.name} at {size} x {size}")


def _with_size(spec: str, size: int | None) -> tuple[str, int | None]:
    """`photos@224` as `("photos", 224)`, unless something of that very name exists."""
    found = re.fullmatch(r"(.+)@(\d{1,5})", spec)
    if found is None or Path(spec).exists():
        return spec, size
    if size is not None or int(found[2]) < 1:
        raise ValueError(f"{spec}: give one size of at least 1")
    return found[1], int(found[2])


def _load(spec: str, split: str, n: int | None, size: int | None) -> ImageData:
    name, colon, rest = spec.partition(":")
    if name == "hub" and colon:
        return _read(f"{spec} ({split})", lambda library: hub_rows(library, rest, split), n, size)
    if name in _NAMED:
        return _load_named(name, Path(rest) if rest else None, split, n, size)
    if spec == "digits":
        return _load_shipped(split, n, size)
    return _load_path(Path(spec), split, n, size)


def load_directory(path: str | os.PathLike[str], split: str = "test", n: int | None = None) -> ImageData:
    """The images of a directory of parquet files: :func:`load_data` for a directory of nothing else.

    Raises:
        ImportError: `datasets` is not installed.
        FileNotFoundError: no such directory, or no file of that split in it.
        ValueError: a file cannot be read, a column is missing, the images differ in shape, or there are fewer than `n`.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no such directory: {path}")
    return _read(f"{path} ({split})", lambda library: parquet_rows(library, path, split), n, None)


def _load_shipped(split: str, n: int | None, size: int | None) -> ImageData:
    if split != "test":
        raise ValueError(f"digits: the shipped images are test images, there is no split {split}; use mnist for others")
    data = load_digits().first(n)
    return data if size is None else replace(data, images=resize(data.images, size))


def _load_named(name: str, folder: Path | None, split: str, n: int | None, size: int | None) -> ImageData:
    root = os.environ.get(_DATA_DIR)
    if folder is None and root:
        folder = Path(root, name)
        if not folder.is_dir():
            raise FileNotFoundError(f"{_DATA_DIR}={root} holds no folder {name}; give {name}:DIR")
    if folder is None:
        if _NAMED[name] is None:
            raise FileNotFoundError(f"where is {name}? give {name}:DIR, or set {_DATA_DIR}")
        return _load(f"hub:{_NAMED[name]}", split, n, size)
    if (folder / name).is_dir():
        folder = folder / name
    data = _load_path(folder, split, n, size)
    return replace(data, name=f"{name} ({split})")


def _load_path(path: Path, split: str, n: int | None, size: int | None) -> ImageData:
    if not path.exists():
        known = ", ".join(("digits", *_NAMED, "hub:NAME"))
        raise FileNotFoundError(f"no such file or directory: {path} (and none of the names {known})")
    opener: Callable[[Any, Path, str], Any]
    if path.is_file():
        if path.suffix == ".safetensors":
            packed = load_packed(path, split, n)
            return packed if size is None else replace(packed, images=resize(packed.images, size))
        if path.suffix != ".parquet":
            raise ValueError(
                f"{path} is not a .parquet or .safetensors file: give one of these or a directory of images"
            )
        opener = parquet_rows
    elif is_saved_dataset(path):
        opener = saved_rows
    elif next(path.rglob("*.parquet"), None) is not None:
        opener = parquet_rows
    else:
        opener = picture_rows
    name = str(path) if path.is_file() else f"{path} ({split})"
    return _read(name, lambda library: opener(library, path, split), n, size)


def _read(name: str, open_rows: Callable[[Any], Any], n: int | None, size: int | None) -> ImageData:
    """Open a source and collect its images; whatever the library raises becomes one line."""
    library = import_library()
    with quiet(library):
        try:
            rows = open_rows(library)
            images, labels, classes = collect(library, rows, n=n, size=size)
        except FileNotFoundError as error:
            if isinstance(error, library.exceptions.DatasetsError):
                raise FileNotFoundError(f"cannot read {name}: {_one_line(error)}") from error
            raise
        except ConnectionError as error:
            raise ConnectionError(f"cannot read {name}: {_one_line(error)}; {_OFFLINE}") from error
        except (
            ArithmeticError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
            library.exceptions.DatasetsError,
        ) as error:
            raise ValueError(f"cannot read {name}: {_one_line(error)}") from error
    return ImageData(images, labels, name, classes)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
