"""How far is each family of components from the laws it should obey?

    python benchmarks/laws.py [--draws 4] [--rst docs/laws.rst]

Random mixtures of every family, of 1 to 20 components, batch shapes (), (3,) and (2, 3), and
spreads over eight decades (three for counts; angles have none), with fixed seeds. A cell is the
largest error seen in float64, or, behind a bar, in float32, whose answers are compared with those
that float64 gives for the same parameters. Exit status 1 where an error is above its bound.
"""

import argparse
import math
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from pyro import distributions as dist

import pyralloy as pa
from pyralloy.families import FAMILIES

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import random_components as rc

F32, F64 = torch.float32, torch.float64
BATCHES = [(), (3,), (2, 3)]
QUANTILE, QUANTILE32 = 1e-9, 2e-6
LEVELS = torch.tensor([1e-6, 1e-3, 0.05, 0.3, 0.5, 0.8, 0.99, 1 - 1e-6], dtype=F64)


def components(name, seed, batch, dtype=F64):
    return rc.random_component(name, seed, batch, dtype)


def mixture(name, seed, batch, dtype=F64, count=None):
    """Give a mixture whose components share what bounds them."""
    count = count or 1 + seed % 20
    source = torch.Generator().manual_seed(seed + 7)
    logits = torch.randn(*batch, count, generator=source, dtype=F64).to(dtype)
    made = components(name, seed, (*batch, count), dtype)
    return pa.Mixture(dist.Categorical(logits=logits), made, validate_args=False)


def typical(m, seed):
    return m.sample((5,), generator=torch.Generator().manual_seed(seed))


def widths(name, m):
    return rc.size(name, m.to(F64).components).detach().amax(-1)


def worst(error):
    return float(error.nan_to_num(math.inf).max())


# -- the laws: (name of the family, seed, batch, dtype) to the largest error, or None for none -----


def integral(name, seed, batch, dtype):
    """Integrate the density between quantiles, in a coordinate in which it is smooth."""
    if dtype == F32 or name in rc.COUNTS:
        return None
    family, component = FAMILIES[name], components(name, seed, batch)
    if name in rc.BOUNDED:  # on the unit interval, where distances to the ends keep their digits
        width = component.high - component.low
        component = family.affine(component, -component.low / width, 1 / width)
        values = [getattr(component, p) for p in family.parameters[:2]]
        ends = [torch.zeros(batch, dtype=F64), torch.ones(batch, dtype=F64)]
        component = family.build([*values, *ends])
    forth, back, slope = rc.coordinates(name, component)
    edges = rc.edges_of(name, component)
    if name in rc.BOUNDED:
        edges = edges[edges.reshape(len(edges), -1).amax(1) < 1 - 1e-9]
    w = forth(edges)
    half, middle = w.diff(dim=0) / 2, (w[1:] + w[:-1]) / 2
    mass = torch.zeros_like(half)
    for node, weight in zip(*rc.NODES, strict=True):
        at = middle + half * node
        mass = mass + weight * half * component.log_prob(back(at)).exp() * slope(at)
    cdf = family.cdf(component, edges)
    whole = (mass.sum(0) + cdf[0] + 1 - cdf[-1] - 1).abs()
    return max(worst((mass.cumsum(0) - cdf[1:] + cdf[0]).abs()), worst(whole))


def inverse(name, seed, batch, dtype):
    """Compare u with what F is, in float64, at the quantile.

    One float of y may move F by more than the bound: the error then is in units of that many
    bounds.
    """
    m = mixture(name, seed, batch, dtype)
    levels = LEVELS.to(dtype)
    q, wide = m.quantile(levels), m.to(F64)
    u = levels.to(F64).reshape(-1, *(1,) * len(batch))
    there = wide.cdf(q.to(F64))
    if name in rc.COUNTS:  # the least integer that reaches u
        before = wide.cdf(q.to(F64) - 1)
        return worst(((u - there).clamp_min(0) + (before - u).clamp_min(0)) / u)
    unit, bound = (u, QUANTILE) if dtype == F64 else (1.0, QUANTILE32)
    beside = [q.nextafter(torch.full_like(q, end)).to(F64) for end in (-math.inf, math.inf)]
    moved = torch.stack([(wide.cdf(y) - there).abs() for y in beside]).amax(0) / unit
    return worst((there - u).abs() / unit / (moved / bound).clamp_min(1.0))


def density(name, seed, batch, dtype):
    """Compare log densities with SciPy's, over one plus their size."""
    family, component = FAMILIES[name], components(name, seed, batch, dtype)
    y = torch.stack([family.draw(component, torch.Generator().manual_seed(i)) for i in range(5)])
    found = family.log_prob(component, y).to(F64)
    wide, y = rc.cast(component, F64), y.to(F64)
    if dtype == F64:
        method = "logpmf" if name in rc.COUNTS else "logpdf"
        exact = torch.as_tensor(getattr(rc.frozen(name, wide), method)(y.numpy()))
    else:
        exact = wide.log_prob(y)
    keep = exact.isfinite() & found.isfinite()  # a draw may round to an end, at a pole
    return worst(((found - exact).abs() / (1 + exact.abs()))[keep]) if bool(keep.any()) else None


def cumulative(name, seed, batch, dtype):
    """Compare cdfs with SciPy's (its von Mises errs by 5e-6: that one is integrated above)."""
    if name in rc.CIRCULAR and dtype == F64:
        return None
    m = mixture(name, seed, batch, dtype, count=1)
    y = typical(m, seed)
    found, wide = m.cdf(y).to(F64), m.to(F64)
    if dtype == F32:
        return worst((found - wide.cdf(y.to(F64))).abs())
    one = rc.map_parameters(wide.components, lambda p: p[..., 0], 0)
    return worst((found - torch.as_tensor(rc.frozen(name, one).cdf(y.numpy()))).abs())


def crps(name, seed, batch, dtype):
    """Compare the CRPS with the integral of the squared difference of cdfs, in widths."""
    if name in rc.CIRCULAR and dtype == F64:
        return None  # against a Fourier series in tests/test_circular.py
    m = mixture(name, seed, batch, dtype)
    y = typical(m, seed)[0]
    found, wide, y = m.crps(y).to(F64), m.to(F64), y.to(F64)
    if dtype == F32:
        return worst((found - wide.crps(y)).abs() / widths(name, m))
    if name in rc.COUNTS:
        last = int(wide.quantile(1 - 1e-12).max()) + 2
        k = torch.arange(last, dtype=F64).reshape(-1, *(1,) * len(batch))
        exact = (wide.cdf(k) - (k >= y).to(F64)).square().sum(0)
        return worst((found - exact).abs() / widths(name, m))
    levels = rc.LEVELS.reshape(-1, *(1,) * (len(batch) + 1))
    edges = FAMILIES[name].icdf(wide.components, levels.expand(-1, *wide.components.batch_shape))
    edges = torch.cat([edges.movedim(-1, 0).flatten(0, 1), y[None]]).sort(0).values
    half, middle = edges.diff(dim=0) / 2, (edges[1:] + edges[:-1]) / 2
    exact = torch.zeros_like(y)
    for node, weight in zip(*rc.NODES, strict=True):
        t = middle + half * node
        exact = exact + (weight * half * (wide.cdf(t) - (t >= y).to(F64)).square()).sum(0)
    return worst((found - exact).abs() / widths(name, m))


def entropies(name, seed, batch, dtype):
    """Compare entropies of one component with SciPy's; of counts with the sum of its masses."""
    if dtype == F32:
        return None
    one = components(name, seed, batch)
    single = rc.map_parameters(one, lambda p: p[..., None], 0)
    m = pa.Mixture(dist.Categorical(torch.ones(1, dtype=F64)), single, validate_args=False)
    other = rc.frozen(name, one)
    if name in rc.COUNTS:  # SciPy's own sum ends too early where counts are large
        k = np.arange(int(other.isf(1e-15).max()) + 2).reshape(-1, *(1,) * len(batch))
        log_p = other.logpmf(k)
        exact = -(np.exp(log_p) * np.where(log_p > -700.0, log_p, 0.0)).sum(0)
    else:
        exact = other.entropy()
    return worst((m.entropy() - torch.as_tensor(exact)).abs())


def affine(name, seed, batch, dtype):
    """Shift and scale, and back: what the log density has lost, over one plus its size."""
    if name not in rc.SHIFTED:
        return None
    m = mixture(name, seed, batch, dtype)
    y, unit = typical(m, seed), widths(name, m).to(dtype)
    there = m.affine(3 * unit, -7.0)
    back = there.affine(3 / 7 * unit, -1 / 7)
    exact = m.log_prob(y)
    return worst((back.log_prob(y) - exact).abs() / (1 + exact.abs()))


def pool(name, seed, batch, dtype):
    """Compare the pool of three with the mean of their densities, relative."""
    many = [mixture(name, seed, batch, dtype, count=4)]
    many += [pa.Mixture(dist.Categorical(logits=many[0].logits.flip(-1) * c), many[0].components,
                        validate_args=False) for c in (0.5, 2.0)]  # fmt: skip
    y = typical(many[0], seed)
    exact = torch.stack([m.log_prob(y) for m in many]).logsumexp(0) - math.log(3)
    return worst((pa.Mixture.pool(many).log_prob(y) - exact).abs() / (1 + exact.abs()))


def region(name, seed, batch, dtype):
    """Compare the mass of the 90 % region with 0.9; of counts, what it lacks."""
    if dtype == F32:
        return None
    m = mixture(name, seed, batch)
    ends = m.highest_density_region(0.9).intervals
    if name in rc.CIRCULAR:
        turns = (ends / (2 * math.pi) + 0.5).floor()
        cdf = m.cdf((ends - 2 * math.pi * turns).movedim((-2, -1), (0, 1))) + turns.movedim(
            (-2, -1), (0, 1)
        )
    else:
        below = torch.tensor([float(name in rc.COUNTS), 0.0], dtype=F64)
        cdf = m.cdf((ends - below).movedim((-2, -1), (0, 1)))
    held = torch.nan_to_num(cdf[:, 1] - cdf[:, 0]).sum(0)
    return worst((0.9 - held).clamp_min(0) if name in rc.COUNTS else (held - 0.9).abs())


def gradients(name, seed, batch, dtype):
    """Compare gradients of log density, cdf and CRPS with differences, over the largest of them."""
    if dtype == F32 or batch:
        return None
    family = FAMILIES[name]
    raw = 0.5 * torch.randn(3, family.outputs, generator=torch.Generator().manual_seed(seed))
    raw, logits = raw.to(F64), torch.tensor([0.1, -0.3, 0.2], dtype=F64)
    start = pa.Mixture(dist.Categorical(logits=logits), family.from_raw(raw.unbind(-1), 1.0))
    y = typical(start, seed)[0].to(F64)
    largest = 0.0
    for question in ("log_prob", "cdf", "crps"):

        def answer(y, logits, raw, question=question):
            made = family.from_raw(raw.unbind(-1), 1.0)
            return getattr(pa.Mixture(dist.Categorical(logits=logits), made), question)(y)

        values = [y, logits, raw]
        if name in rc.COUNTS:  # y has no neighbours
            held, values = values[0], values[1:]
            inputs = [v.clone().requires_grad_() for v in values]
            ask = lambda *v, held=held: answer(held, *v)  # noqa: E731
        else:
            inputs, ask = [v.clone().requires_grad_() for v in values], answer
        if not ask(*inputs).requires_grad:
            continue
        found = torch.autograd.grad(ask(*inputs), inputs, allow_unused=True)
        found = torch.cat([torch.zeros(v.numel(), dtype=F64) if g is None else g.flatten()
                           for v, g in zip(inputs, found, strict=True)])  # fmt: skip
        flat, exact = torch.cat([v.flatten() for v in values]), []
        for i in range(len(flat)):
            # Richardson's combination of two central differences.
            slopes = []
            for h in (1e-4, 5e-5):
                ends = []
                for sign in (1, -1):
                    moved = flat.clone()
                    moved[i] += sign * h
                    parts = moved.split([v.numel() for v in values])
                    ends.append(
                        ask(*(p.reshape(v.shape) for p, v in zip(parts, values, strict=True)))
                    )
                slopes.append(float((ends[0] - ends[1]) / (2 * h)))
            exact.append((4 * slopes[1] - slopes[0]) / 3)
        exact = torch.tensor(exact, dtype=F64)
        largest = max(largest, worst((found - exact).abs() / exact.abs().max().clamp_min(1e-3)))
    return largest


@dataclass(frozen=True)
class Law:
    """A column of the table: what is measured, in what unit, and how large it may be."""

    title: str
    unit: str
    measure: Callable
    bound: float
    bound32: float = math.inf


LAWS = [
    Law("integral", "probability", integral, 2e-11),
    Law("quantile", "of u; in float32 probability", inverse, QUANTILE, QUANTILE32),
    Law("log density", "of 1 + its size", density, 1e-9, 1e-3),
    Law("cdf", "probability", cumulative, 1e-9, 1e-4),
    Law("CRPS", "widest component's width", crps, 1e-6, 1e-4),
    Law("entropy", "nats", entropies, 1e-8),
    Law("affine", "of 1 + log density", affine, 1e-9, 1e-2),
    Law("pool", "of 1 + log density", pool, 1e-12, 1e-5),
    Law("region", "probability", region, 2e-8),
    Law("gradients", "of the largest", gradients, 1e-6),
]
#: Families whose cdfs are continued fractions, of which a quarter of the mixtures are taken.
SLOW = ("student_t", "beta", "negative_binomial")
#: Bounds of their own, each for the reason that stands in `write_rst`.
LOOSER = {
    ("gamma", "integral", F64): 1e-9,
}


def measure(draws):
    """Give the largest errors by family, law and dtype, and what is out of bounds."""
    table, broken = {}, []
    for name in FAMILIES:
        many = max(1, draws // 4) if name in SLOW else draws
        for law in LAWS:
            for dtype, bound in ((F64, law.bound), (F32, law.bound32)):
                errors = []
                for draw in range(1 if law.measure is gradients else many):
                    for i, batch in enumerate(BATCHES):
                        errors.append(law.measure(name, 100 * draw + 7 * i, batch, dtype))
                errors = [e for e in errors if e is not None]
                largest = max(errors) if errors else None
                table[name, law.title, dtype] = largest
                limit = LOOSER.get((name, law.title, dtype), bound)
                if largest is not None and not largest <= limit:
                    broken.append(f"{name}, {law.title}, {dtype}: {largest:.1e} > {limit:.0e}")
    return table, broken


def cell(table, name, law):
    wide, narrow = (table[name, law.title, dtype] for dtype in (F64, F32))
    first = "—" if wide is None else f"{wide:.0e}"
    return first if narrow is None else f"{first} | {narrow:.0e}"


def write_rst(path, table, draws):
    versions = f"torch {torch.__version__.split('+')[0]}, scipy {scipy.__version__}"
    about = f"{versions}, numpy {np.__version__}, Python {platform.python_version()}"
    lines = [
        "The laws, measured", "==================", "",
        "Every family of components is held to the same laws. This table is made by",
        f"``python benchmarks/laws.py --rst docs/laws.rst`` ({about}):",
        f"{3 * draws} random mixtures a cell (a quarter of them where cdfs are continued",
        "fractions; one for gradients), of 1 to 20 components, in batches of shape (), (3,) and",
        "(2, 3), with spreads over eight decades. A cell is the largest error seen in float64 and,",
        "behind a bar, in float32, whose answers are compared with those of float64 for the same",
        "parameters. Where one float of y moves the cdf by more than the bound on a quantile's",
        f"error, {QUANTILE:.0e} of u and in float32 {QUANTILE32:.0e}, that is the bound instead.",
        "",
        ".. list-table::", "   :header-rows: 1", "",
        *[f"   {'* -' if i == 0 else '  -'} {title}"
          for i, title in enumerate(["family", *(law.title for law in LAWS)])],
    ]  # fmt: skip
    for name in FAMILIES:
        lines.append(f"   * - {name}")
        lines += [f"     - {cell(table, name, law)}" for law in LAWS]
    lines += ["", "What is measured, and in which unit:", ""]
    for law in LAWS:
        what = law.measure.__doc__.split("\n\n")[0].strip().rstrip(".")
        lines += [f"*{law.title}*", f"   {what}. Unit: {law.unit}.", ""]
    lines += [
        "torch's incomplete gamma function errs by up to 4e-10 where its first argument is above",
        "20, and so do cdfs of gamma and Poisson components. Near a pole at the end of a beta's",
        "interval, and in a component that is narrow beside its distance from zero, y resolves",
        "probabilities no better than its floats lie apart: no quantile could.",
        "SciPy's von Mises cdf errs by 5e-6; the one here is compared with mpmath in",
        "``tests/test_circular.py``, as its CRPS is with a Fourier series. Vectors have laws of",
        "their own, in ``tests/test_vectors.py``.", "",
    ]  # fmt: skip
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--rst", help="write the table to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # SciPy's, of overflow in tails
    table, broken = measure(options.draws)
    print(f"{'':18}" + "".join(f"{law.title:>15}" for law in LAWS))
    for name in FAMILIES:
        print(f"{name:18}" + "".join(f"{cell(table, name, law):>15}" for law in LAWS))
    if options.rst:
        write_rst(options.rst, table, options.draws)
    for line in broken:
        print(f"above its bound: {line}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
