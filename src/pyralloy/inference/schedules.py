"""Schedules: the learning rate of a step, as a fraction of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["Schedule", "constant", "cosine", "one_cycle"]

#: Called as ``schedule(step, steps)``, the step counted from 0; gives a fraction of the peak.
Schedule = Callable[[int, int], float]


def one_cycle(step: int, steps: int, *, warmup: float = 0.1) -> float:
    """Give the learning rate of a step as a fraction of the peak: a cosine up, a cosine down.

    Args:
        step: From 0.
        steps: Of the whole cycle.
        warmup: Fraction of the steps that climb, from 1/25 of the peak.

    References:
        Smith, L. N., & Topin, N. (2019). Super-convergence. doi:10.1117/12.2520589

    Example:
        >>> [round(one_cycle(s, 101), 3) for s in (0, 10, 100)]
        [0.04, 1.0, 0.0]
    """
    done = step / max(1, steps - 1)
    if done < warmup:
        return 0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * done / warmup))
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


def cosine(step: int, steps: int) -> float:
    """Give the learning rate of a step as a fraction of the first: half a cosine, down to 0.

    Args:
        step: From 0.
        steps: Of the whole descent.

    References:
        Loshchilov, I., & Hutter, F. (2017). SGDR. ICLR. arXiv:1608.03983

    Example:
        >>> [round(cosine(s, 101), 3) for s in (0, 50, 100)]
        [1.0, 0.5, 0.0]
    """
    return 0.5 * (1.0 + math.cos(math.pi * step / max(1, steps - 1)))


def constant(_step: int, _steps: int) -> float:
    """Give 1: the learning rate stays at its peak.

    Example:
        >>> constant(3, 100)
        1.0
    """
    return 1.0
