"""What does a mixture gain over one component, and memory over none, on the strokes of a pen?

    python benchmarks/handwriting.py [--steps 1500] [--data FILE]

30,000 drawings of letters of many scripts (Omniglot), 933,430 steps (dx, dy, pen). Three models of
the next step, trained alike on the training drawings and judged on the 1,000 test drawings:

- recurrent, K components: a GRU reads the steps so far, its head gives a mixture of Normals with
  full covariance, and a Bernoulli for the pen;
- recurrent, one component: the same with K = 1;
- unconditional mixture: K components and a pen that know nothing of the steps before.

Steps are whole numbers of pixels, so a uniform draw of one pixel's width is added to each, without
which densities would have no upper bound. NLL is in nats a step, dx and dy in pixels; smaller is
better, and the standard error is over drawings. Data: $PYRALLOY_DATA/strokes/omniglot.npz, by
default ../shared/data beside the repository.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import pyralloy as pa

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
UNIT = 50.0  # pixels: about the deviation of dx and dy


def read(path, part):
    """Read drawings, a tensor (T, 3) each, dx and dy spread over their pixel and in UNIT."""
    with np.load(path) as held:
        strokes, lengths = held[f"{part}_strokes"].astype(np.float32), held[f"{part}_lengths"]
    rng = np.random.default_rng({"train": 0, "valid": 1, "test": 2}[part])
    strokes[:, :2] = (strokes[:, :2] + rng.uniform(-0.5, 0.5, (len(strokes), 2))) / UNIT
    return [torch.from_numpy(d) for d in np.split(strokes, np.cumsum(lengths)[:-1])]


class Writer(nn.Module):
    """The density of the next step; ``remembers`` says whether of those before."""

    def __init__(self, components, *, remembers):
        super().__init__()
        self.trunk = nn.GRU(3, 128, batch_first=True) if remembers else None
        self.head = pa.MixtureHead(128, components, targets=2, covariance="full")
        self.pen = nn.Linear(128, 1)

    def forward(self, drawings):
        """Give the NLL of each step, (R,), and the drawing that it is of, (R,)."""
        padded = nn.utils.rnn.pad_sequence(drawings, batch_first=True)  # (B, T, 3)
        lengths = torch.tensor([len(d) for d in drawings])
        there = torch.arange(padded.shape[1]) < lengths[:, None]
        before = torch.cat([torch.zeros(len(drawings), 1, 3), padded[:, :-1]], 1)
        after = padded[there]  # (R, 3)
        features = self.trunk(before)[0][there] if self.trunk else torch.ones(len(after), 128)
        up = nn.functional.binary_cross_entropy_with_logits(
            self.pen(features)[:, 0], after[:, 2], reduction="none"
        )
        nll = up - self.head(features).log_prob(after[:, :2]) + 2.0 * np.log(UNIT)
        return nll, torch.arange(len(drawings)).repeat_interleave(lengths)


def train(writer, drawings, steps):
    optimiser = torch.optim.Adam(writer.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(drawings), (64,), generator=g).tolist()
        loss = writer([drawings[i] for i in chosen])[0].mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(writer.parameters(), 1.0)
        optimiser.step()
        schedule.step()


@torch.no_grad()
def judge(writer, drawings):
    """Give the mean NLL a step and its standard error."""
    sums, counts = [], []
    for start in range(0, len(drawings), 100):
        part = drawings[start : start + 100]
        nll, which = writer(part)
        sums.append(torch.zeros(len(part)).index_add(0, which, nll))
        counts.append(torch.tensor([len(d) for d in part]))
    total, count = torch.cat(sums), torch.cat(counts)
    mean = total.sum() / count.sum()
    error = (total - mean * count).square().sum().sqrt() / count.sum()
    return float(mean), float(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    folder = Path(os.environ.get("PYRALLOY_DATA", DATA))
    parser.add_argument("--data", type=Path, default=folder / "strokes" / "omniglot.npz")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--components", type=int, default=10)
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"skipped: there is no {options.data}; name the folder by PYRALLOY_DATA.")
    drawings, test = read(options.data, "train"), read(options.data, "test")
    many = options.components
    writers = {
        f"recurrent, {many} components": (many, True),
        "recurrent, one component": (1, True),
        f"unconditional, {many} components": (many, False),
    }
    print(f"{sum(map(len, test)):,} steps of {len(test):,} test drawings; nats a step")
    for name, (components, remembers) in writers.items():
        began = time.process_time()
        torch.manual_seed(0)
        writer = Writer(components, remembers=remembers)
        train(writer, drawings, options.steps)
        mean, error = judge(writer, test)
        print(f"  {name:30s} {mean:6.3f} ± {error:.3f}   {time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
