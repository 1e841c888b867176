"""Seeds: torch's default generators at a seed of ours, and as they were afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["CPU", "another", "apart", "seeded", "sow"]

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
    with apart(device):
        sow(seed, device)
        yield


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """Let something draw from torch's default generators, whose states come back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def another(seed: int, number: int) -> int:
    """Give the seed of a part by its number, far from those of others and of other seeds."""
    return (seed * 1_000_003 + number * 7_919 + 0x5BD1E995) % 2**63


def sow(seed: int, device: torch.device = CPU) -> None:
    """Seed torch's default generators of the CPU and of ``device``, for good."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
