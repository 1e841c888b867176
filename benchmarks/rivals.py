"""How exact, and how fast, is the same mixture in other packages?

    python benchmarks/rivals.py [--mixtures 300] [--rows 2000] [--components 20]

Rivals are compared where they are installed; one that is absent is skipped, and said to be.

1. The largest error on the same random Normal mixtures, all in float64, of the log density (nats)
   and the cdf (relative, in the body and at a level of 1e-12) against mpmath, of nine quantiles
   (the cdf there, by mpmath, less the level), and of the CRPS (in standard deviations) against
   quadrature of the squared cdf. A dash: it has no such method. A star: it answers by sampling.
2. CPU seconds of nine quantiles of many rows, beside skpro's NormalMixture: one thread, one
   process, in turns, the least of seven each.
"""

import argparse
import importlib
import sys
import time
import warnings
from importlib.metadata import version

import mpmath
import numpy as np
import torch
from pyro import distributions as dist
from scipy.special import ndtr

import pyralloy as pa

LEVELS = [0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975]
QUESTIONS = ("log density", "cdf", "cdf at 1e-12", "quantiles", "CRPS")


def random_mixture(rows, components):
    """Give Normal mixtures, overlapping and separated, with scales over four decades."""
    generator = torch.Generator().manual_seed(0)
    like = {"generator": generator, "dtype": torch.float64}
    loc = 3.0 * torch.randn((rows, components), **like)
    scale = 10.0 ** (4.0 * torch.rand((rows, components), **like) - 3.0)
    logits = 1.5 * torch.randn((rows, components), **like)
    return pa.Mixture(dist.Categorical(logits=logits), dist.Normal(loc, scale))


# -- what each package answers: (w, loc, scale), each (N, K), to a function for each question ------


def ours(w, loc, scale):
    parts = (torch.as_tensor(v) for v in (loc, scale))
    density = pa.Mixture(dist.Categorical(probs=torch.as_tensor(w)), dist.Normal(*parts))
    return {
        "log_prob": lambda y: density.log_prob(torch.as_tensor(y)).numpy(),
        "cdf": lambda y: density.cdf(torch.as_tensor(y)).numpy(),
        "quantiles": lambda levels: density.quantile(levels).numpy(),
        "crps": lambda y: density.crps(torch.as_tensor(y)).numpy(),
    }


def in_torch(w, loc, scale):
    from torch import distributions as td

    w, loc, scale = (torch.as_tensor(v) for v in (w, loc, scale))
    density = td.MixtureSameFamily(td.Categorical(probs=w), td.Normal(loc, scale))
    return {
        "log_prob": lambda y: density.log_prob(torch.as_tensor(y)).numpy(),
        "cdf": lambda y: density.cdf(torch.as_tensor(y)).numpy(),
    }


def in_tfp(w, loc, scale):
    tfd = importlib.import_module("tensorflow_probability.substrates.numpy.distributions")
    density = tfd.MixtureSameFamily(tfd.Categorical(probs=w), tfd.Normal(loc, scale))
    return {"log_prob": density.log_prob, "cdf": density.cdf}


def in_scipy(w, loc, scale):
    from scipy import stats

    rows = [
        stats.Mixture([stats.Normal(mu=m, sigma=s) for m, s in zip(*row, strict=True)], weights=p)
        for p, *row in zip(w, loc, scale, strict=True)
    ]
    return {
        "log_prob": lambda y: np.array([d.logpdf(v) for d, v in zip(rows, y, strict=True)]),
        "cdf": lambda y: np.array([d.cdf(v) for d, v in zip(rows, y, strict=True)]),
        "quantiles": lambda levels: np.array([d.icdf(levels) for d in rows]).T,
    }


def in_skpro_normal(w, loc, scale):
    from skpro.distributions import NormalMixture

    density = NormalMixture(pi=w, mu=loc, sigma=scale)
    return {
        "log_prob": lambda y: density.log_pdf(y[:, None]).to_numpy()[:, 0],
        "cdf": lambda y: density.cdf(y[:, None]).to_numpy()[:, 0],
        "quantiles": lambda levels: density.quantile(list(levels)).to_numpy().T,
        "crps": lambda y: (density.energy(y[:, None]) - 0.5 * density.energy()).to_numpy()[:, 0],
    }


def in_skpro(w, loc, scale):
    """Give frames of one cell: all rows of a Mixture share weights, and a scalar one has none."""
    from skpro.distributions import Mixture, Normal

    few = 4  # of the rows: one quantile takes a good part of a second
    cells = [
        Mixture([Normal(mu=[[m]], sigma=s) for m, s in zip(*row, strict=True)], weights=list(p))
        for p, *row in zip(w[:few], loc, scale, strict=False)
    ]

    def ask(function, values):
        pairs = zip(cells, values, strict=False)
        return np.array([function(d, [[v]]).to_numpy()[0, 0] for d, v in pairs])

    return {
        "log_prob": lambda y: ask(Mixture.log_pdf, y),
        "cdf": lambda y: ask(Mixture.cdf, y),
        "quantiles": lambda levels: np.array([ask(Mixture.ppf, [u] * few) for u in levels]),
        "crps*": lambda y: ask(lambda d, v: d.energy(v) - 0.5 * d.energy(), y),
    }


def in_zuko(w, loc, scale):
    from zuko.distributions import Mixture

    w, loc, scale = (torch.as_tensor(v) for v in (w, loc, scale))
    density = Mixture(torch.distributions.Normal(loc, scale), w.log())
    return {"log_prob": lambda y: density.log_prob(torch.as_tensor(y)).numpy()}


def in_sbi(w, loc, scale):
    """Pass the factors too: from precisions alone the class adds an epsilon to the log det."""
    from sbi.neural_nets.estimators.mog import MoG

    w, loc, scale = (torch.as_tensor(v) for v in (w, loc, scale))
    factors = scale[..., None, None] ** -1.0
    density = MoG(w.log(), loc[..., None], factors**2, factors)
    return {"log_prob": lambda y: density.log_prob(torch.as_tensor(y)[:, None]).numpy()}


RIVALS = {
    "pyralloy": ("pyralloy", ours),
    "torch": ("torch", in_torch),
    "scipy.stats": ("scipy", in_scipy),
    "skpro NormalMixture": ("skpro", in_skpro_normal),
    "skpro Mixture": ("skpro", in_skpro),
    "TFP, on NumPy": ("tensorflow-probability", in_tfp),
    "zuko": ("zuko", in_zuko),
    "sbi": ("sbi", in_sbi),
}


# -- the truth -------------------------------------------------------------------------------------


def exact(function, w, loc, scale, y):
    """Sum ``w * function(y, loc, scale)`` over components, in 40 digits."""
    with mpmath.workdps(40):
        rows = zip(w, loc, scale, y, strict=False)
        return [
            mpmath.fsum(
                mpmath.mpf(p) * function(mpmath.mpf(v), m, s) for p, m, s in zip(*row, strict=True)
            )
            for *row, v in rows
        ]


def density_at(y, m, s):
    return mpmath.npdf(y, m, s)


def mass_below(y, m, s):
    return mpmath.ncdf(y, m, s)


def crps_by_quadrature(w, loc, scale, y):
    """Integrate the squared difference of the cdf and the step at y, piece by piece.

    The pieces end at y and at 0 to 39 scales from each component's centre, closely enough for
    20 points of a Gauss-Legendre rule on each.
    """
    nodes, rule = np.polynomial.legendre.leggauss(20)
    steps = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.0, 9.0, 39.0])
    steps = np.concatenate([-steps[:0:-1], steps])
    found = np.empty(len(y))
    for i, (p, m, s, v) in enumerate(zip(w, loc, scale, y, strict=True)):
        cuts = np.sort(np.append((m[:, None] + s[:, None] * steps).ravel(), v))
        half = np.diff(cuts)[:, None] / 2.0
        t = cuts[:-1, None] + half * (1.0 + nodes)
        z = (t[..., None] - m) / s
        side = np.where(t > v, ndtr(-z) @ p, ndtr(z) @ p)
        found[i] = (side**2 * rule * half).sum()
    return found


class Truth:
    """Mixtures, the points at which they are asked, and what is true there."""

    def __init__(self, rows, components=5):
        density = random_mixture(rows, components)
        self.parts = tuple(
            v.numpy() for v in (density.weights, density.components.loc, density.components.scale)
        )
        self.y = density.sample(generator=torch.Generator().manual_seed(1)).numpy()
        self.low = density.quantile(1e-12).numpy()  # any y would do: the cdf there is the truth's
        self.spread = density.stddev.numpy()
        self.log_prob = [mpmath.log(v) for v in exact(density_at, *self.parts, self.y)]
        self.cdf, self.tail = (exact(mass_below, *self.parts, v) for v in (self.y, self.low))
        self.crps = crps_by_quadrature(*self.parts, self.y)

    def errors(self, answers):
        """Give the largest error of each answer, by question; a star marks one by sampling."""
        found = {}
        if "log_prob" in answers:
            found["log density"] = _largest(answers["log_prob"](self.y), self.log_prob)
        if "cdf" in answers:
            found["cdf"] = _largest(answers["cdf"](self.y), self.cdf, self.cdf)
            found["cdf at 1e-12"] = _largest(answers["cdf"](self.low), self.tail, self.tail)
        if "quantiles" in answers:
            quantiles = answers["quantiles"](LEVELS)
            pairs = zip(LEVELS, quantiles, strict=True)
            found["quantiles"] = max(
                _largest(exact(mass_below, *self.parts, q), [u] * len(q)) for u, q in pairs
            )
        for name in {"crps", "crps*"} & set(answers):
            found["CRPS" + name[4:]] = _largest(answers[name](self.y), self.crps, self.spread)
        return found


def _largest(found, truth, unit=None):
    """Give the largest difference, in units of ``unit`` if given, over the rows there are."""
    unit = [1.0] * len(truth) if unit is None else unit
    rows = zip(found, truth, unit, strict=False)
    return max(abs(float((mpmath.mpf(f) - t) / u)) for f, t, u in rows)


# -- the figures -----------------------------------------------------------------------------------


def installed(package, maker, truth):
    """Give a rival's answers, or None and say that it is skipped."""
    try:
        return maker(*truth.parts)
    except ImportError as problem:
        print(f"{package}: skipped, {problem}")
    except AttributeError as problem:  # an older release has no mixture
        print(f"{package} {version(package)}: skipped, {problem}")
    return None


def _cell(found, question):
    if question in found:
        return f"{found[question]:.0e}"
    return f"{found[question + '*']:.0e}*" if question + "*" in found else "-"


def compare_errors(truth):
    """Print the largest error of every package there is, and tell whether ours are small."""
    print(f"largest error on {len(truth.y)} mixtures of 5 Normals, float64")
    print(" " * 29 + "".join(f"{q:>14}" for q in QUESTIONS))
    kept = True
    for name, (package, maker) in RIVALS.items():
        answers = installed(package, maker, truth)
        if answers is None:
            continue
        found = truth.errors(answers)
        cells = [_cell(found, question) for question in QUESTIONS]
        print(f"{name + ' ' + version(package):29}" + "".join(f"{cell:>14}" for cell in cells))
        if name == "pyralloy":
            kept = max(found.values()) <= 1e-11
    print(f"ours: asked <= 1e-11 {'yes' if kept else 'NO'}")
    return kept


def in_turns(functions, rounds=7):
    """Give the least CPU seconds of each of some calls, and their last results."""
    seconds, results = [[] for _ in functions], [None] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = time.process_time()
            results[i] = function()
            seconds[i].append(time.process_time() - start)
    return [min(s) for s in seconds], results


def compare_speed(rows, components):
    """Print how much longer skpro takes than we do, and tell whether it is long enough."""
    density = random_mixture(rows, components)
    single = density.to(torch.float32)
    functions = [lambda: density.quantile(LEVELS), lambda: single.quantile(LEVELS)]
    print(f"\n9 quantiles of {rows} rows, {components} components, CPU time")
    try:
        from skpro.distributions import NormalMixture
    except ImportError as problem:
        (double, half), _ = in_turns(functions)
        print(f"ours {double:.3f} s, in float32 {half:.3f} s; skpro: skipped, {problem}")
        return True
    parts = density.components
    theirs = NormalMixture(
        pi=density.weights.numpy(), mu=parts.loc.numpy(), sigma=parts.scale.numpy()
    )
    seconds, results = in_turns([*functions, lambda: theirs.quantile(LEVELS)])
    apart = np.abs(results[0].numpy() - results[2].to_numpy().T).max()
    kept = True
    for name, took in zip(("float64", "float32"), seconds[:2], strict=True):
        ratio = seconds[2] / took
        kept &= ratio >= 3
        verdict = "yes" if ratio >= 3 else "NO"
        note = f"{seconds[2]:.3f} s / {took:.3f} s"
        print(f"skpro / ours in {name:8}{ratio:8.1f}  asked >= 3 {verdict:>4}  {note}")
    print(f"the two float64 answers differ by at most {apart:.0e}")
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixtures", type=int, default=300)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--components", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # skpro says of each answer by sampling that it is one
    np.random.seed(0)  # noqa: NPY002  skpro draws from NumPy's global generator
    exact_enough = compare_errors(Truth(options.mixtures))
    fast_enough = compare_speed(options.rows, options.components)
    return 0 if exact_enough and fast_enough else 1


if __name__ == "__main__":
    sys.exit(main())
