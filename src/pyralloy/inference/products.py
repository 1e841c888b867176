"""Products: the layers of networks that lie side by side, each as one batched product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Products"]


class Products(TorchFunctionMode):
    """Within ``vmap``, take linear layers of all lanes in one call, whose gradients are quick too.

    What ``vmap`` makes of a layer is a batched product and a sum. Of one input the product is slow,
    of few inputs the derivative by the weights, several times as slow as they need be, and some
    derivatives lie crosswise in memory to what they meet next. Here a layer is one call; of one
    input it is no product of matrices, and derivatives are multiplied the way round that is quick.
    All numbers are those of a network alone, to the bit where products of matrices are.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch's, or what stands for it."""
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, bias = _linear(*args, **kwargs)
            if bias is not None and x.ndim == 2:
                return _Rows.apply(x, weight, bias)
        elif func is torch.addmm and not kwargs:
            bias, weight, columns = args
            if bias.ndim == columns.ndim == 2 and bias.shape[1] == 1:
                return _Columns.apply(columns, weight, bias)
        elif func is torch.sigmoid and not kwargs:
            return _Sigmoid.apply(*args, 0)
        return func(*args, **kwargs)


def _linear(
    input: Tensor,  # noqa: A002 - as torch spells it
    weight: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


class _Laned(torch.autograd.Function):
    """A function of tensors with any leading dimensions that all of them have."""

    @classmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, info: Any, in_dims: tuple[int | None, ...], *args: Tensor
    ) -> tuple[Any, int]:
        """Take all lanes at once."""
        lanes = [
            arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        return cls.apply(*lanes), 0


class _Layer(_Laned):
    """A linear layer."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        """Keep what the gradient is made of."""
        ctx.save_for_backward(*inputs[:2])


def _product(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Evaluate bias + left right: of no lanes, where nothing differs, or of lanes within lanes."""
    return torch.baddbmm(bias, left, right) if left.ndim == 3 else bias + left @ right


class _Rows(_Layer):
    """Map x (..., N, F) to x W' + b, (..., N, H), by weights (..., H, F) and a bias (..., H)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Evaluate it."""
        if x.shape[-1] == 1:
            # Rounded twice, as a product of matrices is: where a unit bends just at a row, the last
            # bit says on which side of it the row is.
            return (x * weight.mT).add_(bias[..., None, :])
        return _product(bias[..., None, :], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Differentiate it."""
        (grad,) = grads
        x, weight = ctx.saved_tensors
        by_x = grad @ weight if ctx.needs_input_grad[0] else None
        return by_x, (x.mT @ grad).mT, grad.sum(-2)


class _Columns(_Layer):
    """Map x (..., F, N) to W x + b, (..., J, N), by weights (..., J, F) and biases (..., J, 1)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Evaluate it."""
        return _product(bias, weight, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Differentiate it; by x in the order of its rows, in which it is kept."""
        (grad,) = grads
        x, weight = ctx.saved_tensors
        by_x = (grad.mT @ weight).mT if ctx.needs_input_grad[0] else None
        return by_x, grad @ x.mT, grad.sum(-1, keepdim=True)


class _Sigmoid(_Laned):
    """The logistic function, of each lane to the bits that it has alone.

    Of the numbers that lie in a row in memory torch takes sixteen at once, and what is left over at
    the end by another code, which rounds otherwise. Here the ends are those of the lanes.
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, int]:  # noqa: ARG003
        """Take all lanes at once."""
        (x, depth), (dim, _) = args, in_dims
        return cls.apply(x.movedim(dim, 0), depth + 1), 0

    @staticmethod
    def forward(x: Tensor, depth: int) -> Tensor:
        """Evaluate it, where so many of the first dimensions are lanes."""
        size = x[0].numel() if depth > 0 and x.ndim > 1 and x.is_floating_point() else 0
        # Elsewhere lanes are no whole row in memory, or end where the sixteen do.
        if size % 16 == 0 or x.stride(0) != size or 0 in x.stride():
            return x.sigmoid()
        apart = (size + 1, *x.stride()[1:])
        return torch.sigmoid(x, out=x.new_empty_strided(x.shape, apart))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        """Keep what the gradient is made of."""
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Differentiate it."""
        (found,) = ctx.saved_tensors
        return torch.ops.aten.sigmoid_backward(*grads, found), None
