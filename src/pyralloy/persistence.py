"""Persistence: a model as numbers and a blueprint, and back, without running what a file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyralloy.archive import Unreadable
from pyralloy.families import FAMILIES, Family, JointFamily, LowRank, Product
from pyralloy.heads import MixtureHead
from pyralloy.model import MDN
from pyralloy.networks import ACTIVATIONS, MLP

__all__ = ["Unreadable", "describe", "fill", "rebuild"]


class _NoBlueprint(Exception):
    """A part that a file cannot describe."""


def describe(model: MDN) -> dict[str, Any] | str:
    """Describe how to make a model, in what JSON can say.

    Args:
        model: Of any trunk and head.

    Returns:
        What :func:`rebuild` takes; or, for parts of other classes than
        :class:`~pyralloy.networks.MLP`, :class:`~pyralloy.MixtureHead` and the families of
        pyralloy, which only their own code can make, a sentence that names the first of them.

    Example:
        >>> describe(MDN(MLP(2, hidden=(8,)), MixtureHead(8, components=3)))["trunk"]
        {'in_features': 2, 'hidden': [8], 'activation': 'silu'}
        >>> describe(MDN(nn.Linear(2, 8), MixtureHead(8, components=3)))
        'trunk is a Linear'
    """
    try:
        _require_exactly(model, MDN, "model")
        return {"trunk": _describe_trunk(model.trunk), "head": _describe_head(model.head)}
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
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise Unreadable(f"the blueprint of the model makes no sense ({error}).") from error
    fill(model, tensors, assign=True)
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
    return {"in_features": trunk.in_features, "hidden": hidden, "activation": activation}


def _trunk_of(in_features: int, hidden: list[int], activation: str) -> MLP:
    return MLP(in_features, hidden, ACTIVATIONS[activation])


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
