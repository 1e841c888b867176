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

from pyralloy import calibration, plot
from pyralloy.answers import EntropyParts
from pyralloy.bands import ecdf_band
from pyralloy.mixture import Mixture
from pyralloy.plot.axes import HUES
from pyralloy.plot.conditional import _paper_map

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
    many, seen = observed(60)
    return {
        "data": lambda ax: plot.data(x, x, ax=ax),
        "samples": lambda ax: plot.samples(x, torch.ones(4, ROWS), ax=ax),
        "components": lambda ax: plot.components(x, mixture, ax=ax),
        "density": lambda ax: plot.density(x, torch.linspace(-4.0, 4.0, 9), mixture, ax=ax),
        "prior_predictive": lambda ax: plot.prior_predictive(x, mixture.reshape(1, ROWS), ax=ax),
        "ridges": lambda ax: plot.ridges(x, torch.linspace(-4.0, 4.0, 9), mixture, ax=ax),
        "regions": lambda ax: plot.regions(x, mixture.highest_density_region(0.8), ax=ax),
        "calibration": lambda ax: plot.calibration(many, seen, ax=ax),
        "calibration_along": lambda ax: plot.calibration_along(seen, many, seen, ax=ax, bins=3),
        "coverage": lambda ax: plot.coverage(many, seen, ax=ax),
        "reliability": lambda ax: plot.reliability(many, seen, ax=ax),
        "uncertainty": lambda ax: plot.uncertainty(EntropyParts(x, x, x + 2), ax=ax),
        "training": lambda ax: plot.training(fit, limit=1.2, ax=ax),
    }


def observed(rows, spread=1.0):
    """Give densities N(0, 1), and draws of another spread."""
    loc = torch.zeros(rows, 1, dtype=torch.float64)
    m = Mixture(dist.Categorical(torch.ones_like(loc)), dist.Normal(loc, 1.0))
    return m, spread * m.sample(generator=torch.Generator().manual_seed(0))


def joint():
    cov = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 4.0]])
    loc = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 1.0]])
    return Mixture(dist.Categorical(torch.ones(2)), dist.MultivariateNormal(loc, cov))


# A corner is of many axes: it has tests of its own.
KINDS = pytest.mark.parametrize("kind", [k for k in plot.__all__ if k != "corner"])


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
    for height, weight, hue in ((0.0, 0.2, HUES[0]), (1.0, 0.8, HUES[1])):
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
    colors = _paper_map()(np.linspace(0.0, 1.0, 256))[:, :3]
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


def test_the_pit_drawn_is_its_distribution_less_the_uniform_one_beside_its_band(ax):
    m, y = observed(400, spread=1.5)
    plot.calibration(m, y, ax=ax)
    pit, band = m.cdf(y), ecdf_band(400)
    line = line_named(ax, "PIT")
    expected = [float((pit <= z).double().mean()) - z for z in band.points]
    np.testing.assert_allclose(line.get_ydata()[1:-1], expected, atol=1e-12)
    drawn = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert drawn.max() == pytest.approx((band.upper - band.points).max())
    assert drawn.min() == pytest.approx((band.lower - band.points).min())
    looks = {(line.get_linestyle(), line.get_color()) for line in ax.lines}
    assert len({style for style, _ in looks}) > 1


def test_a_report_draws_as_its_densities_do(ax):
    m, y = observed(100)
    report = calibration.report(m, y)
    for function in (plot.calibration, plot.coverage, plot.reliability):
        lines = []
        for given in ((report,), (m, y), (report.transforms,)):
            axes = function(*given, ax=Figure().subplots())
            lines.append([line.get_ydata() for line in axes.lines])
        for other in lines[1:]:
            for a, b in zip(lines[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_coverage_drawn_is_that_of_regions(ax):
    m, y = observed(200, spread=0.7)
    plot.coverage(m, y, ax=ax)
    line = line_named(ax, "highest-density")
    inside = m.highest_density_region(0.5).contains(y).double().mean()
    assert np.interp(0.5, line.get_xdata(), line.get_ydata()) == pytest.approx(float(inside))


def test_what_is_wrong_along_x_leaves_its_band_there_alone(ax):
    m, y = observed(1000)
    x = torch.linspace(0.0, 1.0, 1000)
    wrong = torch.where(x > 0.5, y + 2.0, y)
    plot.calibration_along(x, m, wrong, ax=ax, bins=10)
    middle = next(
        line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2
    )
    share = middle.get_ydata()[:-1]
    assert (np.abs(share[:5] - 0.5) < 0.16).all()
    assert (share[5:] < 0.2).all()


def test_regions_drawn_are_regions_given(ax, x, mixture):
    region = mixture.highest_density_region(0.8)
    plot.regions(x.flip(0), region, ax=ax)
    bars = ax.collections[0].get_paths()
    assert len(bars) == int((~region.intervals[..., 0].isnan()).sum())
    heights = sorted({tuple(np.unique(bar.vertices[:, 1]).round(5)) for bar in bars})
    given = region.intervals.reshape(-1, 2)
    given = given[~given[:, 0].isnan()].numpy().astype(float).round(5)
    np.testing.assert_allclose(heights, sorted({tuple(row) for row in given}), atol=1e-5)


def test_infinite_regions_reach_as_far_as_the_finite_ones(ax):
    from pyralloy.regions import Region

    ends = torch.tensor([[[-1.0, 2.0]], [[-np.inf, np.inf]]])
    plot.regions([0.0, 1.0], Region(ends, 0.9, torch.zeros(2)), ax=ax)
    whole = ax.collections[0].get_paths()[1].vertices[:, 1]
    assert (whole.min(), whole.max()) == (-1.0, 2.0)


def test_ridges_have_one_scale(ax, x, mixture):
    y = torch.linspace(-4.0, 4.0, 81)
    plot.ridges(x, y, mixture, ax=ax)
    p = mixture.log_prob(y[:, None]).exp()
    gap = float(x.diff().min())
    for place, line, values in zip(x, ax.lines, p.T, strict=True):
        rise = (line.get_xdata() - float(place)) / (0.9 * gap)
        np.testing.assert_allclose(rise, values / p.max(), atol=1e-5)


def test_a_corner_shows_margins_and_what_they_hold():
    m = joint()
    axes = plot.corner(
        m, ax=Figure().subplots(3, 3), y=[0.0, 1.0, 2.0], names=["a (m)", "b (s)", "c"]
    )
    assert axes.shape == (3, 3)
    assert not axes[0, 1].axison
    assert axes[2, 0].get_xlabel() == "a (m)"
    line = axes[2, 2].lines[0]
    at = torch.from_numpy(line.get_xdata())
    np.testing.assert_allclose(line.get_ydata(), m.marginal(2).log_prob(at).exp(), rtol=1e-4)
    # The share of draws inside the outer contour is what it says.
    draws = m.marginal([0, 1]).sample((4000,), generator=torch.Generator().manual_seed(0))
    outer = axes[1, 0].collections[1].get_paths()[0]
    inside = np.mean([outer.contains_point(point) for point in draws.numpy()])
    assert abs(inside - 0.9) < 0.02
    assert plot.corner(m).shape == (3, 3)
    from matplotlib import pyplot as plt

    plt.close("all")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, y: plot.calibration(m), TypeError, "y is missing"),
        (lambda m, y: plot.calibration_along(y[:9], m, y), ValueError, "x has 9 rows"),
        (
            lambda m, y: plot.calibration_along(y, m, y, bins=50),
            ValueError,
            "at least 5 rows a bin",
        ),
        (
            lambda m, y: plot.regions(y[:9], m.highest_density_region(0.5)),
            ValueError,
            "x has 9 rows",
        ),
        (lambda m, y: plot.corner(m), ValueError, "one row of a vector"),
        (lambda m, y: plot.corner(joint(), ax=np.empty((2, 2))), ValueError, r"give \(3, 3\) axes"),
    ],
)
def test_errors_of_figures_of_trust(call, error, message):
    with pytest.raises(error, match=message):
        call(*observed(60))
