r"""
A mixture head in a hierarchical model
======================================

Thirty clinics measure the same response to a dose, each with an offset of its own, most of them on
few patients. What is each clinic's offset? A mixture is a Pyro distribution and a head a layer, so
both go into a Pyro model of one's own, here with offsets that share a law.
"""

import pyro
import torch
from matplotlib import pyplot as plt
from pyro import distributions as dist
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule

import pyralloy as pa

# %%
# Of the patients some respond to the dose and some do not: the response has two branches.

CLINICS = 30
g = torch.Generator().manual_seed(0)
offset = 1.5 * torch.randn(CLINICS, generator=g)
size = torch.randint(2, 25, (CLINICS,), generator=g)
clinic = torch.arange(CLINICS).repeat_interleave(size)
dose = 4.0 * torch.rand(len(clinic), 1, generator=g)
responds = (torch.rand(len(clinic), generator=g) < 0.6).float()
noise = 0.5 * torch.randn(len(clinic), generator=g)
response = offset[clinic] + responds * 1.5 * dose[:, 0] + noise

# %%
# The network gives the density of a patient at a clinic of no offset; a shift makes it that of any.


class Clinics(PyroModule):
    def __init__(self):
        super().__init__()
        self.trunk = pa.networks.MLP(1, hidden=(16,))
        self.head = pa.MixtureHead(16, components=2, spread=float(response.std()))

    def forward(self, dose, clinic, y=None):
        tau = pyro.sample("tau", dist.HalfNormal(3.0))
        with pyro.plate("clinics", CLINICS):
            shift = pyro.sample("shift", dist.Normal(0.0, tau))
        density = self.head(self.trunk(dose)).affine(shift[clinic], 1.0)
        with pyro.plate("data", len(dose)):
            return pyro.sample("y", density, obs=y)


# %%
# Training is Pyro's: a guide for what has a prior, an ELBO, and any optimiser of torch's.

with pyro.settings.context(module_local_params=True), torch.random.fork_rng():
    torch.manual_seed(0)
    model = Clinics()
    guide = AutoNormal(model, init_scale=0.1)
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=False)(model, guide)
    elbo(dose, clinic, response)  # makes the guide's parameters
    optimiser = torch.optim.Adam(elbo.parameters(), lr=0.02)
    for _ in range(800):
        optimiser.zero_grad()
        elbo(dose, clinic, response).backward()
        optimiser.step()
    lower, middle, upper = (
        q["shift"].detach() for q in (guide.quantiles([p]) for p in (0.05, 0.5, 0.95))
    )
    lower, middle, upper = (q.reshape(CLINICS) for q in (lower, middle, upper))

# %%
# Beside each clinic's own mean. Both are measured from their average over the clinics.

own = torch.stack([response[clinic == c].mean() for c in range(CLINICS)])
truth, centre = offset - offset.mean(), middle.mean()
errors = {
    "each clinic's mean": own - own.mean() - truth,
    "hierarchical model": middle - centre - truth,
}
for name, error in errors.items():
    print(f"{name}: root mean square error {error.square().mean().sqrt():.2f}")

figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
order, place = torch.argsort(truth), torch.arange(CLINICS)
ax.vlines(place, (lower - centre)[order], (upper - centre)[order], color="C0", lw=4, alpha=0.4)
ax.plot(place, (middle - centre)[order], "o", color="C0", label="model, with 90 % intervals")
ax.plot(place, (own - own.mean())[order], "x", color="C1", label="mean of the clinic's patients")
ax.plot(place, truth[order], "_", color="0", ms=12, label="truth")
ax.set(xlabel="clinic, in order of its offset", ylabel="offset (units of the response)")
ax.legend(frameon=False)

# %%
# The model finds them with two thirds of the error of the clinics' means, for it knows of the two
# kinds of patient, and of the other clinics.
