"""Names from data and files, on terminals and in spreadsheets.

An ESC in the name of a class could change a terminal's title or hide a line. A name
that begins with ``=`` would be a formula in a spreadsheet.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Control characters but tab and newline, marks that change the direction of text, and
# bytes of a file name that are not UTF-8.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

# How a formula begins in a spreadsheet, unless it is a number.
FORMULA = re.compile(r"(?![+-]?[\d.]+(e[+-]?\d+)?$)[=+\-@\t\r]")


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

    What the stream's encoding lacks is escaped too.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        text = "\r".join(map(printable, text.split("\r")))
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(
            text.encode(encoding, "backslashreplace").decode(encoding)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    r"""Format rows as CSV; text that could be a formula gets an apostrophe before it.

    >>> csv_text([["=1+1", "-a", "-1.5"]])
    "'=1+1,'-a,-1.5\n"
    """
    import csv
    import io

    def cell(value: Any) -> Any:
        formula = isinstance(value, str) and FORMULA.match(value)
        return f"'{value}" if formula else value

    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(map(cell, row) for row in rows)
    return file.getvalue()
