"""The loop: batches, schedules, clipping, weights, and batches that are read."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyralloy as pa
from pyralloy.inference import data as data_room
from pyralloy.inference.batches import Batches, Stream
from pyralloy.inference.clipping import clip_norm
from pyralloy.inference.schedules import constant, cosine, one_cycle

PROBLEM = pa.datasets.inverse_sinusoid(400, seed=0)


def make_model(features=1, components=5, **options):
    trunk = pa.networks.MLP(features, hidden=(16,))
    return pa.MDN(trunk, pa.MixtureHead(16, components, **options))


def run(x=PROBLEM.x, y=PROBLEM.y, model=None, **options):
    options = {"max_steps": 60, "progress": False} | options
    return pa.fit(model or make_model(), x, y, **options)


def weights(fit):
    return torch.cat([p.detach().flatten() for p in fit.model.parameters()])


# -- batches --------------------------------------------------------------------------------------


def test_batches_depend_on_seed_and_step_alone():
    rows = (torch.arange(10), torch.arange(10) * 2)
    stream = Batches(rows, 4, seed=1)
    forward = [stream.at(step) for step in range(8)]
    for step in (7, 2, 5, 0):
        for a, b in zip(Batches(rows, 4, seed=1).at(step), forward[step], strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(y, 2 * x) for x, y in forward)
    counts = torch.cat([x for x, _ in forward[:5]]).bincount()
    assert counts.tolist() == [2] * 10
    other = [Batches(rows, 4, seed=2).at(step)[0] for step in range(8)]
    assert any(not torch.equal(a, b[0]) for a, b in zip(other, forward, strict=True))


def test_batches_of_all_rows_are_the_rows():
    rows = (torch.arange(3),)
    assert Batches(rows, 3, seed=0).at(5)[0] is rows[0]
    assert Batches(rows, 99, seed=0).size == 3


@pytest.mark.parametrize(("rows", "size"), [(10, 4), (10, 3), (7, 6), (1000, 16), (5, 1)])
def test_an_epoch_uses_every_row_once_whatever_the_blocks(rows, size, monkeypatch):
    tensors = (torch.arange(rows),)
    plain = torch.cat([Batches(tensors, size, seed=3).at(step)[0] for step in range(3 * rows)])
    for epoch in range(3):
        assert torch.equal(plain[epoch * rows : (epoch + 1) * rows].sort().values, tensors[0])
    monkeypatch.setattr("pyralloy.inference.batches.BLOCK", 2 * size)
    small = Batches(tensors, size, seed=3)
    assert torch.equal(torch.cat([small.at(step)[0] for step in range(3 * rows)]), plain)


def test_batches_hold_no_shuffled_copy_of_the_rows(monkeypatch):
    monkeypatch.setattr("pyralloy.inference.batches.BLOCK", 100)
    batches = Batches((torch.arange(10_000.0),), 10, seed=0)
    batch = batches.at(5)[0]
    assert batch.untyped_storage().nbytes() == 100 * 4


# -- schedules and clipping -----------------------------------------------------------------------


def test_the_schedule_rises_to_its_peak_and_falls_to_nothing():
    rates = [one_cycle(s, 1000) for s in range(1000)]
    peak = int(np.argmax(rates))
    assert rates[0] < 0.05 and math.isclose(rates[peak], 1.0, abs_tol=1e-3) and rates[-1] < 1e-6
    assert bool((np.diff(rates[: peak + 1]) > 0).all()) and bool((np.diff(rates[peak:]) < 0).all())
    assert one_cycle(0, 1) > 0


def test_cosine_falls_from_its_peak_to_nothing_and_constant_stays():
    rates = [cosine(s, 1000) for s in range(1000)]
    assert rates[0] == 1.0 and rates[-1] < 1e-6 and bool((np.diff(rates) < 0).all())
    assert cosine(0, 1) == constant(0, 1) == constant(999, 1000) == 1.0


def test_a_schedule_is_a_factor_on_the_learning_rate():
    """Half the rate all along, or half of the schedule: the same steps."""
    one = run(learning_rate=0.01, schedule=constant)
    two = run(learning_rate=0.02, schedule=lambda step, steps: 0.5)
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(run(learning_rate=0.01)))


def test_a_schedule_is_asked_once_a_step_from_zero():
    asked = []
    run(schedule=lambda step, steps: asked.append((step, steps)) or 1.0, max_steps=30)
    assert asked == [(step, 30) for step in range(30)]


@pytest.mark.parametrize("share", [-0.1, math.nan, math.inf])
def test_a_schedule_that_gives_nonsense_is_named(share):
    with pytest.raises(ValueError, match=r"schedule gave .* for step 3 of 60"):
        run(schedule=lambda step, steps: share if step == 3 else 1.0)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_clipped_gradient_keeps_its_direction_and_has_at_most_the_length(size, dtype):
    gradient = size * torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype)
    for limit in (1e-4, 1.0, 1e6):
        short, bit = clip_norm(gradient, limit)
        length, new = (float(torch.linalg.vector_norm(g.double())) for g in (gradient, short))
        assert bool(bit) == (length > limit)
        assert math.isclose(new, min(limit, length), rel_tol=1e-5)
        assert torch.allclose(short.double() / new, gradient.double() / length, rtol=1e-5)
        if length <= limit:
            assert torch.equal(short, gradient)
    zero, bit = clip_norm(torch.zeros(3), 1.0)
    assert torch.equal(zero, torch.zeros(3)) and not bit


def test_clipping_reports_when_it_bites_and_else_changes_nothing():
    never, plain = run(clip=1e9), run()
    assert torch.equal(weights(never), weights(plain))
    assert never.history.clipped.sum() == plain.history.clipped.sum() == 0
    always = run(clip=1e-6, max_steps=250)
    # Evaluations of one step each, then of two, every one of which was clipped.
    assert always.history.clipped.tolist() == [1] * 20 + [2] * 115
    # Adam forgets the length of gradients that are all clipped alike, but not of some.
    assert not torch.equal(weights(run(clip=0.5)), weights(plain))
    seen = []
    run(clip=1e-6, max_steps=5, callback=lambda step, m: seen.append(m["clipped"]))
    assert seen == [1.0] * 5


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, "1"])
def test_a_clip_out_of_range_is_refused(clip):
    with pytest.raises((TypeError, ValueError), match="clip="):
        run(clip=clip)


# -- weights --------------------------------------------------------------------------------------


def test_a_row_of_weight_two_counts_as_if_it_were_there_twice():
    """Loss and every gradient, through Pyro's own trace."""
    model = make_model(features=2).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(9, generator=generator, dtype=torch.float64)
    count = torch.tensor([1, 2, 1, 3, 1, 1, 2, 1, 1])

    def loss(*rows):
        total = -poutine.trace(model).get_trace(*rows, standard=True).log_prob_sum()
        return total, torch.autograd.grad(total, list(model.parameters()))

    with pyro.get_param_store().scope():
        weighted, slopes = loss(x, y, count.double())
        repeated, others = loss(x.repeat_interleave(count, 0), y.repeat_interleave(count))
    assert math.isclose(float(weighted.detach()), float(repeated.detach()), rel_tol=1e-12)
    for one, two in zip(slopes, others, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)


def line(count=300):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=generator)
    y = 3.0 + x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(count, generator=generator)
    w = torch.rand(count, generator=generator) * 3.0
    return x, y, w


def test_a_weighted_fit_is_weighted_least_squares():
    """One component of constant scale on a linear trunk has a closed form."""
    x, y, w = line()
    model = pa.MDN(
        pa.networks.MLP(2, hidden=()), pa.MixtureHead(2, components=1, constant_scale=True)
    )
    fit = run(x, y, model, weights=w, validation=None, max_steps=1500, batch_size=300)
    design, root = torch.cat([torch.ones(300, 1), x], 1), w.sqrt()[:, None]
    fitted = design @ torch.linalg.lstsq(design * root, y[:, None] * root).solution
    density = fit.density(x)
    assert torch.allclose(density.mean, fitted[:, 0].double(), atol=2e-3)
    scale = ((w * (y - fitted[:, 0]).square()).sum() / w.sum()).sqrt()
    assert torch.allclose(density.stddev, scale.double(), rtol=1e-2)
    nll = -density.log_prob(y)
    assert math.isclose(fit.best_nll, float((w * nll).sum() / w.sum()), abs_tol=1e-3)


def test_weights_are_known_up_to_a_factor_and_alike_ones_change_nothing():
    w = torch.rand(400, generator=torch.Generator().manual_seed(0)) + 0.5
    one = run(weights=w)
    assert torch.allclose(weights(one), weights(run(weights=4.0 * w)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(weights(one), weights(run()), atol=1e-3)
    assert torch.equal(weights(run(weights=np.full(400, 1e300))), weights(run()))


def test_a_row_of_weight_zero_is_as_good_as_absent():
    w = torch.ones(400)
    w[::4] = 0.0
    options = {"validation": None, "seed": 2}
    kept = run(PROBLEM.x[w > 0], PROBLEM.y[w > 0], **options)
    x = PROBLEM.x.clone()
    x[::4] = 1e6
    assert torch.equal(weights(run(x, weights=w, **options)), weights(kept))


def test_held_out_rows_are_weighted_too():
    held = pa.datasets.inverse_sinusoid(50, seed=3)
    w = torch.arange(50.0)
    fit = run(validation=(held.x, held.y, w))
    nll = -fit.density(held.x).log_prob(held.y)
    assert math.isclose(fit.best_nll, float((w * nll).sum() / w.sum()), rel_tol=1e-4)
    assert not math.isclose(fit.best_nll, float(nll.mean()), rel_tol=1e-3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.ones(3), ValueError, "weights has shape"),
        (torch.ones(400, 1), ValueError, "weights has shape"),
        (-torch.ones(400), ValueError, "weights holds -1"),
        (torch.zeros(400), ValueError, "weights are all zero"),
        (torch.full((400,), math.nan), ValueError, "weights holds NaN"),
        (["a"] * 400, TypeError, "weights has dtype"),
    ],
)
def test_weights_that_make_no_sense_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        run(weights=given)


# -- batches that are read ------------------------------------------------------------------------


def cut(size, *tensors):
    return list(zip(*(t.split(size) for t in tensors), strict=True))


HELD = pa.datasets.inverse_sinusoid(100, seed=3)


def read(batches, model=None, **options):
    options = {"size": 400, "validation": (HELD.x, HELD.y), "max_steps": 60} | options
    return pa.fit(model or make_model(), batches, progress=False, **options)


def test_one_batch_of_all_rows_is_the_fit_on_the_rows():
    """The same steps, and the same start but for the random keys the rows are drawn by."""
    rows = run(validation=(HELD.x, HELD.y), batch_size=400, initialise=False, model=fixed())
    batch = read([(PROBLEM.x, PROBLEM.y)], initialise=False, model=fixed())
    assert torch.equal(weights(rows), weights(batch))
    assert np.array_equal(rows.history.validation, batch.history.validation)
    assert rows.marginal == batch.marginal


def fixed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_model()


@pytest.mark.parametrize("kind", [list, tuple, np.asarray])
def test_batches_train_as_rows_do(kind):
    batches = [(kind(x.tolist()), kind(y.tolist())) for x, y in cut(50, PROBLEM.x, PROBLEM.y)]
    fit = read(batches, max_steps=300)
    assert fit.best_nll < fit.marginal - 0.5
    assert torch.equal(weights(fit), weights(read(batches, max_steps=300)))


def test_a_loader_that_shuffles_is_read_the_same_for_the_same_seed():
    rows = TensorDataset(PROBLEM.x, PROBLEM.y)
    first = read(DataLoader(rows, batch_size=32, shuffle=True), seed=1)
    torch.manual_seed(7)
    assert torch.equal(weights(first), weights(read(DataLoader(rows, 32, shuffle=True), seed=1)))


def test_weights_ride_in_the_batches():
    x, y, w = line()
    model = pa.MDN(
        pa.networks.MLP(2, hidden=()), pa.MixtureHead(2, components=1, constant_scale=True)
    )
    fit = read(cut(100, x, y, w), model, size=300, validation=None, max_steps=1500)
    design, root = torch.cat([torch.ones(300, 1), x], 1), w.sqrt()[:, None]
    fitted = design @ torch.linalg.lstsq(design * root, y[:, None] * root).solution
    assert torch.allclose(fit.density(x).mean, fitted[:, 0].double(), atol=1e-2)


def test_rows_drawn_from_many_batches_are_a_fair_sample(monkeypatch):
    monkeypatch.setattr(data_room, "MOST_DRAWN", 1000)
    y = torch.arange(20_000.0)
    source = cut(7, torch.zeros(20_000, 1), y)
    found = data_room.gather(make_model(), source, None, None, size=20_000, validation=None, seed=0)
    assert len(found.rows.y) == 1000 and found.size == 20_000
    assert len(found.rows.y.unique()) == 1000
    ranks = found.rows.y.sort().values / 20_000
    gap = (ranks - (torch.arange(1000) + 0.5) / 1000).abs().max()
    assert float(gap) < 1.95 / 1000**0.5  # Kolmogorov, level 0.001


def test_reading_stops_at_the_size_of_what_never_ends():
    class Endless:
        def __iter__(self):
            generator = torch.Generator().manual_seed(0)
            while True:
                x = torch.randn(50, 1, generator=generator)
                yield x, x[:, 0] + 0.1 * torch.randn(50, generator=generator)

    fit = read(Endless(), size=500, validation=None)
    assert bool(fit.density(HELD.x).mean.isfinite().all())


def test_a_stream_finds_its_place_and_its_order_again():
    class Shuffled:
        def __iter__(self):
            return iter(torch.randperm(5).tolist())

    def batches(stream, steps):
        found = []
        for step in steps:
            torch.rand(3)  # what dropout would take
            found.append(int(stream.at(step)[0]))
        return found

    def stream():
        return Stream(Shuffled(), lambda n: (torch.tensor(n),), 5)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = stream()
        first = batches(whole, range(8))
        state, generator = whole.state(), torch.get_rng_state()
        rest = batches(whole, range(8, 23))
        torch.manual_seed(1)
        again = stream()
        again.load(state)
        torch.set_rng_state(generator)
        assert batches(again, range(8, 23)) == rest
    assert sorted(first[:5]) == sorted(rest[2:7]) == list(range(5))


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (cut(50, PROBLEM.x, PROBLEM.y), {"size": None}, ValueError, "y is missing"),
        (PROBLEM.x, {}, TypeError, "x is a Tensor, and without y"),
        (iter(cut(50, PROBLEM.x, PROBLEM.y)), {}, TypeError, "a generator only once"),
        ([], {}, ValueError, "x gives no batches"),
        ([PROBLEM.x], {}, TypeError, "x gave a Tensor as a batch"),
        ([(PROBLEM.x,)], {}, TypeError, "each must be"),
        ([(PROBLEM.x, PROBLEM.y[:3])], {}, ValueError, "x has 400 rows and y has 3"),
        ([(PROBLEM.x, PROBLEM.y * math.nan)], {}, ValueError, "y holds NaN"),
        ([(PROBLEM.x, PROBLEM.y)], {"size": 0}, ValueError, "size=0"),
        ([(PROBLEM.x, PROBLEM.y)], {"validation": 0.1}, ValueError, "validation=0.1 of batches"),
        ([(PROBLEM.x, PROBLEM.y)], {"weights": PROBLEM.y}, ValueError, "weights goes with y"),
        ([(PROBLEM.x, PROBLEM.y)], {"batch_size": 8}, ValueError, "batch_size=8"),
        (
            [(PROBLEM.x, PROBLEM.y), (PROBLEM.x, PROBLEM.y, PROBLEM.y.abs())],
            {"size": 800},
            ValueError,
            "all must be alike",
        ),
        ([(PROBLEM.x, PROBLEM.y, 0 * PROBLEM.y)], {}, ValueError, "weights add up to 0"),
    ],
)
def test_batches_that_make_no_sense_are_refused(source, options, error, message):
    with pytest.raises(error, match=message):
        read(source, **options)


def test_a_size_beside_rows_is_refused():
    with pytest.raises(ValueError, match="size=400 goes with batches"):
        run(size=400)


def test_batches_that_run_out_are_named():
    class Shrinking:
        count = 9

        def __iter__(self):
            Shrinking.count -= 1
            return iter(cut(50, PROBLEM.x, PROBLEM.y)[: Shrinking.count])

    with pytest.raises(ValueError, match="x ended after 7 batches in iteration 1 and the first"):
        read(Shrinking())


# -- the model stays Pyro's -----------------------------------------------------------------------


def test_a_trunk_with_dropout_trains_on_batches_of_any_size():
    trunk = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.1), nn.SiLU())
    model = pa.MDN(trunk, pa.MixtureHead(16, 3))
    fit = read(cut(70, PROBLEM.x, PROBLEM.y), model)
    assert bool(fit.density(HELD.x).mean.isfinite().all())
