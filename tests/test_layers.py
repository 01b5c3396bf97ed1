"""The house rules about who may know what, read from the sources with ``ast``."""

from __future__ import annotations

import ast
import fnmatch
import graphlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# One rule per folder: what a file in it may import from the package, besides files of
# its own folder. "top" is the vocabulary at the top level, without api.py.
MAY_IMPORT: dict[str, set[str]] = {
    "top": set(),
    "distributed": {"top"},
    "models": {"top"},
    "pretrained": {"top", "distributed", "models"},
    "data": {"top", "distributed"},
    "training": {"top", "distributed", "models", "data"},
    "retraining": {"top", "distributed", "models", "data", "training"},
}
MAY_IMPORT["api"] = MAY_IMPORT["retraining"] | {"retraining"}
MAY_IMPORT["experiment"] = MAY_IMPORT["api"] | {"pretrained"}
MAY_IMPORT["report"] = MAY_IMPORT["experiment"] | {"experiment"}
MAY_IMPORT["export"] = MAY_IMPORT["experiment"] | {"experiment"}
MAY_IMPORT["cli"] = MAY_IMPORT["export"] | {"report", "export"}
# Files of the top level that use folders: the library interface and the command.
ROOM_OF = {
    "__init__.py": "api",
    "api.py": "api",
    "sklearn.py": "api",
    "choice.py": "api",
    "__main__.py": "cli",
}

# Who alone may import what, and everything under it. Both are patterns of paths.
CONFIG_DICT = ["experiment/config.py", "experiment/defaults.py", "cli/config_flags.py"]
ONLY = {
    "orbax": ["training/checkpoint.py"],
    "tensorflow_datasets": ["data/*"],
    "tensorflow": ["data/*"],
    "grain": ["data/*"],
    "array_record": ["data/*"],
    "matplotlib": ["report/*"],
    "torch": ["pretrained/weight_files.py", "pretrained/torch_backbones.py"],
    "timm": ["pretrained/torch_backbones.py"],
    "open_clip": ["pretrained/torch_backbones.py"],
    "huggingface_hub": ["pretrained/hub.py"],
    "safetensors": ["pretrained/weight_files.py"],
    "pyarrow": ["data/*"],
    "tensorboardX": ["training/sinks.py"],
    "wandb": ["training/sinks.py"],
    "mlflow": ["training/sinks.py"],
    "absl": [],
    "ml_collections": CONFIG_DICT,
    "argparse": ["cli/*", "pretrained/weight_files.py"],
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


def room(path: str) -> str:
    """The key of MAY_IMPORT that a file belongs to."""
    folder, _, rest = path.partition("/")
    found = folder if rest else ROOM_OF.get(path, "top")
    if found not in MAY_IMPORT:
        pytest.fail(f"lt_jax/{found}/ has no rule: add one to MAY_IMPORT")
    return found


def upward(path: str, source: str) -> list[str]:
    """The imports of a file that its folder's rule does not allow."""
    allowed = MAY_IMPORT[room(path)] | {room(path)}
    return sorted(m for m in modules(source, path) if room(m) not in allowed)


def private_imports(path: str, source: str) -> list[str]:
    """Names with a leading underscore that are imported from another folder."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "lt_jax"
        ):
            inner = (node.module or "").removeprefix("lt_jax").strip(".")
            same = inner.partition(".")[0] == path.partition("/")[0]
            names = [a.name for a in node.names if a.name.startswith("_")]
            names = [n for n in names if not n.startswith("__")]
            found += [] if same else [f"{node.module}.{name}" for name in names]
    return found


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
    # Every file may import the version, and a package its own modules.
    return found - {path, "__init__.py"}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports_of_others(path: str, source: str) -> list[str]:
    """The modules that only other files may import."""
    return [
        name
        for name in sorted(imports(source, path))
        for package, owners in ONLY.items()
        if within(name, package)
        and not any(fnmatch.fnmatch(path, owner) for owner in owners)
    ]


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


def config_dict_uses(source: str) -> list[str]:
    """Where a config is used as a ConfigDict: by subscript, or as a mapping."""
    group = (
        r"(session\.|self\.)?config(\.(data|model|init|method|optim|eval|save|log))?"
    )
    mapping = ("items", "keys", "values", "to_dict", "lock", "unlocked")
    found = []
    for node in ast.walk(ast.parse(source)):
        config = None
        if isinstance(node, ast.Subscript):
            config = node.value
        elif isinstance(node, ast.Attribute) and node.attr in mapping:
            config = node.value
        named = isinstance(node, ast.Name) and node.id == "ConfigDict"
        if named or (config and re.fullmatch(group, ast.unparse(config))):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def pmaps(source: str) -> list[str]:
    """Lines of code that mention pmap; prose may."""
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


def oversized(source: str) -> list[str]:
    """Functions over 80 lines, and calls with more than six positional arguments.

    A call with constants only is a list of values and may be longer.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > 80:
                found.append(f"line {node.lineno}: {node.name} has {lines} lines")
        elif isinstance(node, ast.Call) and len(node.args) > 6:
            if not all(isinstance(argument, ast.Constant) for argument in node.args):
                found.append(f"line {node.lineno}: {len(node.args)} arguments")
    return found


def offences(
    rule: Callable[[str, str], list[str]], allowed: Sequence[str] = ()
) -> dict[str, list[str]]:
    """What a rule finds in the files of the package, but those that are allowed to."""
    found = {path: rule(path, source) for path, source in PACKAGE.items()}
    return {
        path: texts for path, texts in found.items() if texts and path not in allowed
    }


def test_a_folder_imports_downwards_only():
    assert offences(upward) == {}


def test_no_private_name_of_another_folder():
    assert offences(private_imports) == {}


def test_no_import_cycle():
    graph = {path: modules(source, path) for path, source in PACKAGE.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises and names the cycle


def imported_by(statement: str, names: set[str]) -> list[str]:
    """Which of these modules a fresh interpreter has after a statement."""
    program = f"import sys; {statement}; print(*sorted({names} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return done.stdout.split()


def test_the_package_itself_imports_nothing_but_its_library_and_that_late():
    """So that `lt-jax --help` answers at once."""
    assert modules(PACKAGE["__init__.py"], "__init__.py") == {"api.py", "_version.py"}
    heavy = {"jax", "numpy", "lt_jax.api"}
    assert imported_by("import lt_jax; lt_jax.__version__", heavy) == []


def test_fit_heads_imports_no_image_decoder_and_no_checkpoints():
    heavy = {"cv2", "PIL", "simplejpeg", "orbax", "tensorflow_datasets", "pyarrow"}
    assert imported_by("from lt_jax import fit_heads", heavy) == []
    # The check itself works.
    assert "PIL" in imported_by("import lt_jax.data.images.decode", heavy)


def test_one_fact_one_place():
    assert offences(imports_of_others) == {}


def test_only_steps_knows_pmap():
    assert offences(lambda _, source: pmaps(source), ["training/steps.py"]) == {}


def test_config_is_known_to_the_loops_only():
    rooms = ("experiment", "report", "export", "cli")
    knows = [path for path in PACKAGE if room(path) in rooms]
    assert offences(lambda _, source: config_names(source), knows) == {}


def test_no_default_for_a_config_key_and_no_hidden_import():
    assert offences(lambda _, source: forbidden_calls(source)) == {}


def test_only_the_door_knows_a_config_dict():
    assert offences(lambda _, source: config_dict_uses(source), CONFIG_DICT) == {}


@pytest.mark.parametrize(
    "line",
    [
        "config['seed']",
        "session.config.method['los']",
        "config.method.items()",
        "ConfigDict()",
        "config.to_dict()",
    ],
)
def test_a_config_dict_is_seen(line: str):
    assert len(config_dict_uses(line)) == 1


@pytest.mark.parametrize("line", ["config.method.entries['los']", "rows[config.seed]"])
def test_a_resolved_config_is_allowed(line: str):
    assert config_dict_uses(line) == []


def test_functions_and_calls_are_short():
    assert offences(lambda _, source: oversized(source)) == {}


@pytest.mark.parametrize("path", CONFIGS)
def test_configs_import_the_defaults_and_the_recipes_only(path: str):
    allowed = ("lt_jax.experiment.defaults", "lt_jax.recipes", "ml_collections")
    for node in ast.walk(ast.parse(CONFIGS[path])):
        names = [a.name for a in getattr(node, "names", []) if hasattr(a, "name")]
        if isinstance(node, ast.ImportFrom) and node.module == "lt_jax":
            names = [f"lt_jax.{name}" for name in names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        elif not isinstance(node, ast.Import):
            continue
        assert set(names) <= set(allowed), f"configs/{path} imports {names}"


# What the rules see: without these, a hole in the reading would pass as obedience.


def test_imports_are_seen_wherever_and_however_they_are_written():
    source = (
        "import lt_jax.experiment.stages as t\n"
        "from lt_jax.training import steps\n"
        "from . import norm\n"
        "from ..data.loader import batches\n"
        "def lazy():\n"
        "    import orbax.checkpoint as ocp\n"
        "    from grain.python import DataLoader\n"
    )
    assert imports(source, "models/resnet.py") >= {
        "lt_jax.experiment.stages",
        "lt_jax.training.steps",
        "lt_jax.models.norm",
        "lt_jax.data.loader",
        "orbax.checkpoint",
        "grain.python",
    }


def test_an_import_leads_to_the_file_it_names():
    source = "from lt_jax.types import Batch\nimport lt_jax.data\n"
    assert modules(source, "api.py") == {"types.py", "data/__init__.py"}


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
    ("path", "source"),
    [
        ("losses.py", "from lt_jax.training import steps"),
        ("losses.py", "from lt_jax import api"),
        ("data/loader.py", "def f():\n    import lt_jax.training.loop"),
        ("training/loop.py", "from lt_jax.experiment.results import rows"),
        ("report/build.py", "from lt_jax.cli import main"),
        ("export/convert.py", "from lt_jax.report import build"),
    ],
)
def test_an_upward_import_is_seen(path: str, source: str):
    assert upward(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("training/loop.py", "from lt_jax.data import loader"),
        ("training/loop.py", "from lt_jax.training.steps import StepSpec"),
        ("api.py", "from lt_jax.retraining import engine"),
    ],
)
def test_a_downward_import_is_allowed(path: str, source: str):
    assert upward(path, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n" + "    x = 1\n" * 80,
        "f(a, b, c, d, e, f, g)",
        "f(1, *b, 2, c, d, 3, 4)",
    ],
)
def test_long_functions_and_calls_are_seen(source: str):
    assert len(oversized(source)) == 1


def test_a_private_name_of_another_folder_is_seen():
    source = "from lt_jax.training.steps import _one\nfrom lt_jax.losses import _two"
    assert private_imports("training/loop.py", source) == ["lt_jax.losses._two"]
