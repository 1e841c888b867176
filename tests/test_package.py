"""The package as a whole: what importing it brings, and what it promises by name."""

import subprocess
import sys

import pytest

import pyralloy as pa

HEAVY = ["matplotlib", "arviz_base", "arviz_stats", "arviz_plots", "sklearn", "pandas", "scipy"]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_it_imports_nothing_heavy_that_pyro_does_not():
    code = f"import sys, torch, pyro; before = set(sys.modules); import pyralloy; \
new = {{m for m in set(sys.modules) - before if not m.startswith('pyralloy')}}; \
print([m for m in {HEAVY} if m in new], len(new))"
    heavy, modules = run(code).stdout.rsplit(" ", 1)
    assert heavy == "[]"
    assert int(modules) < 20


def test_every_public_name_is_there_and_there_are_few():
    assert len(pa.__all__) <= 12
    for name in pa.__all__:
        assert getattr(pa, name) is not None
        assert name in dir(pa)
    with pytest.raises(AttributeError, match="nothing"):
        _ = pa.nothing
