"""Archives: named tensors and notes in one file that is whole, or refused."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Archive", "Unreadable", "digest", "named", "read", "under", "write"]

#: Version of the layout of the notes; what was written by a later one is refused.
VERSION = 1


class Unreadable(ValueError):
    """A file is damaged, of another kind, or made by a later version."""


class Archive(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: By name, on the CPU.
        notes: What JSON can say: numbers, strings, lists and mappings.
    """

    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    def under(self, name: str) -> dict[str, Tensor]:
        """Give :func:`under` of the tensors."""
        return under(name, self.tensors)


def named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the name of a part and a dot before the names of its tensors."""
    return {f"{part}.{name}": value for name, value in tensors.items()}


def under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors whose names begin with ``part`` and a dot, by what follows it."""
    lead = part + "."
    return {k.removeprefix(lead): v for k, v in tensors.items() if k.startswith(lead)}


def write(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]
) -> None:
    """Write a file in safetensors' format, whole or not at all.

    Written beside its place, flushed to the disk and then moved there, so that whatever ends the
    process leaves the file that was there before or the new one. Safetensors has no checksum, so
    a SHA-256 of all that matters goes into the metadata.

    Args:
        path: Where; the folder must exist. A file that is there is replaced.
        kind: What the file is, which :func:`read` has to ask for.
        tensors: By name.
        notes: What JSON can say.

    Raises:
        FileNotFoundError: The folder does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/a.safetensors", "demo", {"x": torch.ones(2)}, {"b": 1})
        ...     read(f"{folder}/a.safetensors", "demo")
        Archive(tensors={'x': tensor([1., 1.])}, notes={'b': 1})
    """
    from safetensors.torch import save_file

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}.")
    own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    said = json.dumps(notes)
    metadata = {"kind": kind, "version": str(VERSION), "notes": said}
    metadata["sha256"] = digest(own, kind, str(VERSION), said)
    # A name of its own, so that two writers to one place never share a file.
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        save_file(own, aside, metadata)
        _flush(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened to be flushed
        _flush(path.parent)


def read(path: str | os.PathLike[str], kind: str) -> Archive:
    """Read a file and check that it is what was written.

    Args:
        path: Where.
        kind: What the file has to be.

    Raises:
        FileNotFoundError: There is none.
        Unreadable: It is damaged, of another kind, or made by a later version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Unreadable(f"{str(path)!r} is no safetensors file, or damaged ({error}).") from error
    wanted = {"kind", "version", "notes", "sha256"}
    if not wanted <= metadata.keys():
        raise Unreadable(f"{str(path)!r} was not written by pyralloy: it lacks its notes.")
    if metadata["sha256"] != digest(
        tensors, metadata["kind"], metadata["version"], metadata["notes"]
    ):
        raise Unreadable(f"{str(path)!r} is damaged: its SHA-256 is not the one it was given.")
    if metadata["kind"] != kind:
        raise Unreadable(f"{str(path)!r} is a {metadata['kind']}, and a {kind} is needed here.")
    if metadata["version"] != str(VERSION):
        raise Unreadable(
            f"{str(path)!r} has version {metadata['version']} and this pyralloy reads {VERSION}: "
            "read it with the pyralloy that wrote it, or a later one."
        )
    try:
        notes = json.loads(metadata["notes"])
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{str(path)!r} has notes that cannot be read ({error}).") from error
    if not isinstance(notes, dict):
        raise Unreadable(f"{str(path)!r} has notes that are no mapping.")
    # In memory of their own: where a tensor begins in the file moves the last bits of a product.
    return Archive({name: tensor.clone() for name, tensor in tensors.items()}, notes)


def digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """Give the SHA-256 of texts and of named tensors: names, types, shapes and numbers."""
    total = hashlib.sha256()
    for text in texts:
        total.update(f"{len(text.encode())}:{text}".encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        total.update(f"{len(name)}:{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        for part in tensor.reshape(-1).split(1 << 22):  # no second copy of what is large
            total.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
