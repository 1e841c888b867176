"""What every test shares: reproducible examples and no deadline on a slow core."""

import pytest
from hypothesis import settings

from pyralloy.inference import program

settings.register_profile("pyralloy", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("pyralloy")


@pytest.fixture
def eager_costs_nothing(monkeypatch):
    """Capture at the second call, as if the process had captured before."""
    monkeypatch.setattr(program, "_PROCESS", program._Process(captured=True))
    monkeypatch.setattr(program, "CAPTURE", 0.0)
