"""How good are the defaults on real tables? The UCI benchmark, on its 20 standard splits.

    python benchmarks/uci.py [--sets concrete energy yacht] [--methods single ensemble]
                             [--splits 20] [--jobs 2] [--results FILE] [--data FOLDER] [--parts]

Of each method and data set, means over splits (with a standard error) of the test negative log
density (NLL, nats) and CRPS, both in y's units, of the error of the mean (RMSE), of the coverage of
90 % intervals and highest-density regions, and of CPU seconds a fit. Then differences to published
scores: paired, where they are published by split. Every method has one configuration for all sets.

Ours: `single`, `ensemble` (of ten) and the Bayesian `laplace`, `laplace of 5` (members) and `vi`,
each MDNRegressor as it comes. Rivals, where they are installed: `ngboost`, `lightgbm` (19
quantiles) and `gp`, the Gaussian process of scikit-learn with a length-scale a column (its kernel
chosen by at most 1,500 rows, and conditioned on at most 5,000), all as they come.

`--parts` takes one part of the recipe away, or changes it, and prints the difference to the recipe
as it comes, paired by split. It reads the training rows of a split alone: nine tenths of them are
fitted, the last tenth judges. (Before that table was made so, test rows of the first splits were in
sight when some of the recipe was chosen.)

The splits are those of Hernandez-Lobato and Adams (2015). wine-quality-red has 6 distinct targets
and naval-propulsion-plant 51: no density is bounded there, so compare CRPS. What was scored is kept
in the results file and not done again.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from pyro import distributions as dist

import pyralloy as pa

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).resolve().parents[1] / "build" / "uci.jsonl"
SETS = ("concrete", "energy", "yacht", "wine-quality-red", "naval-propulsion-plant")
QUANTILES = np.arange(1, 20) / 20

#: Published means over the splits, of the NLL.
PUBLISHED = {
    "concrete": {"WGBoost": 2.83, "NGBoost": 3.04, "deep ensembles": 3.06},
    "energy": {"WGBoost": 0.53, "NGBoost": 0.60},
    "yacht": {"WGBoost": 0.16, "NGBoost": 0.20},
}


def rows_of(data, name, split):
    """Read x and y of the training and of the test rows."""
    folder = data / "uci" / name
    table = np.loadtxt(folder / "data.txt")
    columns = np.loadtxt(folder / "index_features.txt").astype(int)
    target = int(np.loadtxt(folder / "index_target.txt"))
    parts = (
        np.loadtxt(folder / f"index_{part}_{split}.txt").astype(int) for part in ("train", "test")
    )
    return [values for rows in parts for values in (table[rows][:, columns], table[rows, target])]


def inner_rows(x, y, split):
    """Divide training rows once more, a tenth to judge by: what choices may look at."""
    rows = np.random.default_rng(split).permutation(len(y))
    judge, train = rows[: len(y) // 10], rows[len(y) // 10 :]
    return x[train], y[train], x[judge], y[judge]


# -- methods --------------------------------------------------------------------------------------


def ours(**options):
    def density(x, y, x_test, seed):
        return pa.MDNRegressor(random_state=seed, **options).fit(x, y).predict_density(x_test)

    return density


def normal(loc, scale):
    """Give Normal densities, one a row."""
    loc, scale = (torch.as_tensor(v, dtype=torch.float64)[:, None] for v in (loc, scale))
    return pa.Mixture(dist.Categorical(logits=torch.zeros_like(loc)), dist.Normal(loc, scale))


def ngboost(x, y, x_test, seed):
    from ngboost import NGBRegressor

    found = NGBRegressor(verbose=False, random_state=seed).fit(x, y).pred_dist(x_test)
    return normal(found.loc, found.scale)


def gaussian_process(x, y, x_test, seed):
    """Choose the kernel by at most 1,500 rows, and condition on at most 5,000."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
    from sklearn.preprocessing import StandardScaler

    scaler, rows = StandardScaler().fit(x), np.random.default_rng(seed).permutation(len(y))
    kernel = ConstantKernel() * RBF(np.ones(x.shape[1])) + WhiteKernel(0.1)
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    few, many = rows[:1500], rows[:5000]
    process.fit(scaler.transform(x[few]), y[few])
    if len(many) > len(few):
        process.set_params(kernel=process.kernel_, optimizer=None)
        process.fit(scaler.transform(x[many]), y[many])
    return normal(*process.predict(scaler.transform(x_test), return_std=True))


def lightgbm(x, y, x_test, seed):
    """Give quantiles (19, N): no density."""
    from lightgbm import LGBMRegressor

    options = {"objective": "quantile", "verbosity": -1, "n_jobs": 1, "random_state": seed}
    models = [LGBMRegressor(alpha=level, **options) for level in QUANTILES]
    return np.sort(np.stack([model.fit(x, y).predict(x_test) for model in models]), 0)


METHODS = {
    "single": ours(),
    "ensemble": ours(members=10),
    "laplace": ours(inference="laplace"),
    "laplace of 5": ours(members=5, inference="laplace"),
    "vi": ours(inference="vi"),
    "ngboost": ngboost,
    "lightgbm": lightgbm,
    "gp": gaussian_process,
}
#: The recipe with one part changed: options of the regressor, or a constant of a module.
PARTS = {
    "single as it comes": {},
    "no encoding": {"bins": 0},
    "8 bins": {"bins": 8},
    "no stretch": {"stretch": False},
    "stretch: no prior": {"inference.stretch.BEFORE": 10.0},
    "stretch: prior 1/4": {"inference.stretch.BEFORE": 0.25},
    "stretch: no error": {"inference.stretch.ERRORS": 0.0},
    "weights by their own widths": {"inference.stretch.TRIED": (0.0,)},
    "floor of scales 1/100": {"families.contract.SCALE_FLOOR": 1e-2},
    "floor of scales 1/2000": {"families.contract.SCALE_FLOOR": 5e-4},
    "nothing held out": {"validation": None},
    "5 components": {"components": 5},
    "20 components": {"components": 20},
    "2 x 64": {"hidden": (64, 64)},
    "3 x 128": {"hidden": (128, 128, 128)},
    "ReLU": {"activation": "relu"},
    "Student's t": {"family": "student_t"},
    "half the steps": {"max_steps": 1500},
    "noise on x of 0.02": {"x_noise": 0.02},
    "noise on x of 0.05": {"x_noise": 0.05},
    "twice the rate": {"learning_rate": 0.01},
    "5 members as they come": {"members": 5},
    "5 members, not narrowed": {"members": 5, "inference.ensemble.narrow": lambda *_: 0.0},
    "5 members, a whole error": {"members": 5, "inference.stretch.ERRORS": 5**0.5},
}
#: What each is compared with.
BASES = {
    name: "5 members as they come" if "members" in options else "single as it comes"
    for name, options in PARTS.items()
}


def changed(options):
    """Give a method: the recipe with these options, and constants by their modules' names."""
    constants = {name: value for name, value in options.items() if "." in name}
    rest = {name: value for name, value in options.items() if name not in constants}

    def density(x, y, x_test, seed):
        with contextlib.ExitStack() as stack:
            for name, value in constants.items():
                stack.enter_context(mock.patch(f"pyralloy.{name}", value))
            return ours(**rest)(x, y, x_test, seed)

    return density


METHODS |= {name: changed(options) for name, options in PARTS.items()}
NEEDS = {"ngboost": "ngboost", "lightgbm": "lightgbm"}


# -- scores ---------------------------------------------------------------------------------------


def scores(found, y):
    """Score densities, or quantiles (19, N), at y (N,)."""
    if isinstance(found, np.ndarray):
        gap = y - found
        pinball = np.maximum(QUANTILES[:, None] * gap, (QUANTILES[:, None] - 1) * gap)
        inside = (found[0] <= y) & (y <= found[-1])
        return {
            # The integral over all levels by trapezia, a little less than it is: in their favour.
            "crps": 2 * float(pinball.mean(1).sum()) / (len(QUANTILES) + 1),
            "rmse": np.sqrt(np.mean((y - found[9]) ** 2)),
            "interval": inside.mean(),
        }
    y = torch.as_tensor(y, dtype=torch.float64)
    low, high = found.interval(0.9)
    region = found.highest_density_region(0.9)
    return {
        "nll": -float(found.log_prob(y).mean()),
        "crps": float(found.crps(y).mean()),
        "rmse": float((found.mean - y).square().mean().sqrt()),
        "interval": float(((low <= y) & (y <= high)).double().mean()),
        "region": float(region.contains(y).double().mean()),
    }


def run(data, name, split, method):
    """Fit one method to one split, and score it."""
    torch.set_num_threads(1)
    x, y, x_test, y_test = rows_of(data, name, split)
    if method in PARTS:
        x, y, x_test, y_test = inner_rows(x, y, split)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few distinct targets, of kernels at their bounds
        found = METHODS[method](x, y, x_test, split)
        seconds = time.process_time() - start
        values = scores(found, y_test)
    return {"set": name, "split": split, "method": method, **values, "seconds": seconds}


# -- the table ------------------------------------------------------------------------------------


def published(data):
    """Read the scores of torchnaut that are published by split: {set: {method: {split: row}}}."""
    found = defaultdict(lambda: defaultdict(dict))
    for file in sorted((data / "published").glob("torchnaut_*.csv")):
        for row in np.genfromtxt(file, delimiter=",", names=True, dtype=None, encoding="utf-8"):
            crps = float(row["crps"]) if "crps" in row.dtype.names else np.nan
            scored = {"nll": float(row["nll"]), "crps": crps}
            found[str(row["dataset"])][file.stem][int(row["split"])] = scored
    return found


def mean_and_error(values):
    values = np.asarray(values, dtype=float)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return values.mean(), error


def show(records, data):
    """Print the tables of what was scored."""
    table = defaultdict(lambda: defaultdict(dict))
    for record in records:
        table[record["set"]][record["method"]][record["split"]] = record
    columns = ("nll", "crps", "rmse", "interval", "region", "seconds")
    for name, methods in table.items():
        print(f"\n{name}")
        print(f"  {'method':28}{'splits':>7}" + "".join(f"{c:>18}" for c in columns))
        for method, rows in methods.items():
            cells = []
            for column in columns:
                values = [row[column] for row in rows.values() if column in row]
                mean, error = mean_and_error(values) if values else (np.nan, np.nan)
                cells.append(f"{mean:9.3f} +- {error:5.3f}" if values else "-")
            print(f"  {method:28}{len(rows):7}" + "".join(f"{cell:>18}" for cell in cells))
        compare(name, methods, published(data)[name])


def compare(name, methods, theirs):
    """Print what ours are less others, in NLL and CRPS: below zero, ours are better."""
    for method in ("ensemble", "single", "laplace", "laplace of 5", "vi", *PARTS):
        mine = methods.get(method, {})
        base = BASES.get(method, "single")
        others = {base: methods.get(base, {}), **({} if method in PARTS else theirs)}
        for other, rows in others.items():
            gaps = [_gap(mine, rows, score) for score in ("nll", "crps")] if mine else []
            if other != method and any(gaps):
                cells = "".join(f"{gap or '':>20}" for gap in gaps)
                print(f"    {method:27} less {other:22}{cells}  by split")
        for other, value in PUBLISHED.get(name, {}).items() if mine and method not in PARTS else ():
            nll = np.mean([row["nll"] for row in mine.values()])
            print(f"    {method:27} less {other:22}{nll - value:+20.3f}{'':20}  of means")


def _gap(mine, rows, score):
    both = [s for s in mine if s in rows and np.isfinite(rows[s].get(score, np.nan))]
    if len(both) < 2:
        return None
    gap, error = mean_and_error([mine[s][score] - rows[s][score] for s in both])
    return f"{gap:+.3f} +- {error:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=SETS[:4], choices=SETS)
    parser.add_argument("--methods", nargs="+", default=["single", "ensemble"], choices=METHODS)
    parser.add_argument(
        "--parts", action="store_true", help="what each part of the recipe is worth"
    )
    parser.add_argument("--splits", type=int, default=20, help="of 20; 5 are a first look")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--data", type=Path, default=os.environ.get("PYRALLOY_DATA", DATA))
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: no data at {options.data}; set PYRALLOY_DATA to their folder.")
        return 0
    if options.parts:
        options.methods = list(PARTS)
    missing = [m for m in options.methods if m in NEEDS and not importlib.util.find_spec(NEEDS[m])]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    done = options.results.read_text().splitlines() if options.results.exists() else []
    records = [json.loads(line) for line in done]
    known = {(r["set"], r["split"], r["method"]) for r in records}
    work = [
        (name, split, method)
        for split in range(options.splits)
        for name in options.sets
        for method in options.methods
        if method not in missing and (name, split, method) not in known
    ]
    with (
        concurrent.futures.ProcessPoolExecutor(options.jobs) as pool,
        options.results.open("a") as file,
    ):
        waiting = [pool.submit(run, options.data, *one) for one in work]
        for number, future in enumerate(concurrent.futures.as_completed(waiting), 1):
            records.append(future.result())
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
            print(f"\r{number} of {len(work)}", end="", file=sys.stderr, flush=True)
    chosen = set(options.sets), set(options.methods)
    kept = [r for r in records if r["set"] in chosen[0] and r["method"] in chosen[1]]
    show(sorted(kept, key=lambda r: (r["set"], r["method"], r["split"])), options.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
