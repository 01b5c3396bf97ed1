"""Exceptions of the package, and helpers for their messages."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any


class InputError(ValueError):
    """Invalid input, with a message for the user; the command exits with code 2."""


class Interrupted(Exception):
    """A signal stopped the run after it had saved its work."""

    def __init__(self, where: str, by: str):
        super().__init__(where)  # the run and its step
        self.by = by  # name of the signal, such as SIGTERM


class Diverged(Exception):
    """A loss, a parameter or a logit became NaN or infinite."""


def in_range(name: str, value: Any, interval: str, integer: bool = False) -> Any:
    """Return a number as a Python one; raise InputError if it is not in an interval.

    >>> in_range("delta", 0.98, "[0, 1)")
    0.98
    """
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    low, high = map(float, interval[1:-1].split(","))
    if (
        type(plain) not in ((int,) if integer else (int, float))
        or not low <= plain <= high
        or (plain == low and interval[0] == "(")
        or (plain == high and interval[-1] == ")")
    ):
        kind = "an integer in" if integer else "in"
        found = reprlib.repr(value)
        raise InputError(f"{name} must be {kind} {interval}, got {found}")
    return plain


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Put ``where`` before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def suggest(word: Any, choices: Iterable[str]) -> str:
    """Build the end of an error message: the valid choices and the closest ones.

    >>> suggest("lso", ["los", "ce"])
    ": expected one of los, ce; did you mean 'los'?"
    """
    import difflib  # slow to import

    choices = list(choices)
    close = difflib.get_close_matches(str(word)[:100], choices, 3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    # A long list would bury the suggestion.
    valid = f": expected one of {', '.join(choices)}" if len(choices) <= 20 else ""
    return valid + meant


def one_of(what: str, name: str, choices: Iterable[str]) -> str:
    """Return ``name``; raise InputError with suggestions if it is not a choice."""
    choices = list(choices)
    if name not in choices:
        raise InputError(f"unknown {what} {name!r:.100}{suggest(name, choices)}")
    return name


def first_few(names: list[str], limit: int = 5, between: str = ", ") -> str:
    """List the first names, and how many more there are.

    >>> first_few(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return between.join(names[:limit]) + more


def brief(error: BaseException) -> str:
    """Return the message of another library's exception in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
