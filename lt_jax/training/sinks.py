"""Other places for the records of a run: TensorBoard, Weights & Biases, MLflow.

Each is an extra of the package. One that fails is dropped with a warning: the files of
the workdir are complete without it. Every command in a workdir continues the same run.
"""

from __future__ import annotations

import contextlib
import functools
import html
import importlib.util
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax.errors import InputError, brief
from lt_jax.files import as_json, read_json, write

# The extra that installs a sink, and its module.
MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "lt_jax"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set

Values = Mapping[str, Any]


class Sink(NamedTuple):
    """What one library does with records."""

    record: Callable[[str, int, Values, Values], None]  # (fit, step, numbers, arrays)
    text: Callable[[str, str], None]  # (name, Markdown); replaces an earlier one
    close: Callable[[], None]


class Sinks:
    """The sinks of a run.

    Args:
      names: keys of ``MODULES``.
      about: JSON values that describe the run: ``config`` and ``dataset``.
      warn: gets one line about a sink that fails.
    """

    def __init__(
        self,
        names: Iterable[str],
        workdir: Path,
        about: dict[str, Any],
        warn: Callable[[str], None],
    ):
        self._warn, self._open = warn, dict[str, Sink]()
        for name in names:
            with self._dropped_if_it_fails(name):
                self._open[name] = OPEN[name](workdir, _run_id(workdir), about)
        self.each("text", "config", f"```json\n{json.dumps(about, indent=2)}\n```")

    def record(self, fit: str, step: int, values: Values, per_class: Values) -> None:
        """Send the finite numbers among ``values``, and histograms over classes."""
        numbers = {k: float(v) for k, v in values.items() if v is not None}
        numbers = {k: v for k, v in numbers.items() if np.isfinite(v)}
        arrays = {k: np.asarray(v, np.float64) for k, v in per_class.items()}
        finite = {f"per_class/{k}": v[np.isfinite(v)] for k, v in arrays.items()}
        given = numbers, {k: v for k, v in finite.items() if v.size}
        self.each("record", fit, step, *given)

    def each(self, what: str, *given: Any) -> None:
        """Call a function of every sink, by its name in ``Sink``."""
        for name, sink in [*self._open.items()]:
            with self._dropped_if_it_fails(name):
                getattr(sink, what)(*given)

    @contextlib.contextmanager
    def _dropped_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a library, its server, or the file system
            self._open.pop(name, None)
            reason = f"{type(error).__name__}: {brief(error)}"
            self._warn(f"log.sinks: {name} failed and is left out from now ({reason})")


def check_installed(names: Iterable[str]) -> None:
    """Raise InputError if the package of a sink is missing."""
    for name in names:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise InputError(
                f"log.sinks: {name} needs {MODULES[name]}, which is not installed: pip "
                f"install 'lt_jax[{name}]', or remove it from log.sinks"
            )


def _run_id(workdir: Path) -> str:
    file = workdir / "sinks.json"
    if not file.exists():
        write(file, as_json({"id": uuid.uuid4().hex}))
    return read_json(file, {"id": str}, "Remove it, for a new run in the sinks")["id"]


def _tensorboard(workdir: Path, run_id: str, about: dict[str, Any]) -> Sink:
    """Write event files below ``tensorboard/``, a folder for each fit."""
    from tensorboardX import SummaryWriter  # pyright: ignore

    writers: dict[str, Any] = {}

    def writer(fit: str) -> Any:
        if fit not in writers:
            close()  # one at a time is enough
            suffix = f".{time.time_ns()}"  # unique, for two commands in one second
            folder = str(workdir / "tensorboard" / fit)
            writers[fit] = SummaryWriter(folder, filename_suffix=suffix)
        return writers[fit]

    def record(fit: str, step: int, numbers: Values, arrays: Values) -> None:
        for name, value in numbers.items():
            writer(fit).add_scalar(name, value, step)
        for name, values in arrays.items():
            writer(fit).add_histogram(name, values, step)
        writer(fit).flush()

    def text(name: str, text: str) -> None:
        writer("").add_text(name, text, 0)
        writer("").flush()

    def close() -> None:
        while writers:
            writers.popitem()[1].close()

    return Sink(record, text, close)


def _wandb(workdir: Path, run_id: str, about: dict[str, Any]) -> Sink:
    """Log to one run, in which the names of metrics begin with the fit."""
    import wandb  # pyright: ignore

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=run_id,
        name=workdir.name,
        resume="allow",
        dir=str(workdir),
        config=about,
        settings=wandb.Settings(console="off", login_timeout=60),
    )
    defined = set[str]()

    def record(fit: str, step: int, numbers: Values, arrays: Values) -> None:
        if fit not in defined:
            defined.add(fit)
            run.define_metric(f"{fit}/*", step_metric=f"{fit}/step")
        histograms = {k: wandb.Histogram(v.tolist()) for k, v in arrays.items()}
        values = {**numbers, **histograms, "step": step}
        run.log({f"{fit}/{name}": value for name, value in values.items()})

    def text(name: str, text: str) -> None:
        run.log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>")})

    return Sink(record, text, run.finish)


def _mlflow(workdir: Path, run_id: str, about: dict[str, Any]) -> Sink:
    """Log to one run, as ``_wandb``; histograms are lists in JSON files."""
    # By default it tries an unreachable server for several minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient  # pyright: ignore
    from mlflow.entities import Metric  # pyright: ignore

    client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    runs = client.search_runs([experiment], f"tags.lt_jax_id = '{run_id}'")
    tags = {"lt_jax_id": run_id, "split_hash": str(about["dataset"]["split_hash"])}
    create = functools.partial(client.create_run, experiment, run_name=workdir.name)
    run = (runs[0] if runs else create(tags=tags)).info.run_id
    client.update_run(run, "RUNNING")

    def record(fit: str, step: int, numbers: Values, arrays: Values) -> None:
        now = round(time.time() * 1000)
        metrics = [Metric(f"{fit}/{k}", v, now, step) for k, v in numbers.items()]
        client.log_batch(run, metrics=metrics)
        lists = {name: values.tolist() for name, values in arrays.items()}
        client.log_dict(run, lists, f"per_class/{fit}/{step}.json")

    def text(name: str, text: str) -> None:
        client.log_text(run, text, f"{name}.md")

    return Sink(record, text, lambda: client.set_terminated(run))


OPEN: dict[str, Callable[[Path, str, dict[str, Any]], Sink]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
