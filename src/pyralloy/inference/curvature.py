"""Curvature: how much the rows say of the weights together, a matrix that is never negative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap
from torch.nn.functional import pad

from pyralloy.heads import MixtureHead
from pyralloy.inference.posterior import Site, unpack
from pyralloy.model import MDN, Outputs
from pyralloy.networks import evaluating

__all__ = ["gauss_newton"]

#: Numbers of the derivatives of single rows that are held at once.
AT_ONCE = 10_000_000

#: Weights of the layer in which a head's outputs are linear.
WEIGHT, BIAS = "head.outputs.weight", "head.outputs.bias"


def gauss_newton(
    model: MDN, sites: Sequence[Site], vector: Tensor, z: Tensor, t: Tensor, counts: Tensor
) -> Tensor:
    r"""Sum the curvature of minus the log density of rows, as the head's outputs have it.

    .. math:: G = \sum_n c_n J_n^T [\Lambda_n]_+ J_n, \qquad
              \Lambda_n = -\nabla_f^2 \log p(y_n \mid f)

    where f are the outputs at :math:`x_n` that the head makes a density of, :math:`J_n` their
    Jacobian, and :math:`[\cdot]_+` keeps the directions in which a row's density is curved as that
    of a Normal is; in the others a mixture gains by any step, and such a row says nothing. G is the
    generalised Gauss-Newton matrix, and the Hessian itself where outputs are linear in the weights
    and every :math:`\Lambda_n` is positive. Of the last layer alone :math:`J_n` is its features,
    once for each output, and G costs no more than a matrix product.

    Args:
        model: Whose other weights are taken as they are; as it predicts, without dropout.
        sites: What the numbers are, in order; all of them weights.
        vector: Where to differentiate, shape (P,).
        z: Standardised inputs, shape (N, F).
        t: Standardised targets, shape (N,) or (N, D).
        counts: How often each row counts, c, shape (N,).

    Returns:
        Shape (P, P), float64.

    References:
        Schraudolph, N. N. (2002). Fast curvature matrix-vector products for second-order gradient
        descent. Neural Computation 14. doi:10.1162/08997660260028683. Immer, A., Korzepa, M., &
        Bauer, M. (2021). Improving predictions of Bayesian neural nets via local linearization.
        AISTATS. arXiv:2008.08400
    """
    values = unpack(sites, vector.detach())
    linear = values.keys() <= {WEIGHT, BIAS} and not model.head.constant_scale
    with evaluating(model):
        if linear:
            return _of_last_layer(model, values, z, t, counts)
        return _of_weights(model, sites, vector.detach(), z, t, counts)


def _of_rows(head: MixtureHead, outputs: Tensor, t: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    """Decompose the curvature of rows in their outputs: values (N, J), directions (N, J, J)."""
    # Row by row in double precision: single would leave noise in the flat directions.
    wide = outputs.to(torch.float64)
    with torch.enable_grad():
        leaf = wide.requires_grad_()
        density = head.mixture(leaf.split(head.components, -1))
        target = t.to(torch.float64) if t.is_floating_point() else t
        (slope,) = torch.autograd.grad(-density.log_prob(target).sum(), leaf, create_graph=True)
        # Rows do not meet, so that one pass differentiates an output of all of them.
        lines = [
            torch.autograd.grad(slope[:, j].sum(), leaf, retain_graph=True)[0]
            for j in range(leaf.shape[-1])
        ]
    curved = torch.stack(lines, 1)  # (N, J, J)
    values, directions = torch.linalg.eigh((curved + curved.mT) / 2)
    return values.clamp_min(0.0) * counts.to(values)[:, None], directions


def _of_last_layer(
    model: MDN, values: dict[str, Tensor], z: Tensor, t: Tensor, counts: Tensor
) -> Tensor:
    """Sum Kronecker products of features, a one for the bias beside them, and outputs."""
    network, layer = Outputs(model), model.head.outputs
    width, count = layer.in_features + 1, layer.out_features
    told = z.new_zeros(width**2, count**2, dtype=torch.float64)
    rows = max(1, AT_ONCE // max(width, count) ** 2)
    for x, y, c in zip(z.split(rows), t.split(rows), counts.split(rows), strict=True):
        features, outputs = functional_call(network, values, (x,))
        scales, directions = _of_rows(model.head, outputs, y, c)
        curved = (directions * scales[:, None]) @ directions.mT
        beside = pad(features.to(torch.float64), (0, 1), value=1.0)  # (n, H + 1)
        pairs = beside[:, :, None] * beside[:, None]
        told += pairs.flatten(1).mT @ curved.flatten(1)
    whole = told.view(width, width, count, count).permute(2, 0, 3, 1).reshape(width * count, -1)
    place = torch.arange(width * count, device=z.device).view(count, width)
    parts = {WEIGHT: place[:, :-1], BIAS: place[:, -1]}
    order = torch.cat([parts[name].flatten() for name in values])
    return whole[order[:, None], order]


def _of_weights(
    model: MDN, sites: Sequence[Site], vector: Tensor, z: Tensor, t: Tensor, counts: Tensor
) -> Tensor:
    """Sum squares of the Jacobians of rows."""
    network = Outputs(model)

    def outputs(vector: Tensor, x: Tensor) -> Tensor:
        return functional_call(network, unpack(sites, vector), (x[None],))[1][0]

    each = vmap(jacrev(outputs), in_dims=(None, 0))
    told = vector.new_zeros(len(vector), len(vector), dtype=torch.float64)
    rows = max(1, AT_ONCE // (len(vector) * model.head.outputs.out_features))
    for x, y, c in zip(z.split(rows), t.split(rows), counts.split(rows), strict=True):
        made = functional_call(network, unpack(sites, vector), (x,))[1]
        scales, directions = _of_rows(model.head, made, y, c)
        root = scales.sqrt()[:, :, None] * directions.mT  # (n, J, J)
        lines = (root @ each(vector, x).to(torch.float64)).flatten(0, 1)  # (n J, P)
        told += lines.mT @ lines
    return told
