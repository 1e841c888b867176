"""Problems whose exact conditional density is known, so that any fit can be held against it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyralloy.checks import as_values, broadcast_shapes, integer

__all__ = ["Problem", "inverse_sinusoid", "sinusoid"]

#: Half-width of the uniform input of the sinusoid.
HALF_WIDTH = 10.5
LOG_TWO_PI = math.log(2.0 * math.pi)
#: Entropy of the noise, a standard normal, in nats.
NOISE_ENTROPY = 0.5 * (LOG_TWO_PI + 1.0)
#: Gauss-Legendre rule over y: nodes a panel, and panels.
NODES, PANELS = 16, 24
#: Elements of one intermediate (rows x nodes).
CHUNK = 1 << 17


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, and the law that made them.

    Attributes:
        name: What the problem is called.
        x: Inputs, shape (N, 1), float32.
        y: Targets, shape (N,), float32.

    Example:
        >>> problem = inverse_sinusoid(2500, seed=0)
        >>> problem.x.shape, problem.y.shape
        (torch.Size([2500, 1]), torch.Size([2500]))
        >>> round(problem.entropy, 5)
        1.28801
    """

    name: str
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    _log_density: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    _entropy: Callable[[], float] = field(repr=False)

    def log_density(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluate the exact log density of y given x, in float64.

        Args:
            x: Inputs, shape (N, 1) or (N,).
            y: Targets, broadcastable with (N,): a grid is ``grid[:, None]``, as for
                ``Mixture.log_prob``.

        Returns:
            Log densities in nats, of the broadcast shape; -inf where y cannot be.

        Raises:
            TypeError: ``x`` or ``y`` is not numeric.
            ValueError: ``x`` is no column, ``y`` does not broadcast with it, or one is not finite.

        Example:
            >>> problem = sinusoid(3, seed=0)
            >>> grid = torch.linspace(-14.0, 14.0, 5)
            >>> problem.log_density(problem.x, grid[:, None]).shape
            torch.Size([5, 3])
        """
        x, y = as_values("x", x).to(torch.float64), as_values("y", y).to(torch.float64)
        if x.ndim == 2 and x.shape[1] == 1:
            x = x[:, 0]
        if x.ndim != 1:
            raise ValueError(f"x has shape {tuple(x.shape)}; give inputs of shape (N, 1) or (N,).")
        try:
            broadcast_shapes(x.shape, y.shape)
        except ValueError:
            raise ValueError(
                f"y has shape {tuple(y.shape)}, which does not broadcast with x's {x.shape[0]} "
                "rows; give one value a row, or a grid as grid[:, None]."
            ) from None
        return self._log_density(x, y)

    @functools.cached_property
    def entropy(self) -> float:
        """The conditional entropy H(Y | X) in nats: no held-out NLL is lower, but by chance."""
        return self._entropy()


def sinusoid(n: int, seed: int = 0) -> Problem:
    r"""Draw the forward problem, which least squares solves.

    .. math:: y = 7 \sin(0.75\, x) + 0.5\, x + \varepsilon,
              \quad x \sim U(-10.5, 10.5),\ \varepsilon \sim N(0, 1)

    Args:
        n: Number of rows, at least 1.
        seed: Seed of the draws; the global generator is left alone.

    Returns:
        The ``Problem``; its entropy is that of the noise, :math:`\tfrac12 \log 2 \pi e`.

    Raises:
        TypeError: ``n`` or ``seed`` is no integer.
        ValueError: ``n`` is below 1, or ``seed`` below 0.

    References:
        Bishop, C. M. (1994). Mixture density networks. Aston University, NCRG/94/004.

    Example:
        >>> round(sinusoid(10, seed=0).entropy, 5)
        1.41894
    """
    cause, effect = _draw(n, seed)
    return Problem("sinusoid", cause[:, None], effect, _forward, lambda: NOISE_ENTROPY)


def inverse_sinusoid(n: int, seed: int = 0) -> Problem:
    r"""Draw the inverse problem: the same data as :func:`sinusoid`, with x and y exchanged.

    .. math:: x = 7 \sin(0.75\, y) + 0.5\, y + \varepsilon,
              \quad y \sim U(-10.5, 10.5),\ \varepsilon \sim N(0, 1)

    As many as five values of y are likely for one x. By Bayes' rule, with
    :math:`g(y) = 7 \sin(0.75\, y) + 0.5\, y`,

    .. math:: p(y \mid x) = \frac{N(x; g(y), 1)}{\int_{-10.5}^{10.5} N(x; g(t), 1)\, dt},
              \quad |y| \le 10.5.

    The integral is taken by a composite Gauss-Legendre rule; its log is exact to 1e-12 for
    :math:`|x| \le 25`, beyond which no data are drawn.

    Args:
        n: Number of rows, at least 1.
        seed: Seed of the draws; the global generator is left alone.

    Returns:
        The ``Problem``; its entropy is 1.28801 nats.

    Raises:
        TypeError: ``n`` or ``seed`` is no integer.
        ValueError: ``n`` is below 1, or ``seed`` below 0.

    References:
        Bishop, C. M. (1994). Mixture density networks. Aston University, NCRG/94/004.

    Example:
        >>> problem = inverse_sinusoid(4, seed=0)
        >>> bool((problem.y.abs() <= 10.5).all())
        True
    """
    cause, effect = _draw(n, seed)
    return Problem("inverse sinusoid", effect[:, None], cause, _inverse, _inverse_entropy)


def _draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw n causes and their noisy effects."""
    n, seed = integer("n", n), integer("seed", seed, low=0)
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(n, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    cause = HALF_WIDTH * (2.0 * unit - 1.0)
    return cause.float(), (_curve(cause) + noise).float()


def _curve(cause: Tensor) -> Tensor:
    return 7.0 * torch.sin(0.75 * cause) + 0.5 * cause


def _log_normal(residual: Tensor) -> Tensor:
    return -0.5 * (residual.square() + LOG_TWO_PI)


def _forward(x: Tensor, y: Tensor) -> Tensor:
    return _log_normal(y - _curve(x))


def _inverse(x: Tensor, y: Tensor) -> Tensor:
    joint = _log_normal(x - _curve(y)) - _log_evidence(x)
    return torch.where(y.abs() <= HALF_WIDTH, joint, -math.inf)


def _log_evidence(x: Tensor) -> Tensor:
    """Integrate N(x; g(y), 1) over y, for each x (N,), and take the log."""
    nodes, log_weights = _rule()
    centres = _curve(nodes)
    parts = [
        torch.logsumexp(_log_normal(part[:, None] - centres) + log_weights, -1)  # (N', nodes)
        for part in x.split(max(1, CHUNK // nodes.shape[0]))
    ]
    return torch.cat(parts)


@functools.cache
def _rule() -> tuple[Tensor, Tensor]:
    """Give nodes over the support of y and their log weights.

    The integrand does not vanish at the ends of the support: a trapezoid rule of 6,721 nodes still
    errs by up to 5e-6 in the log where this one, of 384, has the precision of the dtype.
    """
    unit, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(NODES))
    edges = torch.linspace(-HALF_WIDTH, HALF_WIDTH, PANELS + 1, dtype=torch.float64)
    half = HALF_WIDTH / PANELS
    nodes = (edges[:-1, None] + half * (1.0 + unit)).flatten()  # (PANELS * NODES,)
    return nodes, (half * weight).log().repeat(PANELS)


@functools.cache
def _inverse_entropy() -> float:
    """Evaluate H(Y | X) = H(Y) + H(X | Y) - H(X).

    The density of x is smooth and vanishes at both ends of the grid, where the trapezoid rule
    converges faster than any power of its step.
    """
    x = torch.linspace(-25.0, 25.0, 1001, dtype=torch.float64)
    log_density = _log_evidence(x) - math.log(2.0 * HALF_WIDTH)
    entropy_x = -torch.trapezoid(log_density.exp() * log_density, x)
    return math.log(2.0 * HALF_WIDTH) + NOISE_ENTROPY - float(entropy_x)
