r"""
A target between zero and one
=============================

What share of the sky is covered by cloud, given the air's humidity? Skies tend to be clear or
overcast and seldom half covered, and no share is below zero or above one. What does a density lose
that does not know the bounds?
"""

import torch
from matplotlib import pyplot as plt
from pyro import distributions as dist

import pyralloy as pa

# %%
# The drier the air, the likelier a clear sky; in between, shares crowd at both ends.


def draw(rows, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        humidity = 20.0 + 75.0 * torch.rand(rows)
        overcast = torch.rand(rows) < torch.sigmoid((humidity - 60.0) / 8.0)
        share = torch.where(
            overcast,
            dist.Beta(6.0, 1.2).expand((rows,)).sample(),
            dist.Beta(1.2, 7.0).expand((rows,)).sample(),
        )
    return humidity, share.clamp(1e-4, 1.0 - 1e-4)


humidity, share = draw(2000, seed=0)
humidity_new, share_new = draw(5000, seed=1)


def fit(family):
    trunk = pa.networks.MLP(1, hidden=(32, 32))
    head = pa.MixtureHead(trunk.out_features, components=2, family=family)
    return pa.fit(pa.MDN(trunk, head), humidity, share, max_steps=1500, progress=False)


fits = {"Normal components": fit("normal"), "beta components": fit("beta")}

# %%
# Held-out log scores, and the probability that each gives to shares that cannot be.

losses = {}
for name, found in fits.items():
    density = found.density(humidity_new)
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    outside = float((density.cdf(zero) + density.survival(one)).mean())
    nll = float(-density.log_prob(share_new).mean())
    losses[name] = outside, nll
    print(f"{name:18s} {nll:6.3f} nats, {outside:.1%} of the probability outside [0, 1]")

# %%
# At three humidities.

y = torch.linspace(-0.2, 1.2, 561)
at = torch.tensor([35.0, 60.0, 80.0])
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
for column, ax in enumerate(axes):
    for (name, found), style in zip(fits.items(), ("--", "-"), strict=True):
        inside = y if "Normal" in name else y[(y > 0.0) & (y < 1.0)]
        p = found.density(at).log_prob(inside[:, None])[:, column].exp()
        ax.plot(inside, p, style, color="C1" if style == "--" else "C0", label=name)
    near = (humidity_new - at[column]).abs() < 3.0
    ax.hist(share_new[near], bins=20, range=(0, 1), density=True, color="0.85", label="seen nearby")
    ax.axvspan(-0.2, 0.0, color="0.95", zorder=0)
    ax.axvspan(1.0, 1.2, color="0.95", zorder=0)
    ax.set(title=f"{at[column]:.0f} % humidity", xlabel="share of sky covered", ylim=(0, 6))
axes[0].set_ylabel("density")
axes[1].legend(frameon=False)

# %%
# It loses the probability that it spends outside the bounds, and the log score with it; beta
# components spend none.
