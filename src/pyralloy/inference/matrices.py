"""Matrices: large products of a graph by the library that is quicker at them on this machine."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from pyralloy.inference.graphs import put_in_place

__all__ = ["quicken", "quickens"]

ATEN = torch.ops.aten
#: Multiplications from where the other library's overheads vanish.
LARGE = 4_000_000
#: Of the matrices that are timed once, rows, shared side and columns; and of their products how
#: many, and the share of the time below which the difference is no chance.
TRIED, TIMES, SHARE = (2048, 128, 64), 9, 0.8


def quickens(graph: fx.GraphModule, tensors: tuple[Tensor, ...]) -> bool:
    """Say whether :func:`quicken` would change a graph that is called with such tensors."""
    return (
        all(t.device.type == "cpu" for t in tensors)
        and any(_is_large(node) for node in graph.graph.nodes)
        and _are_quick()
    )


def quicken(graph: fx.GraphModule, tensors: tuple[Tensor, ...]) -> None:
    """Take large products of float32 matrices by oneDNN where that is quicker, in place.

    PyTorch multiplies matrices by BLAS. MKL's does not use the widest vectors of processors that
    are not Intel's, and oneDNN, which PyTorch has for convolutions, does: there it takes half the
    time. Sums are in another order, so the results are the same to rounding, not to the bit.

    Args:
        graph: Of ATen operations, with the shapes of what it was captured with.
        tensors: What it is called with.
    """
    if not quickens(graph, tensors):
        return
    for node in list(graph.graph.nodes):
        if not _is_large(node):
            continue
        *bias, left, right = cast("tuple[fx.Node, ...]", node.args)
        with graph.graph.inserting_before(node):
            found = graph.graph.call_function(_operation(), (left, right))
            for b in bias:
                found = graph.graph.call_function(ATEN.add.Tensor, (found, b))
        put_in_place(node, found)
    graph.recompile()


@functools.cache
def _are_quick() -> bool:
    """Say whether large products can be taken in less time than by BLAS: measured once."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, _NAME):
        return False
    rows, shared, columns = TRIED
    left, right = torch.ones(rows, shared), torch.ones(shared, columns)
    with torch.no_grad():
        other, usual = (_least(function, left, right) for function in (_product, torch.mm))
    return other < SHARE * usual


def _least(function: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> float:
    """Give the least of some times that it takes, in seconds."""
    least = math.inf
    for _ in range(TIMES):
        start = time.perf_counter()
        function(left, right)
        least = min(least, time.perf_counter() - start)
    return least


def _is_large(node: fx.Node) -> bool:
    """Say whether a node is a large product of float32 matrices."""
    if node.target not in (ATEN.mm.default, ATEN.addmm.default) or node.kwargs:
        return False
    left, right = (cast("fx.Node", n).meta.get("tensor_meta") for n in node.args[-2:])
    if left is None or right is None or not left.dtype == right.dtype == torch.float32:
        return False
    return math.prod((*left.shape, right.shape[1])) >= LARGE


#: Of torch's operation for a linear layer by oneDNN, which the compiler takes for its own layers.
_NAME = "_linear_pointwise"


def _product(left: Tensor, right: Tensor) -> Tensor:
    return getattr(torch.ops.mkldnn, _NAME)(left, right.mT, None, "none", [], "")


@functools.cache
def _operation() -> Any:
    """Give the product as an operation of its own, which the compiler leaves as it is.

    The one that it is made of would be given copies of what lies crosswise in memory.
    """
    _LIBRARY.define("product(Tensor left, Tensor right) -> Tensor")
    _LIBRARY.impl("product", _product, "CPU")
    torch.library.register_fake(
        "pyralloy::product",
        lambda left, right: left.new_empty((left.shape[0], right.shape[1])),
        lib=_LIBRARY,
    )
    return torch.ops.pyralloy.product.default


_LIBRARY = torch.library.Library("pyralloy", "FRAGMENT")
