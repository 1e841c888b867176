"""MDNRegressor: the scikit-learn face."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch.nn.functional import pad

from pyralloy import recipe
from pyralloy.checks import as_values, integer
from pyralloy.columns import Cells, Columns, plain_targets
from pyralloy.families import Family
from pyralloy.heads import MixtureHead
from pyralloy.inference.fit import Fit
from pyralloy.inference.rows import require_support
from pyralloy.methods import INFERENCE, Data, family_of_y, require_known
from pyralloy.mixture import Mixture
from pyralloy.model import MDN
from pyralloy.multiset import multiset, row_weights
from pyralloy.networks import ACTIVATIONS, MLP
from pyralloy.priors import FanIn
from pyralloy.scorers import neg_log_score
from pyralloy.seeds import seeded

__all__ = ["MDNRegressor"]


class MDNRegressor(RegressorMixin, BaseEstimator):
    """Regress a whole distribution of y on X, in scikit-learn's manner.

    X may be a data frame of pandas or polars with words, categories and missing values; see
    :class:`~pyralloy.columns.Columns` for what becomes of them. y has one column or several, whose
    density then is joint, and no missing values.

    ``sample_weight`` counts rows: one of weight 2 is two rows, one of weight 0 is none. With
    ``inference="ml"`` only the ratios matter; beside a prior their sum is the number of rows, so
    that weights which only tell rows apart are best given a mean of 1. A fit depends on which rows
    there are, how often, and not on their order: they are sorted and shuffled anew before it. Where
    weights are whole numbers, rows are repeated as often, up to 100,000 of them or 20 times the
    distinct ones, whichever is more; so that a table with weights and the same table with repeats
    give the same fit to the bit. Copies of a row are held out together.

    Args:
        components: Number of components K of the mixture.
        hidden: Widths of the hidden layers.
        activation: ``"silu"``, ``"relu"``, ``"tanh"``, ``"gelu"``, ``"elu"`` or ``"mish"``.
        bins: Bins a column of the :class:`~pyralloy.networks.PiecewiseLinear` encoding that X goes
            through; 0 for none. None takes 16, fewer of few rows, and none of a single column or
            with ``"nuts"``.
        family: Kind of component, by its name in :data:`pyralloy.families.FAMILIES`, for instance
            ``"normal"``, ``"student_t"``, ``"gamma"`` or ``"poisson"``; or a
            :class:`~pyralloy.families.Family` on the line, above 0 or on an interval, for instance
            ``families.TruncatedNormalFamily(0, 100)`` where y lies strictly between 0 and 100.
        covariance: Of several targets within a component: ``"diagonal"``; for ``"normal"`` and
            ``"student_t"`` also ``"full"`` or ``"low_rank"``, of one factor.
        inference: How the weights are found: ``"ml"``, maximum likelihood; ``"map"``, the most
            probable ones under a prior; or a posterior, of which predictions pool draws: ``"vi"``,
            a Normal of each weight; ``"laplace"``, a Normal of the last layer's weights about those
            that ``"ml"`` finds (with ``validation=None`` and no ``x_noise``, the most probable
            ones); ``"nuts"``, Markov chains, for small networks and few rows.
        members: Networks M, each from a start of its own, whose densities are pooled exactly; side
            by side with ``"ml"`` and ``"laplace"``, else one after the other. Not with ``"nuts"``.
        prior_scale: Scale s of the prior, a Normal of deviation s / sqrt(fan-in) for weights and s
            for biases, where X and y are standardised; of no effect with ``"ml"``.
        temperature: T of the posterior, in which the likelihood is raised to the power 1 / T. Below
            1 it is narrower than Bayes', which large networks often predict better by (and of
            ``"map"`` the prior counts less). Must be 1 with ``"ml"``, which has no posterior.
        draws: Draws of the weights that a prediction pools, and that ``"nuts"`` makes, in 2 chains.
        learning_rate: Peak of the schedule. It, ``schedule``, ``patience`` and ``compile`` are
            those of training, which ``"nuts"`` does none of.
        schedule: Of the learning rate: ``"one_cycle"``, ``"cosine"`` or ``"constant"``.
        batch_size: Rows a step; None takes a sixty-fourth of the training rows, within 64 and 512.
        max_steps: Steps of the schedule; None takes 3,000, or those that see each row ten times,
            whichever is more. With ``"nuts"`` those of the fits from which chains start, and the
            iterations of their warm-up, 500 of each at the most; and an iteration takes about as
            many gradients at the most, and 1,024.
        validation: Fraction of the rows held out to choose the weights, a pair ``(X, y)``, or None.
            Chains of ``"nuts"`` take all rows.
        stretch: Whether, in the end, the widths of all components are multiplied by one number,
            about the best on the rows held out, and weights are chosen accordingly (``"nuts"``
            holds none out).
        x_noise: Standard deviation of noise on the inputs of each step of training, in standard
            deviations of each, as in :func:`pyralloy.fit`. Not with ``"nuts"``.
        patience: Hundredths of the steps without improvement that end the fit; None runs all.
        compile: How a step is run: False, True or ``"auto"``, as in :func:`pyralloy.fit`.
        device: Where to train and predict, for instance ``"cuda"``; None is the CPU.
        progress: Whether to show a progress bar.
        random_state: Seed: an int, a ``numpy.random.RandomState``, or None for fresh randomness.

    Attributes:
        fit_: The :class:`~pyralloy.Fit`. It, and the file that its ``save`` writes, takes numbers:
            ``columns_.transform(columns_.read(regressor, X))`` makes them of a data frame with
            words or missing values. Pickle or joblib keep the regressor as a whole.
        columns_: The :class:`~pyralloy.columns.Columns` that turn X into numbers.
        n_features_in_: Number of features F seen in ``fit``.
        feature_names_in_: Their names, where X was a data frame.

    References:
        Bishop, C. M. (1994). Mixture density networks. Aston University, NCRG/94/004.

    Example:
        >>> from pyralloy import datasets
        >>> problem = datasets.inverse_sinusoid(500, seed=0)
        >>> X, y = problem.x.numpy(), problem.y.numpy()
        >>> mdn = MDNRegressor(components=5, max_steps=200, random_state=0).fit(X, y)
        >>> mdn.predict_quantile(X[:4], [0.05, 0.5, 0.95]).shape
        (3, 4)
        >>> mdn.predict_density(X[:4]).num_components
        5
    """

    def __init__(
        self,
        components: int = 10,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        *,
        bins: int | None = None,
        family: str | Family = "normal",
        covariance: str = "diagonal",
        inference: str = "ml",
        members: int = 1,
        prior_scale: float = 1.0,
        temperature: float = 1.0,
        draws: int = 100,
        learning_rate: float = 0.005,
        schedule: str = "one_cycle",
        batch_size: int | None = None,
        max_steps: int | None = None,
        validation: float | tuple[Any, Any] | None = 0.1,
        stretch: bool = True,
        x_noise: float = 0.0,
        patience: int | None = None,
        compile: bool | Literal["auto"] = False,  # noqa: A002 - as torch spells it
        device: str | torch.device | None = None,
        progress: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.components = components
        self.hidden = hidden
        self.activation = activation
        self.bins = bins
        self.family = family
        self.covariance = covariance
        self.inference = inference
        self.members = members
        self.prior_scale = prior_scale
        self.temperature = temperature
        self.draws = draws
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.validation = validation
        self.stretch = stretch
        self.x_noise = x_noise
        self.patience = patience
        self.compile: bool | Literal["auto"] = compile
        self.device = device
        self.progress = progress
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MDNRegressor:
        """Fit to data.

        Args:
            X: Inputs, shape (N, F): array, tensor or data frame. Words only in a data frame.
            y: Targets, shape (N,), or (N, D) for D dependent targets.
            sample_weight: How often each row counts, shape (N,), not negative; None means once.

        Returns:
            The regressor itself.

        Raises:
            KeyboardInterrupt: Ctrl-C; ``fit_`` then holds the best weights so far.
            TypeError: An argument of the wrong type; strings in y; times in X.
            ValueError: NaN in y, infinity or no rows; lengths that differ; constant y; complex y,
                or none; an argument out of range.
        """
        self.__dict__.pop("fit_", None)  # a fit that fails leaves no older one behind
        targets = as_values("y", plain_targets(y))
        if targets.ndim == 2 and targets.shape[1] == 1:
            message = "y is a column, (N, 1); it is taken as (N,), of one scalar target."
            warnings.warn(message, DataConversionWarning, stacklevel=2)
        targets = _without_column(targets)
        columns = Columns()
        cells = columns.learn(self, X)
        if len(cells.numbers) != len(targets):
            raise ValueError(
                f"X has {len(cells.numbers)} rows and y has {len(targets)}: they must be the same "
                "observations."
            )
        if targets.ndim > 2:
            raise ValueError(f"y has shape {tuple(targets.shape)}: give (N,) or (N, D).")
        require_known(self)
        seed = self._seed()
        require_support(targets, family_of_y(self.family))  # while rows have the user's numbers
        cells, targets, weights, size = _counted(columns, cells, targets, sample_weight, seed)
        numbers = columns.fit_transform(cells)
        self.columns_ = columns
        count = targets.shape[1] if targets.ndim > 1 else None
        self.fit_: Fit = INFERENCE[self.inference].run(
            self,
            lambda each: self._model(numbers.shape, count, each),
            Data(numbers, targets, weights, size, self._validation()),
            seed,
        )
        if self.fit_.interrupted:
            # A search over many fits should stop here too; what was fitted is kept.
            raise KeyboardInterrupt("fit was interrupted; fit_ holds the best weights so far.")
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Give the conditional mean of y, shape (N,) or (N, D), in y's units.

        Where y has several branches the mean lies between them, and y may never be there: ask
        :meth:`predict_density` for its modes and quantiles then.
        """
        return self.predict_density(X).mean.cpu().numpy()

    def predict_density(self, X: Any) -> Mixture:
        """Give the conditional density of y.

        Args:
            X: Inputs, shape (N, F), with the columns that ``fit`` saw.

        Returns:
            A :class:`~pyralloy.Mixture` of batch shape (N,).

        Raises:
            NotFittedError: ``fit`` has not been called.
            ValueError: Infinity, or columns other than ``fit`` saw.
        """
        check_is_fitted(self, "fit_")
        # In single precision the last digits of a row would depend on the rows beside it.
        wide = replace(self.fit_, model=deepcopy(self.fit_.model).double())
        return wide.density(self._inputs(X), self.draws)

    def predict_quantile(self, X: Any, levels: float | Sequence[float]) -> NDArray[np.float64]:
        """Give quantiles of y, of each target by itself where there are several.

        Args:
            X: Inputs, shape (N, F).
            levels: One probability in (0, 1), or Q of them.

        Returns:
            Shape (Q, N), or (Q, N, D) for D targets; without the first dimension for one level.
        """
        return _stacked([d.quantile(levels) for d in self._scalars(X)], -1)

    def predict_interval(self, X: Any, level: float = 0.9) -> NDArray[np.float64]:
        """Give the equal-tailed interval of y, of each target by itself where there are several.

        Args:
            X: Inputs, shape (N, F).
            level: Probability inside, in (0, 1).

        Returns:
            Lower and upper ends in y's units, shape (N, 2), or (N, D, 2) for D targets.
        """
        return _stacked([torch.stack(d.interval(level), -1) for d in self._scalars(X)], 1)

    def predict_region(self, X: Any, level: float = 0.9) -> NDArray[np.float64]:
        """Give the smallest region that holds y with a probability: a union of intervals.

        Where y has several branches it leaves out what lies between them. Of several targets it is
        that of each by itself; ``predict_density(X).level_set(level)`` is that of all together.

        Args:
            X: Inputs, shape (N, F).
            level: Probability inside, in (0, 1).

        Returns:
            Lower and upper ends in y's units, shape (N, R, 2), or (N, D, R, 2) for D targets. R is
            the largest number of intervals; rows that have fewer end in NaN.
        """
        ends = [d.highest_density_region(level).intervals for d in self._scalars(X)]
        most = max(each.shape[-2] for each in ends)
        padded = [pad(each, (0, 0, 0, most - each.shape[-2]), value=math.nan) for each in ends]
        return _stacked(padded, 1)

    def sample(self, X: Any, draws: int = 1) -> NDArray[np.float64]:
        """Draw from the conditional density of y, shape (draws, N) or (draws, N, D).

        With an integer ``random_state`` the same call gives the same draws.
        """
        density = self.predict_density(X)
        generator = torch.Generator(density.logits.device).manual_seed(self._seed())
        return density.sample((integer("draws", draws),), generator=generator).cpu().numpy()

    def log_score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Give the mean negative log density of ``y``, in nats in y's units: smaller is better.

        Args:
            X: Inputs, shape (N, F).
            y: Observed targets, shape (N,) or (N, D).
            sample_weight: Of the rows, shape (N,); None means all alike.

        Raises:
            ValueError: ``y`` is not of the shape that ``X`` predicts.
        """
        return -neg_log_score(self, X, y, sample_weight)

    def _scalars(self, X: Any) -> list[Mixture]:
        """Give the density of y, or of each target."""
        density = self.predict_density(X)
        if not density.event_shape:
            return [density]
        return [density.marginal(d) for d in range(density.event_shape[0])]

    def _inputs(self, X: Any) -> Any:
        """Give the numbers that the network takes."""
        return self.columns_.transform(self.columns_.read(self, X))

    def _model(self, shape: Sequence[int], targets: int | None, seed: int) -> MDN:
        rows, features = shape
        method, hidden, bins = INFERENCE[self.inference], self.hidden, self.bins
        if bins is None:
            bins = recipe.bins(rows, features) if method.encodes else 0
        if isinstance(hidden, np.ndarray | list):
            hidden = tuple(hidden)
        # Layers draw their first weights from torch's default generator, which is put back.
        with seeded(seed):
            trunk = MLP(features, hidden, ACTIVATIONS[self.activation], bins=bins)
            head = MixtureHead(
                trunk.out_features,
                self.components,
                targets,
                family=self.family,
                covariance=self.covariance,
            )
            prior = method.prior(FanIn(self.prior_scale))
            return MDN(trunk, head, prior=prior)

    def _validation(self) -> float | tuple[Any, ...] | None:
        """Treat the columns of a validation pair as those of X, and its targets as y."""
        if isinstance(self.validation, tuple | list) and len(self.validation) in (2, 3):
            X, y, *weights = self.validation
            targets = as_values("y of validation", plain_targets(y))
            return self._inputs(X), _without_column(targets), *weights
        return self.validation

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.allow_nan = True
        return tags

    def _seed(self) -> int:
        try:
            return int(check_random_state(self.random_state).randint(2**31 - 1))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"random_state={self.random_state!r}: give an integer of 0 or more, a "
                "numpy.random.RandomState, or None."
            ) from error


def _without_column(targets: torch.Tensor) -> torch.Tensor:
    """Give targets (N, 1) as (N,), and others as they are."""
    return targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets


def _stacked(each: list[torch.Tensor], dim: int) -> NDArray[np.float64]:
    """Stack what was found of each target; of one there is nothing to stack."""
    return (each[0] if len(each) == 1 else torch.stack(each, dim)).cpu().numpy()


def _counted(
    columns: Columns, cells: Cells, targets: torch.Tensor, sample_weight: Any, seed: int
) -> tuple[Cells, torch.Tensor, NDArray[np.float64] | None, float | None]:
    """Give rows in an order of their own, repeated by whole weights; other weights; their sum."""
    weights = row_weights(sample_weight, len(targets))
    if weights is not None:
        counted = np.flatnonzero(weights)
        cells, targets, weights = cells.at(counted), targets[counted], weights[counted]
    y = targets.cpu().numpy().reshape(len(targets), -1)
    chosen = multiset(np.concatenate([columns.codes(cells), y], 1), weights, seed)
    size = None if chosen.weights is None else chosen.size
    return cells.at(chosen.rows), targets[chosen.rows], chosen.weights, size
