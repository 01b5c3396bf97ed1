"""The features of one stage 1, and of the same without each fold of the examples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lt_jax import metrics
from lt_jax.data import longtail
from lt_jax.errors import Diverged
from lt_jax.experiment import weights
from lt_jax.experiment.checks import make_method, rates
from lt_jax.experiment.records import Config
from lt_jax.experiment.results import Validation
from lt_jax.experiment.session import Session
from lt_jax.heads import Head
from lt_jax.methods import Method
from lt_jax.metrics import Tally
from lt_jax.retraining import engine, features
from lt_jax.retraining.analysis import Unseen, analyse
from lt_jax.retraining.chunks import HeadJob, plan_chunks
from lt_jax.retraining.features import Features
from lt_jax.training.optim import Sgd
from lt_jax.types import Params, Weights


class Row(NamedTuple):
    """One head: a method at one setting, on two seeds."""

    method: str
    hyper: dict[str, Any]  # the method's entry in the config, with these values
    seeds: tuple[int, int]  # of stage 1 and of stage 2

    @property
    def title(self) -> str:
        """``los/0.2``, the folder of its outcome."""
        return f"{self.method}/{self.seeds[0]}.{self.seeds[1]}"

    @property
    def name(self) -> str:
        """``los delta=0.98 lr=0.0005 0.2``, unique among all rows."""
        numbers = " ".join(f"{key}={self.hyper[key]}" for key in sorted(self.hyper))
        return f"{self.method} {numbers} {self.seeds[0]}.{self.seeds[1]}"


class FeatureCache:
    """A stage 1 with a frozen backbone, and the features of every split."""

    def __init__(self, session: Session, seed: int, network: Weights):
        self.session = session
        self.seed = seed  # of stage 1
        self.network = network
        self._features: dict[str, Features] = {}
        self._taken: Callable[[], Features] | None = None  # copies those of a fold

    def features(self, name: str) -> Features:
        """Return the features of a split: ``train``, ``valid`` or ``test``.

        ``plain`` are those of the training images without augmentation.
        """
        session, m = self.session, self.session.config.method
        name = "train" if name == "plain" and m.views == 1 else name
        if name == "train" and self._taken:
            return self._taken()
        if name not in self._features:
            varied = ("random",) * m.views if m.views > 1 else ("plain",)
            held_out = ("plain", "mirror") if session.task.flip else ("plain",)
            views = {"train": varied, "plain": ("plain",)}.get(name, held_out)
            self._features[name] = features.cached_features(
                session.task,
                self.network,
                getattr(session.task.splits, "train" if name == "plain" else name),
                features.Request(views, (3, self.seed), m.feature_dtype),
                session.workdir / "features" / f"{self.seed}" / f"{name}.npy",
            )
        return self._features[name]

    @functools.cached_property
    def folds(self) -> list[FeatureCache]:
        """The features without each fold of ``eval.folds``, which is ``valid`` there.

        Their stage 1 has not seen it either.
        """
        session, c = self.session, self.session.config
        if not c.eval.folds:
            return []
        splits, train = session.task.splits, self.features("train")
        given = c.eval.folds, c.data.valid_seed, len(splits.full_class_counts)
        found = []
        for kept, held in longtail.cross_validation(train.labels, *given):
            part = dataclasses.replace(splits, train=splits.train.take(kept))
            inner = session._replace(task=session.task._replace(splits=part))
            fold = FeatureCache(inner, self.seed, self.network)
            fold._taken = functools.partial(train.take, kept)
            fold._features = {"valid": train.take(held), "test": self.features("test")}
            params = {**self.network.params, "head": _stage1_head(fold)}
            fold.network = self.network._replace(params=params)
            found.append(fold)
        return found

    @functools.cached_property
    def origin(self) -> dict[str, Any]:
        """What heads depend on, apart from their rows."""
        c = self.session.config
        m, folds = c.method, [c.eval.folds, c.data.valid_seed]
        return {
            **({"folds": folds} if c.eval.folds else {}),
            "fitted_on": self.session.task.splits.train.hash,
            "network": features.fingerprint(self.network._asdict()),
            "views": m.views,
            "dtype": m.feature_dtype,
        }

    def method(self, row: Row) -> Method:
        counts = self.session.task.splits.train.class_counts
        return make_method(row.method, counts, row.hyper)

    def measure(self, head: Head, many: Sequence[Params], split: str) -> list[Tally]:
        """Compute the tallies of many heads of one kind on a split."""
        budget, batch = budget_of(self.session.config), self.session.task.eval_batch
        return engine.measure_heads(head, many, self.features(split), batch, budget)

    def unseen(self, heads: Sequence[Params]) -> Unseen:
        """Pair the heads of a row, see ``fit_rows``, with examples to validate each."""
        parts = self.folds or [self]
        return [
            (head, part.features("valid"))
            for head, part in zip(heads[-len(parts) :], parts, strict=True)
        ]

    def validate(self, head: Head, rows: Sequence[Sequence[Params]]) -> list[Tally]:
        """Compute the tallies of rows on examples that their heads have not seen."""
        parts = self.folds or [self]
        tallies = (
            part.measure(head, [heads[number] for heads in rows], "valid")
            for number, part in enumerate(parts, -len(parts))
        )
        return [functools.reduce(metrics.merge, t) for t in zip(*tallies, strict=True)]

    def analyse(
        self, head: Head, heads: Sequence[Params]
    ) -> tuple[dict[str, Any], Validation | None]:
        """Make the ``analysis`` object of an outcome, and measure on validation."""
        task, test = self.session.task, self.features("test")
        given = test, task.groups, task.eval_batch
        found = analyse(head, heads[0], self.unseen(heads), *given)
        ids = task.splits.test.ids
        shifted = len(ids) != len(test.labels)  # by undecodable images
        mistakes = [] if shifted else found["mistakes"]
        found["mistakes"] = [{**m, "id": str(ids[m["row"]])} for m in mistakes]
        if not found["temperature"]:
            return found, None
        (tally,) = self.validate(head, [heads])
        return found, Validation(tally, found["temperature"])


def _stage1_head(cache: FeatureCache) -> Params:
    """Fit the head of stage 1 as the training loop does.

    Raises:
      Diverged: the loss is not finite.
    """
    session, order = cache.session, (1, cache.seed)
    c, method = session.config, session.methods["stage1"]
    o, features = c.optim, cache.features("train")
    given = session.task, c.model.init, cache.network, method, order
    job = HeadJob(
        run="stage1",
        method=method,
        start=weights.with_head(*given).params["head"],
        rates=rates(o, o.lr, o.epochs, len(features.labels)),
        epochs=o.epochs,
        sgd=Sgd(o.momentum, o.decay, o.decay_on, "head/"),
        order=order,
    )
    budget = budget_of(c)
    plan = plan_chunks([job], o.batch, budget)

    def after_epoch(_: int) -> None:
        session.raise_if_stopped("stage 1 without each fold, which restarts")

    ((_, (fit,)),) = engine.fit_heads(plan, features, o.batch, budget, after_epoch)
    if fit.diverged:
        raise Diverged(
            f"stage1/{cache.seed} without a fold diverged: the loss is not finite at "
            f"step {fit.diverged:,}; lower optim.lr, or choose by a validation set "
            "with eval.folds=0"
        )
    return fit.head


def budget_of(config: Config) -> float:
    """Return the bytes per device for features; heads may take as many."""
    return config.method.memory * 2**30 / 2
