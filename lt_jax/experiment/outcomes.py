"""A finished fit: what was measured, what is kept, the mark that it has finished."""

from __future__ import annotations

from typing import Any

import numpy as np

from lt_jax import metrics
from lt_jax.distributed import processes
from lt_jax.errors import InputError
from lt_jax.experiment import results
from lt_jax.experiment.session import Session
from lt_jax.heads import effective_norms
from lt_jax.metrics import Tally
from lt_jax.training.checkpoint import write
from lt_jax.training.loop import FitResult
from lt_jax.types import Params

FINAL = "final"  # the folder of final weights that no checkpoint holds


def figures(session: Session, tally: Tally, head: Params) -> dict[str, Any]:
    """``{"metrics": by name, "per_class": [K] by name}``."""
    return {
        "metrics": summary(session, tally, head),
        "per_class": {
            "class": list(session.task.splits.train.classes),
            "train_count": session.task.splits.counts,
            **metrics.per_class(tally),
            "weight_norm": np.asarray(effective_norms(head), np.float64),
        },
    }


def summary(session: Session, tally: Tally, head: Params) -> dict[str, float]:
    """``metrics.summary`` and the norms of the class vectors."""
    norms = np.asarray(effective_norms(head), np.float64)
    return {
        **metrics.summary(tally, session.task.groups),
        "weight_norm": float(norms.mean()),
        "weight_norm_spread": float(norms.std() / norms.mean()),
    }


def save(
    session: Session,
    title: str,
    seeds: list[int],
    fitted: FitResult,
    tally: Tally,
    *,
    hyper: dict[str, Any],
    epochs: int,
    keeps: str,
    analysis: dict[str, Any] | None = None,
) -> None:
    """Marks a fit as finished, with what came of it.

    Args:
      keeps: what is written beside it: nothing where a ``checkpoint`` of the loop holds
        the weights; ``all`` of them; or the ``head``, whose backbone is stage 1's.
    """
    directory = session.workdir / "checkpoints" / title
    # No mark beside weights that are not its own.
    processes.on_process_zero(
        lambda: (directory / "outcome.json").unlink(missing_ok=True)
    )
    if keeps == "all":
        network = {"params": fitted.params, "batch_stats": fitted.batch_stats}
        write(directory / FINAL, fitted.step, network)
    elif keeps == "head":
        head = {"params": {"head": fitted.params["head"]}}
        write(directory / FINAL, fitted.step, head)
    outcome = {
        "run": title,
        "weights": "" if keeps == "checkpoint" else FINAL,
        # What the kept weights lack is taken from here.
        "backbone": f"stage1/{seeds[0]}" if keeps == "head" else "",
        "seeds": seeds,
        "step": fitted.step,
        "epochs": epochs,
        "hyper": hyper,
        "fitted_on": session.task.splits.train.hash,
        "seconds": fitted.seconds,
        "images_per_second": fitted.images_per_second,
        # Test images that could not be decoded; no figure counts them.
        "left_out": len(session.task.splits.test) - int(tally.seen.sum()),
        **figures(session, tally, fitted.params["head"]),
        "analysis": analysis,
    }
    results.save_outcome(directory, outcome)


def done(session: Session, title: str) -> bool:
    """Whether this fit has finished here, on these examples."""
    directory = session.workdir / "checkpoints" / title
    outcome = processes.from_process_zero(lambda: results.outcome(directory))
    if outcome is None:
        return False
    now = session.task.splits.train.hash
    if (before := outcome.get("adopted_for", outcome["fitted_on"])) != now:
        raise InputError(
            f"{directory} was finished on other examples ({before}) than the data now "
            f"hold ({now}); use another --workdir"
        )
    return True
