"""What ``--help`` shows besides flags: groups of commands, config keys, examples."""

from __future__ import annotations

from collections.abc import Mapping

GROUPS = {
    "start here": ("fit", "predict"),
    "train": ("run", "train", "retrain", "sweep", "features"),
    "use what was trained": ("evaluate", "report", "convert"),
    "look around": ("data", "list", "config", "benchmark"),
}
CONFIG = """\
config flags:
  --config FILE[:ARG]      Python file that defines get_config(ARG). If it does not
                           exist, the one shipped with the package is used. Not needed
                           with the --workdir of an earlier run, which has its config
  --config.KEY.KEY=VALUE   override one value; an unknown key is an error
"""
# The config keys that a command reads.
KEYS = {
    "run": "all; method.names and optim.repeats count the fits",
    "train": "data.* model.* init.* optim.* (stage 1) eval.* save.* log.*",
    "retrain": "data.* init.path method.* (stage 2) eval.* save.* log.*",
    "sweep": "data.* method.* and its grids, eval.choose eval.curves log.*",
    "evaluate": "all, as of the run; eval.batch may differ",
    "fit": "data.* describe SOURCE, all others the heads",
    "features": "data.* of --data",
    "config": "all",
    "benchmark": "data.* model.* optim.* method.* eval.batch",
    "data info": "data.*",
}
DIGITS = "--config configs/digits_lt.py"
EXAMPLES = {
    "": (
        "lt-jax fit PHOTOS",
        f"lt-jax run {DIGITS} --workdir runs/digits",
        "lt-jax config --config configs/cifar100_lt.py:ir=100 --plan",
    ),
    "fit": (
        "lt-jax fit PHOTOS --workdir runs/photos",
        "lt-jax fit FEATURES --config.method.names=crt,los,logistic",
    ),
    "run": (
        f"lt-jax run {DIGITS} --workdir runs/digits",
        f"lt-jax run {DIGITS} --workdir runs/seeds --config.optim.repeats=3",
    ),
    "train": (f"lt-jax train {DIGITS} --workdir runs/digits",),
    "retrain": (
        f"lt-jax retrain {DIGITS} --workdir runs/digits --config.method.names=ce,los",
    ),
    "sweep": (
        f"lt-jax sweep {DIGITS} --workdir runs/sweep --config.init.path=runs/digits",
    ),
    "features": (
        "lt-jax features --model vit_small_patch14_dinov2 --data PHOTOS --out FEATURES",
    ),
    "evaluate": ("lt-jax evaluate --workdir runs/digits --split valid",),
    "report": ("lt-jax report runs/one runs/two --out report",),
    "predict": ("lt-jax predict --workdir runs/digits --top 3 image.png",),
    "convert": (
        "lt-jax convert runs/digits los.safetensors --method los",
        "lt-jax convert resnet32.pth runs/theirs --arch resnet32",
    ),
    "data info": (
        "lt-jax data info PHOTOS",
        "lt-jax data info --config configs/cifar100_lt.py:ir=50",
    ),
    "data prepare": ("lt-jax data prepare imagenet_lt --from ARCHIVES --lists LISTS",),
    "list": ("lt-jax list methods",),
    "config": (f"lt-jax config {DIGITS} --config.seed=1",),
    "benchmark": (f"lt-jax benchmark {DIGITS} --seconds 2",),
}


def overview(commands: Mapping[str, str]) -> str:
    """List commands and their descriptions by group, then general hints."""
    parts = [
        f"{title}:\n" + "\n".join(f"  {n:10s} {commands[n]}" for n in names)
        for title, names in GROUPS.items()
    ]
    more = "lt-jax COMMAND --help lists the flags of a command, with examples.\n"
    return "\n\n".join([*parts, more + "\n" + epilog("", configured=True)])


def epilog(name: str, configured: bool) -> str:
    """Return the end of the help of a command, such as ``data info``."""
    keys = f"config keys it reads:\n  {KEYS[name]}\n" if name in KEYS else ""
    examples = "".join(f"  {example}\n" for example in EXAMPLES.get(name, ()))
    parts = [CONFIG if configured else "", keys, examples and f"examples:\n{examples}"]
    return "\n".join(filter(None, parts))
