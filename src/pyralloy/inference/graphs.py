"""Graphs: a captured graph without the operations that do nothing, or do again what was done."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from pyralloy.inference.reuse import layout, overwritten, owners, reuse_memory

__all__ = ["pointwise", "put_in_place", "simplify"]

ATEN = torch.ops.aten
#: Operations that give their first argument back where the shape stays, or the number is neutral.
RESHAPES = {
    ATEN.view.default,
    ATEN._unsafe_view.default,
    ATEN.expand.default,
    ATEN.detach.default,
}
#: Products of matrices, of one or of several side by side, with what is added to them before.
PRODUCTS = {ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default, ATEN.baddbmm.default}
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
    bases = owners(graph.graph)  # without which nothing is known to stay as it is
    changed = None if bases is None else overwritten(bases)
    for node in list(graph.graph.nodes):
        source = _source(node)
        # A copy has to stay one where it, or what it is of, is changed.
        if source is None or (node.target in NEUTRAL and not _stays(node, bases, changed)):
            continue
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    _join_permutations(graph.graph)
    if changed is not None:
        _merge_repetitions(graph.graph, changed)
    graph.graph.eliminate_dead_code()
    reuse_memory(graph.graph)
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
        if node.target is ATEN.sigmoid.out:  # laid out for the bits of another code than its own
            node.target, node.kwargs = ATEN.sigmoid.default, {}
        elif node.target in PRODUCTS and not node.kwargs:
            _as_numbers(made.graph, node)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def _as_numbers(graph: fx.Graph, node: fx.Node) -> None:
    """Write a product of matrices as one of numbers, if it has a side of one."""
    *bias, left, right = cast("tuple[fx.Node, ...]", node.args)
    rows, shared = left.meta["tensor_meta"].shape[-2:]
    columns = right.meta["tensor_meta"].shape[-1]
    if 1 not in (rows, shared, columns):
        return

    def call(target: Any, *args: Any) -> fx.Node:
        return graph.call_function(target, args)

    with graph.inserting_before(node):
        if shared == 1:
            found = call(ATEN.mul.Tensor, left, right)
        else:
            turned, dim = (right, -1) if columns == 1 else (left, -2)
            other = left if columns == 1 else right
            each = call(ATEN.mul.Tensor, other, call(ATEN.transpose.int, turned, -2, -1))
            found = graph.call_function(ATEN.sum.dim_IntList, (each, [dim]), {"keepdim": True})
        for b in bias:
            found = call(ATEN.add.Tensor, found, b)
    put_in_place(node, found)


def put_in_place(node: fx.Node, found: fx.Node) -> None:
    """Let one node stand for another, which is erased."""
    found.meta = node.meta
    node.replace_all_uses_with(found)
    node.graph.erase_node(node)


def _stays(
    copied: fx.Node, bases: dict[fx.Node, set[fx.Node]] | None, changed: set[fx.Node] | None
) -> bool:
    """Say whether nothing changes a copy, or what it is of."""
    if bases is None or changed is None:
        return False
    return not changed & {copied, *bases[cast("fx.Node", copied.args[0])]}


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
        # What reads it goes by how it lies in memory, too.
        return first if same and neutral and layout(first) == layout(node) else None
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


def _join_permutations(graph: fx.Graph) -> None:
    """Let a permutation of a permutation, where dimensions are back in order, give its source."""
    orders: dict[fx.Node, tuple[fx.Node, list[int]]] = {}
    for node in list(graph.nodes):
        order = _order(node)
        if order is None:
            continue
        given = cast("fx.Node", node.args[0])
        source, before = orders.get(given, (given, list(range(len(order)))))
        order = [before[dim] for dim in order]
        orders[node] = source, order
        if order == sorted(order):
            node.replace_all_uses_with(source)


def _order(node: fx.Node) -> list[int] | None:
    """Give which dimension of its source each of a permutation's is, or None."""
    shape = _shape(node)
    if shape is None or node.op != "call_function":
        return None
    order, given = list(range(len(shape[0]))), cast("tuple[Any, ...]", node.args)
    if node.target is ATEN.permute.default:
        return [order[dim] for dim in given[1]]
    if node.target is ATEN.transpose.int:
        first, second = given[1:]
        order[first], order[second] = order[second], order[first]
        return order
    return order[::-1] if node.target is ATEN.t.default else None


def _merge_repetitions(graph: fx.Graph, changed: set[fx.Node]) -> None:
    """Let an operation that repeats another, with nothing changed in between, take its result.

    Those of whose results one is ``changed`` later have to stay two.
    """
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target._schema.is_mutable:
            seen.clear()
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags or node in changed:
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
