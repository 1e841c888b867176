"""Storage: a posterior, and what chains say, as tensors and notes of a file, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyralloy.archive import Unreadable, named, under
from pyralloy.inference.chains import Chains
from pyralloy.inference.posterior import Draws, Gaussian, Members, Point, Posterior, Several, Site
from pyralloy.model import MDN

__all__ = ["Stored", "chains_of", "describe_chains", "describe_posterior", "posterior_of_file"]

#: Supports without numbers of their own, by the names that a file has for them.
SUPPORTS: dict[str, Any] = {
    "real": constraints.real,
    "positive": constraints.positive,
    "nonnegative": constraints.nonnegative,
    "unit interval": constraints.unit_interval,
    "simplex": constraints.simplex,
}


class Stored(NamedTuple):
    """What goes into a file: tensors by name, and notes that JSON can hold."""

    tensors: dict[str, Tensor]
    notes: dict[str, Any]


class _Form(NamedTuple):
    """How a posterior of one class is taken apart, and put together."""

    kind: type[Posterior]
    describe: Callable[[Any], Stored | None]
    make: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Posterior]


def describe_posterior(posterior: Posterior | None) -> Stored | None:
    """Take a posterior apart, so that the same bits can be drawn from it again.

    Returns:
        Tensors and notes, both empty of no posterior; None where numbers alone cannot give it back:
        one drawn by a guide of the user's own or through a flow, and one of weights whose support
        has no name here.
    """
    if posterior is None:
        return Stored({}, {})
    for name, form in FORMS.items():
        if type(posterior) is form.kind:
            stored = form.describe(posterior)
            return (
                None if stored is None else Stored(stored.tensors, {"form": name, **stored.notes})
            )
    return None


def posterior_of_file(stored: Stored, model: MDN) -> Posterior | None:
    """Put a posterior together.

    Args:
        stored: As of :func:`describe_posterior`, from a file that may have been tampered with.
        model: Of which the weights are.

    Raises:
        Unreadable: It makes no sense, or is not of this model.
    """
    if not stored.notes:
        return None
    weights = model.weights()
    device = next(iter(weights.values())).device
    tensors = {name: tensor.to(device) for name, tensor in stored.tensors.items()}
    try:
        made = _made(tensors, stored.notes)
        wrong = _misfits(made, model)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, RecursionError) as error:
        raise Unreadable(f"the posterior in the file makes no sense ({error}).") from error
    if wrong:
        raise Unreadable(
            f"the posterior in the file is not that of the model's prior: {wrong[0]!r} differs; "
            "give a model of the same parts and prior."
        )
    return made


def _misfits(posterior: Posterior, model: MDN) -> list[str]:
    """Give the names of what a posterior draws that are not those of a model, or of other form."""
    weights, found = model.weights(), []
    if isinstance(posterior, Several):
        for own, _ in posterior.members:
            found += [] if own is None else _misfits(own, model)
    whole = isinstance(posterior, Members | Several)  # all weights, and nothing else
    scales = {} if whole or model.prior is None else model.prior.scales(weights)
    known = {name: weights[name] for name in (weights if whole else model.uncertain())}
    drawn = posterior.draw(1, torch.Generator().manual_seed(0))
    found += sorted(drawn.keys() ^ (known.keys() | scales.keys()))
    return found or [
        name
        for name, weight in known.items()
        if drawn[name].shape[1:] != weight.shape or drawn[name].dtype != weight.dtype
    ]


def describe_chains(chains: Chains | None) -> Stored:
    """Take a report of chains apart; both parts are empty of none."""
    if chains is None:
        return Stored({}, {})
    report = chains._asdict()
    tensors = {name: report.pop(name) for name in ("r_hat", "ess")}
    return Stored(tensors, report)


def chains_of(stored: Stored) -> Chains | None:
    """Put a report of chains together.

    Raises:
        Unreadable: It makes no sense.
    """
    if not stored.notes:
        return None
    notes, tensors = stored.notes, stored.tensors
    try:
        return Chains(
            tensors["r_hat"],
            tensors["ess"],
            tuple(int(v) for v in notes["divergences"]),
            tuple(float(v) for v in notes["acceptance"]),
            tuple(float(v) for v in notes["step_size"]),
            int(notes["gradients"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Unreadable(f"the report of chains makes no sense ({error}).") from error


# -- sites and supports ---------------------------------------------------------------------------


def _describe_support(support: Any) -> list[Any] | None:
    """Give the name, and how many dimensions one event has; None of one that has no name."""
    event = 0
    while isinstance(support, constraints.independent):
        support, event = support.base_constraint, event + support.reinterpreted_batch_ndims
    name = next((n for n, known in SUPPORTS.items() if support is known), None)
    return None if name is None else [name, event]


def _support(name: str, event: int) -> Any:
    return constraints.independent(SUPPORTS[name], event) if event else SUPPORTS[name]


def _site(name: str, shape: list[int], support: list[Any]) -> Site:
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"{name} has shape {shape}")
    return Site(name, torch.Size(shape), _support(*support))


def _describe_gaussian(posterior: Gaussian) -> Stored | None:
    sites = [[s.name, list(s.shape), _describe_support(s.support)] for s in posterior.sites]
    if any(support is None for *_, support in sites):
        return None
    parts = {"loc": posterior.loc, "factor": posterior.factor, "scale": posterior.scale}
    return Stored({n: v for n, v in parts.items() if v is not None}, {"sites": sites})


def _gaussian(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Posterior:
    sites, loc = [_site(*site) for site in notes["sites"]], tensors["loc"]
    made = Gaussian(sites, loc, factor=tensors.get("factor"), scale=tensors.get("scale"))
    sizes = {
        "loc": (sum(site.shape.numel() for site in sites),),
        "factor": loc.shape if made.factor is None else made.factor.shape[:1],
        "scale": loc.shape if made.scale is None else made.scale.shape,
    }
    if any(tuple(size) != tuple(loc.shape) for size in sizes.values()):
        raise ValueError(f"sizes {sizes} differ from {tuple(loc.shape)}")
    return made


def _draws(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Posterior:
    if len({tuple(values.shape[:2]) for values in tensors.values()}) != 1:
        raise ValueError("draws of weights differ in number")
    return Draws(_in_order(tensors, notes))


def _members(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Posterior:
    if len({values.shape[:1] for values in tensors.values()}) != 1:
        raise ValueError("members differ in number")
    return Members(_in_order(tensors, notes))


def _describe_several(several: Several) -> Stored | None:
    tensors, notes = {}, []
    for place, (posterior, weights) in enumerate(several.members):
        stored = describe_posterior(posterior)
        if stored is None:
            return None
        tensors |= named(f"{place}.posterior", stored.tensors) | named(f"{place}.weights", weights)
        notes.append({"posterior": stored.notes, "order": list(weights)})
    return Stored(tensors, {"members": notes})


def _several(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Posterior:
    members = []
    for place, note in enumerate(notes["members"]):
        weights = _in_order(under(f"{place}.weights", tensors), note)
        own = note["posterior"]
        posterior = _made(under(f"{place}.posterior", tensors), own) if own else None
        members.append((posterior, weights))
    return Several(members)


def _made(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Posterior:
    return FORMS[notes["form"]].make(tensors, notes)


def _ordered(tensors: dict[str, Tensor]) -> Stored:
    return Stored(tensors, {"order": list(tensors)})  # a file sorts names


def _in_order(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> dict[str, Tensor]:
    if sorted(notes["order"]) != sorted(tensors):
        raise ValueError(f"order {notes['order']} names other weights")
    return {name: tensors[name] for name in notes["order"]}


#: Posteriors that are numbers, by the names that a file has for them.
FORMS = {
    "gaussian": _Form(Gaussian, _describe_gaussian, _gaussian),
    "members": _Form(Members, lambda kept: _ordered(kept.values), _members),
    "several": _Form(Several, _describe_several, _several),
    "draws": _Form(Draws, lambda kept: _ordered(kept.chains), _draws),
    "point": _Form(
        Point, lambda point: _ordered(point.centre()), lambda t, n: Point(_in_order(t, n))
    ),
}
