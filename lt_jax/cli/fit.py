"""``lt-jax fit``: from photographs or features to a classifier and its page.

A composition of `lt-jax features`, into WORKDIR/extracted, and `lt-jax sweep` on these
features with small grids. The config in WORKDIR/config.json reproduces the sweep, and
WORKDIR/extracted/features.json has what the features depend on.
"""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path

from lt_jax import recipes
from lt_jax.cli import config_flags
from lt_jax.errors import InputError
from lt_jax.experiment import extraction, session, stages
from lt_jax.experiment.backbones import Options
from lt_jax.experiment.cached import own_values
from lt_jax.experiment.checks import from_data, make_method
from lt_jax.experiment.config import resolve, workdir_config
from lt_jax.retraining.features import NORM

BACKBONE = "vit_small_patch14_dinov2.lvd142m"
# Shares of each class that are held out, unless there are such sets.
HELD_OUT = ("--config.data.test=0.2", "--config.data.valid=0.2")
HEADS = (
    *("--config=configs/features.py:methods=all", "--config.method.repeats=1"),
    *("--config.data.valid=0.2", f"--config.data.norm={NORM:g}"),
)
# Settings per method: at most MOST, and fewer if training the heads takes more
# floating-point operations. These are about five minutes on two CPU cores.
MOST, OPERATIONS = 12, 2e13
# Folds take FOLDS times as long. They are the default if ENOUGH settings are left then.
FOLDS, ENOUGH = 5, 6


def fit(
    source: str, options: Options | None, workdir: Path, overrides: list[str]
) -> str:
    """Extract features if necessary, fit all methods, and recommend one.

    Args:
      source: folder or table of photographs, or folder of features.
      options: of the backbone; None for features.
      overrides: flags ``--config.KEY=VALUE``. Those of ``data`` describe the source.

    Returns:
      The command that classifies new examples.

    Raises:
      InputError: the source, the backbone or an override is invalid.
    """
    predict = f"lt-jax predict --workdir {shlex.quote(str(workdir))}"
    features, example = source, "FEATURES.npz"
    if options:
        flags, features = config_flags.of_data(source), workdir / extraction.FOLDER
        data = [flag for flag in overrides if flag.startswith("--config.data.")]
        overrides = [flag for flag in overrides if flag not in data]
        if (workdir / "config.json").exists():
            earlier = workdir_config(workdir).data.dir
            if Path(earlier).name != extraction.FOLDER:
                raise InputError(
                    f"{workdir} has a run on other data: use another --workdir"
                )
        photographs = config_flags.read([*flags, *HELD_OUT, *data])
        extraction.write_features(photographs, options, features, keep=True)
        code = options.model.startswith("torch:")
        example = f"--backbone {options.model} PHOTO.jpg" if code else "PHOTO.jpg"
    heads = [*HEADS, f"--config.data.dir={features}"]
    own = adapted([*heads, *overrides], workdir)
    stages.sweep(config_flags.read([*heads, *own, *overrides]), workdir)
    return f"{predict} {example}"


def adapted(flags: list[str], workdir: Path) -> list[str]:
    """Return overrides that adapt the choice and the grids to the size of the data.

    A workdir that exists keeps its way to choose.
    """
    config = resolve(config_flags.read(flags))
    with contextlib.redirect_stderr(io.StringIO()):  # the sweep prints it
        splits, _ = session.load_splits(config)
    config = from_data(config, splits.full_class_counts)
    train, entries = splits.train, config.method.entries
    examples, counts = len(train) + len(splits.valid), train.class_counts
    size = 6 * examples * train.shape[-1] * len(train.classes)  # of an epoch
    epochs = sum(
        hyper["epochs"] + make_method(name, counts, hyper).passes
        for name, hyper in own_values(config).items()
    )
    rows, folds = OPERATIONS / max(size * epochs, 1), config.eval.folds
    if (workdir / "config.json").exists():
        folds = workdir_config(workdir).eval.folds
    elif not any(flag.startswith("--config.eval.folds=") for flag in flags):
        folds = FOLDS * (rows >= FOLDS * ENOUGH)
        how = (
            f"{FOLDS} folds" if folds else "held-out examples, as folds take long here"
        )
        other = 0 if folds else FOLDS
        print(f"choosing by {how}; --config.eval.folds={other} changes this")
    most = int(min(MOST, rows / max(folds, 1)))
    return [
        f"--config.eval.folds={folds}" if folds else "--config.method.refit",
        *(
            f"--config.method.{name}.grid.{key}={values}"
            for name in config.method.names
            for key, values in recipes.thinned(entries[name], most).items()
        ),
    ]
