"""What every test shares: reproducible examples and no deadline on a slow core."""

from hypothesis import settings

settings.register_profile("pyralloy", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("pyralloy")
