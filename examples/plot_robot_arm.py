r"""
Both elbows of a robot arm
==========================

An arm of two links can reach most points in two ways, with its elbow on either side. Where is each
joint to turn, so that the hand is *there*? Least squares takes the mean of the two answers, which
reaches neither. From random poses alone a density finds both.
"""

import torch
from matplotlib import pyplot as plt

import pyralloy as pa

LINKS = torch.tensor([1.0, 0.8])  # metres


def joints(shoulder, elbow):
    """Give the elbow's and the hand's place for joint angles in radians, (..., 2) each."""
    outer = shoulder + elbow
    bend = LINKS[0] * torch.stack([shoulder.cos(), shoulder.sin()], -1)
    return bend, bend + LINKS[1] * torch.stack([outer.cos(), outer.sin()], -1)


# %%
# Angles have von Mises components: there is no seam between 359° and 1°. The density of both angles
# is that of the elbow given the target, times that of the shoulder given the target and the elbow.


def beside(target, elbow):
    return torch.cat([target, elbow.cos()[:, None], elbow.sin()[:, None]], 1)


def fit(x, angle, components):
    trunk = pa.networks.MLP(x.shape[1], hidden=(64, 64))
    head = pa.MixtureHead(64, components=components, family="von_mises")
    return pa.fit(pa.MDN(trunk, head), x, angle, max_steps=2500, progress=False)


poses = torch.pi * (2.0 * torch.rand(10_000, 2, generator=torch.Generator().manual_seed(0)) - 1.0)
angles, target = poses[:8000], joints(*poses[:8000].T)[1]
elbow_fit = fit(target, angles[:, 1], 4)
shoulder_fit = fit(beside(target, angles[:, 1]), angles[:, 0], 2)

# %%
# At fresh targets the arm is put into the two highest modes.

fresh = joints(*poses[8000:].T)[1]
elbows = elbow_fit.density(fresh).modes().locations[:, :2]
elbows = torch.where(elbows.isnan(), elbows[:, :1], elbows).float()  # a stretched arm has one mode
for name, one in zip(("highest mode", "second mode"), elbows.T, strict=True):
    shoulder = shoulder_fit.density(beside(fresh, one)).modes().locations[:, 0].float()
    miss = (joints(shoulder, one)[1] - fresh).norm(dim=-1) / LINKS.sum()
    median, far = miss.quantile(0.5), miss.quantile(0.99)
    print(f"{name}: the hand misses by {median:.2%} of the arm's length, 99 % by < {far:.1%}")

# %%
# Four targets: the density of the elbow's angle, and the arm at both of its modes.

spots = torch.tensor([[1.2, 0.3], [0.2, 1.2], [-0.9, -0.2], [0.5, -1.4]])
density = elbow_fit.density(spots)
turn = torch.linspace(-torch.pi, torch.pi, 721)
figure, axes = plt.subplots(2, 4, figsize=(11, 5.2), layout="constrained", height_ratios=(1, 2))
for row, (top, ax) in enumerate(zip(*axes, strict=True)):
    top.plot(turn.rad2deg(), density.log_prob(turn[:, None])[:, row].exp(), color="0.2")
    top.set(xlabel="elbow's angle (°)", xticks=[-180, -90, 0, 90, 180], ylim=(0, None))
    for elbow, style in zip(density.modes().locations[row, :2].float(), ("-", "--"), strict=True):
        inputs = beside(spots[row : row + 1], elbow[None])
        shoulder = shoulder_fit.density(inputs).modes().locations[0, 0].float()
        bend, hand = joints(shoulder, elbow)
        ax.plot(*torch.stack([torch.zeros(2), bend, hand]).T, "o" + style, color="C0", lw=3, ms=5)
    ax.plot(*spots[row], "x", color="C1", ms=11, mew=3, label="target")
    ax.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), aspect="equal", xlabel="metres")
axes[0, 0].set_ylabel("density (per rad)")
axes[1, 0].set_ylabel("metres")
axes[1, 0].legend(frameon=False)

# %%
# The elbow's density has two peaks, one for each way, and the hand is at the target with either.
