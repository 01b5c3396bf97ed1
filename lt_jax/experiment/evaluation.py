"""``lt-jax evaluate``: finished fits, or heads of a sweep, on a split of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lt_jax import metrics
from lt_jax.distributed import processes
from lt_jax.errors import InputError
from lt_jax.experiment import result_json, results, stored, sweep
from lt_jax.experiment.config import UserConfig
from lt_jax.experiment.session import Session, open_session, workdir_lock
from lt_jax.experiment.stored import Source
from lt_jax.training.loop import evaluate


def evaluate_all(
    config: UserConfig, workdir: Path, split: str, heads: str = ""
) -> dict[str, dict[str, Any]]:
    """Evaluate every finished fit of a workdir on one of its splits.

    Args:
      split: ``train`` (the fitted examples, not augmented), ``valid`` or ``test``.
      heads: regular expression; evaluates the heads of the sweep whose name it matches
        instead of the fits, as in ``los .*delta=0.98 .*lr=0.005``. May write features.

    Returns:
      The summary by fit, for example ``los/0.2``, with that of ``method.refit`` on the
      test set as ``refit/los/0.2``. ``lowest``, for fits only, holds the
      names and accuracies of the three least accurate classes that have examples.
    """
    stored.stage1(workdir)
    with open_session(config, workdir, writes=False) as session:
        task = session.task
        dataset = getattr(task.splits, split)
        if not len(dataset):
            zero = "eval.folds is not" if session.config.eval.folds else "data.valid is"
            raise InputError(f"the {split} split is empty because {zero} 0")
        if heads:
            with workdir_lock(workdir):  # may write features
                return sweep.evaluate_rows(session, split, heads)
        fits = _fits(session, split)
        session.log.warning(f"evaluating {len(fits)} fits on {len(dataset):,} images")
        found = {}
        sizes = task.splits.train.shape, len(task.splits.full_class_counts)
        for title, source in fits.items():
            head, network = stored.load_fit(source, task.backbone, *sizes)
            tally = evaluate(task, head, network, dataset)
            accuracy = metrics.per_class(tally)["accuracy"]
            order = np.argsort(accuracy, kind="stable")[:3]  # nan comes last
            found[title] = {
                **results.summary(task, tally, network.params["head"]),
                "lowest": [
                    (dataset.classes[k], float(accuracy[k]))
                    for k in order
                    if accuracy[k] >= 0
                ],
            }
        return found


def _fits(session: Session, split: str) -> dict[str, Source]:
    """Find the fits to evaluate, by title, and check all their outcomes."""
    workdir, names = session.workdir, session.config.method.names
    kinds = [f"{kind}{name}" for kind in ("", "chosen/", "fixed/") for name in names]
    fits = {s.title: s for s in stored.fits(workdir, ["stage1", *kinds])}
    folder = workdir / results.REFIT
    if split == "test" and folder.is_dir():  # it has seen the others
        best = processes.from_process_zero(lambda: result_json.recommended(workdir))
        if best.get("refit"):
            source = stored.find(folder, [best["method"]])
            fits[f"{results.REFIT}/{source.title}"] = source
    for source in fits.values():
        stored.head_of(source)
    return fits
