"""The words of a report: what the numbers say, how surely, and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyralloy.bands import ecdf_band
from pyralloy.drift import moments

__all__ = ["next_steps", "shape_of", "verdict_of"]

Array = NDArray[np.float64]

FAULTS = (
    ("densities lie too low", "densities lie too high"),
    ("densities are too narrow", "densities are too wide"),
    (
        "upper tails are too short or lower tails too long",
        "lower tails too short or upper too long",
    ),
    ("densities are too flat or lack tails", "densities are too peaked at their middle"),
)


def shape_of(pit: Array) -> str:
    """Name the fault that a PIT shows most strongly."""
    mean = moments(pit).mean(-1)
    kind = int(np.abs(mean).argmax())
    return FAULTS[kind][0 if mean[kind] > 0 else 1]


def verdict_of(pit: Array, tests: Any, coverage: Any, level: float) -> str:
    """Say whether densities are right, with the uncertainty of saying so."""
    wrong = tests[tests.adjusted <= 1.0 - level]
    rows = len(pit)
    if len(wrong) == 0:
        band = ecdf_band(rows, level)
        reach = float(np.max(band.upper - band.points))
        return (
            f"No fault found in {rows:,} rows: the PIT stays within ±{reach:.2f} of uniform, as it "
            "does by chance."
        )
    worst = wrong[int(np.argmin(wrong.adjusted))]
    row = coverage[int(np.argmin(np.abs(coverage.level - 0.9)))]
    p = f"p = {worst.adjusted:.3f}" if worst.adjusted >= 0.001 else "p < 0.001"
    central = f"{row.central:.1%} ({row.central_lower:.1%} to {row.central_upper:.1%})"
    dense = f"{row.highest:.1%} ({row.highest_lower:.1%} to {row.highest_upper:.1%})"
    return (
        f"Not calibrated ({worst.test}, {p} over all {len(tests)} tests): {worst.finding}. "
        f"Central {row.level:.0%} intervals hold {central} of rows, {row.level:.0%} "
        f"highest-density regions {dense}."
    )


def next_steps(wrong: NDArray[np.bool_], rows: int, *, looked: bool) -> tuple[str, ...]:
    """Say what to do, given which tests found a fault: the PIT, the HDR PIT, those along x."""
    steps = []
    if wrong[2:].any():
        steps.append(
            "What is wrong depends on x, and no map of the PIT repairs that: fit a larger network "
            "or more steps, or ask for coverage by group, conformal.calibrate(groups=...)."
        )
    if wrong[1] and not wrong[0]:
        steps.append(
            "The mass is in the wrong places: give the mixture more components, or start them "
            "more widely spread."
        )
    if wrong[0]:
        steps.append(
            "conformal.recalibrate mends what is wrong at every x alike; "
            "conformal.calibrate gives regions that hold what they say whatever the density."
        )
    if not steps:
        steps.append("Use the densities; compare models by their log score or CRPS.")
    if not looked:
        steps.append("Give x to report, to see whether faults cancel between one x and another.")
    if rows < 200:
        steps.append(f"{rows} rows show gross faults only: hold out more before trusting this.")
    return tuple(steps)
