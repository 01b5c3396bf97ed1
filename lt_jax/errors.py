"""Errors with a message for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: says what was expected, what was found and what to do.

    The command line prints its message alone and exits with 2; any other exception
    is a defect and keeps its traceback.
    """


def near(word: str, known: Iterable[str]) -> str:
    """The end of an error message: what is known, and what may have been meant."""
    known = list(known)
    close = difflib.get_close_matches(word, known, 3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    # A long list would bury the answer in it.
    there = f": expected one of {', '.join(known)}" if len(known) <= 20 else ""
    return there + meant


def known(what: str, name: str, names: Iterable[str]) -> str:
    """``name`` if it is one of ``names``.

    Raises:
      InputError: it is not; tells the near ones.
    """
    names = list(names)
    if name not in names:
        raise InputError(f"unknown {what} {name!r}{near(name, names)}")
    return name
