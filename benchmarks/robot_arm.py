"""How far is a two-link arm's hand from its target, at the two most probable ways to reach it?

An arm of two links reaches most points with its elbow on either side. From random poses alone
(joint angles, and where the hand is) the density of the elbow's angle is fitted given the target,
and that of the shoulder's given target and elbow. At fresh targets the arm is put into the
densities' two highest modes, and the hand's distance from the target is measured, in per cent of
the arm's length.

Asked: at the better of the two and at each of them, median at most 1 % and 99th percentile at most
5 % over 10,000 targets, from at most 20,000 poses.

    python benchmarks/robot_arm.py
    python benchmarks/robot_arm.py --poses 5000 --steps 2000
"""

import argparse
import math
import time

import torch

import pyralloy as pa

LINKS = (1.0, 0.8)  # metres


def hand(shoulder, elbow):
    """Give where the hand is, (..., 2), in metres."""
    first, second = LINKS
    x = first * shoulder.cos() + second * (shoulder + elbow).cos()
    y = first * shoulder.sin() + second * (shoulder + elbow).sin()
    return torch.stack([x, y], -1)


def poses(rows, seed):
    """Draw joint angles (N, 2) all around, in radians."""
    generator = torch.Generator().manual_seed(seed)
    return math.pi * (2.0 * torch.rand(rows, 2, generator=generator) - 1.0)


def beside(target, elbow):
    """Put targets and elbows into the inputs of the shoulder's density, (N, 4)."""
    return torch.cat([target, elbow.cos()[:, None], elbow.sin()[:, None]], 1)


def fit(x, y, components, width, steps):
    """Fit von Mises components to one angle."""
    trunk = pa.networks.MLP(x.shape[1], hidden=(width, width))
    head = pa.MixtureHead(trunk.out_features, components=components, family="von_mises")
    model = pa.MDN(trunk, head)
    return pa.fit(model, x, y, max_steps=steps, validation=0.05, batch_size=256, progress=False)


def reach(elbow_fit, shoulder_fit, targets):
    """Give the two likeliest elbows (N, 2) and the shoulders (N, 2) that go with them."""
    found = elbow_fit.density(targets).modes().locations[:, :2]
    found = found if found.shape[1] > 1 else found.expand(-1, 2)
    elbows = torch.where(found.isnan(), found[:, :1], found).float()  # one mode is both
    shoulders = [
        shoulder_fit.density(beside(targets, one)).modes().locations[:, 0].float()
        for one in elbows.unbind(1)
    ]
    return elbows, torch.stack(shoulders, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--poses", type=int, default=20_000)
    parser.add_argument("--targets", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--components", type=int, default=4)
    options = parser.parse_args()
    began = time.process_time()
    angles = poses(options.poses, seed=0)
    target = hand(*angles.T)
    elbow_fit = fit(target, angles[:, 1], options.components, options.width, options.steps)
    inputs = beside(target, angles[:, 1])
    shoulder_fit = fit(inputs, angles[:, 0], 2, options.width, options.steps)
    print(f"fitted to {options.poses:,} poses in {time.process_time() - began:.0f} CPU seconds")
    fresh = poses(options.targets, seed=1)
    targets = hand(*fresh.T)
    elbows, shoulders = reach(elbow_fit, shoulder_fit, targets)
    error = (hand(shoulders, elbows) - targets[:, None]).norm(dim=-1) / sum(LINKS)  # (N, 2)
    rows = {
        "better of the two": error.amin(1),
        "highest mode": error[:, 0],
        "second mode": error[:, 1],
    }
    print(f"hand's error, % of the arm's length, {options.targets:,} targets (asked: 1, 5)")
    for name, values in rows.items():
        median, far = (100 * values.quantile(level) for level in (0.5, 0.99))
        print(f"  {name:18s} median {median:5.2f}   99th percentile {far:5.2f}")
    both = (elbows[:, 0] * elbows[:, 1] < 0) | (fresh[:, 1].abs() < 0.2)
    print(f"elbow on either side: {both.float().mean():.1%} of targets (or nearly stretched)")


if __name__ == "__main__":
    main()
