"""Seeds: torch's default generators at a seed of ours, and as they were afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["CPU", "seeded", "sow"]

#: Where numbers are drawn that are to be the same on every device.
CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed torch's default generators of the CPU and of ``device``; their states come back.

    ``torch.manual_seed`` would seed those of every GPU there is.

    Args:
        seed: As for ``torch.manual_seed``.
        device: Where numbers are drawn, beside the CPU.

    Example:
        >>> with seeded(0):
        ...     first = torch.rand(1)
        >>> with seeded(0):
        ...     bool(torch.rand(1) == first)
        True
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        sow(seed, device)
        yield


def sow(seed: int, device: torch.device = CPU) -> None:
    """Seed torch's default generators of the CPU and of ``device``, for good."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
