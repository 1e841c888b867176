"""How much memory does a fit need beside its data, and what does a step cost among many rows?

    python benchmarks/memory.py [--rows 10000000] [--features 10] [--repeats 9]

Memory: fresh processes make the data, note what they hold, fit, and report the most they ever held
beyond that, over the bytes of the data. A step: CPU time of the same model on the same batch,
scaled to 1e3 and to 1e7 rows, interleaved; the ratio is the median of the pairs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

FIT = """
import json, resource, sys, warnings
import numpy as np
import torch
import pyralloy as pa

rows, features, kind, validation = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]

def model():
    return pa.MDN(pa.networks.MLP(features, (32,)), pa.MixtureHead(32, 5))

def fit(x, y, **options):
    held = None if validation == "none" else float(validation)
    options = {"max_steps": 300, "batch_size": 256, "progress": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pa.fit(model(), x, y, validation=held, **options)

def now():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def most():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

generator = torch.Generator().manual_seed(0)
wide = torch.float64 if kind == "float64" else torch.float32
x, y = torch.empty(rows, features, dtype=wide), torch.empty(rows, dtype=wide)
for one, two in zip(x.split(65536), y.split(65536)):  # in parts: making the data is not measured
    one.normal_(generator=generator)
    two.copy_(one[:, 0] + 0.1 * torch.randn(len(one), generator=generator))
more = {"weights": torch.rand(rows, generator=generator) + 0.1} if kind == "weights" else {}
if kind == "array":
    x, y = x.numpy(), y.numpy()
small = torch.randn(2000, features)
fit(small, small[:, 0], max_steps=3000)  # what torch and Pyro load and allocate once
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before, data = now(), x.nbytes + y.nbytes + sum(w.nbytes for w in more.values())
fit(x, y, **more)
print(json.dumps([data, most() - before]))
"""


def memory(rows, features, kind, validation):
    """Give the most that a fit held beyond the data, over the data's bytes."""
    arguments = [str(rows), str(features), kind, validation]
    done = subprocess.run(
        [sys.executable, "-c", FIT, *arguments], check=True, capture_output=True, text=True
    )
    data, most = json.loads(done.stdout)
    return most / data


def step_ratio(repeats, steps=200):
    """Give the CPU time of a step at N = 1e7 over that at 1e3, as the median and range of pairs."""
    import torch

    import pyralloy as pa
    from pyralloy.inference.engine import Engine
    from pyralloy.inference.objective import FlatParameters, Objective, empty_guide, pyro_runtime

    batch = torch.randn(256, 10), torch.randn(256)

    def seconds(size):
        model = pa.MDN(pa.networks.MLP(10, (32,)), pa.MixtureHead(32, 5))
        with pyro_runtime(), torch.enable_grad():
            engine = Engine(Objective(model, empty_guide, size), FlatParameters(model))
            for _ in range(20):
                engine.step(batch, 1e-3)
            start = time.process_time()
            for _ in range(steps):
                engine.step(batch, 1e-3)
            return time.process_time() - start

    seconds(1000)
    pairs = []
    for number in range(repeats):  # the order alternates: a machine drifts
        sizes = (1000, 10_000_000) if number % 2 else (10_000_000, 1000)
        found = {size: seconds(size) for size in sizes}
        pairs.append(found[10_000_000] / found[1000])
    return statistics.median(pairs), min(pairs), max(pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    good = True
    kinds = ("tensor", "none"), ("tensor", "0.1"), ("array", "0.1"), ("weights", "0.1")
    for kind, validation in (*kinds, ("float64", "0.1")):
        ratio = memory(options.rows, options.features, kind, validation)
        good &= ratio <= 1.3
        print(
            f"{options.rows:,} x {options.features}, {kind}, validation={validation}: "
            f"{ratio:.2f} x the data, beside the data; asked <= 1.30"
        )
    middle, low, high = step_ratio(options.repeats)
    good &= middle <= 1.05
    print(
        f"a step at N = 1e7 over one at 1e3: {middle:.3f} ({low:.3f} to {high:.3f}); asked <= 1.05"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
