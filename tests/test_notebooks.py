"""Notebooks: commands parse, outputs are text, and they run in Jupyter's kernel."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from test_prose import mannered
from test_readme import lt_jax_arguments

from lt_jax.cli import config_flags, main

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_all_are_found():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"compare_methods", "features", "photographs"}


@each_notebook
def test_outputs_are_text_of_one_complete_run(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    for output in (output for cell in code for output in cell["outputs"]):
        assert output["output_type"] in ("stream", "execute_result")
        assert output.get("name") != "stderr"
        assert set(output.get("data", {})) <= {"text/plain"}
        assert "/home/" not in json.dumps(output)
    assert path.stat().st_size < 30_000


@each_notebook
def test_prose_and_links(path):
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert not mannered(path.name, text)
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert links
    for link in links:
        assert (path.parent / link).exists(), link


@each_notebook
def test_commands_parse(path):
    """Variables of a notebook hold flags of the config, which the slow test reads."""
    source = "\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    for line in source.splitlines():
        if line.startswith("!lt-jax"):
            arguments = lt_jax_arguments(line.removeprefix("!").split(">")[0])
            assert arguments
            plain = [word for word in arguments if "{" not in word]
            plain += ["--workdir=x"] if plain[0] in ("run", "sweep") else []
            config, rest = config_flags.split(plain)
            assert main.make_parser().parse_args(rest).command
            assert not config


@pytest.mark.slow
@each_notebook
def test_runs(path, tmp_path, monkeypatch):
    """The kernel has an event loop of its own, next to that of Orbax."""
    import nbformat
    from nbclient import NotebookClient

    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # compiled programs
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # IPython ignores the exit code of a shell command
        lines = cell.source.splitlines()
        checks = ["\nassert _exit_code == 0" * line.startswith("!") for line in lines]
        cell.source = "\n".join(map("".join, zip(lines, checks, strict=True)))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=where).execute()
