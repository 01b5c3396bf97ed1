"""Configuration of the site: ``make docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate

from lt_jax import __version__

project = "lt_jax"
author = "The lt_jax authors"
copyright = "The lt_jax authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
smartquotes = False  # quotes in comments of config keys are values
html_theme = "furo"
html_title = f"lt_jax {release}"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True


def fill_generated_parts(app, docname, source):
    source[0] = generate.fill(source[0])


def skip_tuple_fields(app, what, name, member, skip, options):
    """Skip the fields of named tuples: they are listed as parameters."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("source-read", fill_generated_parts)
