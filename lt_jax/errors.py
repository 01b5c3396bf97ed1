"""Exceptions of the package, and the text of messages on a terminal.

An ESC in a name from data could change a terminal's title or hide a line.
"""

from __future__ import annotations

import contextlib
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Control characters but tab and newline, marks that change the direction of text, and
# bytes of a file name that are not UTF-8.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


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
    word = str(word)[:100]
    close = difflib.get_close_matches(word, choices, 3, cutoff=0.5)
    close = close or [choice for choice in choices if word and word in choice][:3]
    meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    # A long list would bury the suggestion.
    valid = f": expected one of {', '.join(choices)}" if len(choices) <= 20 else ""
    return valid + meant


def near_name(path: Any) -> str:
    """Build the end of a message about a missing file: a similar name next to it."""
    import difflib

    folder, name = os.path.split(str(path).rstrip("/"))
    try:
        names = [] if os.path.exists(path) else os.listdir(folder or ".")
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(name[:100], names, 1)
    return f"; did you mean {os.path.join(folder, close[0])!r}?" if close else ""


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


def printable(text: str) -> str:
    r"""Escape what is not text.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str, limit: int = 3000) -> str:
    r"""Join the lines of a message; cut out the middle of a very long one.

    >>> one_line("two keys differ:\n  a\n  b\nUse another.")
    'two keys differ: a; b; Use another.'
    """
    text = re.sub(
        r"([:;,.])?\s*\n\s*", lambda found: f"{found[1] or ';'} ", text.strip()
    )
    cut = limit // 2
    return text if len(text) <= limit else f"{text[:cut]} ... {text[-cut:]}"


class Stream:
    """A stream of ``printable`` text, in which a progress bar returns the carriage.

    What the stream's encoding lacks is escaped too. ``escape=str`` escapes only that.
    """

    def __init__(self, stream: Any, escape: Callable[[str], str] = printable):
        self.stream, self._escape = stream, escape

    def write(self, text: str) -> int:
        text = "\r".join(map(self._escape, text.split("\r")))
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return self.stream.write(
            text.encode(encoding, "backslashreplace").decode(encoding)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def terminal(stream: Any) -> Any:
    """Return rich's console on a stream, or None if it is not a terminal.

    The text that is printed on it must be ``printable``.
    """
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console

    plain: Any = {"markup": False, "highlight": False, "emoji": False}
    # rich's own codes must pass.
    file: Any = Stream(getattr(stream, "stream", stream), str)
    console: Any = Console(file=file, **plain)
    # A job that is killed could not show the cursor again.
    console.show_cursor = lambda show=True: True
    return console


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Write ``printable`` text to stdout and stderr."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:  # a closed descriptor gives None
        sys.stdout, sys.stderr = (Stream(each or null) for each in before)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
