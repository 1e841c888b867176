"""Laws of the figures: what is drawn is what was given, on the axes that were given."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pyro import distributions as dist

from pyralloy import plot
from pyralloy.mixture import Mixture

ROWS, COUNT = 7, 3


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


@pytest.fixture
def x():
    return torch.linspace(-1.0, 1.0, ROWS)


@pytest.fixture
def mixture(x):
    """Weights that move from the first component to the last, and one that is never seen."""
    logits = torch.stack([-3.0 * x, torch.full_like(x, -50.0), 3.0 * x], -1)
    loc = torch.stack([x - 2.0, 0.0 * x, x + 2.0], -1)
    return Mixture(dist.Categorical(logits=logits), dist.Normal(loc, 0.5))


@pytest.fixture
def history():
    rows = [(1, 9.0, 8.0, 0.1), (2, 2.0, 2.1, 0.2), (3, 1.5, 1.9, 0.3), (4, 1.4, 2.0, 0.4)]
    names = ("step", "train", "validation", "seconds")
    return np.array(rows, dtype=[(n, np.float64) for n in names]).view(np.recarray)


@pytest.fixture
def draw(x, mixture, history):
    """Each kind of figure, as a function of the axes alone."""
    fit = SimpleNamespace(history=history, marginal=3.0, best_step=3)
    return {
        "data": lambda ax: plot.data(x, x, ax=ax),
        "samples": lambda ax: plot.samples(x, torch.ones(4, ROWS), ax=ax),
        "components": lambda ax: plot.components(x, mixture, ax=ax),
        "density": lambda ax: plot.density(x, torch.linspace(-4.0, 4.0, 9), mixture, ax=ax),
        "training": lambda ax: plot.training(fit, limit=1.2, ax=ax),
    }


KINDS = pytest.mark.parametrize("kind", plot.__all__)


@KINDS
def test_returns_the_axes_given_with_labels_and_renders(kind, draw, ax):
    assert draw[kind](ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.has_data()
    ax.figure.canvas.draw()


@KINDS
def test_makes_axes_where_none_are_given(kind, draw):
    from matplotlib import pyplot as plt

    backend = plt.get_backend()
    plt.switch_backend("Agg")
    try:
        before = set(plt.get_fignums())
        axes = draw[kind](None)
        assert len(set(plt.get_fignums()) - before) == 1
        plt.close(axes.figure)
    finally:
        plt.switch_backend(backend)


@KINDS
def test_settings_stay_as_they_were(kind, draw, ax):
    before = dict(mpl.rcParams)
    draw[kind](ax)
    assert dict(mpl.rcParams) == before


@KINDS
def test_labels_there_already_are_kept(kind, draw, ax):
    ax.set(xlabel="redshift", ylabel="distance (Mpc)")
    draw[kind](ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("redshift", "distance (Mpc)")


def test_data_drawn_is_data_given(ax):
    x, y = torch.tensor([[3.0], [1.0], [2.0]]), np.array([0.5, 0.25, 0.125])
    plot.data(x, y, ax=ax)
    drawn = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_array_equal(drawn, np.stack([x[:, 0].numpy(), y], -1))


def test_samples_drawn_are_samples_given(ax, x):
    draws = torch.arange(2.0 * ROWS).reshape(2, ROWS)
    plot.samples(x, draws, ax=ax)
    drawn = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(drawn[:, 0], x.repeat(2))
    np.testing.assert_allclose(drawn[:, 1], draws.flatten())


def line_collections(ax):
    return [c for c in ax.collections if isinstance(c, LineCollection)]


def test_opacity_squared_is_the_weight(ax):
    x = torch.linspace(-1.0, 1.0, 500)
    loc = torch.stack([x - 2.0, x + 2.0], -1)
    logits = torch.stack([-3.0 * x, 3.0 * x], -1)
    m = Mixture(dist.Categorical(logits=logits), dist.Normal(loc, 0.5))
    plot.components(x, m, ax=ax, threshold=0.0)
    assert len(line_collections(ax)) == 2
    for k, lines in enumerate(line_collections(ax)):
        pieces = lines.get_segments()
        counts = [len(piece) - 1 for piece in pieces]
        assert sum(counts) == 499
        start = np.concatenate([piece[:-1] for piece in pieces])
        np.testing.assert_allclose(start[:, 0], x[:-1], rtol=1e-6)
        np.testing.assert_allclose(start[:, 1], m.components.loc[:-1, k], rtol=1e-6)
        weight = m.weights[:, k].numpy()
        opacity = np.repeat(np.asarray(lines.get_colors())[:, 3], counts)
        expected = np.sqrt(0.5 * (weight[:-1] + weight[1:]))
        np.testing.assert_allclose(opacity, expected, atol=0.5 / 32 + 1e-6)


def test_light_components_are_not_drawn(ax, x, mixture):
    plot.components(x, mixture, ax=ax, threshold=0.1)
    counts = [sum(len(s) - 1 for s in c.get_segments()) for c in line_collections(ax)]
    seen = mixture.weights >= 0.1
    expected = (seen[:-1] & seen[1:]).sum(0)
    assert sorted(counts) == sorted(expected[expected > 0].tolist())
    assert len(counts) == 2
    assert max(counts) < ROWS - 1


@pytest.mark.parametrize("rows", [50, 500, 5000])
def test_shade_does_not_depend_on_the_number_of_rows(rows):
    x = torch.linspace(0.0, 1.0, rows)
    loc, logits = torch.zeros(rows, 2), torch.tensor([0.2, 0.8]).log().expand(rows, 2)
    loc[:, 1] = 1.0
    figure = Figure(figsize=(3, 3), dpi=100)
    axes = plot.components(
        x, Mixture(dist.Categorical(logits=logits), dist.Normal(loc, 1.0)), ax=figure.subplots()
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[::-1]
    for height, weight, hue in ((0.0, 0.2, plot.HUES[0]), (1.0, 0.8, plot.HUES[1])):
        column, row = axes.transData.transform((0.5, height)).astype(int)
        shade = image[row, column, :3] / 255.0
        expected = 1.0 - np.sqrt(weight) * (1.0 - np.array(to_rgb(hue)))
        np.testing.assert_allclose(shade, expected, atol=0.03)


def test_components_do_not_depend_on_the_order_of_rows(x, mixture):
    shuffle = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    pictures = []
    for rows in (torch.arange(ROWS), shuffle):
        axes = plot.components(x[rows], mixture[rows.tolist()], ax=Figure().subplots())
        pictures.append([np.concatenate(c.get_segments()) for c in line_collections(axes)])
    for a, b in zip(*pictures, strict=True):
        assert len(a) > 0
        np.testing.assert_array_equal(a, b)


def test_key_of_weights(ax, x, mixture):
    plot.components(x, mixture, ax=ax)
    handles, labels = ax.get_legend_handles_labels()
    for handle, label in zip(handles, labels, strict=True):
        assert handle.get_alpha() ** 2 == pytest.approx(float(label.removeprefix("weight ")))


def test_mixture_and_matrix_draw_the_same(x, mixture):
    y = torch.linspace(-4.0, 4.0, 9)
    matrix = mixture.log_prob(y[:, None]).exp()
    meshes = []
    for given in (mixture, matrix, matrix.numpy()):
        axes = plot.density(x, y, given, ax=Figure().subplots(), vmax=0.7, colorbar=False)
        meshes.append(axes.collections[-1])
    for mesh in meshes:
        assert isinstance(mesh, QuadMesh)
        np.testing.assert_allclose(mesh.get_array(), matrix, rtol=1e-6)
        assert (mesh.norm.vmin, mesh.norm.vmax) == (0.0, 0.7)


def test_colour_bar_is_asked_for(x, mixture):
    y = torch.linspace(-4.0, 4.0, 9)
    for colorbar, axes in ((True, 2), (False, 1)):
        figure = Figure()
        plot.density(x, y, mixture, ax=figure.subplots(), colorbar=colorbar)
        assert len(figure.axes) == axes


def test_map_darkens_steadily_from_white():
    colors = plot._paper_map()(np.linspace(0.0, 1.0, 256))[:, :3]
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert luminance[0] == pytest.approx(1.0)
    assert luminance[-1] < 0.01
    assert (np.diff(luminance) < 0).all()


def line_named(ax, start):
    return next(line for line in ax.lines if str(line.get_label()).startswith(start))


def test_training_draws_the_history_and_what_gives_it_a_scale(ax, history):
    fit = SimpleNamespace(history=history, marginal=3.0, best_step=3)
    plot.training(fit, limit=1.2, ax=ax)
    for name in ("train", "validation"):
        line = line_named(ax, name)
        np.testing.assert_array_equal(line.get_xdata(), history.step)
        np.testing.assert_array_equal(line.get_ydata(), history[name])
    assert set(line_named(ax, "marginal").get_ydata()) == {3.0}
    assert set(line_named(ax, "exact").get_ydata()) == {1.2}
    best = line_named(ax, "best step: 3")
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (3.0, 1.9)
    low, high = ax.get_ylim()
    assert low < 1.2
    assert high > 3.0


def test_training_of_a_table_alone_marks_the_least_validation(ax, history):
    plot.training(history, ax=ax)
    assert line_named(ax, "best step: 3").get_ydata()[0] == 1.9
    assert len(ax.lines) == 3


def test_training_without_held_out_rows(ax, history):
    history.validation[:] = np.nan
    plot.training(SimpleNamespace(history=history, marginal=3.0, best_step=4), ax=ax)
    labels = [str(line.get_label()) for line in ax.lines]
    assert labels == ["marginal density of y", "training"]


def test_lines_of_training_differ_in_grey(ax, history):
    plot.training(SimpleNamespace(history=history, marginal=3.0, best_step=3), limit=1.2, ax=ax)
    lines = [line for line in ax.lines if line.get_marker() == "None"]
    looks = {(line.get_linestyle(), line.get_linewidth()) for line in lines}
    assert len(looks) == len(lines) == 4
    assert to_rgb(line_named(ax, "exact").get_color()) == to_rgb("0.25")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m: plot.data(x, x[1:]), "x has 7 rows and y has 6"),
        (lambda x, m: plot.data(torch.zeros(3, 2), x), r"x has shape \(3, 2\)"),
        (lambda x, m: plot.data(x, x * np.nan), "y holds NaN"),
        (lambda x, m: plot.data(x, x, alpha=2.0), "alpha=2.0.*at most 1"),
        (lambda x, m: plot.data(x, x, size=0.0), "size=0.0"),
        (lambda x, m: plot.samples(x, torch.zeros(ROWS, 2)), r"draws has shape \(7, 2\).*S, 7"),
        (lambda x, m: plot.components(x[1:], m), r"batch_shape \(7,\) and x has 6 rows"),
        (lambda x, m: plot.components(x[:1], m[:1]), "at least 2"),
        (lambda x, m: plot.components(x, m, threshold=1.0), "threshold=1.0"),
        (lambda x, m: plot.density(x.flip(0), x, m), "x is no grid"),
        (lambda x, m: plot.density(x, torch.zeros(5), m), "y is no grid"),
        (lambda x, m: plot.density(x, x[:4], torch.ones(ROWS, 4)), r"shape \(7, 4\).*\(4, 7\)"),
        (lambda x, m: plot.density(x, x, -torch.ones(ROWS, ROWS)), "negative values"),
        (lambda x, m: plot.density(x, x, m, vmax=-1.0), "vmax=-1.0"),
        (lambda x, m: plot.training([1.0, 2.0]), "give a Fit"),
        (lambda x, m: plot.training(None), "give a Fit"),
    ],
)
def test_errors_name_the_argument_and_the_rule(call, message, x, mixture):
    with pytest.raises((TypeError, ValueError), match=message):
        call(x, mixture)


def test_vector_targets_are_drawn_one_at_a_time(x):
    joint = Mixture(
        dist.Categorical(logits=torch.zeros(ROWS, COUNT)),
        dist.Normal(torch.zeros(ROWS, COUNT, 2), 1.0).to_event(1),
    )
    with pytest.raises(ValueError, match=r"marginal\(dim\)"):
        plot.components(x, joint)


def test_limit_must_be_finite(history):
    with pytest.raises(ValueError, match="limit=nan"):
        plot.training(history, limit=float("nan"))
    with pytest.raises(ValueError, match="empty history"):
        plot.training(history[:0])


def test_errors_make_no_figure(x):
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    with pytest.raises(ValueError, match="rows"):
        plot.data(x, x[1:])
    assert plt.get_fignums() == before
