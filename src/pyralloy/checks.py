"""Doors: what a caller gives is checked once, and an error says what to do about it."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "as_values",
    "beside",
    "broadcast_shapes",
    "integer",
    "not_negative",
    "outside_message",
    "paired",
    "positive",
    "probability",
    "require_components",
]

#: Numbers that are looked at together.
BLOCK = 2**20


def integer(name: str, value: Any, low: int = 1) -> int:
    """Check an integer of at least ``low`` and give it as an ``int``.

    Raises:
        TypeError: Not an integer (a bool is none).
        ValueError: Below ``low``.

    Example:
        >>> integer("components", 5)
        5
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r}: give an integer of {low} or more.")
    if value < low:
        raise ValueError(f"{name}={value!r}: give an integer of {low} or more.")
    return int(value)


def positive(name: str, value: Any, high: float = math.inf) -> float:
    """Check a finite number above 0 and at most ``high``, and give it as a ``float``.

    Raises:
        TypeError: Not a real number.
        ValueError: Not finite, not above 0, or above ``high``.
    """
    wanted = "number above 0" + _at_most(high)
    number = _real(name, value, wanted)
    if not (math.isfinite(number) and 0.0 < number <= high):
        raise ValueError(f"{name}={value!r}: give a finite {wanted}.")
    return number


def not_negative(name: str, value: Any, high: float = math.inf) -> float:
    """Check a finite number of 0 or more and at most ``high``, and give it as a ``float``.

    Raises:
        TypeError: Not a real number.
        ValueError: Not finite, below 0, or above ``high``.
    """
    wanted = "number of 0 or more" + _at_most(high)
    number = _real(name, value, wanted)
    if not (math.isfinite(number) and 0.0 <= number <= high):
        raise ValueError(f"{name}={value!r}: give a finite {wanted}.")
    return number


def _at_most(high: float) -> str:
    return "" if math.isinf(high) else f" and at most {high:g}"


def _real(name: str, value: Any, wanted: str) -> float:
    """Give a real number as a ``float``, infinite where no float is as large."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r}: give a {wanted}.")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def probability(name: str, value: Any) -> float:
    """Check a number strictly between 0 and 1, and give it as a ``float``.

    Raises:
        TypeError: Not a real number.
        ValueError: Not between 0 and 1, or one of them.
    """
    wanted = "probability strictly between 0 and 1"
    number = _real(name, value, wanted)
    if not 0.0 < number < 1.0:
        raise ValueError(f"{name}={value!r}: give a {wanted}.")
    return number


def as_values(name: str, values: Any, *, device: torch.device | None = None) -> Tensor:
    """Turn an array, data frame, list or tensor into a finite floating-point tensor.

    Integers and booleans become float64; floating-point types are kept.

    Args:
        name: What to call it in errors.
        values: Numeric, at least one row.
        device: Where to put it; None leaves it where it is.

    Returns:
        A tensor of at least one dimension, without gradient.

    Raises:
        TypeError: Not numeric: strings, objects, complex numbers.
        ValueError: Empty, without rows, ragged, or holding NaN or infinity.

    Example:
        >>> as_values("y", [1, 2]).dtype
        torch.float64
    """
    if not isinstance(values, Tensor):
        values = _from_array(name, values)
    if values.is_complex():
        raise TypeError(f"{name} is complex: give real numbers.")
    values = values.detach()
    if not values.is_floating_point():
        values = values.to(torch.float64)
    if values.ndim == 0:
        raise ValueError(f"{name} is a single number: give an array with one row an observation.")
    if values.numel() == 0:
        raise ValueError(f"{name} is empty, shape {tuple(values.shape)}: give at least one row.")
    # In parts: the test makes copies for a moment, which of all rows could be too many.
    parts = values.split(max(1, BLOCK // max(1, values[0].numel())))
    if not all(bool(part.isfinite().all()) for part in parts):
        finite = values.isfinite()
        rows = (~finite).flatten(1).any(1) if values.ndim > 1 else ~finite
        first = int(rows.nonzero()[0])
        raise ValueError(
            f"{name} holds NaN or infinity in {int(rows.sum())} of {len(rows)} rows, the first "
            f"at row {first}: drop those rows or fill them in before fitting or predicting."
        )
    return values.to(device) if device is not None else values


def paired(x: Tensor, y: Tensor) -> None:
    """Check that ``x`` and ``y`` have the same number of rows.

    Raises:
        ValueError: They differ.
    """
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"x has {x.shape[0]} rows and y has {y.shape[0]}: they must be the same observations."
        )


def _from_array(name: str, values: Any) -> Tensor:
    pandas = hasattr(values, "columns") and hasattr(values, "iloc")
    columns: dict[Any, Any] = dict(values.dtypes) if pandas else {}
    bad = [str(c) for c, kind in columns.items() if getattr(kind, "kind", "O") not in "biuf"]
    if columns and not bad:
        values = values.to_numpy(dtype=np.float64, na_value=np.nan)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is ragged: its rows differ in length ({error}).") from error
    if array.dtype.kind not in "biuf":
        where = f" (columns {bad})" if bad else ""
        raise TypeError(
            f"{name} has dtype {array.dtype}{where}: give numbers only; "
            "encode categories, or convert with astype(float)."
        )
    if array.dtype.kind in "biu" or array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float64)
    array = np.asarray(array, order="C", dtype=array.dtype.newbyteorder("="))
    # Torch shares the memory, and has no tensor that must not be written to.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def broadcast_shapes(*shapes: torch.Size) -> torch.Size:
    """Give the shape to which all broadcast, as torch's function, which imports sympy to do it.

    Raises:
        ValueError: They do not broadcast.
    """
    return torch.Size(np.broadcast_shapes(*shapes))


def beside(name: str, values: Any, batch_shape: torch.Size, like: Tensor) -> Tensor:
    """Check values that are to be taken at the rows of a batch, and give them as a tensor.

    Args:
        name: What to call them in errors.
        values: Numbers, an array or a tensor.
        batch_shape: That of the rows.
        like: Tensor whose device they move to, and whose dtype they take if they are integers.

    Raises:
        ValueError: They do not broadcast; or they are a column (N, 1) beside N rows.
    """
    if not isinstance(values, Tensor):
        values = np.asarray(values)
    tensor = torch.as_tensor(values, device=like.device)
    if not tensor.is_floating_point():
        tensor = tensor.to(like.dtype)
    if tensor.shape == (*batch_shape, 1) and batch_shape.numel() > 1:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} beside batch_shape {tuple(batch_shape)}, and "
            f"would be taken at every row: give {name}.squeeze(-1) for one value a row, or expand "
            "a grid to (G, N)."
        )
    try:
        broadcast_shapes(tensor.shape, batch_shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which does not broadcast with "
            f"batch_shape {tuple(batch_shape)}; give one value a row, or (S, N) of them."
        ) from None
    return tensor


def require_components(components: Any, *, check: bool) -> None:
    """Check what torch does not check of the components of a mixture.

    Args:
        components: Batch shape (..., K).
        check: Whether to look at values too.

    Raises:
        ValueError: There is no component, or a triangular scale matrix whose diagonal is not
            positive, so that no covariance has it for its root.
    """
    if components.batch_shape[-1] == 0:
        raise ValueError(
            f"component_distribution has batch_shape {tuple(components.batch_shape)}: a mixture "
            "needs at least one component, the last dimension."
        )
    tril = getattr(components, "scale_tril", None) if check else None
    if isinstance(tril, Tensor):
        least = tril.diagonal(dim1=-2, dim2=-1).amin()
        if not bool(least > 0):
            raise ValueError(
                f"scale_tril has {float(least):g} on its diagonal, which must be positive: give a "
                "Cholesky factor, torch.linalg.cholesky(covariance), of a positive definite matrix."
            )


def outside_message(y: Tensor, density: Any) -> str | None:
    """Say what is wrong with values of which a log density was asked, or None.

    Args:
        y: The values.
        density: A distribution that has a support.

    Returns:
        A sentence that names the first bad value, or the shape, and what to do.
    """
    batch, event = density.batch_shape, density.event_shape
    lead = y.shape[: y.ndim - len(event)]
    try:
        broadcast_shapes(lead, batch)
        fits = y.shape[len(lead) :] == event
    except ValueError:
        fits = False
    if not fits:
        return (
            f"y has shape {tuple(y.shape)} and the density is of batch_shape {tuple(batch)} and "
            f"event_shape {tuple(event)}: give {tuple(batch + event)}, one value a row."
        )
    bad = ~density.support.check(y)
    if not bool(bad.any()):
        return None
    place = tuple(int(i) for i in bad.nonzero()[0])
    return (
        f"y holds {y.expand(*bad.shape, *event)[place].tolist()} at {place}, where the components "
        "have no density: give values inside their support, or choose a family that reaches there."
    )
