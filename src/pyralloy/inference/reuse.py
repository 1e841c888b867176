"""Reuse: operations of a captured graph that write their result where an operand was."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import fx

__all__ = ["layout", "overwritten", "owners", "reuse_memory"]

ATEN = torch.ops.aten
#: Operations whose operands may change places.
COMMUTATIVE = {ATEN.add.Tensor, ATEN.mul.Tensor}
#: Those that write into their first operand by an argument.
INTO: dict[Any, tuple[Any, str]] = {
    ATEN.threshold_backward.default: (ATEN.threshold_backward.grad_input, "grad_input"),
    ATEN.sigmoid_backward.default: (ATEN.sigmoid_backward.grad_input, "grad_input"),
    ATEN.tanh_backward.default: (ATEN.tanh_backward.grad_input, "grad_input"),
}


def reuse_memory(graph: fx.Graph) -> None:
    """Let operations number by number write into an operand that nothing needs any more.

    The numbers are the same, and so is how they lie in memory. Large results are slow to come by:
    a system gives new memory page by page, and what is written there drives out of the cache what
    is read next.

    Args:
        graph: Of ATen operations whose nodes know the ``tensor_meta`` of their results; changed in
            place.
    """
    bases = owners(graph)
    if bases is None:
        return
    last: dict[fx.Node, fx.Node] = {}  # of what shares a memory, who reads it last
    for node in graph.nodes:
        for source in node.all_input_nodes:
            for base in bases[source]:
                last[base] = node
    for node in list(graph.nodes):
        for place in (0, 1) if _commutes(node) else (0,):
            if _may_write(node, place, bases, last):
                _write(node, place)
                break


def owners(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]] | None:
    """Give whose memory the results of each node are in; None where that is not known."""
    bases: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            bases[node] = {node}
        elif node.target is operator.getitem:
            bases[node] = bases[node.args[0]]
        elif isinstance(node.target, torch._ops.OpOverload):
            whole = node.target is ATEN._unsafe_view.default
            given = [v for a, v in _given(node) if whole or a.alias_info is not None]
            shared = [bases[v] for v in given if isinstance(v, fx.Node)]
            bases[node] = set().union(*shared) or {node}
        else:
            return None
    return bases


def overwritten(bases: dict[fx.Node, set[fx.Node]]) -> set[fx.Node]:
    """Give whose memory some operation changes, of nodes and what :func:`owners` says of them."""
    changed: set[fx.Node] = set()
    for node in bases:
        if isinstance(node.target, torch._ops.OpOverload):
            for argument, value in _given(node):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    many = value if isinstance(value, list | tuple) else [value]
                    changed.update(*(bases[v] for v in many if isinstance(v, fx.Node)))
    return changed


def _given(node: fx.Node) -> list[tuple[Any, Any]]:
    """Pair the arguments of an operation's schema with what a call of it is given."""
    arguments = cast("torch._ops.OpOverload", node.target)._schema.arguments
    known = {a.name: v for a, v in zip(arguments, node.args, strict=False)} | node.kwargs
    return [(a, known[a.name]) for a in arguments if a.name in known]


def _commutes(node: fx.Node) -> bool:
    """Say whether operands may change places, and the result is the same to the bit."""
    laid = layout(node)
    # A factor of the second, as add's alpha, would be one of the first; and of complex numbers the
    # products that a part is the sum of are rounded one before and one after it.
    plain = not node.kwargs and laid is not None and not laid[2].is_complex
    return node.target in COMMUTATIVE and plain


def _may_write(
    node: fx.Node,
    place: int,
    bases: dict[fx.Node, set[fx.Node]],
    last: dict[fx.Node, fx.Node],
) -> bool:
    """Say whether an operand's memory is like the result's, and no one else's from here on."""
    if _twin(node) is None or len(node.args) <= place or bases[node] != {node}:
        return False
    operand = node.args[place]
    if not isinstance(operand, fx.Node) or layout(operand) != layout(node):
        return False
    others = [n for n in node.all_input_nodes if n is not operand]
    return all(
        base.op == "call_function"
        and last[base] is node
        and not any(base in bases[other] for other in others)
        for base in bases[operand]
    )


def _twin(node: fx.Node) -> Any:
    """Give the operation that does the same in place, or None."""
    if node.target in INTO:
        return INTO[node.target][0]
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema, tags = node.target._schema, node.target.tags
    if torch.Tag.pointwise not in tags or torch.Tag.nondeterministic_seeded in tags:
        return None
    packet = getattr(ATEN, f"{schema.name.removeprefix('aten::')}_", None)
    if schema.is_mutable or packet is None:
        return None
    return getattr(packet, schema.overload_name or "default", None)


def _write(node: fx.Node, place: int) -> None:
    """Make an operation one that writes into an operand."""
    operand = node.args[place]
    if place == 1:
        node.args = (operand, node.args[0])
    twin = _twin(node)
    if node.target in INTO:
        node.kwargs = {**node.kwargs, INTO[node.target][1]: operand}
    node.target = twin


def layout(node: fx.Node) -> tuple[Any, ...] | None:
    """Give shape, strides and dtype of a result, or None where it is no one tensor."""
    meta = node.meta.get("tensor_meta")
    if meta is None or not hasattr(meta, "stride"):
        return None
    return meta.shape, meta.stride, meta.dtype
