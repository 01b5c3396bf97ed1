"""The house rules about who may know what, read from the sources with ``ast``."""

from __future__ import annotations

import ast
import fnmatch
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module imports from its own floor or from below, also inside functions. The first
# pattern that fits decides.
FLOORS = {
    "__init__.py": 3,  # hands on the names of library.py, on first use
    # Pure maths, testable at a prompt.
    "types.py": 0,
    "losses.py": 0,
    "heads.py": 0,
    "samplers.py": 0,
    "metrics.py": 0,
    "trees.py": 0,
    "files.py": 0,
    "inits.py": 0,
    "seeds.py": 0,
    "drawing.py": 0,
    "figures.py": 0,
    "page.py": 0,
    # What is composed of it.
    "methods.py": 1,
    "grids.py": 1,
    "optim.py": 1,
    "interop.py": 1,
    "models/*.py": 1,
    "data/feed.py": 2,
    "data/*.py": 1,
    # Devices, disk, time.
    "placing.py": 2,
    "processes.py": 2,
    "steps.py": 2,
    "stepping.py": 2,
    "checkpoint.py": 2,
    "weightfiles.py": 2,
    "log.py": 2,
    "meter.py": 2,
    "profiling.py": 2,
    "stopping.py": 2,
    "schedulers.py": 2,
    "meeting.py": 2,
    "cluster.py": 2,
    # Loops: the only code that knows config and workdir.
    "loop.py": 3,
    "session.py": 3,
    "weights.py": 3,
    "convert.py": 3,
    "exporting.py": 3,
    "checks.py": 3,
    "train.py": 3,
    "features.py": 3,
    "retrain.py": 3,
    "library.py": 3,
    "analysis.py": 3,
    "outcomes.py": 3,
    "cached.py": 3,
    "sweep.py": 3,
    "report.py": 3,
    "results.py": 3,
    "info.py": 3,
    "benchmark.py": 3,
    "predict.py": 3,
    "pictures.py": 3,
    "artefacts.py": 3,
    "workdirs.py": 3,
    "report_tables.py": 3,
    "report_figures.py": 3,
    # Flags.
    "cli.py": 4,
    "commands.py": 4,
    "configuring.py": 4,
    "__main__.py": 4,
}

# Who alone may import what, and everything under it. Both are patterns of paths.
ONLY = {
    "orbax": ["checkpoint.py"],
    "tensorflow_datasets": ["data/*"],
    "tensorflow": ["data/*"],
    "grain": ["data/*"],
    "array_record": ["data/*"],
    "matplotlib": ["drawing.py", "figures.py"],
    "torch": ["weightfiles.py"],
    "safetensors": ["weightfiles.py"],
    "pyarrow": ["data/*"],
    "lt_jax.cli": ["__main__.py"],
    "lt_jax.commands": ["cli.py"],
    "lt_jax.configuring": ["cli.py"],
    "configs": [],
    "flax.training": [],  # deprecated
}


def files(folder: str) -> dict[str, str]:
    """The sources under a folder of the repository, by path relative to it."""
    base = ROOT / folder
    return {
        path.relative_to(base).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(base.rglob("*.py"))
    }


PACKAGE = files("lt_jax")
CONFIGS = files("configs")


def floor(path: str) -> int:
    for pattern, number in FLOORS.items():
        if fnmatch.fnmatch(path, pattern):
            return number
    pytest.fail(f"lt_jax/{path} has no floor: give it one in tests/test_layers.py")


def imports(source: str, path: str) -> set[str]:
    """The dotted names a module of the package imports, anywhere in it.

    ``from a import b`` gives both ``a`` and ``a.b``: whether b is a module is not known
    here.
    """
    names = set()
    package = ["lt_jax", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module.split(".") if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def modules(source: str, path: str) -> set[str]:
    """The files of the package that a module of it imports."""
    found = set()
    for name in imports(source, path):
        inner = name.removeprefix("lt_jax").strip(".").replace(".", "/")
        if name.split(".")[0] == "lt_jax":
            found |= {f"{inner}.py", f"{inner}/__init__.py".strip("/")} & {*PACKAGE}
    # Everybody may ask for the version, and a package for what is beside it.
    return found - {path, "__init__.py"}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def forbidden_calls(source: str) -> list[str]:
    """Where a config gets a default, or an import hides in a string."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if re.search(r"\b(config|cfg)\b.*\.(get|setdefault)$", called) or (
            called == "getattr"
            and len(node.args) == 3
            and re.search(r"\b(config|cfg)\b", ast.unparse(node.args[0]))
        ):
            found.append(
                f"line {node.lineno}: {ast.unparse(node)}: configs are complete"
            )
        elif re.search(r"(^|\.)(import_module|__import__)$", called):
            found.append(f"line {node.lineno}: {ast.unparse(node)}: write an import")
    return found


def config_names(source: str) -> list[str]:
    """Where something is called ``config``, as an argument or a variable."""
    return [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.arg) and node.arg == "config")
        or (isinstance(node, ast.Name) and node.id == "config")
    ]


def pmaps(source: str) -> list[str]:
    """Where the code says pmap; prose may."""
    return [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr == "pmap")
        or (isinstance(node, ast.Name) and node.id == "pmap")
        or (
            isinstance(node, ast.ImportFrom)
            and any(alias.name == "pmap" for alias in node.names)
        )
    ]


each_module = pytest.mark.parametrize("path", PACKAGE)
each_config = pytest.mark.parametrize("path", CONFIGS)


@each_module
def test_has_a_floor(path: str):
    floor(path)


@each_module
def test_imports_downwards_only(path: str):
    for other in modules(PACKAGE[path], path):
        assert floor(other) <= floor(path), (
            f"lt_jax/{path} (floor {floor(path)}) imports lt_jax/{other} "
            f"(floor {floor(other)})"
        )


def test_no_import_cycle():
    graph = {path: modules(source, path) for path, source in PACKAGE.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises and names the cycle


def test_the_package_itself_imports_nothing_but_its_library_and_that_late():
    """So that `lt-jax --help` answers at once."""
    assert modules(PACKAGE["__init__.py"], "__init__.py") == {"library.py"}
    program = (
        "import sys, lt_jax; lt_jax.__version__;"
        "print(*sorted({'jax', 'numpy', 'lt_jax.library'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.split() == []


@each_module
def test_one_fact_one_place(path: str):
    for name in imports(PACKAGE[path], path):
        for package, owners in ONLY.items():
            if within(name, package):
                assert any(fnmatch.fnmatch(path, owner) for owner in owners), (
                    f"lt_jax/{path} imports {name}: only {owners or 'nobody'} may"
                )


@each_module
def test_only_steps_knows_pmap(path: str):
    assert path == "steps.py" or pmaps(PACKAGE[path]) == []


@each_module
def test_config_is_known_to_the_loops_only(path: str):
    assert floor(path) >= 3 or config_names(PACKAGE[path]) == []


@each_module
def test_no_default_for_a_config_key_and_no_hidden_import(path: str):
    assert forbidden_calls(PACKAGE[path]) == []


@each_config
def test_configs_are_free_of_the_library(path: str):
    for name in imports(CONFIGS[path], path):
        assert not within(name, "lt_jax"), f"configs/{path} imports {name}"


# What the rules see: without these, a hole in the reading would pass as obedience.


def test_imports_are_seen_wherever_and_however_they_are_written():
    source = (
        "import lt_jax.train as t\n"
        "from lt_jax import steps\n"
        "from . import norm\n"
        "from ..data.feed import batches\n"
        "def lazy():\n"
        "    import orbax.checkpoint as ocp\n"
        "    from grain.python import DataLoader\n"
    )
    assert imports(source, "models/resnet.py") >= {
        "lt_jax.train",
        "lt_jax.steps",
        "lt_jax.models.norm",
        "lt_jax.data.feed",
        "orbax.checkpoint",
        "grain.python",
    }


def test_an_import_leads_to_the_file_it_names():
    source = "from lt_jax.types import Batch\nimport lt_jax.data\n"
    assert modules(source, "train.py") == {"types.py", "data/__init__.py"}


@pytest.mark.parametrize(
    "line",
    [
        "config.get('seed', 0)",
        "self.config.optim.get('lr')",
        "config['optim'].get('lr', 1)",
        "getattr(config.data, 'name', None)",
        "importlib.import_module(config.model)",
    ],
)
def test_a_default_or_hidden_import_is_seen(line: str):
    assert len(forbidden_calls(line)) == 1


@pytest.mark.parametrize(
    "line", ["counts.get(3, 0)", "getattr(config, name)", "os.environ.get('HOME')"]
)
def test_an_ordinary_get_is_allowed(line: str):
    assert forbidden_calls(line) == []


@pytest.mark.parametrize(
    "line", ["jax.pmap(f)", "from jax import pmap", "import jax as j; g = j.pmap"]
)
def test_pmap_is_seen(line: str):
    assert len(pmaps(line)) == 1


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/feed.py", 2),
        ("data/cifar.py", 1),
        ("models/norm.py", 1),
    ],
)
def test_the_first_pattern_decides(path: str, expected: int):
    assert floor(path) == expected
