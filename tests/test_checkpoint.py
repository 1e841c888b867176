"""A fit that goes on from a checkpoint ends where it would have ended, to the bit."""

import math
import os
import signal
from datetime import timedelta

import numpy as np
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyralloy as pa
from pyralloy import archive
from pyralloy.archive import Unreadable, digest
from pyralloy.inference.checkpoint import Checkpoint, Place, restore
from pyralloy.inference.diagnostics import FitWarning
from pyralloy.inference.engine import Engine
from pyralloy.inference.schedules import cosine

PROBLEM, HELD = (pa.datasets.inverse_sinusoid(n, seed=s) for n, s in ((300, 0), (80, 3)))


def make_model():
    return pa.MDN(pa.networks.MLP(1, hidden=(12,)), pa.MixtureHead(12, 4))


def noisy_model():
    """Batch statistics and dropout: buffers, and numbers from torch's generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(1, 12), nn.BatchNorm1d(12), nn.SiLU(), nn.Dropout(0.2))
        return pa.MDN(trunk, pa.MixtureHead(12, 4))


def run(model=None, x=PROBLEM.x, y=PROBLEM.y, **options):
    options = {"max_steps": 120, "progress": False, "seed": 1} | options
    return pa.fit(model or make_model(), x, y, **options)


def sha(fit):
    return digest(fit.model.state_dict())


def same(one, two):
    columns = ("step", "train", "validation", "clipped")
    return (
        sha(one) == sha(two)
        and all(np.array_equal(one.history[c], two.history[c], equal_nan=True) for c in columns)
        and (one.marginal, one.best_step) == (two.marginal, two.best_step)
    )


class Stopped(Exception):
    pass


def broken_off(at, **options):
    """Run a fit that an exception ends at an evaluation."""

    def stop(step, metrics):
        if step >= at:
            raise Stopped

    with pytest.raises(Stopped):
        run(callback=stop, **options)


# -- to the bit -----------------------------------------------------------------------------------

W = torch.rand(300, generator=torch.Generator().manual_seed(0)) + 0.1
KINDS = {
    "plain": {},
    "nothing held out": {"validation": None},
    "a pair held out": {"validation": (HELD.x, HELD.y)},
    "all rows a step": {"batch_size": 300},
    "another schedule": {"schedule": cosine, "learning_rate": 0.003},
    "clipped": {"clip": 0.3},
    "weighted": {"weights": W},
    "patience": {"patience": 3, "learning_rate": 0.5, "max_steps": 120},
    "one's own start": {"initialise": False},
}


@pytest.mark.parametrize("model", [make_model, noisy_model])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_fit_ends_where_the_whole_one_does(kind, model, tmp_path):
    path, options = tmp_path / "a.safetensors", {"max_steps": 40} | KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = model().state_dict()

    def fresh():
        made = model()
        made.load_state_dict(start)
        return made

    whole = run(fresh(), **options)
    assert same(run(fresh(), **options, checkpoint=path, checkpoint_every=7), whole)
    last = int(whole.history.step[-1])
    for at in (2, last // 2, last):
        path.unlink()
        broken_off(at, model=fresh(), **options, checkpoint=path, checkpoint_every=1)
        torch.manual_seed(at)  # the state of the process that goes on does not matter
        assert same(run(fresh(), **options, resume=path), whole)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_that_are_read_go_on_in_the_midst_of_an_epoch(shuffle, tmp_path):
    def loader():
        return DataLoader(TensorDataset(PROBLEM.x, PROBLEM.y), 32, shuffle=shuffle)

    path, options = tmp_path / "a.safetensors", {"size": 300, "validation": (HELD.x, HELD.y)}
    whole = run(x=loader(), y=None, **options)
    for at in (2, 54, 60, 95):
        broken_off(at, x=loader(), y=None, **options, checkpoint=path, checkpoint_every=1)
        assert same(run(x=loader(), y=None, **options, resume=path), whole)


def test_one_may_be_broken_off_again_and_again(tmp_path):
    path, whole = tmp_path / "a.safetensors", run(noisy_model())
    broken_off(10, model=noisy_model(), checkpoint=path, checkpoint_every=3)
    for at in (20, 33, 70, 119):
        options = {"checkpoint": path, "checkpoint_every": 3, "resume": path}
        broken_off(at, model=noisy_model(), **options)
    assert same(run(noisy_model(), resume=path), whole)


def test_ctrl_c_writes_what_the_fit_that_was_not_stopped_would_have_been(tmp_path):
    """A stopped fit evaluates once more, between the steps of the plan: that is not in the file."""
    path, whole = tmp_path / "a.safetensors", run(max_steps=1000)

    def press(step, steps):
        if step == 504:
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0 - step / steps

    whole = run(max_steps=1000, schedule=lambda step, steps: 1.0 - step / steps)
    with pytest.warns(UserWarning, match="interrupted at step 505"):
        stopped = run(max_steps=1000, schedule=press, checkpoint=path)
    assert stopped.interrupted and 505 in stopped.history.step
    resumed = run(max_steps=1000, schedule=lambda step, steps: 1.0 - step / steps, resume=path)
    assert same(resumed, whole) and not resumed.interrupted


def test_a_finished_fit_is_given_back_without_a_step(tmp_path):
    path, steps = tmp_path / "a.safetensors", []
    whole = run(checkpoint=path)
    assert same(run(resume=path, callback=lambda *a: steps.append(a)), whole) and not steps
    # It was a callback that ended this one: it has ended for good.
    early = run(checkpoint=path, callback=lambda step, metrics: step >= 30)
    assert same(run(resume=path), early)


def test_the_seconds_of_all_parts_are_counted(tmp_path):
    path = tmp_path / "a.safetensors"
    broken_off(60, checkpoint=path, checkpoint_every=1)
    seconds = run(resume=path).history.seconds
    assert bool((np.diff(seconds) >= 0).all())


# -- guides: two runs -----------------------------------------------------------------------------

GUIDES = [AutoNormal, AutoDelta, AutoLowRankMultivariateNormal]


def guided(guide, **options):
    options = {"model": noisy_prior_model(), "max_steps": 30, "start": 20} | options
    return run(guide=guide, **options)


def noisy_prior_model():
    """Weights with a prior, weights without, statistics of batches, and dropout."""
    made = noisy_model()
    return pa.MDN(made.trunk, made.head, prior=pa.priors.LastLayer())


def same_posterior(one, two):
    drawn, again = one.weights(7, seed=3), two.weights(7, seed=3)
    density, other = (fit.density(PROBLEM.x, 5) for fit in (one, two))
    return (
        same(one, two)
        and (one.diagnostics, one.temperature) == (two.diagnostics, two.temperature)
        and drawn.keys() == again.keys()
        and all(torch.equal(drawn[n], again[n]) for n in drawn)
        and torch.equal(density.log_prob(PROBLEM.y), other.log_prob(PROBLEM.y))
    )


def broken_off_in(which, at, monkeypatch, guide, **options):
    """End a fit by an exception just after a state of one of its runs was written."""
    write = Checkpoint.write

    def stop(self, place, riders):
        write(self, place, riders)
        if (self.identity["run"], place.step) == (which, at):
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "write", stop)
        with pytest.raises(Stopped):
            guided(guide, checkpoint_every=1, **options)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_resumed_guide_ends_where_the_whole_one_does(guide, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    whole = guided(guide)
    assert (whole.posterior is None) == (guide is AutoDelta)
    assert same_posterior(guided(guide, checkpoint=path, checkpoint_every=7), whole)
    assert same_posterior(guided(guide, resume=path), whole)  # a finished fit is given back
    for which, at in (("first", 5), ("first", 20), ("guide", 1), ("guide", 16), ("guide", 30)):
        broken_off_in(which, at, monkeypatch, guide, checkpoint=path)
        torch.manual_seed(at)  # the state of the process that goes on does not matter
        assert same_posterior(guided(guide, resume=path), whole)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_may_be_broken_off_in_both_runs_and_under_all_terms(guide, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    options = {"model": None, "temperature": 0.5, "warm_up": 0.4, "weights": W, "clip": 2.0}
    options["x_noise"] = 0.1
    prior = pa.priors.FanIn()

    def fresh():
        return {**options, "model": pa.MDN(make_model().trunk, pa.MixtureHead(12, 4), prior=prior)}

    whole = guided(guide, **fresh())
    broken_off_in("first", 11, monkeypatch, guide, checkpoint=path, **fresh())
    broken_off_in("guide", 9, monkeypatch, guide, checkpoint=path, resume=path, **fresh())
    assert same_posterior(guided(guide, resume=path, **fresh()), whole)


def test_what_the_first_run_went_back_from_is_said_by_a_fit_resumed_in_the_second(
    tmp_path, monkeypatch
):
    path, step = tmp_path / "a.safetensors", Engine.step

    def failing(self, batch, learning_rate):
        loss, calls[0] = step(self, batch, learning_rate), calls[0] + 1
        return loss * math.nan if calls[0] == 9 else loss

    calls = [0]
    monkeypatch.setattr(Engine, "step", failing)
    with pytest.warns(FitWarning, match="at 1 steps .the first 9. a loss"):
        whole = guided(AutoNormal)
    calls = [0]
    broken_off_in("guide", 9, monkeypatch, AutoNormal, checkpoint=path)
    with pytest.warns(FitWarning, match="at 1 steps .the first 9. a loss"):
        assert same_posterior(guided(AutoNormal, resume=path), whole)


@pytest.mark.parametrize(
    ("guide", "options", "message"),
    [
        (AutoDelta, {}, "guide was guide AutoNormal and is guide AutoDelta"),
        (AutoNormal, {"temperature": 0.5}, r"terms was \[1.0, .* and is \[0.5"),
        (AutoNormal, {"start": 10}, r"terms was .*20.* and is .*10"),
        (None, {"model": noisy_model(), "start": None}, "guide was .* and is absent"),
    ],
)
def test_a_checkpoint_of_another_guide_is_refused(guide, options, message, tmp_path):
    path = tmp_path / "a.safetensors"
    guided(AutoNormal, checkpoint=path)
    with pytest.raises(ValueError, match="is a checkpoint of another fit.*" + message):
        guided(guide, resume=path, **options)


# -- when it is written, and what -----------------------------------------------------------------


@pytest.mark.parametrize(("every", "count"), [(1, 120), (7, 18), (50, 3), (1000, 1)])
def test_it_is_written_every_so_many_steps_and_at_the_end(every, count, tmp_path, monkeypatch):
    steps, write = [], Checkpoint.write
    monkeypatch.setattr(
        Checkpoint,
        "write",
        lambda self, place, riders: steps.append(place) or write(self, place, riders),
    )
    run(checkpoint=tmp_path / "a.safetensors", checkpoint_every=every)
    assert [p.step for p in steps] == [*range(every, 120, every), 120] and len(steps) == count
    assert [p.finished for p in steps] == [False] * (count - 1) + [True]


def test_it_is_written_every_so_many_seconds(tmp_path, monkeypatch):
    clock, steps = iter(np.arange(0.0, 1e6, 1.0)), []
    monkeypatch.setattr("pyralloy.inference.checkpoint.time.monotonic", lambda: next(clock))
    write = Checkpoint.write

    def noted(self, place, riders):
        steps.append(place.step)
        write(self, place, riders)

    monkeypatch.setattr(Checkpoint, "write", noted)
    run(checkpoint=tmp_path / "a.safetensors", checkpoint_every=timedelta(seconds=50))
    assert steps == [50, 100, 120]  # the clock moves by a second each time it is asked


def test_it_holds_tensors_alone_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "a.safetensors"
    run(checkpoint=path, checkpoint_every=10)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    tensors = load_file(path)
    assert {"engine.weights", "weights.kept", "generators.cpu", "trace.rows"} <= tensors.keys()


def test_whatever_has_a_state_rides_along(tmp_path):
    class Counter:
        def __init__(self):
            self.count = torch.zeros(3)

        def state(self):
            return {"count": self.count, "a.b": self.count[0]}

        def load(self, state):
            self.count = state["count"] + state["a.b"]

    one, two, path = Counter(), Counter(), tmp_path / "a.safetensors"
    one.count += 2.0
    Checkpoint(path, 1, {"seed": 3, "names": ["a"]}).write(Place(5), {"mine": one, "mine too": two})
    other = Counter()
    assert restore(path, {"seed": 3, "names": ["a"]}, {"mine": other}) == Place(5)
    assert other.count.tolist() == [4.0] * 3


# -- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.safetensors"
    run(checkpoint=path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.01}, r"learning_rate was 0.015 and is 0.01"),
        ({"max_steps": 121}, r"max_steps was 120 and is 121"),
        ({"batch_size": 17}, r"batch_size was 16 and is 17"),
        ({"patience": 9}, r"patience was None and is 9"),
        ({"seed": 2}, r"seed was 1 and is 2"),
        ({"clip": 1.0}, r"clip was None and is 1.0"),
        ({"x_noise": 0.1}, r"x_noise was 0.0 and is 0.1"),
        ({"schedule": cosine}, r"schedule was .* and is"),
        ({"validation": 0.2}, r"validation was 0.1 and is 0.2"),
        ({"validation": (HELD.x, HELD.y)}, r"data was 300 rows"),
        ({"x": PROBLEM.x + 1e-6}, r"data was 300 rows"),
        ({"y": PROBLEM.y.flip(0)}, r"data was 300 rows"),
        ({"weights": W}, r"data was 300 rows"),
        ({"x": PROBLEM.x[1:], "y": PROBLEM.y[1:]}, r"data was 300 rows.* and is 299 rows"),
        ({"model": noisy_model()}, r"model.trunk was MLP.* and is Sequential"),
        ({"model": pa.MDN(pa.networks.MLP(1, (13,)), pa.MixtureHead(13, 4))}, r"out_features=13"),
        ({"model": make_model().double()}, r"float32 and is .*float64"),
        (
            {"model": pa.MDN(pa.networks.MLP(1, (12,)), pa.MixtureHead(12, 4, family="student_t"))},
            r"family=student_t",
        ),
        (
            {"model": pa.MDN(pa.networks.MLP(1, (12,), nn.Tanh), pa.MixtureHead(12, 4))},
            r"was SiLU\(\) and is Tanh",
        ),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused_and_says_what_differs(written, options, message):
    with pytest.raises(ValueError, match="is a checkpoint of another fit.*" + message):
        run(**options, resume=written)


def test_a_file_that_is_missing_damaged_or_no_checkpoint_is_refused(written, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        run(resume=tmp_path / "none.safetensors")
    fit = run(max_steps=5)
    fit.save(tmp_path / "fit.safetensors")
    with pytest.raises(Unreadable, match="is a fit, and a checkpoint is needed"):
        run(resume=tmp_path / "fit.safetensors")
    archive.write(tmp_path / "b.safetensors", "checkpoint", {}, {"place": 3})
    with pytest.raises(Unreadable, match="lacks what a checkpoint holds"):
        run(resume=tmp_path / "b.safetensors")
    data = bytearray(written.read_bytes())
    data[-5] ^= 1
    written.write_bytes(data)
    with pytest.raises(Unreadable, match="SHA-256"):
        run(resume=written)


def test_a_refused_checkpoint_leaves_the_model_usable(written):
    model = make_model()
    with pytest.raises(ValueError, match="another fit"):
        run(model, seed=5, resume=written)
    assert same(run(model), run())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint": 3}, TypeError, "checkpoint=3"),
        ({"checkpoint": "none/a.safetensors"}, FileNotFoundError, "no folder 'none'"),
        ({"checkpoint": "."}, ValueError, "is a folder"),
        ({"checkpoint": "a", "checkpoint_every": 0}, ValueError, "checkpoint_every=0"),
        ({"checkpoint": "a", "checkpoint_every": 0.5}, TypeError, "checkpoint_every=0.5"),
        ({"checkpoint": "a", "checkpoint_every": timedelta(0)}, ValueError, "checkpoint_every="),
        ({"resume": 3}, TypeError, "resume=3"),
    ],
)
def test_paths_and_times_out_of_range_are_refused_before_any_work(options, error, message):
    model = make_model()
    with pytest.raises(error, match=message):
        run(model, **options)
    assert model.y_scaling.shift.shape == () and float(model.y_scaling.scale) == 1.0
