r"""Is a density right? Numbers, tables and a verdict.

Where densities are right, the PIT :math:`F(y)` and the highest-density PIT
:math:`P\{p(Y) \ge p(y)\}` are uniform, at every x. :func:`report` tests both, and the PIT along
each feature and along what is predicted. The first sees a bias and a wrong spread; the second sees
mass in the wrong places, as a gap between two branches that is filled; the third sees errors that
cancel between one x and another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyralloy.bands import ecdf_p_value, proportion_interval
from pyralloy.checks import as_values, probability
from pyralloy.content import hdr_pit
from pyralloy.drift import Drift, drift
from pyralloy.families import family_of
from pyralloy.leave_one_out import LeaveOneOut, loo_pit
from pyralloy.mixture import Mixture
from pyralloy.verdict import next_steps, shape_of, verdict_of

__all__ = [
    "LeaveOneOut",
    "Report",
    "Transforms",
    "coverage_table",
    "loo_pit",
    "reliability_table",
    "report",
    "transforms",
]

Array = NDArray[np.float64]

#: Levels of the table of coverage, and of that of quantiles.
COVERAGE = (0.5, 0.8, 0.9, 0.95)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Components above which the CRPS, quadratic in them, is left out.
MANY = 1000
#: Rows on which the highest-density PIT is computed where there are more components than that.
FEW_ROWS = 300
#: Rows x components of one piece.
CHUNK = 1 << 21


@dataclass(frozen=True, eq=False)
class Transforms:
    r"""What calibration is read from, row by row, in float64.

    Attributes:
        pit: :math:`F(y)`, shape (N,); of counts drawn between F(y - 1) and F(y).
        hdr: :math:`P\{p(Y) \ge p(y)\}`, shape (N',); of the rows in ``hdr_rows``.
        hdr_rows: Rows of ``hdr``: all of them, unless the densities have very many components.
        mean: Predicted means, (N,), in y's units.
        spread: Predicted standard deviations, (N,).
        width: Lengths of the central 90 % intervals of the rows in ``hdr_rows``.
        log_score: :math:`-\log p(y)`, (N,), in nats.
        crps: (N,), in y's units; NaN where there are very many components.
    """

    pit: Array
    hdr: Array
    hdr_rows: NDArray[np.int64]
    mean: Array
    spread: Array
    width: Array
    log_score: Array
    crps: Array


@dataclass(frozen=True, eq=False)
class Report:
    """The calibration of densities on observed rows; ``print`` it.

    Attributes:
        rows: Number of rows N.
        verdict: In words, with its uncertainty.
        advice: What to do next.
        calibrated: Whether no test found a fault, at 5 % over all tests together.
        tests: A table with columns ``test``, ``p``, ``adjusted`` (Holm) and ``finding``.
        coverage: See :func:`coverage_table`.
        reliability: See :func:`reliability_table`.
        drifts: Where the PIT changes along features and predictions.
        sharpness: Mean standard deviation, mean length of central 90 % intervals, mean log score
            and mean CRPS.
        transforms: What all of it is read from.

    Example:
        >>> from pyro import distributions as dist
        >>> from pyralloy import Mixture
        >>> loc = torch.zeros(500, 1)
        >>> truth = Mixture(dist.Categorical(torch.ones(500, 1)), dist.Normal(loc, 1.0))
        >>> y = truth.sample(generator=torch.Generator().manual_seed(0))
        >>> report(truth, y).calibrated, report(truth.affine(0.0, 0.7), y).calibrated
        (True, False)
    """

    rows: int
    verdict: str
    advice: tuple[str, ...]
    calibrated: bool
    tests: np.recarray = field(repr=False)
    coverage: np.recarray = field(repr=False)
    reliability: np.recarray = field(repr=False)
    drifts: tuple[Drift, ...] = field(repr=False)
    sharpness: dict[str, float] = field(repr=False)
    transforms: Transforms = field(repr=False)

    def __str__(self) -> str:
        lines = [f"Calibration on {self.rows:,} rows", "", self.verdict, ""]
        lines += ["coverage   central (95 % interval)   highest density (95 % interval)"]
        for row in self.coverage:
            central = f"{row.central:6.1%} ({row.central_lower:.1%} to {row.central_upper:.1%})"
            dense = f"{row.highest:6.1%} ({row.highest_lower:.1%} to {row.highest_upper:.1%})"
            lines.append(f"{row.level:8.0%}   {central:23s}   {dense}")
        lines += ["", "quantile   rows below (95 % interval)"]
        lines += [
            f"{row.level:8.0%}   {row.observed:6.1%} ({row.lower:.1%} to {row.upper:.1%})"
            for row in self.reliability
        ]
        width = max(len(str(name)) for name in self.tests.test)
        lines += ["", f"{'test':{width}s}        p   adjusted   finding"]
        for row in self.tests:
            p = f"{_short(row.p):>6s}     {_short(row.adjusted):>6s}"
            lines.append(f"{row.test:{width}s}   {p}   {row.finding}".rstrip())
        sharp = ", ".join(f"{k} {v:.4g}" for k, v in self.sharpness.items() if math.isfinite(v))
        return "\n".join([*lines, "", f"mean {sharp}", "", *(f"- {step}" for step in self.advice)])


def report(
    density: Mixture | Any | Callable[[slice], Any],
    y: ArrayLike | Tensor,
    x: ArrayLike | Tensor | None = None,
    *,
    names: list[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Report:
    """Hold densities against what was observed, on rows that were not fitted.

    The tests: that the PIT is uniform and that the highest-density PIT is, by the simultaneous band
    of their empirical distribution, which is exact; and that the PIT depends on no feature and on
    no prediction, by cumulative sums. Their p-values are adjusted by Holm's method, so that right
    densities are called wrong in at most 1 - ``level`` of all reports.

    Args:
        density: Densities of a scalar y, batch shape (N,); or a function that gives those of a
            slice of rows, where all of them together would fill the memory:
            ``lambda rows: fit.density(x[rows])``.
        y: Observed values, shape (N,), in y's units.
        x: Features, shape (N, F) or (N,), to look along; None looks along predictions alone.
        names: Names of the features; None takes those of a data frame, or x0, x1, ...
        level: Probability of finding no fault where there is none.
        seed: Of the draws that spread the PIT of counts between F(y - 1) and F(y).

    Returns:
        A :class:`Report`.

    Raises:
        TypeError: Values that are not numeric.
        ValueError: Fewer than 20 rows, lengths that differ, or a density of a vector.

    References:
        Gneiting, T., Balabdaoui, F., & Raftery, A. E. (2007). Probabilistic forecasts, calibration
        and sharpness. JRSS B 69. doi:10.1111/j.1467-9868.2007.00587.x. Holm, S. (1979). A simple
        sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6.
        https://www.jstor.org/stable/4615733

    Example:
        >>> import pyralloy as pa
        >>> problem = pa.datasets.sinusoid(400, seed=0)
        >>> mean = 7 * torch.sin(0.75 * problem.x) + 0.5 * problem.x
        >>> from pyro import distributions as dist
        >>> exact = pa.Mixture(dist.Categorical(torch.ones(400, 1)), dist.Normal(mean, 1.0))
        >>> print(report(exact, problem.y, problem.x).verdict)
        No fault found in 400 rows: the PIT stays within ±0.08 of uniform, as it does by chance.
    """
    level = probability("level", level)
    features = _features(x, names, len(as_values("y", y)))
    found = transforms(density, y, seed=seed)
    along = {**features, "predicted mean": found.mean, "predicted spread": found.spread}
    drifts = tuple(d for name, v in along.items() if (d := drift(name, found.pit, v)) is not None)
    tests, wrong = _tests(found, drifts, level)
    covered = coverage_table(found)
    return Report(
        rows=len(found.pit),
        verdict=verdict_of(found.pit, tests, covered, level),
        advice=next_steps(wrong, len(found.pit), looked=x is not None),
        calibrated=not bool(wrong.any()),
        tests=tests,
        coverage=covered,
        reliability=reliability_table(found.pit),
        drifts=drifts,
        sharpness=_sharpness(found),
        transforms=found,
    )


def _sharpness(found: Transforms) -> dict[str, float]:
    return {
        "standard deviation": float(found.spread.mean()),
        "length of 90 % intervals": float(found.width.mean()),
        "log score": float(found.log_score.mean()),
        "CRPS": float(found.crps.mean()),
    }


def _tests(
    found: Transforms, drifts: tuple[Drift, ...], level: float
) -> tuple[np.recarray, NDArray[np.bool_]]:
    """Give the table of tests, and which of them found a fault."""
    names = ["PIT", "highest-density PIT", *(f"PIT along {d.name}" for d in drifts)]
    p = [ecdf_p_value(found.pit), ecdf_p_value(found.hdr), *(d.p for d in drifts)]
    adjusted = _holm(np.array(p))
    wrong = adjusted <= 1.0 - level
    findings = [shape_of(found.pit), _dense(found.hdr), *(d.finding for d in drifts)]
    said = [text if bad else "" for text, bad in zip(findings, wrong, strict=True)]
    return _table(test=names, p=p, adjusted=adjusted, finding=said), wrong


def transforms(
    density: Mixture | Any | Callable[[slice], Any], y: ArrayLike | Tensor, *, seed: int = 0
) -> Transforms:
    """Compute what calibration is read from, a piece of the rows at a time.

    Args:
        density: As for :func:`report`.
        y: Observed values, shape (N,).
        seed: Of the draws that counts need.

    Returns:
        A :class:`Transforms`.

    Raises:
        ValueError: Fewer than 20 rows, lengths that differ, or a density of a vector.
    """
    observed = as_values("y", y)
    if observed.ndim != 1 or len(observed) < 20:
        raise ValueError(
            f"y has shape {tuple(observed.shape)}: give (N,) with at least 20 rows; fewer tell "
            "nothing of calibration."
        )
    v = np.random.default_rng(seed).random((2, len(observed)))
    chosen = np.random.default_rng(seed + 1).permutation(len(observed))[:FEW_ROWS]
    parts, rows_of = [], []
    for rows, part in _pieces(density, len(observed)):
        every = np.arange(rows.start, rows.stop)
        many = getattr(part, "num_components", 1) > MANY
        dense = np.intersect1d(every, chosen) if many else every
        parts.append(_measure(part, observed[rows], v[:, rows], dense - rows.start, many=many))
        rows_of.append(dense)
    pit, hdr, mean, spread, width, log_score, crps = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return Transforms(pit, hdr, np.concatenate(rows_of), mean, spread, width, log_score, crps)


def coverage_table(found: Transforms, levels: tuple[float, ...] = COVERAGE) -> np.recarray:
    """Count how often central intervals and highest-density regions hold y.

    Args:
        found: From :func:`transforms`.
        levels: Probabilities inside, L of them.

    Returns:
        A table of L rows: ``level``; ``central``, the proportion of rows in the central interval,
        with the ends of its 95 % confidence interval, ``central_lower`` and ``central_upper``; the
        same of regions, ``highest``.
    """
    goal = np.asarray(levels)[:, None]
    columns: dict[str, Any] = {"level": goal[:, 0]}
    for name, values in (
        ("central", np.abs(2.0 * found.pit - 1.0)),
        ("highest", found.hdr),
    ):
        count = (values <= goal).sum(-1)
        lower, upper = proportion_interval(count, len(values))
        columns |= {name: count / len(values), f"{name}_lower": lower, f"{name}_upper": upper}
    return _table(**columns)


def reliability_table(pit: Array, levels: tuple[float, ...] = QUANTILES) -> np.recarray:
    """Count how often y is at or below its predicted quantiles.

    Args:
        pit: PIT values, shape (N,).
        levels: Levels of the quantiles, L of them.

    Returns:
        A table of L rows: ``level``, ``observed`` and the ends of its 95 % confidence interval,
        ``lower`` and ``upper``.
    """
    goal = np.asarray(levels)
    count = (pit <= goal[:, None]).sum(-1)
    lower, upper = proportion_interval(count, len(pit))
    return _table(level=goal, observed=count / len(pit), lower=lower, upper=upper)


def _table(**columns: Any) -> np.recarray:
    arrays = [np.asarray(column) for column in columns.values()]
    kinds = [(name, array.dtype) for name, array in zip(columns, arrays, strict=True)]
    return np.rec.fromarrays(arrays, dtype=kinds)


def _pieces(density: Any, count: int) -> Iterator[tuple[slice, Any]]:
    """Give the densities of one piece of the rows after another, of moderate memory each."""
    # Pyro's distributions are callable too.
    given = None if hasattr(density, "batch_shape") else density
    if given is None:
        _scalar(density, count)
    start, step = 0, 16 if given is not None else max(16, CHUNK // _components(density))
    while start < count:
        rows = slice(start, min(start + step, count))
        part = density[rows] if given is None else given(rows)
        _scalar(part, rows.stop - rows.start)
        yield rows, part
        start, step = rows.stop, max(16, CHUNK // _components(part))


def _components(density: Any) -> int:
    return int(getattr(density, "num_components", 1))


def _scalar(density: Any, rows: int) -> None:
    if tuple(density.event_shape):
        raise ValueError(
            f"density has event_shape {tuple(density.event_shape)}: report on one dimension of y "
            "at a time, density.marginal(dim) and y[:, dim]."
        )
    if tuple(density.batch_shape) != (rows,):
        raise ValueError(
            f"density has batch_shape {tuple(density.batch_shape)} and there are {rows} rows of y: "
            "give one density a row."
        )


@torch.no_grad()
def _measure(
    part: Any, y: Tensor, v: Array, dense: NDArray[np.int64], *, many: bool
) -> list[Array]:
    wide = part.to(torch.float64)
    y = y.to(torch.float64).to(wide.logits.device)
    some, at = wide[dense.tolist()], y[dense.tolist()]
    log_p = wide.log_prob(y)
    pit = wide.cdf(y)
    own = getattr(some, "hdr_pit", None)
    hdr = own(at) if own is not None else hdr_pit(some, at)
    if isinstance(part, Mixture) and family_of(part.components).support.integer:
        uniform = torch.from_numpy(v).to(pit.device)
        pit = pit - uniform[0] * log_p.exp()
        hdr = hdr - uniform[1][dense.tolist()] * some.log_prob(at).exp()
    lower, upper = some.interval(0.9)
    crps = torch.full_like(pit, math.nan) if many else wide.crps(y)
    values = (pit.clamp(0.0, 1.0), hdr.clamp(0.0, 1.0), wide.mean, wide.stddev, upper - lower)
    return [c.cpu().numpy() for c in (*values, -log_p, crps)]


def _features(x: Any, names: list[str] | None, rows: int) -> dict[str, Array]:
    if x is None:
        return {}
    named = names if names is not None else [str(c) for c in getattr(x, "columns", [])]
    table = as_values("x", x).to(torch.float64).cpu().numpy()
    table = table[:, None] if table.ndim == 1 else table.reshape(len(table), -1)
    if len(table) != rows:
        raise ValueError(f"x has {len(table)} rows and y has {rows}: they must be the same rows.")
    named = named or [f"x{i}" for i in range(table.shape[1])]
    if len(named) != table.shape[1]:
        raise ValueError(f"names={named!r}: give {table.shape[1]} of them, one a feature.")
    return dict(zip(named, table.T, strict=True))


def _holm(p: Array) -> Array:
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(raised, 1.0)
    return adjusted


def _short(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _dense(hdr: Array) -> str:
    held = f"{np.mean(hdr <= 0.9):.1%} of rows in 90 % highest-density regions"
    if float(np.mean(hdr)) > 0.5:
        return f"{held}: y lies where the density is low"
    return f"{held}: the density also lies where y does not"
