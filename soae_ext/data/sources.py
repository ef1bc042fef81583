"""Where rows come from: each function opens one kind of source with the `datasets` library, without decoding an image.

They raise `FileNotFoundError` or `ValueError` for what is missing; what the library itself raises on damaged files is
left to the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["hub_rows", "import_library", "is_saved_dataset", "parquet_rows", "picture_rows", "quiet", "saved_rows"]

_SPLITS = ("train", "training", "test", "testing", "validation", "val", "valid", "dev")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def import_library() -> Any:
    """The module `datasets`.

    Raises:
        ImportError: it, or the image library that it decodes with, is not installed; with the remedy.
    """
    try:
        library: Any = import_module("datasets")
        import_module("PIL.Image")
    except ImportError as error:
        raise ImportError(
            "reading images needs the libraries datasets and pillow: pip install 'soae-ext[full]'"
        ) from error
    return library


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Keep `datasets` from printing what is raised as an error all the same, and from drawing bars."""
    hub, verbosity, bars = (
        logging.getLogger("huggingface_hub"),
        library.logging.get_verbosity(),
        library.are_progress_bars_disabled(),
    )
    level = hub.level
    library.logging.set_verbosity(library.logging.CRITICAL)
    library.disable_progress_bars()
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        hub.setLevel(level)
        library.logging.set_verbosity(verbosity)
        if not bars:
            library.enable_progress_bars()


def parquet_rows(library: Any, path: Path, split: str) -> Any:
    """The rows of a parquet file, or of the files of a split in a directory, in the order of their names.

    The files of a split are called `{split}-*.parquet` or `{split}.parquet`, or lie in a folder of that name. A
    directory whose files are named after no split at all is read whole.
    """
    files = [path] if path.is_file() else _of_split(sorted(path.rglob("*.parquet")), path, split)
    if not files:
        raise FileNotFoundError(f"no file {split}-*.parquet in {path}")
    return library.load_dataset(
        "parquet", data_files={"data": [str(file) for file in files]}, split="data", streaming=True
    )


def _of_split(files: list[Path], root: Path, split: str) -> list[Path]:
    def is_of(file: Path, name: str) -> bool:
        return file.stem == name or file.name.startswith(f"{name}-") or name in file.relative_to(root).parts[:-1]

    chosen = [file for file in files if is_of(file, split)]
    return chosen or [file for file in files if not any(is_of(file, name) for name in _SPLITS)]


def is_saved_dataset(path: Path) -> bool:
    """Whether a directory was written by `save_to_disk` of the `datasets` library."""
    return (path / "dataset_dict.json").is_file() or all(
        (path / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def saved_rows(library: Any, path: Path, split: str) -> Any:
    """The rows of a dataset that `save_to_disk` wrote; the split of a dictionary of datasets."""
    rows = library.load_from_disk(str(path))
    if not isinstance(rows, library.DatasetDict):
        return rows
    if split not in rows:
        raise FileNotFoundError(f"{path} has no split {split}, only {', '.join(rows)}")
    return rows[split]


def picture_rows(library: Any, path: Path, split: str) -> Any:
    """The pictures in a directory with one sub-folder per class; or with one folder per split, and these inside.

    Labels are the positions of the sorted folder names, or the names themselves where all are whole numbers. Pictures
    are taken in turns, the first of every class, then the second of every class, and so on, by file name: so the first
    n of them are spread over the classes.
    """
    path = _split_folder(path, split)
    folders = _folders(path)
    if not folders:
        raise FileNotFoundError(
            f"{path} holds neither parquet files nor class folders with images: put the images of each class into a "
            "sub-folder"
        )
    numbered = all(folder.name.isascii() and folder.name.isdigit() for folder in folders)
    labels = [int(folder.name) if numbered else label for label, folder in enumerate(folders)]
    found = []
    for label, folder in zip(labels, folders, strict=True):
        pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _PICTURES and file.is_file())
        found += [(turn, label, str(file)) for turn, file in enumerate(pictures)]
    if not found:
        raise FileNotFoundError(f"no images ({', '.join(_PICTURES)}) in the class folders of {path}")
    found.sort()
    kind = library.Value("int64") if numbered else library.ClassLabel(names=[folder.name for folder in folders])
    return library.Dataset.from_dict(
        {"image": [file for _, _, file in found], "label": [label for _, label, _ in found]},
        features=library.Features({"image": library.Image(decode=False), "label": kind}),
    )


def _split_folder(path: Path, split: str) -> Path:
    if (path / split).is_dir():
        return path / split
    names = [folder.name for folder in _folders(path)]
    if names and all(name in _SPLITS for name in names):
        raise FileNotFoundError(f"{path} has no folder {split}, only {', '.join(names)}: choose one of these splits")
    return path


def _folders(path: Path) -> list[Path]:
    return sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith((".", "__")))


def hub_rows(library: Any, name: str, split: str) -> Any:
    """The rows of a dataset of the hub, `NAME` or `NAME:CONFIGURATION`; only what is read is downloaded."""
    name, _, configuration = name.partition(":")
    if not name:
        raise ValueError("hub: needs the name of a dataset, such as hub:ylecun/mnist")
    return library.load_dataset(name, *([configuration] if configuration else []), split=split, streaming=True)
