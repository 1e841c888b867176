"""What does `import pyralloy` cost beyond `import torch, pyro`, which it stands on?

    python benchmarks/imports.py [--repeats 9]

CPU seconds of fresh processes, interleaved; the ratio is that of the pairs, its median and range.
"""

import argparse
import resource
import statistics
import subprocess
import sys


def seconds(code):
    """Give the CPU seconds of a fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    seconds("import pyralloy")  # byte code and disk cache
    pairs = [
        (seconds("import torch, pyro"), seconds("import torch, pyro, pyralloy"))
        for _ in range(repeats)
    ]
    ratios = [ours / theirs for theirs, ours in pairs]
    for name, column in zip(("torch, pyro", "and pyralloy"), zip(*pairs, strict=True), strict=True):
        print(f"{name:14}{statistics.median(column):7.3f} CPU s")
    middle = statistics.median(ratios)
    print(f"{'ratio':14}{middle:7.3f}  ({min(ratios):.3f} to {max(ratios):.3f}); asked <= 1.10")
    return 0 if middle <= 1.10 else 1


if __name__ == "__main__":
    sys.exit(main())
