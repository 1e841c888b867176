"""Large products by another library: where they are quicker, and the same to rounding."""

from contextlib import nullcontext

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyralloy.inference import matrices
from pyralloy.inference.graphs import simplify
from pyralloy.inference.program import Program

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(300, 40, generator=GENERATOR)
WEIGHT = torch.randn(20, 40, generator=GENERATOR)
BIAS = torch.randn(20, 1, generator=GENERATOR)

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, matrices._NAME),
    reason="needs PyTorch's oneDNN",
)


@pytest.fixture
def eager(monkeypatch):
    """Take every product for large, and the other library for quicker."""
    monkeypatch.setattr(matrices, "LARGE", 1)
    monkeypatch.setattr(matrices, "_are_quick", lambda: True)


def layer(rows, weight, bias):
    """A layer and the derivative of its weight: products of what lies crosswise in memory."""
    out = torch.addmm(bias, weight, rows.T).relu()
    return out @ rows


def captured(*tensors):
    return simplify(make_fx(layer)(*tensors), tensors)


def operations(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@needs_onednn
def test_products_are_the_same_to_rounding(eager):
    tensors = ROWS, WEIGHT, BIAS
    graph = captured(*tensors)
    assert matrices.quickens(graph, tensors)
    matrices.quicken(graph, tensors)
    assert operations(graph).count("pyralloy.product.default") == 2
    assert not {"aten.mm.default", "aten.addmm.default"} & set(operations(graph))
    assert torch.allclose(graph(*tensors), layer(*tensors), rtol=1e-5, atol=1e-4)


@needs_onednn
def test_what_is_small_or_wide_or_slower_stays(eager, monkeypatch):
    tensors = ROWS, WEIGHT, BIAS
    wide = tuple(t.double() for t in tensors)
    assert not matrices.quickens(captured(*wide), wide)
    monkeypatch.setattr(matrices, "LARGE", 300 * 40 * 20 + 1)
    assert not matrices.quickens(captured(*tensors), tensors)
    monkeypatch.setattr(matrices, "LARGE", 1)
    monkeypatch.setattr(matrices, "_are_quick", lambda: False)
    assert not matrices.quickens(captured(*tensors), tensors)


@needs_onednn
def test_a_program_that_compiles_takes_them(eager, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "pyralloy.inference.program.quicken", lambda *given: taken.append(matrices.quicken(*given))
    )
    run = Program(layer, compiling=True, aside=nullcontext)
    found = run(ROWS, WEIGHT, BIAS)
    assert len(taken) == 1 and run.stages() == ["settled"]
    assert torch.allclose(found, layer(ROWS, WEIGHT, BIAS), rtol=1e-5, atol=1e-4)


def test_which_is_quicker_is_measured_once():
    assert matrices._are_quick() is matrices._are_quick()
