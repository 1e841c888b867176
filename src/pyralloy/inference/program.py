"""Programs: a function of tensors that is captured as one graph, and compiled, once that pays."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx

from pyralloy.inference.graphs import pointwise, simplify
from pyralloy.inference.matrices import quicken, quickens

__all__ = ["GraphWarning", "Program"]

Function = Callable[..., Tensor]

#: Seconds that capturing a graph takes; the first of a process imports what captures.
CAPTURE, FIRST_CAPTURE = 0.2, 2.0
#: What of an eager call a graph saves: a share of it, and no more seconds than Python can waste.
SAVED, MOST_SAVED = 0.5, 1e-3
#: Calls that are timed before it is decided by what is left of them.
TIMED = 50
#: Seconds that compiling takes where a capture takes those: anew, from the disk, and the imports.
ANEW, AGAIN, IMPORTS = 14.0, 2.0, 1.7
#: How many times as long as those a capture may take, and compiling is still taken to follow it.
PACES = 1 / 3, 4.0
#: What is imported when the first graph of a process is captured, and compiled.
CAPTURER, COMPILER = "torch._dynamo", "torch._inductor.compile_fx"


class GraphWarning(UserWarning):
    """A function could not be captured or compiled, and runs as it stands: right, but slower."""


@dataclass
class _Process:
    """What this process has spent so far on calls that a graph would have saved."""

    seconds: float = 0.0
    captured: bool = False

    @property
    def price(self) -> float:
        return CAPTURE if self.ready else FIRST_CAPTURE

    @property
    def ready(self) -> bool:
        return self.captured or CAPTURER in sys.modules


_PROCESS = _Process()


@dataclass
class _Route:
    """How calls of one set of shapes are run."""

    run: Function
    stage: str = "eager"
    calls: int = 0
    seconds: float = 0.0  # that a graph would have saved
    pace: float = 1.0  # of what its capture took, to what it takes where the constants are from
    timed: list[float] = field(default_factory=list)


class Program:
    """Run a function of tensors: as it stands, or as a graph once that pays.

    A graph holds the same operations in the same order, so its results are the function's to the
    bit; it leaves out what Python does between them. It is captured once the calls that are left
    would repay it, or calls have cost, in what it would have saved, what capturing costs.

    Compiled, operations are fused and round otherwise; and so ``"auto"``, which decides by the
    clock and by what the disk's cache holds, gives results that may differ from run to run in their
    last bits. It compiles where the calls that are left would save more seconds than compiling is
    expected to take. These go with those that the capture took, which runs the same kind of Python
    just before: on machines that are slow, or busy, both take longer, by about the same factor.

    Args:
        function: Of tensors, changing some of them in place, to a tensor. It must do the same at
            each call of the same shapes: control flow that depends on values fails to be captured.
        compiling: True compiles at the first call, False never does, ``"auto"`` where the calls
            that are left repay it.
        aside: Makes a context within which the function may run without a trace of it: generators
            and buffers come back to what they were.
        agrees: Says of a graph, and the tensors of a call, whether it gives what it should; None
            takes it for granted.
    """

    def __init__(
        self,
        function: Function,
        *,
        compiling: bool | Literal["auto"],
        aside: Callable[[], AbstractContextManager[Any]],
        agrees: Callable[[Function, tuple[Tensor, ...]], bool] | None = None,
    ) -> None:
        self._function, self._compiling, self.left, self._calls = function, compiling, 0, 0
        self._aside, self._agrees = aside, agrees
        self._routes: dict[tuple[torch.Size, ...], _Route] = {}
        self._failed = False

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Run, without gradients: what the function differentiates, it differentiates within."""
        key = tuple(t.shape for t in tensors)
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = _Route(self._function)
        self._calls, route.calls = self._calls + 1, route.calls + 1
        if route.stage != "settled":
            self._improve(route, tensors)
        if route.stage == "settled" or self._failed:
            return route.run(*tensors)
        start = time.perf_counter()
        result = route.run(*tensors)
        route.timed = [*route.timed[-TIMED:], time.perf_counter() - start]
        return result

    def stages(self) -> list[str]:
        """Give how each set of shapes is run by now."""
        return ["settled" if self._failed else route.stage for route in self._routes.values()]

    def _improve(self, route: _Route, tensors: tuple[Tensor, ...]) -> None:
        if self._failed:
            return
        if route.stage == "eager" and self._capture_pays(route):
            self._capture(route, tensors)
        if route.stage == "captured" and self._decided(route):
            if self._compiling is True or (
                self._compiling == "auto" and self._compile_pays(route, tensors)
            ):
                self._compile(route, tensors)
            route.stage = "settled"

    def _left(self, route: _Route) -> float:
        """Give how many calls are left of these shapes, if they keep their share."""
        return self.left * route.calls / self._calls

    # -- capture ----------------------------------------------------------------------------------

    def _capture_pays(self, route: _Route) -> bool:
        if self._compiling is True:
            return True
        if not route.timed:
            return False
        saved = min(SAVED * route.timed[-1], MOST_SAVED)
        route.seconds += saved
        if not _PROCESS.ready:
            _PROCESS.seconds += saved
        spent = route.seconds if _PROCESS.ready else _PROCESS.seconds
        if spent >= _PROCESS.price:
            return self._left(route) * saved > CAPTURE
        if len(route.timed) < TIMED:
            return False
        saved = min(SAVED * statistics.median(route.timed), MOST_SAVED)
        return self._left(route) * saved > _PROCESS.price

    def _capture(self, route: _Route, tensors: tuple[Tensor, ...]) -> None:
        price, start = _PROCESS.price, time.perf_counter()
        try:
            with self._aside(), _quiet():
                from torch.fx.experimental.proxy_tensor import make_fx

                graph = make_fx(self._function)(*(t.clone() for t in tensors))
                graph = simplify(graph, tensors)
            _PROCESS.captured = True
        except Exception as error:  # noqa: BLE001 - whatever fails, the function itself can run
            self._fail("captured", error)
            return
        least, most = PACES
        route.pace = min(max((time.perf_counter() - start) / max(price, 1e-3), least), most)
        if self._agrees is not None and not self._agrees(graph, tensors):
            self._fail("captured", "its loss or gradient is not that of Pyro's Trace_ELBO")
            return
        route.run, route.stage, route.timed = graph, "captured", []

    def _fail(self, what: str, why: Exception | str) -> None:
        self._failed = True
        for route in self._routes.values():
            route.run = self._function
        reason = why if isinstance(why, str) else f"{type(why).__name__}: {why}".split("\n")[0]
        warnings.warn(
            f"the step of training could not be {what} as a graph ({reason}); it runs as it "
            "stands, which takes about twice as long for small batches. Control flow that depends "
            "on the values of tensors, and layers that change state of their own, are what graphs "
            "cannot hold.",
            GraphWarning,
            stacklevel=2,
        )

    # -- compile ----------------------------------------------------------------------------------

    def _decided(self, route: _Route) -> bool:
        return self._compiling != "auto" or len(route.timed) >= TIMED

    def _compile_pays(self, route: _Route, tensors: tuple[Tensor, ...]) -> bool:
        # The mean, as calls that wait for other processes count too: they do when compiling.
        captured = statistics.fmean(route.timed)
        # Measured of networks of 6,000 weights, batches of 32 to 65,536: overheads vanish, mostly.
        least = 0.55 if quickens(cast("fx.GraphModule", route.run), tensors) else 0.8
        compiled = max(0.25 * captured, least * captured - 0.45e-3 * route.pace)
        note = _Note(route.run, torch.get_num_threads())
        return route.pace * note.seconds() < self._left(route) * (captured - compiled)

    def _compile(self, route: _Route, tensors: tuple[Tensor, ...]) -> None:
        note = _Note(route.run, torch.get_num_threads())
        try:
            with _quiet():
                importlib.import_module(COMPILER)  # apart, as it is done once
            start = time.perf_counter()
            # The noise of the graph as captured, draw for draw.
            options: dict[str, Any] = {"fallback_random": True}
            graph = pointwise(cast("fx.GraphModule", route.run))
            quicken(graph, tensors)
            compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
            with self._aside(), _quiet():
                compiled(*(t.clone() for t in tensors))
        except Exception as error:  # noqa: BLE001 - whatever fails, the graph itself can run
            warnings.warn(
                f"the step of training could not be compiled ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}); it runs as captured. A C++ "
                "compiler is needed, as g++.",
                GraphWarning,
                stacklevel=2,
            )
            return
        note.write((time.perf_counter() - start) / route.pace)
        if self._agrees is None or self._agrees(compiled, tensors):
            route.run = compiled


class _Note:
    """What is known of the cost of compiling a graph on this machine, beside the compiler's cache.

    Args:
        graph: What would be compiled.
        threads: For how many threads.
    """

    def __init__(self, graph: Any, threads: int) -> None:
        known = "TORCHINDUCTOR_CACHE_DIR"
        root = os.environ.get(known) or f"{tempfile.gettempdir()}/torchinductor_{_user()}"
        shapes = [str(n.meta.get("tensor_meta")) for n in _nodes(graph)]
        text = "\n".join([torch.__version__, str(threads), graph.code, *shapes])
        self._folder = Path(root)
        self._file = self._folder / f"pyralloy-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        self._anew = self._folder / "pyralloy-anew"

    def seconds(self) -> float:
        """Estimate the seconds that compiling would take now, at a pace of one."""
        imports = 0.0 if COMPILER in sys.modules else IMPORTS
        if self._file.exists():
            return AGAIN + imports
        return _read(self._anew, ANEW) + imports

    def write(self, seconds: float) -> None:
        """Note that the graph was compiled, and how long that took, at that pace, if anew."""
        try:
            if not self._file.exists() and self._folder.is_dir():
                self._anew.write_text(json.dumps(seconds))
                self._file.touch()
        except OSError:
            pass  # where nothing can be written, nothing is remembered


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from warning of its own parts; the filters come back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _nodes(graph: Any) -> list[fx.Node]:
    return [n for n in graph.graph.nodes if n.op == "placeholder"]


def _user() -> str:
    try:
        return getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"


def _read(file: Path, default: float) -> float:
    try:
        found = float(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return default
    return found if math.isfinite(found) else default
