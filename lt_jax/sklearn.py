"""A scikit-learn estimator of the methods (extra ``sklearn``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from lt_jax.api import fit_head
from lt_jax.choice import choose_head
from lt_jax.errors import InputError

AUTO = "auto"


class LongTailClassifier(ClassifierMixin, BaseEstimator):
    """Linear classifier for long-tailed data, by any method of ``methods.METHODS``.

    There is no ``sample_weight``: a method weights or samples classes by their counts,
    and weights per example would change what it is.

    >>> from sklearn.datasets import load_digits
    >>> features, labels = load_digits(return_X_y=True)
    >>> kept = (labels < 5) | (np.arange(len(labels)) % 20 == 0)
    >>> model = LongTailClassifier("logistic").fit(features[kept], labels[kept])
    >>> bool(model.score(features, labels) > 0.8)
    True

    Args:
      method: a key of ``methods.METHODS``, or ``auto``: see ``choice.choose_head``.
      hyper: values that replace published ones, such as ``{"lr": 0.1}``.
      batch: examples per step.
      random_state: seed of the order of examples and of initial values.

    Attributes:
      classes_: labels, sorted.
      head_: the fitted ``api.FittedHead``.
      choice_: the ``selection.Recommendation`` of ``auto``.
    """

    def __init__(
        self,
        method: str = "crt",
        *,
        hyper: Mapping[str, Any] | None = None,
        batch: int = 64,
        random_state: Any = 0,
    ):
        self.method = method
        self.hyper = hyper
        self.batch = batch
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> LongTailClassifier:
        """Fit the stage-1 head if the method continues from one, then the method.

        Args:
          X: float[N, D].
          y: labels [N], integers or strings.
        """
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"expected at least 2 classes in y, got 1 class: {y[0]}")
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        how: Any = {"batch": self.batch, "seed": seed}
        if self.method == AUTO:
            self.choice_, self.head_ = choose_head(X, labels, **how)
        else:
            given: Any = {"method": self.method, "hyper": self.hyper}
            self.head_ = fit_head(X, labels, **given, **how)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute logits, float64[N, K]; their difference, [N], for two classes."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Compute the softmax of the logits, float64[N, K]; it is not calibrated."""
        return softmax(self._logits(X), axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the label with the largest logit for each example."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        return self.head_.logits(X).astype(np.float64)
