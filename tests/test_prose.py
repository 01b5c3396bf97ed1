"""Plain English: words and phrases that must not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Pattern -> plain alternative. A space matches a line break and the ``#`` of a comment.
BANNED = {
    r"tells?|telling|told": "print, log, report, state",
    r"hears?|heard": "receive, call",
    r"says?|said": "print, specify, state",
    r"anew": "again, from scratch",
    r"nowhere": "not ... anywhere, never",
    r"heed(?:s|ed|ing)?": "check, respect",
    r"unasked": "by default",
    r"beside": "next to, besides, in addition to",
    r"so many": "the number, that many",
    r"asked for": "requested",
    r"(?:stands?|stood|lies|lay) (?:in|at|on|there|beside|under|above|below)": "is in",
    r"waits? for no": "does not wait for",
    r"(?:is|are) no (?:regular|whole|longer one)": "is not a",
    r"(?:goes|went) on": "continues, resumes",
    r"everybody|anybody|somebody": "every process, any process, you",
}
GAP = r"[\s#]+"
PATTERN = re.compile(
    "|".join(rf"(\b(?:{words.replace(' ', GAP)})\b)" for words in BANNED), re.IGNORECASE
)
# (path, the line's stripped text): a title or a fact that needs the word.
ALLOWED: set[tuple[str, str]] = {
    ("lt_jax/data/arrays.py", "count, left = math.prod(shape), size - stream.tell()"),
}
CHECKED = (
    "lt_jax/**/*.py",
    "lt_jax/report/*.j2",
    "lt_jax/report/*.css",
    "lt_jax/report/*.js",
    "lt_jax/report/*.toml",
    "lt_jax/cli/*.toml",
    "configs/*.py",
    "launch/*",
    "benchmarks/*.py",
    "tests/**/*.py",
    "docs/**/*.md",
    "docs/*.py",
    "*.md",
)
FILES = sorted(
    file.relative_to(ROOT).as_posix()
    for pattern in CHECKED
    for file in ROOT.glob(pattern)
    if file != Path(__file__).resolve()
)


def mannered(path: str, text: str) -> list[str]:
    """Return one message per banned phrase, with the line and an alternative."""
    found = []
    lines = text.splitlines()
    for match in PATTERN.finditer(text):
        number = text.count("\n", 0, match.start())
        if (path, lines[number].strip()) in ALLOWED:
            continue
        plain = [*BANNED.values()][(match.lastindex or 1) - 1]
        phrase = " ".join(match[0].split())
        found.append(f"{path}:{number + 1}: {phrase!r}; write: {plain}")
    return found


def test_plain_english():
    texts = ((path, (ROOT / path).read_text(encoding="utf-8")) for path in FILES)
    found = [line for path, text in texts for line in mannered(path, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "A compilation that took less is nothing to tell of.",
        "# the file stands\n    # in the folder",
        "told = capsys.readouterr()",
        "They are no\nwhole numbers.",
    ],
)
def test_banned_phrases_are_found(text: str):
    assert len(mannered("x.py", text)) == 1


def test_ordinary_words_are_allowed():
    assert mannered("x.py", "besides, the hearing aid was foretold") == []
