"""What do reports and recalibration say on real data, and what do they cost?

    python benchmarks/calibration.py [--data FOLDER] [--only real|cost]

*real*: photometric redshifts and the strength of concrete. `MDNRegressor()` is fitted on one part
of the rows, recalibrated and conformally calibrated on a second, and judged on a third that served
neither: p-values, coverage, log score and CRPS, before and after. Data are looked for in
$PYRALLOY_DATA, by default ../shared/data beside the repository.

*cost*: seconds of CPU and peak memory of `report` and of ArviZ trees for 10,000 rows, and for 1,000
draws of y or of a posterior of 5 components, each in a process of its own. Rows x draws x
components in float64 would take 400 MB for each parameter; nothing of that size is made.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pyro import distributions as dist

import pyralloy as pa
from pyralloy import calibration, conformal
from pyralloy.inference_data import posterior_to_arviz, to_arviz

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ROWS, DRAWS, COMPONENTS = 10_000, 1_000, 5


def photoz(data):
    table = np.load(data / "photoz" / "dc2_train.npz")
    bands = np.stack([table[f"mag_{b}_lsst"] for b in "ugrizy"], -1).astype(float)
    y = table["redshift"].astype(float)
    seen = np.isfinite(bands).all(-1) & np.isfinite(y)
    bands, y = bands[seen], y[seen]
    return np.concatenate([bands[:, 2:3], -np.diff(bands)], -1), y


def concrete(data):
    table = np.loadtxt(data / "uci" / "concrete" / "data.txt")
    return table[:, :-1], table[:, -1]


def real(data):
    for name, load in (("photometric redshift", photoz), ("concrete", concrete)):
        x, y = load(data)
        order = np.random.default_rng(0).permutation(len(y))
        cuts = [int(0.6 * len(y)), int(0.8 * len(y))]
        train, held, fresh = np.split(order, cuts)
        mdn = pa.MDNRegressor(random_state=0).fit(x[train], y[train])
        at_held, at_fresh = (mdn.predict_density(x[rows]) for rows in (held, fresh))
        found = {"as fitted": at_fresh}
        for method in ("isotonic", "beta"):
            mended = conformal.recalibrate(at_held, y[held], method=method)
            found[f"recalibrated, {method}"] = mended.apply(at_fresh)
        print(
            f"\n{name}: {len(train)} rows fitted, {len(held)} to recalibrate, {len(fresh)} to judge"
        )
        print(
            f"{'':24s}{'p(PIT)':>9s}{'p(HDR)':>9s}{'90 %':>8s}{'HDR 90 %':>10s}"
            f"{'NLL':>9s}{'CRPS':>9s}"
        )
        for label, density in found.items():
            r = calibration.report(density, y[fresh], x[fresh])
            row = r.coverage[r.coverage.level == 0.9][0]
            print(
                f"{label:24s}{r.tests.p[0]:9.3f}{r.tests.p[1]:9.3f}{row.central:8.1%}"
                f"{row.highest:10.1%}{r.sharpness['log score']:9.4f}{r.sharpness['CRPS']:9.4f}"
            )
        region = conformal.calibrate(at_held, y[held]).region(at_fresh)
        lower, upper = conformal.calibrate_intervals(at_held, y[held]).interval(at_fresh)
        at = torch.from_numpy(y[fresh])
        for label, holds, size in (
            ("conformal regions", region.contains(at), region.volume()),
            ("conformal intervals", (at >= lower) & (at <= upper), upper - lower),
        ):
            print(f"{label:24s}hold {holds.double().mean():.1%}, mean length {size.mean():.4f}")
        print(calibration.report(at_fresh, y[fresh], x[fresh]).verdict)


def weights(rows, count, seed=0):
    """Make densities of rows; of a posterior, the same for every draw but for a shift."""
    g = torch.Generator().manual_seed(seed)
    loc = 2 * torch.randn(rows, count, generator=g)
    logits = torch.randn(rows, count, generator=g)
    return logits, loc, 0.3 + torch.rand(rows, count, generator=g)


def density_of(rows, logits, loc, scale, shifts=None):
    logits, loc, scale = (v[rows] for v in (logits, loc, scale))
    if shifts is not None:
        loc = loc + shifts[:, None, None]
        logits, scale = logits.expand(loc.shape), scale.expand(loc.shape)
    return pa.Mixture(dist.Categorical(logits=logits), dist.Normal(loc, scale))


def cost(case):
    """Run one case; print its seconds and the rise of peak memory as JSON."""
    count = 20 if case in ("report", "tree") else COMPONENTS
    parts = weights(ROWS, count)
    shifts = 0.05 * torch.randn(DRAWS, generator=torch.Generator().manual_seed(1))
    y = density_of(slice(None), *parts).sample(generator=torch.Generator().manual_seed(2))
    x = torch.arange(float(ROWS))[:, None]

    def pooled(rows):
        return pa.Mixture.pool(density_of(rows, *parts, shifts))

    def drawn(rows):
        return density_of(rows, *parts, shifts)

    cases = {
        "report": lambda: calibration.report(density_of(slice(None), *parts), y, x),
        "tree": lambda: to_arviz(density_of(slice(None), *parts), x, y, draws=DRAWS),
        "report, posterior": lambda: calibration.report(pooled, y, x),
        "tree, posterior": lambda: posterior_to_arviz({"w": shifts[None]}, drawn, x, y),
    }
    import arviz_base  # noqa: F401
    import scipy.stats  # noqa: F401
    import xarray  # noqa: F401

    calibration.report(density_of(slice(0, 50), *parts), y[:50])  # what is loaded once
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    cases[case]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": time.process_time() - start, "megabytes": peak / 1024}))


def costs():
    print(f"\n{'case':22s}{'components a row':>18s}{'CPU seconds':>14s}{'peak memory (MB)':>18s}")
    for case in ("report", "tree", "report, posterior", "tree, posterior"):
        out = subprocess.run(
            [sys.executable, __file__, "--case", case], capture_output=True, text=True, check=True
        )
        found = json.loads(out.stdout.splitlines()[-1])
        size = DRAWS * COMPONENTS if "posterior" in case else 20
        print(
            f"{case:22s}{size:18,d}{found['seconds']:14.1f}{found['megabytes']:18.0f}", flush=True
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PYRALLOY_DATA", DATA)))
    parser.add_argument("--only", choices=("real", "cost"))
    parser.add_argument("--case")
    given = parser.parse_args()
    if given.case:
        cost(given.case)
        return
    if given.only != "real":
        costs()  # first: a process starts from the peak of the one that starts it
    if given.only != "cost":
        if given.data.is_dir():
            real(given.data)
        else:
            print(f"no data in {given.data}: set PYRALLOY_DATA, or --data")


if __name__ == "__main__":
    main()
