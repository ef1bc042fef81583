"""Bad input on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["CommandError", "blaming", "reason"]


class CommandError(Exception):
    """Input that a command cannot work with; the message is one line that starts with the option to blame."""


def reason(error: BaseException) -> str:
    """What an error says, in one line; of one that the system reports, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


@contextmanager
def blaming(option: str | None = None) -> Iterator[None]:
    """Turn bad-input errors into `CommandError`.

    Args:
        option: the option to blame. `None`: the message starts with an argument ("eps: ..."); the option has its name.
    """
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        text = reason(error)
        if option is None:
            name, _, rest = text.partition(": ")
            option, text = "--" + name.replace("_", "-"), rest
        raise CommandError(f"{option}: {text}") from error
