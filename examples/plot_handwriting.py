r"""
Where does the pen go next?
===========================

Whoever has written half a letter may go on in several ways, so the next step of the pen has a
density of several peaks, given all steps before. Drawn from step by step, does the density write?
With ``--data strokes.npz`` the strokes are real: ``train_strokes``, rows of (dx, dy, pen up after).
"""

import sys

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

import pyralloy as pa

# %%
# Made words: five letters out of three (a low loop, a tall one, a wave with a dot), ten steps each,
# with a slant and a size of the word's own.

rng = np.random.default_rng(0)
turn, half = np.linspace(0.0, 2.0 * np.pi, 11), np.linspace(0.0, np.pi, 9)
loop = np.diff([turn / 6.3 - 0.35 * np.sin(turn), 1.0 - np.cos(turn), np.zeros(11)]).T  # (10, 3)
wave = np.diff([0.3 * half, 0.8 * np.sin(half) ** 2, half > 3.0]).T  # up after its last step
wave = np.vstack([wave, [[-0.4, 1.4, 1.0], [0.4, -1.4, 0.0]]])  # to the dot, and back
letters = np.stack([loop * [1.0, 0.4, 1.0], loop * [1.0, 1.1, 1.0], wave])
words = letters[rng.integers(0, 3, (400, 5))].reshape(400, 50, 3)
words[..., 0] += rng.normal(0.1, 0.15, (400, 1)) * words[..., 1]
words *= rng.normal([1.0, 1.0, 1.0], [0.1, 0.1, 0.0], (400, 1, 3))
words += rng.normal(0.0, [0.02, 0.02, 0.0], (400, 50, 3))
if sys.argv[1:2] == ["--data"]:
    steps = np.load(sys.argv[2])["train_strokes"] / [100.0, -100.0, 1.0]
    words = steps[: len(steps) // 50 * 50].reshape(-1, 50, 3)
words = torch.from_numpy(words).float()

# %%
# A recurrent network is a trunk like any other: it reads the steps so far. The head gives the
# density of the next (dx, dy), one more output the probability that the pen is up after it.

torch.manual_seed(0)
trunk, pen = nn.GRU(3, 64, batch_first=True), nn.Linear(64, 1)
head = pa.MixtureHead(64, components=8, targets=2, covariance="full", spread=0.5)
optimiser = torch.optim.Adam([*trunk.parameters(), *pen.parameters(), *head.parameters()], 3e-3)
for _ in range(800):
    after = words[torch.randint(len(words), (32,))]  # (32, 50, 3)
    features, _ = trunk(nn.functional.pad(after, (0, 0, 1, -1)))  # (32, 50, 64)
    up = nn.functional.binary_cross_entropy_with_logits(pen(features)[..., 0], after[..., 2])
    loss = up - head(features).log_prob(after[..., :2]).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(f"{loss.item():.2f} nats a step of the pen")


@torch.no_grad()
def write(temperature):
    """Draw two words step by step; the cooler, the likelier the branches and the less noise."""
    state, steps = None, [torch.zeros(2, 1, 3)]
    for _ in range(50):
        features, state = trunk(steps[-1], state)  # (2, 1, 64)
        density = head(features).tempered(weight=temperature, scale=temperature**0.5)
        up = torch.bernoulli(torch.sigmoid(pen(features) / temperature))
        steps.append(torch.cat([density.sample(), up], -1))
    return torch.cat(steps[1:], 1)


figure, axes = plt.subplots(4, 2, figsize=(9, 6), layout="constrained")
drawings = torch.cat([words[:2], write(1.0), write(0.5), write(0.1)])
names = np.repeat(["given", "T = 1", "T = 0.5", "T = 0.1"], 2)
for ax, name, drawing in zip(axes.flat, names, drawings, strict=True):
    lifts = (drawing[:, 2] > 0.5).nonzero()[:, 0] + 1
    for stroke in drawing[:, :2].cumsum(0).tensor_split(lifts):
        ax.plot(*stroke.T, "-" if len(stroke) > 1 else ".", color="0", lw=1.5, ms=3)
    ax.set(aspect="equal", xticks=[], yticks=[], title=name)

# %%
# Nearly: at full temperature come loops of both kinds, waves and dots, with slips; the lower the
# temperature, the smoother the line and the rarer the dots.
