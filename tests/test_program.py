"""Programs: when a function is captured and compiled, by what it costs and what it saves."""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch

from pyralloy.inference import program
from pyralloy.inference.program import TIMED


def make_program(compiling=False):
    return program.Program(lambda x: x.sin().sum(), compiling=compiling, aside=nullcontext)


@pytest.mark.parametrize(("left", "stage"), [(10**9, "settled"), (10, "eager")])
def test_a_graph_that_the_calls_left_repay_is_not_waited_for(left, stage, monkeypatch):
    monkeypatch.setattr(program, "_PROCESS", program._Process(captured=True))
    monkeypatch.setattr(program, "CAPTURE", 1.0)  # a call takes some microseconds
    run = make_program()
    run.left = left
    for _ in range(TIMED + 1):
        run(torch.ones(3))
    assert run.stages() == [stage]


def test_calls_left_are_those_of_the_same_shapes():
    run = make_program()
    for rows in (3, 3, 3, 2):
        run(torch.ones(rows))
    run.left = 100
    assert [run._left(route) for route in run._routes.values()] == [75.0, 25.0]


def captured_route():
    """Give a program and its route, of which a call takes a second and compiling saves a fifth."""
    run, x = make_program("auto"), torch.ones(3)
    route = program._Route(run._function, calls=1, timed=[1.0] * TIMED)
    run._capture(route, (x,))
    run._calls, route.timed = 1, [1.0] * TIMED
    return run, route


def test_compiling_is_expected_to_be_as_slow_as_the_capture_was(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    run, route = captured_route()
    run.left = 6 * (program.ANEW + program.IMPORTS)
    route.pace = 1.0
    assert run._compile_pays(route, (torch.ones(3),))
    route.pace = 2.0
    assert not run._compile_pays(route, (torch.ones(3),))


def test_what_compiling_took_is_remembered_beside_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    _, route = captured_route()
    known = program._Note(route.run, 1)
    imports = known.seconds() - program.ANEW
    known.write(50.0)
    assert known.seconds() == pytest.approx(program.AGAIN + imports)
    assert program._Note(route.run, 2).seconds() == pytest.approx(50.0 + imports)


def test_the_pace_of_a_capture_is_bounded(monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(program.time, "perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(program, "_PROCESS", program._Process(captured=True))
    for price, pace in ((0.0, program.PACES[1]), (math.inf, program.PACES[0])):
        monkeypatch.setattr(program, "CAPTURE", price)
        assert captured_route()[1].pace == pace
