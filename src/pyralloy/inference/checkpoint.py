"""Checkpoints: all that a fit needs to go on, to the bit, after whatever ended it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pyralloy import archive
from pyralloy.checks import integer

__all__ = [
    "Checkpoint",
    "Files",
    "Generators",
    "Place",
    "Rider",
    "Saving",
    "checked_files",
    "layout",
    "restore",
]

#: What a file of this room calls itself.
KIND = "checkpoint"


class Rider(Protocol):
    """Something whose state rides along in a checkpoint."""

    def state(self) -> dict[str, Tensor]:
        """Give all that :meth:`load` needs, as tensors by name."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        ...


class Place(NamedTuple):
    """Where a fit stands: the steps it took, and whether it came to its end."""

    step: int = 0
    finished: bool = False


@dataclass
class Checkpoint:
    """Write a fit's state to one file, every so many steps or seconds.

    Attributes:
        path: Of the file, a ``.safetensors``.
        every: Steps, or a ``timedelta``, between writes.
        identity: What a fit must have in common with this one to go on from the file.
    """

    path: Path
    every: int | timedelta
    identity: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._written = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the state after a step is to be written."""
        if isinstance(self.every, timedelta):
            return time.monotonic() - self._written >= self.every.total_seconds()
        return step % self.every == 0

    def write(self, place: Place, riders: Mapping[str, Rider]) -> None:
        """Write the state of all riders; the file that was there stays until the new one is whole.

        Raises:
            OSError: The disk is full or not to be written to.
        """
        tensors = {
            f"{name}.{key}": tensor
            for name, rider in riders.items()
            for key, tensor in rider.state().items()
        }
        notes = {"place": place._asdict(), "identity": dict(self.identity)}
        archive.write(self.path, KIND, tensors, notes)
        self._written = time.monotonic()


class Files(NamedTuple):
    """Where a fit's state is written and how often, and where it is read from.

    Attributes:
        checkpoint: Path, and steps or time between writes; None writes nothing.
        resume: Path; None begins anew.
    """

    checkpoint: tuple[Path, int | timedelta] | None = None
    resume: str | os.PathLike[str] | None = None

    @property
    def used(self) -> bool:
        """Whether there is any."""
        return self.checkpoint is not None or self.resume is not None

    def run(self) -> Any:
        """Tell which of several runs of a fit the file to go on from is of; None for no file."""
        if self.resume is None:
            return None
        return dict(archive.read(self.resume, KIND).notes.get("identity") or {}).get("run")

    def saving(self, identity: Mapping[str, Any]) -> Saving:
        """Open them for a fit of this identity."""
        return Saving(
            None if self.checkpoint is None else Checkpoint(*self.checkpoint, identity),
            None if self.resume is None else partial(restore, self.resume, identity),
        )


@dataclass(frozen=True)
class Saving:
    """Where a fit's state goes, and comes from.

    Attributes:
        checkpoint: Writes it; None writes nothing.
        resume: Puts a state in place of all riders and says where the fit stood; None begins.
        riders: What rides along beside the loop's own, by name.
    """

    checkpoint: Checkpoint | None = None
    resume: Callable[[Mapping[str, Rider]], Place] | None = None
    riders: Mapping[str, Rider] = field(default_factory=dict)


def restore(
    path: str | os.PathLike[str], identity: Mapping[str, Any], riders: Mapping[str, Rider]
) -> Place:
    """Load the state of all riders from a checkpoint of the same fit.

    Args:
        path: Of the file.
        identity: Of the fit that is to go on.
        riders: By the names under which they were written.

    Returns:
        Where the fit stood.

    Raises:
        FileNotFoundError: There is no such file.
        Unreadable: The file is damaged, or no checkpoint (a ``ValueError``).
        ValueError: The checkpoint is of another model, other data or another plan.
    """
    found = archive.read(path, KIND)
    try:
        place, then = Place(**found.notes["place"]), dict(found.notes["identity"])
    except (KeyError, TypeError, ValueError) as error:
        raise archive.Unreadable(f"{str(path)!r} lacks what a checkpoint holds.") from error
    _require_same(str(path), then, json.loads(json.dumps(identity)))
    for name, rider in riders.items():
        rider.load(found.under(name))
    return place


def checked_files(checkpoint: Any, every: Any, resume: Any) -> Files:
    """Check where and how often to write, and where to read.

    Raises:
        TypeError: Neither a path, nor steps or a ``timedelta``.
        ValueError: Not above 0.
        FileNotFoundError: No folder to write to, or no file to read.
    """
    for name, path in (("checkpoint", checkpoint), ("resume", resume)):
        if not (path is None or isinstance(path, str | os.PathLike)):
            raise TypeError(f"{name}={path!r}: give the path of a file, as 'fit.safetensors'.")
    if isinstance(every, timedelta):
        if every <= timedelta(0):
            raise ValueError(f"checkpoint_every={every!r}: give a time above 0.")
    else:
        every = integer("checkpoint_every", every)
    if resume is not None and not Path(resume).is_file():
        raise FileNotFoundError(f"resume={str(resume)!r}: there is no such file.")
    if checkpoint is None:
        return Files(None, resume)
    place = Path(checkpoint)
    if not place.parent.is_dir():
        raise FileNotFoundError(f"checkpoint={str(place)!r}: no folder {str(place.parent)!r}.")
    if place.is_dir():
        raise ValueError(f"checkpoint={str(place)!r} is a folder: give the path of a file in it.")
    return Files((place, every), resume)


def layout(module: nn.Module) -> dict[str, str]:
    """Describe a module, by name: each part's kind and options, each parameter's shape and type."""
    parts = {
        f"model.{name}" if name else "model": f"{type(part).__name__}({part.extra_repr()})"
        for name, part in module.named_modules()
    }
    parameters = {
        f"model.{name}": f"{tuple(p.shape)} {p.dtype}" for name, p in module.named_parameters()
    }
    # Some parts show the address of a function, which no other process shares.
    return {k: re.sub(r" at 0x[0-9a-f]+", "", v) for k, v in (parts | parameters).items()}


class Generators:
    """The state of torch's default generators: dropout's, and that of Pyro's samples."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state(self) -> dict[str, Tensor]:
        """Give the states."""
        found = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self._device)
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        torch.set_rng_state(state["cpu"])
        if self._device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self._device)


def _require_same(path: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differ = [
        f"{key} was {_short(then.get(key, 'absent'))} and is {_short(now.get(key, 'absent'))}"
        for key in [*then, *(k for k in now if k not in then)]
        if then.get(key) != now.get(key)
    ]
    if differ:
        more = f"; and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ValueError(
            f"resume={path!r} is a checkpoint of another fit: {'; '.join(differ[:3])}{more}. Give "
            "the model, data and arguments it was made with; to train further under another plan, "
            "load the weights and fit with initialise=False."
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
