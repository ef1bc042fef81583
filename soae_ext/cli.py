"""The command `soae`."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ._names import unknown_name

if TYPE_CHECKING:
    from .commands.attack import AttackOptions

__all__ = ["main"]

_ABOUT = "Second-order adversarial attacks, built on a batched GMRES."


@dataclass(frozen=True)
class DoctorOptions:
    """Print what was built, what hardware is seen, and what to do about each thing that is missing."""

    output: Path | None = None
    """Write the findings here, as JSON."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `soae` with these arguments (`None`: those of the process); the exit status.

    Bad input, also what the argument parser finds, is one line on stderr and status 2; Ctrl-C is status 130.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except KeyboardInterrupt:
        return 130


def _run(words: list[str]) -> int:
    from .commands.errors import CommandError

    command = f"soae {words[0]}" if words and words[0] in ("attack", "doctor") else "soae"
    try:
        options = _parse(words)
        if isinstance(options, DoctorOptions):
            from .doctor import main as doctor

            return doctor(options.output)
        from .commands.attack import run

        return run(options)
    except CommandError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2


def _parse(words: list[str]) -> AttackOptions | DoctorOptions:
    """The options of the subcommand that `words` name; exits after printing help."""
    import tyro

    from .commands.attack import AttackOptions
    from .commands.errors import CommandError

    commands: Any = (
        Annotated[AttackOptions, tyro.conf.subcommand("attack")]
        | Annotated[DoctorOptions, tyro.conf.subcommand("doctor")]
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: AttackOptions | DoctorOptions = tyro.cli(commands, prog="soae", description=_ABOUT, args=words)
            return parsed
    except SystemExit as error:
        if error.code in (None, 0):
            raise
        chosen = AttackOptions if words[:1] == ["attack"] else DoctorOptions
        names = ["--" + field.name.replace("_", "-") for field in fields(chosen)]
        raise CommandError(one_line(complaint.getvalue(), names)) from error


def one_line(box: str, options: Sequence[str] = ()) -> str:
    """What the argument parser says in a box of several lines, as one line that starts with the option to blame.

    Args:
        box: as printed.
        options: the options that the subcommand has, to suggest the nearest for an unknown one.
    """
    lines = [line.strip(" │╭╮╰╯") for line in box.splitlines()]
    text = [line for line in lines[1:] if line]
    rule = next((number for number, line in enumerate(text) if set(line) <= {"─"}), len(text))
    message = " ".join(text[:rule]).partition(" Got errors:")[0]
    option = re.search(r"--[\w-]*\w", message)
    if option is None:
        unknown = re.match(r"Unrecognized options?: (\S+)", message)
        return f"{unknown_name(unknown[1], ('attack', 'doctor'))}" if unknown else f"{message} See soae --help"
    if message.startswith("Unrecognized"):
        nearest = difflib.get_close_matches(option[0], options, n=1)
        return f"{option[0]}: unknown option; " + (f"did you mean {nearest[0]}?" if nearest else "see --help")
    choice = re.search(r"invalid choice '(.*?)' .* Expected one of \((.*)\)", message)
    if choice:
        known = re.findall("'(.*?)'", choice[2])
        return f"{option[0]}: {unknown_name(choice[1], known)}"
    value = re.search(r"could be instantiated from \['?(.*?)'?\]", message)
    if value:
        return f"{option[0]}: expected {_wanted(message)}, got '{value[1]}'"
    return f"{option[0]}: {message}"


def _wanted(message: str) -> str:
    kind = re.search(r"\b(INT|FLOAT)\b", message)
    return {"INT": "a whole number", "FLOAT": "a number"}[kind[1]] if kind else "another value"


if __name__ == "__main__":
    sys.exit(main())
