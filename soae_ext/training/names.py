"""Objectives by a short text, as they are given on the command line: `TRADES-10:eps=8/255,beta=6`, `SOAT:eps=0.3`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, get_type_hints

from ..attacks.asod import ASOD
from ..attacks.names import option_types, read_options, split_spec
from ..attacks.soae import SOAE
from .asod import ASODTraining
from .base import TrainingObjective
from .pgd import PGDTraining
from .scorpio import SCORPIO
from .soar import SOAR
from .soat import SOAT
from .standard import Standard
from .stn import STN
from .trades import TRADES

__all__ = ["OBJECTIVES", "parse_objective"]

Maker = Callable[..., TrainingObjective]

# What the training loop decides, and what is not an option where the labels are to be learnt.
_ELSEWHERE = {
    "targeted": "the labels are what is learnt, not targets",
    "seed": "every step of training has a seed of its own: use the seed of the run",
    "early_stop": "the examples of training are the strongest that the attack finds; it is off",
    "batch_size": "the batch is that of the training",
}


def _soat(eps: float, **options: Any) -> SOAT:
    """With `steps`, the attack of those options; without, the default one with those options changed."""
    if "steps" not in options:
        norm = options.pop("norm", "Linf")
        return SOAT(attack=replace(SOAT(eps, norm=norm).attack, **options))
    if options.get("norm", "Linf") != "Linf":  # where the sign of a step is no steep direction
        options.setdefault("normalize", "L2")
    return SOAT(attack=SOAE(eps, **options))


def _asod(eps: float, **options: Any) -> ASODTraining:
    return ASODTraining(attack=ASOD(eps, **options))


def _options_of_call(maker: Maker) -> Mapping[str, Any]:
    hints = get_type_hints(maker)
    return {name: hints[name] for name in signature(maker).parameters}


# For each name: what makes the objective, and its options and their types.
_MAKERS: dict[str, tuple[Maker, Mapping[str, Any]]] = {
    **{kind.name: (kind, option_types(kind)) for kind in (Standard, PGDTraining, TRADES, SOAR, STN, SCORPIO)},
    "SOAT": (_soat, option_types(SOAE)),
    "SOAT-paper": (SOAT.paper, _options_of_call(SOAT.paper)),
    "ASOD": (_asod, option_types(ASOD)),
}
OBJECTIVES: tuple[str, ...] = tuple(_MAKERS)


def parse_objective(spec: str, **defaults: Any) -> tuple[str, TrainingObjective]:
    """The objective that `spec` describes, and its name for logs.

    Args:
        spec: `NAME[-STEPS][:key=value[,key=value...]]`. NAME is one of `OBJECTIVES`, in any case; the keys are the
            options of the objective's class, of `SOAT` and `ASOD` those of their attack (with `steps`, SOAT's attack is
            `SOAE` with those options; without, the default one with those changed). A value is a number (also `2/255`),
            a word, `true`, `false` or `none`.
        defaults: options for objectives that have them, e.g. `eps` and `norm`; what `spec` says comes first, and `None`
            says nothing.

    Raises:
        ValueError, TypeError: unknown name, option or value, or no `eps` for an objective that needs one; the message
            starts with the argument to blame: "objective" where it is in `spec`, else one of `defaults`.
    """
    name, options = split_spec("objective", spec, OBJECTIVES)
    maker, types = _MAKERS[name]
    given = read_options("objective", spec, options, types, _ELSEWHERE)
    chosen = {**{key: value for key, value in defaults.items() if key in types and value is not None}, **given}
    if "eps" in types and "eps" not in chosen:
        raise ValueError(f"eps: {name} needs the radius of the ball, for example eps=8/255")
    try:
        objective = maker(**chosen)
    except (TypeError, ValueError) as error:
        argument = str(error).partition(":")[0]
        if argument in chosen and argument not in given:
            raise type(error)(f"{error} for {name}" if argument == "norm" else str(error)) from error
        raise type(error)(f"objective: '{spec}': {error}") from error
    steps = "" if given.get("steps") is None else f"-{given['steps']}"
    extras = ",".join(f"{key}={text}" for key, text in options if key != "steps")
    return (f"{name}{steps}:{extras}" if extras else f"{name}{steps}"), objective
