"""The command `soae`."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from ._names import unknown_name

__all__ = ["COMMANDS", "main"]

_ABOUT = "Second-order adversarial attacks, built on a batched GMRES."

# Name -> what it does. A command is the module `commands/<name>.py`, with "_" between the words of its name. It has the
# dataclass `Options`, whose fields are its options and whose docstring is its help, and `run(options, line)`, which
# gives the exit status; `line` is the command line for the records. A module is imported when its command is run.
COMMANDS = {
    "attack": "Attack a digit classifier and print what is left of its accuracy.",
    "evaluate": "Evaluate a classifier under several attacks, with curves, pictures and sanity checks.",
    "train": "Train a classifier, plainly or against adversarial examples.",
    "reproduce": "Measure the paper's tables: train the rows, attack the columns, say which claims hold.",
    "plot": "Compare training runs: loss and accuracy against epochs and against gradients.",
    "data pack": "Pack images into one small file that loads in a moment.",
    "doctor": "Print what was built, what hardware is seen, and what to do about what is missing.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `soae` with these arguments (`None`: those of the process); the exit status.

    Bad input, also what the argument parser finds, is one line on stderr and status 2; Ctrl-C is status 130.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # torchrun takes options such as --n for its own unless "--" stands before the command, and passes the "--" on.
    words = words[1:] if words[:1] == ["--"] else words
    try:
        return _run(words)
    except KeyboardInterrupt:
        return 130
    finally:
        _disconnect()


def _disconnect() -> None:
    """Leave the processes that work together, if there are any.

    A connection that the interpreter takes down at its own end may abort the process when another one is gone already.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _run(words: list[str]) -> int:
    from .commands.errors import CommandError

    if words[:1] in (["--help"], ["-h"]):
        print(_help())
        return 0
    command = "soae"
    try:
        name = _command(words)
        command = f"soae {name}"
        module = import_module(f".commands.{name.replace(' ', '_')}", __package__)
        options = _parse(module, command, words[len(name.split()) :])
        status: int = module.run(options, shlex.join(["soae", *words]))
        return status
    except CommandError as error:
        _complain(f"{command}: {error}")
        return 2


def _command(words: list[str]) -> str:
    """The command that `words` begin with."""
    from .commands.errors import CommandError

    if not words:
        raise CommandError(f"name a command: {', '.join(COMMANDS)}; see soae --help")
    found = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if found is not None:
        return found
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    raise CommandError(f"did you mean {' or '.join(group)}?" if group else unknown_name(words[0], tuple(COMMANDS)))


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        ["usage: soae COMMAND [OPTIONS]", "", _ABOUT, "", *lines, "", "soae COMMAND --help lists options."]
    )


def _complain(line: str) -> None:
    """Print `line` on stderr, once where several processes run the command."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        print(line, file=sys.stderr)
        return
    from .evaluation.shard import Shard

    shard = Shard.from_environment()
    if shard.leader:
        print(line, file=sys.stderr, flush=True)
    # The first process that ends makes torchrun end the others: none may do so before the line is out.
    shard.gather(None)


def _parse(module: Any, command: str, words: list[str]) -> Any:
    """The options in `words`; exits after printing help."""
    import tyro

    from .commands.errors import CommandError, blaming

    kind = module.Options
    default = {"default": module.defaults(words)} if hasattr(module, "defaults") else {}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), blaming():
            return tyro.cli(kind, prog=command, args=words, **default)
    except SystemExit as error:
        if error.code in (None, 0):
            raise
        names = ["--" + name.replace("_", "-") for name in _option_names(kind)]
        raise CommandError(one_line(complaint.getvalue(), names)) from error


def _option_names(kind: Any) -> Iterator[str]:
    for field in fields(kind):
        if is_dataclass(field.default):
            yield from _option_names(field.default)
        else:
            yield field.name


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
    missing = re.match(r"Missing from .*?: (\S+)", message)
    if missing:
        return f"{missing[1]}: is required; see --help"
    option = re.search(r"--[\w-]*\w", message)
    if option is None:
        unknown = re.match(r"Unrecognized options?: (\S+)", message)
        return f"{unknown[1]}: unknown word; see --help" if unknown else f"{message} See --help"
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
    literal = re.search(r"(literal for int|string to float).*: '(.*)'$", message)
    if literal:
        wanted = "a whole number" if literal[1].endswith("int") else "a number"
        return f"{option[0]}: expected {wanted}, got '{literal[2]}'"
    words = re.search(r"Could not find valid parse for arguments: \[(.*)\]", message)
    return f"{option[0]}: cannot take {words[1]}; see --help" if words else f"{option[0]}: {message}"


def _wanted(message: str) -> str:
    kind = re.search(r"\b(INT|FLOAT)\b", message)
    return {"INT": "a whole number", "FLOAT": "a number"}[kind[1]] if kind else "another value"


if __name__ == "__main__":
    sys.exit(main())
