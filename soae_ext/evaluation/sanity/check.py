"""One line of the sanity section, and how a function becomes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from ..shard import FailedElsewhere
from .context import SanityContext

__all__ = ["Check", "CheckFunction", "Outcome", "Verdict", "check", "failures_first"]

Verdict = Literal["pass", "fail", "not applicable", "not run"]
_ORDER: tuple[Verdict, ...] = ("fail", "pass", "not run", "not applicable")


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: the claim that is checked.
        verdict: `"pass"`, `"fail"`, `"not applicable"` (the claim does not concern this network or evaluation) or
            `"not run"` (it was not asked for, or something is missing: `text` says what).
        value: the number measured, with its unit and how many images it comes from; `"-"` without one.
        limit: what the value is held against.
        text: what it means, and after a failure what to do.
        group: the part of the section that it belongs to.
    """

    name: str
    verdict: Verdict
    value: str
    limit: str
    text: str
    group: str = ""

    def as_json(self) -> dict[str, str]:
        return dict(asdict(self))


class Outcome(NamedTuple):
    """What a check function returns; the fields of the same name of :class:`Check`. `limit` replaces the usual one."""

    verdict: Verdict
    value: str
    text: str
    limit: str | None = None

    @classmethod
    def of(cls, passed: bool, value: str, text: str, remedy: str = "", limit: str | None = None) -> Outcome:
        """Pass or fail; the remedy is added to the text of a failure."""
        return cls("pass" if passed else "fail", value, text if passed or not remedy else f"{text} {remedy}", limit)


CheckFunction = Callable[[SanityContext], Check]


def check(
    group: str, name: str, limit: str
) -> Callable[[Callable[[SanityContext], Outcome]], Callable[[SanityContext], Check]]:
    """Decorator: the function's outcome under this name.

    A check that raises is reported as not run, with the reason, because a diagnosis must not cost the evaluation its
    results. What concerns the run itself goes through: a failure of another process, or of the disk.
    """

    def decorate(function: Callable[[SanityContext], Outcome]) -> Callable[[SanityContext], Check]:
        def run(context: SanityContext) -> Check:
            try:
                outcome = function(context)
            except (FailedElsewhere, OSError):
                raise
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
                outcome = Outcome("not run", "-", f"The check could not be made: {type(error).__name__}: {reason}")
            return Check(name, outcome.verdict, outcome.value, outcome.limit or limit, outcome.text, group)

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        return run

    return decorate


def failures_first(checks: list[Check]) -> list[Check]:
    """Failures, then what passed, then what was not run, then what does not apply; otherwise in the same order."""
    return sorted(checks, key=lambda found: _ORDER.index(found.verdict))
