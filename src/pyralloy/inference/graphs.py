"""Graphs: a captured graph without the operations that do nothing, or do again what was done."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

__all__ = ["pointwise", "simplify"]

ATEN = torch.ops.aten
#: Operations that give their first argument back where the shape stays, or the number is neutral.
RESHAPES = {ATEN.view.default, ATEN._unsafe_view.default, ATEN.expand.default}
NEUTRAL: dict[Any, float] = {
    ATEN.mul.Tensor: 1,
    ATEN.mul.Scalar: 1,
    ATEN.div.Tensor: 1,
    ATEN.add.Tensor: 0,
    ATEN.sub.Tensor: 0,
}


def simplify(graph: fx.GraphModule, tensors: tuple[Tensor, ...]) -> fx.GraphModule:
    """Leave out what changes no number: copies of shapes, products with one, repetitions.

    What is left are the same operations on the same numbers, so the results are the same bits.

    Args:
        graph: Of ATen operations; changed in place.
        tensors: What it is called with; they are not changed.

    Returns:
        The graph.
    """
    ShapeProp(graph).propagate(*(t.clone() for t in tensors))
    for node in list(graph.graph.nodes):
        source = _source(node)
        if source is not None:
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
    _merge_repetitions(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def pointwise(graph: fx.GraphModule) -> fx.GraphModule:
    """Write products of matrices with a side of one as products of numbers, for a compiler.

    It fuses these with what comes before and after, and so writes one array less of a number for
    each row and unit; such products are those of the first layer where x has one column. Sums may
    round otherwise.

    Args:
        graph: Simplified; it is not changed.

    Returns:
        Another graph.
    """
    made = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for node in list(made.graph.nodes):
        if node.target not in (ATEN.mm.default, ATEN.addmm.default) or node.kwargs:
            continue
        *bias, left, right = node.args
        shared, columns = (side.meta["tensor_meta"].shape[-1] for side in (left, right))
        with made.graph.inserting_before(node):
            if shared == 1:
                found = made.graph.call_function(ATEN.mul.Tensor, (left, right))
            elif columns == 1:
                turned = made.graph.call_function(ATEN.t.default, (right,))
                each = made.graph.call_function(ATEN.mul.Tensor, (left, turned))
                found = made.graph.call_function(ATEN.sum.dim_IntList, (each, [1], True))
            else:
                continue
            for b in bias:
                found = made.graph.call_function(ATEN.add.Tensor, (found, b))
        node.replace_all_uses_with(found)
        made.graph.erase_node(node)
    made.recompile()
    return made


def _source(node: fx.Node) -> Any:
    """Give what stands for a node that does nothing, or None."""
    if node.op != "call_function" or not node.args:
        return None
    first, target = node.args[0], node.target
    if target is ATEN._to_copy.default and isinstance(first, int | float):
        # A number that was made a tensor; operations take numbers as they are.
        return first if _takes_numbers(node) else None
    if not isinstance(first, fx.Node):
        return None
    same = _shape(first) == _shape(node) and _shape(node) is not None
    if target in RESHAPES:
        return first if same else None
    if target in NEUTRAL and len(node.args) > 1 and not node.kwargs:
        neutral = node.args[1] == NEUTRAL[target] and not isinstance(node.args[1], fx.Node)
        return first if same and neutral else None
    return None


def _takes_numbers(node: fx.Node) -> bool:
    """Whether every user takes the node as its second operand, beside a tensor of its dtype."""
    users = [u for u in node.users if u.target in NEUTRAL]
    return len(users) == len(node.users) and all(
        len(u.args) == 2
        and u.args[1] is node
        and isinstance(u.args[0], fx.Node)
        and _dtype(u.args[0]) == _dtype(u)
        for u in users
    )


def _shape(node: fx.Node) -> tuple[torch.Size, torch.dtype] | None:
    meta = node.meta.get("tensor_meta")
    return None if meta is None or not hasattr(meta, "shape") else (meta.shape, meta.dtype)


def _dtype(node: fx.Node) -> torch.dtype | None:
    found = _shape(node)
    return None if found is None else found[1]


def _merge_repetitions(graph: fx.Graph) -> None:
    """Let an operation that repeats another, with nothing changed in between, take its result."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target._schema.is_mutable:
            seen.clear()
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        key = node.target, _frozen(node.args), _frozen(node.kwargs)
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(_frozen, value))
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in value.items())
    # 1, 1.0 and True are equal, and mean other operations.
    return value if isinstance(value, fx.Node) else (type(value).__name__, value)
