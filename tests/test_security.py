"""The package never executes data that it reads."""

from __future__ import annotations

import ast
from pathlib import Path

import made_workdirs
import numpy as np
import pytest

from lt_jax.errors import InputError
from lt_jax.experiment.session import workdir_lock
from lt_jax.report import build

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "lt_jax").rglob("*.py"))
}

# These can execute code from their input, with any arguments.
MODULES = {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen",
    "pickle.load", "pickle.loads", "pickle.Unpickler",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "shutil.unpack_archive",
}  # fmt: skip
# These can too, unless this argument has this value.
SAFE_WITH = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}
# Pillow's reader of PostScript starts Ghostscript: every call names its formats.
OPENS_IMAGES = {"lt_jax/data/images/decode.py": ["FORMATS"]}


def dangers(source: str) -> list[str]:
    """Return the lines that could execute their input."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{n}" for n in names)]
            found += [n for n in names if n.split(".")[0] in MODULES or n in CALLS]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: word.value for word in node.keywords}
        if called in CALLS or called.endswith((".extractall", ".extract")):
            found.append(f"line {node.lineno}: {called}")
        elif called in SAFE_WITH:
            name, value = SAFE_WITH[called]
            passed = given.get(name)
            if not (isinstance(passed, ast.Constant) and passed.value is value):
                found.append(f"line {node.lineno}: {called} without {name}={value}")
        shell = given.get("shell")
        if isinstance(shell, ast.Constant) and shell.value is True:
            found.append(f"line {node.lineno}: {called} with a shell")
    return found


def test_sources_never_execute_data():
    found = {path: dangers(source) for path, source in SOURCES.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(text)",
        "from pickle import loads",
        "import joblib",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "torch.load(file, map_location='cpu')",
        "eval(text)",
        "yaml.load(text)",
        "archive.extractall(folder)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_dangers_are_found(line):
    assert len(dangers(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "np.load(file, mmap_mode='r', allow_pickle=False)",
        "torch.load(file, weights_only=True)",
        "re.compile(text)",
        "jitted.lower(x).compile()",
        "json.loads(text)",
        "import pickle",  # for its error, which torch.load raises
        "subprocess.run(words)",
    ],
)
def test_harmless_calls_are_allowed(line):
    assert dangers(line) == []


def image_opens(source: str) -> list[str]:
    """The ``formats`` of every call that opens an image with Pillow."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
            found += [f"import of {a.name}" for a in node.names if a.name == "open"]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("Image.open", "ImageFile.Parser", "ImageSequence.Iterator")
        ):
            given = [w.value for w in node.keywords if w.arg == "formats"]
            found += [ast.unparse(value) for value in given] or ["all formats"]
    return found


def test_images_are_opened_in_one_place():
    found = {path: image_opens(source) for path, source in SOURCES.items()}
    assert {path: calls for path, calls in found.items() if calls} == OPENS_IMAGES


def test_an_open_image_is_seen():
    assert image_opens("Image.open(f)") == ["all formats"]
    assert image_opens("PIL.Image.open(f, formats=X)") == ["X"]
    assert image_opens("from PIL.Image import open") == ["import of open"]


def test_a_pickle_in_an_array_file_is_refused(tmp_path):
    """The argument required above has the expected effect."""
    np.save(tmp_path / "bad.npy", np.array([Path("x")], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(tmp_path / "bad.npy", allow_pickle=False)


@pytest.mark.parametrize("name", ["lock", "log.txt", "features", "checkpoints/los"])
def test_a_link_in_a_received_workdir_is_not_followed(tmp_path, name):
    victim, workdir = tmp_path / "victim", tmp_path / "w"
    victim.write_text("precious")
    (workdir / name).parent.mkdir(parents=True)
    (workdir / name).symlink_to(victim)
    with pytest.raises(InputError, match="is a link"), workdir_lock(workdir):
        pass
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["report", "report/figures", "report/index.html"])
def test_a_report_is_not_written_through_a_link(tmp_path, name):
    victim = tmp_path / "victim"
    victim.mkdir()
    fits = {"none": [made_workdirs.outcome([0], 0.4, [120, 50, 5])]}
    run = made_workdirs.write(tmp_path / "w", fits, made_workdirs.config({}))
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(victim)
    with pytest.raises(InputError, match="is a link to"):
        build.write([run], run / "report")
    assert list(victim.iterdir()) == []
