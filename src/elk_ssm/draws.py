r"""Draws from a nonlinear model, parallel in time given the noise.

With draws eps_t ~ N(0, I) made beforehand,

    z_t = f(z_{t-1}, u_t) + sqrt(Q_t) eps_t          or G_t eps_t of a singular model

is a deterministic recurrence with the noise as an input, which `evaluate` solves in
parallel; it gives what a sequential loop gives with the same draws.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._order import model_first
from elk_ssm._recurrence import check_length
from elk_ssm._showing import held, named
from elk_ssm._types import Array, PyTree
from elk_ssm.evaluation import evaluate
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.small import matvec
from elk_ssm.linalg.structure import at_step, to_dense
from elk_ssm.nssm.driven import initial_root, noise_width, process_roots, root_at
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.posed import Posed, pose
from elk_ssm.solution import Status
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method


class Sample(NamedTuple):
    """A trajectory with its emissions.

    Attributes:
        states: `(T, D)`.
        emissions: `(T, E)`.
        status: Value of a `Status`, of the evaluation, `()`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Sample._fields
        ('states', 'emissions', 'status')
    """

    states: Array
    emissions: Array
    status: Array

    @property
    def converged(self) -> Array:
        """Whether the evaluation converged, boolean, of the shape of `status`."""
        return self.status == Status.converged

    def __repr__(self) -> str:
        said = named(self.status, Status)
        return held(self, "states", "emissions", status=said)


def sample(
    model: NonlinearSSM,
    key: Array,
    num_steps: int,
    inputs: PyTree = None,
    *,
    method: Method | Auto | None = None,
) -> Sample:
    """Draw a trajectory and its emissions.

    Args:
        model: The model; with a log density it needs `draw`.
        key: A JAX random key; before the model it works too, with a warning.
        num_steps: T.
        inputs: Pytree with leading axis T; entry t drives the transition into t.
        method: How `evaluate` solves the recurrence.

    Returns:
        A `Sample`.

    Raises:
        ValueError: A shape does not fit, or `draw` is missing.
        TypeError: A dtype or a function cannot be used.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.NonlinearSSM(
        ...     jnp.zeros(2), one, lambda z, u: jnp.sin(z), one, lambda z, u: z[:1], one
        ... )
        >>> drawn = elk.sample(model, jax.random.key(0), 50)
        >>> drawn.states.shape, drawn.emissions.shape
        ((50, 2), (50, 1))
    """
    model, key = model_first(model, key, NonlinearSSM, "sample")
    steps = check_length(jax.tree.map(jnp.asarray, inputs), num_steps)
    posed = pose(model, _placeholder(model, inputs, steps), inputs)
    keys = jax.random.split(key)
    shape = posed.shape if posed.roots is None else (steps, noise_width(posed))
    noise = jax.random.normal(keys[0], shape, posed.initial_mean.dtype)
    states, status = draw_states(posed, noise, method)
    return Sample(states, draw_emissions(model, posed, keys[1], states), status)


def draw_states(
    posed: Posed, noise: Array, method: Method | Auto | None = None
) -> tuple[Array, Array]:
    """Turn standard normal draws `(T, D)` into states `(T, D)`, in parallel.

    Those of a singular model are `(T, r)`, as many as its noise factors have columns.
    """
    if posed.roots is None:
        root = square_root(posed.initial_covariance)
    else:
        root = initial_root(posed)
    first = posed.initial_mean + matvec(root, noise[0])
    if posed.shape[0] == 1:
        return first[None], jnp.asarray(0, jnp.int32)

    def step(state: Array, entry: tuple) -> Array:
        index, eps, user_input = entry
        moved = posed.call("dynamics", state, user_input)
        return moved + matvec(_process_root(posed, state, user_input, index), eps)

    steps = jnp.arange(1, posed.shape[0])
    driven = (steps, noise[1:], posed.inputs_into)
    solution = evaluate(step, first, driven, method=method)
    return jnp.concatenate([first[None], solution.states]), solution.status


def _process_root(posed: Posed, state: Array, entry: PyTree, index: Array) -> Array:
    if posed.roots is not None:
        root, axis = process_roots(posed)
        own = root if root is None or axis is None else root[index - 1]
        return root_at(posed, state, entry, own)
    if posed.dynamics_covariance is None:
        return square_root(posed.call("dynamics_covariance", state, entry))
    return square_root(to_dense(at_step(posed.dynamics_covariance, index)))


def draw_emissions(
    model: NonlinearSSM, posed: Posed, key: Array, states: Array
) -> Array:
    """Draw y_t given z_t for every step, `(T, E)`."""
    keys = jax.random.split(key, posed.shape[0])
    if not posed.is_gaussian:
        if model.draw is None:
            raise ValueError("to sample a model with log_density, give it draw.")
        draw = model.draw

        def other(key, state, entry):
            return jnp.atleast_1d(
                draw(key, posed.call("emission", state, entry), entry)
            )

        return jax.vmap(other)(keys, states, posed.inputs)

    def gaussian(key, state, entry, covariance, _):
        mean = posed.call("emission", state, entry)
        root = square_root(to_dense(posed.emission_noise(state, entry, covariance)))
        return mean + matvec(root, jax.random.normal(key, mean.shape, mean.dtype))

    return posed.over_emissions(gaussian, keys, states)


def _placeholder(model: NonlinearSSM, inputs: PyTree, steps: int) -> Array:
    """Emissions of the right shape, of which nothing but the shape is used."""
    state = jnp.asarray(model.initial_mean)
    entry = jax.tree.map(lambda u: jnp.asarray(u)[0], inputs)
    emission = model.emission or (lambda z, _: z)
    width = jax.eval_shape(
        lambda z: jnp.atleast_1d(_drawn(model, emission(z, entry), entry)), state
    ).shape[0]
    return jnp.zeros((steps, width), state.dtype)


def _drawn(model: NonlinearSSM, predictor: Array, entry: PyTree) -> Array:
    if model.log_density is None or model.draw is None:
        return predictor
    return model.draw(jax.random.key(0), predictor, entry)
