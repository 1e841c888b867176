"""Clipping of a gradient's norm, as operations on tensors that a captured graph can hold."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["clip_norm"]


def clip_norm(gradient: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    r"""Shorten a gradient to a length, and say whether it was longer.

    .. math:: g \min(1, c / \lVert g \rVert)

    Args:
        gradient: Shape (P,).
        limit: The longest it may be, c, above 0.

    Returns:
        The gradient, and whether the limit bit, a scalar boolean tensor.

    References:
        Pascanu, R., Mikolov, T., & Bengio, Y. (2013). On the difficulty of training recurrent
        neural networks. ICML. arXiv:1211.5063

    Example:
        >>> clip_norm(torch.tensor([3.0, 4.0]), 1.0)
        (tensor([0.6000, 0.8000]), tensor(True))
    """
    # In float64, where the squares of large single-precision numbers do not overflow.
    norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    share = (limit / norm).clamp_max(1.0)
    return gradient * share.to(gradient.dtype), norm > limit
