r"""
Where does the pen go next?
===========================

Whoever has written half a letter may go on in several ways: another loop, a stroke up, a dot. So
the next step of the pen has a density of several peaks, given all steps before. A recurrent network
is a trunk like any other. Drawn from step by step, does the density write?

``python examples/plot_handwriting.py --data strokes.npz`` takes real strokes: rows (dx, dy, pen up
after this step) in ``train_strokes`` and the number of rows of each drawing in ``train_lengths``.
"""

import argparse
import math

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

import pyralloy as pa

parser = argparse.ArgumentParser()
parser.add_argument("--data")
options = parser.parse_args()
rng = np.random.default_rng(0)

# %%
# Made words: five letters out of three, each word with a slant and a size of its own.


def letter(kind):
    """Give ten steps: a low loop, a tall loop, or a wave with a dot."""
    s = np.linspace(0.0, 1.0, 9 if kind == 2 else 11)
    loop = np.stack([s - 0.35 * np.sin(2 * math.pi * s), 1.0 - np.cos(2 * math.pi * s)], 1)
    wave = np.stack([0.9 * s, 0.8 * np.sin(math.pi * s) ** 2], 1)
    places = (loop * [1.0, 0.4], loop * [1.0, 1.1], np.vstack([wave, [0.5, 1.4], [0.95, 0.0]]))
    steps = np.column_stack([np.diff(places[kind], axis=0), np.zeros(10)])
    steps[-3:-1, 2] = kind == 2  # the pen is up on its way to the dot, and on its way back
    return steps


def word():
    steps = np.vstack([letter(kind) for kind in rng.integers(0, 3, 5)])
    steps[:, 0] += rng.normal(0.1, 0.15) * steps[:, 1]  # slant
    steps[:, :2] = rng.normal(1.0, 0.1) * steps[:, :2] + rng.normal(0.0, 0.02, (50, 2))
    return steps


if options.data:
    with np.load(options.data) as held:
        cuts = np.cumsum(held["train_lengths"])[:2000]
        drawings = np.split(held["train_strokes"][: cuts[-1]] / 100.0, cuts[:-1])
        drawings = [np.column_stack([d[:, :2], 100.0 * d[:, 2]]) for d in drawings if len(d) > 1]
else:
    drawings = [word() for _ in range(400)]
strokes = [torch.tensor(d, dtype=torch.float32) for d in drawings]

# %%
# The trunk reads the steps so far; the head gives the density of the next (dx, dy), correlated
# within a component, and one more output the probability that the pen is up after it.

with torch.random.fork_rng():
    torch.manual_seed(0)
    trunk = nn.GRU(3, 64, batch_first=True)
    head = pa.MixtureHead(64, components=8, targets=2, covariance="full", spread=0.5)
    pen = nn.Linear(64, 1)
    parameters = [p for part in (trunk, head, pen) for p in part.parameters()]
    optimiser = torch.optim.Adam(parameters)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, 800)
    for step in range(800):
        chosen = [strokes[i] for i in torch.randint(len(strokes), (32,)).tolist()]
        padded = nn.utils.rnn.pad_sequence(chosen, batch_first=True)  # (32, T, 3)
        before = torch.cat([torch.zeros(32, 1, 3), padded[:, :-1]], 1)
        there = torch.arange(padded.shape[1]) < torch.tensor([len(c) for c in chosen])[:, None]
        features, after = trunk(before)[0][there], padded[there]  # (R, 64), (R, 3)
        up = nn.functional.binary_cross_entropy_with_logits(pen(features)[:, 0], after[:, 2])
        loss = up - head(features).log_prob(after[:, :2]).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 199:
            print(f"step {step + 1}: {loss.item():.2f} nats a step of the pen")

# %%
# Drawn from step by step. Below one, a temperature takes the likelier branches and less noise.


@torch.no_grad()
def write(temperature, length, seed):
    g, state, last, steps = torch.Generator().manual_seed(seed), None, torch.zeros(1, 1, 3), []
    for _ in range(length):
        features, state = trunk(last, state)
        density = head(features[0]).tempered(weight=temperature, scale=temperature**0.5)
        up = torch.rand(1, generator=g) < torch.sigmoid(pen(features[0, 0]) / temperature)
        last = torch.cat([density.sample(generator=g)[0], up.float()])[None, None]
        steps.append(last[0, 0])
    return torch.stack(steps)


def draw(ax, steps):
    places = steps[:, :2].cumsum(0)
    start = 0
    for end in [*(steps[:, 2] > 0.5).nonzero()[:, 0].tolist(), len(steps) - 1]:
        ax.plot(*places[start : end + 1].T, color="0", lw=1.5, solid_capstyle="round")
        if end > start or start:
            ax.plot(*places[end], ".", color="0", ms=2)
        start = end + 1
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.yaxis.set_inverted(bool(options.data))  # a screen counts downward


rows = {"given": None, "T = 1": 1.0, "T = 0.5": 0.5, "T = 0.1": 0.1}
figure, axes = plt.subplots(4, 2, figsize=(9, 6), layout="constrained")
for line, (name, temperature) in zip(axes, rows.items(), strict=True):
    for seed, ax in enumerate(line):
        draw(ax, strokes[seed] if temperature is None else write(temperature, 50, seed))
    line[0].set_ylabel(name)

# %%
# Nearly: at full temperature come loops of both kinds, waves and dots, with slips; the lower the
# temperature, the neater the line and the fewer kinds of letter, down to low loops alone.
