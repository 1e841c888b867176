"""Do the defaults beat what a careful person would try first, on real data?

    python benchmarks/real_data.py [--repeats 10] [--data FOLDER]

`MDNRegressor()` as it comes, beside two baselines fitted to the same training rows:

- marginal: a Normal kernel estimate of y that ignores x, its bandwidth that of the best
  leave-one-out likelihood, on 500 training rows evenly spaced in the order of y where there are
  more. It is a mixture, so its CRPS is exact;
- linear: least squares with Normal errors of constant spread, whose CRPS has a closed form.

Held-out NLL (nats) and CRPS, both in y's units; smaller is better. Small data sets are split at
random, 80 to 20, `--repeats` times, and averaged: one split of 133 rows is noise. Data are looked
for in $PYRALLOY_DATA, by default ../shared/data beside the repository.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pyro import distributions as dist

import pyralloy as pa

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BANDS, KERNELS = "ugrizy", 500


@dataclass
class Split:
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def random_splits(x, y, held_out, repeats):
    """Split rows at random, some number of times."""
    for seed in range(repeats):
        order = np.random.default_rng(seed).permutation(len(y))
        out, kept = np.split(order, [round(held_out * len(y))])
        yield Split(x[kept], y[kept], x[out], y[out])


def mcycle(data, repeats):
    table = np.genfromtxt(data / "classic" / "mcycle.csv", delimiter=",", names=True)
    return random_splits(table["times"][:, None], table["accel"], 0.2, repeats)


def geyser(data, repeats):
    table = np.genfromtxt(data / "classic" / "geyser.csv", delimiter=",", names=True)
    return random_splits(table["waiting"][:, None], table["duration"], 0.2, repeats)


def concrete(data, _repeats):
    folder = data / "uci" / "concrete"
    table = np.loadtxt(folder / "data.txt")
    names = ("features", "target", "train_0", "test_0")
    features, target, train, test = (
        np.loadtxt(folder / f"index_{name}.txt").astype(int) for name in names
    )
    x, y = table[:, features], table[:, int(target)]
    return [Split(x[train], y[train], x[test], y[test])]


def photoz(data, _repeats):
    with np.load(data / "photoz" / "dc2_train.npz") as table:
        x = np.stack([table[f"mag_{band}_lsst"] for band in BANDS], 1).astype(np.float64)
        y = table["redshift"].astype(np.float64)
    x = np.column_stack([x[:, 3], -np.diff(x, axis=1)])  # a magnitude and the five colours
    return random_splits(x, y, 0.3, 1)


PROBLEMS = {
    "mcycle: acceleration | time": mcycle,
    "geyser: duration | waiting": geyser,
    "concrete: strength | mix, split 0": concrete,
    "photoz: redshift | colours": photoz,
}


def score(density, y):
    """Give held-out NLL and CRPS, the means over rows."""
    y = torch.as_tensor(y, dtype=torch.float64)
    return -float(density.log_prob(y).mean()), float(density.crps(y).mean())


def marginal(y):
    """Give the kernel estimate whose bandwidth has the best leave-one-out likelihood."""
    y = torch.as_tensor(y, dtype=torch.float64).sort().values
    rule = float(1.06 * y.std() * len(y) ** -0.2)
    y = y[((torch.arange(KERNELS) + 0.5) * len(y) / KERNELS).long()] if len(y) > KERNELS else y
    squares = (y[:, None] - y).square().fill_diagonal_(torch.inf)
    widths = [rule * 10**power for power in np.linspace(-1.5, 0.5, 41)]
    likelihoods = [float(_leave_one_out(squares, width)) for width in widths]
    kernels = dist.Normal(y, torch.full_like(y, widths[int(np.argmax(likelihoods))]))
    return pa.Mixture(dist.Categorical(logits=torch.zeros_like(y)), kernels)


def _leave_one_out(squares, width):
    return (-0.5 * squares / width**2).logsumexp(-1).mean() - np.log(width)


def linear(split):
    """Give the densities of a linear fit: one Normal a row, of constant spread."""
    design = np.column_stack([np.ones(len(split.x)), split.x])
    weights = np.linalg.lstsq(design, split.y, rcond=None)[0]
    residual = split.y - design @ weights
    spread = np.sqrt(np.sum(residual**2) / (len(split.y) - design.shape[1]))
    loc = np.column_stack([np.ones(len(split.x_test)), split.x_test]) @ weights
    loc = torch.from_numpy(loc)[:, None]
    return pa.Mixture(
        dist.Categorical(logits=torch.zeros_like(loc)),
        dist.Normal(loc, torch.full_like(loc, float(spread))),
    )


def compare(splits):
    """Give the mean scores of ours and of each baseline, (3, 2), and the seconds of one fit."""
    scores, seconds = [], []
    for seed, split in enumerate(splits):
        start = time.perf_counter()
        mdn = pa.MDNRegressor(random_state=seed).fit(split.x, split.y)
        seconds.append(time.perf_counter() - start)
        densities = mdn.predict_density(split.x_test), marginal(split.y), linear(split)
        scores.append([score(density, split.y_test) for density in densities])
    return np.mean(scores, 0), float(np.mean(seconds)), len(scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10, help="splits of a small data set")
    parser.add_argument("--data", type=Path, default=os.environ.get("PYRALLOY_DATA", DATA))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.data.is_dir():
        print(f"skipped: no data at {options.data}; set PYRALLOY_DATA to their folder.")
        return 0
    print(f"{'':36}{'held-out NLL':^27}  {'CRPS':^27}")
    names = "".join(f"{name:>9}" for name in ("ours", "marginal", "linear"))
    print(f"{'data':34}{'n':>2}{names}  {names}{'fit s':>7}  beats both")
    wins = True
    for name, problem in PROBLEMS.items():
        try:
            means, seconds, repeats = compare(problem(options.data, options.repeats))
        except FileNotFoundError as error:
            print(f"{name:34}skipped: no {error.filename}")
            continue
        won = [bool((means[0, j] < means[1:, j]).all()) for j in range(2)]
        wins &= all(won)
        verdict = {2: "yes", 1: "NLL only" if won[0] else "CRPS only", 0: "NO"}[sum(won)]
        cells = "  ".join("".join(f"{v:9.4f}" for v in column) for column in means.T)
        print(f"{name:34}{repeats:2}{cells}{seconds:7.2f}  {verdict}", flush=True)
    return 0 if wins else 1


if __name__ == "__main__":
    sys.exit(main())
