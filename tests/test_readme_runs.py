"""The commands of README, tutorials and how-to pages run in their order, on small data.

Each goes through the command line as it is; flags that make it small are appended.
Commands that run elsewhere, or cannot run, are listed with the place or the reason.
"""

from __future__ import annotations

import json
import re
import shutil
from glob import glob
from pathlib import Path

import jax
import jsonschema
import numpy as np
import pytest
import safetensors.numpy
import test_readme
import tiny_archives
import tiny_photos
import tiny_vit
from PIL import Image
from test_readme import ROOT, SCHEMA, lt_jax_arguments, words

from lt_jax import heads, models, trees
from lt_jax.cli import main
from lt_jax.pretrained import torch_names

TUTORIALS = ("photographs", "compare_methods", "features")
HOWTO = ("prepare_data", "sweep", "watch_a_run", "resume", "clusters", "pretrained")
PAGES = (
    "README.md",
    "docs/get_started.md",
    *(f"docs/tutorials/{page}.md" for page in TUTORIALS),
    *(
        f"docs/howto/{page}.md"
        for page in (*HOWTO, "convert_weights", "own_method", "measure_speed")
    ),
    *(
        f"docs/reference/{page}.md"
        for page in ("commands", "config", "report", "result")
    ),
    "docs/project/contributing.md",
)
# Full-size runs, given with their results; test_readme.py parses them.
BENCHMARK_PAGES = {
    f"docs/benchmarks/{page}.md"
    for page in (
        "results",
        "choice",
        "protocol",
        "against_authors",
        "performance",
        "scaling",
        "gpu",
    )
}
COMMANDS = list(
    dict.fromkeys(
        re.sub(r"\s+", " ", command)
        for page in PAGES
        for command, _ in test_readme.commands(page)
    )
)

# Start of a command: the file that runs it or what it starts, and a word in that file.
ELSEWHERE = {
    "lt-jax retrain --config configs/features.py": (
        "data/test_feature_files.py",
        "docs/tutorials/features.md",
    ),
    "lt-jax sweep --config configs/features.py": (
        "data/test_feature_files.py",
        "docs/tutorials/features.md",
    ),
    "lt-jax features": (
        "experiment/test_extraction.py",
        "test_features_of_photographs",
    ),
    "lt-jax run --config configs/features.py:path=features": (
        "experiment/test_extraction.py",
        '"features", dir=str(out)',
    ),
    "lt-jax run --config configs/folder.py:path=photos,net=resnet50": (
        "pretrained/test_load.py",
        "test_stage_1_starts_from_a_backbone",
    ),
    "lt-jax fit photos --backbone torch:": (
        "experiment/test_torch_modules.py",
        "Any PyTorch module",
    ),
    "lt-jax predict --workdir runs/photos --backbone": (
        "experiment/test_torch_modules.py",
        '"predict"',
    ),
    "lt-jax fit digits_pca": ("cli/test_fit.py", "test_fit_of_features_with_names"),
    "lt-jax run --config configs/digits_lt.py --workdir runs/watched": (
        "training/test_sinks.py",
        'log__sinks=("tensorboard",)',
    ),
    "lt-jax benchmark": ("cli/test_benchmark.py", "test_all_parts"),
    "lt-jax report runs/a": ("report/test_build.py", "write([plain, drift, both]"),
    "launch/local.sh": ("test_launch.py", "local.sh"),
    "sbatch": ("test_launch.py", "slurm.sbatch"),  # with stand-ins for srun, scontrol
    "launch/tpu.sh": ("test_launch.py", "tpu.sh"),  # with a stand-in for gcloud
    "lt-jax train --config ...": ("distributed/test_hosts.py", "hosts_worker"),
    "check-jsonschema": ("test_readme_runs.py", "jsonschema.validate"),
    "make demo": (".ci/run", "make demo"),
    "make test": (".ci/run", "make test"),
    "make lint": (".ci/run", "make lint"),
    "make docs": (".ci/run", "make docs"),
}
# Start of a command that no test runs, and the reason.
NOT_RUN = {
    "python3 -m venv": "`make` does the same",
    ".venv/bin/pip install": "`make` does the same; [cuda] needs an NVIDIA GPU",
    "pip install 'lt_jax[tensorboard]'": "from a package registry",
    "tensorboard": "a server; test_sinks.py reads its files back",
    "shtab": "not a dependency; it reads what test_main.py tests",
    "source": "activates the environment",
    "pip install tensorflow": "half a gigabyte, for TFDS's own converter",
    "tfds convert_format": "needs TensorFlow; test_catalogue.py reads such a copy",
    "kubectl": "needs a cluster; test_launch.py checks the manifest's schema",
    "mpirun": "needs Open MPI; test_cluster.py sets its environment",
    "python benchmarks/devices.py": "minutes; test_steps.py checks what it measures",
    "python benchmarks/faults.py": "nearly an hour; test_hosts.py kills processes",
}

SMALL = [
    "--config.model.width=4",
    "--config.optim.epochs=1",
    "--config.optim.repeats=1",
]
STAGE2 = ["--config.method.ce.epochs=1", "--config.method.los.epochs=1"]
FEW = ["--config.method.repeats=1"]
# Flags to append, by the config of the command.
SMALLER = {
    "digits_lt": [
        *SMALL,
        *STAGE2,
        "--config.method.ce.grid.lr=(1e-3,1e-2)",
        "--config.method.los.grid.lr=(1e-3,)",
        "--config.method.los.grid.delta=(0.5,0.83)",
    ],
    "cifar100_lt": [
        *SMALL,
        *STAGE2,
        *FEW,
        "--config.data.imbalance=5",
        "--config.method.names=('los',)",
    ],
    "folder": [
        *SMALL,
        *STAGE2,
        *FEW,
        "--config.model.name=resnet8",
        "--config.model.stem=cifar",
        "--config.data.size=16",
        "--config.data.resize=20",
        "--config.data.workers=1",
        "--config.optim.batch=16",
        "--config.method.batch=16",
    ],
    "inat2018": [],
}


def listed(command: str, where: dict[str, object]) -> bool:
    return any(command.startswith(start) for start in where)


HERE = [c for c in COMMANDS if not listed(c, ELSEWHERE) and not listed(c, NOT_RUN)]


def test_every_command_runs_or_is_listed():
    for command in COMMANDS:
        assert listed(command, ELSEWHERE) + listed(command, NOT_RUN) < 2, command
    for start in (*ELSEWHERE, *NOT_RUN):
        assert any(command.startswith(start) for command in COMMANDS), start
    for file, word in ELSEWHERE.values():
        path = ROOT / file if "/" in file else ROOT / "tests" / file
        path = path if path.exists() else ROOT / "tests" / file
        assert word in path.read_text(encoding="utf-8"), file
    assert len(HERE) > 20


def test_every_page_with_commands_is_listed():
    pages = {page for page in test_readme.PAGES if test_readme.commands(page)}
    assert pages - {*PAGES} - BENCHMARK_PAGES == {"SECURITY.md"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Create a miniature of every input, where the commands expect it."""
    root = tmp_path_factory.mktemp("readme")
    (root / "configs").symlink_to(ROOT / "configs")
    for name in ("Downloads", "archives", "lists", "new", "runs"):
        (root / name).mkdir()
    tiny_archives.cifar(root / "Downloads", 100, 500, 100)
    tiny_archives.inat(root / "archives", list(range(8142)), [0, 1])
    tiny_archives.imagenet(root / "archives", [0, 0, 1], [1, 0], 2)
    for path in (root / "archives").glob("*.txt"):
        shutil.move(path, root / "lists")
    classes = list(tiny_photos.COLOURS)
    tiny_photos.write(
        root / "photos/train", dict(zip(classes, (12, 6, 3), strict=True))
    )
    tiny_photos.write(root / "photos/test", dict.fromkeys(classes, 2), 5000)
    # The size of CIFAR images, which the network in net.stablehlo expects.
    Image.new("RGB", (32, 32), (200, 40, 40)).save(root / "new/any.jpg")
    return root


def write_authors_weights(path: Path) -> None:
    """Write a state dict with the authors' names, as safetensors: needs no PyTorch."""
    backbone = models.create("resnet34", "cifar", 4)
    params, stats = models.init(backbone, jax.random.key(0), (32, 32, 3))
    width = backbone.num_features
    head = heads.linear.init(jax.random.key(1), None, width, 100, "torch")
    tree = {"params": {"backbone": params, "head": head}, "batch_stats": stats}
    safetensors.numpy.save_file(torch_names.to_torch(trees.leaves(tree)), path)


@pytest.mark.parametrize("command", HERE)
def test_command_runs(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "cifar"))
    command = command.replace("$HOME", str(folder))
    command = re.sub(r"(?<==)/(?=archives|lists|data)", f"{folder}/", command)
    for name, value in re.findall(r"^([A-Z_]+)=(\S+) ", command):
        monkeypatch.setenv(name, value)
    arguments = lt_jax_arguments(command)
    assert arguments, words(command)
    arguments = [path for a in arguments for path in (glob(a) if "*." in a else [a])]
    if config := re.search(r"configs/(\w+)\.py", command):
        arguments += SMALLER[config[1]]
        if config[1] == "cifar100_lt" and "init.path" not in command:
            arguments += ["--config.model.name=resnet8"]
    tiny_vit.register(monkeypatch)
    if arguments[0] == "fit":
        if not Path("net").exists():
            tiny_vit.folder(Path("net"))
        arguments += ["--backbone=net", "--config.method.names=ce,los"]
    if arguments[:2] == ["data", "prepare"]:
        arguments += ["--partial"]
    if "best_model_stage1.pth" in arguments:
        theirs = "best_model_stage1.safetensors"
        write_authors_weights(Path(theirs))
        arguments[arguments.index("best_model_stage1.pth")] = theirs

    assert main.main(arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert printed
    if arguments[0] in ("fit", "run", "retrain", "sweep"):
        assert "| los " in printed
    if arguments[0] == "predict":
        assert len(re.findall(r"\d %  \S", printed)) >= 3
    if arguments[0] == "report":
        page = Path(printed.removeprefix("report: ").strip())
        assert "</html>" in page.read_text(encoding="utf-8")
    if arguments[0] == "convert" and arguments[2].startswith("net."):
        assert Path(arguments[2]).stat().st_size > 10_000


COPIES = ("digits", "digits_delta_05")


def test_workdirs_have_copies_of_one_representation(folder):
    stage1 = [folder / f"runs/{run}/checkpoints/stage1/0" for run in COPIES]
    outcomes = [json.loads((each / "outcome.json").read_text()) for each in stage1]
    assert outcomes[0]["metrics"] == outcomes[1]["metrics"]
    assert (stage1[1] / outcomes[1]["weights"]).is_relative_to(stage1[1])
    assert list((folder / "traces").rglob("*.trace.json.gz"))
    assert np.array([p.suffix != ".tmp" for p in (folder / "runs").rglob("*")]).all()


def test_results_match_the_published_schema(folder):
    results = [json.loads(p.read_text()) for p in folder.glob("runs/*/result.json")]
    assert len(results) > 4
    assert any("sweep" in result for result in results)
    for result in results:
        jsonschema.validate(result, SCHEMA)
