"""MDNRegressor: the scikit-learn face."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from pyralloy.checks import as_values, integer, paired
from pyralloy.columns import Cells, Columns
from pyralloy.families import FAMILIES
from pyralloy.heads import MixtureHead
from pyralloy.inference.ensemble import ensemble
from pyralloy.inference.fit import Fit
from pyralloy.inference.mcmc import nuts
from pyralloy.inference.rows import require_support
from pyralloy.inference.schedules import constant, cosine, one_cycle
from pyralloy.inference.svi import fit
from pyralloy.mixture import Mixture
from pyralloy.model import MDN
from pyralloy.multiset import multiset
from pyralloy.networks import ACTIVATIONS, MLP
from pyralloy.priors import FanIn, LastLayer, Prior

__all__ = ["MDNRegressor"]


class Data(NamedTuple):
    """What a fit is given: inputs, targets, how much each row counts, and what is held out."""

    X: Any
    y: Any
    weights: Any
    size: float | None
    validation: float | tuple[Any, ...] | None


#: Makes the model of a seed.
Make = Callable[[int], MDN]


class Inference(NamedTuple):
    """A method of inference: the prior it takes, and how it runs."""

    prior: Callable[[Prior], Prior | None]
    run: Callable[[Any, Make, Data, int], Fit]


def _by_guide(guide: Any) -> Callable[[Any, Make, Data, int], Fit]:
    return lambda regressor, make, data, seed: regressor._fit_guide(make, data, seed, guide)


def _none(_prior: Prior) -> None:
    return None


def _all(prior: Prior) -> Prior:
    return prior


#: Most iterations of warm-up of a chain, and steps of the fit from which it starts.
MOST_WARM_UP = 500

#: Schedules of the learning rate by the name that opens them at the door.
SCHEDULES = {"one_cycle": one_cycle, "cosine": cosine, "constant": constant}

#: Methods of inference by the name that opens them at the door.
INFERENCE = {
    "ml": Inference(_none, _by_guide(None)),
    "map": Inference(_all, _by_guide(AutoDelta)),
    "vi": Inference(_all, _by_guide(AutoNormal)),
    "laplace": Inference(LastLayer, _by_guide(AutoLaplaceApproximation)),
    "nuts": Inference(
        _all, lambda regressor, make, data, seed: regressor._fit_chains(make, data, seed)
    ),
}


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
        family: Kind of component, by its name in :data:`pyralloy.families.FAMILIES`, for instance
            ``"normal"``, ``"student_t"``, ``"gamma"`` or ``"poisson"``.
        covariance: Of several targets within a component: ``"diagonal"``; for ``"normal"`` and
            ``"student_t"`` also ``"full"`` or ``"low_rank"``, of one factor.
        inference: How the weights are found: ``"ml"``, maximum likelihood; ``"map"``, the most
            probable ones under a prior; or a posterior, of which predictions pool draws: ``"vi"``,
            a Normal of each weight; ``"laplace"``, a Normal of the last layer's weights about the
            most probable ones; ``"nuts"``, Markov chains, for small networks and few rows.
        members: Networks M, each from a start of its own, whose densities are pooled exactly; side
            by side with ``"ml"``, else one after the other. Not with ``"nuts"``.
        prior_scale: Scale s of the prior, a Normal of deviation s / sqrt(fan-in) for weights and s
            for biases, where X and y are standardised; of no effect with ``"ml"``.
        draws: Draws of the weights that a prediction pools, and that ``"nuts"`` makes, in 2 chains.
        learning_rate: Peak of the schedule.
        schedule: Of the learning rate: ``"one_cycle"``, ``"cosine"`` or ``"constant"``.
        batch_size: Rows a step; None takes a sixteenth of the training rows, within 16 and 128.
        max_steps: Steps of the schedule; with ``"nuts"`` those of the fits from which chains start,
            and the iterations of their warm-up, 500 of each at the most.
        validation: Fraction of the rows held out to choose the weights, a pair ``(X, y)``, or None.
        patience: Evaluations without improvement (of 100) that end the fit; None runs all steps.
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
        components: int = 20,
        hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        *,
        family: str = "normal",
        covariance: str = "diagonal",
        inference: str = "ml",
        members: int = 1,
        prior_scale: float = 1.0,
        draws: int = 100,
        learning_rate: float = 0.015,
        schedule: str = "one_cycle",
        batch_size: int | None = None,
        max_steps: int = 1500,
        validation: float | tuple[Any, Any] | None = 0.1,
        patience: int | None = None,
        compile: bool | Literal["auto"] = False,  # noqa: A002 - as torch spells it
        device: str | torch.device | None = None,
        progress: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.components = components
        self.hidden = hidden
        self.activation = activation
        self.family = family
        self.covariance = covariance
        self.inference = inference
        self.members = members
        self.prior_scale = prior_scale
        self.draws = draws
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.validation = validation
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
        targets = as_values("y", _numbers(y))
        if targets.ndim == 2 and targets.shape[1] == 1:
            message = "y is a column, (N, 1); it is taken as (N,), of one scalar target."
            warnings.warn(message, DataConversionWarning, stacklevel=2)
            targets = targets[:, 0]
        columns = Columns()
        cells = columns.learn(self, X)
        paired(cells.numbers, targets)
        if targets.ndim > 2:
            raise ValueError(f"y has shape {tuple(targets.shape)}: give (N,) or (N, D).")
        self._known()
        seed = self._seed()
        require_support(targets, FAMILIES[self.family])  # while rows have the user's numbers
        cells, targets, weights, size = _counted(columns, cells, targets, sample_weight, seed)
        numbers = columns.fit_transform(cells)
        self.columns_ = columns
        width, count = numbers.shape[1], targets.shape[1] if targets.ndim > 1 else None
        self.fit_: Fit = INFERENCE[self.inference].run(
            self,
            lambda each: self._model(width, count, each),
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

    def predict_quantile(
        self,
        X: Any,
        levels: float | Sequence[float],
    ) -> NDArray[np.float64]:
        """Give quantiles of y, of each target by itself where there are several.

        Args:
            X: Inputs, shape (N, F).
            levels: One probability in (0, 1), or Q of them.

        Returns:
            Shape (Q, N), or (Q, N, D) for D targets; without the first dimension for one level.
        """
        density = self.predict_density(X)
        if not density.event_shape:
            return density.quantile(levels).cpu().numpy()
        each = [density.marginal(d).quantile(levels) for d in range(density.event_shape[0])]
        return torch.stack(each, -1).cpu().numpy()

    def sample(self, X: Any, draws: int = 1) -> NDArray[np.float64]:
        """Draw from the conditional density of y, shape (draws, N) or (draws, N, D).

        With an integer ``random_state`` the same call gives the same draws.
        """
        density = self.predict_density(X)
        generator = torch.Generator(density.logits.device).manual_seed(self._seed())
        return density.sample((integer("draws", draws),), generator=generator).cpu().numpy()

    def log_score(self, X: Any, y: Any) -> float:
        """Give the mean negative log density of ``y``, in nats in y's units: smaller is better.

        Args:
            X: Inputs, shape (N, F).
            y: Observed targets, shape (N,) or (N, D).

        Raises:
            ValueError: ``y`` is not of the shape that ``X`` predicts.
        """
        density = self.predict_density(X)
        observed = as_values("y", y, device=density.logits.device)
        wanted = density.batch_shape + density.event_shape
        if observed.shape != wanted:
            raise ValueError(
                f"y has shape {tuple(observed.shape)} and X predicts {tuple(wanted)}: "
                "give the targets of the same rows."
            )
        return -float(density.log_prob(observed).mean())

    def _known(self) -> None:
        """Look up every name."""
        for name, value, known in (
            ("activation", self.activation, ACTIVATIONS),
            ("family", self.family, FAMILIES),
            ("inference", self.inference, INFERENCE),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown: choose one of {sorted(known)}.")

    def _inputs(self, X: Any) -> Any:
        """Give the numbers that the network takes."""
        return self.columns_.transform(self.columns_.read(self, X))

    def _model(self, features: int, targets: int | None, seed: int) -> MDN:
        hidden = self.hidden
        if isinstance(hidden, np.ndarray | list):
            hidden = tuple(hidden)
        # Layers draw their first weights from torch's default generator, which is put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk = MLP(features, hidden, ACTIVATIONS[self.activation])
            head = MixtureHead(
                trunk.out_features,
                self.components,
                targets,
                family=self.family,
                covariance=self.covariance,
            )
            prior = INFERENCE[self.inference].prior(FanIn(self.prior_scale))
            return MDN(trunk, head, prior=prior)

    def _validation(self) -> float | tuple[Any, ...] | None:
        """Treat the columns of a validation pair as those of X."""
        if isinstance(self.validation, tuple | list) and len(self.validation) in (2, 3):
            X, *rest = self.validation
            return self._inputs(X), *rest
        return self.validation

    def _fit_guide(self, make: Make, data: Data, seed: int, guide: Any) -> Fit:
        """Fit by maximum likelihood, or with a guide."""
        options: dict[str, Any] = {
            "guide": guide,
            "weights": data.weights,
            "size": data.size,
            "validation": data.validation,
            "patience": self.patience,
            "seed": seed,
            "learning_rate": self.learning_rate,
            "schedule": SCHEDULES[self.schedule],
            "compile": self.compile,
            "batch_size": self.batch_size,
            "max_steps": self.max_steps,
            "progress": self.progress,
            "device": self.device,
        }
        members = integer("members", self.members)
        if members == 1:
            return fit(make(seed), data.X, data.y, **options)
        return ensemble(make, data.X, data.y, members=members, **options)

    def _fit_chains(self, make: Make, data: Data, seed: int) -> Fit:
        """Draw ``draws`` weights by two chains, on all rows."""
        if integer("members", self.members) > 1:
            raise ValueError(
                f"members={self.members} with inference='nuts': its two chains have starts of "
                "their own already; take members=1 and more draws, or inference='vi' or 'laplace'."
            )
        steps = min(integer("max_steps", self.max_steps), MOST_WARM_UP)
        return nuts(
            make(seed),
            data.X,
            data.y,
            weights=data.weights,
            size=data.size,
            start=steps,
            warmup=steps,
            draws=max(4, -(-integer("draws", self.draws) // 2)),
            chains=2,
            seed=seed,
            progress=self.progress,
            device=self.device,
        )

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


def _counted(
    columns: Columns, cells: Cells, targets: torch.Tensor, sample_weight: Any, seed: int
) -> tuple[Cells, torch.Tensor, NDArray[np.float64] | None, float | None]:
    """Give rows in an order of their own, repeated by whole weights; other weights; their sum.

    Raises:
        ValueError: Weights that are negative, all zero, or not one a row.
    """
    weights = None
    if sample_weight is not None:
        weights = as_values("sample_weight", sample_weight).cpu().numpy().astype(np.float64)
        if weights.shape != (len(targets),):
            raise ValueError(
                f"sample_weight has shape {weights.shape} and there are {len(targets)} rows: give "
                "one number a row."
            )
        counted = np.flatnonzero(weights)
        if len(counted) == 0 or weights.min() < 0 or not np.isfinite(weights.sum()):
            raise ValueError(
                f"sample_weight holds numbers from {weights.min():g} to {weights.max():g}, all "
                "zero, negative, or too large to add up: give 0 or more, and above 0 somewhere."
            )
        cells, targets, weights = cells.at(counted), targets[counted], weights[counted]
    y = targets.cpu().numpy().reshape(len(targets), -1)
    chosen = multiset(np.concatenate([columns.codes(cells), y], 1), weights, seed)
    size = None if chosen.weights is None else chosen.size
    return cells.at(chosen.index), targets[chosen.index], chosen.weights, size


def _numbers(y: Any) -> Any:
    """Give targets whose objects are numbers as numbers, as scikit-learn does.

    Raises:
        ValueError: None, or complex, in scikit-learn's words.
    """
    if y is None:
        raise ValueError("MDNRegressor requires y to be passed, but the target y is None.")
    if isinstance(y, torch.Tensor) or hasattr(y, "columns"):
        return y
    try:
        array = np.asarray(y)
        if array.dtype.kind == "c":
            raise ValueError(f"Complex data not supported: y has dtype {array.dtype}.")
        return array.astype(np.float64) if array.dtype.kind == "O" else y
    except (TypeError, ValueError) as error:
        if "Complex" in str(error):
            raise
        return y  # ragged, or of what is no number: refused by what checks it
