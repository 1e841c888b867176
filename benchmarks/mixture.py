"""What do exact answers cost, beside what people do instead?

    python benchmarks/mixture.py [--rows 100000] [--components 20] [--device cpu]
    python benchmarks/mixture.py --pools      milliseconds a row, of pools of ever more members

One thread, one process, CPU seconds, the same random Normal mixtures throughout:

- 10 samples a row, beside a double loop over rows and draws (timed on some rows, extrapolated);
- 9 quantiles a row, beside scipy's `brentq` row by row (likewise);
- the exact CRPS, beside scoringrules' estimate from 100 draws a row, drawing not counted;
- 90 % highest-density regions, beside the nine quantiles.

Each line prints the ratio, what it is asked to be, and the largest error seen. On a GPU ours are
seconds by the clock, until the device is done; what they are compared with stays on the CPU.

The pools are of members of 20 components each that disagree a little, as draws of a posterior do.
"""

import argparse
import sys
import time
from functools import partial

import numpy as np
import scoringrules
import torch
from pyro import distributions as dist
from scipy.optimize import brentq
from scipy.special import ndtr

import pyralloy as pa
from pyralloy.families.truncated_normal import TruncatedNormal

CPU = torch.device("cpu")
LEVELS = [0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975]


def random_mixture(rows, components):
    """Give Normal mixtures, overlapping and separated, with scales over four decades."""
    generator = torch.Generator().manual_seed(0)
    shape = (rows, components)
    loc = 3.0 * torch.randn(shape, generator=generator)
    scale = 10.0 ** (4.0 * torch.rand(shape, generator=generator) - 3.0)
    logits = 1.5 * torch.randn(shape, generator=generator)
    return pa.Mixture(dist.Categorical(logits=logits), dist.Normal(loc, scale))


def timed(function, repeats=3, device=CPU):
    """Give the least seconds of some calls, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = clock(device)
        result = function()
        seconds.append(clock(device) - start)
    return min(seconds), result


def clock(device):
    """Give CPU seconds, or those on the wall once a GPU has done what it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def double_loop(density, rows, draws):
    """Draw as the notebook does: for each row, for each draw, pick a component, then a Normal."""
    weights = density.weights.double().numpy()
    weights /= weights.sum(-1, keepdims=True)
    loc, scale = density.components.loc.numpy(), density.components.scale.numpy()
    rng = np.random.default_rng(0)
    drawn = np.empty((rows, draws))
    for i in range(rows):
        for j in range(draws):
            k = rng.choice(weights.shape[1], p=weights[i])
            drawn[i, j] = rng.normal(loc[i, k], scale[i, k])
    return drawn


def root_by_root(density, rows):
    """Find each quantile of each row by scipy's brentq."""
    weights = density.weights.double().numpy()
    loc, scale = (v.double().numpy() for v in (density.components.loc, density.components.scale))
    found = np.empty((len(LEVELS), rows))
    for i in range(rows):
        low, high = (loc[i] - 9 * scale[i]).min(), (loc[i] + 9 * scale[i]).max()
        for j, level in enumerate(LEVELS):
            found[j, i] = brentq(
                lambda y, i=i, u=level: weights[i] @ ndtr((y - loc[i]) / scale[i]) - u, low, high
            )
    return found


def report(name, ratio, asked, *, at_least, note):
    kept = ratio >= asked if at_least else ratio <= asked
    sign = ">=" if at_least else "<="
    print(f"{name:44}{ratio:9.2f}  asked {sign} {asked:<6g}{'yes' if kept else 'NO':>4}  {note}")
    return kept


def pool(members, rows, interval):
    """Give mixtures of 20 components a member; with an interval, of truncated Normals."""
    generator = torch.Generator().manual_seed(0)

    def varied(most, least):
        common = most * torch.randn(rows, 1, 20, generator=generator)
        return (common + least * torch.randn(rows, members, 20, generator=generator)).flatten(1)

    logits, loc, scale = varied(3.0, 0.5), varied(3.0, 0.3), (varied(0.7, 0.2) - 0.7).exp()
    component = dist.Normal(loc, scale)
    if interval is not None:
        component = TruncatedNormal(loc.clamp(*interval), scale, *interval)
    return pa.Mixture(dist.Categorical(logits=logits), component)


def pools():
    questions = {
        "log density": lambda m, y: m.log_prob(y),
        "9 quantiles": lambda m, _: m.quantile(LEVELS),
        "90 % region": lambda m, _: m.highest_density_region(0.9),
        "CRPS": lambda m, y: m.crps(y),
        "entropy": lambda m, _: m.entropy(),
    }
    for title, interval in {"Normals": None, "truncated Normals": (-10.5, 10.5)}.items():
        print(f"{title:>18}" + "".join(f"{name:>14}" for name in questions))
        for members in (1, 5, 20, 100, 1000):
            rows = max(2, 200 // members)
            density = pool(members, rows, interval)
            y = density.sample(generator=torch.Generator().manual_seed(1))
            taken = [timed(partial(ask, density, y), 2)[0] for ask in questions.values()]
            cells = "".join(f"{1e3 * seconds / rows:>14.3g}" for seconds in taken)
            print(f"{20 * members:>18,}{cells}", flush=True)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--components", type=int, default=20)
    parser.add_argument("--device", type=torch.device, default=CPU)
    parser.add_argument("--pools", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.pools:
        return pools()
    here, device = random_mixture(options.rows, options.components), options.device
    density, few, rows = here.to(device), 500, options.rows

    def ours_takes(function, repeats=2):
        if device.type != "cpu":
            function()  # the first call loads kernels
        return timed(function, repeats, device)

    def source(seed):
        return torch.Generator(device).manual_seed(seed)

    kept = True

    ours, _ = ours_takes(lambda: density.sample((10,), generator=source(0)), repeats=3)
    loop, _ = timed(lambda: double_loop(here, few, 10), repeats=1)
    ratio = loop / few * rows / ours
    kept &= report(
        "10 samples: double loop / ours", ratio, 200, at_least=True, note=f"{ours:.2f} s"
    )

    quantiles, found = ours_takes(lambda: density.quantile(LEVELS))
    roots, exact = timed(lambda: root_by_root(here, few), repeats=1)
    spread = here.stddev[:few].numpy()
    error = np.abs(found[:, :few].cpu().numpy() - exact).max(0) / spread
    ratio = roots / few * rows / quantiles
    note = f"{quantiles:.2f} s; error {error.max():.0e} sd"
    kept &= report("9 quantiles: brentq / ours", ratio, 50, at_least=True, note=note)

    y = here.sample(generator=torch.Generator().manual_seed(1))
    on = y.to(device)
    ours, _ = ours_takes(lambda: density.crps(on))
    draws = here.sample((100,), generator=torch.Generator().manual_seed(2))
    draws = draws.T.double().contiguous().numpy()  # as the other package likes them best
    theirs, _ = timed(lambda: scoringrules.crps_ensemble(y.double().numpy(), draws), repeats=2)
    wide = here[:few].to(torch.float64)
    reference = scoringrules.crps_mixnorm(
        y[:few].double().numpy(),
        wide.components.loc.numpy(),
        wide.components.scale.numpy(),
        wide.weights.numpy(),
    )
    scores = density[:few].to(torch.float64).crps(on[:few]).cpu()
    error = np.abs(scores.numpy() - reference).max()
    note = f"{ours:.2f} s; error {error:.0e}"
    kept &= report("CRPS: ours / 100-draw estimate", ours / theirs, 1, at_least=False, note=note)

    ours, region = ours_takes(lambda: density.highest_density_region(0.9))
    mass = density.to(torch.float64).cdf(region.intervals.double().movedim((-2, -1), (0, 1)))
    held = torch.nan_to_num(mass[:, 1] - mass[:, 0]).sum(0)
    note = f"{ours:.2f} s; mass off by at most {float((held - 0.9).abs().max()):.0e}"
    kept &= report(
        "90 % regions: ours / 9 quantiles", ours / quantiles, 8, at_least=False, note=note
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
