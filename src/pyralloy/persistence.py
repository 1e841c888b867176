"""Persistence: a model as numbers and a blueprint, and back, without running what a file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyralloy.archive import Unreadable
from pyralloy.families import FAMILIES, Family, JointFamily, LowRank, Product
from pyralloy.heads import MixtureHead
from pyralloy.model import MDN
from pyralloy.networks import ACTIVATIONS, MLP
from pyralloy.priors import ByName, Each, FanIn, Hierarchical, LastLayer, Prior

__all__ = ["Unreadable", "describe", "fill", "rebuild"]


#: What a blueprint that makes no sense raises where something is made of it.
_SENSELESS = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    OverflowError,
    RecursionError,
)


class _NoBlueprint(Exception):
    """A part that a file cannot describe."""


def describe(model: MDN) -> dict[str, Any] | str:
    """Describe how to make a model, in what JSON can say.

    Args:
        model: Of any trunk and head.

    Returns:
        What :func:`rebuild` takes; or, for parts of other classes than
        :class:`~pyralloy.networks.MLP`, :class:`~pyralloy.MixtureHead` and the families and priors
        of pyralloy, which only their own code can make, a sentence that names the first of them.

    Example:
        >>> describe(MDN(MLP(2, hidden=(8,)), MixtureHead(8, components=3)))["trunk"]
        {'in_features': 2, 'hidden': [8], 'activation': 'silu', 'bins': 0}
        >>> describe(MDN(nn.Linear(2, 8), MixtureHead(8, components=3)))
        'trunk is a Linear'
    """
    try:
        _require_exactly(model, MDN, "model")
        return {
            "trunk": _describe_trunk(model.trunk),
            "head": _describe_head(model.head),
            "prior": _describe_prior(model.prior),
        }
    except _NoBlueprint as reason:
        return str(reason)


def rebuild(blueprint: Any, tensors: Mapping[str, Tensor]) -> MDN:
    """Make the model of a blueprint, with the numbers of a file.

    It is made on torch's ``meta`` device first, where nothing is allocated, so that no blueprint
    can ask for more memory than its file has numbers.

    Args:
        blueprint: As of :func:`describe`, from a file that may have been tampered with.
        tensors: The model's state, by name.

    Returns:
        The model, in evaluation mode.

    Raises:
        Unreadable: The blueprint makes no sense, or its shapes are not those of the numbers.
    """
    try:
        hidden = blueprint["trunk"]["hidden"]
        if len(hidden) > len(tensors):
            raise Unreadable(f"the model has {len(hidden)} layers and {len(tensors)} tensors.")
        with torch.device("meta"):
            model = MDN(_trunk_of(**blueprint["trunk"]), _head_of(**blueprint["head"]))
        prior = _prior_of(blueprint["prior"])
    except _SENSELESS as error:
        raise Unreadable(f"the blueprint of the model makes no sense ({error}).") from error
    fill(model, tensors, assign=True)
    model.prior = prior
    try:
        fits = prior is None or bool(model.uncertain())
    except _SENSELESS as error:
        raise Unreadable(f"the prior of the model makes no sense ({error}).") from error
    if not fits:
        raise Unreadable("the prior of the model is of none of its weights.")
    return model.eval()


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Put a state into a model of the same names and shapes.

    Args:
        model: Changed in place, all of it or nothing.
        tensors: Its state, by name.
        assign: Whether to take the tensors themselves instead of copying their numbers.

    Raises:
        Unreadable: Names, shapes or kinds of number differ.
    """
    own = model.state_dict()
    if missing := sorted(own.keys() ^ tensors.keys()):
        where = "model" if missing[0] in own else "file"
        raise Unreadable(
            f"{missing[0]!r} is only in the {where}: give a model of the parts that was saved."
        )
    for name, value in own.items():
        found = tensors[name]
        # A scaling that was not fitted yet has no columns; it takes those of the file.
        free = name.startswith(("x_scaling.", "y_scaling.")) and value.ndim == 0
        if (found.shape != value.shape and not free) or (
            found.is_floating_point() != value.is_floating_point()
        ):
            raise Unreadable(
                f"{name} is {tuple(found.shape)} {found.dtype} in the file and "
                f"{tuple(value.shape)} {value.dtype} in the model: give a model of the same sizes."
            )
    # Of one kind, or the parts of the network would not fit together.
    floats = {v.dtype for k, v in tensors.items() if v.is_floating_point() and "_scaling." not in k}
    if assign and len(floats) > 1:
        raise Unreadable(f"the weights are of {len(floats)} types: {sorted(map(str, floats))}.")
    model.load_state_dict(dict(tensors), assign=assign)


def _require_exactly(part: object, kind: type, name: str) -> None:
    # A subclass may do anything; its code is not in the file.
    if type(part) is not kind:
        raise _NoBlueprint(f"{name} is a {type(part).__name__}")


def _describe_trunk(trunk: nn.Module) -> dict[str, Any]:
    _require_exactly(trunk, MLP, "trunk")
    hidden, activation = [], "silu"
    for layer in trunk.layers:  # pyright: ignore[reportGeneralTypeIssues]
        if type(layer) is nn.Linear:
            hidden.append(layer.out_features)
            continue
        known = (n for n, kind in ACTIVATIONS.items() if repr(layer) == repr(kind()))
        activation = next(known, None)
        if activation is None:
            raise _NoBlueprint(f"the trunk's activation is {layer!r}")
    encoding: Any = trunk.encoding
    return {
        "in_features": trunk.in_features,
        "hidden": hidden,
        "activation": activation,
        "bins": 0 if encoding is None else encoding.bins,
    }


def _trunk_of(in_features: int, hidden: list[int], activation: str, bins: int = 0) -> MLP:
    return MLP(in_features, hidden, ACTIVATIONS[activation], bins=bins)


def _describe_head(head: MixtureHead) -> dict[str, Any]:
    _require_exactly(head, MixtureHead, "head")
    family, covariance, rank = head.family, "diagonal", None
    if isinstance(family, JointFamily):
        covariance = family.form.name
        rank = family.form.rank if isinstance(family.form, LowRank) else None
        family = family.law.scalar
    elif isinstance(family, Product):
        family = family.family
    return {
        "in_features": head.in_features,
        "components": head.components,
        "targets": head.targets,
        "family": _describe_family(family),
        "covariance": covariance,
        "rank": rank,
        "spread": float(head.spread),
        "constant_scale": head.constant_scale,
    }


def _head_of(family: dict[str, Any], **options: Any) -> MixtureHead:
    return MixtureHead(family=_family_of(**family), **options)


def _describe_family(family: Any) -> dict[str, Any]:
    known = FAMILIES.get(family.name)
    _require_exactly(family, type(known), "family")
    if family.support == FAMILIES[family.name].support:
        return {"name": family.name}
    return {"name": family.name, "interval": [family.support.low, family.support.high]}


def _family_of(name: str, interval: list[float] | None = None) -> Family:
    if interval is None:
        return FAMILIES[name]
    low, high = interval
    return type(FAMILIES[name])(low, high)  # pyright: ignore[reportCallIssue]


# -- priors ---------------------------------------------------------------------------------------


class _Rule(NamedTuple):
    """How a prior is described, and made of its description."""

    kind: type
    describe: Callable[[Any], dict[str, Any]]
    make: Callable[..., Prior]


def _describe_prior(prior: Prior | None) -> dict[str, Any] | None:
    if prior is None:
        return None
    name = next((n for n, rule in RULES.items() if type(prior) is rule.kind), None)
    if name is None:
        raise _NoBlueprint(f"prior is a {type(prior).__name__}")
    return {"rule": name, **RULES[name].describe(prior)}


def _prior_of(blueprint: dict[str, Any] | None) -> Prior | None:
    if blueprint is None:
        return None
    options = dict(blueprint)
    return RULES[options.pop("rule")].make(**options)


def _describe_scaled(prior: Any) -> dict[str, Any]:
    kind = prior.kind
    more = kind.args if isinstance(kind, partial) and not kind.keywords else ()
    plain = kind.func if more else kind
    name = next((n for n, known in KINDS.items() if plain is known), None)
    if name is None or not all(isinstance(v, int | float) for v in more):
        raise _NoBlueprint(f"the prior's kind is {kind!r}")
    return {"scale": prior.scale, "kind": name, "more": list(more)}


def _scaled(rule: Callable[..., Prior], scale: float, kind: str, more: list[float]) -> Prior:
    return rule(scale, partial(KINDS[kind], *more) if more else KINDS[kind])


def _describe_each(prior: Each) -> dict[str, Any]:
    inner, event = prior.distribution, 0
    while type(inner) is dist.Independent:
        inner, event = inner.base_dist, event + inner.reinterpreted_batch_ndims
    name = next((n for n, kind in KINDS.items() if type(inner) is kind), None)
    if name is None:
        raise _NoBlueprint(f"prior is a {prior.distribution!r}")
    values = {n: getattr(inner, n) for n in inner.arg_constraints}
    dtype = next(iter(values.values())).dtype
    return {
        "kind": name,
        "values": {n: v.tolist() for n, v in values.items()},
        "double": dtype == torch.float64,
        "event": event,
    }


def _each(kind: str, values: dict[str, Any], *, double: bool, event: int) -> Prior:
    dtype = torch.float64 if double else torch.float32
    made = KINDS[kind](**{n: torch.tensor(v, dtype=dtype) for n, v in values.items()})
    return Each(made.to_event(event))


def _by_name(priors: list[tuple[str, Any]]) -> Prior:
    return ByName({pattern: _prior_of(each) for pattern, each in priors})


#: Distributions on the real line that priors are made of.
KINDS: dict[str, Any] = {
    "normal": dist.Normal,
    "laplace": dist.Laplace,
    "cauchy": dist.Cauchy,
    "student_t": dist.StudentT,
}

#: Priors by the names that a file has for them.
RULES = {
    "each": _Rule(Each, _describe_each, _each),
    "fan_in": _Rule(FanIn, _describe_scaled, partial(_scaled, FanIn)),
    "hierarchical": _Rule(Hierarchical, _describe_scaled, partial(_scaled, Hierarchical)),
    "by_name": _Rule(
        ByName,
        lambda prior: {"priors": [[n, _describe_prior(p)] for n, p in prior.priors.items()]},
        _by_name,
    ),
    "last_layer": _Rule(
        LastLayer,
        lambda prior: {"prior": _describe_prior(prior.priors["head.*"])},
        lambda prior: LastLayer(_prior_of(prior)),
    ),
}
