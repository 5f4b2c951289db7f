"""How a recursion over a linear-Gaussian model is held, and which way a model needs."""

from typing import Literal, TypeAlias, get_args

import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm.kalman.initial import is_diffuse
from elk_ssm.kalman.lgssm import LGSSM, Problem

_LOSS = 1e-4
Form: TypeAlias = Literal["auto", "covariance", "square_root"]


def chosen_form(form: str, model: LGSSM, problem: Problem) -> Form:
    """Return the form to use, or say that there is none of that name.

    Args:
        form: As the user asked for.
        model: The model; a prior declared `Diffuse` is not for covariances.
        problem: The same with its data.
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
    if form != "auto":
        return form  # type: ignore[return-value]
    return "square_root" if diffuse or is_vague(problem) else "covariance"


def is_vague(problem: Problem) -> bool:
    """Whether a prior is so wide that covariances lose it; not where values are traced.

    That is where it lets an emission vary by so much more than its noise that rounding
    of the one is more than 1e-4 of the other.
    """
    prior = problem.initial_covariance.variances()
    H, noise = problem.emission_weights.array, problem.emission_covariance.variances()
    if any(map(is_traced, (prior, H, noise))):
        return False
    # An emission without noise, zero here, is taken in exactly by covariances only.
    least = np.min(np.asarray(noise), initial=np.inf)
    most = np.max(np.asarray(prior)) * np.max(np.square(np.asarray(H)), initial=0)
    return bool(least > 0 and most * np.finfo(problem.values.dtype).eps > _LOSS * least)
