"""Do the defaults beat what a careful person would try first, on real data that is not a table?

    python benchmarks/real_data.py [--splits 20] [--sets motorcycle geyser] [--data FOLDER]
                                   [--methods single ensemble ngboost lightgbm gp kde "noise on x"]
                                   [--figure FILE]

`MDNRegressor()` as it comes and its ensemble of ten, beside rivals fitted to the same rows, each as
it comes too: NGBoost, quantiles of LightGBM, the Gaussian process of scikit-learn (as in `uci.py`),
and a conditional kernel estimate, whose two bandwidths have the best leave-one-out
likelihood. One that is not installed is left out. Random splits, 80 to 20.

Of each the mean held-out CRPS in y's units, smaller is better, and its difference to `ensemble`,
paired by split, with a standard error. `--figure` draws the ensemble on the first split of
each set in place of the comparison, with the rows it has not seen. Data are looked for in
$PYRALLOY_DATA, by default ../shared/data beside the repository.
"""

import argparse
import importlib.util
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from pyro import distributions as dist
from uci import METHODS as OTHERS
from uci import NEEDS, mean_and_error, ours, scores

import pyralloy as pa

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BANDS = "ugrizy"
#: Kernels a density is made of, those of most weight; rows that bandwidths are chosen by.
KERNELS, CHOOSING = 200, 1000


def table(name, x, y):
    def read(data):
        columns = np.genfromtxt(data / "classic" / f"{name}.csv", delimiter=",", names=True)
        return columns[x][:, None].astype(float), columns[y].astype(float)

    return read


def photoz(data):
    """Read a magnitude and the five colours of galaxies, and their redshift."""
    with np.load(data / "photoz" / "dc2_train.npz") as bands:
        x = np.stack([bands[f"mag_{band}_lsst"] for band in BANDS], 1).astype(np.float64)
        y = bands["redshift"].astype(np.float64)
    return np.column_stack([x[:, 3], -np.diff(x, axis=1)]), y


SETS = {
    "motorcycle": table("mcycle", "times", "accel"),  # acceleration, g, after so many ms
    "geyser": table("geyser", "waiting", "duration"),  # minutes of an eruption after a wait
    "engel": table("engel", "income", "foodexp"),  # francs spent on food
    "photoz": photoz,
}


def kde(x, y, x_test, _seed):
    """Give conditional kernel estimates: a Normal a training row, weightier where x is nearer."""
    x, y, x_test = (torch.as_tensor(v, dtype=torch.float64) for v in (x, y, x_test))
    shift, scale = x.mean(0), x.std(0).clamp_min(1e-12)
    x, x_test = (x - shift) / scale, (x_test - shift) / scale
    some = slice(None, None, -(-len(y) // CHOOSING))
    far = torch.cdist(x[some], x[some]).square().fill_diagonal_(torch.inf)
    gap = (y[some, None] - y[some]).square()
    rule = len(y) ** (-1 / (4 + x.shape[1]))
    best = (-torch.inf, 1.0, 1.0)
    for of_x in rule * np.geomspace(0.1, 3.0, 12):
        log_weights = (-0.5 * far / of_x**2).log_softmax(1)
        for of_y in float(y.std()) * rule * np.geomspace(0.03, 2.0, 16):
            terms = log_weights - 0.5 * gap / of_y**2 - np.log(of_y)
            found = float(terms.logsumexp(1).nan_to_num(-1e9, neginf=-1e9).mean())
            best = max(best, (found, of_x, of_y))
    log_weights = -0.5 * torch.cdist(x_test, x).square() / best[1] ** 2  # (N, n)
    log_weights, rows = log_weights.topk(min(KERNELS, len(y)), 1)
    loc = y[rows]
    return pa.Mixture(
        dist.Categorical(logits=log_weights), dist.Normal(loc, torch.full_like(loc, best[2]))
    )


#: What a figure says of each: a title, x and y.
TITLES = {
    "motorcycle": ("motorcycle: a head in a crash", "time (ms)", "acceleration (g)"),
    "geyser": ("Old Faithful", "wait before (min)", "eruption (min)"),
    "engel": ("Engel", "income (francs a year)", "food expenditure (francs a year)"),
    "photoz": ("photometric redshift", "predicted median", "redshift"),
}
METHODS = {name: OTHERS[name] for name in ("single", "ensemble", "ngboost", "lightgbm", "gp")}
METHODS["kde"] = kde
#: Compared unless others are named.
USUAL = list(METHODS)
METHODS["noise on x"] = ours(members=10, x_noise=0.05)


def divide(y, split):
    """Give the rows that a split keeps to judge by, and those to fit."""
    return np.split(np.random.default_rng(split).permutation(len(y)), [round(0.2 * len(y))])


def compare(x, y, methods, splits):
    """Give the held-out CRPS of each method on each split."""
    found = {method: [] for method in methods}
    for split in range(splits):
        out, kept = divide(y, split)
        for method in methods:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of copies in the data, of kernels at their bounds
                density = METHODS[method](x[kept], y[kept], x[out], split)
            found[method].append(scores(density, y[out])["crps"])
    return {method: np.array(values) for method, values in found.items()}


def draw(file, names, data):
    """Draw the ensemble on the first split of each set, with the rows it has not seen."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
    for ax, name in zip(axes.flat, names, strict=False):
        x, y = SETS[name](data)
        out, kept = divide(y, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of copies in the data
            mdn = pa.MDNRegressor(members=10, random_state=0).fit(x[kept], y[kept])
        density = mdn.predict_density(x[out])
        if x.shape[1] == 1:
            draw_curve(ax, mdn, x, y)
            pa.plot.data(x[kept], y[kept], ax=ax, size=4, color="0.35", label="rows fitted")
            at = x[out]
        else:
            at = draw_regions(ax, density)
        pa.plot.data(at, y[out], ax=ax, size=9, alpha=0.7, color="#0072b2", label="rows held out")
        inside = density.highest_density_region(0.9).contains(y[out])
        held = f"90 % regions hold {inside.double().mean():.0%} of {len(out):,} rows held out"
        ax.set(title=f"{TITLES[name][0]}\n{held}", xlabel=TITLES[name][1], ylabel=TITLES[name][2])
    for ax in axes.flat[len(names) :]:
        ax.remove()
    marks = {
        label: mark
        for ax in figure.axes
        for mark, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)
    print(f"drawn: {file}")


def draw_curve(ax, mdn, x, y):
    """Draw a density over its one input."""
    margin = 0.05 * np.ptp(y)
    across = np.linspace(x.min(), x.max(), 300)
    up = np.linspace(y.min() - margin, y.max() + margin, 300)
    pa.plot.density(across, up, mdn.predict_density(across[:, None]), ax=ax, colorbar=False)


def draw_regions(ax, density):
    """Draw the regions of forty rows over their predicted medians, and give all the medians."""
    median = density.quantile(0.5)
    some = median.argsort()[:: -(-len(median) // 40)]
    region = density[some].highest_density_region(0.9)
    for at, row in zip(median[some].tolist(), region.intervals.tolist(), strict=True):
        for ends in row:
            ax.plot([at, at], ends, color="0.1", lw=1.2, zorder=3)
    ax.plot([], [], color="0.1", lw=1.2, label="90 % regions of forty of them")
    ax.axline((0, 0), slope=1, color="0.5", lw=0.8, ls="--")
    return median


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--methods", nargs="+", default=USUAL, choices=METHODS)
    parser.add_argument("--data", type=Path, default=os.environ.get("PYRALLOY_DATA", DATA))
    parser.add_argument("--figure", type=Path, help="draw, and compare nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.data.is_dir():
        print(f"skipped: no data at {options.data}; set PYRALLOY_DATA to their folder.")
        return 0
    if options.figure:
        draw(options.figure, options.sets, options.data)
        return 0
    methods = [m for m in options.methods if importlib.util.find_spec(NEEDS.get(m, "numpy"))]
    for name in options.sets:
        x, y = SETS[name](options.data)
        print(f"\n{name}: {len(y)} rows, {options.splits} splits, CRPS", flush=True)
        found = compare(x, y, methods, options.splits)
        for method, values in found.items():
            line = f"  {method:10}{values.mean():10.4f}"
            if method != "ensemble" and "ensemble" in found:
                gap, error = mean_and_error(found["ensemble"] - values)
                line += f"    ensemble less it {gap:+.4f} +- {error:.4f}"
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
