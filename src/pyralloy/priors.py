"""Priors on the weights of a network: by rule, by layer, by name."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from pyralloy.checks import positive

__all__ = ["ByName", "Each", "FanIn", "Hierarchical", "LastLayer", "Prior", "as_prior"]

#: Makes a distribution from its location and scale, as ``dist.Normal`` does.
Kind = Callable[[Tensor, Tensor], Any]


class Prior(ABC):
    """What is believed of weights before any data: distributions, by the weights' names.

    A prior sees the weights' names, shapes and dtypes, never their values. A prior of one's own is
    a subclass with one method, :meth:`distributions`; with :meth:`scales` too, it is hierarchical.

    Example:
        >>> class Wide(Prior):
        ...     def distributions(self, weights, scales):
        ...         return {n: dist.Normal(0.0, 10.0).expand(w.shape) for n, w in weights.items()}
        >>> weights = {"head.outputs.weight": torch.zeros(3, 2)}
        >>> Wide().distributions(weights, {})["head.outputs.weight"].batch_shape
        torch.Size([3, 2])
    """

    def scales(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Give priors of positive scales that weights share, by the names of their sites."""
        del weights
        return {}

    @abstractmethod
    def distributions(
        self, weights: Mapping[str, Tensor], scales: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Give a distribution, of the weight's shape, for each weight that has a prior.

        Args:
            weights: All weights, by name.
            scales: Values of what :meth:`scales` named.
        """


@dataclass(frozen=True, eq=False)
class Each(Prior):
    """Give every weight the same distribution.

    Args:
        distribution: A Pyro distribution on the real line, whose shape broadcasts to each weight's.

    Raises:
        ValueError: A distribution on less than the real line.

    Example:
        >>> prior = Each(dist.Laplace(0.0, 1.0))
        >>> prior.distributions({"weight": torch.zeros(3, 2)}, {})["weight"].event_shape
        torch.Size([3, 2])
    """

    distribution: Any

    def __post_init__(self) -> None:
        support = self.distribution.support
        far = torch.full(self.distribution.shape(), 1e4)
        if support.is_discrete or not bool((support.check(far) & support.check(-far)).all()):
            raise ValueError(
                f"prior {self.distribution!r} is not on the whole real line: a weight may have any "
                "value."
            )

    def distributions(
        self, weights: Mapping[str, Tensor], scales: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Expand the distribution to each weight.

        Raises:
            ValueError: A shape that does not fit.
        """
        del scales
        return {name: _shaped(self.distribution, name, weight) for name, weight in weights.items()}


@dataclass(frozen=True)
class FanIn(Prior):
    r"""Let weights shrink with the number of inputs, so that features keep their size.

    .. math:: w \sim f(0, s / \sqrt{\text{fan-in}}), \qquad b \sim f(0, s)

    for weights w of two or more dimensions and vectors b, with the fan-in of a weight its size over
    its first dimension.

    Args:
        scale: The scale s, above 0, where x and y are standardised.
        kind: Makes f from location and scale: ``dist.Normal``, ``dist.Laplace``, or with heavier
            tails ``functools.partial(dist.StudentT, 3.0)``.

    References:
        Neal, R. M. (1996). Bayesian learning for neural networks. Springer.
        doi:10.1007/978-1-4612-0745-0

    Example:
        >>> made = FanIn().distributions({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, {})
        >>> made["weight"].base_dist.scale[0, 0].item(), made["bias"].base_dist.scale[0].item()
        (0.5, 1.0)
    """

    scale: float = 1.0
    kind: Kind = dist.Normal

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    def distributions(
        self, weights: Mapping[str, Tensor], scales: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Give each weight its distribution."""
        del scales
        return {
            name: _about_zero(self.kind, weight, self.scale / _root_fan_in(weight))
            for name, weight in weights.items()
        }


@dataclass(frozen=True)
class Hierarchical(Prior):
    r"""Learn how large the weights of each layer are.

    .. math:: \tau_l \sim \text{HalfCauchy}(s), \qquad w \sim f(0, \tau_l / \sqrt{\text{fan-in}}),
              \qquad b \sim f(0, \tau_l)

    The scale of layer l is the site ``<layer>.prior_scale``. There is no most probable value: the
    joint density grows without bound as a layer's scale and weights go to zero together, so this
    prior is for guides with a spread and for NUTS, not for MAP or Laplace.

    Args:
        scale: Median s of the layers' scales, above 0.
        kind: As for :class:`FanIn`.

    References:
        Gelman, A. (2006). Prior distributions for variance parameters in hierarchical models.
        Bayesian Analysis 1. doi:10.1214/06-BA117A

    Example:
        >>> weights = {"head.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)}
        >>> list(Hierarchical().scales(weights))
        ['head.prior_scale']
    """

    scale: float = 1.0
    kind: Kind = dist.Normal

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    def scales(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Give each layer's scale its prior."""
        return {
            _scale_of(name): dist.HalfCauchy(weight.new_tensor(self.scale))
            for name, weight in weights.items()
        }

    def distributions(
        self, weights: Mapping[str, Tensor], scales: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Give each weight its distribution, given the scale of its layer."""
        return {
            name: _about_zero(self.kind, weight, scales[_scale_of(name)] / _root_fan_in(weight))
            for name, weight in weights.items()
        }


class ByName(Prior):
    """Choose a prior by the name of the weight.

    Args:
        priors: From patterns of names, in which ``*`` stands for anything, to priors, Pyro
            distributions, or None for weights without a prior, which are learnt by maximum
            likelihood. The first pattern that fits a name decides; a weight that none fits has no
            prior.

    Raises:
        TypeError: A prior that is none.
        ValueError: No pattern, or, when it meets a model, one that fits no weight.

    Example:
        >>> prior = ByName({"*.bias": None, "*": FanIn()})
        >>> list(prior.distributions({"a.weight": torch.zeros(2, 2), "a.bias": torch.zeros(2)}, {}))
        ['a.weight']
    """

    def __init__(self, priors: Mapping[str, Any]) -> None:
        if not isinstance(priors, Mapping) or not priors:
            raise ValueError(f"priors={priors!r}: give a mapping from patterns of names to priors.")
        self.priors = {p: None if v is None else as_prior(v) for p, v in priors.items()}

    def __repr__(self) -> str:
        return f"ByName({self.priors!r})"

    def scales(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Join the scales of all its priors."""
        joined: dict[str, Any] = {}
        for prior, part in self._parts(weights):
            joined |= prior.scales(part)
        return joined

    def distributions(
        self, weights: Mapping[str, Tensor], scales: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Join the distributions of all its priors, in the order of the weights."""
        joined: dict[str, Any] = {}
        for prior, part in self._parts(weights):
            joined |= prior.distributions(part, scales)
        return {name: joined[name] for name in weights if name in joined}

    def _parts(self, weights: Mapping[str, Tensor]) -> list[tuple[Prior, dict[str, Tensor]]]:
        parts: dict[str, dict[str, Tensor]] = {pattern: {} for pattern in self.priors}
        for name, weight in weights.items():
            first = next((p for p in self.priors if fnmatchcase(name, p)), None)
            if first is not None:
                parts[first][name] = weight
        idle = [
            p
            for p, part in parts.items()
            if not part and not any(fnmatchcase(n, p) for n in weights)
        ]
        if idle:
            raise ValueError(
                f"priors names {idle[0]!r}, which fits no weight: the weights are {list(weights)}."
            )
        return [(prior, parts[p]) for p, prior in self.priors.items() if prior is not None]


class LastLayer(ByName):
    """Give the head a prior, and none to the trunk, which is learnt by maximum likelihood.

    Args:
        prior: Of the head's weights: a prior or a Pyro distribution; None takes :class:`FanIn`.

    References:
        Kristiadi, A., Hein, M., & Hennig, P. (2020). Being Bayesian, even just a bit, fixes
        overconfidence in ReLU networks. ICML. arXiv:2002.10118

    Example:
        >>> weights = {"trunk.weight": torch.zeros(2, 2), "head.weight": torch.zeros(3, 2)}
        >>> list(LastLayer().distributions(weights, {}))
        ['head.weight']
    """

    def __init__(self, prior: Any = None) -> None:
        super().__init__({"head.*": FanIn() if prior is None else prior})


def as_prior(prior: Any) -> Prior:
    """Take a Pyro distribution as the prior of each weight, and give a prior as it is.

    Raises:
        TypeError: Neither of them.
    """
    if isinstance(prior, Prior):
        return prior
    if not isinstance(prior, torch.distributions.Distribution):
        raise TypeError(
            f"prior={prior!r}: give one of pyralloy.priors, a Pyro distribution for each weight, "
            "or None for maximum likelihood."
        )
    return Each(prior)


def _root_fan_in(weight: Tensor) -> float:
    return math.sqrt(weight[0].numel()) if weight.ndim > 1 else 1.0


def _scale_of(name: str) -> str:
    return f"{name.rpartition('.')[0]}.prior_scale".lstrip(".")


def _about_zero(kind: Kind, weight: Tensor, scale: Tensor | float) -> Any:
    scale = torch.as_tensor(scale, dtype=weight.dtype, device=weight.device)
    return kind(torch.zeros_like(scale), scale).expand(weight.shape).to_event(weight.ndim)


def _shaped(distribution: Any, name: str, weight: Tensor) -> Any:
    """Expand a distribution to a weight, all of whose dimensions then are one event."""
    made, event = _moved(distribution, weight), len(distribution.event_shape)
    batch = weight.shape[: weight.ndim - event]
    own = made.batch_shape
    fits = made.event_shape == weight.shape[len(batch) :] and len(own) <= len(batch)
    tail = batch[len(batch) - len(own) :]
    if not fits or any(a not in (1, b) for a, b in zip(own, tail, strict=True)):
        raise ValueError(
            f"prior of batch shape {tuple(own)} and event shape {tuple(made.event_shape)} does not "
            f"fit the weight {name!r} of shape {tuple(weight.shape)}: give one whose shape "
            "broadcasts to it, as dist.Normal(0.0, 1.0), or choose weights by priors.ByName."
        )
    return made.expand(batch).to_event(len(batch))


def _moved(distribution: Any, weight: Tensor) -> Any:
    """Give a distribution whose parameters have a weight's dtype and device."""
    names = list(getattr(distribution, "arg_constraints", {}))
    known = set(inspect.signature(type(distribution)).parameters)
    if not names or not known.issuperset(names):
        return distribution  # wrapped, or of several parameterisations: taken as it is
    try:
        values = {n: getattr(distribution, n).to(weight) for n in names}
        return type(distribution)(**values)
    except (TypeError, ValueError):
        return distribution
