"""Interrupts, kills and threads: whatever ends a fit, or runs beside it, changes no number."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal

import pyralloy as pa
from pyralloy.archive import digest
from pyralloy.inference.engine import Engine

PROBLEM = pa.datasets.inverse_sinusoid(200, seed=0)


def make_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pa.MDN(pa.networks.MLP(1, hidden=(8,)), pa.MixtureHead(8, 3))


def run(model=None, x=PROBLEM.x, **options):
    options = {"max_steps": 45, "progress": False} | options  # a trial run, not judged
    return pa.fit(model or make_model(), x, PROBLEM.y, **options)


def sha(fit):
    return digest(fit.model.state_dict())


# -- Ctrl-C ---------------------------------------------------------------------------------------


class Column(list):
    """The column x, which does something once a fit reads it: the fit has begun then."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def __array__(self, dtype=None, copy=None):
        self.act()
        return PROBLEM.x.numpy()


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_before_the_first_step_is_heeded_too():
    """While rows are checked and standardised there is no model yet: one step makes it one."""
    with pytest.warns(UserWarning, match="interrupted at step 1 of 500"):
        fit = pa.fit(make_model(), Column(press), PROBLEM.y, max_steps=500, progress=False)
    assert fit.interrupted and bool(fit.density(PROBLEM.x).mean.isfinite().all())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def interrupted_at_random(count, seed):
    """Interrupt fits at random moments; give how many were, and the fits."""
    whole, fits, generator = sha(run()), [], random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        start = time.perf_counter()
        run(max_steps=400)
        seconds = time.perf_counter() - start
    for number in range(count):
        timer = threading.Timer(generator.random() * seconds, press)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            # So many steps that no timer lets it come to its end.
            fit = run(x=Column(timer.start), max_steps=20_000)
        timer.join()
        fits.append(fit)
        assert fit.interrupted
        assert bool(fit.density(PROBLEM.x).log_prob(PROBLEM.y).isfinite().all())
        assert fit.best_step <= fit.history.step[-1] < 20_000
        assert all(p.grad is None and p.is_leaf for p in fit.model.parameters())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if number % 5 == 0:  # the next fit in the process is right, to the bit
            assert sha(run()) == whole
    return fits


def test_interrupts_at_random_moments_leave_usable_models():
    interrupted_at_random(5, seed=0)


@pytest.mark.slow
def test_five_hundred_interrupts_at_random_moments():
    steps = [int(f.history.step[-1]) for f in interrupted_at_random(500, seed=1)]
    assert len(set(steps)) > 100  # they came at different moments


@pytest.mark.parametrize("guide", [AutoNormal, AutoDelta, AutoLowRankMultivariateNormal])
@pytest.mark.parametrize("press_at", [30, 130])  # of 100 steps of the first run, and 150 in all
def test_ctrl_c_in_either_run_of_a_guide_leaves_a_usable_fit(guide, press_at, monkeypatch):
    calls, step = [], Engine.step

    def pressed(self, batch, learning_rate):
        calls.append(self.steps)
        if len(calls) == press_at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, learning_rate)

    def fit(**options):
        model = make_model()
        model = pa.MDN(model.trunk, model.head, prior=pa.priors.FanIn())
        return run(model, guide=guide, max_steps=50, start=100, **options)

    whole = fit()
    monkeypatch.setattr(Engine, "step", pressed)
    taken = press_at if press_at < 100 else press_at - 100
    with pytest.warns(UserWarning, match=f"interrupted at step {taken} of"):
        stopped = fit()
    assert stopped.interrupted and len(calls) == press_at and stopped.model.prior is not None
    density = stopped.density(PROBLEM.x, 5)
    assert bool(density.log_prob(PROBLEM.y).isfinite().all())
    assert (stopped.posterior is None) == (press_at < 100 or guide is AutoDelta)
    assert all(p.requires_grad and p.grad is None for p in stopped.model.parameters())
    again = fit()
    assert sha(again) == sha(whole)  # the next fit in the process is right


# -- kill -9 --------------------------------------------------------------------------------------

#: How a fit differs, as arguments of ``pa.fit``: a row for every kind of guide.
GUIDES = {
    "maximum likelihood": "{}",
    "AutoNormal": "{'guide': pyro.infer.autoguide.AutoNormal, 'start': 100}",
}

DRIVER = """
    import json, os, random, signal, sys, time
    import pyro, torch, pyralloy as pa
    from pyralloy.archive import digest

    folder, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    problem = pa.datasets.inverse_sinusoid(200, seed=0)
    options = {guide}

    def run(path=None):
        torch.manual_seed(0)
        trunk = torch.nn.Sequential(pa.networks.MLP(1, (8,)), torch.nn.Dropout(0.1))
        prior = pa.priors.FanIn() if options else None
        model = pa.MDN(trunk, pa.MixtureHead(8, 3), prior=prior)
        resume = path if path and os.path.exists(path) else None
        fit = pa.fit(
            model, problem.x, problem.y, max_steps=200, progress=False, seed=1,
            checkpoint=path, checkpoint_every=3, resume=resume, **options,
        )
        return digest(fit.model.state_dict() | fit.weights(5))

    def child(path):
        # A forked copy of this process, which has imported everything and trained nothing.
        number = os.fork()
        if number == 0:
            try:
                with open(path + ".sha", "w") as file:
                    file.write(run(path))
            finally:
                os._exit(0)
        return number

    for name in ("first", "whole"):  # the first takes longer: it fills the caches of the disk
        start = time.perf_counter()
        os.waitpid(child(f"{{folder}}/{{name}}"), 0)
        seconds = time.perf_counter() - start
    generator, killed, resumed, shas = random.Random(seed), 0, 0, []
    for number in range(count):
        path = f"{{folder}}/{{number}}.safetensors"
        victim = child(path)
        time.sleep(generator.random() * seconds)
        os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        killed += os.WIFSIGNALED(status)
        resumed += os.path.exists(path)
        os.waitpid(child(path), 0)
        shas.append(open(path + ".sha").read())
    print(json.dumps([open(folder + "/whole.sha").read(), killed, resumed, shas]))
"""


def killed_at_random(guide, count, folder):
    code = textwrap.dedent(DRIVER).format(guide=GUIDES[guide])
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(count), "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, killed, resumed, shas = json.loads(done.stdout)
    assert len(whole) == 64 and shas == [whole] * count
    return killed, resumed


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@needs_fork
@pytest.mark.parametrize("guide", GUIDES)
def test_a_fit_that_was_killed_goes_on_to_the_bit(guide, tmp_path):
    killed_at_random(guide, 3, tmp_path)


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_fifty_fits_killed_at_random_moments_go_on_to_the_bit(guide, tmp_path):
    killed, resumed = killed_at_random(guide, 50, tmp_path)
    assert killed > 25 and resumed > 25  # most were under way, and most had something to go on from


# -- threads --------------------------------------------------------------------------------------


def one_of_eight(number):
    """Make a model, fit it and predict: numbers that only depend on ``number``."""
    problem = pa.datasets.inverse_sinusoid(150, seed=number)
    model = pa.MDN(pa.networks.MLP(1, hidden=(8,)), pa.MixtureHead(8, 3))
    fit = pa.fit(model, problem.x, problem.y, max_steps=40, progress=False, seed=number)
    density = fit.density(PROBLEM.x)
    return sha(fit), density.quantile([0.1, 0.9]), density.crps(PROBLEM.y)


def test_eight_threads_that_fit_and_predict_at_once_equal_one():
    alone = [one_of_eight(number) for number in range(8)]
    fitted, before = run(), pa.datasets.inverse_sinusoid(50, seed=9).x
    expected = fitted.density(before).mean
    found, errors = {}, []
    barrier = threading.Barrier(8)

    def work(number):
        try:
            barrier.wait()
            for round_ in range(3):
                assert torch.equal(fitted.density(before).mean, expected)
                found[number, round_] = one_of_eight(number)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for (number, _), (weights, quantiles, scores) in found.items():
        assert weights == alone[number][0]
        assert torch.equal(quantiles, alone[number][1]) and torch.equal(scores, alone[number][2])
    assert len(found) == 24


def test_models_made_in_threads_leave_pyros_setting_as_it_was():
    import pyro

    assert pyro.settings.get("module_local_params") is False
    threads = [threading.Thread(target=lambda: [make_model() for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    fits = [sha(run(max_steps=20)) for _ in range(3)]
    for thread in threads:
        thread.join()
    assert pyro.settings.get("module_local_params") is False
    assert len(set(fits)) == 1
