"""README and docs: commands parse, and the keys, names, files and links in them exist.

``RUN_BY`` names the tests that run their Python programs, ``test_readme_runs.py`` runs
their commands.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import tiny_cifar
import tiny_digits
from flax.traverse_util import flatten_dict
from test_feature_files import config as features_config
from test_feature_files import write

from lt_jax import methods, recipes
from lt_jax.cli import config_flags, fit, main
from lt_jax.experiment import stages
from lt_jax.training import steps

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
}
SCHEMA = json.loads((ROOT / "docs/reference/result.schema.json").read_text())

# Sections with a block of Python, and the test that runs it.
RUN_BY = {
    "As a library": "test_api.py",
    "Features from anywhere": "data/test_feature_files.py",
    "To PyTorch, safetensors or StableHLO": "export/test_convert.py",
    "A method of your own": "test_readme.py",
    "One call": "test_choice.py",
    "Any PyTorch module": "experiment/test_torch_modules.py",
}
# For the authors' checkout, which is not part of this repository.
AUTHORS = "docs/benchmarks/against_authors.md"


def section(page: str, title: str) -> str:
    """Return the text below a heading, up to the next heading of its level."""
    level, rest = re.split(rf"^(#+) {title}\n", PAGES[page], flags=re.M)[1:3]
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[tuple[str, str]]:
    """Return each command of a page's shell blocks with the comment behind it."""
    found = []
    for block in blocks(PAGES[page], "sh"):
        for line in block.replace("\\\n", "").splitlines():
            if page == AUTHORS and re.match(r"(python main_|script |sed |git )", line):
                continue
            command, _, comment = line.partition("#")
            if command.strip():
                found.append((command.strip(), comment))
    return found


def words(command: str) -> list[str]:
    """Split a command as the shell does, without the variables set for it."""
    split = shlex.split(command)
    while split and re.match(r"[A-Z_]+=", split[0]):
        split.pop(0)
    return split


def lt_jax_arguments(command: str) -> list[str] | None:
    """Return the arguments of ``lt-jax``, wherever it is in a command."""
    split = words(command)
    for i, word in enumerate(split):
        if word.split("/")[-1] == "lt-jax" and ">" not in split[:i]:
            return split[i + 1 :]
    return None


COMMANDS = [pair for page in PAGES for pair in commands(page)]
LT_JAX = [command for command, _ in COMMANDS if lt_jax_arguments(command) is not None]
BENCHMARKS = [pair for pair in COMMANDS if "benchmarks/" in pair[0]]


def test_commands_of_every_kind_are_found():
    assert len(LT_JAX) > 25
    assert len(BENCHMARKS) > 5
    names = {lt_jax_arguments(command)[0] for command in LT_JAX}
    assert names >= {"run", "train", "retrain", "sweep", "evaluate", "report"}
    assert names >= {"predict", "data", "convert"}


@pytest.mark.parametrize("command", dict.fromkeys(LT_JAX))
def test_lt_jax_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = lt_jax_arguments(command)
    for i, word in enumerate(arguments):
        if word == "...":
            is_config = arguments[i - 1] == "--config"
            arguments[i] = "configs/digits_lt.py" if is_config else "runs/any"
    config, rest = config_flags.split(arguments)
    options = main.make_parser().parse_args(rest)  # exits on an unknown flag
    assert options.command
    if options.command == "fit":
        photographs = [flag for flag in config if "config.data." in flag]
        config_flags.read(["--config=configs/folder.py", *photographs])
        config_flags.read([*fit.HEADS, *(f for f in config if f not in photographs)])
        config = []
    if getattr(options, "data", None):
        config = config_flags.of_data(options.data.replace("photos", "tests")) + config
    if options.configured and not any(f.startswith("--config=") for f in config):
        assert options.workdir  # which has its config
    elif options.configured:
        assert config_flags.read(config).seed == 0  # raises on an unknown key
    else:
        assert not config


@pytest.mark.parametrize(("command", "comment"), BENCHMARKS)
def test_benchmark_has_the_flags(command, comment):
    script = next(w for w in words(command) if w.startswith("benchmarks/"))
    source = (ROOT / script).read_text(encoding="utf-8")
    own, _, passed = command.partition(" -- ")  # flags of lt-jax fit
    for flag in re.findall(r"--[\w-]+", f"{own} {comment}"):
        assert f'"{flag}"' in source, flag
    if passed:
        config_flags.read([*fit.HEADS, *passed.split()])  # raises on an unknown key


def test_other_commands_name_existing_files():
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = {"python3", "source", "pip", "pipx", "sbatch", "kubectl", "mpirun"}
    known |= {"check-jsonschema", "lt-jax", "launch", "pytest", "tfds"}
    known |= {"shtab", "tensorboard"}
    for command, _ in COMMANDS:
        split = words(command)
        for word in split:
            if re.match(r"(launch|benchmarks|configs|tests|docs)/", word):
                assert (ROOT / word.split(":")[0]).exists(), command
        first = split[0]
        if first == "make":
            assert re.search(rf"^{split[1]}:", make, re.MULTILINE), command
        elif first == "python":
            assert split[1].startswith("benchmarks/") or split[1] == "-m", command
        else:
            assert {first.split("/")[0], first.split("/")[-1]} & known, command


@pytest.mark.parametrize("page", PAGES)
def test_links_and_images_exist(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_readme_of_the_package_names_files_in_place_of_relative_links():
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    page = PAGES["README.md"]
    for rule in hooks["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        page = re.sub(rule["pattern"], rule["replacement"], page)
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links
    assert all(link.startswith(("https://", "#")) for link in links)
    files = re.findall(r"\]\(((?!https:|#)[^)#]+\.md)", PAGES["README.md"])
    assert files
    assert all(f"`{file}`" in page for file in files)


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def test_config_keys_exist():
    known = {
        key
        for file in ("digits_lt", "folder", "features")
        for key in flatten_dict(tiny_digits.load(file).to_dict(), sep=".")
    }
    groups = r"(?:data|model|init|method|optim|eval|save|log)"
    count = 0
    for page, text in PAGES.items():
        if page == "CHANGELOG.md":  # names removed keys
            continue
        for key in re.findall(rf"[`.]({groups}\.[a-z_]+(?:\.[a-z_]+)*)[=`]", text):
            if re.search(r"\.(py|md|txt|json|jsonl|npz|parquet|safetensors)$", key):
                continue
            count += 1
            inner = any(full.startswith(f"{key}.") for full in known)
            assert key in known or inner, f"{page}: {key}"
    assert count > 20


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_and_names_exist(page):
    """Paths of the repository, and dotted names of the package."""
    text = re.sub(r"^```{toctree}.*?^```", "", PAGES[page], flags=re.DOTALL | re.M)
    folders = r"(?:lt_jax|configs|tests|benchmarks|launch|docs)"
    for path in re.findall(rf"(?<![\w/.])({folders}/[\w/]*[\w.]*\w)", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"(?<![\w/.])(lt_jax(?:\.[A-Za-z_]+)+)", text):
        parts = name.split(".")
        found = importlib.import_module("lt_jax")
        for i, part in enumerate(parts[1:], start=2):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[:i]))
            found = getattr(found, part)


def test_pages_named_in_the_code_exist():
    found = 0
    for folder in ("lt_jax", "configs", "launch", "benchmarks"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.suffix in (".py", ".sh", ".yaml", ".sbatch"):
                for page in re.findall(r"docs/[\w/]+\.md", file.read_text("utf-8")):
                    found += 1
                    assert (ROOT / page).exists(), f"{file}: {page}"
    assert found > 3


def test_every_python_block_is_run():
    for page in PAGES:
        if page == AUTHORS:
            continue
        for part in re.split(r"^#+ ", PAGES[page], flags=re.MULTILINE)[1:]:
            title = part.splitlines()[0]
            for block in blocks(part, "python"):
                ast.parse(block)
                assert title in RUN_BY, f"{page}: {title}"
    for title, test in RUN_BY.items():
        assert title in (ROOT / "tests" / test).read_text(encoding="utf-8")


def test_images_are_exported_for_the_authors_code(tmp_path, monkeypatch):
    tiny_cifar.write(tmp_path, per_class=5, test_per_class=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    program = blocks(PAGES[AUTHORS], "python")[0]
    exec(program.replace("imbalance=100", "imbalance=5"), {})
    with np.load("cifar100_lt.npz") as found:
        assert found["train"].shape == (*found["train_labels"].shape, 32, 32, 3)
        assert len(found["test"]) == len(found["test_labels"]) == 100


def test_example_method_fits_in_every_command(tmp_path, monkeypatch):
    """The function and its recipe are all that a new method needs."""
    page = section("docs/howto/own_method.md", "A method of your own")
    method, recipe = blocks(page, "python")
    scope = dict(vars(methods))
    exec(method, scope)
    monkeypatch.setitem(methods.METHODS, "sqrt_reweight", scope["sqrt_reweight"])
    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))
    exec(recipe, {"RECIPES": recipes.RECIPES})
    config = features_config(write(tmp_path / "f"), method__names=("sqrt_reweight",))
    result = stages.retrain(config, tmp_path / "run")
    assert set(result["methods"]) == {"none", "sqrt_reweight"}
    assert result["methods"]["sqrt_reweight"]["hyper"]["epochs"] == 20


def test_example_method_weights_classes():
    scope = dict(vars(methods))
    exec(blocks(section("README.md", "A method of your own"), "python")[0], scope)
    counts = np.array([100, 25, 4])
    made = scope["sqrt_reweight"](counts, start="stage1", sampler="instance")
    weight = counts**-0.5
    np.testing.assert_allclose(made.adjust.weight, weight / weight.mean(), rtol=1e-6)


def test_generated_reference_is_complete():
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    commands, config, table, result = (
        generate["fill"](f"<!-- generated: {part} -->")
        for part in ("commands", "config", "methods", "result")
    )
    for name in ("run", "sweep", "data prepare", "report"):
        assert f"## lt-jax {name}\n" in commands
    missing = [
        key
        for key in flatten_dict(tiny_digits.load("digits_lt").to_dict(), sep=".")
        if f"`{key}`" not in config and key.count(".") < 2
    ]
    assert not missing
    assert all(f"| `{name}` |" in table for name in methods.METHODS)
    assert "`protocol.seeds`" in result
    assert "generated:" not in commands + config + table + result


def test_schema_accepts_the_demo_and_rejects_an_unknown_key():
    golden = json.loads((ROOT / "tests/golden/digits.json").read_text())["result"]
    clock = {"mean": None, "std": None, "values": []}  # golden files have no times
    golden["stage1"] |= {"seconds": clock, "images_per_second": clock}
    for method in golden["methods"].values():
        method["seconds"] = clock
    versions = dict.fromkeys(("python", "lt_jax", "jax", "jaxlib"), "0")
    golden |= {"versions": versions, "device": "1 x cpu"}
    jsonschema.validate(golden, SCHEMA)
    choices = SCHEMA["properties"]["protocol"]["properties"]["batch_norm"]["enum"]
    assert {*choices} == {*steps.BATCH_NORM}
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        jsonschema.validate(golden | {"surprise": 1}, SCHEMA)


def test_the_demo_runs_the_commands_of_the_readme():
    recipe = re.findall(r"\$\(VENV\)/bin/(lt-jax .*)", (ROOT / "Makefile").read_text())
    assert [command.split()[1] for command in recipe] == ["run", "sweep"]
    assert "\n".join(recipe) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
