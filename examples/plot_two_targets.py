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
# Made data: the older, the taller, the more their heights differ, and the weight goes with the
# cube of the height, nearly.


def draw(rows, seed):
    g = torch.Generator().manual_seed(seed)
    age = 2.0 + 16.0 * torch.rand(rows, generator=g)
    girl = torch.rand(rows, generator=g) < 0.5
    grown = torch.where(girl, 163.0, 178.0)
    start = torch.where(girl, 11.0, 13.0)
    height = 85.0 + (grown - 85.0) * torch.sigmoid((age - start + 2.0) / 2.5)
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
# The weight alone, and the weight once the height is known, both exact: a margin and a conditional
# of a mixture are mixtures.

density = fit.density(age_new)
height, weight = both_new.T.double()
alone, given = density.marginal(1), density.condition({0: height})
for name, one in (("age alone", alone), ("age and height", given)):
    lower, upper = one.interval(0.9)
    holds = float(((weight >= lower) & (weight <= upper)).double().mean())
    print(
        f"given {name:15s} CRPS {float(one.crps(weight).mean()):.2f} kg, 90 % intervals of ", end=""
    )
    print(f"{float((upper - lower).mean()):.1f} kg hold {holds:.1%}")

# %%
# At fourteen years.

at = fit.density(torch.tensor([14.0]))
across, up = torch.meshgrid(
    torch.linspace(130, 180, 101), torch.linspace(15, 90, 151), indexing="xy"
)
p = at.log_prob(torch.stack([across, up], -1)[..., None, :])[..., 0].exp()
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
axes[0].contourf(across, up, p, levels=12, cmap="Blues")
near = (age_new - 14.0).abs() < 0.5
axes[0].scatter(*both_new[near].T, s=8, color="0.2", label="children of 13.5 to 14.5 years")
axes[0].set(xlabel="height (cm)", ylabel="weight (kg)", title="density at 14 years")
axes[0].legend(frameon=False, loc="upper left")
kilograms = torch.linspace(15, 90, 400)
for tall, style in ((145.0, ":"), (155.0, "-"), (165.0, "--")):
    q = at.condition({0: tall}).log_prob(kilograms[:, None])[:, 0].exp()
    axes[1].plot(kilograms, q, style, color="C0", label=f"{tall:.0f} cm tall")
axes[1].plot(
    kilograms,
    at.marginal(1).log_prob(kilograms[:, None])[:, 0].exp(),
    color="0.5",
    label="any height",
)
axes[1].set(
    xlabel="weight (kg)", ylabel="density (per kg)", title="weight at 14 years", ylim=(0, None)
)
axes[1].legend(frameon=False)

# %%
# It knows how they go together: once the height is known, the weight's 90 % intervals are far
# shorter, and hold as many.
