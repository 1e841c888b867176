"""Posteriors: what a fit knows of the weights, as draws by name that need no Pyro to make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoNormal,
    AutoNormalizingFlow,
)
from torch import Tensor
from torch.distributions import biject_to

from pyralloy.inference.objective import pyro_runtime
from pyralloy.seeds import CPU, seeded

__all__ = [
    "Draws",
    "Gaussian",
    "Members",
    "Point",
    "Posterior",
    "Replayed",
    "Several",
    "Site",
    "Transformed",
    "posterior_of",
]


class Posterior(ABC):
    """A distribution of weights."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw weights.

        Args:
            count: Number of draws S, at least 1.
            generator: Source of randomness, on the CPU.

        Returns:
            Draws by the names of the sites, shapes (S, ...).
        """

    def centre(self) -> dict[str, Tensor] | None:
        """Give one value of the weights to stand for them, or None where none is known."""
        return None

    def chained(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw weights by chain, shapes (C, S / C, ...): independent draws are one chain."""
        return {name: values[None] for name, values in self.draw(count, generator).items()}


class Site(NamedTuple):
    """A site and how its values are cut out of one vector of real numbers.

    Attributes:
        name: Of the site.
        shape: Of its values before they are mapped to the support.
        support: Where its values lie.
    """

    name: str
    shape: torch.Size
    support: Any


def unpack(sites: Iterable[Site], vectors: Tensor) -> dict[str, Tensor]:
    """Cut vectors of real numbers (..., P) into values by site, each mapped to its support."""
    values, at = {}, 0
    for name, shape, support in sites:
        part = vectors[..., at : at + shape.numel()]
        values[name] = biject_to(support)(part.reshape((*vectors.shape[:-1], *shape)))
        at += shape.numel()
    return values


class Gaussian(Posterior):
    r"""A Normal distribution of the weights, :math:`N(m, A A^T + \mathrm{diag}(d^2))`.

    Args:
        sites: What the numbers are, in order.
        loc: The mean m, shape (P,), where every site is mapped to the real line.
        factor: A, shape (P, R), or None; triangular where all weights depend on each other.
        scale: d, shape (P,), or None.

    Example:
        >>> site = Site("w", torch.Size([2]), torch.distributions.constraints.real)
        >>> narrow = Gaussian([site], torch.tensor([1.0, 2.0]), scale=torch.tensor([1e-9, 1e-9]))
        >>> narrow.draw(3, torch.Generator().manual_seed(0))["w"].round().tolist()
        [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    """

    def __init__(
        self,
        sites: Iterable[Site],
        loc: Tensor,
        *,
        factor: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        self.sites, self.loc = tuple(sites), loc.detach().clone()
        # In one order of memory: the last bits of a product depend on it.
        plain = torch.contiguous_format
        self.factor = None if factor is None else factor.detach().clone(memory_format=plain)
        self.scale = None if scale is None else scale.detach().clone()

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw weights."""
        vectors = self.loc.expand(count, -1)  # (S, P)
        if self.factor is not None:
            noise = _noise(count, self.factor.shape[-1], self.loc, generator)
            vectors = vectors + noise @ self.factor.mT
        if self.scale is not None:
            vectors = vectors + _noise(count, len(self.loc), self.loc, generator) * self.scale
        return unpack(self.sites, vectors)

    def centre(self) -> dict[str, Tensor]:
        """Give the median."""
        return unpack(self.sites, self.loc)

    @property
    def covariance(self) -> Tensor:
        """The covariance, shape (P, P), where every site is mapped to the real line."""
        covariance = self.loc.new_zeros(len(self.loc), len(self.loc))
        if self.factor is not None:
            covariance = covariance + self.factor @ self.factor.mT
        return covariance if self.scale is None else covariance + self.scale.square().diag()


class Point(Posterior):
    """One value of the weights, as maximum likelihood and MAP have it.

    Args:
        values: By the names of the sites.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = {name: value.detach().clone() for name, value in values.items()}

    @classmethod
    def of(cls, sites: Iterable[Site], vector: Tensor) -> Point:
        """Make one from a vector of real numbers (P,)."""
        return cls(unpack(sites, vector))

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Repeat the value."""
        del generator
        return {n: v.expand(count, *v.shape) for n, v in self._values.items()}

    def centre(self) -> dict[str, Tensor]:
        """Give the value."""
        return dict(self._values)


class Transformed(Posterior):
    """Standard Normal numbers through a map, as in a normalising flow.

    Args:
        sites: What the numbers are, in order.
        size: How many there are, P.
        like: A tensor of the dtype and device of the numbers.
        transform: From standard Normal numbers (S, P) to sites mapped to the real line.
    """

    def __init__(
        self, sites: Iterable[Site], size: int, like: Tensor, transform: Callable[[Tensor], Tensor]
    ) -> None:
        self.sites, self._size, self._transform = tuple(sites), size, transform
        self._like = like.new_empty(0)

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw weights."""
        noise = _noise(count, self._size, self._like, generator)
        return {n: v.detach() for n, v in unpack(self.sites, self._transform(noise)).items()}


class Draws(Posterior):
    """Draws that were made and kept, by chain, as Markov chain Monte Carlo makes them.

    Args:
        chains: By the names of the sites, shapes (C, S, ...).
        stats: What the sampler says of each draw, by name, shapes (C, S).

    Example:
        >>> kept = Draws({"w": torch.arange(6.0).reshape(2, 3)})
        >>> kept.draw(6, torch.Generator().manual_seed(0))["w"].sort().values.tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(
        self, chains: Mapping[str, Tensor], stats: Mapping[str, Tensor] | None = None
    ) -> None:
        self.chains = {name: values.detach() for name, values in chains.items()}
        self.stats = dict(stats or {})

    def __len__(self) -> int:
        return next(iter(self.chains.values())).shape[:2].numel()

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Choose among the draws without repeating any before all are taken."""
        total = len(self)
        rounds = [torch.randperm(total, generator=generator) for _ in range(-(-count // total))]
        rows = torch.cat(rounds)[:count]
        return {n: v.flatten(0, 1)[rows.to(v.device)] for n, v in self.chains.items()}

    def kept(self, count: int) -> slice:
        """Thin the draws of each chain, evenly, to no more than ``count`` of all chains."""
        chains, draws = next(iter(self.chains.values())).shape[:2]
        return slice(None, None, -(-draws // max(1, count // chains)))

    def chained(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Give the draws in their order, thinned to about ``count``."""
        del generator
        return {name: values[:, self.kept(count)] for name, values in self.chains.items()}


class Members(Posterior):
    """Weights of an ensemble's members, each as likely as the others.

    Args:
        values: By the names of the weights, shapes (M, ...).

    Example:
        >>> members = Members({"w": torch.arange(3.0)})
        >>> members.draw(100, torch.Generator())["w"].tolist()  # all three, whatever is asked for
        [0.0, 1.0, 2.0]
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = {name: value.detach() for name, value in values.items()}

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG002
        """Give all members: they are no draws, and a pool of some is another pool."""
        return dict(self.values)


class Several(Posterior):
    """Posteriors of an ensemble's members, each as likely as the others.

    Args:
        members: Of each its posterior, None for weights of one value, and its weights by name, for
            those that the posterior does not draw.

    Attributes:
        members: As given.
    """

    def __init__(self, members: Iterable[tuple[Posterior | None, Mapping[str, Tensor]]]) -> None:
        self.members = [
            (posterior, {n: w.detach().clone() for n, w in weights.items()})
            for posterior, weights in members
        ]

    def __len__(self) -> int:
        return len(self.members)

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw as often from each member, so that there may be a few draws more than ``count``."""
        each = -(-count // len(self.members))
        parts = []
        for posterior, weights in self.members:
            drawn = {} if posterior is None else posterior.draw(each, generator)
            size = len(next(iter(drawn.values()))) if drawn else each
            parts.append({n: drawn.get(n, w.expand(size, *w.shape)) for n, w in weights.items()})
        return {n: torch.cat([part[n] for part in parts]) for n in parts[0]}


class Replayed(Posterior):
    """A guide of the user's own, run in Pyro for each draw; a fit in another thread waits.

    Args:
        names: Sites to draw.
        run: The guide, called without arguments.
        device: Where it draws.
    """

    def __init__(
        self, names: Iterable[str], run: Callable[[], Any], device: torch.device = CPU
    ) -> None:
        self._names, self._run, self._device = tuple(names), run, device

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw weights."""
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        with pyro_runtime(), seeded(seed, self._device):
            traces = [poutine.trace(self._run).get_trace() for _ in range(count)]
        values: dict[str, list[Any]] = {
            name: [trace.nodes[name].get("value") for trace in traces] for name in self._names
        }
        return {name: torch.stack(each) for name, each in values.items()}


def posterior_of(guide: Any, names: Iterable[str], run: Callable[[], Any]) -> Posterior:
    """Give what a guide says of the weights, as it is trained now.

    Args:
        guide: A guide of Pyro's, or one of the user's own, called once before.
        names: The sites of the model.
        run: Calls the guide; used where it is the user's own.
    """
    if isinstance(guide, AutoDelta):
        return Point(guide.median())
    if isinstance(guide, AutoNormal):
        return _mean_field(guide)
    known = _continuous(guide) if isinstance(guide, AutoContinuous) else None
    if known is not None:
        return known
    parts = guide.parameters() if isinstance(guide, torch.nn.Module) else ()
    return Replayed(names, run, next((p.device for p in parts), CPU))


def sites_of(guide: Any) -> list[Site]:
    """List the sites of one of Pyro's guides, in the order of its vector."""
    found = []
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        support, value = site["fn"].support, site["value"]
        found.append(Site(name, biject_to(support).inv(value).shape, support))
    return found


def _mean_field(guide: AutoNormal) -> Posterior:
    sites = sites_of(guide)
    parts = [guide._get_loc_and_scale(site.name) for site in sites]
    loc, scale = (torch.cat([p[i].detach().reshape(-1) for p in parts]) for i in (0, 1))
    return Gaussian(sites, loc, scale=scale)


def _continuous(guide: AutoContinuous) -> Posterior | None:
    sites = sites_of(guide)
    if isinstance(guide, AutoLaplaceApproximation):
        return Point.of(sites, guide.loc)
    made: Any = guide.get_posterior()
    if isinstance(made, torch.distributions.MultivariateNormal):
        return Gaussian(sites, made.loc, factor=made.scale_tril)
    if isinstance(made, torch.distributions.LowRankMultivariateNormal):
        scale = made._unbroadcasted_cov_diag.sqrt()
        return Gaussian(sites, made.loc, factor=made._unbroadcasted_cov_factor, scale=scale)
    if isinstance(guide, AutoDiagonalNormal):
        return Gaussian(sites, made.base_dist.loc, scale=made.base_dist.scale)
    if isinstance(guide, AutoNormalizingFlow):
        transform: Any = torch.distributions.ComposeTransform(made.transforms)
        return Transformed(sites, guide.latent_dim, next(guide.parameters()), transform)
    return None


def _noise(count: int, size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard Normal numbers (S, P) from a CPU generator whatever the device."""
    drawn = torch.randn(count, size, dtype=like.dtype, generator=generator)
    return drawn.to(like.device)
