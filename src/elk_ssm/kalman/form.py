"""How a recursion over a linear-Gaussian model is held, and which way a model needs.

With the initial state kept apart no threshold tells an exact emission of what is known
already from another one, so such models are run from a root (see `exactly`). Whether
there is one is seen beforehand where values are not traced: one program is compiled
then and not two.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elk_ssm._jax import is_traced
from elk_ssm.kalman.delicate import has_noiseless_emissions
from elk_ssm.kalman.initial import is_diffuse
from elk_ssm.kalman.lgssm import LGSSM, Problem
from elk_ssm.kalman.regular import is_singular, least_share, need_of
from elk_ssm.parallel.anywhere import anywhere
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis

_LOSS = 1e-4
Form: TypeAlias = Literal["auto", "covariance", "square_root"]
# By covariances, which find out whether the model needs care, or surely does or does
# not; with the initial state kept apart, where no emission is exact, or with exact
# emissions told from others, or whichever of the two it needs.
Held: TypeAlias = Literal[
    "covariance", "careful", "quick", "apart", "exactly", "either"
]
COVARIANCES = ("covariance", "careful", "quick")
_OF_NEED: dict[str, Held] = {
    "none": "quick",
    "care": "careful",
    "unknown": "covariance",
}


def chosen_form(
    form: str, model: LGSSM, problem: Problem, *, smooth: bool = False
) -> Held:
    """Return what to run for a form, or say that there is none of that name.

    Args:
        form: As the user asked for.
        model: The model; a prior declared `Diffuse` is not for covariances.
        problem: The same with its data.
        smooth: Whether it is to be smoothed, for which a singular Q needs care, too.
    """
    diffuse = is_diffuse(model.initial_covariance)
    if form not in get_args(Form):
        known = ", ".join(get_args(Form))
        raise ValueError(f"form must be one of {known}; got {form!r}.")
    if diffuse and form == "covariance":
        raise ValueError(
            "a Diffuse initial covariance needs form='square_root' or 'auto'; "
            "got form='covariance'."
        )
    if form == "auto":
        form = "square_root" if diffuse or is_vague(problem) else "covariance"
    if form != "covariance":
        return _apart_or_exactly(problem)
    return _OF_NEED[need_of(problem, smooth=smooth)]


def unless_exact(
    held: Held,
    apart: Callable[[Problem], Any],
    exactly: Callable[[Problem], Any],
    problem: Problem,
    axis: TimeAxis = LOCAL,
) -> Any:
    """Call the one of two ways that a model needs; a batch is of one kind.

    Args:
        held: How it is held; not as a covariance.
        apart: The way with the initial state kept apart.
        exactly: The one for exact emissions, on one device only.
        problem: The model with its data.
        axis: Where time lives.

    Raises:
        ValueError: An emission is exact, and time sharded. Where that is not known
            beforehand, everything is NaN.
    """
    if held == "exactly" and axis.is_sharded:
        raise ValueError(
            "form='square_root' has no exact emissions under a mesh: the emission "
            "covariance is singular. Leave mesh out, or give every emission some noise."
        )
    if held != "either":
        return (exactly if held == "exactly" else apart)(problem)
    exact = has_noiseless_emissions(problem)
    if not axis.is_sharded:
        return lax.cond(anywhere(exact), exactly, apart, problem)
    hidden = axis.total(exact.astype(problem.values.dtype)) > 0
    return jax.tree.map(lambda x: jnp.where(hidden, jnp.nan, x), apart(problem))


def _apart_or_exactly(problem: Problem) -> Held:
    R = problem.emission_covariance
    if is_traced(R.array):
        return "either"
    if not R.mixes:
        return "exactly" if is_singular(R) else "apart"
    # The decorrelation decides; this is only to spare a program.
    least = np.finfo(R.array.dtype).eps ** 0.5
    return "apart" if bool(np.all(least_share(R) > least)) else "either"


def is_vague(problem: Problem) -> bool:
    """Whether a prior is so wide that covariances lose it; not where values are traced.

    That is where it lets an emission vary by so much more than its noise that rounding
    of the one is more than 1e-4 of the other.
    """
    prior = problem.initial_covariance.variances()
    H, noise = problem.emission_weights.array, problem.emission_covariance.variances()
    if any(map(is_traced, (prior, H, noise))):
        return False
    # Beside an emission without noise, zero here, both forms are run from a root.
    least = np.min(np.asarray(noise), initial=np.inf)
    most = np.max(np.asarray(prior)) * np.max(np.square(np.asarray(H)), initial=0)
    return bool(least > 0 and most * np.finfo(problem.values.dtype).eps > _LOSS * least)
