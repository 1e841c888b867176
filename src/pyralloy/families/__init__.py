"""Component families: from a network's raw outputs to a Pyro distribution, and its closed forms."""

from pyralloy.families.bounded import BetaFamily, TruncatedNormalFamily
from pyralloy.families.contract import SCALE_CEILING, SCALE_FLOOR, Family, Support
from pyralloy.families.counts import NegativeBinomialFamily, PoissonFamily
from pyralloy.families.location_scale import (
    LaplaceFamily,
    LogisticFamily,
    NormalFamily,
    StudentTFamily,
)
from pyralloy.families.positive import GammaFamily, LogNormalFamily, WeibullFamily
from pyralloy.families.registry import FAMILIES, base_of, build, family_of, map_parameters
from pyralloy.families.tails import log_mass
from pyralloy.families.truncated import (
    Truncated,
    TruncatedCountFamily,
    TruncatedFamily,
    truncated,
)

__all__ = [
    "FAMILIES",
    "SCALE_CEILING",
    "SCALE_FLOOR",
    "BetaFamily",
    "Family",
    "GammaFamily",
    "LaplaceFamily",
    "LogNormalFamily",
    "LogisticFamily",
    "NegativeBinomialFamily",
    "NormalFamily",
    "PoissonFamily",
    "StudentTFamily",
    "Support",
    "Truncated",
    "TruncatedCountFamily",
    "TruncatedFamily",
    "TruncatedNormalFamily",
    "WeibullFamily",
    "base_of",
    "build",
    "family_of",
    "log_mass",
    "map_parameters",
    "truncated",
]
