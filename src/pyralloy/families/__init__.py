"""Component families: from a network's raw outputs to a Pyro distribution, and its closed forms."""

from pyralloy.families.arcs import wrap
from pyralloy.families.circular import VonMises, VonMisesFamily
from pyralloy.families.contract import (
    SCALE_CEILING,
    SCALE_FLOOR,
    Family,
    Spread,
    Support,
)
from pyralloy.families.counts import NegativeBinomialFamily, PoissonFamily
from pyralloy.families.interval import IntervalFamily
from pyralloy.families.interval_beta import BetaFamily
from pyralloy.families.joint import JOINT, JointFamily, LowRankMultivariateStudentT
from pyralloy.families.location_scale import (
    LaplaceFamily,
    LogisticFamily,
    NormalFamily,
    StudentTFamily,
)
from pyralloy.families.positive import GammaFamily, LogNormalFamily, WeibullFamily
from pyralloy.families.registry import (
    FAMILIES,
    as_family,
    base_of,
    build,
    family_of,
    find_family,
    kind_of,
    map_components,
    map_parameters,
)
from pyralloy.families.scale_matrices import Full, LowRank
from pyralloy.families.tails import log_mass
from pyralloy.families.truncated import (
    Truncated,
    TruncatedCountFamily,
    TruncatedFamily,
    truncated,
)
from pyralloy.families.truncated_normal import TruncatedNormalFamily
from pyralloy.families.vector import Product, VectorFamily, product_of

__all__ = [
    "FAMILIES",
    "JOINT",
    "SCALE_CEILING",
    "SCALE_FLOOR",
    "BetaFamily",
    "Family",
    "Full",
    "GammaFamily",
    "IntervalFamily",
    "JointFamily",
    "LaplaceFamily",
    "LogNormalFamily",
    "LogisticFamily",
    "LowRank",
    "LowRankMultivariateStudentT",
    "NegativeBinomialFamily",
    "NormalFamily",
    "PoissonFamily",
    "Product",
    "Spread",
    "StudentTFamily",
    "Support",
    "Truncated",
    "TruncatedCountFamily",
    "TruncatedFamily",
    "TruncatedNormalFamily",
    "VectorFamily",
    "VonMises",
    "VonMisesFamily",
    "WeibullFamily",
    "as_family",
    "base_of",
    "build",
    "family_of",
    "find_family",
    "kind_of",
    "log_mass",
    "map_components",
    "map_parameters",
    "product_of",
    "truncated",
    "wrap",
]
