"""Scorers: the log score and the CRPS as scikit-learn's searches take them, larger is better.

scikit-learn looks names up among its own scorers only, and gives others no way in. These are the
objects to give instead: ``scoring=pa.scorers.neg_crps``; or, by name, all of them at once:
``scoring=pa.scorers.SCORERS, refit="neg_crps"``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import MetadataRequest
from torch import Tensor

from pyralloy import scores
from pyralloy.checks import as_values
from pyralloy.columns import plain_targets
from pyralloy.mixture import Mixture

__all__ = ["SCORERS", "Scorer", "density_of", "neg_crps", "neg_log_score"]


@dataclass(frozen=True, eq=False)
class Scorer:
    """Score what an estimator predicts, called as ``scorer(estimator, X, y)``.

    The estimator is a fitted :class:`~pyralloy.MDNRegressor`, or a pipeline or a search that ends
    in one. y is in the units that it was fitted in.

    Attributes:
        name: What it is called in :data:`SCORERS`.
        loss: Gives, of densities (N,), observed values and weights or None, losses (N,) of which
            the mean is taken, with the sign turned.
        request: Whether a search hands ``sample_weight`` on, where metadata is routed.
    """

    name: str
    loss: Callable[[Mixture, Tensor, Tensor | None], Tensor]
    request: bool | str | None = None

    def __repr__(self) -> str:
        return f"scorers.{self.name}"

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Give the mean score, by weights where there are any; larger is better.

        Args:
            estimator: Fitted.
            X: Inputs, shape (N, F).
            y: Observed targets, shape (N,) or (N, D).
            sample_weight: Of the rows, shape (N,); None means all alike.

        Raises:
            TypeError: The estimator predicts no density.
            ValueError: y or weights are not of the rows of X.
        """
        density = density_of(estimator, X)
        observed = as_values("y", plain_targets(y), device=density.logits.device)
        wanted = density.batch_shape + density.event_shape
        if observed.shape == (*wanted, 1):
            observed = observed[..., 0]  # a column, which fit took for one target
        if observed.shape != wanted:
            raise ValueError(
                f"y has shape {tuple(observed.shape)} and X predicts {tuple(wanted)}: give the "
                "targets of the same rows."
            )
        weights = None
        if sample_weight is not None:
            weights = as_values("sample_weight", sample_weight, device=density.logits.device)
        return -float(self.loss(density, observed, weights).mean())

    def set_score_request(self, *, sample_weight: bool | str | None) -> Scorer:
        """Give a scorer that asks a search for weights, or does not, as scikit-learn's do."""
        return replace(self, request=sample_weight)

    def get_metadata_routing(self) -> MetadataRequest:
        """Say what is asked of a search where metadata is routed."""
        request = MetadataRequest(owner=self)
        request.score.add_request(param="sample_weight", alias=self.request)
        return request


def density_of(estimator: Any, X: Any) -> Mixture:
    """Give the density that a fitted regressor predicts, through pipelines and searches.

    Args:
        estimator: A fitted :class:`~pyralloy.MDNRegressor`; a ``Pipeline`` that ends in one; or a
            search over one.
        X: Inputs, shape (N, F).

    Returns:
        A :class:`~pyralloy.Mixture` of batch shape (N,).

    Raises:
        TypeError: The estimator predicts no density.

    Example:
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> import pyralloy as pa
        >>> problem = pa.datasets.inverse_sinusoid(200, seed=0)
        >>> X, y = problem.x.numpy(), problem.y.numpy()
        >>> pipeline = make_pipeline(StandardScaler(), pa.MDNRegressor(max_steps=50)).fit(X, y)
        >>> density_of(pipeline, X).batch_shape
        torch.Size([200])
    """
    if hasattr(estimator, "predict_density"):
        return estimator.predict_density(X)
    if isinstance(estimator, Pipeline):
        before = estimator[:-1]
        return density_of(estimator[-1], before.transform(X) if len(before) else X)
    if hasattr(estimator, "best_estimator_"):
        return density_of(estimator.best_estimator_, X)
    raise TypeError(
        f"{type(estimator).__name__} predicts no density: give a pyralloy.MDNRegressor, or a "
        "Pipeline or a search that ends in one; y needs no transformer, it is standardised within."
    )


def _crps(density: Mixture, y: Tensor, weights: Tensor | None) -> Tensor:
    if not density.event_shape:
        return scores.crps(density, y, weights=weights)
    parts = (scores.crps(density.marginal(d), y[:, d], weights=weights) for d in range(y.shape[1]))
    return torch.stack(list(parts)).mean(0)


def _log_score(density: Mixture, y: Tensor, weights: Tensor | None) -> Tensor:
    return scores.log_score(density, y, weights=weights)


#: Mean log density of y, in nats; of several targets, of all together.
neg_log_score = Scorer("neg_log_score", _log_score)

#: Minus the mean CRPS, exact, in y's units; of several targets, the mean over them.
neg_crps = Scorer("neg_crps", _crps)

#: All scorers by name, for ``scoring=SCORERS`` with ``refit="neg_log_score"``, for one.
SCORERS = {scorer.name: scorer for scorer in (neg_log_score, neg_crps)}
