r"""
A mixture head in a hierarchical model
======================================

Thirty clinics measure the response to a dose, each with an offset of its own, most of them on few
patients. What is each clinic's offset? A mixture is a Pyro distribution and a head is a layer, so
both go into a Pyro model of one's own, here with offsets that share a law.
"""

import pyro
import torch
from matplotlib import pyplot as plt
from pyro import distributions as dist
from pyro.infer.autoguide import AutoNormal

import pyralloy as pa

# %%
# Of the patients some respond to the dose and some do not: the response has two branches.

torch.manual_seed(0)
CLINICS = 30
offset = 1.5 * torch.randn(CLINICS).sort().values
clinic = torch.arange(CLINICS).repeat_interleave(torch.randint(2, 25, (CLINICS,)))
dose = 4.0 * torch.rand(len(clinic), 1)
responds = torch.rand(len(clinic)) < 0.6
response = offset[clinic] + 1.5 * dose[:, 0] * responds + 0.5 * torch.randn(len(clinic))

# %%
# The network gives the density of a patient at a clinic of no offset; a shift makes it that of any.


class Clinics(pyro.nn.PyroModule):
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

with pyro.settings.context(module_local_params=True):
    model = Clinics()
    guide = AutoNormal(model, init_scale=0.1)
    elbo = pyro.infer.Trace_ELBO(num_particles=2)(model, guide)
    elbo(dose, clinic, response)  # makes the guide's parameters
    optimiser = torch.optim.Adam(elbo.parameters(), lr=0.02)
    for _ in range(800):
        optimiser.zero_grad()
        elbo(dose, clinic, response).backward()
        optimiser.step()
    quantiles = guide.quantiles([0.05, 0.5, 0.95])["shift"].detach()  # (3, clinics)

# %%
# With 90 % intervals, beside each clinic's own mean; both less their average over the clinics.

own = torch.stack([response[clinic == c].mean() for c in range(CLINICS)])
own, truth = own - own.mean(), offset - offset.mean()
low, middle, high = quantiles - quantiles[1].mean()
for name, found in (("each clinic's mean", own), ("hierarchical model", middle)):
    print(f"{name}: root mean square error {(found - truth).square().mean().sqrt():.2f}")
figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
ax.errorbar(range(CLINICS), middle, (middle - low, high - middle), fmt="o", label="model")
ax.plot(own, "x", color="C1", label="mean of the clinic's patients")
ax.plot(truth, "_", color="0", ms=12, label="truth")
ax.set(xlabel="clinic, in order of its offset", ylabel="offset (units of the response)")
ax.legend(frameon=False)

# %%
# The model finds them with little more than a third of the error of the clinics' means, for it
# knows of the two kinds of patient, and of the other clinics.
