"""Component families: from a network's raw outputs to a Pyro distribution, and its closed forms."""

from pyralloy.families.arcs import wrap
from pyralloy.families.bounded import BetaFamily, TruncatedNormalFamily
from pyralloy.families.circular import VonMises, VonMisesFamily
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
    "TruncatedNormalFamily",
    "VonMises",
    "VonMisesFamily",
    "WeibullFamily",
    "base_of",
    "build",
    "family_of",
    "map_parameters",
    "wrap",
]
