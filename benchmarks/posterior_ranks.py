"""Is the posterior of the weights that of the model? Simulation-based calibration.

    python benchmarks/posterior_ranks.py [--simulations 200] [--only NUTS mean-field] [--figure PNG]

Weights are drawn from the prior, and 20 rows from the density that they give. If an inference is
right, the weights that made the data are one more draw of the posterior: among 9 such draws, the
rank of what they say of a place is uniform on 0 ... 9. Ranked are six functions of the weights, the
log density and the cdf at three places, since single weights can be exchanged without any change
of the density. Chains are those of `pa.nuts`, thinned, and `mean-field` is Pyro's AutoNormal,
trained by the engine of `pa.fit` from the most probable weights nearby; both see all rows in
standardised units, so that the prior is the law that made the data.

Printed is, of each function, the largest gap between the share of ranks below a cut and what a
uniform law expects, as it is and in standard errors, which at the ends are smaller; beside each
what six uniform ones exceed in one case of a hundred. The figure's band is of standard errors.

Saeilynoja, T., Buerkner, P.-C., & Vehtari, A. (2022). Graphical test for discrete uniformity and
its applications in goodness-of-fit evaluation and multiple sample comparison. Statistics and
Computing 32. doi:10.1007/s11222-022-10090-6
Talts, S., et al. (2018). Validating Bayesian inference algorithms with simulation-based
calibration. arXiv:1804.06788
"""

import argparse
import sys
import time

import torch
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import nn

import pyralloy as pa
from pyralloy import priors
from pyralloy.inference import mcmc
from pyralloy.inference.engine import Engine
from pyralloy.inference.objective import FlatParameters, Objective
from pyralloy.inference.posterior import unpack
from pyralloy.inference.potential import Potential
from pyralloy.inference.whitening import Captured, Whitened

ROWS, DRAWS, THIN, WARM_UP, DEPTH = 20, 9, 8, 60, 5
STEPS, RATE = 1500, 0.02
AT, LEVEL = torch.tensor([[-1.0], [0.2], [1.2]]), torch.tensor([0.0, 0.5, -0.5])
NAMES = [f"{what} at {i}" for what in ("log density", "cdf") for i in (1, 2, 3)]
CUTS = torch.arange(1, DRAWS + 1).double()


def make_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = pa.MixtureHead(3, components=2)
        return pa.MDN(pa.networks.MLP(1, hidden=(3,)), head, prior=priors.FanIn())


class Chains:
    """Draws by the No-U-Turn sampler; one captured potential serves all simulations."""

    def __init__(self, model, z, t):
        self.potential = Potential(model, z, t)
        self.begin = self.potential.start.clone()
        self.slope = Captured(Whitened(self.potential), hasten=True)

    def __call__(self):
        self.slope.aim(self.potential.minimise(self.begin))
        options = {"max_tree_depth": DEPTH}
        found = mcmc._chain(self.slope, WARM_UP, THIN * DRAWS, options, lambda *_: None)
        return [unpack(self.potential.sites, v) for v in found.vectors[THIN - 1 :: THIN]]


class MeanField:
    """Draws from a Normal of independent weights, fitted by the evidence lower bound."""

    def __init__(self, model, z, t):
        self.model, self.z, self.t = model, z, t
        self.potential = Potential(model, z, t)
        self.begin = self.potential.start.clone()

    def __call__(self):
        near = unpack(self.potential.sites, self.potential.minimise(self.begin))
        guide = AutoNormal(self.model, init_scale=0.01, init_loc_fn=init_to_value(values=near))
        guide(self.z, self.t, standard=True)
        objective = Objective(self.model, guide, ROWS)
        parameters = FlatParameters(nn.ModuleList([guide]))
        engine = Engine(objective, parameters, steps=STEPS)
        for step in range(STEPS):
            engine.step((self.z, self.t), RATE * (1 - step / STEPS))
        parameters.release()
        with torch.no_grad():
            return [{n: v.detach() for n, v in guide().items()} for _ in range(DRAWS)]


METHODS = {"NUTS": Chains, "mean-field": MeanField}


@torch.no_grad()
def functions(model, weights):
    """Give log density and cdf at three places, (6,)."""
    density = model.network(AT, weights)
    return torch.cat([density.log_prob(LEVEL), density.cdf(LEVEL)])


def ranks(method, simulations):
    """Rank the functions of the weights that made the data among those of draws: (S, 6)."""
    model, found = make_model(), []
    z, t = torch.linspace(-1.5, 1.5, ROWS)[:, None], torch.zeros(ROWS)
    with mcmc._runtime(torch.device("cpu")):
        draw = METHODS[method](model, z, t)
        for seed in range(simulations):
            torch.manual_seed(seed)
            with torch.no_grad():
                truth = model._draw_prior(model.prior)
                t.copy_(model.network(z, truth).sample())
            values = torch.stack([functions(model, weights) for weights in draw()])
            found.append((values < functions(model, truth)).sum(0))
            if sys.stderr.isatty():
                print(f"\r{method}: {seed + 1} of {simulations}", end="", file=sys.stderr)
    return torch.stack(found)


def gaps(found):
    """Give the share of ranks (..., S, J) below each cut, less the uniform one: (..., J, 9)."""
    return (found[..., None] < CUTS).double().mean(-3) - CUTS / (DRAWS + 1)


def errors(share, simulations):
    """Give the standard error of the share of ranks below each cut, if they are uniform."""
    return (share * (1 - share) / simulations).sqrt()


def largest(gap, simulations):
    """Give the largest of gaps (..., J, 9), by name: as it is, and in standard errors, (..., J)."""
    in_errors = gap / errors(CUTS / (DRAWS + 1), simulations)
    return {"gap": gap.abs().amax(-1), "in errors": in_errors.abs().amax(-1)}


def limits(simulations, level=0.99):
    """Give what the largest of all six functions keep within at a level, if uniform, by name."""
    generator = torch.Generator().manual_seed(0)
    drawn = gaps(torch.randint(DRAWS + 1, (40_000, simulations, 1), generator=generator))
    most = 1 - (1 - level) / len(NAMES)
    return {n: float(v.quantile(most)) for n, v in largest(drawn, simulations).items()}


def draw_figure(path, results, simulations, within):
    import matplotlib.pyplot as plt

    shares, fine = torch.arange(DRAWS + 2) / (DRAWS + 1), torch.linspace(0.0, 1.0, 201)
    width = within * errors(fine, simulations)
    reach = max(float(width.max()), *(float(gaps(f).abs().max()) for f in results.values()))
    figure, axes = plt.subplots(
        1, len(results), figsize=(4.2 * len(results), 3.4), sharey=True, layout="constrained"
    )
    axes = [axes] if len(results) == 1 else list(axes)
    for ax, (name, found) in zip(axes, results.items(), strict=True):
        ax.fill_between(fine, -width, width, color="0.85", lw=0, label="99 % band, if uniform")
        for i, gap in enumerate(gaps(found)):
            line = torch.cat([gap.new_zeros(1), gap, gap.new_zeros(1)])
            style = {"color": "tab:blue" if i < 3 else "tab:orange", "lw": 1.2}
            label = {0: "log density, 3 places", 3: "cdf, 3 places"}.get(i)
            ax.plot(shares, line, "o-", ms=2.5, label=label, **style)
        ax.set(title=name, xlabel="rank of the truth, as a share", ylim=(-1.8 * reach, 1.2 * reach))
    axes[0].set_ylabel("share of ranks below\nless the uniform share")
    axes[0].legend(fontsize=8, frameon=False, loc="lower left")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--figure", help="where to draw the gaps, a PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    within, results = limits(options.simulations), {}
    print(f"{options.simulations} simulations; the largest of each, and of a 99 % band of all six")
    print(f"{'':22}{'band':>8}" + "".join(f"{name:>18}" for name in NAMES))
    for method in options.only:
        start = time.process_time()
        results[method] = ranks(method, options.simulations)
        for name, found in largest(gaps(results[method]), options.simulations).items():
            cells = "".join(
                f"{v:>17.3f}{'*' if v > within[name] + 1e-9 else ' '}" for v in found.tolist()
            )
            print(f"{f'{method}, {name}':22}{within[name]:8.3f}{cells}", flush=True)
        print(f"{method}: {time.process_time() - start:.0f} CPU s", flush=True)
    if options.figure:
        draw_figure(options.figure, results, options.simulations, within["in errors"])


if __name__ == "__main__":
    main()
