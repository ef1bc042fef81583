"""Which curves `soae evaluate` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .._names import unknown_name
from ..attacks import Attack
from ..data import ImageData
from ..evaluation.curves import CURVE_KEYS, PRESETS, check_curves
from .errors import CommandError, blaming

__all__ = ["CurveChoice", "choose_curves"]

# A quick curve shows a trend: two hundred images place a share within 7 points.
_QUICK_IMAGES = 200


@dataclass(frozen=True)
class CurveChoice:
    """Keys of the curves, the preset that samples them, on how many images (`None`: all), and what to note."""

    keys: tuple[str, ...] = ()
    preset: str = "quick"
    images: int | None = None
    notes: list[str] = field(default_factory=list)


def choose_curves(
    words: Sequence[str], attacks: Mapping[str, Attack], data: ImageData | None, *, compared: bool = False
) -> CurveChoice:
    """What `--curves` asks for.

    Args:
        words: `none`, or `quick` or `full`, and beside or instead of these the keys of single curves. Without keys
            every curve is drawn that these attacks allow.
        attacks: of the evaluation.
        data: the images; `None` while they are not known.
        compared: whether there are networks to compare.

    Raises:
        CommandError: an unknown word, words that exclude each other, or a curve that these attacks do not allow.
    """
    known = ("none", *PRESETS, *CURVE_KEYS)
    for word in words:
        if word not in known:
            raise CommandError(f"--curves: {unknown_name(word, known)}")
    presets = [word for word in words if word in ("none", *PRESETS)]
    if len(set(presets)) > 1 or ("none" in presets and len(words) > 1):
        raise CommandError(f"--curves: {' and '.join(words)} exclude each other")
    keys = tuple(word for word in words if word in CURVE_KEYS)
    if keys:
        with blaming():
            check_curves(keys, attacks)
    elif presets != ["none"] and words:
        keys = tuple(key for key in CURVE_KEYS if _allowed(key, attacks))
    if compared and "fd_step" not in keys:
        raise CommandError("--compare: compares on the curve fd_step; add it to --curves, and SOAE to --attack")
    if not keys:
        return CurveChoice()
    preset = presets[0] if presets else "quick"
    if preset != "quick" or data is None or len(data) <= _QUICK_IMAGES:
        return CurveChoice(keys, preset)
    return CurveChoice(keys, preset, _QUICK_IMAGES, [f"The curves are of the first {_QUICK_IMAGES} images."])


def _allowed(key: str, attacks: Mapping[str, Attack]) -> bool:
    try:
        check_curves((key,), attacks)
    except ValueError:
        return False
    return True
