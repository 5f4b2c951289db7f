r"""Samples of whole trajectories from the posterior.

Given what follows, the states are a Markov chain that runs forwards (see `future`),

    z_t = A_t z_{t-1} + b_t + N(0, C_t),      A_0 = 0,

whose links come from one pass backwards over the data and do not depend on the sample.
The draw is then an affine recurrence, run by a scan of either kind. No covariance is
inverted, so F and Q may be singular. With the initial state kept apart (see `apart`)
the links are the same, and z_0 is drawn from its smoothed moments.
"""

from functools import partial

import jax
from jax import Array

from elk_ssm._order import model_first
from elk_ssm.kalman.affine import affine_scan
from elk_ssm.kalman.apart import links_apart
from elk_ssm.kalman.exactly import links_exactly
from elk_ssm.kalman.form import COVARIANCES, Form, Held, chosen_form, unless_exact
from elk_ssm.kalman.future import future_of
from elk_ssm.kalman.lgssm import LGSSM, Problem, pose
from elk_ssm.kalman.places import by_groups
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.structure import Dense
from elk_ssm.parallel.backend import Backend, check_backend
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.time_axis import TimeAxis


def lgssm_sample(
    model: LGSSM,
    key: Array,
    emissions: Array,
    inputs: Array | None = None,
    *,
    num_samples: int | None = None,
    mask: Array | None = None,
    form: Form = "auto",
    backend: Backend = "auto",
) -> Array:
    """Draw trajectories from p(z_{0:T-1} | y_{0:T-1}).

    Backward filtering, forward sampling; Frühwirth-Schnatter (1994) with time reversed.

    Args:
        model: the model.
        key: a JAX random key; before the model it still works, with a warning.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        num_samples: how many; `None` for one without a leading axis.
        mask: `(T, E)` or `(T,)`, True where observed.
        form: How the recursion is held, as for `lgssm_filter`.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.

    Returns:
        `(T, D)`, or `(num_samples, T, D)`; NaN if the data leave a dimension of a
        `Diffuse` prior open.

    Raises:
        ValueError: a shape does not fit, or the backend or the form is unknown.
        TypeError: a dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one, zero = elk.ScaledIdentity(1.0), elk.ScaledIdentity(0.0)
        >>> exact = elk.LGSSM(jnp.zeros(1), one, one, one, one, zero)
        >>> seen = jnp.array([[1.0], [2.0]])
        >>> elk.lgssm_sample(exact, jax.random.key(0), seen).tolist()
        [[1.0], [2.0]]
    """
    check_backend(backend)
    model, key = model_first(model, key, LGSSM, "lgssm_sample")
    problem = pose(model, emissions, inputs, mask)
    count = 1 if num_samples is None else int(num_samples)
    found = chosen_form(form, model, problem)
    samples = sample_problem(key, problem, count, backend, found)
    return samples[0] if num_samples is None else samples


@partial(jax.jit, static_argnames=("count", "backend", "form"))
def sample_problem(
    key: Array,
    problem: Problem,
    count: int,
    backend: Backend,
    form: Held = "covariance",
) -> Array:
    """Sample the states of a model that has been posed against its data."""
    task = partial(_links, backend=backend, form=form)
    A, means, roots = by_groups(task, problem)[0]
    noise = jax.random.normal(key, (count, *means.shape), means.dtype)
    draw = partial(affine_scan, A, backend=backend)
    return jax.vmap(draw)(means[None] + roots.mv(noise))


def _links(
    problem: Problem, axis: TimeAxis, backend: Backend, form: Held
) -> tuple[tuple[Dense, Array, Dense], None]:
    """Return the links into every step, and square roots of their covariances."""
    if form not in COVARIANCES:
        apart = partial(links_apart, backend=backend)
        A, b, C = unless_exact(form, apart, links_exactly, problem)
    else:
        A, b, C = run(future_of(problem), reverse=True, backend=backend, axis=axis)
    roots = jax.vmap(square_root)(C)
    return (Dense(A), b, Dense(roots)), None
