"""Fits and densities in ArviZ's schema: a tree of labelled arrays for ``az`` to work on.

A density has no posterior: its tree holds the mixture, draws of y, and the exact PIT and scores.
A posterior's tree holds its draws, and for every draw and row the log likelihood and the exact cdf,
from which leave-one-out quantities follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyralloy.checks import as_values, integer, paired
from pyralloy.families import base_of, family_of
from pyralloy.mixture import Mixture

__all__ = ["density_to_arviz", "posterior_to_arviz", "to_arviz"]

Array = NDArray[Any]

#: The PIT is kept off 0 and 1 by this: an exact end wrecks tests of uniformity.
EDGE = 1e-12
#: Numbers of one piece, rows x components or draws x rows x components.
CHUNK = 1 << 20
#: Components above which the mixture itself is not stored.
MANY = 1000
#: Parameters of families of vectors.
VECTOR_PARAMETERS = ("loc", "scale", "df", "scale_tril", "cov_factor", "cov_diag")

NO_POSTERIOR = (
    "this tree is of a density without posterior draws (maximum likelihood, or an ensemble): "
    "leave-one-out of one draw would be the fit to the training rows. Compare held-out log scores, "
    "tree['pointwise']['log_score'], or look at tree['pit'] with "
    "arviz_plots.plot_ecdf_pit(tree, group='pit', sample_dims=['obs']); for loo, fit with guide= "
    "or pa.nuts."
)


def to_arviz(fit: Any, x: Any, y: ArrayLike | Tensor, *, draws: int = 1000, seed: int = 0) -> Any:
    """Convert a fit or a density, with data it was not fitted on, to a ``DataTree``.

    Args:
        fit: A ``Fit``, or another object that has ``density(x)``; or densities, batch shape (N,),
            or (M, N) for the members of an ensemble.
        x: Inputs, N rows: tensor, array or data frame, whose index and columns are kept.
        y: Observed targets, shape (N,) or (N, D).
        draws: Draws of y for each row; of the weights, at most, where a fit has a posterior.
        seed: Of the draws.

    Returns:
        As :meth:`Fit.to_arviz <pyralloy.Fit.to_arviz>`, or as :func:`density_to_arviz`.

    Raises:
        ImportError: ArviZ is not installed.
        ValueError: Lengths that differ.

    Example:
        >>> import pyralloy as pa
        >>> problem = pa.datasets.sinusoid(50, seed=0)
        >>> model = pa.MDN(pa.networks.MLP(1, hidden=(8,)), pa.MixtureHead(8, components=2))
        >>> fit = pa.fit(model, problem.x, problem.y, max_steps=20, progress=False)
        >>> tree = to_arviz(fit, problem.x, problem.y, draws=100)
        >>> sorted(tree.children)[:3], tree["pit"]["y"].dims
        (['constant_data', 'mixture', 'observed_data'], ('sample', 'obs'))
    """
    if callable(own := getattr(fit, "to_arviz", None)):
        return own(x, y, draws=draws, seed=seed)
    given = fit if isinstance(fit, Mixture) else None
    if given is None and not callable(getattr(fit, "density", None)):
        raise TypeError(f"fit is {type(fit).__name__}: give a Fit, or a Mixture.")
    inputs = as_values("x", x)

    def density(rows: slice) -> Mixture:
        return given[..., rows] if given is not None else fit.density(inputs[rows])

    return density_to_arviz(density, x, y, draws=draws, seed=seed)


def density_to_arviz(
    density: Callable[[slice], Mixture],
    x: Any,
    y: ArrayLike | Tensor,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Any:
    """Convert densities without a posterior, a piece of the rows at a time.

    Args:
        density: Gives the densities of a slice of rows, batch shape (N',), or (M, N').
        x: Inputs, N rows.
        y: Observed targets, shape (N,) or (N, D).
        draws: Draws of y for each row.
        seed: Of the draws.

    Returns:
        A ``DataTree`` with groups ``mixture`` (weights and parameters by obs and component, and by
        member where there are members), ``posterior_predictive``, ``observed_data``,
        ``constant_data``, ``pit`` (exact) and ``pointwise`` (log_score in nats, crps in y's units).
        It has no posterior and no log likelihood: ``loo`` refuses it, and says what to use.

    Raises:
        ImportError: ArviZ is not installed.
        ValueError: Lengths that differ.
    """
    inputs, observed, coords = _data(x, y)
    generator = torch.Generator().manual_seed(seed)
    count, parts = integer("draws", draws), []
    for rows, part in _pieces(density, len(observed)):
        members = len(part.batch_shape) > 1
        pool = Mixture.pool(part) if members else part
        found = _of_rows(pool, observed[rows], count, generator) | _parameters(part)
        if members:
            score = -part.log_prob(observed[rows].to(part.logits))
            found["member_log_score", ("member", "obs")] = score.detach().cpu().numpy()
        parts.append(found)
    tree: dict[str, dict[str, Any]] = _observed(inputs, observed)
    for name, dims in parts[0]:
        values = np.concatenate([part[name, dims] for part in parts], dims.index("obs"))
        group, _, variable = name.rpartition(":")
        tree.setdefault(group or "pointwise", {})[variable] = (list(dims), values)
    return _tree(tree, coords, {"inference": "density"}, refuse=True)


def posterior_to_arviz(
    posterior: Mapping[str, ArrayLike | Tensor],
    density: Callable[[slice], Mixture],
    x: Any,
    y: ArrayLike | Tensor,
    *,
    sample_stats: Mapping[str, ArrayLike | Tensor] | None = None,
    dims: Mapping[str, list[str]] | None = None,
    seed: int = 0,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Convert draws of a posterior, a piece of the rows at a time.

    Args:
        posterior: Draws of each weight, shape (chain, draw, ...).
        density: Gives, for a slice of rows, the densities of every draw: batch shape
            (chain * draw, N'), the draws of the first chain first.
        x: Inputs, N rows.
        y: Observed targets, shape (N,) or (N, D).
        sample_stats: Of each draw, shape (chain, draw, ...), named as ArviZ names them:
            ``diverging``, ``energy``, ``acceptance_rate``, ``step_size``, ``tree_depth``, ``lp``.
        dims: Names of the dimensions of weights, beyond chain and draw; those of a linear layer
            are ``<layer>.out`` and ``<layer>.in`` unless named here.
        seed: Of the draws of y, one for each draw of the posterior.
        attrs: Attributes of the tree.

    Returns:
        A ``DataTree`` with groups ``posterior``, ``log_likelihood``, ``predictive_cdf`` (exact),
        ``posterior_predictive``, ``observed_data``, ``constant_data``, ``pit`` and ``pointwise``
        (of the pooled density, on these rows), and ``sample_stats`` where given. A vector y has no
        cdf and no PIT; of counts both are drawn within the step of the cdf at y. Memory grows as
        draws x rows.

    Raises:
        ImportError: ArviZ is not installed.
        ValueError: Lengths or numbers of draws that differ.

    References:
        Kumar, R., Carroll, C., Hartikainen, A., & Martin, O. (2019). ArviZ a unified library for
        exploratory analysis of Bayesian models in Python. JOSS 4. doi:10.21105/joss.01143
    """
    inputs, observed, coords = _data(x, y)
    weights = {name: _array(v) for name, v in posterior.items()}
    shape = _draw_shape({**weights, **{k: _array(v) for k, v in (sample_stats or {}).items()}})
    log_p, cdf, y_draws = _of_draws(density, observed, shape, torch.Generator().manual_seed(seed))
    pooled = np.logaddexp.reduce(log_p, (0, 1)) - np.log(shape[0] * shape[1])
    rows = ["chain", "draw", "obs"]
    tree: dict[str, dict[str, Any]] = {
        "posterior": {k: (_weight_dims(k, v, dims), v) for k, v in weights.items()},
        "log_likelihood": {"y": (rows, log_p)},
        "posterior_predictive": {"y": (rows + ["target"] * (observed.ndim - 1), y_draws)},
        "pointwise": {"log_score": (["obs"], -pooled)},
        **_observed(inputs, observed),
    }
    if cdf is not None:
        tree["predictive_cdf"] = {"y": (rows, cdf)}
        tree["pit"] = {"y": (["sample", "obs"], np.clip(cdf.mean((0, 1)), EDGE, 1 - EDGE)[None])}
    if sample_stats:
        tree["sample_stats"] = {
            k: (_weight_dims(k, _array(v), None), _array(v)) for k, v in sample_stats.items()
        }
    return _tree(tree, coords, {"inference": "posterior", **(attrs or {})}, refuse=False)


def _of_draws(
    density: Callable[[slice], Mixture],
    y: Tensor,
    shape: tuple[int, int],
    generator: torch.Generator,
) -> tuple[Array, Array | None, Array]:
    """Give each draw's log likelihoods, cdfs (None for a vector y) and one y of each row."""
    count, vector = shape[0] * shape[1], tuple(y.shape[1:])
    log_p = np.empty((count, len(y)))
    drawn = np.empty((count, len(y), *vector), np.float32)
    cdf = None if vector else np.empty_like(log_p)
    for rows, part in _pieces(density, len(y)):
        if part.batch_shape[0] != count:
            raise ValueError(
                f"density gives {part.batch_shape[0]} draws and posterior has {shape[0]} chains of "
                f"{shape[1]}: give batch shape ({count}, rows)."
            )
        at, wide = y[rows].to(part.logits.device, torch.float64), part.to(torch.float64)
        log_p[:, rows] = wide.log_prob(at).cpu().numpy()
        if cdf is not None:
            cdf[:, rows] = _spread_cdf(wide, at, generator).cpu().numpy()
        drawn[:, rows] = part.sample(generator=generator).cpu().numpy()
    log_p, drawn = log_p.reshape(*shape, -1), drawn.reshape(*shape, *drawn.shape[1:])
    return log_p, None if cdf is None else cdf.reshape(*shape, -1), drawn


def _data(x: Any, y: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Check the data, and keep the names that data frames have."""
    inputs, observed = as_values("x", x), as_values("y", y)
    paired(inputs, observed)
    inputs = inputs[:, None] if inputs.ndim == 1 else inputs
    index = next((_names(v.index) for v in (x, y) if hasattr(v, "iloc")), None)
    coords: dict[str, Any] = {"obs": np.arange(len(observed)) if index is None else index}
    columns = getattr(x, "columns", None)
    if inputs.ndim == 2:
        features = [f"x{i}" for i in range(inputs.shape[1])] if columns is None else columns
        coords["feature"] = np.asarray([str(c) for c in features])
    if observed.ndim > 1:
        columns = getattr(y, "columns", None)
        targets = [f"y{i}" for i in range(observed.shape[1])] if columns is None else columns
        coords["target"] = coords["target_bis"] = np.asarray([str(c) for c in targets])
    return inputs, observed, coords


def _names(index: Any) -> Array:
    """Give labels that a file can hold: numbers and times as they are, the rest as text."""
    values = np.asarray(index)
    return values if values.dtype.kind in "iufM" else np.asarray([str(v) for v in index])


def _array(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _draw_shape(named: Mapping[str, Array]) -> tuple[int, int]:
    shapes = {name: v.shape[:2] for name, v in named.items()}
    if not shapes or len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"posterior has leading shapes {shapes}: give (chain, draw, ...) of each.")
    return next(iter(shapes.values()))


def _weight_dims(name: str, values: Array, dims: Mapping[str, list[str]] | None) -> list[str]:
    layer, _, kind = name.rpartition(".")
    linear = {("weight", 4): [f"{layer}.out", f"{layer}.in"], ("bias", 3): [f"{layer}.out"]}
    known = linear.get((kind, values.ndim)) if layer else None
    own = (dims or {}).get(name, known or [f"{name}_dim_{i}" for i in range(values.ndim - 2)])
    return ["chain", "draw", *own]


def _pieces(density: Callable[[slice], Mixture], count: int) -> Any:
    """Give the densities of one piece of the rows after another, of moderate memory each."""
    start, step = 0, 1
    while start < count:
        rows = slice(start, min(start + step, count))
        with torch.no_grad():
            part = density(rows)
        if part.batch_shape[-1] != rows.stop - rows.start:
            raise ValueError(
                f"density has batch_shape {tuple(part.batch_shape)} for {rows.stop - rows.start} "
                "rows: give one density a row."
            )
        yield rows, part
        row = part.num_components * max(1, part.batch_shape[:-1].numel())
        start, step = rows.stop, max(1, CHUNK // row)


@torch.no_grad()
def _spread_cdf(density: Mixture, y: Tensor, generator: torch.Generator) -> Tensor:
    """Evaluate the cdf at y, (..., N); of counts at one place within its step, the same for all."""
    cdf = density.cdf(y)
    if not family_of(density.components).support.integer:
        return cdf
    share = torch.rand(y.shape, generator=generator, dtype=cdf.dtype).to(cdf.device)
    return cdf - share * density.log_prob(y).exp()


@torch.no_grad()
def _of_rows(
    pool: Mixture, y: Tensor, draws: int, generator: torch.Generator
) -> dict[tuple[str, tuple[str, ...]], Array]:
    """Give draws, scores and PIT of some rows, by name and dimensions."""
    wide, at = pool.to(torch.float64), y.to(torch.float64).to(pool.logits.device)
    drawn = pool.sample((draws,), generator=generator)[None]
    vector = ("target",) if pool.event_shape else ()
    found = {
        ("posterior_predictive:y", ("chain", "draw", "obs", *vector)): drawn,
        ("log_score", ("obs",)): -wide.log_prob(at),
    }
    if not vector:
        # One sample of each row, in ArviZ's words.
        pit = _spread_cdf(wide, at, generator).clamp(EDGE, 1.0 - EDGE)[None]
        found["pit:y", ("sample", "obs")] = pit
        if pool.num_components <= MANY:
            found["crps", ("obs",)] = wide.crps(at)
    return {key: v.cpu().numpy() for key, v in found.items()}


@torch.no_grad()
def _parameters(part: Mixture) -> dict[tuple[str, tuple[str, ...]], Array]:
    """Give weights and parameters by component, by name and dimensions."""
    if part.num_components * part.batch_shape[:-1].numel() > MANY:
        return {}
    base = base_of(part.components)
    shape = (*part.batch_shape, part.num_components)
    dims: tuple[str, ...] = ("obs", "component")
    dims = ("member", *dims) if len(part.batch_shape) > 1 else dims
    names = VECTOR_PARAMETERS if part.event_shape else family_of(part.components).parameters
    found: dict[tuple[str, tuple[str, ...]], Array] = {}
    found["mixture:weight", dims] = part.weights.cpu().numpy()
    for name in names:
        value = getattr(base, name, None)
        if isinstance(value, Tensor):
            event = value.shape[len(shape) :]
            own = (*dims, *("target", "target_bis")[: len(event)])
            found[f"mixture:{name}", own] = value.expand(*shape, *event).cpu().numpy()
    return found


def _observed(inputs: Tensor, observed: Tensor) -> dict[str, dict[str, Any]]:
    y_dims = ["obs"] + ["target"] * (observed.ndim - 1)
    names = ["feature"] if inputs.ndim == 2 else [f"x_dim_{i}" for i in range(inputs.ndim - 1)]
    return {
        "observed_data": {"y": (y_dims, observed.cpu().numpy())},
        "constant_data": {"x": (["obs", *names], inputs.cpu().numpy())},
    }


def _tree(
    groups: dict[str, dict[str, Any]],
    coords: dict[str, Any],
    attrs: dict[str, Any],
    *,
    refuse: bool,
) -> Any:
    try:
        import arviz_base  # noqa: F401
        import xarray as xr
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install 'pyralloy[arviz]'.") from error
    sets = {}
    for group, variables in groups.items():
        sizes = {d: n for dims, v in variables.values() for d, n in zip(dims, v.shape, strict=True)}
        own = {d: coords.get(d, np.arange(n)) for d, n in sizes.items()}
        sets[group] = xr.Dataset(variables, coords=own)
    root = xr.Dataset(attrs={"creation_library": "pyralloy", **attrs})
    kind = _density_tree(xr) if refuse else xr.DataTree
    return kind.from_dict({"/": root, **sets})


def _density_tree(xr: Any) -> Any:
    """Make the class of trees whose missing log likelihood says why it is missing."""

    class DensityTree(xr.DataTree):
        """A tree without posterior draws."""

        __slots__ = ()

        @property
        def log_likelihood(self) -> Any:
            """Refuse: ArviZ's ``loo`` and its kin look here first."""
            raise TypeError(NO_POSTERIOR)

    return DensityTree
