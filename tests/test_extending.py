"""The family that docs/extending.rst adds is run as it is printed, and held to the laws."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from pyro import distributions as dist

import pyralloy as pa
from pyralloy.families import FAMILIES

F64 = torch.float64
PAGE = Path(__file__).parent.parent / "docs" / "extending.rst"


def printed():
    block = re.search(r"code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text(encoding="utf-8"))
    return textwrap.dedent(block.group(1))


@pytest.fixture
def gumbel():
    known = dict(FAMILIES)
    exec(compile(printed(), str(PAGE), "exec"), {})  # noqa: S102
    yield FAMILIES["gumbel"]
    FAMILIES.clear()
    FAMILIES.update(known)


def mixture(family, batch=(3,)):
    source = torch.Generator().manual_seed(0)
    raw = torch.randn(*batch, 4, family.outputs, generator=source, dtype=F64)
    logits = torch.randn(*batch, 4, generator=source, dtype=F64)
    return pa.Mixture(dist.Categorical(logits=logits), family.from_raw(raw.unbind(-1), 2.0))


def test_it_takes_at_most_25_lines():
    lines = printed().split("class ", 1)[1].strip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 25


def test_it_inherits_every_answer(gumbel):
    m = mixture(gumbel)
    parts = scipy.stats.gumbel_r(m.components.loc.numpy(), m.components.scale.numpy())
    y = m.sample((50,), generator=torch.Generator().manual_seed(1))
    exact = (m.weights.numpy() * parts.cdf(y.numpy()[..., None])).sum(-1)
    assert np.allclose(m.cdf(y), exact, rtol=1e-12)
    levels = torch.tensor([1e-6, 0.2, 0.5, 0.9, 1 - 1e-6], dtype=F64)
    assert torch.allclose(m.cdf(m.quantile(levels)), levels[:, None].expand(5, 3), rtol=1e-10)
    cdf = m.cdf(m.highest_density_region(0.9).intervals.movedim((-2, -1), (0, 1)))
    assert torch.allclose(torch.nan_to_num(cdf[:, 1] - cdf[:, 0]).sum(0), m.mean * 0 + 0.9)


def test_its_crps_is_the_integral(gumbel):
    m = mixture(gumbel)
    y = m.mean + 0.3
    t = torch.linspace(-80, 200, 400_001, dtype=F64)[:, None]
    integrand = (m.cdf(t) - (t >= y).to(F64)).square()
    assert torch.allclose(m.crps(y), torch.trapezoid(integrand, t, dim=0), atol=2e-3)


def test_its_raw_outputs_are_inverted_and_it_works_in_a_head(gumbel):
    loc, scale = torch.tensor([-1.0, 3.0], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)
    made = gumbel.from_raw(gumbel.to_raw(loc, scale, 1.0).unbind(-1), 1.0)
    assert torch.allclose(made.mean, loc) and torch.allclose(made.stddev, scale)
    head = pa.MixtureHead(6, components=3, family="gumbel")
    density = head(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
    density.log_prob(torch.zeros(5)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)
