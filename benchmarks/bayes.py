"""Does a posterior predict better than the one best set of weights, and at what cost?

    python benchmarks/bayes.py [few] [reference] [cost] [chains] [--repeats 20] [--first 0]
                               [--only NAME ...]

- few: 100 training rows of the inverse sinusoid, drawn anew `--repeats` times. Each method beside
  maximum likelihood with the defaults on the same rows: the mean difference, paired, with its
  standard error. Asked: at least 0.1 nats better.
- reference: 2,500 rows, `--repeats` seeds. Asked: 1.320 at any cost. The exact density has 1.288.
  The modes are ensembles of MAP fits on all rows, with noise on x; "bounded" ones have truncated
  Normals as components, and so are told that y lies within 10.5 of 0, which the others must learn;
  those of "sharp ends" take the ends from the rows that they are fitted to.
- cost: 2,500 rows, every method of docs/inference.rst, one after the other for each seed, so that a
  machine that slows down slows all of them. Its table is that of `--repeats 3`.
- chains: 4 chains of 250 draws of 440 weights, 500 rows, at several depths, the last as it comes.
  Asked: R-hat of the log density below 1.05 at 95 % of the rows compared.

NLL on fresh rows, in nats, smaller is better, less what chance gives to the exact density on these
rows (its mean there less its expectation, a thousandth or more); CPU seconds of a fit on one
thread, and how many fits of `ml` they are. `ml` is `pa.fit` with its defaults on 2 x 64 units and
20 components; `ml small` has the network of the chains, so that the gain of Bayes can be told from
that of a small network.
"""

import argparse
import sys
import time
import warnings

import numpy as np
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

import pyralloy as pa
from pyralloy import priors
from pyralloy.families import TruncatedNormalFamily

LOW_RANK = 10
WIDE, SMALL = ((64, 64), 20), ((16,), 5)
#: Of fits to all rows, which noise on x keeps smooth: components, how to train, and the prior.
FEWER, SMOOTH = ((64, 64), 15), {"x_noise": 0.05, "validation": None}
LOOSE = priors.FanIn(30.0)
#: What is known of y: the interval that it is drawn from; or that its range ends sharply somewhere.
TOLD, SHARP = lambda _: TruncatedNormalFamily(-10.5, 10.5), TruncatedNormalFamily.around


def model(prior, seed, size, family="normal"):
    hidden, components = size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = pa.networks.MLP(1, hidden)
        head = pa.MixtureHead(hidden[-1], components, family=family)
        return pa.MDN(trunk, head, prior=prior)


def by(guide, prior=None, size=WIDE, **options):
    """Make a method: a function from rows and a seed to a Fit."""
    return lambda x, y, seed: pa.fit(
        model(prior, seed, size), x, y, guide=guide, seed=seed, progress=False, **options
    )


def low_rank(model, init_loc_fn, init_scale):
    return AutoLowRankMultivariateNormal(
        model, init_loc_fn=init_loc_fn, init_scale=init_scale, rank=LOW_RANK
    )


def chains(size, **options):
    return lambda x, y, seed: pa.nuts(
        model(priors.FanIn(), seed, size), x, y, seed=seed, progress=False, **options
    )


def members(count, prior=None, size=WIDE, family=lambda _: "normal", **options):
    def fit(x, y, seed):
        kind = family(y)
        return pa.ensemble(
            lambda own: model(prior, own, size, kind),
            x,
            y,
            members=count,
            seed=seed,
            progress=False,
            **options,
        )

    return fit


METHODS = {
    "ml": by(None),
    "ml small": by(None, size=SMALL),
    "map": by(AutoDelta, priors.FanIn()),
    "mean-field": by(AutoNormal, priors.FanIn()),
    "mean-field, T = 0.01": by(AutoNormal, priors.FanIn(), temperature=0.01),
    "low-rank": by(low_rank, priors.FanIn()),
    "mean-field, last layer": by(AutoNormal, priors.LastLayer()),
    "laplace, last layer, small": by(AutoLaplaceApproximation, priors.LastLayer(), SMALL),
}
FEW = METHODS | {
    "ensemble of 5": members(5),
    "nuts, small": chains(SMALL, warmup=200, draws=200, depth=6),
}
REFERENCE = METHODS | {
    "mean-field, T = 0.3": by(AutoNormal, priors.FanIn(), temperature=0.3),
    "mean-field, last layer, long": by(AutoNormal, priors.LastLayer(), max_steps=5000),
    "20 modes": members(20, LOOSE, FEWER, guide=AutoDelta, **SMOOTH),
    "5 members, bounded": members(5, None, FEWER, TOLD, **SMOOTH),
    "5 modes, bounded": members(5, LOOSE, FEWER, TOLD, guide=AutoDelta, **SMOOTH),
    "20 modes, bounded": members(20, LOOSE, FEWER, TOLD, guide=AutoDelta, **SMOOTH),
    "5 modes, sharp ends": members(5, LOOSE, FEWER, SHARP, guide=AutoDelta, **SMOOTH),
    "20 modes, sharp ends": members(20, LOOSE, FEWER, SHARP, guide=AutoDelta, **SMOOTH),
    "5 mean-fields, bounded, T = 0.01": members(
        5, LOOSE, FEWER, TOLD, guide=AutoNormal, temperature=0.01, **SMOOTH
    ),
}
COST = METHODS | {"full Normal, small": by(AutoMultivariateNormal, priors.FanIn(), SMALL)}
COST |= {name: FEW[name] for name in ("ensemble of 5", "nuts, small")}
PROBLEMS = {
    "few": (100, 5_000, FEW),
    "reference": (2500, 100_000, REFERENCE),
    "cost": (2500, 20_000, COST),
}


def nll(fit, fresh, draws=100):
    """Score beside the exact density, in chunks: a pool of 100 draws is wide."""
    total = 0.0
    for x, y in zip(fresh.x.split(2000), fresh.y.split(2000), strict=True):
        worse = fresh.log_density(x, y) - fit.density(x, draws).log_prob(y)
        total += float(worse.double().sum())
    return fresh.entropy + total / len(fresh.y)


def compare(rows, fresh, methods, seeds):
    fresh = pa.datasets.inverse_sinusoid(fresh, seed=10_000)
    scores = {name: [] for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for seed in seeds:
        problem = pa.datasets.inverse_sinusoid(rows, seed=seed)
        for name, method in methods.items():
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of short chains, whose score is what is asked
                fit = method(problem.x, problem.y, seed)
            seconds[name] += time.process_time() - start
            scores[name].append(nll(fit, fresh))
            print(f"  {seed:3d} {name:30s} {scores[name][-1]:.4f}", file=sys.stderr, flush=True)
    print(f"{'':30s}     NLL   less than ml (s.e.)     CPU s    x ml")
    usual = seconds.get("ml", np.nan)
    for name, values in scores.items():
        gain = np.array(scores.get("ml", np.nan)) - np.array(values)
        error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else np.nan
        print(
            f"{name:30s} {np.mean(values):7.4f}   {gain.mean():8.4f} ({error:.4f})"
            f"     {seconds[name] / len(seeds):7.1f} {seconds[name] / usual:7.1f}"
        )


def agree():
    problem, fresh = (pa.datasets.inverse_sinusoid(n, seed=s) for n, s in ((500, 0), (5000, 9)))
    print("chains: 4 of 250 draws, 440 weights, 500 rows")
    print("warm-up depth  R-hat < 1.05  ESS   NLL    CPU s")
    for warmup, depth in ((250, 7), (250, 8), (250, 9), (500, 10)):  # the last are the defaults
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = chains(((16,), 8), warmup=warmup, draws=250, chains=4, depth=depth)(
                problem.x, problem.y, 0
            )
        seconds, report = time.process_time() - start, fit.chains
        share = float((report.r_hat < 1.05).double().mean())
        ess = float(report.ess.median())
        print(
            f"{warmup:7d} {depth:5d} {share:13.0%} {ess:5.0f} {nll(fit, fresh):6.3f} {seconds:8.0f}"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("problems", nargs="*", default=[*PROBLEMS, "chains"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first repeat")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.problems:
        if name == "chains":
            agree()
            continue
        rows, fresh, methods = PROBLEMS[name]
        chosen = arguments.only or methods
        seeds = range(arguments.first, arguments.first + arguments.repeats)
        print(f"{name}: {rows} rows, {arguments.repeats} repeats, {fresh} fresh rows")
        compare(rows, fresh, {n: methods[n] for n in chosen}, seeds)


if __name__ == "__main__":
    main()
