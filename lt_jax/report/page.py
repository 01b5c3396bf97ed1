"""One self-contained HTML page of figures and tables; it is well-formed XML too.

Nothing in it points anywhere: pictures and tables of numbers are data URIs, there is no
script, and whatever is text is escaped.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

LARGEST = 2_000_000  # bytes of numbers that the page still carries

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #5f5f5f; --line: #d9d9d9;
  --paper: #ffffff; --tint: #f5f5f3; --link: #00568a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a3a3a3;
  --line: #3d3d3d; --paper: #161616; --tint: #202020; --link: #7cc0ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 5rem; max-width: 84rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3.5rem 0 .75rem; padding-top: .6rem;
  border-top: 2px solid var(--ink); overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 2.5rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 44rem; }
a { color: var(--link); }
nav > p { font-weight: 600; margin: 1.2rem 0 .2rem; overflow-wrap: anywhere; }
nav ol { columns: 17rem; column-gap: 2rem; margin: .2rem 0; padding-left: 1.6rem; }
nav li { break-inside: avoid; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem;
  margin: 1rem 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: .8rem 0 0; }
.box { overflow-x: auto; }
.picture { background: #fff; border: 1px solid var(--line); border-radius: 4px;
  padding: .5rem; }
img { display: block; margin: 0 auto; height: auto; max-width: none; }
table { border-collapse: separate; border-spacing: 0; font-size: .82rem;
  line-height: 1.4; font-variant-numeric: tabular-nums;
  border: solid; border-width: 1.5px 0; margin: .8rem 0 .4rem; }
th, td { padding: .22rem .5rem; text-align: right; white-space: nowrap;
  vertical-align: top; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
thead th { border-bottom: 1px solid; font-weight: 600; }
th.text, td.text { text-align: left; }
td.long { white-space: normal; min-width: 28rem; text-align: left; }
tbody tr.rule td { border-top: 1px solid var(--line); }
.files, footer { color: var(--soft); font-size: .85rem; }
.missing { color: var(--soft); font-style: italic; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; }
  dt { margin-top: .4rem; } }
@media print { :root { --paper: #fff; --ink: #000; } h3 { break-after: avoid; }
  figure { break-inside: avoid; } }
"""


class Table(NamedTuple):
    """Numbers with a header; None and nan are empty in a file."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def csv(self) -> str:
        """As a file; enough digits that nothing is lost by the eye."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows([_plain(cell) for cell in row] for row in self.rows)
        return file.getvalue()


class Part(NamedTuple):
    """A figure or a table with its words, or the sentence that stands in its place."""

    name: str  # of its files, and of its place in the page
    title: str
    read: str  # how to read it
    missing: str = ""  # said in its place
    picture: Mapping[str, bytes] = {}  # files by kind, "svg" and "png"
    alt: str = ""
    table: Table | None = None  # to be seen; a first column that repeats is left empty
    text: Sequence[int] = (0,)  # its columns that are words
    numbers: Table | None = None  # for the file


class Chapter(NamedTuple):
    """The parts about one thing."""

    title: str
    facts: Sequence[tuple[str, str]]
    parts: Sequence[Part]


def html(title: str, intro: str, chapters: Sequence[Chapter]) -> str:
    """The page."""
    contents, body = [], []
    for chapter in chapters:
        items = "".join(
            f'<li><a href="#{escape(part.name)}">{escape(part.title)}</a></li>'
            for part in chapter.parts
        )
        contents.append(f"<p>{escape(chapter.title)}</p>\n<ol>{items}</ol>")
        facts = "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>\n"
            for key, value in chapter.facts
        )
        body.append(
            f"<section>\n<h2>{escape(chapter.title)}</h2>\n"
            + (f"<dl>\n{facts}</dl>\n" if facts else "")
            + "\n".join(map(_part, chapter.parts))
            + "\n</section>"
        )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(intro)}</p>\n</header>\n"
        '<nav aria-label="Contents">\n'
        + "\n".join(contents)
        + "\n</nav>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _part(part: Part) -> str:
    lines = [f'<section id="{escape(part.name)}">', f"<h3>{escape(part.title)}</h3>"]
    if part.missing:
        return "\n".join(
            [*lines, f'<p class="missing">{escape(part.missing)}</p>', "</section>"]
        )
    lines.append(f"<p>{escape(part.read)}</p>")
    if part.picture:
        # Wide as drawn in print at 9.5 points; narrower screens scroll inside the box.
        svg = part.picture["svg"]
        size = re.search(rb'width="([\d.]+)pt"', svg)
        width = round(float(size[1]) * 1.62) if size else 700
        lines.append(
            '<figure class="box picture" tabindex="0"><img '
            f'style="width: min({width}px, max(100%, {round(0.75 * width)}px))" '
            f'alt="{escape(part.alt)}" src="{_uri("image/svg+xml", svg)}"/>'
            "</figure>"
        )
    if part.table is not None:
        lines.append(_table(part.table, set(part.text)))
    if part.numbers is not None:
        lines.append(_files(part))
    return "\n".join([*lines, "</section>"])


def _files(part: Part) -> str:
    assert part.numbers is not None
    content, file = part.numbers.csv().encode(), f"{part.name}.csv"
    also = f", figures/{part.name}.svg and .png" if part.picture else ""
    link = f"figures/{escape(file)}"
    if len(content) <= LARGEST:
        uri = _uri("text/csv;charset=utf-8", content)
        link += f' (<a download="{escape(file)}" href="{uri}">download</a>)'
    return f'<p class="files">Numbers: {link}{escape(also)}</p>'


def _table(table: Table, text: set[int]) -> str:
    def row(tag: str, cells: Sequence[str], rule: bool = False) -> str:
        inner = []
        for i, cell in enumerate(cells):
            kind = "long" if len(cell) > 80 and tag == "td" else "text"
            mark = f' class="{kind}"' if i in text else ""
            inner.append(f"<{tag}{mark}>{escape(cell)}</{tag}>")
        start = '<tr class="rule">' if rule else "<tr>"
        return f"{start}{''.join(inner)}</tr>"

    lines, before = [], None
    for cells in table.rows:
        first, *rest = map(str, cells)
        lines.append(
            row("td", ["" if first == before else first, *rest], first != before)
        )
        before = first
    return (
        '<div class="box" tabindex="0">\n<table>\n<thead>'
        + row("th", table.header)
        + "</thead>\n<tbody>\n"
        + "\n".join(lines)
        + "\n</tbody>\n</table>\n</div>"
    )


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _plain(cell: Any) -> Any:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return f"{cell:.8g}" if isinstance(cell, float) else cell
