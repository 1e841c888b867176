"""The engine: a step as it stands, captured and compiled, is Pyro's ELBO and torch's Adam."""

import math
import warnings

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import pyralloy as pa
from pyralloy.families import FAMILIES
from pyralloy.inference import program
from pyralloy.inference.engine import PART, Engine, adam, rates_of
from pyralloy.inference.graphs import pointwise, simplify
from pyralloy.inference.objective import (
    FlatParameters,
    Objective,
    PathwiseELBO,
    empty_guide,
    pyro_runtime,
)
from pyralloy.inference.program import GraphWarning, Program

F32, F64 = torch.float32, torch.float64
ROWS = 500


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def make_batch(rows, dtype=F32, seed=1):
    generator = source(seed)
    return (
        torch.randn(rows, 1, generator=generator, dtype=F64).to(dtype),
        torch.randn(rows, generator=generator, dtype=F64).to(dtype),
    )


def make_model(dtype=F32, trunk=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = trunk or pa.networks.MLP(1, hidden=(16,))
        return pa.MDN(trunk, pa.MixtureHead(16, 4)).to(dtype)


class Bayesian(PyroModule):
    """A mixture density network whose head's weights have a prior, as a user of Pyro writes it."""

    def __init__(self, dtype):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trunk = PyroModule[nn.Linear](1, 6)
            self.outputs = PyroModule[nn.Linear](6, 6)
        self.outputs.weight = PyroSample(
            dist.Normal(torch.zeros((), dtype=dtype), 1.0).expand([6, 6]).to_event(2)
        )
        self.outputs.bias = PyroSample(
            dist.Normal(torch.zeros((), dtype=dtype), 1.0).expand([6]).to_event(1)
        )
        self.to(dtype)

    def forward(self, x, y=None, *, size=None, standard=True):
        logits, loc, log_scale = self.outputs(self.trunk(x).tanh()).unflatten(-1, (3, 2)).unbind(-2)
        density = pa.Mixture(
            dist.Categorical(logits=logits), dist.Normal(loc, log_scale.clamp(-3, 3).exp())
        )
        with pyro.plate("data", size or len(x), subsample=torch.arange(len(x))):
            return pyro.sample("y", density, obs=y)


GUIDES = {
    "none": None,
    "AutoDelta": AutoDelta,
    "AutoNormal": AutoNormal,
    "AutoLowRankMultivariateNormal": lambda m: AutoLowRankMultivariateNormal(m, rank=3),
    "AutoMultivariateNormal": AutoMultivariateNormal,
}


def make_parts(name, dtype=F32, particles=1, **options):
    """Give objective and parameters; the guide made of its parameters in the given dtype."""
    made = GUIDES[name]
    if made is None:
        model, guide = make_model(dtype), empty_guide
        trained = model
    else:
        model = Bayesian(dtype)
        guide = made(model)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            guide(*make_batch(2, dtype))
        guide.to(dtype)
        trained = nn.ModuleList([model, guide])
    elbo = PathwiseELBO(particles, **options)
    return Objective(model, guide, ROWS, elbo), FlatParameters(trained)


# -- the objective --------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(("dtype", "near"), [(F32, 1e-6), (F64, 1e-12)])
@pytest.mark.parametrize("name", GUIDES)
def test_loss_and_gradient_are_those_of_pyros_trace_elbo(name, dtype, near, particles):
    with pyro_runtime():
        objective, parameters = make_parts(name, dtype, particles)
        engine = Engine(objective, parameters)
        batch = make_batch(40, dtype)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            loss, gradient = engine.loss_and_gradient(parameters.vector, *batch)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            expected = objective.stock_loss(*batch)
            wanted = parameters.gradient(expected)
    assert math.isclose(float(loss.detach()), float(expected.detach()), rel_tol=near)
    assert float((gradient - wanted).norm()) <= near * float(wanted.norm())


def test_an_integrated_divergence_is_that_of_pyros_mean_field_elbo():
    """A guide whose sites are Normal themselves, so that torch knows the divergence."""

    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.tensor([0.3, -0.2], dtype=F64))
            self.scale = PyroParam(
                torch.tensor([0.5, 2.0], dtype=F64), constraint=dist.constraints.positive
            )

        def forward(self, x, y=None, **_):
            return pyro.sample("w", dist.Normal(self.loc, self.scale).to_event(1))

    class Model(PyroModule):
        def forward(self, x, y=None, *, size=None, standard=True):
            prior = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)
            w = pyro.sample("w", prior)
            with pyro.plate("data", size or len(x), subsample=torch.arange(len(x))):
                return pyro.sample("y", dist.Normal(w[0] + w[1] * x[:, 0], 1.0), obs=y)

    with pyro_runtime():
        model, guide = Model(), Guide()
        objective = Objective(model, guide, ROWS, PathwiseELBO(analytic_kl=True))
        parameters = FlatParameters(nn.ModuleList([model, guide]))
        batch = make_batch(20, F64)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            loss, gradient = Engine(objective, parameters).loss_and_gradient(
                parameters.vector, *batch
            )
        with torch.random.fork_rng():
            torch.manual_seed(3)
            expected = TraceMeanField_ELBO()(model, guide)(*batch, size=ROWS) / ROWS
            wanted = parameters.gradient(expected)
    assert math.isclose(float(loss.detach()), float(expected.detach()), rel_tol=1e-12)
    assert torch.allclose(gradient, wanted, rtol=1e-12)


# -- the step -------------------------------------------------------------------------------------


def test_adam_is_torchs_adam():
    generator = source()
    start = torch.randn(5, generator=generator, dtype=F64)
    mine, theirs = start.clone(), start.clone().requires_grad_()
    mean, square = torch.zeros_like(mine), torch.zeros_like(mine)
    optimiser = torch.optim.Adam([theirs], lr=0.1)
    for step in range(1, 21):
        rate = 0.1 / step
        for group in optimiser.param_groups:
            group["lr"] = rate
        gradient = torch.randn(5, generator=generator, dtype=F64)
        theirs.grad = gradient.clone()
        optimiser.step()
        adam(mine, mean, square, gradient, rates_of(step, rate, mine)[:2])
        assert torch.allclose(mine, theirs.detach(), atol=1e-12)
    before = mine.clone()
    adam(mine, mean, square, torch.zeros(5, dtype=F64), rates_of(21, 0.0, mine)[:2])
    assert torch.equal(mine, before)


@pytest.mark.parametrize("rate", [0.1, 0.0])
def test_adam_leaves_alone_what_never_had_a_gradient(rate):
    mine, mean, square = torch.tensor([1.0, 2.0]), torch.zeros(2), torch.zeros(2)
    for step in range(1, 4):
        adam(mine, mean, square, torch.tensor([0.0, 1.0]), rates_of(step, rate, mine)[:2])
    assert float(mine[0]) == 1.0
    assert math.isclose(float(mine[1]), 2.0 - 3 * rate, rel_tol=1e-6)


def advance(name, batch, compiling=False, steps=12, clip=None, dtype=F32):
    """Take steps, and give the weights, the average, and how the step was run at the end."""
    with pyro_runtime(), torch.random.fork_rng():
        objective, parameters = make_parts(name, dtype)
        torch.manual_seed(4)
        engine = Engine(objective, parameters, clip, compiling=compiling, steps=steps)
        for step in range(steps):
            engine.step(batch, 0.01 / (1 + step))
    used = engine._whole if len(batch[0]) <= PART else engine._part
    return torch.stack([parameters.vector, engine.average]), used.stages()


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("name", GUIDES)
def test_a_captured_step_is_the_step_to_the_bit(name, clip, eager_costs_nothing, monkeypatch):
    captured, stages = advance(name, make_batch(32), clip=clip)
    assert stages == ["settled"]
    monkeypatch.setattr(program, "CAPTURE", math.inf)
    eager, stages = advance(name, make_batch(32), clip=clip)
    assert stages == ["eager"]
    assert torch.equal(captured, eager)


@pytest.mark.parametrize("name", ["none", "AutoNormal"])
def test_a_large_batch_is_taken_in_parts(name, eager_costs_nothing, monkeypatch):
    rows = 2 * PART + 100
    captured, stages = advance(name, make_batch(rows), steps=4)
    assert stages == ["settled", "settled"]
    monkeypatch.setattr(program, "CAPTURE", math.inf)
    assert torch.equal(captured, advance(name, make_batch(rows), steps=4)[0])


def test_parts_of_a_batch_add_up_to_its_gradient():
    """Of a model without latent sites, to rounding."""
    batch = make_batch(2 * PART + 100, F64)
    parts, _ = advance("none", batch, steps=1, dtype=F64)
    with pyro_runtime():
        objective, parameters = make_parts("none", F64)
        engine = Engine(objective, parameters)
        _, whole = engine.loss_and_gradient(parameters.vector, *batch)
        engine._total.zero_()
        for part in zip(*(t.split(PART) for t in batch), strict=True):
            share = torch.tensor(len(part[0]) / len(batch[0]), dtype=F64)
            engine._accumulate(parameters.vector, engine._total, share, *part)
    assert torch.allclose(engine._total, whole, rtol=1e-10, atol=1e-14)
    assert bool(parts.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "AutoNormal", "AutoLowRankMultivariateNormal"])
def test_a_compiled_step_rounds_otherwise_and_no_more(name):
    compiled, stages = advance(name, make_batch(32), compiling=True, steps=5)
    assert stages == ["settled"]
    eager, _ = advance(name, make_batch(32), steps=5)
    assert torch.allclose(compiled, eager, rtol=1e-4, atol=1e-5)


def test_going_on_from_a_state_is_not_to_have_stopped():
    batch = make_batch(32)
    with pyro_runtime():
        one, two = (Engine(*make_parts("none")) for _ in range(2))
        for step in range(6):
            one.step(batch, 0.01)
            if step == 2:
                two.load({k: v.clone() for k, v in one.state().items()})
        for _ in range(3):
            two.step(batch, 0.01)
    assert all(
        torch.equal(a, b) for a, b in zip(one.state().values(), two.state().values(), strict=True)
    )


# -- programs -------------------------------------------------------------------------------------


class Branching(nn.Module):
    """A trunk whose control flow depends on values, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 16)

    def forward(self, x):
        features = self.linear(x)
        return features.relu() if float(features.detach().mean()) > 0 else features.tanh()


def run_fit(trunk, **options):
    problem = pa.datasets.inverse_sinusoid(200, seed=0)
    model = make_model(trunk=trunk)
    return pa.fit(model, problem.x, problem.y, max_steps=40, progress=False, **options)


def test_what_cannot_be_captured_trains_as_it_stands_with_one_warning(eager_costs_nothing):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = Branching()
    with pytest.warns(GraphWarning, match="could not be captured") as said:
        fit = run_fit(trunk)
    assert len(said) == 1
    assert fit.history.step[-1] == 40 and math.isfinite(fit.best_nll)


def test_running_statistics_and_dropout_are_captured_too(eager_costs_nothing, monkeypatch):
    def make():
        torch.manual_seed(0)
        layers = nn.Linear(1, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.3)
        return nn.Sequential(*layers)

    with torch.random.fork_rng():
        captured, trunk = run_fit(make()), make()
    monkeypatch.setattr(program, "CAPTURE", math.inf)
    eager = run_fit(trunk)
    mine, theirs = captured.model.state_dict(), eager.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
@pytest.mark.parametrize("family", ["normal", "student_t"])
def test_steps_of_vectors_are_captured(family, covariance, eager_costs_nothing):
    y = torch.randn(100, 3, generator=source())
    head = pa.MixtureHead(1, 3, 3, family=family, covariance=covariance)
    model = pa.MDN(pa.networks.MLP(1, hidden=()), head)
    fit = pa.fit(model, y[:, :1], y, max_steps=20, progress=False)  # a warning would be an error
    assert math.isfinite(fit.best_nll)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_steps_of_every_family_are_captured(family, eager_costs_nothing):
    y = torch.rand(100, generator=source()) * 0.8 + 0.1
    y = (10 * y).round() if FAMILIES[family].support.integer else y
    model = pa.MDN(pa.networks.MLP(1, hidden=()), pa.MixtureHead(1, 3, family=family))
    fit = pa.fit(model, y.flip(0), y, max_steps=20, progress=False)
    assert math.isfinite(fit.best_nll)


@pytest.mark.parametrize("options", [{}, {"warm_up": 0.5}, {"temperature": 0.5}])
def test_a_guide_whose_divergence_comes_into_force_is_captured(
    options, eager_costs_nothing, monkeypatch
):
    """The weight of the divergence changes from step to step: a graph must read it, not hold it."""

    def run():
        problem = pa.datasets.inverse_sinusoid(200, seed=0)
        model = pa.MDN(
            pa.networks.MLP(1, hidden=(8,)), pa.MixtureHead(8, 3), prior=dist.Normal(0.0, 1.0)
        )
        options_ = {"max_steps": 40, "progress": False, "guide": AutoNormal, **options}
        return pa.fit(model, problem.x, problem.y, **options_).weights(3)

    captured = run()
    monkeypatch.setattr(program, "CAPTURE", math.inf)
    eager = run()
    assert all(torch.equal(captured[name], eager[name]) for name in eager)


def test_products_with_a_side_of_one_are_written_for_a_compiler():
    model = make_model(F64)
    weights = {n: p.detach() for n, p in model.named_parameters()}

    def loss(x, y, *values):
        return -model.network(x, dict(zip(weights, values, strict=True))).log_prob(y).sum()

    both = torch.func.grad_and_value(loss, argnums=tuple(range(2, 2 + len(weights))))
    inputs = (*make_batch(50, F64), *weights.values())
    with pyro_runtime():
        graph = simplify(make_fx(both)(*inputs), inputs)
    code, made = graph.code, pointwise(graph)
    assert graph.code == code
    products = [sum("mm" in str(n.target) for n in g.graph.nodes) for g in (graph, made)]
    assert products == [5, 3]  # of the first layer: its output, and the gradient of its weights
    ours, theirs = (pytree.tree_leaves(g(*inputs)) for g in (made, graph))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def simplified_to_the_bit(function):
    """Simplify the graph of a function of (3, 4) and (3, 4), which may change them, and compare."""
    generator = source()
    inputs = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    graph = simplify(make_fx(function)(*(t.clone() for t in inputs)), inputs)
    (x, y), (other_x, other_y) = ([t.clone() for t in inputs] for _ in range(2))
    for _ in range(2):
        found = graph(x, y)
        assert torch.equal(found, function(other_x, other_y)) and bool(found.isfinite().all())
        assert torch.equal(x, other_x) and torch.equal(y, other_y)
    return graph


def test_memory_is_written_again_only_where_nothing_reads_it():
    """Of a graph with views of results, operands that come back and an input that is changed."""

    def function(x, y):
        z = x * y  # (3, 4), read at last, through a view
        turned, whole = z.T, z.exp()
        left, right = (whole + 1.0).split(2, 1)
        wide = left.sum(1, keepdim=True) - torch.cat([right.neg().cos(), right], 1)
        y.add_(wide.mean())
        return (y - wide.abs()) * turned.T.sin() + x * wide.square()

    graph = simplified_to_the_bit(function)
    packets = [str(getattr(n.target, "overloadpacket", "")) for n in graph.graph.nodes]
    assert sum(packet.endswith("_") for packet in packets) >= 6  # one of them the function's own


def mutated_zeros(x, y):
    one, other = torch.zeros(3, 4), torch.zeros(3, 4)
    return one.add_(x) + 2 * other


def mutated_product(x, y):
    one, other = x @ y.T, x @ y.T
    return one.relu_() + other


def mutated_copy(x, y):
    return (x * 1.0).relu_() * x


def mutated_source(x, y):
    z = x * y
    before = z + 0
    z.mul_(2.0)
    return before * z


def mutated_view_of_a_copy(x, y):
    before, after = x.clone(), x.clone()
    after[:, :2].zero_()
    return before - y * after


def factor_of_the_second(x, y):
    return torch.add(x, y.exp(), alpha=2.0)


def complex_product(x, y):
    one, other = (torch.view_as_complex(v.view(3, 2, 2)) for v in (x, y))
    return torch.view_as_real(one * other.exp())


def copy_laid_out_otherwise(x, y):
    return (x[0, :3].expand(4, 3) * 1.0 + (y * 2).T).view(12)


@pytest.mark.parametrize(
    "function",
    [
        mutated_zeros,
        mutated_product,
        mutated_copy,
        mutated_source,
        mutated_view_of_a_copy,
        factor_of_the_second,
        complex_product,
        copy_laid_out_otherwise,
    ],
)
def test_a_simplified_graph_is_the_function_to_the_bit(function):
    """Of what is written over by the function itself, and of operands that do not commute."""
    simplified_to_the_bit(function)


def test_a_graph_that_gives_something_else_is_refused(eager_costs_nothing):
    calls = Program(
        lambda x: x * 2,
        compiling=False,
        aside=warnings.catch_warnings,
        agrees=lambda run, tensors: False,
    )
    calls.left, x = 100, torch.ones(3)
    with pytest.warns(GraphWarning, match="not that of Pyro"):
        assert all(torch.equal(calls(x), 2 * x) for _ in range(5))
    assert calls.stages() == ["settled"]


def test_each_set_of_shapes_has_a_graph_of_its_own(eager_costs_nothing):
    calls = Program(lambda x: x.cumsum(0), compiling=False, aside=warnings.catch_warnings)
    calls.left = 100
    for size in (3, 5, 3, 5, 3, 5):
        x = torch.arange(float(size))
        assert torch.equal(calls(x), x.cumsum(0))
    assert calls.stages() == ["settled", "settled"]


def test_a_few_calls_are_not_worth_a_graph():
    calls = Program(lambda x: x + 1, compiling=False, aside=warnings.catch_warnings)
    for left in range(5, 0, -1):
        calls.left = left
        calls(torch.ones(1))
    assert calls.stages() == ["eager"]


def test_stock_elbo_of_a_batch_leaves_the_store_empty():
    store = pyro.get_param_store()
    before = set(store.keys())
    with pyro_runtime():
        objective, _ = make_parts("AutoNormal")
        objective.stock_loss(*make_batch(10))
    assert set(store.keys()) == before
