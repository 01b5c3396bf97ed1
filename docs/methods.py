"""Writes docs/methods.md from the docstrings of lt_jax/methods.py.

    python docs/methods.py

A test holds the file to what this makes.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from lt_jax.methods import METHODS

FILE = Path(__file__).with_suffix(".md")
HEAD = """\
# Methods

Made by `python docs/methods.py` from the docstrings of `lt_jax/methods.py`: change them
there.

A method is a function of the class counts and of its own numbers, which stand in its
entry of a config beside `lr`, `epochs`, `decay` and `grid`. Notation: logits
z = W f + b of features f, label y, K classes, n the class counts, prior = n / sum n, p
the softmax of z, delta the smoothed mass.

Most losses are five vectors of length K (`lt_jax/losses.py`), with e the one-hot label:

    z'   = scale * (z - margin[y] * e) + offset
    t    = (1 - smooth[y]) * e + smooth[y] / K
    loss = -weight[y] * sum_k t_k log softmax(z')_k

| vectors | what they are, where not 1 for scale and weight and 0 for the others |
| --- | --- |
| label smoothing, LOS | smooth = delta |
| re-weighting | weight in proportion to n ** -power, mean 1 |
| class-balanced | weight in proportion to (1 - beta) / (1 - beta ** n), mean 1 |
| logit adjustment | offset = tau log prior; balanced softmax: tau 1 |
| vector scaling | scale = (n / max n) ** gamma, offset = tau log prior |
| LDAM | margin in proportion to n ** -1/4, on the cosine head |
| label-aware smoothing | smooth = tail + (head - tail) sin(pi/2 s), s from 0 to 1 |

A loss is averaged over a batch by its weights: sum of losses / sum of weight[y]. With
delta, tau, power or gamma 0 these are plain cross-entropy (tests hold that).

"""


def page() -> str:
    """The whole file: a table of all methods, and what each docstring says."""
    rows, texts, told = [], [], {}
    for name, make in METHODS.items():
        first, _, rest = inspect.getdoc(make).partition("\n\n")
        numbers = [
            parameter.name
            for parameter in inspect.signature(make).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        # A bar would end the cell.
        cell = " ".join(first.split()).replace("|", "\\|")
        listed = ", ".join(f"`{number}`" for number in numbers) or "none"
        rows.append(f"| `{name}` | {cell} | {listed} |")
        if make in told:
            texts.append(f"**`{name}`**: `{told[make]}` with an entry of its own.")
        elif rest:
            texts.append(f"**`{name}`**: {rest.strip()}")
        told.setdefault(make, name)
    table = ["| method | what it is | its numbers |", "| --- | --- | --- |", *rows]
    return HEAD + "\n".join(table) + "\n\n## In detail\n\n" + "\n\n".join(texts) + "\n"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
    print(FILE)
