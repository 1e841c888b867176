"""Methods: how a regressor's weights are found, by the name that its parameter has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal

from pyralloy import recipe
from pyralloy.checks import integer, positive
from pyralloy.families import Family, IntervalFamily, as_family
from pyralloy.inference.ensemble import ensemble
from pyralloy.inference.fit import Fit
from pyralloy.inference.mcmc import nuts
from pyralloy.inference.schedules import constant, cosine, one_cycle
from pyralloy.inference.svi import fit
from pyralloy.inference.training import planned
from pyralloy.model import MDN
from pyralloy.networks import ACTIVATIONS
from pyralloy.priors import LastLayer, Prior

__all__ = ["INFERENCE", "SCHEDULES", "Data", "Inference", "Make", "family_of_y", "require_known"]


class Data(NamedTuple):
    """What a fit is given: inputs, targets, how much each row counts, and what is held out."""

    X: Any
    y: Any
    weights: Any
    size: float | None
    validation: float | tuple[Any, ...] | None


#: Makes the model of a seed.
Make = Callable[[int], MDN]


class Inference(NamedTuple):
    """A method of inference: the prior it takes, how it runs, whether an encoding is affordable."""

    prior: Callable[[Prior], Prior | None]
    run: Callable[[Any, Make, Data, int], Fit]
    encodes: bool = True


def _by_guide(guide: Any) -> Callable[[Any, Make, Data, int], Fit]:
    return lambda regressor, make, data, seed: _fit_guide(regressor, make, data, seed, guide)


def _none(_prior: Prior) -> None:
    return None


def _all(prior: Prior) -> Prior:
    return prior


#: Most iterations of warm-up of a chain, and steps of the fit from which it starts.
MOST_WARM_UP = 500
#: Most times that an iteration of a chain doubles its path.
MOST_DOUBLINGS = 10

#: Schedules of the learning rate by the name that opens them at the door.
SCHEDULES = {"one_cycle": one_cycle, "cosine": cosine, "constant": constant}


def _course(regressor: Any, rows: int) -> tuple[int, int]:
    """Give the rows a step and the number of steps, by the recipe where they are None."""
    batch, steps = regressor.batch_size, regressor.max_steps
    batch = recipe.batch_size(rows) if batch is None else integer("batch_size", batch)
    steps = recipe.max_steps(rows, batch) if steps is None else integer("max_steps", steps)
    return batch, steps


def _training(regressor: Any, data: Data, seed: int) -> dict[str, Any]:
    """Give how to train, by name."""
    batch, steps = _course(regressor, len(data.y))
    return {
        "validation": data.validation,
        "stretch": regressor.stretch,
        "x_noise": regressor.x_noise,
        "patience": regressor.patience,
        "seed": seed,
        "learning_rate": regressor.learning_rate,
        "schedule": SCHEDULES[regressor.schedule],
        "compile": regressor.compile,
        "batch_size": batch,
        "max_steps": steps,
        "progress": regressor.progress,
    }


def _fit_guide(regressor: Any, make: Make, data: Data, seed: int, guide: Any) -> Fit:
    """Fit by maximum likelihood, or with a guide."""
    options = _training(regressor, data, seed) | {
        "guide": guide,
        "temperature": regressor.temperature,
        "weights": data.weights,
        "size": None if guide is None else data.size,  # only a prior minds
        "device": regressor.device,
    }
    members = integer("members", regressor.members)
    if members == 1:
        return fit(make(seed), data.X, data.y, **options)
    return ensemble(make, data.X, data.y, members=members, **options)


def _fit_chains(regressor: Any, make: Make, data: Data, seed: int) -> Fit:
    """Draw ``draws`` weights by two chains, on all rows."""
    if integer("members", regressor.members) > 1:
        raise ValueError(
            f"members={regressor.members} with inference='nuts': its two chains have starts of "
            "their own already; take members=1 and more draws, or inference='vi' or 'laplace'."
        )
    # Of this chains mind hardly anything; it is checked alike for all methods.
    plan = planned(**_training(regressor, data, seed))
    if plan.x_noise > 0.0:
        raise ValueError(
            f"x_noise={regressor.x_noise} with inference='nuts': chains take the rows as they are; "
            "take x_noise=0, or another inference."
        )
    most = plan.max_steps
    steps = min(most, MOST_WARM_UP)
    return nuts(
        make(seed),
        data.X,
        data.y,
        weights=data.weights,
        size=data.size,
        start=steps,
        warmup=steps,
        draws=max(4, -(-integer("draws", regressor.draws) // 2)),
        chains=2,
        temperature=regressor.temperature,
        depth=min(most.bit_length(), MOST_DOUBLINGS),
        seed=seed,
        progress=regressor.progress,
        device=regressor.device,
    )


#: Methods of inference by the name that opens them at the door.
INFERENCE = {
    "ml": Inference(_none, _by_guide(None)),
    "map": Inference(_all, _by_guide(AutoDelta)),
    "vi": Inference(_all, _by_guide(AutoNormal)),
    "laplace": Inference(LastLayer, _by_guide(AutoLaplaceApproximation)),
    "nuts": Inference(_all, _fit_chains, encodes=False),
}


def require_known(regressor: Any) -> None:
    """Look up every name that a regressor is given, and check what goes with it.

    Raises:
        TypeError: A temperature that is no number.
        ValueError: A name that is unknown, or a temperature that is out of range or place.
    """
    for name, known in (
        ("activation", ACTIVATIONS),
        ("inference", INFERENCE),
        ("schedule", SCHEDULES),
    ):
        value = getattr(regressor, name)
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name}={value!r} is unknown: choose one of {sorted(known)}.")
    if positive("temperature", regressor.temperature) != 1.0 and regressor.inference == "ml":
        raise ValueError(
            f"temperature={regressor.temperature} with inference='ml': maximum likelihood has no "
            "posterior to temper; take temperature=1, or another inference."
        )


def family_of_y(given: Any) -> Family:
    """Look up a family, whose numbers must be those of y as the network will see it.

    Raises:
        ValueError: An unknown family, or one with ends that would move as y is standardised.
    """
    family = as_family(given)
    _, _, counts, circular = support = family.support
    if support.scales or counts or circular or isinstance(family, IntervalFamily):
        return family
    raise ValueError(
        f"family={given!r} has ends between which y cannot be standardised: take "
        "TruncatedNormalFamily(low, high), or pyralloy.fit with a MixtureHead of this family "
        "and of y's spread."
    )
