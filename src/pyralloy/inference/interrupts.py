"""Interrupts: the first Ctrl-C is a flag that is read between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["Stop", "interrupts"]


@dataclass
class Stop:
    """Whether an end was asked for."""

    requested: bool = False


@contextmanager
def interrupts() -> Iterator[Stop]:
    """Turn the first Ctrl-C into a flag read between steps; the second one is Python's own.

    An exception raised inside a step would leave the optimiser half applied and Pyro's stack dirty.
    """
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    # Where someone else handles or ignores the signal, it is theirs.
    if not in_main or before is not signal.default_int_handler:
        yield stop
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
