"""Attacks by a short text, as they are given on the command line: `PGD-40`, `SOAE-4:direction=paper,max_dim=3`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import soae_ext.attacks as package

from .._names import unknown_name
from .base import Attack

__all__ = ["ATTACKS", "number", "option_types", "parse_attack", "read_options", "split_spec"]

ATTACKS: tuple[str, ...] = tuple(
    name
    for name in package.__all__
    if isinstance(getattr(package, name), type) and issubclass(getattr(package, name), Attack) and name != "Attack"
)

# What all attacks of one run share, or what would need other labels than those of the data.
_ELSEWHERE = {
    "eps": "all attacks share one ball: use --eps",
    "norm": "all attacks share one ball: use --norm",
    "targeted": "the labels of the data are the classes to leave; targeted attacks are for Python",
}

# The number of steps belongs to the definition of these; it changes only where the spec itself says so.
_OWN_STEPS = ("FGSM", "AutoAttack")


def parse_attack(spec: str, eps: float, **defaults: Any) -> tuple[str, Attack]:
    """The attack that `spec` describes, and its name for reports.

    Args:
        spec: `NAME[-STEPS][:key=value[,key=value...]]`. NAME is one of `ATTACKS`, in any case; the keys are the options
            of the attack's class, a value is a number (also `2/255`), a word, `true`, `false` or `none`; several values
            of one option are joined with `+`.
        eps: radius of the ball.
        defaults: options for attacks that have them, e.g. `norm` and `seed`; what `spec` says comes first, and `None`
            says nothing. `steps` is for attacks other than FGSM and AutoAttack, and for those without `gradients`.

    Raises:
        ImportError: the attack needs a package that is not installed.
        ValueError, TypeError: unknown name, option or value; the message starts with the argument to blame: "attack"
            where it is in `spec`, else one of `defaults`, or "eps".
    """
    name, options = split_spec("attack", spec, ATTACKS)
    kind: type[Attack] = getattr(package, name)
    types = option_types(kind)
    given = read_options("attack", spec, options, types, _ELSEWHERE)
    chosen = {**{key: value for key, value in defaults.items() if key in types and value is not None}, **given}
    if name in _OWN_STEPS and "steps" not in given:
        chosen.pop("steps", None)
    if "gradients" in given and "steps" not in given:
        chosen.pop("steps", None)  # a budget of its own decides on the steps
    # The sign of a step is a corner of the Linf ball, but no steep direction of an L2 ball.
    if "normalize" in types and "normalize" not in chosen and chosen.get("norm", "Linf") != "Linf":
        chosen["normalize"] = "L2"
    try:
        attack = kind(eps, **chosen)
    except ImportError as error:
        raise ImportError(f"attack: {error}") from error
    except (TypeError, ValueError) as error:
        argument = str(error).partition(":")[0]
        if argument == "norm":
            raise ValueError(f"{error} for {name}") from error
        # What every attack was given is not the fault of this one.
        shared = argument in {"eps", *chosen} - set(given)
        raise type(error)(str(error) if shared else f"attack: '{spec}': {error}") from error
    own = attack.steps == 0 or (name in _OWN_STEPS and "steps" not in given)
    label = name if own else f"{name}-{attack.steps}"
    extras = ",".join(f"{key}={text}" for key, text in options if key != "steps")
    return (f"{label}:{extras}" if extras else label), attack


def number(text: str) -> float:
    """The number that `text` gives, also as a fraction such as `8/255`.

    Raises:
        ValueError: it gives none.
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"expected a number, got '{text}'") from error


def option_types(kind: type) -> Mapping[str, Any]:
    """The options of a class of attacks (or of any dataclass) and their types, in the order of their declaration."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def split_spec(argument: str, spec: str, names: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """The name in `NAME[-STEPS][:key=value[,key=value...]]`, as it is in `names`, and its options as text.

    The number of steps is the option `steps`.

    Raises:
        ValueError: the name is unknown or the form is another; the message starts with `argument`.
    """
    head, colon, tail = spec.partition(":")
    name, number = re.fullmatch(r"(.*?)(?:-(\d+))?", head, re.DOTALL).groups()  # type: ignore[union-attr]  # fits all
    known = {choice.lower(): choice for choice in names}
    if name.lower() not in known:
        raise ValueError(f"{argument}: {unknown_name(name, names)}")
    options = [] if number is None else [("steps", number)]
    for part in tail.split(",") if colon else []:
        key, equals, text = part.partition("=")
        if not equals or not key or not text:
            raise ValueError(f"{argument}: '{spec}': expected key=value after the colon, got '{part}'")
        options.append((key.strip().replace("-", "_"), text.strip()))
    return known[name.lower()], options


def read_options(
    argument: str,
    spec: str,
    options: Sequence[tuple[str, str]],
    types: Mapping[str, Any],
    elsewhere: Mapping[str, str],
) -> dict[str, Any]:
    """The values of the options in `spec`.

    Args:
        argument: what messages start with.
        options: of :func:`split_spec`.
        types: of every option that there is.
        elsewhere: options that cannot be given here, and the remedy.

    Raises:
        ValueError: an option is unknown, given twice, given in the wrong place, or its text gives no such value.
    """
    given: dict[str, Any] = {}
    for key, text in options:
        if key in elsewhere:
            raise ValueError(f"{argument}: '{spec}': {key}: {elsewhere[key]}")
        if key not in types:
            choices = [option for option in types if option not in elsewhere]
            raise ValueError(f"{argument}: '{spec}': {unknown_name(key, choices)}")
        if key in given:
            raise ValueError(f"{argument}: '{spec}': {key} is given twice")
        try:
            given[key] = _value(text, types[key])
        except ValueError as error:
            raise ValueError(f"{argument}: '{spec}': {key}: {error}") from error
    return given


def _value(text: str, kind: Any) -> Any:
    """`text` as a value of the type `kind`: a number, bool, string, literal, or optional, union or tuple of these."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(unknown_name(text, [str(choice) for choice in get_args(kind)]))
        return text
    if get_origin(kind) is tuple:
        return tuple(_value(part, get_args(kind)[0]) for part in text.split("+"))
    if get_args(kind):
        return _of_union(text, list(get_args(kind)))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"expected true or false, got '{text}'")
        return text.lower() == "true"
    if kind is float:
        return number(text)
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"expected a whole number, got '{text}'") from error


def _of_union(text: str, kinds: list[Any]) -> Any:
    if NoneType in kinds and text.lower() == "none":
        return None
    complaints = []
    for kind in kinds:
        if kind in (int, float, bool, str) or get_origin(kind) in (Literal, tuple):
            try:
                return _value(text, kind)
            except ValueError as error:
                complaints.append(str(error))
    raise ValueError(" or ".join(complaints) if complaints else f"cannot be given as text, got '{text}'")
