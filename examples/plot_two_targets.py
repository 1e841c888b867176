r"""
Two targets, and one given the other
====================================

Height and weight depend on age, and on each other. What does a density of both know that two
densities, one for each, do not? It can be asked of one when the other becomes known: *given the
child's age, and now its height, what will it weigh?*
"""

import torch
from matplotlib import pyplot as plt

import pyralloy as pa

# %%
# Made data: older children are taller and differ more, and weight goes nearly as height cubed.


def draw(rows, seed):
    g = torch.Generator().manual_seed(seed)
    age = 2.0 + 16.0 * torch.rand(rows, generator=g)
    girl = torch.rand(rows, generator=g) < 0.5
    grown, start = torch.where(girl, 163.0, 178.0), torch.where(girl, 9.0, 11.0)
    height = 85.0 + (grown - 85.0) * torch.sigmoid((age - start) / 2.5)
    height = height + (2.5 + 0.2 * age) * torch.randn(rows, generator=g)
    weight = 15.0 * (height / 100.0) ** 2.6 * torch.exp(0.12 * torch.randn(rows, generator=g))
    return age, torch.stack([height, weight], 1)


age, both = draw(3000, seed=0)
age_new, both_new = draw(2000, seed=1)

# %%
# Components of full covariance: within each, height and weight are correlated.

trunk = pa.networks.MLP(1, hidden=(32, 32))
head = pa.MixtureHead(trunk.out_features, components=5, targets=2, covariance="full")
fit = pa.fit(pa.MDN(trunk, head), age, both, max_steps=1500, progress=False)

# %%
# The weight alone and once the height is known: margin and conditional of a mixture are mixtures.

density = fit.density(age_new)
height, weight = both_new.T.double()
alone, given = density.marginal(1), density.condition({0: height})
for name, one in (("age alone", alone), ("age and height", given)):
    lower, upper = one.interval(0.9)
    holds, wide = ((weight >= lower) & (weight <= upper)).double().mean(), (upper - lower).mean()
    print(f"given {name}: CRPS {one.crps(weight).mean():.2f} kg,", end=" ")
    print(f"90 % intervals of {wide:.1f} kg hold {holds:.1%}")

# %%
# At fourteen years.

at = fit.density(torch.tensor([14.0]))
kilograms = torch.linspace(15, 90, 301)
across, up = torch.meshgrid(torch.linspace(130, 180, 101), kilograms, indexing="xy")
p = at.log_prob(torch.stack([across, up], -1)[..., None, :])[..., 0].exp()
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
axes[0].contourf(across, up, p, levels=12, cmap="Blues")
near = (age_new - 14.0).abs() < 0.5
axes[0].scatter(*both_new[near].T, s=8, color="0.2", label="children of 13.5 to 14.5 years")
axes[0].set(xlabel="height (cm)", ylabel="weight (kg)", title="density at 14 years")
axes[0].legend(frameon=False, loc="upper left")
for tall, style in ((145.0, ":"), (155.0, "-"), (165.0, "--")):
    q = at.condition({0: tall}).log_prob(kilograms[:, None])[:, 0].exp()
    axes[1].plot(kilograms, q, style, color="C0", label=f"{tall:.0f} cm tall")
q = at.marginal(1).log_prob(kilograms[:, None])[:, 0].exp()
axes[1].plot(kilograms, q, color="0.5", label="any height")
axes[1].set(xlabel="weight (kg)", ylabel="density (per kg)", title="weight at 14 years")
axes[1].set_ylim(0, None)
axes[1].legend(frameon=False)

# %%
# It knows how they go together: once the height is known, the weight's 90 % intervals are far
# shorter, and hold as many.
