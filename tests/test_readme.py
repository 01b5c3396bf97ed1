"""What the documents say can be done: commands parse, keys, files and links are there.

The programs in them, and the demo, are run elsewhere (``RUN_BY`` says where).
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny_digits
from flax.traverse_util import flatten_dict

from lt_jax import methods
from lt_jax.cli import config_flags, main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/*.md")]
}

# Every block of Python, by its section, and the test that runs it.
RUN_BY = {
    "As a library": "test_api.py",
    "Features from anywhere": "data/test_feature_files.py",
    "Weights in and out": "export/test_convert.py",
    "A method of your own": "test_readme.py",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """Every command line in a block of shell, and the comment behind it."""
    found = []
    for name, text in DOCUMENTS.items():
        if name == "benchmarks/against_authors.md":
            # What is given in the authors' checkout, which is not here.
            text = "".join(
                line
                for line in text.replace("\\\n", "").splitlines(keepends=True)
                if not re.match(r"(python main_|script |sed |git |cd )", line)
            )
        for block in blocks(text, "sh"):
            for line in block.replace("\\\n", "").splitlines():
                command, _, comment = line.partition("#")
                if command.strip():
                    found.append((command.strip(), comment))
    return found


COMMANDS = commands()


def words(command: str) -> list[str]:
    """Words as the shell sees them, without the variables set for the command."""
    split = shlex.split(command)
    while split and re.match(r"[A-Z_]+=", split[0]):
        split.pop(0)
    return split


def ours(command: str) -> list[str] | None:
    """The arguments of lt-jax, wherever in a command it stands."""
    split = words(command)
    for i, word in enumerate(split):
        if word.split("/")[-1] == "lt-jax":
            return split[i + 1 :]
    return None


LT_JAX = [command for command, _ in COMMANDS if ours(command) is not None]
BENCHMARKS = [pair for pair in COMMANDS if "benchmarks/" in pair[0]]


def test_there_are_commands_of_every_kind():
    """Or the tests below would look at nothing."""
    assert len(LT_JAX) > 25
    assert len(BENCHMARKS) > 5
    told = {ours(command)[0] for command in LT_JAX}
    assert told >= {"run", "train", "retrain", "sweep", "evaluate", "report", "predict"}
    assert told >= {"data", "convert"}


@pytest.mark.parametrize("command", dict.fromkeys(LT_JAX))
def test_a_command_of_ours_is_one(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ours(command)
    for i, word in enumerate(arguments):
        if word == "...":
            is_config = arguments[i - 1] == "--config"
            arguments[i] = "configs/digits_lt.py" if is_config else "runs/any"
    config, rest = config_flags.split(arguments)
    options = main._parser().parse_args(rest)  # exits where a flag is unknown
    assert options.command
    if options.configured:
        assert config_flags.read(config).seed == 0  # raises where a key is unknown
    else:
        assert not config


@pytest.mark.parametrize(("command", "comment"), BENCHMARKS)
def test_a_benchmark_has_these_flags(command, comment):
    (script,) = [word for word in words(command) if word.startswith("benchmarks/")]
    source = (ROOT / script).read_text(encoding="utf-8")
    flags = re.findall(r"--[\w-]+", f"{command} {comment}")
    for flag in flags:
        assert f'"{flag}"' in source, flag


def test_every_other_command_names_what_is_there():
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = {"python3", "source", "pip", "pipx", "sbatch", "kubectl", "mpirun", "git"}
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
            start = first.split("/")[0], first.split("/")[-1]
            assert {*start} & (known | {"lt-jax", "launch", "pytest"}), command


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    text = re.sub(r"^```.*?^```", "", DOCUMENTS[name], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """The names of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_are_there(name):
    folders = r"(?:lt_jax|tests|benchmarks|configs|docs|launch)"
    for path in re.findall(rf"`({folders}/[\w./-]*\.\w+)", DOCUMENTS[name]):
        assert (ROOT / path).exists(), path


def test_keys_that_are_named_are_there():
    known = {
        key
        for file in ("digits_lt", "folder", "features")
        for key in flatten_dict(tiny_digits.load(file).to_dict(), sep=".")
    }
    groups = r"(?:data|model|init|method|optim|eval|save|log)"
    count = 0
    for name, text in DOCUMENTS.items():
        for key in re.findall(rf"[`.]({groups}\.[a-z_]+(?:\.[a-z_]+)*)[=`]", text):
            if re.search(r"\.(py|md|txt|json|jsonl|npz|parquet)$", key):
                continue
            count += 1
            inner = any(full.startswith(f"{key}.") for full in known)
            assert key in known or inner, f"{name}: {key}"
    assert count > 20


def test_every_module_is_in_the_map():
    section = DOCUMENTS["README.md"].split("\n## Map")[1].split("\n## ")[0]
    for path in (ROOT / "lt_jax").glob("*.py"):
        assert path.name in section or path.name.startswith("__"), path.name


def test_every_block_of_python_is_run():
    """By the test that ``RUN_BY`` names, which reads the section by its title."""
    for name in ("README.md", *(name for name in DOCUMENTS if name[:5] == "docs/")):
        for section in re.split(r"^#+ ", DOCUMENTS[name], flags=re.MULTILINE)[1:]:
            title = section.splitlines()[0]
            for block in blocks(section, "python"):
                ast.parse(block)
                assert title in RUN_BY, f"{name}: {title}"
    for title, test in RUN_BY.items():
        assert title in (ROOT / "tests" / test).read_text(encoding="utf-8")


def test_the_method_of_the_readme_is_one():
    text = DOCUMENTS["README.md"].split("# A method of your own\n")[1]
    scope = dict(vars(methods))
    exec(blocks(text, "python")[0], scope)
    counts = np.array([100, 25, 4])
    made = scope["sqrt_reweight"](counts, start="stage1", sampler="instance")
    weight = counts**-0.5
    np.testing.assert_allclose(made.adjust.weight, weight / weight.mean(), rtol=1e-6)


def test_the_page_of_methods_says_what_the_docstrings_say():
    scope = runpy.run_path(str(ROOT / "docs/methods.py"))
    assert DOCUMENTS["docs/methods.md"] == scope["page"](), "run python docs/methods.py"
