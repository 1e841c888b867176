r"""
Where the data end
==================

A network answers at any x, also where it has seen none. Does it know that it does not know? The
entropy of a posterior's density has two parts: the noise that every draw of the weights sees
(*aleatoric*), and what the draws disagree on (*epistemic*). Only the second can be cured by data.
"""

import torch
from matplotlib import pyplot as plt
from pyro.infer.autoguide import AutoNormal

import pyralloy as pa

# %%
# The inverse sinusoid has hardly any data beyond 12. The weights have a prior, and a mean-field
# guide learns their posterior.

problem = pa.datasets.inverse_sinusoid(1000, seed=0)
trunk = pa.networks.MLP(1, hidden=(32,))
model = pa.MDN(trunk, pa.MixtureHead(32, components=6), prior=pa.priors.FanIn())
options = {"validation": None, "max_steps": 1500, "compile": False, "progress": False}
fit = pa.fit(model, problem.x, problem.y, guide=AutoNormal, **options)

# %%
# The share of the entropy that is epistemic, on the data and ever farther out.

x = torch.linspace(-30.0, 30.0, 121)
parts = fit.entropy(x, draws=20)
last = float(problem.x.abs().max())
print(f"the last row is at |x| = {last:.1f}")
for low, high in ((0, 10), (10, 12), (12, 15), (15, 20), (20, 30)):
    here = (x.abs() >= low) & (x.abs() <= high)
    between, total = float(parts.between[here].mean()), float(parts.total[here].mean())
    print(f"|x| from {low:2d} to {high:2d}: {between:.2f} of {total:.2f} nats are epistemic")

# %%
# Densities of twelve draws above; below, the two parts.

figure, axes = plt.subplots(2, 1, figsize=(7.5, 6), sharex=True, layout="constrained")
pa.plot.data(problem.x, problem.y, ax=axes[0])
pa.plot.prior_predictive(x, fit.densities(x, draws=12), ax=axes[0])
axes[0].set(ylim=(-22, 22), title="twelve draws: median, and half of the mass")
axes[1].plot(x, parts.within, color="0.5", ls="--", label="aleatoric")
axes[1].plot(x, parts.between, color="#d55e00", lw=2, label="epistemic")
axes[1].set_ylim(0, None)
for ax in axes:
    ax.axvline(-last, color="0.4", lw=1, ls=":")
    ax.axvline(last, color="0.4", lw=1, ls=":")
axes[1].set(xlabel="x", ylabel="entropy of y given x (nats)")
axes[1].legend(frameon=False)

# %%
# It does: where there are data the draws nearly agree, and beyond the last row the share of what
# they disagree on grows with the distance.
